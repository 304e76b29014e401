"""Qwen3 (Yang et al. 2025): Llama with RMS-normalised queries and keys; its biases are in the attention alone."""

from dataclasses import replace

from sampan.model.families.llama import FAMILY as LLAMA, KEYS
from sampan.model.family import Fixed, Gguf, Key

FAMILY = replace(
    LLAMA,
    architecture="Qwen3ForCausalLM",
    qk_norm=True,
    biases=("qkv_bias", "attn_proj_bias"),
    keys=(*KEYS, Key("head_dim", "head_dim", 128), Key("attention_bias", "bias", False)),
    fixed=(Fixed("use_sliding_window", False, default=False, written=True, window="sliding_window"),),
    tensors={
        **LLAMA.tensors,
        "attn.q_norm": ("model.layers.{}.self_attn.q_norm",),
        "attn.k_norm": ("model.layers.{}.self_attn.k_norm",),
    },
    whole_heads=False,
    gguf=Gguf("qwen3", biases=("qkv_bias",)),
)
