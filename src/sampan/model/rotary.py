"""Rotary positions (Su et al. 2021): the angles that every engine uses, computed once.

    cos, sin = rotary_tables(model)      # float32 (block_size, head_dim / 2) each

It does not rotate anything; the engines do.
"""

import math
from typing import Any

import numpy as np

from sampan.errors import UserError
from sampan.messages import _
from sampan.model.shape import ModelShape


def rotary_frequencies(shape: ModelShape) -> np.ndarray:
    """Angle per position of each pair of channels, float64, shape (head_dim / 2,) (Su et al. 2021).

    `rope_scaling` stretches them as Hugging Face's `linear` and `llama3` do; raises UserError for other kinds.
    """
    frequencies = shape.rope_theta ** -(np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    scaling = shape.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind not in ("linear", "llama3"):
        raise UserError(_("rope_scaling of type {kind!r} is not supported; default, linear and llama3 are", kind=kind))

    def positive(key: str) -> float:
        value: Any = scaling.get(key)  # of config.json
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise UserError(_("rope_scaling: {key} is {value!r}, expected a positive number", key=key, value=value))
        return float(value)

    factor = positive("factor")
    if kind == "linear":
        return frequencies / factor
    low, high = positive("low_freq_factor"), positive("high_freq_factor")
    if low >= high:
        raise UserError(
            _("rope_scaling: low_freq_factor {low} is not below high_freq_factor {high}", low=low, high=high)
        )
    # slow waves are stretched, fast ones kept, those between blended
    turns = positive("original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / factor


def rotary_tables(shape: ModelShape) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each float32 of shape (block_size, head_dim / 2), computed once for every engine."""
    angles = np.outer(np.arange(shape.block_size), rotary_frequencies(shape))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
