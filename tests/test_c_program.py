"""sampan-c, the stand-alone program: the package's batches, schedule and losses, its files, and what it refuses.

make -C csrc && pytest tests/test_c_program.py
"""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer as Inner, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sampan.checkpoint.folder import load_model, load_tokenizer, save_model
from sampan.checkpoint.run import Run
from sampan.cli.sample import read_prompt
from sampan.config import FAMILIES, ModelSettings, SampleConfig, TrainConfig
from sampan.data.windows import EvaluationBatches, Windows
from sampan.errors import UserError
from sampan.evaluation.losses import evaluate
from sampan.model.family import find_family
from sampan.model.parameters import initialize
from sampan.model.shape import resolve
from sampan.sampling.write import default_prompt, write
from sampan.tokens.byte_level import first_merges, train_bpe
from sampan.tokens.characters import characters
from sampan.tokens.kinds import open_tokenizer
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.schedule import learning_rate

try:
    from sampan.engine.c import CEngine, load_library

    load_library()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

PROGRAM = Path(__file__).parents[1] / "csrc" / "build" / "sampan-c"
if not PROGRAM.exists():
    pytest.skip("sampan-c was not built (make -C csrc)", allow_module_level=True)

SETTINGS = dict(batch_size=3, gradient_accumulation_steps=2, max_iters=7, learning_rate=3e-3, min_lr=1e-4, warmup_iters=2,
                lr_decay_iters=6, eval_interval=3, eval_iters=2, dtype="float32", dropout=0.1)  # fmt: skip


def program(*arguments) -> subprocess.CompletedProcess:
    """Run sampan-c; its output keeps every line end."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, timeout=60)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(params=FAMILIES)
def run(request, tmp_path):
    """(data folder, model folder, config, tokenizer)"""
    text = "to be or not to be, that is the question: " * 20
    tokenizer = characters(text)
    ids = tokenizer.encode(text).astype(np.uint16)
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", ids[:700]), ("val", ids[700:])):
        part.tofile(data / f"{split}.bin")
    (data / "meta.json").write_text(json.dumps({"vocab_size": tokenizer.vocab_size, "dtype": "uint16"}))
    shape = dict(
        n_layer=2, n_head=4, n_embd=32, n_kv_head=4 if request.param == "gpt2" else 2, block_size=16, dropout=0.1
    )
    config = resolve(ModelSettings(family=request.param, vocab_size=tokenizer.vocab_size, **shape))
    save_model(tmp_path / "model", config, initialize(config, 1), tokenizer)
    return data, tmp_path / "model", config, tokenizer


def test_it_trains_as_the_package(run):
    data, model, config, _ = run
    recipe = SETTINGS | dict(optimizer="muon" if config.family == "qwen3" else "adamw")
    recipe["seed"] = 2**63 - 5  # more than a double holds
    settings = TrainConfig(**recipe, threads=2)
    engine = CEngine(config, settings, settings)
    engine.load(load_model(model)[1])
    splits = [np.fromfile(data / f"{s}.bin", np.uint16) for s in ("train", "val")]
    windows = Windows(splits[0], 16, settings.seed)
    evaluations = [EvaluationBatches(tokens, 16, 3, 2) for tokens in splits]
    expected = []
    for step in range(8):
        if step % 3 == 0 or step == 7:
            expected.append(
                f"step {step}: train loss {evaluate(engine, evaluations[0]):.4f}, val loss {evaluate(engine, evaluations[1]):.4f}"
            )
        if step < 7:
            for micro in range(2):
                engine.accumulate(*windows.batch(step * 6 + micro * 3, 3))
            expected.append(f"iter {step}: loss {engine.update(learning_rate(settings, step)).loss:.4f}")
    flags = [f"--{key}={value}" for key, value in recipe.items()]
    done = program("train", "--out_dir", model, "--data_dir", data, *flags)
    assert done.returncode == 0, done.stderr
    assert [line.split(", time")[0] for line in done.stdout.splitlines()] == expected
    saved = load_model(model)[1]  # best, which is the last here
    assert all(np.allclose(saved[name], w, rtol=0, atol=1e-6) for name, w in engine.params().items())


def test_what_is_not_finite_is_named_and_not_saved(run):
    data, model, config, tokenizer = run
    weights = load_model(model)[1]
    weights["h.1.mlp.c_fc.weight"][2, 3] = np.inf
    save_model(model, config, weights, tokenizer)
    before = (model / "model.safetensors").read_bytes()
    done = program("train", "--out_dir", model, "--data_dir", data, *[f"--{k}={v}" for k, v in SETTINGS.items()])
    assert done.returncode == 2, done.stderr
    assert "step 0: the weights of h.1.mlp.c_fc.weight are not finite" in done.stderr, done.stderr
    assert (model / "model.safetensors").read_bytes() == before


# ---- sample: the text of `sampan sample`, for every kind of folder that the package writes ----

TEXT = "To be, or not to be: that's the 1st question.\r\n\n  林冲道：好漢，且慢！ don't — 12345 times\n" * 9
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def hugging_face(kind: str) -> Tokenizer:
    """Return a tokenizer as others make them: cut as Llama 3 or Qwen cut words, or with SentencePiece's spaces."""
    first, bytes_ = ["<|endoftext|>", "<|im_start|>"], [f"<0x{b:02X}>" for b in range(256)]
    trainer = dict(vocab_size=420, show_progress=False)
    template = None
    if kind in ("llama3", "qwen"):
        inner = Inner(models.BPE(ignore_merges=kind == "llama3"))
        cut = pre_tokenizers.Split(Regex(SPLIT % ("{1,3}" if kind == "llama3" else "")), "isolated")
        spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Sequence([cut, spelt]), decoders.ByteLevel()
        trainer |= dict(initial_alphabet=spelt.alphabet(), special_tokens=first)
    else:
        inner = Inner(models.BPE(byte_fallback=True, unk_token="<unk>"))
        if kind == "metaspace":
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(steps)
        trainer |= dict(special_tokens=["<unk>", "<s>", "</s>", *bytes_])
        template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    inner.train_from_iterator(TEXT.splitlines(keepends=True), trainers.BpeTrainer(**trainer))
    if template:
        inner.post_processor = processors.Sequence([template])
    return open_tokenizer(inner)


