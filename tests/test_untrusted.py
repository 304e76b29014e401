"""Files that nobody vouches for: whatever is in them, one sentence or a result; no code, no crash, no memory beyond measure.

    pytest tests/test_untrusted.py                # a minute's share of it
    pytest tests/test_untrusted.py -m full        # the same with a hundred times the inputs

The C readers and the C API are fuzzed by make -C csrc fuzz.
"""

import ast
import contextlib
import copy
import json
import pickle
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from conftest import readable, tiny_config
from hypothesis import strategies as st

import sampan
from sampan.checkpoint.folder import load_model, load_tokenizer, save_model
from sampan.checkpoint.huggingface import to_hf_weights
from sampan.checkpoint.run import Progress, Run, read_note
from sampan.checkpoint.save import WritableRun
from sampan.checkpoint.tensors import OPTIMIZER, WEIGHTS
from sampan.cli.sample import open_weights
from sampan.config import DataConfig, SampleConfig, TrainConfig, build
from sampan.config_files import read_file
from sampan.data.meta import open_folder
from sampan.data.prepare import prepare
from sampan.data.windows import EvaluationBatches, Windows
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.model.parameters import initialize, parameters
from sampan.model.rotary import rotary_frequencies
from sampan.report.metrics import Metrics, evaluations_of
from sampan.report.picture import draw, read_curves
from sampan.report.plan_lines import plan_lines
from sampan.sampling.write import write
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.characters import characters
from sampan.training.loop import Evaluation, Step
from sampan.training.plan import make_plan

