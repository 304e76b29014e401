"""The table of parameters and what is counted from it."""

import numpy as np
import pytest

from sampan.checkpoint.huggingface import stored_tensors
from sampan.config import FAMILIES, ModelSettings
from sampan.errors import UserError
from sampan.model.count import count_parameters, flops_per_token
from sampan.model.family import find_family
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import resolve

GPT2 = resolve(ModelSettings(bias=True, vocab_size=50257))


def test_gpt2_has_the_published_number_of_parameters():
    assert count_parameters(GPT2) == 124_439_808  # of OpenAI's smallest, "124M"


def test_flops_are_those_of_nanogpts_formula():
    n = count_parameters(GPT2) - 1024 * 768
    assert flops_per_token(GPT2) == 6 * n + 12 * 12 * 12 * 64 * 1024


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
def test_names_are_unique_and_decay_is_for_matrices(family, bias):
    table = parameters(resolve(ModelSettings(family=family, n_layer=2, n_head=4, n_embd=32, vocab_size=11, bias=bias)))
    assert len({p.name for p in table}) == len(table)
    stored = [name for p in table for name, _ in stored_tensors(find_family(family), p)]
    assert len(set(stored)) == len(stored)
    for p in table:
        assert sum(rows for _, rows in stored_tensors(find_family(family), p)) == p.shape[0]
        assert p.decay == (not p.name.endswith("bias") and "ln_" not in p.name and "_norm" not in p.name)


def test_initial_weights_are_gpt2s_and_follow_from_the_seed():
    config = resolve(ModelSettings(n_layer=8, n_head=4, n_embd=64, vocab_size=99, block_size=32, bias=True))
    weights = initialize(config, seed=5)
    for name, w in weights.items():
        assert w.dtype == np.float32
        if name.endswith("bias"):
            assert not w.any()
        elif "ln_" in name:
            assert (w == 1).all()
        else:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02  # sqrt(2 x 8 layers) = 4
            assert w.std() == pytest.approx(expected, rel=0.05) and abs(w.mean()) < expected / 10
    again, other = initialize(config, seed=5), initialize(config, seed=6)
    assert all(np.array_equal(weights[n], again[n]) for n in weights)
    assert not np.array_equal(weights["wte.weight"], other["wte.weight"])
    assert not np.array_equal(weights["h.0.attn.c_attn.weight"], weights["h.1.attn.c_attn.weight"])


@pytest.mark.parametrize(
    "settings,word",
    [
        (dict(n_embd=65), "multiple of n_head"),
        (dict(n_embd=60, n_head=4, family="llama"), "even"),
        (dict(family="qwen3", n_head=4, n_kv_head=3), "n_kv_head"),
        (dict(n_kv_head=2), "gpt2"),
        (dict(vocab_size=None), "vocab_size"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings, word):
    with pytest.raises(UserError, match=word):
        resolve(ModelSettings(**dict(n_head=4, n_embd=64, vocab_size=9) | settings))
