"""The model on paper: three families and one table of parameters.

    config = resolve(ModelConfig(family="qwen3", n_layer=4, n_head=4, n_embd=128, vocab_size=65))
    for p in parameters(config): print(p.name, p.shape, p.decay)
    weights = initialize(config, seed=1337)        # {name: float32 array}, the same for every engine

The families are those of Hugging Face transformers, with its arithmetic:

    gpt2     LayerNorm, learned positions, GELU (tanh form), biases optional
    llama    RMSNorm, rotary positions, SwiGLU, grouped-query attention, tied or untied head
    qwen3    llama with RMS-normalised queries and keys

Nothing here computes a forward pass; engine/torch/model.py does.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from sampan.config import ModelConfig


@dataclass(frozen=True)
class Param:
    """One parameter: a row of the table that everything else follows."""

    name: str  # in memory, in both engines
    shape: tuple[int, ...]  # a matrix is (out, in), as in torch.nn.Linear
    mean: float  # initial values: mean + std * normal
    std: float
    stored: tuple[tuple[str, int], ...]  # Hugging Face's tensors that it is made of: (name, rows of ours)
    transposed: bool = False  # Hugging Face's GPT-2 stores a matrix as (in, out)
    pieces: tuple[int, ...] = ()  # of a block's matrix: rows of the linear layers that stand in it, such as q, k and v

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def decay(self) -> bool:
        """Weight decay acts on matrices and embeddings, not on biases and norms (nanoGPT's rule)."""
        return len(self.shape) >= 2

    def moments(self, optimizer: str) -> tuple[str, ...]:
        """What the optimizer keeps of it. Muon's momentum is an average of the gradient, as AdamW's first moment is."""
        return ("exp_avg",) if optimizer == "muon" and self.pieces else ("exp_avg", "exp_avg_sq")


def parameters(config: ModelConfig) -> list[Param]:
    """The table of a resolved config, in the order in which the forward pass meets the parameters.

    Initial values are GPT-2's, as nanoGPT has them: normal with 0.02, and the projections back into the residual
    stream smaller by sqrt(2 * n_layer).
    """
    return gpt2_parameters(config) if config.family == "gpt2" else llama_parameters(config)


def gpt2_parameters(c: ModelConfig) -> list[Param]:
    C, F = c.n_embd, c.n_inner
    table = []

    def weight(name, rows, columns, std=0.02, pieces=()):
        hf = f"transformer.{name}.weight" if name != "lm_head" else "lm_head.weight"
        table.append(Param(f"{name}.weight", (rows, columns), 0.0, std, ((hf, rows),), bool(pieces), pieces))

    def vector(name, size, mean):
        table.append(Param(name, (size,), mean, 0.0, ((f"transformer.{name}", size),)))

    def linear(name, rows, columns, std=0.02, pieces=()):
        weight(name, rows, columns, std, pieces or (rows,))
        if c.bias:
            vector(f"{name}.bias", rows, 0.0)

    def norm(name):
        vector(f"{name}.weight", C, 1.0)
        if c.bias:
            vector(f"{name}.bias", C, 0.0)

    weight("wte", c.vocab_size, C)
    weight("wpe", c.block_size, C)
    for i in range(c.n_layer):
        norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", 3 * C, C, pieces=(C, C, C))
        linear(f"h.{i}.attn.c_proj", C, C, residual_std(c))
        norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", F, C)
        linear(f"h.{i}.mlp.c_proj", C, F, residual_std(c))
    norm("ln_f")
    if not c.tie_word_embeddings:
        weight("lm_head", c.vocab_size, C)
    return table


def llama_parameters(c: ModelConfig) -> list[Param]:
    C, F, D = c.n_embd, c.n_inner, c.head_dim
    Q, KV = c.n_head * D, c.n_kv_head * D
    table = []

    def linear(name, columns, *stored, std=0.02, bias=False):
        sizes = tuple(n for _, n in stored)
        rows, pieces = sum(sizes), sizes if name.startswith("h.") else ()
        hf = tuple((f"{s}.weight", n) for s, n in stored)
        table.append(Param(f"{name}.weight", (rows, columns), 0.0, std, hf, pieces=pieces))
        if bias:
            table.append(Param(f"{name}.bias", (rows,), 0.0, 0.0, tuple((f"{s}.bias", n) for s, n in stored)))

    def norm(name, hf, size):
        table.append(Param(f"{name}.weight", (size,), 1.0, 0.0, ((f"{hf}.weight", size),)))

    mlp_bias = c.bias and c.family == "llama"  # Hugging Face's qwen3 has no biases in the MLP
    linear("wte", C, ("model.embed_tokens", c.vocab_size))
    for i in range(c.n_layer):
        hf, attn = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        norm(f"h.{i}.ln_1", f"{hf}.input_layernorm", C)
        linear(
            f"h.{i}.attn.c_attn", C, (f"{attn}.q_proj", Q), (f"{attn}.k_proj", KV), (f"{attn}.v_proj", KV), bias=c.bias
        )
        if c.family == "qwen3":
            norm(f"h.{i}.attn.q_norm", f"{attn}.q_norm", D)
            norm(f"h.{i}.attn.k_norm", f"{attn}.k_norm", D)
        linear(f"h.{i}.attn.c_proj", Q, (f"{attn}.o_proj", C), std=residual_std(c), bias=c.bias)
        norm(f"h.{i}.ln_2", f"{hf}.post_attention_layernorm", C)
        linear(f"h.{i}.mlp.c_fc", C, (f"{hf}.mlp.gate_proj", F), (f"{hf}.mlp.up_proj", F), bias=mlp_bias)
        linear(f"h.{i}.mlp.c_proj", F, (f"{hf}.mlp.down_proj", C), std=residual_std(c), bias=mlp_bias)
    norm("ln_f", "model.norm", C)
    if not c.tie_word_embeddings:
        linear("lm_head", C, ("lm_head", c.vocab_size))
    return table


def residual_std(config: ModelConfig) -> float:
    return 0.02 / math.sqrt(2 * config.n_layer)


def initialize(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Initial weights, {name: float32}. A parameter's values follow from (seed, its name) alone."""
    weights = {}
    for p in parameters(config):
        draw = np.random.default_rng([seed, zlib.crc32(p.name.encode())])
        values = (
            draw.standard_normal(p.shape, dtype=np.float32) * np.float32(p.std)
            if p.std
            else np.zeros(p.shape, np.float32)
        )
        weights[p.name] = values + np.float32(p.mean) if p.mean else values
    return weights
