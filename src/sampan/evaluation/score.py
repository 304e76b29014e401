"""Score tokens with a model: the loss of each one, with as much context before it as a window that slides gives it.

    losses = score(engine, tokens, block_size=64, stride=32)      # float32 (len(tokens) - 1,), nats
    mean, error = mean_and_error(losses, group=32)

A mean over windows laid end to end depends on where they begin, since the first tokens of each have no context. Here
every token but the first ones has at least block_size - stride tokens before it. Text, files and questions are not
handled here.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from sampan.data.windows import cut_windows
from sampan.engine.protocol import Engine


def sliding_windows(targets: int, block_size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield (start, new) of windows that cover `targets` targets in order: the last `new` of each are new.

    >>> list(sliding_windows(9, 4, 2))
    [(0, 4), (2, 2), (4, 2), (5, 1)]
    """
    end = min(block_size, targets)
    yield 0, end
    while end < targets:
        new = min(stride, targets - end)
        end += new
        yield end - block_size, new


def score(
    engine: Engine,
    tokens: np.ndarray,
    block_size: int,
    stride: int,
    batch_size: int = 16,
    vocab_size: int | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Return the loss of each token but the first, given those before it, float32 (len(tokens) - 1,), in nats.

    `tokens` are integers (n,), of which two or more are needed; `stride`, from 1 to block_size, is by how many tokens a
    window moves on. `tick` is told how many more tokens are done. Raise UserError for a token outside the vocabulary.
    """
    targets = len(tokens) - 1
    length = min(block_size, targets)
    windows = list(sliding_windows(targets, block_size, stride))
    losses = np.empty(targets, np.float32)
    for i in range(0, len(windows), batch_size):
        batch = windows[i : i + batch_size]
        x, y = cut_windows(tokens, np.array([start for start, _new in batch]), length, vocab_size)
        for row, (_start, new) in enumerate(batch):
            y[row, : length - new] = -1
        found = engine.losses(x, y)
        for row, (start, new) in enumerate(batch):
            losses[start + length - new : start + length] = found[row, length - new :]
        tick(sum(new for _start, new in batch))
    return losses


def mean_and_error(losses: np.ndarray, group: int) -> tuple[float, float]:
    """Return the mean of `losses` (n,) and its standard error, NaN where there are too few to tell.

    Neighbouring tokens are hard or easy together, so the error is that of the means of groups of `group` neighbours
    (a cluster-robust standard error, Liang and Zeger 1986).
    """
    values = losses.astype(np.float64)
    mean = float(values.mean())
    deviations = np.add.reduceat(values - mean, np.arange(0, len(values), group))
    groups = len(deviations)
    if groups < 2:
        return mean, math.nan
    return mean, float(np.sqrt((deviations**2).sum() * groups / (groups - 1)) / len(values))
