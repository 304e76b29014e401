"""An edited engine/torch/model.py: the model's folder says so, and whatever cannot run it refuses the folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import readable, tiny_config
from helpers import refused, sampan

from sampan.api import GPT
from sampan.config import ACTIVATIONS, FAMILIES
from sampan.engine.torch import model as torch_model
from sampan.engine.torch.edited import is_edited
from sampan.model.rotary import rotary_tables

SETTINGS = dict(engine="torch", n_layer=1, n_head=2, n_embd=8, block_size=8, batch_size=2, max_iters=3, eval_interval=3)
TINY = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


def edit(monkeypatch, activation: str) -> None:
    monkeypatch.setitem(torch_model.ACTIVATIONS, activation, torch.nn.functional.elu)


def double_attention(self, x, rotary, cache):
    return x + 2 * self.attn(self.ln_1(x), rotary, cache) + self.mlp(self.ln_2(x))


EDITS = {
    "another activation": lambda m: edit(m, "gelu_new"),
    "the exact form of GELU": lambda m: m.setitem(torch_model.ACTIVATIONS, "gelu_new", torch.nn.functional.gelu),
    "another block": lambda m: m.setattr(torch_model.Block, "forward", double_attention),
    "other positions": lambda m: m.setattr(torch_model, "rotary_tables", lambda c: [t * 0 for t in rotary_tables(c)]),
    "another norm": lambda m: m.setattr(torch_model, "norm", lambda c, size: torch.nn.Identity()),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_file_as_it_is_is_not_edited(family, activation):
    shape = replace(tiny_config(family, n_kv_head=None if family == "gpt2" else 2), activation=activation)
    assert not is_edited(shape) and not is_edited(replace(shape, n_embd=96, n_head=6, head_dim=16, n_layer=40))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(name, monkeypatch):
    EDITS[name](monkeypatch)
    assert is_edited(replace(tiny_config("llama" if name == "other positions" else "gpt2"), activation="gelu_new"))


def test_a_run_with_an_edited_model_says_so_and_is_refused_elsewhere(monkeypatch):
    Path("t.txt").write_text(readable(3000))
    with monkeypatch.context() as edits:
        for activation in ACTIVATIONS:
            edit(edits, activation)
        assert "model.py has been edited" in sampan("train", "t.txt", *TINY).stderr
        sampan("train", "--resume", "--out_dir", "out/t", "--max_iters", "5", "--eval_interval", "1")
        for folder in ("out/t", "out/t/last"):
            said = json.loads(Path(folder, "config.json").read_text())
            assert said["hidden_act"] == "as in an edited engine/torch/model.py"
        text = sampan("sample", "out/t", "--max_new_tokens", "5").stdout  # by the torch engine, though nobody asked
        gpt = GPT.load("out/t")
        assert text and gpt.model.edited
        gpt.save("saved")
        before = GPT.load("saved").logits(np.arange(4))
        assert np.array_equal(before, gpt.logits(np.arange(4)))
        assert "--engine torch" in refused("sample", "out/t", "--engine", "c")
    assert "edit it again" in refused("sample", "out/t")
    for to in ("gguf", "onnx", "llmc"):
        assert "edited engine/torch/model.py" in refused("export", "out/t", "--to", to)
    with pytest.raises(KeyError, match=r"edited engine/torch/model\.py"):
        transformers.AutoModelForCausalLM.from_pretrained("out/t")


def test_a_run_goes_on_with_the_model_that_it_began_with(monkeypatch):
    Path("t.txt").write_text(readable(3000))
    sampan("train", "t.txt", *TINY)
    for activation in ACTIVATIONS:
        edit(monkeypatch, activation)
    done = sampan("train", "--resume", "--out_dir", "out/t", "--max_iters", "5", status=2)
    assert "edited after the run began" in done.stderr