TOKENIZERS = {
    "char": lambda: characters(TEXT),
    "char with ends": lambda: characters(TEXT, end_of_text=True),
    "char+bytes": lambda: characters("To be, or 林", end_of_text=True, byte_tokens=True),
    "bpe": lambda: train_bpe([TEXT], 330),
    "half a bpe": lambda: first_merges(train_bpe([TEXT], 330), 300),
    **{kind: lambda kind=kind: hugging_face(kind) for kind in ("llama3", "qwen", "sentencepiece", "metaspace")},
}
PROMPTS = ("To be", "  don't\n\n 12345 林冲", "好漢！\r\n—", " \n", "")
DRAWS = (
    dict(temperature=0.0),
    dict(seed=2**63 - 1),
    dict(seed=7, top_k=0, num_samples=3),
    dict(seed=1, top_p=0.6, min_p=0.05),
    dict(seed=2, temperature=1.5, repetition_penalty=1.7, no_repeat_ngram_size=2),
    dict(temperature=0.0, no_repeat_ngram_size=1),
)


def written(folder: Path, config: SampleConfig) -> str:
    """Return what `sampan sample` prints of a model."""
    model, weights = load_model(folder)
    engine = CEngine(model, config)
    engine.load(weights)
    parts = [""] * config.num_samples
    tokenizer = load_tokenizer(folder)
    if config.start is None:
        prompt = default_prompt(tokenizer, Run(folder).documents())
    else:
        prompt = read_prompt(config.start, io.StringIO())
    for number, piece in write(engine, model, tokenizer, prompt, config):
        parts[number] += piece
    return "\n---------------\n".join(parts) + "\n"


