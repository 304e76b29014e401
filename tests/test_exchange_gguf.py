"""GGUF files: what llama.cpp computes from them, and, where it is not installed, what the format says that they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import readable, tiny_config
from helpers import sampan

from sampan.checkpoint.folder import save_model
from sampan.cli.main import main
from sampan.config import ExportConfig
from sampan.errors import UserError
from sampan.exchange import gguf as ours
from sampan.exchange.convert import export_model
from sampan.model.parameters import initialize, parameters
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.characters import characters
from sampan.tokens.kinds import open_tokenizer
from sampan.tokens.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3["original_max_position_embeddings"] = 16
TEXT = readable(2000) + "it's 12345 héllo \\ \t 世界"


def tokenizer_of(kind: str) -> Tokenizer:
    if kind.startswith("char"):
        known = TEXT.replace("世", "") if kind == "char+bytes" else TEXT
        return characters(known, end_of_text=kind != "char", byte_tokens=kind == "char+bytes")
    made = train_bpe([TEXT], 330)
    if kind == "bpe":
        return made
    from tokenizers import Regex, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {name: cut for cut, name in ours.WORD_CUTS.items()}
    if kind == "smollm":
        first, byte_level = (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        )
    elif kind == "prefix space":
        made.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return open_tokenizer(made.inner)
    elif kind == "lower case":
        made.inner.normalizer = normalizers.Lowercase()
        return open_tokenizer(made.inner)
    else:
        first = pre_tokenizers.Split(Regex(cuts[kind][0][1]), "isolated")
    made.inner.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    return open_tokenizer(made.inner)


def model_folder(tmp_path, family="llama", kind="bpe", **settings) -> Path:
    """Random numbers in every parameter, norms and biases too."""
    tokenizer = tokenizer_of(kind)
    config = tiny_config(family, **dict(n_inner=64, vocab_size=tokenizer.vocab_size) | settings)
    draw = np.random.default_rng(1)
    weights = {p.name: draw.normal(p.mean, 0.2, p.shape).astype(np.float32) for p in parameters(config)}
    save_model(tmp_path / "model", config, weights, tokenizer)
    return tmp_path / "model"


CASES = [
    dict(family="gpt2"),
    dict(family="gpt2", bias=False, tie_word_embeddings=False, kind="char"),
    dict(family="gpt2", kind="char with an end"),
    dict(family="gpt2", kind="char+bytes"),
    dict(family="llama"),
    dict(family="llama", bias=True, tie_word_embeddings=True),
    dict(family="llama", rope_scaling=LLAMA3, head_dim=16, kind="llama-bpe"),
    dict(family="llama", rope_scaling=dict(rope_type="linear", factor=4.0), kind="smollm"),
    dict(family="qwen3", kind="qwen2"),
    dict(family="qwen3", head_dim=16, tie_word_embeddings=False, vocab_size=400),  # rows that no token has
    dict(family="qwen2", kind="qwen2"),
    dict(family="qwen2", tie_word_embeddings=True, rope_scaling=dict(rope_type="linear", factor=4.0)),
    dict(family="mistral", head_dim=16, tie_word_embeddings=True),
    dict(family="llama", dtype="f16"),
    dict(family="gpt2", dtype="bf16"),
    dict(family="qwen3", dtype="q8_0"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_llama_cpp_computes_the_same(case, tmp_path):
    """`export_model` compares tokens and logits and raises beyond rounding; here the line that it prints is read."""
    pytest.importorskip("llama_cpp")
    case = dict(case)
    dtype = case.pop("dtype", "f32")
    lines = export_model(str(model_folder(tmp_path, **case)), ExportConfig(to="gguf", dtype=dtype))
    error = float(lines[1].split("by ")[1].split()[0])
    assert error < {"f32": 1e-3 if case["family"] == "gpt2" else 1e-5, "f16": 1e-2, "bf16": 5e-2, "q8_0": 2e-1}[dtype]


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    """The check can fail: without llama's order of rows, the logits are others."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(ours, "interleave", lambda rows, head_dim: rows)
    folder = model_folder(tmp_path)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="other logits"):
        export_model(str(folder), ExportConfig(to="gguf"))
    assert sorted(folder.iterdir()) == before


