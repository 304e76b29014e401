"""Between our parameters and Hugging Face's names, layouts and config.json.

    model = from_hf_config(json.load(file), "config.json"); weights = from_hf_weights(model, tensors, "folder")

No file is read or written here (folder.py).
"""

import reprlib
from collections.abc import Mapping

import numpy as np

from sampan.config import FAMILIES, ModelConfig, build
from sampan.errors import UserError
from sampan.model.parameters import Param, parameters
from sampan.model.shape import resolve

ROTARY_ANGLES = 1 << 25  # block_size x head_dim: a table of that size is made whatever the weights' size is

# ---- config.json ----

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def to_hf_config(config: ModelConfig, end_of_text: int | None) -> dict:
    """The config.json that transformers reads as the same model."""
    c = config
    common = {
        "architectures": [ARCHITECTURES[c.family]],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "float32",
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    if c.family == "gpt2":
        return common | {
            "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "n_inner": c.n_inner,
            "n_positions": c.block_size, "n_ctx": c.block_size, "activation_function": "gelu_new",
            "layer_norm_epsilon": c.norm_eps, "embd_pdrop": c.dropout, "attn_pdrop": c.dropout,
            "resid_pdrop": c.dropout, "bias": c.bias,
        }  # fmt: skip
    return common | {
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim, "hidden_size": c.n_embd, "intermediate_size": c.n_inner,
        "max_position_embeddings": c.block_size, "hidden_act": "silu", "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta, "rope_scaling": c.rope_scaling, "attention_bias": c.bias,
        "attention_dropout": c.dropout,
    } | ({"mlp_bias": c.bias} if c.family == "llama" else {"use_sliding_window": False})  # fmt: skip


def from_hf_config(hf: dict, where: str) -> ModelConfig:
    """The model that a config.json describes. Raises UserError for one that is not exactly of our families."""
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{where}: model_type {reprlib.repr(family)} is none of {', '.join(FAMILIES)}")

    def refuse_unless(key, *allowed):
        if hf.get(key, allowed[0]) not in allowed:
            only = " or ".join(map(repr, allowed))
            raise UserError(f"{where}: {key} {reprlib.repr(hf[key])} is not supported (only {only})")

    def pick(names: dict) -> dict:
        return {ours: hf[theirs] for ours, theirs in names.items() if hf.get(theirs) is not None}

    if family == "gpt2":
        refuse_unless("activation_function", "gelu_new", "gelu_pytorch_tanh")
        refuse_unless("scale_attn_weights", True)
        refuse_unless("scale_attn_by_inverse_layer_idx", False)
        refuse_unless("add_cross_attention", False)
        settings = {"vocab_size": 50257, "norm_eps": 1e-5, "bias": True, "block_size": 1024}
        settings |= pick({"vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd",
                          "n_inner": "n_inner", "block_size": "n_positions", "norm_eps": "layer_norm_epsilon",
                          "bias": "bias", "tie_word_embeddings": "tie_word_embeddings"})  # fmt: skip
    else:
        refuse_unless("hidden_act", "silu")
        refuse_unless("use_sliding_window", False)
        refuse_unless("pretraining_tp", 1)
        if family == "llama" and hf.get("mlp_bias", False) != hf.get("attention_bias", False):
            raise UserError(f"{where}: attention_bias and mlp_bias differ, which is not supported")
        settings = {"norm_eps": 1e-6, "tie_word_embeddings": False, "block_size": 2048}
        settings |= pick({"vocab_size": "vocab_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
                          "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "n_embd": "hidden_size",
                          "n_inner": "intermediate_size", "block_size": "max_position_embeddings",
                          "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta", "rope_scaling": "rope_scaling",
                          "bias": "attention_bias", "tie_word_embeddings": "tie_word_embeddings"})  # fmt: skip
        if family == "qwen3" and "head_dim" not in settings:
            settings["head_dim"] = 128  # its default in transformers
        rope = hf.get("rope_parameters")  # transformers 5 keeps both in one table
        if isinstance(rope, dict):
            settings |= {"rope_theta": rope.get("rope_theta", 10000.0)}
            if rope.get("rope_type", "default") != "default":
                settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    try:
        config = resolve(build(ModelConfig, {"family": family} | settings))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if family != "gpt2" and config.block_size * config.head_dim > ROTARY_ANGLES:
        raise UserError(
            f"{where}: max_position_embeddings {config.block_size} with heads {config.head_dim} wide asks for too large "
            f"a table of positions; set it to {ROTARY_ANGLES // config.head_dim} or less"
        )
    return config


# ---- weights ----


def to_hf_weights(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names and in its layout."""
    tensors = {}
    for p in parameters(config):
        pieces = np.split(weights[p.name], np.cumsum([rows for _, rows in p.stored])[:-1])
        for (name, _), piece in zip(p.stored, pieces, strict=True):
            tensors[name] = np.ascontiguousarray(piece.T if p.transposed and piece.ndim == 2 else piece)
    if config.family == "gpt2" and not config.bias:  # Hugging Face's GPT-2 always has biases: zeros are none
        for p in parameters(config):
            is_vector_with_bias = p.name.endswith(".weight") and not p.name.startswith(("wte", "wpe", "lm_head"))
            if is_vector_with_bias:
                tensors[p.stored[0][0].removesuffix("weight") + "bias"] = np.zeros(p.shape[0], np.float32)
    return tensors


def from_hf_weights(config: ModelConfig, tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Our parameters out of Hugging Face's tensors, float32.

    Raises UserError for a tensor that is missing, has another shape, or has no place in the model.
    """
    left = set(tensors)
    weights = {}
    for p in parameters(config):
        pieces = []
        for name, rows in p.stored:
            # GPT-2's own folders lack the prefix
            found = next((n for n in (name, name.removeprefix("transformer.")) if n in tensors), None)
            if found is None:
                raise UserError(f"{where}: tensor {name} is missing")
            left.discard(found)
            value = tensors[found].T if p.transposed and len(p.shape) == 2 else tensors[found]
            shape = (rows, *p.shape[1:])
            if p.name == "wpe.weight" and value.ndim == 2 and value.shape[0] > rows:
                value = value[:rows]  # a cropped block_size
            if value.shape != shape:
                raise UserError(
                    f"{where}: tensor {found} has shape {tensors[found].shape}, expected {hf_shape(p, shape)}"
                )
            pieces.append(value)
        weights[p.name] = np.concatenate(pieces).astype(np.float32, copy=False)
    for name in sorted(left):
        is_buffer = name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))
        is_tied = name == "lm_head.weight" and config.tie_word_embeddings
        is_zero_bias = name.endswith(".bias") and not config.bias and not tensors[name].any()
        if not (is_buffer or is_tied or is_zero_bias):
            raise UserError(
                f"{where}: tensor {reprlib.repr(name)} has no place in a {config.family} model of this configuration"
            )
    return weights


def hf_shape(p: Param, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if p.transposed else shape
