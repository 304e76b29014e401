"""Find out whether somebody has changed what model.py computes: such a model is no longer what config.json would say.

    is_edited(shape)                          # a tiny model of the same parts, beside model/forward.py

It compares results, not text: a comment, a faster way to the same logits, or an activation with a name of its own is no
change.
"""

from dataclasses import replace

import numpy as np
import torch

from sampan.engine.torch.model import GPT
from sampan.model.forward import ACTIVATIONS, forward
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape

ALLOWED = 1e-5  # relative to the largest logit: norms and rotations in float32 make 5e-7, the exact form of GELU 1e-4


def is_edited(shape: ModelShape) -> bool:
    """Return whether model.py computes other logits than a model of these parts has."""
    if shape.activation not in ACTIVATIONS:  # the reference has no row for it
        return False
    heads = 2, 2 if shape.n_kv_head == shape.n_head else 1
    tiny = replace(shape, n_layer=1, n_head=heads[0], n_kv_head=heads[1], head_dim=4, n_embd=8, n_inner=12, dropout=0.0)
    tiny = replace(tiny, block_size=8, vocab_size=11)
    draw = np.random.default_rng(0)
    weights = {p.name: draw.normal(p.mean, 0.5, p.shape).astype(np.float32) for p in parameters(tiny)}
    ids = np.arange(16).reshape(2, 8) % 11
    expected = forward(tiny, weights, ids, np.float64)["logits"]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = GPT(tiny).eval().double()  # not TF32, whatever this process has set
            model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
            found = model(torch.from_numpy(ids)).numpy()
    except (RuntimeError, TypeError, ValueError, AttributeError):  # other parameters, or sizes written into the file
        return True
    return bool(np.abs(found - expected).max() > ALLOWED * np.abs(expected).max())
