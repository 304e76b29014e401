"""The gradients of GPT-2 in plain NumPy: what a debug state is computed with, so that it can test every engine.

    loss, gradients = backward(model, weights, forward(model, weights, x), x, y)

It goes back through what model/forward.py keeps, line by line. Only what llm.c supports is here: LayerNorm, learned
positions, GELU, as many key heads as heads, a head that shares the token embedding.

Letters: B sequences of T tokens, C channels (n_embd), H heads of D channels (head_dim), V the vocabulary.
"""

from collections.abc import Mapping

import numpy as np

from sampan.model.forward import join_heads, softmax, split_heads
from sampan.model.shape import ModelShape

Arrays = dict[str, np.ndarray]


def backward(
    shape: ModelShape, weights: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[float, Arrays]:
    """Return the mean loss over the targets y, int (B, T), in nats, and its gradient for every parameter by name."""
    w, D, T = weights, shape.head_dim, x.shape[-1]
    grad: Arrays = {}

    def linear(d: np.ndarray, inp: np.ndarray, name: str) -> np.ndarray:
        """Of out = inp @ weight.T + bias, given d = d loss / d out: keep both gradients, and return that of inp."""
        grad[f"{name}.weight"] = flat(d).T @ flat(inp)
        grad[f"{name}.bias"] = flat(d).sum(0)
        return d @ w[f"{name}.weight"]

    def norm(d: np.ndarray, inp: np.ndarray, name: str) -> np.ndarray:
        """Of out = normed * weight + bias, with normed = (inp - mean) / sqrt(var + eps)."""
        centered = inp - inp.mean(-1, keepdims=True)
        size = np.sqrt((centered**2).mean(-1, keepdims=True) + inp.dtype.type(shape.norm_eps))
        normed = centered / size
        grad[f"{name}.weight"] = flat(d * normed).sum(0)
        grad[f"{name}.bias"] = flat(d).sum(0)
        d = d * w[f"{name}.weight"]
        return (d - d.mean(-1, keepdims=True) - normed * (d * normed).mean(-1, keepdims=True)) / size

    entered = ["x", *(f"h.{i}.x_out" for i in range(shape.n_layer))]  # the residual stream between blocks
    chosen = np.arange(y.size), y.ravel()
    p = flat(softmax(kept["logits"]))
    loss = -np.log(p[chosen]).mean(dtype=np.float64)
    p[chosen] -= 1
    d = (p / p.dtype.type(y.size)).reshape(kept["logits"].shape)  # of the logits, (B, T, V)
    grad["wte.weight"] = flat(d).T @ flat(kept["ln_f"])
    d = norm(d @ w["wte.weight"], kept[entered[-1]], "ln_f")  # of the residual stream from here on, (B, T, C)
    for i in reversed(range(shape.n_layer)):
        h = f"h.{i}"
        into = linear(d, kept[f"{h}.act"], f"{h}.mlp.c_proj") * gelu_slope(kept[f"{h}.fc"])
        d = d + norm(linear(into, kept[f"{h}.ln_2"], f"{h}.mlp.c_fc"), kept[f"{h}.x_mid"], f"{h}.ln_2")

        dy = split_heads(linear(d, kept[f"{h}.y"], f"{h}.attn.c_proj"), D)  # (B, H, T, D)
        q, k, v, att = (kept[f"{h}.{name}"] for name in ("q", "k", "v", "att"))
        datt = dy @ v.swapaxes(-1, -2)  # (B, H, T, T)
        scores = att * (datt - (datt * att).sum(-1, keepdims=True)) / np.sqrt(att.dtype.type(D))
        parts = scores @ k, scores.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy
        qkv = np.concatenate([join_heads(part) for part in parts], axis=-1)  # (B, T, 3 C)
        d = d + norm(linear(qkv, kept[f"{h}.ln_1"], f"{h}.attn.c_attn"), kept[entered[i]], f"{h}.ln_1")
    grad["wpe.weight"] = np.zeros_like(w["wpe.weight"])
    grad["wpe.weight"][:T] = d.sum(0)
    np.add.at(grad["wte.weight"], x.ravel(), flat(d))
    return float(loss), grad


def flat(x: np.ndarray) -> np.ndarray:
    """Return x (B, T, ...) as (B * T, ...)."""
    return x.reshape(-1, x.shape[-1])


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """Return the derivative of x/2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    scale = (2 / np.pi) ** 0.5
    t = np.tanh(scale * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t**2) * scale * (1 + 3 * 0.044715 * x**2)
