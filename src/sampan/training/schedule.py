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
    """Return nanoGPT's rate: linear warm-up, a cosine down to min_lr at lr_decay_iters, then min_lr.

    A run that goes on falls from `restart_rate` at start_iter to min_lr in a line, unless lr_decay_iters is given.
    """
    c, end = config, decay_end(config)
    if not c.decay_lr:
        return c.learning_rate
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    if step >= end:
        return c.min_lr
    if restarts(c):
        return c.min_lr + (restart_rate(c) - c.min_lr) * (end - step) / max(1, end - c.start_iter)
    done = (step - c.warmup_iters) / max(1, end - c.warmup_iters)
    return c.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (c.learning_rate - c.min_lr)


def restarts(config: TrainConfig) -> bool:
    """Return whether the rate begins again at start_iter."""
    return config.decay_lr and config.lr_decay_iters is None and 0 < config.start_iter < config.max_iters


def restart_rate(config: TrainConfig) -> float:
    """Return the rate at start_iter: the peak times the square root of the share of the steps that are left then.

    A rate that has fallen is not left low, or the new steps would teach little; docs/LOG.md has the measurements.
    """
    left = 1 - config.start_iter / decay_end(config)
    return max(config.min_lr, config.learning_rate * math.sqrt(max(0.0, left)))


def is_enough(config: TrainConfig, progress: Progress) -> bool:
    """Return whether val has not improved for `patience` evaluations. It needs no state that a resume could lose."""
    since = max(progress.best_step, config.start_iter)
    return config.patience is not None and progress.step - since >= config.patience * config.eval_interval
