"""exchange/llmc/ and csrc/program/llmc.c: llm.c's files, byte by byte, and its arithmetic.

The layouts are written out again here with struct, gradients are each engine's, the shuffle's random numbers NumPy's.
llm.c's own programs were run beside ours by hand: docs/LOG.md has what they printed.
"""

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import readable, tiny_config
from helpers import engine_state
from hypothesis import given, settings, strategies as st

import sampan.exchange.llmc.tokens
from sampan.checkpoint.folder import load_model, load_tokenizer, save_model
from sampan.cli.main import main
from sampan.config import DataConfig, ExportConfig, ImportConfig, MachineConfig, OptimizerSettings, TrainConfig
from sampan.data.meta import open_folder
from sampan.data.prepare import prepare
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.exchange.llmc import claims, export_path, import_path
from sampan.exchange.llmc.state import State, compute_state, read_state
from sampan.exchange.llmc.tokenizer import read_tokenizer_file, write_tokenizer
from sampan.exchange.llmc.tokens import encode_sections, read_tokens, write_tokens
from sampan.exchange.llmc.weights import read_weights, to_bfloat16, to_float32
from sampan.model.count import count_parameters
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import resolve, settings_of
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.characters import characters
from sampan.tokens.tokenizer import END_OF_TEXT

PROGRAM = Path(__file__).parents[1] / "csrc" / "build" / "sampan-c"
V, VP = 65, 128  # tiny_config's vocabulary, and padded


# ---- llm.c's layout, once more ----


def layout(L: int, C: int, P: int, V: int) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each tensor in the file's order, as llm.c's write_tensors lists them; wte without padding."""
    rows = [("wte.weight", (V, C)), ("wpe.weight", (P, C))]
    kinds = [("ln_1.weight", (C,)), ("ln_1.bias", (C,)), ("attn.c_attn.weight", (3 * C, C)), ("attn.c_attn.bias", (3 * C,)),
             ("attn.c_proj.weight", (C, C)), ("attn.c_proj.bias", (C,)), ("ln_2.weight", (C,)), ("ln_2.bias", (C,)),
             ("mlp.c_fc.weight", (4 * C, C)), ("mlp.c_fc.bias", (4 * C,)), ("mlp.c_proj.weight", (C, 4 * C)),
             ("mlp.c_proj.bias", (C,))]  # fmt: skip
    for kind, shape in kinds:
        for layer in range(L):
            rows.append((f"h.{layer}.{kind}", shape))
    return [*rows, ("ln_f.weight", (C,)), ("ln_f.bias", (C,))]


def file_of(numbers: list[int], *bodies: bytes) -> bytes:
    return struct.pack("<256i", *numbers, *[0] * (256 - len(numbers))) + b"".join(bodies)


def model_file(model, weights, version=3) -> bytes:
    body = []
    for name, shape in layout(model.n_layer, model.n_embd, model.block_size, model.vocab_size):
        assert weights[name].shape == shape
        values = np.concatenate([weights[name].ravel(), np.zeros((VP - V) * model.n_embd * (name == "wte.weight"))])
        raw = struct.pack(f"<{values.size}f", *values)
        if version == 5:  # values that bfloat16 has: its bytes are the higher two
            assert not any(raw[0::4]) and not any(raw[1::4])
            raw = b"".join(raw[i + 2 : i + 4] for i in range(0, len(raw), 4))
        body.append(raw)
    shape = [model.block_size, model.vocab_size, model.n_layer, model.n_head, model.n_embd, VP]
    return file_of([20240326, version, *shape], *body)


def random_weights(model, coarse=False, seed=3) -> dict[str, np.ndarray]:
    """Weights none of which is zero or one; `coarse` ones are of 8 bits."""
    rng = np.random.default_rng(seed)
    weights = {p.name: rng.normal(p.mean, 0.2, p.shape).astype(np.float32) for p in parameters(model)}
    return {k: (w.view(np.uint32) & 0xFFFF0000).view(np.float32) for k, w in weights.items()} if coarse else weights


@pytest.fixture
def model():
    return tiny_config("gpt2", vocab_size=V)


@pytest.fixture
def folder(model, tmp_path):
    """A model's folder with its tokenizer of characters."""
    tokenizer = characters("".join(map(chr, range(40, 40 + V - 1))), end_of_text=True)
    save_model(tmp_path / "model", model, random_weights(model), tokenizer)
    return tmp_path / "model"


