"""The model on paper: three families, one table of parameters, and what follows from it by counting.

    config = resolve(ModelConfig(family="qwen3", n_layer=4, n_head=4, n_embd=128, vocab_size=65))
    for p in parameters(config): print(p.name, p.shape, p.decay)
    weights = initialize(config, seed=1337)        # {name: float32 array}, the same for every engine

The families are those of Hugging Face transformers, with its arithmetic:

    gpt2     LayerNorm, learned positions, GELU (tanh form), biases optional
    llama    RMSNorm, rotary positions, SwiGLU, grouped-query attention, tied or untied head
    qwen3    llama with RMS-normalised queries and keys

Nothing here computes a forward pass; torch_model.py does.
"""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np

from .config import ModelConfig
from .errors import UserError


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


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each pair of channels, float64, shape (head_dim / 2,) (Su et al. 2021).

    `rope_scaling` stretches them as Hugging Face's `linear` and `llama3` do; raises UserError for other kinds.
    """
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind not in ("linear", "llama3"):
        raise UserError(f"rope_scaling of type {kind!r} is not supported; default, linear and llama3 are")

    def positive(key: str) -> float:
        value = scaling.get(key)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise UserError(f"rope_scaling: {key} is {value!r}, expected a positive number")
        return float(value)

    factor = positive("factor")
    if kind == "linear":
        return frequencies / factor
    low, high = positive("low_freq_factor"), positive("high_freq_factor")
    if low >= high:
        raise UserError(f"rope_scaling: low_freq_factor {low} is not below high_freq_factor {high}")
    # slow waves are stretched, fast ones kept, those between blended
    turns = positive("original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / factor


def rotary_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each float32 of shape (block_size, head_dim / 2), computed once for every engine."""
    angles = np.outer(np.arange(config.block_size), rotary_frequencies(config))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


# ---- counting ----


def count_parameters(config: ModelConfig) -> int:
    """All of them; a tied head counts once."""
    return sum(p.size for p in parameters(config))


def flops_per_token(config: ModelConfig) -> float:
    """Of forward and backward together: six a weight that is multiplied, and the attention's products.

    After appendix B of PaLM (Chowdhery et al. 2022), as nanoGPT counts: attention in full, not its causal half.
    """
    c = config
    looked_up = {"wpe.weight"} | (set() if c.tie_word_embeddings else {"wte.weight"})
    multiplied = sum(p.size for p in parameters(c) if p.name not in looked_up)
    return 6.0 * multiplied + 12.0 * c.n_layer * c.n_head * c.head_dim * c.block_size
