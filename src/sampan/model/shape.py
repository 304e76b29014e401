"""The shape of a model: what an engine, a count or an export has to know, with every value decided.

    shape = resolve(ModelSettings(family="qwen3", n_layer=4, n_head=4, n_embd=128, vocab_size=65))
    shape.n_inner, shape.norm                  # 352, "rmsnorm"

It lists no parameters (parameters.py) and computes nothing.
"""

import math
from dataclasses import dataclass, fields

from sampan.config import ModelSettings
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.family import find_family


@dataclass(frozen=True)
class ModelShape:
    """A model on paper: its sizes and its parts. `family` says how a folder stores it; the rest, what is computed."""

    family: str
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    n_inner: int
    head_dim: int
    block_size: int
    vocab_size: int
    norm: str  # "layernorm" or "rmsnorm"
    positions: str  # "learned" or "rotary"
    activation: str  # one of config.ACTIVATIONS
    gated: bool  # the MLP is proj(activation(gate) * up)
    qk_norm: bool  # RMSNorm over each head of queries and keys
    qkv_bias: bool
    attn_proj_bias: bool
    mlp_bias: bool
    norm_bias: bool
    tie_word_embeddings: bool
    dropout: float
    norm_eps: float
    rope_theta: float
    rope_scaling: dict | None
    edited: bool = False  # somebody changed engine/torch/model.py, which alone computes this model


def resolve(settings: ModelSettings) -> ModelShape:
    """Return the shape that the settings mean. Raises UserError for sizes that do not fit together."""
    s, family = settings, find_family(settings.family)
    if s.vocab_size is None:
        raise UserError(_("vocab_size is not known: it comes from a tokenizer, or is given"))
    if s.n_embd % s.n_head and (s.head_dim is None or family.whole_heads):
        raise UserError(_("n_embd={n_embd} is not a multiple of n_head={n_head}", n_embd=s.n_embd, n_head=s.n_head))
    head_dim = s.head_dim or s.n_embd // s.n_head
    n_kv_head = s.n_kv_head or s.n_head
    if s.n_head % n_kv_head:
        raise UserError(
            _("n_head={n_head} is not a multiple of n_kv_head={n_kv_head}", n_head=s.n_head, n_kv_head=n_kv_head)
        )
    if family.fused and (n_kv_head != s.n_head or head_dim * s.n_head != s.n_embd):
        raise UserError(
            _(
                "{family} has as many key heads as heads, each n_embd / n_head wide; use another family, such as llama",
                family=s.family,
            )
        )
    if family.positions == "rotary" and head_dim % 2:
        raise UserError(
            _("head_dim={head_dim}: rotary positions need an even width; change n_head or n_embd", head_dim=head_dim)
        )
    # 8/3 gives the three matrices of a gated MLP the size of the two others (Shazeer 2020); rounded up for the hardware
    n_inner = 32 * math.ceil(8 * s.n_embd / 3 / 32) if family.gated else 4 * s.n_embd
    bias = family.bias[0] if s.bias is None else s.bias
    if bias not in family.bias:
        raise UserError(
            _(
                "bias={bias}: {family} is always {bias_2}; leave it out, or use another family",
                bias=bias,
                family=s.family,
                bias_2=family.bias[0],
            )
        )
    return ModelShape(
        family=s.family,
        n_layer=s.n_layer,
        n_head=s.n_head,
        n_kv_head=n_kv_head,
        n_embd=s.n_embd,
        n_inner=s.n_inner or n_inner,
        head_dim=head_dim,
        block_size=s.block_size,
        vocab_size=s.vocab_size,
        norm=family.norm,
        positions=family.positions,
        activation=s.activation or family.activation,
        gated=family.gated,
        qk_norm=family.qk_norm,
        qkv_bias=bias and "qkv_bias" in family.biases,
        attn_proj_bias=bias and "attn_proj_bias" in family.biases,
        mlp_bias=bias and "mlp_bias" in family.biases,
        norm_bias=bias and "norm_bias" in family.biases,
        tie_word_embeddings=s.tie_word_embeddings,
        dropout=s.dropout,
        norm_eps=s.norm_eps,
        rope_theta=s.rope_theta,
        rope_scaling=s.rope_scaling,
    )


def settings_of(shape: ModelShape) -> ModelSettings:
    """Return the settings, none of them open, that `resolve` makes this shape of."""
    kept = {f.name: getattr(shape, f.name) for f in fields(ModelSettings) if f.name != "bias"}
    return ModelSettings(**kept, bias=shape.qkv_bias)