def check_same_text(folder: Path, **settings) -> str:
    config = SampleConfig(**dict(dtype="float32", threads=1, max_new_tokens=40, seed=1) | settings)
    names = dict.fromkeys(("dtype", "threads", "max_new_tokens", "seed", *settings))
    flags = [f"--{name}={getattr(config, name)}" for name in names]
    done = program("sample", folder, *flags)
    assert (done.returncode, done.stdout) == (0, written(folder, config)), (settings, done.stderr)
    return done.stdout


def save_lively(folder: Path, tokenizer: Tokenizer, family: str = "gpt2", **shape) -> None:
    """Save a model whose every logit depends on every token before, so that one wrong id of a prompt changes the text."""
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=tokenizer.vocab_size) | shape
    config = resolve(ModelSettings(family=family, **shape))
    noise = np.random.default_rng(2)
    weights = {name: w + noise.normal(0, 0.3, w.shape).astype(np.float32) for name, w in initialize(config, 1).items()}
    save_model(folder, config, weights, tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_writes_as_the_package_with_every_tokenizer(tmp_path, kind):
    save_lively(tmp_path / "model", TOKENIZERS[kind]())
    texts = set()
    for prompt in PROMPTS:
        known = kind not in ("char", "char with ends") or set(prompt) <= set(TEXT)
        texts |= {check_same_text(tmp_path / "model", start=prompt, **draw) for draw in DRAWS if known}
    assert len(texts) > 10  # or prompts and settings would not matter


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
def test_it_writes_as_the_package_in_every_family(tmp_path, family, bias):
    if bias not in find_family(family).bias:
        pytest.skip(f"{family} has no such model")
    save_lively(tmp_path / "model", characters(TEXT), family, bias=bias, tie_word_embeddings=bias)
    check_same_text(tmp_path / "model", start="To be", temperature=0.0)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.5},
        {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 12},
    ],
)  # fmt: skip
def test_it_stretches_rotary_positions_as_the_package(tmp_path, scaling):
    save_lively(tmp_path / "model", characters(TEXT), "llama", rope_scaling=scaling, block_size=48, rope_theta=50.0)
    stretched = check_same_text(tmp_path / "model", start="To be", temperature=0.0)
    save_lively(tmp_path / "plain", characters(TEXT), "llama", block_size=48, rope_theta=50.0)
    assert stretched != check_same_text(tmp_path / "plain", start="To be", temperature=0.0)


@pytest.mark.parametrize("kind", ["char", "char with ends", "sentencepiece"])
@pytest.mark.parametrize("documents", [None, 1, 5])
def test_it_begins_as_the_documents_do(tmp_path, kind, documents):
    save_lively(tmp_path, TOKENIZERS[kind]())
    (tmp_path / "run.json").write_text(json.dumps({"data": {"folder": "d", "documents": documents}}))
    check_same_text(tmp_path)
    check_same_text(tmp_path, start="")


def test_it_stops_at_each_end_of_text_that_the_folder_names(tmp_path):
    save_lively(tmp_path, TOKENIZERS["llama3"]())
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    texts = [check_same_text(tmp_path, seed=seed, max_new_tokens=400) for seed in range(6)]
    (tmp_path / "config.json").write_text(json.dumps(about | {"eos_token_id": 0}))
    (tmp_path / "generation_config.json").unlink()
    assert texts != [check_same_text(tmp_path, seed=seed, max_new_tokens=400) for seed in range(6)]


def test_a_head_of_its_own_is_not_dropped(tmp_path):
    save_lively(tmp_path, characters(TEXT), tie_word_embeddings=False)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": True}))
    done = program("sample", tmp_path)
    assert done.returncode == 2 and "lm_head.weight differs" in done.stderr


def test_it_draws_a_new_seed_each_time_and_names_it(tmp_path):
    save_lively(tmp_path / "model", characters(TEXT))
    first, second = (program("sample", tmp_path / "model", "--max_new_tokens=40") for _ in range(2))
    seed = re.search(r"^seed (\d+)$", first.stderr, re.MULTILINE)[1]
    assert first.stdout != second.stdout
    assert first.stdout == program("sample", tmp_path / "model", "--max_new_tokens=40", "--seed", seed).stdout


