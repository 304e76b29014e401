"""Mistral (Jiang et al. 2023), Llama without biases; up to the length of its sliding window, which version 0.2 dropped."""

from dataclasses import replace

from sampan.model.families.llama import FAMILY as LLAMA, KEYS
from sampan.model.family import Fixed, Key

FAMILY = replace(
    LLAMA,
    architecture="MistralForCausalLM",
    biases=(),
    bias=(False,),
    keys=(*(replace(key, default=8) if key.ours == "n_kv_head" else key for key in KEYS), Key("head_dim", "head_dim")),
    fixed=(Fixed("sliding_window", None, default=4096, written=True, window="sliding_window"),),
    whole_heads=False,
)
