"""Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values, always, and nowhere else."""

from dataclasses import replace

from sampan.model.families.llama import FAMILY as LLAMA, KEYS
from sampan.model.family import Fixed, Gguf, Key

FAMILY = replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    biases=("qkv_bias",),
    bias=(True,),
    keys=(*KEYS, Key("head_dim", "head_dim")),
    fixed=(Fixed("use_sliding_window", False, default=False, written=True, window="sliding_window"),),
    whole_heads=False,
    gguf=Gguf("qwen2", biases=("qkv_bias",)),
)
