"""The one training loop: a generator that yields a record for each step and each evaluation.

    for record in train(make_plan("my-novel.txt", {})):
        print(record)

It reads from top to bottom in the order in which things happen. Whoever consumes the records shows or keeps them
(report.py); stopping to consume ends the run after a whole step, saved, ready to be resumed.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .checkpoint import Progress, Run
from .config import TrainConfig
from .data import Windows, evaluation_batches
from .engine import Engine, open_engine, world
from .errors import UserError
from .model import flops_per_token
from .plan import Plan, identity
from .recipe import decay_end

AT_MOST = 2_000_000  # tokens of a val split that the last look at a model reads


@dataclass(frozen=True)
class Step:
    """One optimizer step has been taken."""

    step: int  # counted from 0, as nanoGPT's iter
    loss: float  # mean over the global batch, nats per token, before the step
    lr: float
    grad_norm: float  # before clipping
    seconds: float
    tokens_per_second: float
    mfu: float  # share of the peak that the engine measured on this machine, 0 to 1


@dataclass(frozen=True)
class Evaluation:
    """Both losses were measured on fixed windows, after `step` optimizer steps."""

    step: int
    train_loss: float
    val_loss: float
    best: bool  # the lowest val_loss so far
    lr: float


def train(plan: Plan, engine: Engine | None = None) -> Iterator[Step | Evaluation]:
    """Run a plan. The run's folder is written at evaluations, at the end and when the consumer stops early.

    Raises UserError where the plan cannot run here or its folder cannot be written.
    """
    config, model, run = plan.config, plan.model, Run(plan.config.out_dir)
    rank, processes = world()
    keeps = rank == 0 and not config.eval_only
    engine = engine or open_engine(model, config)
    if plan.resume:
        weights, state, progress = run.load_last(model)
        engine.load(weights)
        engine.load_state(state)
        if keeps:
            run.write_settings(config, identity(plan.data))
    else:
        progress = Progress()
        engine.load(plan.weights())
        if keeps:
            run.begin(config, model, plan.data.tokenizer, identity(plan.data))
    weights = state = None  # the engine has its own copies

    windows = Windows(plan.data.train, config.block_size, config.seed, model.vocab_size)
    splits = {
        split: evaluation_batches(
            plan.data.tokens(split), config.block_size, config.batch_size, config.eval_iters, model.vocab_size
        )
        for split in ("train", "val")
    }
    per_step = config.batch_size * config.gradient_accumulation_steps  # windows, over all processes
    mine = range(rank * per_step // processes, (rank + 1) * per_step // processes, config.batch_size)
    mine_end = (rank + 1) * per_step // processes
    flops_per_step = flops_per_token(model) * plan.tokens_per_step
    peak = engine.peak_flops()
    saved_step = None

    def save(best: bool = False) -> None:
        nonlocal saved_step
        if not keeps or not (best or saved_step != progress.step):
            return
        weights = engine.params()
        if best:
            run.save_best(model, weights, progress)
        if saved_step != progress.step:
            run.save_last(model, weights, engine.state(), progress)
            saved_step = progress.step

    try:
        while True:
            step = progress.step
            lr = learning_rate(config, step)

            # evaluate, and keep what is worth keeping
            if step % config.eval_interval == 0 or step >= config.max_iters:
                losses = {split: evaluate(engine, batches) for split, batches in splits.items()}
                best = losses["val"] < progress.best_val_loss
                progress = replace(progress, val_loss=losses["val"])
                if best:
                    progress = replace(progress, best_step=step, best_val_loss=losses["val"])
                ends = step >= config.max_iters or is_enough(config, progress)
                if best or config.always_save_checkpoint or ends:
                    save(best)
                yield Evaluation(step, losses["train"], losses["val"], best, lr)
                if ends or config.eval_only:
                    return
                peak = max(peak, engine.peak_flops())  # a busy machine shows less of it at times

            # one step: the gradient of the global batch, in micro-batches
            start = time.perf_counter()
            for first in mine:
                count = min(config.batch_size, mine_end - first)
                x, y = windows.batch(step * per_step + first, count)
                engine.accumulate(x, y, more=first + count < mine_end)
            loss, grad_norm = engine.update(lr)
            if not math.isfinite(loss):
                kept = "nothing was saved" if saved_step is None else f"last/ has step {saved_step}"
                raise UserError(
                    f"the loss of step {step} is {loss}: the training diverged ({kept}); lower --learning_rate"
                )
            seconds = time.perf_counter() - start
            progress = replace(progress, step=step + 1)

            # everything that follows is just diagnostics
            speed = plan.tokens_per_step / seconds
            yield Step(step, loss, lr, grad_norm, seconds, speed, flops_per_step / seconds / peak)
    except GeneratorExit:  # the consumer has had enough
        save()
        raise


def learning_rate(config: TrainConfig, step: int) -> float:
    """nanoGPT's schedule: linear warm-up, a cosine down to min_lr at lr_decay_iters, then min_lr."""
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
    """Whether val has not improved for `patience` evaluations. It needs no state that a resume could lose."""
    return config.patience is not None and progress.step - progress.best_step >= config.patience * config.eval_interval


def whole_loss(engine: Engine, plan: Plan) -> tuple[float, int]:
    """(loss over all of the val split, or as much of its beginning as AT_MOST tokens; the tokens that were read)."""
    config, tokens = plan.config, plan.data.val[: AT_MOST + 1]
    batches = evaluation_batches(tokens, config.block_size, config.batch_size, len(tokens), plan.model.vocab_size)
    return evaluate(engine, batches), len(tokens)


def evaluate(engine: Engine, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean loss per target over all batches, nats."""
    counts = [int((y != -1).sum()) for _, y in batches]
    return sum(engine.loss(x, y) * n for (x, y), n in zip(batches, counts, strict=True)) / sum(counts)