NUMBERS = [0, -1, 1, 2, 3, 64, 2**31 - 1, 2**31, 10**9, 2**53 + 1, 10**30, 10**400]
NUMBERS += [0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")]
TEXTS = ["", "auto", "None", "gpt2", "llama", "linear", "F32", "BF16", "I64", "a" * 5000]
TEXTS += ["\ud800", "\0", "\x1b[2J", "..", "../x", "/etc/passwd"]
OTHERS = [None, True, False, [], {}, [[]], [1, 2], [2, 0], {"a": 1}, {"rope_type": "linear", "factor": 0}]


def examples(few: int, many: int):
    """Few in the ordinary run, many with -m full."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.full)])


def hammer(count: int, check, *inputs: st.SearchStrategy) -> None:
    """`check` with so many inputs; only UserError may come out."""

    def one(values):
        with contextlib.suppress(UserError):
            check(*values)

    settings = hypothesis.settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck))
    settings(hypothesis.given(st.tuples(*inputs))(one))()


@st.composite
def changed(draw, document, times: int = 3):
    """A JSON document with a few places changed, removed, added or swapped with others."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, times))):
        place, key = draw(st.sampled_from(places(document)))
        action = draw(st.sampled_from(["set", "set", "set", "drop", "copy", "nudge"]))
        if action == "set":
            place[key] = copy.deepcopy(draw(st.sampled_from(NUMBERS + TEXTS + OTHERS)))
        elif action == "drop":
            del place[key]
        elif action == "copy":
            other, name = draw(st.sampled_from(places(document)))
            with contextlib.suppress(KeyError, IndexError):  # it may have been dropped
                place[key] = copy.deepcopy(other[name])
        elif isinstance(place[key], int):
            place[key] += draw(st.sampled_from([-1, 1]))
        if not places(document):
            break
    return document


def places(document) -> list:
    """(container, key) of every value in it."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found = [(document, key) for key, _ in items]
    for container, key in list(found):
        if isinstance(container[key], (dict, list)):
            found += places(container[key])
    return found


@st.composite
def damaged(draw, whole: bytes):
    """Bytes with a few cut, overwritten or repeated."""
    result = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at, n = draw(st.integers(0, len(result))), draw(st.sampled_from([1, 2, 8, 100]))
        action = draw(st.sampled_from(["cut", "end", "set", "repeat"]))
        if action == "cut":
            del result[at : at + n]
        elif action == "end":
            del result[at:]
        elif action == "repeat":
            result[at:at] = result[at : at + n] * draw(st.sampled_from([1, 50]))
        else:
            result[at : at + n] = draw(st.binary(min_size=n, max_size=n))
    return bytes(result)


def texts_of(document) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON document, changed in its meaning or in its bytes."""
    whole = json.dumps(document).encode()
    return changed(document).map(lambda d: json.dumps(d).encode()) | damaged(whole)


def use(folder) -> None:
    """All that `sampan sample` does with a folder."""
    settings = SampleConfig(out_dir=str(folder), max_new_tokens=2, engine="c", threads=1, dtype="float32")
    model, weights, tokenizer, *_ = open_weights(settings)
    engine = open_engine(model, settings)
    engine.load(weights)
    for _ in write(engine, model, tokenizer, "the boat", settings):
        pass


# ---- a model's folder ----


@examples(15, 2000)
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_config_json(make_folder, family, examples):
    path = make_folder(family=family) / "config.json"
    described = json.loads(path.read_text())
    rope = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    described |= {"rope_scaling": rope | {"original_max_position_embeddings": 16}} if family == "llama" else {}
    path.write_text(json.dumps(described))
    use(path.parent)

    def check(text: bytes) -> None:
        path.write_bytes(text)
        use(path.parent)

    hammer(examples, check, texts_of(described))


@pytest.mark.parametrize("value", [0, -1, None, "2", [], [1, 2], {}, True, float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_rope_scaling(key, value):
    rope = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16}
    assert np.isfinite(rotary_frequencies(tiny_config("llama", rope_scaling=rope))).all()
    with pytest.raises(UserError, match=key):
        rotary_frequencies(tiny_config("llama", rope_scaling=rope | {key: value}))


@examples(40, 3000)
@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_tokenizer_json(make_folder, kind, examples):
    path = make_folder() / "tokenizer.json"
    tokenizer = characters("the boat") if kind == "characters" else train_bpe([readable(500)], 270)
    described = json.loads(tokenizer.to_json())
    described["model"]["vocab"] = dict(list(described["model"]["vocab"].items())[:20])

    def check(text: bytes) -> None:
        path.write_bytes(text)
        loaded = load_tokenizer(path.parent)
        ids = loaded.encode("the boat\né", "skip")
        loaded.decode(ids)
        step = loaded.stream()
        for i in ids:
            step(i)

    hammer(examples, check, texts_of(described))


@pytest.mark.parametrize(
    "part",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
        {"decoder": {"type": "Strip", "content": "a", "start": 4000000000, "stop": 400000000}},
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "b": 1},
                "merges": [["a", "b"]],
                "continuing_subword_prefix": "éé",
            }
        },
    ],
    ids=["regex", "charsmap", "strip", "merges"],
)
def test_a_panic_of_the_tokenizers_library_is_one_sentence(tmp_path, part):
    """Rust's panics are no Exception; a regular expression that never ends is one, after the library's ten million steps."""
    described = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None,
                 "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(described | part))
    with pytest.raises(UserError, match=r"tokenizer"):
        tokenizer = load_tokenizer(tmp_path)
        tokenizer.encode("a" * 40 + "b")
        tokenizer.decode([0, 1])


def test_a_tokenizer_that_would_make_texts_endless_is_refused(tmp_path):
    described = json.loads(characters("ab").to_json())
    twice = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    described["normalizer"] = {"type": "Sequence", "normalizers": [twice] * 40}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="times as long"):
        load_tokenizer(tmp_path)


