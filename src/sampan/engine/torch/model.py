"""The GPT as a PyTorch module, in one page: the file to open first to learn from, and to hack.

    sampan train my-novel.txt --engine torch       # runs it; without the flag a CPU is left to the C engine

    model = GPT(resolve(ModelSettings(family="gpt2", n_layer=4, n_head=4, n_embd=128, vocab_size=65)))
    logits = model(ids)                      # (B, T) -> (B, T, vocab_size)

One class serves every family: a ModelShape names the parts. Module names are the names of `model.parameters`. It holds
no initialisation (`model.parameters.initialize`), no optimizer (engine.py) and no sampling (sampling/draw.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sampan.model.rotary import rotary_tables
from sampan.model.shape import ModelShape

Rotary = tuple[Tensor, Tensor]  # cosines and sines of T positions, each (T, D/2) or, of each sequence, (B, 1, T, D/2)


class GPT(nn.Module):
    cos: Tensor  # (block_size, D/2), as sin; with rotary positions only
    sin: Tensor

    def __init__(self, config: ModelShape):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # if set, keep what enters a block, and redo the rest (Chen et al. 2016)
        self.document_start: int | None = None  # if set, a token sees nothing before the last one of this id
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            cos, sin = rotary_tables(config)
            self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
            self.register_buffer("sin", torch.from_numpy(sin), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = norm(config, config.n_embd)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, targets: Tensor | None = None, cache: "Cache | None" = None) -> Tensor:
        """Logits (B, T, V) of `ids` (B, T); or, given `targets` (B, T), the *sum* of their losses in nats.

        A target of -1 is ignored. With a `cache` the ids follow those it has seen, and only the last position's
        logits are computed: (B, 1, V).
        """
        x = self.features(ids, cache)  # (B, T, C)
        if cache is not None:
            x = x[:, -1:]
        logits = F.linear(x, self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight)  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")

    def features(self, ids: Tensor, cache: "Cache | None" = None) -> Tensor:
        """The normed residual stream, (B, T, C), from which the head makes logits."""
        B, T = ids.size()
        positions = slice(T) if cache is None else cache.positions(T)  # 0 .. T-1, or those of each sequence, (B, T)
        x = self.wte(ids)  # (B, T, C)
        rotary = None
        if self.config.positions == "learned":
            x = x + self.wpe.weight[positions]
        else:
            rotary = self.cos[positions], self.sin[positions]
            if cache is not None:
                rotary = rotary[0][:, None], rotary[1][:, None]  # the same for each head
        x = self.drop(x)
        mask = None
        if self.document_start is not None and cache is None:
            document = (ids == self.document_start).cumsum(1)  # (B, T)
            mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]  # (B, 1, T, T)
        for i, block in enumerate(self.h):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotary, mask, None, use_reentrant=False)
            else:
                x = block(x, rotary, mask, cache.layer(i) if cache is not None else None)
        return self.ln_f(x)


class Block(nn.Module):
    def __init__(self, config: ModelShape):
        super().__init__()
        self.ln_1 = norm(config, config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Tensor | None, cache: "LayerCache | None") -> Tensor:
        x = x + self.attn(self.ln_1(x), rotary, mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class Attention(nn.Module):
    """Causal self-attention; n_head / n_kv_head heads of queries share a head of keys and values."""

    def __init__(self, config: ModelShape):
        super().__init__()
        H, KV, D = config.n_head, config.n_kv_head, config.head_dim
        self.sizes = (H, KV, D)
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, (H + 2 * KV) * D, bias=config.qkv_bias)
        self.c_proj = nn.Linear(H * D, config.n_embd, bias=config.attn_proj_bias)
        self.drop = nn.Dropout(config.dropout)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm = norm(config, D)
            self.k_norm = norm(config, D)

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Tensor | None, cache: "LayerCache | None") -> Tensor:
        B, T, C = x.size()
        H, KV, D = self.sizes
        q, k, v = self.c_attn(x).split((H * D, KV * D, KV * D), dim=2)
        q = q.view(B, T, H, D)
        k = k.view(B, T, KV, D)
        v = v.view(B, T, KV, D).transpose(1, 2)  # (B, KV, T, D)
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, H, T, D), (B, KV, T, D)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is None:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None and T > 1,
                dropout_p=self.dropout if self.training else 0.0, enable_gqa=KV < H,
            )  # fmt: skip
        else:
            y = cache.attend(q, k, v)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, H * D)
        return self.drop(self.c_proj(y))


ACTIVATIONS = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021
}


class MLP(nn.Module):
    """Two layers; if gated, activation(gate) * up, with gate and up as the two halves of one product (Shazeer 2020)."""

    def __init__(self, config: ModelShape):
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.activation], config.gated
        self.c_fc = nn.Linear(config.n_embd, config.n_inner * (2 if config.gated else 1), bias=config.mlp_bias)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)  # (B, T, F), gated (B, T, 2 F)
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            return self.drop(self.c_proj(self.activation(gate) * up))
        return self.drop(self.c_proj(self.activation(h)))


def norm(config: ModelShape, size: int) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)
    return RMSNorm(size, config.norm_eps)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019; in float32 whatever comes in, as Hugging Face computes it."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D/2) of x (B, H, T, D) by their position's angle; cos and sin are (T, D/2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Cache:
    """Keys and values of all layers for sequences of any lengths, each in a slot of its own, filled from the left.

    A pass is over the sequences in `slots`, which have `starts` tokens in the cache before it. Rows of a batch beyond
    these belong to no sequence.
    """

    def __init__(self, config: ModelShape, slots: int, device: torch.device, dtype: torch.dtype):
        c = config
        shape = (c.n_layer, 2, 1, c.n_kv_head, c.block_size, c.head_dim)
        # A tensor for each slot: products depend on how their operands are aligned, which is then the same in all.
        self.keys_values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(slots)]
        self.slots: list[int] = []
        self.starts = torch.empty(0, dtype=torch.long, device=device)  # of all rows of the batch, (B,)
        self.lengths: list[int] = []  # of the sequences, before the pass

    def positions(self, T: int) -> Tensor:
        """Return the positions of a pass over T tokens of each sequence, (B, T)."""
        return self.starts[:, None] + torch.arange(T, device=self.starts.device)

    def layer(self, i: int) -> "LayerCache":
        return LayerCache(self, i)


class LayerCache:
    def __init__(self, cache: Cache, layer: int):
        self.cache, self.layer = cache, layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Put k and v (B, KV, T, D) behind what is there, and return what q (B, H, T, D) sees of it, (B, H, T, D).

        Each sequence by itself: how the sums of one are ordered then depends on no other's length.
        """
        y, T = torch.zeros_like(q), q.size(2)
        for b, (slot, start) in enumerate(zip(self.cache.slots, self.cache.lengths, strict=True)):
            S = start + T
            keys, values = self.cache.keys_values[slot][self.layer]  # each (1, KV, block_size, D)
            keys[0, :, start:S], values[0, :, start:S] = k[b], v[b]
            mask = None
            if 1 < T < S:  # later tokens in a chunk: position S-T+i sees keys 0 .. S-T+i
                mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(start)
            y[b : b + 1] = F.scaled_dot_product_attention(
                q[b : b + 1].clone(), keys[:, :, :S], values[:, :, :S], attn_mask=mask,
                is_causal=mask is None and T > 1, enable_gqa=k.size(1) < q.size(1),
            )  # fmt: skip
        return y