def read(path, out, tokenizer: str = "auto") -> list[str]:
    return import_path(Path(path), ImportConfig(out_dir=str(out), tokenizer=tokenizer))


def write(source, out, **settings) -> list[Path]:
    """The files that were written."""
    lines = export_path(str(source), ExportConfig(to="llmc", out=str(out), **settings))
    return [Path(line.rsplit(":", 1)[0]) for line in lines]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---- weights ----


@pytest.mark.parametrize("version", [3, 5])
def test_weights_are_read(model, version):
    weights = random_weights(model, coarse=version == 5)
    Path("gpt2_124M.bin").write_bytes(model_file(model, weights, version))
    write_tokenizer(Path("gpt2_tokenizer.bin"), characters("".join(map(chr, range(40, 40 + V)))))
    assert claims(Path("gpt2_124M.bin"))
    assert "2 layers" in " ".join(read("gpt2_124M.bin", "out/new"))
    found, values = load_model("out/new")
    assert found == model and equal(values, weights)
    assert load_tokenizer("out/new").decode([0, 1]) == "()"
    with pytest.raises(UserError, match="already contains a model"):
        read("gpt2_124M.bin", "out/new")


def test_weights_are_written(model, folder):
    weights = load_model(folder)[1]
    paths = write(str(folder), "there")
    assert [p.name for p in paths] == ["gpt2_tokenizer.bin", "gpt2_124M.bin"]
    assert Path("there/gpt2_124M.bin").read_bytes() == model_file(model, weights)


def test_bfloat16_is_rounded_as_torch_rounds_it(model, folder):
    torch = pytest.importorskip("torch")
    write(str(folder), "there", dtype="bf16")
    _, found = read_weights(Path("there/gpt2_124M_bf16.bin"))
    for name, values in load_model(folder)[1].items():
        assert np.array_equal(found[name], torch.tensor(values).bfloat16().float().numpy())
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    wanted = torch.tensor(odd).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat16(odd), wanted)
    assert np.isnan(to_float32(to_bfloat16(np.array([np.nan, -np.nan], np.float32)))).all()


def test_a_model_without_biases_gets_zeros_and_computes_the_same(engine_name):
    bare = tiny_config("gpt2", vocab_size=V, bias=False)
    weights = initialize(bare, 1)
    save_model("model", bare, weights, None)
    write("model", "there")
    full, values = read_weights(Path("there/gpt2_124M.bin"))
    assert full == resolve(replace(settings_of(bare), bias=True)) and not values["h.1.attn.c_attn.bias"].any()
    ids = np.arange(12, dtype=np.int32).reshape(1, 12)
    settings = TrainConfig(dtype="float32", engine=engine_name, device="cpu", threads=1)
    logits = []
    for config, arrays in ((bare, weights), (full, values)):
        engine = open_engine(config, settings, settings)
        engine.load(arrays)
        logits.append(engine.session(1).feed(ids))
    assert np.array_equal(*logits) and logits[0].any()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (dict(family="llama"), "is a llama model"),
        (dict(tie_word_embeddings=False), "share the token embedding"),
        (dict(n_inner=96), "its MLP is 96 wide"),
        (dict(norm_eps=1e-6), "norm_eps is 1e-06"),
    ],
)
def test_a_model_that_llmc_has_not_is_refused(shape, said):
    other = tiny_config(**{"family": "gpt2"} | shape)
    save_model("model", other, initialize(other, 1), None)
    with pytest.raises(UserError, match=said):
        write("model", "there")
    assert not list(Path("there").iterdir())


def test_weights_are_written_without_a_tokenizer_that_llmc_cannot_have(model, folder):
    from tokenizers import Tokenizer, models

    words = {f"word{i}": i for i in range(V)}
    (folder / "tokenizer.json").write_text(Tokenizer(models.WordLevel(words, unk_token="word0")).to_str())
    with pytest.warns(UserWarning, match=r"gpt2_tokenizer.bin: .*the weights are written without it"):
        write(str(folder), "there")
    assert [path.name for path in Path("there").iterdir()] == ["gpt2_124M.bin"]


# ---- debug states ----


def state_of(model, weights, B=3, T=7, seed=5) -> State:
    x, y = np.random.default_rng(seed).integers(0, model.vocab_size, (2, B, T)).astype(np.int32)
    return compute_state(model, weights, x, y)


