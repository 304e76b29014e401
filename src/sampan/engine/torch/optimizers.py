"""Open the optimizers of config.OPTIMIZERS in PyTorch.

    rest, *of_matrices = open_optimizers(settings, [(weight, parameter), ...], dtype, fused=True)

A new optimizer is a function here and its row in MAKERS; csrc/ops/optimizers.h has its twin.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sampan.config import OPTIMIZERS, OptimizerSettings
from sampan.engine.torch.muon import Muon
from sampan.model.parameters import Param

Pairs = Sequence[tuple[nn.Parameter, Param]]
Maker = Callable[[Pairs, OptimizerSettings, torch.dtype, bool], torch.optim.Optimizer]


def decay_groups(pairs: Pairs, s: OptimizerSettings) -> list[dict]:
    """Return two groups of parameters, with weight decay and without."""
    return [
        {"params": [w for w, p in pairs if p.decay == decays], "weight_decay": s.weight_decay * decays}
        for decays in (True, False)
    ]


def make_adamw(pairs: Pairs, s: OptimizerSettings, dtype: torch.dtype, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(decay_groups(pairs, s), lr=0.0, betas=(s.beta1, s.beta2), eps=1e-8, fused=fused)


def make_muon(pairs: Pairs, s: OptimizerSettings, dtype: torch.dtype, fused: bool) -> torch.optim.Optimizer:
    dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return Muon([(w, p.pieces) for w, p in pairs], s.momentum, s.weight_decay, dtype)


MAKERS: dict[str, Maker] = {"adamw": make_adamw, "muon": make_muon}


def open_optimizers(s: OptimizerSettings, pairs: Pairs, dtype: torch.dtype, fused: bool) -> list[torch.optim.Optimizer]:
    """Return the optimizer of `s`; or AdamW for what it leaves, and then it, if it is one of matrices.

    `dtype` is that of the products; `fused` is AdamW's.
    """
    if not OPTIMIZERS[s.optimizer].matrices_only:
        return [MAKERS[s.optimizer](pairs, s, dtype, fused)]
    matrices, rest = ([(w, p) for w, p in pairs if bool(p.pieces) == wanted] for wanted in (True, False))
    return [make_adamw(rest, s, dtype, fused), MAKERS[s.optimizer](matrices, s, dtype, fused)]