def safetensors_bytes(header, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def split_safetensors(whole: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


@examples(40, 4000)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_safetensors(make_folder, kind, examples):
    folder = make_folder(n_layer=1, n_embd=8, n_head=2)
    path = folder / "model.safetensors"
    header, body = split_safetensors(path.read_bytes())
    if kind == "BF16":
        header, body = as_bfloat16(header), body[::2]
    path.write_bytes(safetensors_bytes(header, body))
    load_model(folder)

    def check(whole: bytes) -> None:
        path.write_bytes(whole)
        load_model(folder)
        read_note(path)

    by_meaning = changed(header).map(lambda h: safetensors_bytes(h, body))
    hammer(examples, check, by_meaning | damaged(safetensors_bytes(header, body)))


def as_bfloat16(header: dict) -> dict:
    halved = {}
    for name, entry in header.items():
        if name != "__metadata__":
            halved[name] = entry | {"dtype": "BF16", "data_offsets": [place // 2 for place in entry["data_offsets"]]}
    return halved


@examples(15, 2000)
def test_an_index_of_shards(make_folder, examples):
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder.parent / "x").write_bytes((folder / "model-00001-of-00001.safetensors").read_bytes())
    names = to_hf_weights(tiny_config("gpt2"), initialize(tiny_config("gpt2"), 1))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    load_model(folder)

    def check(text: bytes) -> None:
        path.write_bytes(text)
        load_model(folder)

    hammer(examples, check, texts_of(index))
    for escape in ("../x", str(folder.parent / "x"), "model-00001-of-00001.safetensors/../../x", ".."):
        path.write_text(json.dumps({"weight_map": {"a": escape}}))
        with pytest.raises(UserError):
            load_model(folder)


# ---- a run's folder ----


@pytest.fixture
def run(tmp_path, small_text):
    """A run that can be resumed, of a text that is prepared."""
    Path("boat.txt").write_text(small_text)
    tokenizer = characters(small_text)
    settings = dict(n_layer=1, n_head=2, n_embd=8, block_size=8, max_iters=2, batch_size=2, engine="c")
    made = make_plan("boat.txt", settings)
    weights = initialize(made.model, 1)
    made_run = WritableRun(made.config.out_dir)
    moments = {
        f"{key}.{p.name}": np.zeros(p.shape, np.float32)
        for p in parameters(made.model)
        for key in p.moments(made.config.optimizer)
    }
    with made_run.begin(made.config, made.model, tokenizer, made.data.record()) as first:
        first.save_best(made.model, weights, Progress(step=1))
        first.save_last(made.model, weights, moments | {"step": np.array(1)}, Progress(step=1))
    return made_run


def resume(run: Run) -> None:
    plan = make_plan(None, {"init_from": "resume", "out_dir": str(run.folder)})
    plan_lines(plan)
    run.load_last(plan.model)
    run.describe("best"), run.describe("last")


@examples(15, 400)
def test_run_json(run, examples):
    path = run.folder / "run.json"
    described = json.loads(path.read_text())
    resume(run)

    def check(text: bytes) -> None:
        path.write_bytes(text)
        resume(run)

    hammer(examples, check, texts_of(described))
    for name in ("x" * 300, "x/" * 3000, "\0", "\ud800"):
        for changes in ({"settings": described["settings"] | {"dataset": name}}, {"data": {"folder": name}}):
            with pytest.raises(UserError):
                check(json.dumps(described | changes).encode())


@examples(15, 400)
def test_the_progress_in_the_weights_header(run, examples):
    paths = [run.last / name for name in (WEIGHTS, OPTIMIZER)]
    whole = [split_safetensors(path.read_bytes()) for path in paths]
    note = json.loads(whole[0][0]["__metadata__"]["sampan"])

    def check(text: bytes) -> None:
        for path, (header, body) in zip(paths, whole, strict=True):
            named = header | {"__metadata__": {"format": "pt", "sampan": text.decode("latin-1")}}
            path.write_bytes(safetensors_bytes(named, body))
        resume(run)

    hammer(examples, check, texts_of(note))
    for text in (
        "[" * 100_000,
        '{"step": "1"}',
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1, "val_loss": "low"}',
        '{"val_loss": 1' + "0" * 400 + "}",
    ):
        with pytest.raises(UserError, match="progress is damaged"):
            check(text.encode())


@examples(15, 400)
def test_the_optimizer_of_a_run(run, examples):
    path = run.last / OPTIMIZER
    header, body = split_safetensors(path.read_bytes())

    def check(whole: bytes) -> None:
        path.write_bytes(whole)
        resume(run)

    hammer(examples, check, changed(header).map(lambda h: safetensors_bytes(h, body)))
    for bad in ({"shape": [1, 1]}, {"dtype": "F64"}):
        path.write_bytes(safetensors_bytes(header | {"step": header["step"] | bad}, body))
        with pytest.raises(UserError):
            resume(run)


@examples(40, 2000)
def test_metrics(run, examples):
    step = asdict(Step(step=0, loss=4.0, lr=1e-3, grad_norm=1.0, seconds=0.1, tokens_per_second=1e3, mfu=0.1))
    evaluation = asdict(Evaluation(step=0, train_loss=4.0, val_loss=4.1, best=True, lr=1e-3))
    path = run.folder / "metrics.jsonl"

    def check(lines: list[bytes]) -> None:
        path.write_bytes(b"\n".join([json.dumps(step).encode(), json.dumps(evaluation).encode(), *lines, b""]))
        metrics = Metrics(run.folder)
        metrics.file = metrics.open(5)
        metrics.close()
        curves = read_curves(path)
        assert curves.evaluations[0] == (0, 4.0, 4.1) and evaluations_of(run.folder)[0].val_loss == 4.1, "intact"
        assert "<svg" in draw(curves)

    hammer(examples, check, st.lists(texts_of(step) | texts_of(evaluation), max_size=3))
    check([json.dumps(step | {"loss": loss}).encode() for loss in (1e308, float("inf"), float("nan"))])
    check([b"\xff\xfe", b"[" * 100_000, b'{"step": 1' + b"0" * 5000 + b"}"])


# ---- a data folder ----


@examples(60, 4000)
def test_a_data_folder(tmp_path, small_text, examples):
    Path("boat.txt").write_text(small_text)
    folder = prepare("boat.txt", DataConfig()).folder
    meta, ids = json.loads((folder / "meta.json").read_text()), (folder / "train.bin").read_bytes()

    def check(text: bytes, raw: bytes) -> None:
        (folder / "meta.json").write_bytes(text)
        (folder / "train.bin").write_bytes(raw)
        opened = open_folder(folder)
        opened.summary()
        size = opened.meta.vocab_size
        x, _ = Windows(opened.train, 8, 1337, size).batch(0, 20)
        assert x.min() >= 0 and x.max() < size
        for x, _ in EvaluationBatches(opened.val, 8, 2, 2, size):
            assert x.max() < size

    hammer(examples, check, st.just(json.dumps(meta).encode()) | texts_of(meta), st.just(ids) | damaged(ids))


# ---- configurations ----

TOML = b"""n_layer = 2\nlearning_rate = 1e-3\ndataset = "boat.txt"\nbias = true\nblock_size = 64\nmax_iters = 10\n"""
PYTHON = b"""import time\nout_dir = 'out-' + str(time.time())\nn_layer = 2 * 3\nmax_iters = n_layer * 10 // 2\n"""


@examples(60, 6000)
@pytest.mark.parametrize("kind", ["toml", "py"])
def test_configurations(tmp_path, kind, examples):
    path, whole = tmp_path / f"settings.{kind}", {"toml": TOML, "py": PYTHON}[kind]
    path.write_bytes(whole)
    build(TrainConfig, read_file(path))
    words = st.sampled_from([b"[", b"(", b"-", b"2**", b"9" * 5000, b"*", b"'a'*", b"__import__('os').system('false')",
                             b"lambda: 0", b"f'{1}'", b"{", b"=", b"\n", b"n_layer", b"1e999", b"nan", b"inf", b"0x", b"\0",
                             b"\xff"])  # fmt: skip

    def check(text: bytes, at: int, word: bytes, times: int) -> None:
        path.write_bytes(text[:at] + word * times + text[at:])
        build(TrainConfig, read_file(path))

    hammer(
        examples, check, st.just(whole) | damaged(whole), st.integers(0, 100), words, st.sampled_from([0, 1, 3, 5000])
    )


# ---- no code, no memory ----


def test_nothing_in_the_package_can_run_what_is_in_a_file():
    """No import and no call of what executes or unpickles, in any module. pickletools only takes a file apart."""
    modules = {
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "yaml",
        "code",
        "runpy",
        "imp",
    }
    calls = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.load",
        "np.load",
        "numpy.load",
        "np.fromregex",
        "os.system",
    }
    for path in Path(sampan.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not modules.intersection(name.split(".")[0] for name in imported), path
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) in calls), f"{path}: {ast.unparse(node)}"
            assert not (isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell", "trust_remote_code")), (
                path
            )


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_under_any_name_is_never_loaded(run, tmp_path):
    pickled = pickle.dumps(Bomb())
    pickle.loads(pickled)
    assert Path("exploded").exists()
    Path("exploded").unlink()
    whole = {path: path.read_bytes() for path in [*run.folder.rglob("*"), *Path("data").rglob("*")] if path.is_file()}
    for path, before in whole.items():
        path.write_bytes(pickled)
        with contextlib.suppress(UserError):
            resume(run)
        with contextlib.suppress(UserError):
            use(run.folder)
        path.write_bytes(before)
    for name in ("pytorch_model.bin", "ckpt.pt", "optimizer.pt"):
        (run.folder / name).write_bytes(pickled)
    resume(run), use(run.folder)
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="nothing in it was executed"):
        load_model(run.folder)
    assert not Path("exploded").exists()