def state_file(model, state) -> bytes:
    body = [a.astype("<i4").tobytes() for a in (state.x, state.y)]
    body += [state.logits.astype("<f4").tobytes(), struct.pack("<f", state.loss)]
    for name, shape in layout(model.n_layer, model.n_embd, model.block_size, model.vocab_size):
        assert state.gradients[name].shape == shape
        body.append(state.gradients[name].tobytes() + bytes((VP - V) * model.n_embd * 4 * (name == "wte.weight")))
    return file_of([20240327, 2, *state.x.shape], *body)


def test_a_state_is_what_each_engine_computes(model, folder, engine_name):
    weights = load_model(folder)[1]
    write(str(folder), "there", debug_state=True)
    found = read_state(Path("there/gpt2_124M_debug_state.bin"), model)
    engine = open_engine(
        model, MachineConfig(dtype="float32", engine=engine_name, device="cpu", threads=1), OptimizerSettings()
    )
    engine.load(weights)
    wanted = engine_state(engine, found.x, found.y)
    assert found.x.shape == (4, 16) and np.array_equal(found.x.ravel()[1:], found.y.ravel()[:-1])
    assert abs(found.loss - wanted.loss) < 1e-6 * wanted.loss
    pairs = [(found.logits, wanted.logits), *((g, wanted.gradients[n]) for n, g in found.gradients.items())]
    for ours, theirs in pairs:
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max() > 0
    whole = state_file(model, replace(found, loss=found.loss))
    assert Path("there/gpt2_124M_debug_state.bin").read_bytes() == whole


def test_a_state_is_computed_without_the_engine_that_it_tests(folder, monkeypatch):
    def missing(*arguments):
        raise UserError("no engine is installed")

    for module in ("sampan.engine.open", "sampan.exchange.check"):
        monkeypatch.setattr(f"{module}.open_engine", missing)
    write(str(folder), "there", debug_state=True)
    assert Path("there/gpt2_124M_debug_state.bin").is_file()


def test_a_state_of_data_has_its_first_val_tokens(folder):
    text = "".join(map(chr, range(40, 40 + V - 1))) * 30
    Path("text.txt").write_text(text)
    data = prepare("text.txt", DataConfig(tokenizer=str(folder)))
    write(str(folder), "there", debug_state=True, data_dir=str(data.folder))
    state = read_state(Path("there/gpt2_124M_debug_state.bin"), load_model(folder)[0])
    assert np.array_equal(state.x.ravel(), data.val[:64]) and np.array_equal(state.y.ravel(), data.val[1:65])


# ---- the commands ----


def test_export_and_import_are_commands(folder, capsys):
    weights = load_model(folder)[1]
    assert main(["export", str(folder), "--to", "llmc", "--debug_state"]) == 0
    assert "gpt2_124M_debug_state.bin:" in capsys.readouterr().out
    assert main(["import", str(folder / "llmc" / "gpt2_124M.bin")]) == 0
    assert equal(load_model("out/llmc-gpt2_124M")[1], weights)
    for split in ("train", "val"):
        Path(f"x_{split}.bin").write_bytes(tokens_file([1, 2, 3]))
    assert main(["import", "x_val.bin", "--tokenizer", str(folder)]) == 0
    assert main(["export", "data/x", "--to", "llmc", "--out", "there"]) == 0
    assert Path("there/x_train.bin").read_bytes() == Path("x_train.bin").read_bytes()
    assert main(["export", str(folder), "--to", "llmc", "--dtype", "q8_0"]) == 2
    assert main(["export", str(folder), "--to", "llmc", "--weights", "last"]) == 2
    assert "are f32 or bf16" in capsys.readouterr().err


# ---- token files ----


def tokens_file(ids, magic=20240520, version=1, kind="H") -> bytes:
    return file_of([magic, version, len(ids)], struct.pack(f"<{len(ids)}{kind}", *ids))


@pytest.fixture
def bpe():
    return train_bpe([readable(3000)], 300)


def test_tokens_become_a_data_folder(bpe):
    rng = np.random.default_rng(1)
    train, more, val = (rng.integers(0, 300, n).tolist() for n in (70, 30, 40))
    train[0] = train[9] = val[0] = bpe.end_of_text
    Path("x_train_000001.bin").write_bytes(tokens_file(train))
    Path("x_train_000002.bin").write_bytes(tokens_file(more))
    Path("x_val.bin").write_bytes(tokens_file(val))
    Path("y_val.bin").write_bytes(tokens_file(val))
    write_tokenizer(Path("gpt2_tokenizer.bin"), bpe)
    assert "100 train tokens, 40 val tokens" in " ".join(read("x_val.bin", "data/x"))
    data = open_folder("data/x")
    assert data.train.tolist() == train + more and data.val.tolist() == val
    assert data.tokenizer.to_json() == bpe.to_json()
    ends = (train + more + val).count(bpe.end_of_text)
    assert data.meta.documents == ends > 2
    with pytest.raises(UserError, match="already contains data"):
        read("x_val.bin", "data/x")
    Path("x_train_000002.bin").write_bytes(tokens_file([1, 300]))
    with pytest.raises(UserError, match=r"x_train_000002.bin: token 300 is outside"):
        read("x_val.bin", "data/z")
    with pytest.raises(UserError, match=r"no y_train.bin"):
        read("y_val.bin", "data/z")
    assert not list(Path("data/z").glob("*.bin*"))