def test_it_reads_a_run_that_has_only_its_last_weights(tmp_path):
    save_lively(tmp_path / "run" / "last", characters(TEXT))
    (tmp_path / "run" / "run.json").write_text('{"settings": {"dtype": "float16", "seed": 9223372036854775807}}')
    flags = ("--start=To be", "--temperature=0", "--dtype=float32", "--max_new_tokens=40")
    expected = check_same_text(tmp_path / "run" / "last", start="To be", temperature=0.0)
    assert program("sample", tmp_path / "run", *flags).stdout == expected
    save_lively(tmp_path / "run", characters(TEXT), n_layer=1)
    assert program("sample", tmp_path / "run", *flags).stdout != expected
    assert program("sample", tmp_path / "run", *flags, "--weights=last").stdout == expected


def test_it_refuses_in_one_sentence(run, tmp_path):
    data, model, _, _ = run

    def refused(*arguments) -> str:
        done = program(*arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sampan-c: ")
        return done.stderr

    assert "usage" in refused("serve")
    assert "unknown setting n_layr" in refused("train", "--n_layr=3")
    assert "needs a value" in refused("train", "--out_dir")
    assert "expected a number" in refused("train", "--out_dir", model, "--batch_size", "many")
    assert "config.json" in refused("sample", "--out_dir", tmp_path / "none")
    assert "lacks" in refused("sample", "--out_dir", model, "--start", "ß")
    assert "a block needs" in refused(
        "train", "--out_dir", model, "--data_dir", data, "--block_size", 16, *short_of(data)
    )

    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    assert "not whole" in refused("sample", "--out_dir", model)
    (model / "model.safetensors").write_bytes(weights)
    described = json.loads((model / "config.json").read_text())
    size = "n_embd" if "n_embd" in described else "hidden_size"
    for wrong, said in (
        ({size: 64}, "shape"),
        ({size: 1 << 40}, "size"),
        ({"model_type": "bert"}, "model_type"),
        ({"vocab_size": 1 << 28}, "refuses|shape"),
    ):
        (model / "config.json").write_text(json.dumps(described | wrong))
        assert any(word in refused("sample", "--out_dir", model) for word in said.split("|"))
    (model / "config.json").write_text("{")
    assert "line 1" in refused("sample", "--out_dir", model)


def short_of(data: Path) -> list[str]:
    """Flags for a copy of the data that is too short."""
    shorter = data.with_name("shorter")
    shutil.copytree(data, shorter)
    (shorter / "train.bin").write_bytes(bytes(20))
    return ["--data_dir", str(shorter)]


def test_it_writes_beside_a_run_and_never_over_it(run, tmp_path):
    data, model, config, tokenizer = run
    new = tmp_path / "new"
    few = ("--data_dir", data, "--max_iters", 1, "--batch_size", 2, "--gradient_accumulation_steps", 1)
    done = program("train", "--init_from", model, "--out_dir", new, *few)
    assert done.returncode == 0, done.stderr
    assert load_model(new)[0] == load_model(model)[0]
    again = program("train", "--init_from", model, "--out_dir", new, *few)
    assert again.returncode == 2 and "already holds a model" in again.stderr
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "ckpt.pt"):
        large = tmp_path / name.replace(".", "_")
        large.mkdir()
        with (large / name).open("wb") as file:
            file.truncate(300 << 20)  # more than a text may have
        over = program("train", "--init_from", model, "--out_dir", large, *few)
        assert over.returncode == 2 and "already holds a model" in over.stderr and len(list(large.iterdir())) == 1
    (model / "run.json").write_text("{}")
    over = program("train", "--out_dir", model, *few)
    assert over.returncode == 2 and "--init_from" in over.stderr
    (data / "tokenizer.json").write_text(characters("another").to_json())
    other = program("train", "--init_from", model, "--out_dir", tmp_path / "third", *few)
    assert other.returncode == 2 and "another tokenizer" in other.stderr
