"""The table of a model's parameters: names, shapes and initial values, which follow from the parts of its shape.

    shape = resolve(ModelSettings(family="qwen3", n_layer=4, n_head=4, n_embd=128, vocab_size=65))
    for p in parameters(shape): print(p.name, p.shape, p.decay)
    weights = initialize(shape, seed=1337)        # {name: float32 array}, the same for every engine

Nothing here computes a forward pass (engine/torch/model.py does) or knows what a file calls a parameter
(checkpoint/huggingface.py).
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from sampan.config import OPTIMIZERS
from sampan.model.shape import ModelShape


@dataclass(frozen=True)
class Param:
    """One parameter: a row of the table that everything else follows."""

    name: str  # in memory, in both engines
    shape: tuple[int, ...]  # a matrix is (out, in), as in torch.nn.Linear
    mean: float  # initial values: mean + std * normal
    std: float
    rows: tuple[int, ...] = ()  # of the linear layers that lie in a block's matrix or bias, such as q, k and v

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def decay(self) -> bool:
        """Whether weight decay acts on it: on matrices and embeddings, not on biases and norms (nanoGPT's rule)."""
        return len(self.shape) >= 2

    @property
    def pieces(self) -> tuple[int, ...]:
        """The rows of each linear layer in a block's matrix, which Muon treats one by one; () for other parameters."""
        return self.rows if self.decay else ()

    def moments(self, optimizer: str) -> tuple[str, ...]:
        """Return what the optimizer keeps of it. Muon's momentum is a mean of gradients, as AdamW's first moment is."""
        is_rest = OPTIMIZERS[optimizer].matrices_only and not self.pieces
        return OPTIMIZERS["adamw" if is_rest else optimizer].moments


def parameters(shape: ModelShape) -> list[Param]:
    """Return the table of a model, in the order in which the forward pass meets the parameters.

    Initial values are GPT-2's, as nanoGPT has them: normal with 0.02, and the projections back into the residual
    stream smaller by sqrt(2 * n_layer).
    """
    s = shape
    C, F, D = s.n_embd, s.n_inner, s.head_dim
    Q, KV = s.n_head * D, s.n_kv_head * D
    small = 0.02 / math.sqrt(2 * s.n_layer)
    table: list[Param] = []

    def embedding(name: str, rows: int) -> None:
        table.append(Param(f"{name}.weight", (rows, C), 0.0, 0.02))

    def linear(name: str, rows: tuple[int, ...], columns: int, bias: bool, std: float = 0.02) -> None:
        table.append(Param(f"{name}.weight", (sum(rows), columns), 0.0, std, rows))
        if bias:
            table.append(Param(f"{name}.bias", (sum(rows),), 0.0, 0.0, rows))

    def norm(name: str, size: int = C, bias: bool = s.norm_bias) -> None:
        table.append(Param(f"{name}.weight", (size,), 1.0, 0.0))
        if bias:
            table.append(Param(f"{name}.bias", (size,), 0.0, 0.0))

    embedding("wte", s.vocab_size)
    if s.positions == "learned":
        embedding("wpe", s.block_size)
    for i in range(s.n_layer):
        norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", (Q, KV, KV), C, s.qkv_bias)
        if s.qk_norm:
            norm(f"h.{i}.attn.q_norm", D, bias=False)
            norm(f"h.{i}.attn.k_norm", D, bias=False)
        linear(f"h.{i}.attn.c_proj", (C,), Q, s.attn_proj_bias, small)
        norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", (F, F) if s.gated else (F,), C, s.mlp_bias)
        linear(f"h.{i}.mlp.c_proj", (C,), F, s.mlp_bias, small)
    norm("ln_f")
    if not s.tie_word_embeddings:
        embedding("lm_head", s.vocab_size)
    return table


def initialize(shape: ModelShape, seed: int) -> dict[str, np.ndarray]:
    """Return initial weights, {name: float32}. A parameter's values follow from (seed, its name) alone."""
    weights = {}
    for p in parameters(shape):
        draw = np.random.default_rng([seed, zlib.crc32(p.name.encode())])
        values = (
            draw.standard_normal(p.shape, dtype=np.float32) * np.float32(p.std)
            if p.std
            else np.zeros(p.shape, np.float32)
        )
        weights[p.name] = values + np.float32(p.mean) if p.mean else values
    return weights