def test_data_become_tokens_and_data_again(bpe, monkeypatch):
    monkeypatch.setattr(sampan.exchange.llmc.tokens, "SHARD", 500)
    Path("words.txt").write_text(readable(4000))
    Path("bpe.json").write_text(bpe.to_json())
    data = prepare("words.txt", DataConfig(tokenizer="bpe.json"))
    paths = write(str(data.folder), "there")
    assert [p.name for p in paths] == [*(f"words_train_00000{i}.bin" for i in range(3)), "words_val.bin"]
    assert paths[0].read_bytes() == tokens_file(data.train[:500].tolist())
    assert paths[3].read_bytes() == tokens_file(data.val.tolist())
    read(paths[0], "data/again", tokenizer="bpe.json")
    again = open_folder("data/again")
    assert np.array_equal(again.train, data.train) and np.array_equal(again.val, data.val)


def test_large_vocabularies_have_llama3s_header(bpe):
    ids = [70000, 1, 2]
    for split in ("train", "val"):
        write_tokens(Path(f"l_{split}.bin"), np.array(ids, np.uint32), vocab_size=100_000)
    assert Path("l_val.bin").read_bytes() == tokens_file(ids, 20240801, 7, "I")
    assert read_tokens(Path("l_val.bin")).tolist() == ids
    with pytest.raises(UserError, match=r"give its tokenizer\.json"):
        read("l_val.bin", "data/l")


def test_a_text_is_cut_as_llmcs_script_cuts_it(bpe, monkeypatch):
    text = "One.\nTwo.\n\nThree.\n\n\n\nFour.\n"
    ids = encode_sections(text, bpe).tolist()
    end = [bpe.end_of_text]
    parts = ["One.\nTwo.\n\n", "Three.\n\n", "\n\n", "Four.\n"]
    assert ids == [i for part in parts for i in end + bpe.encode(part).tolist()]
    monkeypatch.setattr(sampan.exchange.llmc.tokens, "VAL_TOKENS", 10)
    monkeypatch.setattr(sampan.exchange.llmc.tokens, "fetch_gpt2_tokenizer", lambda: bpe)
    Path("play.txt").write_text(text)
    paths = write("play.txt", "there")
    assert [p.name for p in paths] == ["play_train.bin", "play_val.bin"]
    assert read_tokens(Path(paths[1])).tolist() == ids[:10] and read_tokens(Path(paths[0])).tolist() == ids[10:]


def test_tinyshakespeare_has_the_published_sections(real, bpe):
    text = (real / "tinyshakespeare.txt").read_text()
    ids = encode_sections(text, bpe)
    assert (ids == bpe.end_of_text).sum() == text.count("\n\n") + 1
    assert bpe.decode(ids[ids != bpe.end_of_text]) == text


# ---- tokenizers ----


@pytest.mark.parametrize("has_end", [True, False])
def test_a_tokenizer_of_characters_comes_back(has_end):
    made = characters("abc 船\n🛶é", has_end)
    write_tokenizer(Path("t.bin"), made)
    raw = Path("t.bin").read_bytes()
    header = struct.unpack("<4i", raw[:16])
    assert header == (20240328, 2, made.vocab_size, made.end_of_text if has_end else made.encode("\n")[0])
    assert raw[1024:1026] == b"\x01\n" and (b"\x03" + "船".encode()) in raw
    assert read_tokenizer_file(Path("t.bin")).to_json() == made.to_json()
    Path("t.bin").write_bytes(tokenizer_file([b"b", b"a"]))
    assert read_tokenizer_file(Path("t.bin")).encode("ab").tolist() == [1, 0]


