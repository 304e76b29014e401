"""model/forward.py: each intermediate against Hugging Face transformers, and what must hold between them.

test_engine.py compares both engines with its logits: it is the third reference of the parity ladder.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from helpers import TOLERANCE, random_config, random_weights, relative_error

from sampan.checkpoint.folder import save_model
from sampan.model.forward import ACTIVATIONS, forward


def make(seed: int, **changes):
    shape = replace(random_config(seed), **changes)
    ids = np.random.default_rng(seed).integers(0, shape.vocab_size, (2, shape.block_size))
    return shape, random_weights(shape, seed), ids


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 4, 5))])
def test_residual_stream_and_attention_equal_those_of_transformers(seed, tmp_path):
    shape, weights, ids = make(seed)
    save_model(tmp_path, shape, weights, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids), output_hidden_states=True, output_attentions=True)
    kept = forward(shape, weights, ids, np.float64)
    ours = [kept["x"], *(kept[f"h.{i}.x_out"] for i in range(shape.n_layer - 1)), kept["ln_f"]]
    assert len(theirs.hidden_states) == len(ours) and len(theirs.attentions) == shape.n_layer
    for array, reference in zip(ours, theirs.hidden_states, strict=True):
        assert relative_error(array, reference.numpy()) < TOLERANCE
    for i, reference in enumerate(theirs.attentions):
        assert relative_error(kept[f"h.{i}.att"], reference.numpy()) < TOLERANCE
    assert relative_error(kept["logits"], theirs.logits.numpy()) < TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_those_of_the_docstring(seed):
    shape, weights, ids = make(seed)
    T, C, H, KV, D, F = ids.shape[1], shape.n_embd, shape.n_head, shape.n_kv_head, shape.head_dim, shape.n_inner
    expected = {"x": (T, C), "ln_f": (T, C), "logits": (T, shape.vocab_size)}
    for i in range(shape.n_layer):
        block = dict(ln_1=(T, C), q=(H, T, D), k=(KV, T, D), v=(KV, T, D), att=(H, T, T), y=(T, H * D), x_mid=(T, C))
        block |= dict(ln_2=(T, C), fc=(T, 2 * F if shape.gated else F), act=(T, F), x_out=(T, C))
        expected |= {f"h.{i}.{name}": size for name, size in block.items()}
    one, batch = forward(shape, weights, ids[1]), forward(shape, weights, ids)
    assert {name: array.shape for name, array in one.items()} == expected
    assert all(array.dtype == np.float32 for array in one.values())
    for name, array in one.items():
        assert batch[name].shape == (2, *array.shape) and relative_error(batch[name][1], array) < TOLERANCE, name


@pytest.mark.parametrize("seed", range(3))
def test_attention_looks_back_and_adds_up_to_one(seed):
    shape, weights, ids = make(seed)
    kept = forward(shape, weights, ids[0], np.float64)
    for i in range(shape.n_layer):
        att = kept[f"h.{i}.att"]
        past = np.tril(np.ones(att.shape[-2:], bool))
        assert np.allclose(att.sum(-1), 1, rtol=1e-12)
        assert (att[:, past] > 0).all() and not att[:, ~past].any()
    ids[0, -1] = (ids[0, -1] + 1) % shape.vocab_size  # a later token changes nothing before it
    changed = forward(shape, weights, ids[0], np.float64)["logits"]
    assert np.array_equal(changed[:-1], kept["logits"][:-1]) and not np.allclose(changed[-1], kept["logits"][-1])


def test_activations_equal_torchs():
    x = np.linspace(-200, 200, 4001)
    theirs = dict(
        gelu_new=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        silu=torch.nn.functional.silu,
        relu2=lambda x: torch.relu(x).square(),
    )
    assert theirs.keys() == ACTIVATIONS.keys()
    for name, function in ACTIVATIONS.items():
        with np.errstate(all="raise"):
            assert np.allclose(function(x), theirs[name](torch.from_numpy(x)).numpy(), rtol=1e-9, atol=1e-12), name
