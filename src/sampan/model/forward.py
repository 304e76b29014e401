"""The forward pass in plain NumPy, which keeps every intermediate: to look into a model, and to test engines by.

    kept = forward(shape, weights, ids)          # ids (T,), or (B, T)
    kept["h.3.att"][5]                           # what head 5 of block 3 looks at: (T, T), each row adds up to 1
    kept["logits"][-1].argmax()                  # the likeliest next token

It is the twin of csrc/lesson/gpt.c, for all families: read them side by side. It has no backward pass, no dropout and
no cache of keys and values, and is slow.

Letters: T tokens, C channels (n_embd), H heads and KV key-value heads of D channels (head_dim), F the width inside the
MLP (n_inner), V the vocabulary.
"""

from collections.abc import Callable, Mapping

import numpy as np

from sampan.model.rotary import rotary_tables
from sampan.model.shape import ModelShape


def forward(
    shape: ModelShape, weights: Mapping[str, np.ndarray], ids: np.ndarray, dtype: type[np.floating] = np.float32
) -> dict[str, np.ndarray]:
    """Return every intermediate of the forward pass by name, each an array of `dtype`.

    `weights` have the names and shapes of `parameters(shape)`. `ids` are integers (..., T) with T <= block_size; the
    arrays begin with the same dimensions where there are any:

        x                                  (T, C)      the embedded tokens, which enter block 0
        h.0.ln_1                           (T, C)
        h.0.q, h.0.k, h.0.v                (H, T, D), (KV, T, D) twice: after their norms and rotation
        h.0.att                            (H, T, T)   attention weights; the row of a token adds up to 1
        h.0.y                              (T, H * D)  what the heads have read
        h.0.x_mid                          (T, C)      the residual stream after attention
        h.0.ln_2                           (T, C)
        h.0.fc, h.0.act                    (T, F) each; a gated MLP has gate and up in fc, (T, 2 * F)
        h.0.x_out                          (T, C)      the residual stream after the MLP, which enters block 1
        ln_f, logits                       (T, C), (T, V)
    """
    s = shape
    H, KV, D, T = s.n_head, s.n_kv_head, s.head_dim, ids.shape[-1]
    w: dict[str, np.ndarray] = {name: np.asarray(value, dtype) for name, value in weights.items()}
    angles = [table[:T].astype(dtype) for table in rotary_tables(s)] if s.positions == "rotary" else []
    future: np.ndarray = np.triu(np.full((T, T), -np.inf, dtype), 1)
    activation = ACTIVATIONS[s.activation]
    kept: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> np.ndarray:
        kept[name] = value
        return value

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x: np.ndarray, name: str, kind: str = s.norm) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + dtype(s.norm_eps))
        return normed * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    x = w["wte.weight"][ids]
    if s.positions == "learned":
        x = x + w["wpe.weight"][:T]
    keep("x", x)
    for i in range(s.n_layer):
        h = f"h.{i}"
        ln_1 = keep(f"{h}.ln_1", norm(x, f"{h}.ln_1"))
        qkv = linear(ln_1, f"{h}.attn.c_attn")
        q, k, v = (split_heads(part, D) for part in np.split(qkv, [H * D, (H + KV) * D], axis=-1))
        if s.qk_norm:
            q, k = norm(q, f"{h}.attn.q_norm", "rmsnorm"), norm(k, f"{h}.attn.k_norm", "rmsnorm")
        if angles:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k, v = keep(f"{h}.q", q), keep(f"{h}.k", k), keep(f"{h}.v", v)
        k, v = (np.repeat(part, H // KV, axis=-3) for part in (k, v))  # heads of a group share keys and values
        att = keep(f"{h}.att", softmax(q @ k.swapaxes(-1, -2) / np.sqrt(dtype(D)) + future))
        y = keep(f"{h}.y", join_heads(att @ v))
        x = keep(f"{h}.x_mid", x + linear(y, f"{h}.attn.c_proj"))
        ln_2 = keep(f"{h}.ln_2", norm(x, f"{h}.ln_2"))
        fc = keep(f"{h}.fc", linear(ln_2, f"{h}.mlp.c_fc"))
        if s.gated:
            gate, up = np.split(fc, 2, axis=-1)
            act = keep(f"{h}.act", activation(gate) * up)
        else:
            act = keep(f"{h}.act", activation(fc))
        x = keep(f"{h}.x_out", x + linear(act, f"{h}.mlp.c_proj"))
    ln_f = keep("ln_f", norm(x, "ln_f"))
    keep("logits", linear(ln_f, "wte" if s.tie_word_embeddings else "lm_head"))
    return kept


def split_heads(x: np.ndarray, D: int) -> np.ndarray:
    """Return x (..., T, heads * D) as (..., heads, T, D)."""
    return x.reshape(*x.shape[:-1], -1, D).swapaxes(-2, -3)


def join_heads(x: np.ndarray) -> np.ndarray:
    """Return x (..., heads, T, D) as (..., T, heads * D)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn the channel pairs (i, i + D/2) of x (..., T, D) by the angles of their positions; cos and sin (T, D/2)."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def softmax(x: np.ndarray) -> np.ndarray:
    """Return e^x divided by its sum over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_new": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),  # GPT-2's tanh form
    "silu": lambda x: x / 2 * (1 + np.tanh(x / 2)),  # x times its sigmoid
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}
