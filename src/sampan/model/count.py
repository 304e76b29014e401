"""Count parameters and floating-point operations of a model.

    count_parameters(model), flops_per_token(model)

It measures nothing: seconds are training/cost.py's.
"""

from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape

# ---- counting ----


def count_parameters(shape: ModelShape) -> int:
    """All of them; a tied head counts once."""
    return sum(p.size for p in parameters(shape))


def flops_per_token(shape: ModelShape) -> float:
    """Of forward and backward together: six a weight that is multiplied, and the attention's products.

    After appendix B of PaLM (Chowdhery et al. 2022), as nanoGPT counts: attention in full, not its causal half.
    """
    c = shape
    looked_up = {"wpe.weight"} | (set() if c.tie_word_embeddings else {"wte.weight"})
    multiplied = sum(p.size for p in parameters(c) if p.name not in looked_up)
    return 6.0 * multiplied + 12.0 * c.n_layer * c.n_head * c.head_dim * c.block_size
