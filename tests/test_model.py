"""The table of parameters and what is counted from it."""

import numpy as np
import pytest

from sampan.checkpoint.huggingface import from_hf_config, stored_tensors, to_hf_config
from sampan.config import ACTIVATIONS, FAMILIES, ModelSettings
from sampan.errors import UserError
from sampan.model.count import count_parameters, flops_per_token
from sampan.model.family import find_family
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import resolve, settings_of

GPT2 = resolve(ModelSettings(bias=True, vocab_size=50257))


def test_gpt2_has_the_published_number_of_parameters():
    assert count_parameters(GPT2) == 124_439_808  # of OpenAI's smallest, "124M"


def test_flops_are_those_of_nanogpts_formula():
    n = count_parameters(GPT2) - 1024 * 768
    assert flops_per_token(GPT2) == 6 * n + 12 * 12 * 12 * 64 * 1024


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bias", [False, True, None])
def test_names_are_unique_and_decay_is_for_matrices(family, bias):
    if bias is not None and bias not in find_family(family).bias:
        pytest.skip("a value that this family refuses")
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_follows_from_its_settings(family):
    shape = resolve(ModelSettings(family=family, n_layer=2, n_head=4, n_embd=32, vocab_size=11, activation="relu2"))
    assert resolve(settings_of(shape)) == shape
    assert None not in [value for name, value in vars(settings_of(shape)).items() if name != "rope_scaling"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_config_json_says_the_shape(family, activation):
    shape = resolve(ModelSettings(family=family, n_layer=2, n_head=4, n_embd=32, vocab_size=11, activation=activation))
    described = to_hf_config(shape, {})
    assert from_hf_config(described, "config.json") == shape
    assert described["activation_function" if family == "gpt2" else "hidden_act"] == activation


@pytest.mark.parametrize(
    "family,changed,words",
    [
        ("mistral", dict(sliding_window="wide"), "sliding_window 'wide' is not supported"),
        ("qwen2", dict(use_sliding_window=True, sliding_window=0), "use_sliding_window True is not supported"),
        ("qwen2", dict(quantization_config={"quant_method": "gptq"}), "quantized"),
        ("llama", dict(mlp_bias=True), "attention_bias and mlp_bias differ"),
        ("llama", dict(hidden_size=...), "hidden_size is missing"),
        ("gpt2", dict(activation_function="gelu"), "activation_function 'gelu' is not supported"),
        ("qwen3", dict(model_type="qwen9"), "model_type 'qwen9' is none of"),
    ],
)
def test_another_model_is_refused(family, changed, words):
    described = to_hf_config(resolve(ModelSettings(family=family, n_layer=1, n_head=2, n_embd=8, vocab_size=9)), {})
    described = {name: value for name, value in (described | changed).items() if value is not ...}
    with pytest.raises(UserError, match=words):
        from_hf_config(described, "config.json")


def test_biases_that_a_family_cannot_have_are_refused():
    for family, bias in (("qwen2", False), ("mistral", True)):
        with pytest.raises(UserError, match=f"bias={bias}"):
            resolve(ModelSettings(family=family, bias=bias, vocab_size=9))