HOSTILE = {
    "gpt2": ["n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size"],
    "llama": ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size",
              "head_dim", "max_position_embeddings", "vocab_size"],
}  # fmt: skip


def bounded(script: str, megabytes: int = 300) -> str:
    """What a script prints in a process that may take so much more memory than it has after its imports."""
    limit = f"""
        import json, resource, sys
        from pathlib import Path
        import sampan.engine.c, sampan.checkpoint.run, sampan.report.metrics, sampan.sampling.write, sampan.training.plan
        from sampan.checkpoint.folder import load_model, load_tokenizer
        from sampan.checkpoint.run import Run
        from sampan.cli.sample import open_weights
        from sampan.config import SampleConfig
        from sampan.config_files import read_file
        from sampan.engine.open import open_engine
        from sampan.data.meta import open_folder
        from sampan.report.metrics import Metrics
        from sampan.errors import UserError
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ({megabytes} << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(limit) + textwrap.dedent(script)], capture_output=True, text=True,
        timeout=300, env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_absurd_sizes_are_refused_before_memory_is_asked_for(make_folder):
    """A config.json of a kilobyte, a header of a few; each in a process that has no more than 300 MB for it."""
    cases = []
    for family, keys in HOSTILE.items():
        folder = make_folder(family, family=family)
        described = json.loads((folder / "config.json").read_text())
        for key in keys:
            for value in (2**20, 10**7, 2**28, 10**9, 10**18, 10**30):
                if (key, value) != ("max_position_embeddings", 2**20):  # this is allowed
                    cases.append((str(folder), described | {key: value}))
    Path("cases.json").write_text(json.dumps(cases))
    printed = bounded("""
        for folder, described in json.loads(Path("cases.json").read_text()):
            Path(folder, "config.json").write_text(json.dumps(described))
            settings = SampleConfig(out_dir=folder, engine="c", threads=1)
            try:
                model, weights, *_ = open_weights(settings)
                open_engine(model, settings).load(weights)
                print("accepted", described)
            except UserError as error:
                print(len(str(error)) < 400 and str(error).isprintable())
    """)
    assert printed.splitlines() == ["True"] * len(cases)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_hostile_files_cost_no_more_than_their_size(tmp_path, make_folder):
    """Deep nesting, numbers of a million digits, ids far out, dense arrays: files of up to 5 MB, in 300 MB."""
    folder = make_folder()
    texts = []
    for n in (1 << 20, 1 << 14):
        texts += ["[" * n, '{"a":' * n, "1" * n, "[" + "1," * n + "1]", "[" + "[]," * n + "1]", "(" * n, "-" * n + "1",
                  "a." * n + "b = 1",
                  '{"model_type": "' + "x" * n + '"}', '{"model_type": ["' + "x" * n + '"]}', '{"n_layer":' + "9" * n + "}",
                  '{"model_type":"gpt2","activation_function":"' + "x" * n + '"}', "n_layer = " + "1+" * n + "1",
                  "n_layer = " + "-" * n + "1",
                  "a = " + "[" * n, "a = '" + "x" * n + "'\nb = a + a", "n_layer = x" + ".a" * n]  # fmt: skip
    texts += ['{"model_type": "\\u001b]0;owned\\u0007\\ud800\\n"}', '{"\\u001b[2J": 1}', "\x1b[2J = 1",
              '{"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 4294967294}}}',
              '{"model": {"type": "BPE", "merges": [], "vocab": {"a": 16000000}}}']  # fmt: skip
    Path("texts.json").write_text(json.dumps(texts))
    printed = bounded(f"""
        folder = Path({str(folder)!r})
        whole = {{p.name: p.read_bytes() for p in folder.iterdir()}}
        for text in json.loads(Path("texts.json").read_text()):
            for name, read in (("config.json", load_model), ("tokenizer.json", load_tokenizer),
                               ("model.safetensors.index.json", load_model), ("run.json", lambda f: Run(f).settings()),
                               ("a.toml", lambda f: read_file(f / "a.toml")),
                               ("a.py", lambda f: read_file(f / "a.py")),
                               ("meta.json", open_folder), ("model.safetensors", load_model),
                               ("metrics.jsonl", lambda f: Metrics(f).open(1))):
                raw = text.encode()
                if name == "model.safetensors":
                    raw = len(raw).to_bytes(8, "little") + raw
                if "index" in name:
                    (folder / "model.safetensors").unlink(missing_ok=True)
                (folder / name).write_bytes(raw)
                try:
                    read(folder)
                    print("read", name)
                except UserError as error:
                    is_short = len(str(error)) < 1100 and str(error).isprintable()
                    print("refused" if is_short else "LONG", name)
                (folder / name).unlink()
                for kept, before in whole.items():
                    (folder / kept).write_bytes(before)
    """)
    lines = printed.splitlines()
    assert len(lines) == 9 * len(texts) and not any(line.startswith("LONG") for line in lines)
    assert {line for line in lines if line.startswith("read")} <= {"read metrics.jsonl"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_the_c_program_refuses_absurd_folders_too(make_folder):
    program = Path(__file__).parents[1] / "csrc" / "build" / "sampan-c"
    if not program.exists():
        pytest.skip("sampan-c was not built (make -C csrc)")
    folder = make_folder(family="llama")
    path = folder / "config.json"
    described = json.loads(path.read_text())
    good = (folder / "model.safetensors").read_bytes()

    def refused() -> None:
        limited = f"ulimit -v 500000; exec {program} sample --out_dir {folder} --max_new_tokens 1 --threads 1"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and done.stderr.count("\n") <= 3 and "sampan-c: " in done.stderr, done.stderr

    for key in HOSTILE["llama"]:
        for value in (2**20, 10**9, 2**28 - 2**27):
            path.write_text(json.dumps(described | {key: value}))
            refused()
    path.write_text(json.dumps(described))
    dense = b"[" + b"1," * (32 << 20) + b"1]"
    (folder / "model.safetensors").write_bytes(safetensors_bytes(dense, b""))  # once 5 GB before it was refused
    refused()
    (folder / "model.safetensors").write_bytes(good)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 16000000}}}')
    refused()


def test_tensors_that_share_bytes_are_refused(make_folder):
    folder = make_folder()
    header, body = split_safetensors((folder / "model.safetensors").read_bytes())
    first, second = [name for name in header if name != "__metadata__"][:2]
    shared = header | {second: header[second] | {"data_offsets": header[first]["data_offsets"]}}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(shared, body))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model(folder)


def test_save_and_load_still_agree(make_folder, tmp_path):
    model, weights = load_model(make_folder())
    save_model(tmp_path / "copy", model, weights, None)
    assert all(np.array_equal(load_model(tmp_path / "copy")[1][name], value) for name, value in weights.items())