@given(st.text(st.sampled_from("abAB .,'\n1é船\u0300"), min_size=1, max_size=300), st.integers(258, 330))
@settings(max_examples=25)
def test_the_merges_of_a_bpe_are_found_again(text, size):
    made = train_bpe([text * 3], size)
    write_tokenizer(Path("t.bin"), made)
    assert read_tokenizer_file(Path("t.bin")).to_json() == made.to_json()


def tokenizer_file(tokens: list[bytes], version=2, count=None, end=0) -> bytes:
    return file_of(
        [20240328, version, len(tokens) if count is None else count, end], *(bytes([len(t)]) + t for t in tokens)
    )


BYTES = [bytes([b]) for b in range(256)]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (tokenizer_file([*BYTES, b"abc"]), "not a merge"),
        (tokenizer_file([*BYTES, b"bc", b"ab", b"abc", b"cabc"]), "other ids|not a merge"),
        (tokenizer_file([b"ab", b"c"]), "neither bytes"),
        (tokenizer_file([END_OF_TEXT.encode(), b"a"]), "other ids"),
        (tokenizer_file([b"a", b"\xff"]), "cannot reconstruct"),
        (tokenizer_file([b"a", b"a"]), "different"),
        (tokenizer_file([b"a", b""]), "different|in 3 bytes"),
        (tokenizer_file([b"a", b"b"], count=3), "3 tokens in 4 bytes"),
        (tokenizer_file([b"a", b"bcd"], count=1), "different"),
        (tokenizer_file([b"a", b"b"], version=3), "version 3"),
        (tokenizer_file([b"a", b"b"], version=1), "different"),
        (tokenizer_file([b"a", b"b"], end=2), "different"),
        (tokenizer_file([b"a", b"b"])[:-1], "different|in 3 bytes"),
    ],
)
def test_other_tokenizer_files_are_refused(raw, said):
    Path("t.bin").write_bytes(raw)
    with pytest.raises(UserError, match=said):
        read_tokenizer_file(Path("t.bin"))


# ---- damaged files ----


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_refused_in_a_sentence(data):
    config = tiny_config("gpt2", vocab_size=V, n_layer=1, n_head=2, n_embd=4, block_size=5)
    weights = random_weights(config)
    x = np.zeros((1, 5), np.int32)
    state = State(x, x, np.zeros((1, 5, V), np.float32), 1.0, weights)
    whole = {
        "m.bin": model_file(config, weights),
        "s.bin": state_file(config, state),
        "x_train.bin": tokens_file([1, 2]),
    }
    name = data.draw(st.sampled_from(sorted(whole)))
    raw = bytearray(whole[name])
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = 4 * data.draw(st.integers(0, 7))
        extreme = st.sampled_from([0, -1, 1 << 28, 2**31 - 1, -(2**31)])
        raw[at : at + 4] = struct.pack("<i", data.draw(extreme | st.integers(-(2**31), 2**31 - 1)))
    Path(name).write_bytes(raw)
    readers = {
        "m.bin": lambda p: read_weights(Path(p)),
        "s.bin": lambda p: read_state(Path(p), config),
        "x_train.bin": lambda p: read_tokens(Path(p)),
    }
    if raw != whole[name]:
        header = struct.unpack("<8i", raw[:32].ljust(32, b"\0"))
        try:
            readers[name](name)
        except UserError as error:
            assert str(error).startswith(name) and "\n" not in str(error)
        else:  # numbers that no size depends on
            same = struct.unpack("<8i", whole[name][:32])
            assert {i for i in range(8) if header[i] != same[i]} <= {"m.bin": {5}, "s.bin": {4, 5, 6, 7}}.get(
                name, {3, 4, 5, 6, 7}
            )


def test_files_of_other_kinds_are_named(model, folder):
    write(str(folder), "there", debug_state=True)
    for name, said in (("gpt2_124M_debug_state.bin", "a debug state"), ("gpt2_tokenizer.bin", "a tokenizer")):
        with pytest.raises(UserError, match=f"contains {said}; only weights and tokens"):
            read(f"there/{name}", "out/x")
    with pytest.raises(UserError, match="contains weights, not tokens"):
        read_tokens(Path("there/gpt2_124M.bin"))
    Path("other.bin").write_bytes(bytes(5000))
    assert not claims(Path("other.bin")) and not claims(Path("none")) and not claims(Path("there"))
    for path, said in (("other.bin", "not a file of llm.c"), ("none", "cannot be read"), ("there", "cannot be read")):
        with pytest.raises(UserError, match=said):
            read(path, "out/x")
    raw = bytearray(model_file(model, random_weights(model)))
    raw[1024 + 4 * V * 32] = 1
    Path("padded.bin").write_bytes(raw)
    with pytest.raises(UserError, match="beyond its vocabulary of 65 are not zero"):
        read("padded.bin", "out/x")
    raw[4] = 4
    Path("padded.bin").write_bytes(raw)
    with pytest.raises(UserError, match="version 4"):
        read("padded.bin", "out/x")
    assert not Path("out").exists()


