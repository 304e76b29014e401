"""Compare another program's logits with our own.

logits = reference(model, weights)(ids)      # float32 (B, T, vocab_size)
"""

from collections.abc import Callable

import numpy as np

from sampan.config import MachineConfig
from sampan.engine.open import open_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.shape import ModelShape

Reference = Callable[[np.ndarray], np.ndarray]  # from ids, int (B, T), to logits (B, T, vocab)

# ---- checking ----


def reference(model: ModelShape, weights: dict) -> Reference:
    """A function from ids, int (B, T), to what our own engine makes of them in float32: logits (B, T, vocab)."""
    engine = open_engine(model, MachineConfig(device="cpu", dtype="float32"))
    engine.load(weights)
    return lambda ids: all_logits(engine, ids)


def all_logits(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """The logits of every position of ids, int (B, T): float32 (B, T, vocab)."""
    session = engine.session(len(ids))
    return np.stack([session.feed(np.ascontiguousarray(ids[:, t : t + 1], np.int32)) for t in range(ids.shape[1])], 1)


def check_ids(model: ModelShape, count: int = 3) -> np.ndarray:
    """A few prompts of random tokens, int32 (count, T)."""
    length = min(model.block_size, 48)
    return np.random.default_rng(0).integers(0, model.vocab_size, (count, length), dtype=np.int32)


def compare_logits(theirs: np.ndarray, ours: np.ndarray, allowed: float, runtime: str) -> str:
    """The largest difference of logits, relative to the largest of ours. Raises UserError beyond `allowed`."""
    error = float(np.abs(np.asarray(theirs, np.float64) - ours).max() / np.abs(ours).max())
    if not error <= allowed:
        raise UserError(
            _(
                "{runtime} computes other logits than Sampan: they differ by {error:.1e} of the largest, and "
                "{allowed:.0e} is what rounding explains; nothing was written",
                runtime=runtime,
                error=error,
                allowed=allowed,
            )
        )
    return _(
        "checked with {runtime}: its logits differ from ours by {error:.1e} of the largest",
        runtime=runtime,
        error=error,
    )