def test_the_order_of_rows_is_that_of_neighbouring_pairs():
    """Rotating neighbours of the reordered rows is rotating halves of the original ones, reordered."""
    D, draw = 8, np.random.default_rng(0)
    q, angle = draw.normal(size=(2 * D, 1)), draw.normal(size=D // 2)
    cos, sin = np.cos(angle), np.sin(angle)

    def turn(a, b):
        return a * cos - b * sin, b * cos + a * sin

    heads = q.reshape(2, D)
    halves = np.concatenate(turn(heads[:, : D // 2], heads[:, D // 2 :]), axis=1)
    pairs = ours.interleave(q, D).reshape(2, D)
    turned = np.stack(turn(pairs[:, ::2], pairs[:, 1::2]), axis=2).reshape(2 * D, 1)
    assert np.allclose(turned, ours.interleave(halves.reshape(2 * D, 1), D))
    assert not np.allclose(turned, halves.reshape(2 * D, 1))


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_the_file_says_what_it_is(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "find_library", lambda library: None)  # as where llama-cpp-python is not installed
    folder = model_folder(tmp_path, kind="char with an end")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    lines = export_model(str(folder), ExportConfig(to="gguf", dtype=dtype, out="here/x.gguf"))
    assert "not checked: pip install llama-cpp-python" in lines[1]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before  # an export changes nothing
    assert [path.name for path in Path("here").iterdir()] == ["x.gguf"]
    reader = gguf.GGUFReader("here/x.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = tiny_config("llama", n_inner=64, vocab_size=len(fields["tokenizer.ggml.tokens"]))
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == config.n_kv_head
    assert fields["llama.context_length"] == config.block_size
    assert fields["tokenizer.ggml.tokens"][:3] == ["\\t", "\\n", " "] and "世" in fields["tokenizer.ggml.tokens"]
    assert fields["tokenizer.ggml.token_type"][-1] == gguf.TokenType.CONTROL
    table = {t.name: t for t in reader.tensors}
    assert len(table) == 3 + 9 * config.n_layer
    kinds = {t.tensor_type.name for name, t in table.items() if name.endswith("norm.weight")}
    assert kinds == {"F32"} and table["blk.0.ffn_up.weight"].tensor_type.name == dtype.upper()


CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def chat_folder(tmp_path, beside: dict[str, dict], begins: bool = False) -> Path:
    """A model of ChatML with files beside tokenizer.json that say so; `begins`: a template puts <s> before each text."""
    from tokenizers.processors import TemplateProcessing

    made = train_bpe([TEXT], 330)
    made.inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>", "<pad>"])
    if begins:
        made.inner.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.inner.token_to_id("<s>"))]
        )
    config = tiny_config("llama", n_inner=64, vocab_size=made.inner.get_vocab_size())
    folder = tmp_path / "chat"
    save_model(folder, config, initialize(config, 1), open_tokenizer(made.inner))
    for name, value in beside.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_special_tokens_and_the_chat_template_are_in_the_file(tmp_path):
    said = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<s>", "chat_template": CHAT}
    folder = chat_folder(tmp_path, {"tokenizer_config.json": said}, begins=True)
    export_model(str(folder), ExportConfig(to="gguf", out="x.gguf"))
    fields = {name: field.contents() for name, field in gguf.GGUFReader("x.gguf").fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    for role in ("eos", "bos"):
        assert tokens[fields[f"tokenizer.ggml.{role}_token_id"]] == said[f"{role}_token"], role
    assert tokens[fields["tokenizer.ggml.padding_token_id"]] == "<pad>"
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.chat_template"] == CHAT
    plain = model_folder(tmp_path)
    export_model(str(plain), ExportConfig(to="gguf", out="y.gguf"))
    fields = {name: field.contents() for name, field in gguf.GGUFReader("y.gguf").fields.items()}
    assert fields["tokenizer.ggml.add_bos_token"] is False and "tokenizer.chat_template" not in fields


def test_fine_tuning_keeps_what_a_model_says_of_its_tokens(tmp_path):
    """The folder, read by transformers, and the GGUF of it have the model's own."""
    transformers = pytest.importorskip("transformers")
    said = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<s>", "chat_template": CHAT}
    sampled = {"eos_token_id": [330, 331], "temperature": 0.6, "repetition_penalty": 1.1}
    folder = chat_folder(tmp_path, {"tokenizer_config.json": said, "generation_config.json": sampled})
    before = transformers.AutoTokenizer.from_pretrained(folder)
    Path("t.txt").write_text(TEXT * 2)
    settings = dict(init_from=folder, max_iters=2, eval_interval=2, batch_size=2, block_size=8, engine="torch")
    sampan("train", "t.txt", "--out_dir", "run", *(f"--{name}={value}" for name, value in settings.items()))
    sampan("train", "--resume", "--out_dir", "run", "--max_iters=4")
    for run in ("run", "run/last"):
        after = transformers.AutoTokenizer.from_pretrained(run)
        for role in ("eos_token", "pad_token", "bos_token"):
            assert getattr(after, role) == getattr(before, role) == said[role]
        chat = [{"role": "user", "content": "we row"}]
        assert after.apply_chat_template(chat) == before.apply_chat_template(chat)
        config = transformers.AutoConfig.from_pretrained(run)
        ids = {role: before.convert_tokens_to_ids(said[f"{role}_token"]) for role in ("eos", "pad", "bos")}
        assert config.pad_token_id == ids["pad"] and config.bos_token_id == ids["bos"]
        assert set(np.atleast_1d(config.eos_token_id).tolist()) >= {ids["eos"]}
        generation = transformers.GenerationConfig.from_pretrained(run)
        assert generation.temperature == 0.6 and generation.repetition_penalty == 1.1
        assert ids["eos"] in generation.eos_token_id
    export_model("run", ExportConfig(to="gguf", out="x.gguf"))
    fields = {name: field.contents() for name, field in gguf.GGUFReader("x.gguf").fields.items()}
    assert fields["tokenizer.ggml.eos_token_id"] == ids["eos"] and fields["tokenizer.chat_template"] == CHAT


REFUSED = {
    "biases in qwen3": (dict(family="qwen3", bias=True), {}, "attn_proj_bias"),
    "llama3's positions in qwen3": (dict(family="qwen3", rope_scaling=LLAMA3), {}, "llama3"),
    "q8_0 of odd rows": (dict(family="gpt2", n_embd=40), dict(dtype="q8_0"), "wte.weight has 40"),
    "a prefix space": (dict(kind="prefix space"), {}, "before the first word"),
    "a normalizer": (dict(kind="lower case"), {}, "tokenizer"),
    "another format": ({}, dict(to="nothing"), "expected one of gguf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_refused(case, tmp_path, capsys):
    model, flags, expected = REFUSED[case]
    folder = model_folder(tmp_path, **model)
    before = sorted(folder.iterdir())
    assert main(["export", str(folder), *(f"--{k}={v}" for k, v in (dict(to="gguf") | flags).items())]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and sorted(folder.iterdir()) == before


def test_numbers_beyond_float16(tmp_path):
    folder = model_folder(tmp_path)
    from sampan.checkpoint.folder import load_model, load_tokenizer

    config, weights = load_model(folder)
    weights["wte.weight"][0, 0] = 1e6
    save_model(folder, config, weights, load_tokenizer(folder))
    with pytest.raises(UserError, match="take bf16"):
        export_model(str(folder), ExportConfig(to="gguf", dtype="f16"))


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match="this needs gguf: pip install gguf"):
        export_model(str(model_folder(tmp_path)), ExportConfig(to="gguf"))


def test_a_model_without_a_tokenizer(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        export_model(str(folder), ExportConfig(to="gguf"))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no such folder"):
        export_model(str(folder), ExportConfig(to="gguf"))
