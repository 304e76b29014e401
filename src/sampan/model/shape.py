"""The resolved shape of a model: every size a plain integer.

    shape = resolve(ModelConfig(family="qwen3", n_layer=4, n_head=4, n_embd=128, vocab_size=65))

It lists no parameters (parameters.py) and computes nothing.
"""

import math
from dataclasses import replace

from sampan.config import ModelConfig
from sampan.errors import UserError


def resolve(config: ModelConfig) -> ModelConfig:
    """`config` with every derived size filled in. Raises UserError for sizes that do not fit together."""
    c = config
    if c.vocab_size is None:
        raise UserError("vocab_size is not known: it comes from a tokenizer, or is given")
    if c.n_embd % c.n_head and (c.head_dim is None or c.family == "llama"):  # transformers refuses such a llama
        raise UserError(f"n_embd={c.n_embd} is not a multiple of n_head={c.n_head}")
    head_dim = c.head_dim or c.n_embd // c.n_head
    n_kv_head = c.n_kv_head or c.n_head
    if c.n_head % n_kv_head:
        raise UserError(f"n_head={c.n_head} is not a multiple of n_kv_head={n_kv_head}")
    if c.family == "gpt2":
        if n_kv_head != c.n_head or head_dim * c.n_head != c.n_embd:
            raise UserError("gpt2 has as many key heads as heads, each n_embd / n_head wide; use llama or qwen3")
        n_inner = c.n_inner or 4 * c.n_embd
    else:
        if head_dim % 2:
            raise UserError(f"head_dim={head_dim}: rotary positions need an even width; change n_head or n_embd")
        # 8/3 gives SwiGLU's three matrices the size of GELU's two (Shazeer 2020); rounded up for the hardware
        n_inner = c.n_inner or 32 * math.ceil(8 * c.n_embd / 3 / 32)
    return replace(c, n_kv_head=n_kv_head, head_dim=head_dim, n_inner=n_inner)
