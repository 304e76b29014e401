"""Compute the learning rate of each step, and when to stop early.

learning_rate(config, step)
"""

import math

from sampan.checkpoint.run import Progress
from sampan.config import TrainConfig


def decay_end(config: TrainConfig) -> int:
    """Return the step at which the rate reaches min_lr."""
    return config.max_iters if config.lr_decay_iters is None else config.lr_decay_iters


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return nanoGPT's rate: linear warm-up, a cosine down to min_lr at lr_decay_iters, then min_lr."""
    c, end = config, decay_end(config)
    if not c.decay_lr:
        return c.learning_rate
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    if step >= end:
        return c.min_lr
    done = (step - c.warmup_iters) / max(1, end - c.warmup_iters)
    return c.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (c.learning_rate - c.min_lr)


def is_enough(config: TrainConfig, progress: Progress) -> bool:
    """Return whether val has not improved for `patience` evaluations. It needs no state that a resume could lose."""
    return config.patience is not None and progress.step - progress.best_step >= config.patience * config.eval_interval