# ---- the stand-alone program ----


def program(*arguments) -> subprocess.CompletedProcess:
    if not PROGRAM.exists():
        pytest.skip("sampan-c was not built (make -C csrc)")
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def run_test(source, raw: bytes) -> subprocess.CompletedProcess:
    Path("state.bin").write_bytes(raw)
    return program("test", "--init_from", source, "--debug_state", "state.bin", "--threads", 1)


@pytest.mark.parametrize("version", [3, 5])
def test_the_program_agrees_with_torch(model, version):
    weights = random_weights(model, coarse=version == 5)
    Path("model.bin").write_bytes(model_file(model, weights, version))
    raw = state_file(model, state_of(model, weights))
    done = run_test("model.bin", raw)
    assert done.returncode == 0 and done.stdout.endswith("everything agrees\n"), done.stdout + done.stderr
    errors = [float(line.split()[1]) for line in done.stdout.splitlines()[1:-1]]
    assert len(errors) == 2 + len(parameters(model)) and 0 < max(errors) < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_the_programs_test_passes_for_models_of_any_shape(seed):
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    shape = dict(n_layer=int(rng.integers(1, 4)), n_head=heads, n_embd=heads * int(rng.integers(1, 12)))
    config = tiny_config("gpt2", vocab_size=V, block_size=int(rng.integers(1, 20)), **shape)
    weights = initialize(config, seed)
    save_model("model", config, weights, None)
    B, T = int(rng.integers(1, 5)), int(rng.integers(1, config.block_size + 1))
    done = run_test("model", state_file(config, state_of(config, weights, B, T)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_wrong_value_fails_the_programs_test(model):
    weights = random_weights(model)
    Path("model.bin").write_bytes(model_file(model, weights))
    state = state_of(model, weights)
    raw = state_file(model, state)
    rng = np.random.default_rng(2)

    def spoiled(name, at, size) -> None:
        """One float of this tensor is off by a hundredth of its row's usual size."""
        copy = bytearray(raw)
        place = at + 4 * int(rng.integers(size))
        value = np.frombuffer(raw, "<f4", 1, place)[0]
        row = np.frombuffer(raw, "<f4", size, at)
        scale = max(abs(float(value)), float(np.sqrt(np.mean(row.astype(np.float64) ** 2))))
        copy[place : place + 4] = struct.pack("<f", float(value) + 0.01 * scale)
        done = run_test("model.bin", bytes(copy))
        wrong = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("WRONG")]
        assert done.returncode == 1 and wrong == [name], (name, done.stdout)

    at = 1024 + 2 * state.x.size * 4
    spoiled("logits", at, V)
    at += state.logits.size * 4
    spoiled("loss", at, 1)
    at += 4
    for name, shape in layout(model.n_layer, model.n_embd, model.block_size, V):
        row = shape[-1] if len(shape) == 2 and name != "wpe.weight" else int(np.prod(shape))
        spoiled(name, at, row)
        at += 4 * int(np.prod(shape)) + 4 * (VP - V) * model.n_embd * (name == "wte.weight")
    assert at == len(raw)


def test_not_a_number_fails_the_programs_test(model):
    weights = random_weights(model)
    Path("model.bin").write_bytes(model_file(model, weights))
    raw = state_file(model, state_of(model, weights))
    assert run_test("model.bin", raw[:-4] + struct.pack("<f", np.nan)).returncode == 1


def llmc_order(batches: int, epochs: int) -> list[int]:
    """Fisher and Yates from the end, by the numbers of a Mersenne Twister whose seed is 42."""
    twister = np.random.RandomState(42)
    order = []
    for _ in range(epochs):
        epoch = list(range(batches))
        for i in reversed(range(1, batches)):
            j = int(twister.randint(0, 2**32, dtype=np.uint32)) % (i + 1)
            epoch[i], epoch[j] = epoch[j], epoch[i]
        order += epoch
    return order


@pytest.mark.parametrize("order", ["llmc", "file"])
def test_the_program_trains_as_llmc(folder, order):
    if not PROGRAM.exists():
        pytest.skip("sampan-c was not built (make -C csrc)")
    model, weights = load_model(folder)
    B, T, steps = 2, 8, 25
    train, val = (np.random.default_rng(n).integers(0, V, n) for n in (16 * 11 + 5, 200))
    Path("train.bin").write_bytes(tokens_file(train.tolist()))
    Path("val.bin").write_bytes(tokens_file(val.tolist()))
    write(str(folder), "there")

    def batch(ids, i):
        piece = ids[i * B * T : (i + 1) * B * T + 1].astype(np.int32)
        return piece[:-1].reshape(B, T), piece[1:].reshape(B, T)

    recipe = TrainConfig(beta1=0.9, beta2=0.999, weight_decay=0.0, grad_clip=0.0, dtype="float32", threads=1)
    engine = open_engine(model, recipe, recipe)
    engine.load(weights)
    expected = []
    drawn = draw_as_llmc(load_tokenizer(folder).end_of_text)
    for step, i in enumerate((llmc_order(11, 3) if order == "llmc" else [*range(11)] * 3)[:steps]):
        if step % 10 == 0:
            expected.append(f"val loss {np.mean([engine.loss(*batch(val, k)) for k in range(5)]):f}")
        if step == 20:
            expected += ["generating:", "---", load_tokenizer(folder).decode(drawn(engine)), "---"]
        engine.accumulate(*batch(train, i))
        expected.append(f"step {step}: train loss {engine.update(1e-4).loss:f}")
    flags = [f"--{k}={v}" for k, v in dict(batch_size=B, block_size=T, max_iters=steps, order=order, threads=1).items()]
    files = ["--init_from", "there/gpt2_124M.bin", "--input_bin", "train.bin", "--input_val_bin", "val.bin"]
    done = program("train", "--recipe", "llmc", "--out_dir", "new", *files, *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = dict(line.split(": ") for line in lines[1:11])
    assert lines[0] == "[GPT-2]" and list(header) == [
        *("max_seq_len", "vocab_size", "padded_vocab_size", "num_layers", "num_heads", "channels", "num_parameters"),
        *("train dataset num_batches", "val dataset num_batches", "num_activations"),
    ]
    sizes = count_parameters(model) + (VP - V) * model.n_embd, 11, 12, count_activations(model, B, T)
    assert tuple(map(int, list(header.values())[6:])) == sizes
    rest = [re.sub(r" \(took [\d.]+ ms\)$", "", line) for line in lines[11:]]
    assert same_losses(rest, expected), (rest, expected)
    assert f"step {steps}: val loss" in done.stderr
    assert load_tokenizer("new").to_json() == load_tokenizer(folder).to_json()
    assert json.loads(Path("new/config.json").read_text())["eos_token_id"] == V - 1
    found, values = load_model("new")
    assert found == model
    assert all(np.allclose(values[n], w, rtol=0, atol=1e-6) for n, w in engine.params().items())


def same_losses(found: list[str], expected: list[str]) -> bool:
    """Return whether two outputs are the same, but for the last digit of losses."""
    if [re.sub(r"[\d.]+$", "", line) for line in found] != [re.sub(r"[\d.]+$", "", line) for line in expected]:
        return False
    pairs = [(a.rsplit(" ", 1)[1], b.rsplit(" ", 1)[1]) for a, b in zip(found, expected, strict=True) if "loss" in a]
    return len(pairs) > 9 and all(abs(float(a) - float(b)) < 2e-5 for a, b in pairs)


def count_activations(model, B: int, T: int) -> int:
    """Return the floats of the 23 activations that llm.c's train_gpt2 lists."""
    L, C, NH = model.n_layer, model.n_embd, model.n_head
    block = [B * T * C, B * T, B * T, 3 * B * T * C, B * T * C, B * NH * T * T, B * NH * T * T, B * T * C, B * T * C]
    block += [B * T * C, B * T, B * T, 4 * B * T * C, 4 * B * T * C, B * T * C, B * T * C]
    return B * T * C + L * sum(block) + B * T * C + 2 * B * T + 2 * B * T * VP + B * T


def draw_as_llmc(end_of_text: int):
    """Return a function that draws 63 tokens from an engine, from llm.c's xorshift*: it goes on from call to call."""
    state, mask = 1337, 2**64 - 1

    def coin() -> float:
        nonlocal state
        state ^= state >> 12
        state = state ^ (state << 25) & mask
        state ^= state >> 27
        return (((state * 0x2545F4914F6CDD1D & mask) >> 32) >> 8) / 2**24

    def draw(engine) -> list[int]:
        session, tokens = engine.session(1), [end_of_text]
        for _ in range(min(63, engine.config.block_size)):
            logits = session.feed(np.array([tokens[-1:]], np.int32))[0].astype(np.float64)
            p = np.exp(logits - logits.max())
            tokens.append(int(np.searchsorted(np.cumsum(p / p.sum()), coin(), side="right")))
        return tokens[1:]

    return draw


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_the_program_carries_the_tokenizer_over(folder, kind):
    text = readable(3000) + 'don\'t 12 «¿ñ» \\ "x"\n\n\t'
    tokenizer = characters(text) if kind == "characters" else train_bpe([text], 600)
    model = tiny_config("gpt2", vocab_size=tokenizer.vocab_size)
    save_model("model", model, random_weights(model), tokenizer)
    write("model", "there")
    Path("train.bin").write_bytes(tokens_file([1, 2, 3, 4] * 20))
    few = ("--max_iters=1", "--batch_size=1", "--block_size=4", "--input_bin=train.bin", "--input_val_bin=train.bin")
    done = program("train", "--recipe=llmc", "--init_from=there/gpt2_124M.bin", "--out_dir=new", *few)
    assert done.returncode == 0, done.stderr
    found = load_tokenizer("new")
    assert found.encode(text).tolist() == tokenizer.encode(text).tolist() and found.decode([5]) == tokenizer.decode([5])
    assert found.end_of_text == tokenizer.end_of_text
    Path("there/gpt2_tokenizer.bin").unlink()
    done = program("train", "--recipe=llmc", "--init_from=there/gpt2_124M.bin", "--out_dir=none", *few)
    assert done.returncode == 0 and "none gets no tokenizer" in done.stderr and not Path("none/tokenizer.json").exists()
    Path("there/gpt2_tokenizer.bin").write_bytes(file_of([20240328, 2, 2, 0], b"\x02ab\x01a"))
    done = program("train", "--recipe=llmc", "--init_from=there/gpt2_124M.bin", "--out_dir=bad", *few)
    assert done.returncode == 2 and "neither bytes" in done.stderr and not Path("bad/tokenizer.json").exists()


def test_the_program_takes_a_data_folder_and_its_tokenizer(folder):
    text = "".join(map(chr, range(40, 40 + V - 1))) * 9
    Path("text.txt").write_text(text)
    data = prepare("text.txt", DataConfig(tokenizer=str(folder)))
    write(str(folder), "there")
    few = ("--max_iters", 1, "--batch_size", 1, "--block_size", 8, "--gradient_accumulation_steps", 1)
    done = program("train", "--init_from", "there/gpt2_124M.bin", "--out_dir", "new", "--data_dir", data.folder, *few)
    assert done.returncode == 0, done.stderr
    assert load_tokenizer("new").to_json() == load_tokenizer(folder).to_json()
    assert json.loads(Path("new/config.json").read_text())["model_type"] == "gpt2"


def test_the_program_refuses_in_one_sentence(folder):
    write(str(folder), "there", debug_state=True)
    Path("train.bin").write_bytes(tokens_file([1, 2, 3]))

    def refused(*arguments) -> str:
        done = program(*arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sampan-c: "), done.stderr
        return done.stderr

    weights, state = "there/gpt2_124M.bin", "there/gpt2_124M_debug_state.bin"
    both = ("--input_bin", "train.bin", "--input_val_bin", "train.bin")
    assert "give --data_dir, or --input_bin" in refused("train", "--init_from", weights, "--out_dir", "new")
    assert "a block needs" in refused("train", "--init_from", weights, "--out_dir", "new", *both)
    assert "order=any" in refused("train", "--init_from", weights, *both, "--order", "any")
    assert "recipe=any" in refused("train", "--init_from", weights, *both, "--recipe", "any")
    assert "not a token file" in refused(
        "train", "--init_from", weights, "--input_bin", state, "--input_val_bin", state
    )
    assert "not a debug state" in refused("test", "--init_from", weights, "--debug_state", weights)
    assert "none.bin" in refused("test", "--init_from", weights, "--debug_state", "none.bin")
    Path("short.bin").write_bytes(Path(state).read_bytes()[:-4])
    assert "length" in refused("test", "--init_from", weights, "--debug_state", "short.bin")
    Path("short.bin").write_bytes(Path(weights).read_bytes()[:-4])
    assert "length" in refused("test", "--init_from", "short.bin", "--debug_state", state)
    assert not Path("new/model.safetensors").exists()
