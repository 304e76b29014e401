"""ONNX graphs, run by onnxruntime beside our engine: whole, in parts with a cache, and with weights in a file of their own."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

from sampan.checkpoint.folder import save_model
from sampan.cli.main import main
from sampan.config import ExportConfig
from sampan.errors import UserError
from sampan.exchange import onnx as ours
from sampan.exchange.check import reference
from sampan.exchange.convert import export_model
from sampan.model.parameters import parameters
from sampan.model.rotary import rotary_tables

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3["original_max_position_embeddings"] = 16


def model_folder(folder: Path, family="llama", **settings):
    """Random numbers in every parameter, norms and biases too."""
    config = tiny_config(family, **settings)
    draw = np.random.default_rng(1)
    weights = {p.name: draw.normal(p.mean, 0.2, p.shape).astype(np.float32) for p in parameters(config)}
    save_model(folder, config, weights, None)
    return config, weights


def open_graph(path: str):
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def relative(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


CASES = [
    dict(family="gpt2"),
    dict(family="gpt2", bias=False, tie_word_embeddings=False),
    dict(family="llama", bias=True),
    dict(family="llama", n_kv_head=1, rope_scaling=LLAMA3, head_dim=6),
    dict(family="qwen3", n_kv_head=4, head_dim=10, rope_scaling=dict(rope_type="linear", factor=4.0)),
    dict(family="qwen3", bias=True, tie_word_embeddings=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_position_of_any_batch(case):
    config, weights = model_folder(Path("m"), **case)
    assert "checked with onnxruntime" in export_model("m", ExportConfig(to="onnx"))[1]
    session, engine = open_graph("m/m.onnx"), reference(config, weights)
    for B, T in ((1, 1), (3, 5), (2, config.block_size)):
        ids = np.random.default_rng(T).integers(0, config.vocab_size, (B, T))
        (logits,) = session.run(None, {"input_ids": ids})
        assert logits.shape == (B, T, config.vocab_size) and relative(logits, engine(ids)) < 1e-5


@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_nodes_are_named_by_layer(family, kv_cache):
    config, weights = model_folder(Path("m"), family=family)
    export_model("m", ExportConfig(to="onnx", kv_cache=kv_cache, out="m.onnx"))
    graph = onnx.load("m.onnx").graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    modules = {name.rpartition("/")[0] for name in names}
    layers = {name.rpartition(".")[0] for name in weights}
    around = {f"h.{i}.{part}" for i in range(config.n_layer) for part in ("attn", "mlp")} | {"positions", "lm_head"}
    assert layers <= modules <= layers | around
    for node in graph.node:  # a layer's own weights are what its nodes take
        for taken in set(node.input) & set(weights):
            module = node.name.rpartition("/")[0]
            assert module in (taken.rpartition(".")[0], "lm_head"), (node.name, taken)  # a head may be wte's


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoding_with_a_cache(case):
    """A prompt, then a chunk, then token by token: the logits of one pass."""
    config, weights = model_folder(Path("m"), **case)
    export_model("m", ExportConfig(to="onnx", kv_cache=True))
    session = open_graph("m/m-kv.onnx")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    names = [i.name for i in session.get_inputs()[1:]]
    assert [o.name for o in session.get_outputs()[1:]] == [n.replace("past_key_values", "present") for n in names]
    past = [np.empty((2, config.n_kv_head, 0, config.head_dim), np.float32)] * len(names)
    seen = []
    for part in np.split(ids, [4, 7, 8, 9, 10, 11], axis=1):
        logits, *past = session.run(None, {"input_ids": part, **dict(zip(names, past, strict=True))})
        seen.append(logits)
    assert past[0].shape == (2, config.n_kv_head, 12, config.head_dim)
    assert relative(np.concatenate(seen, 1), reference(config, weights)(ids)) < 1e-5


@pytest.mark.parametrize(("dtype", "allowed"), [("f16", 5e-3), ("bf16", 5e-2)])
def test_stored_in_half(dtype, allowed):
    config, weights = model_folder(Path("m"), "llama", n_embd=64)
    export_model("m", ExportConfig(to="onnx", out="full.onnx"))
    export_model("m", ExportConfig(to="onnx", dtype=dtype))
    assert Path(f"m/m-{dtype}.onnx").stat().st_size < 0.6 * Path("full.onnx").stat().st_size
    ids = np.arange(8)[None]
    (logits,) = open_graph(f"m/m-{dtype}.onnx").run(None, {"input_ids": ids})
    assert 0 < relative(logits, reference(config, weights)(ids)) < allowed


def test_weights_in_a_file_of_their_own(monkeypatch):
    monkeypatch.setattr(ours, "LARGEST", 1000)
    config, weights = model_folder(Path("m"), "qwen3")
    lines = export_model("m", ExportConfig(to="onnx", out="there/big.onnx"))
    assert sorted(p.name for p in Path("there").iterdir()) == ["big.onnx", "big.onnx.data"]
    assert any("big.onnx.data" in line for line in lines)
    assert Path("there/big.onnx").stat().st_size < Path("there/big.onnx.data").stat().st_size
    ids = np.arange(8)[None]
    (logits,) = open_graph("there/big.onnx").run(None, {"input_ids": ids})
    assert relative(logits, reference(config, weights)(ids)) < 1e-5
    onnx.checker.check_model("there/big.onnx", full_check=True)


def test_a_wrong_graph_is_not_written(monkeypatch):
    """The check can fail: with the positions of another model, the logits are others."""
    model_folder(Path("m"))
    before = sorted(Path("m").iterdir())
    monkeypatch.setattr(ours, "rotary_tables", lambda config: rotary_tables(config)[::-1])
    with pytest.raises(UserError, match="other logits"):
        export_model("m", ExportConfig(to="onnx"))
    assert sorted(Path("m").iterdir()) == before


def test_what_is_refused_or_not_checked(monkeypatch, capsys):
    model_folder(Path("m"))
    assert main(["export", "m", "--to=onnx", "--dtype=q8_0"]) == 2
    assert "f32, f16 or bf16" in capsys.readouterr().err
    assert main(["export", "m"]) == 2 and main(["export", "--to=onnx"]) == 2
    monkeypatch.setattr(ours, "find_library", lambda library: None)
    capsys.readouterr()
    assert main(["export", "m", "--to=onnx"]) == 0
    said = capsys.readouterr().out
    assert "not checked: pip install onnxruntime" in said and all(len(line) <= 80 for line in said.splitlines())
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime"):
        export_model("m", ExportConfig(to="onnx"))
