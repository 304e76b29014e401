"""The one training loop: a generator that yields a record for each step and each evaluation.

    for record in train(make_plan("my-novel.txt", {})):
        print(record)

`learn` is the loop; it reads from top to bottom in the order in which things happen. `train` calls it with the text
and the folder of a plan, library.py with anybody's data and no folder. Whoever consumes the records shows or keeps
them (report.py); stopping to consume ends the run after a whole step, saved, ready to be resumed.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from sampan.checkpoint.run import Progress, Run
from sampan.config import ModelConfig, TrainConfig
from sampan.data.examples import Batch, micro_batches
from sampan.data.windows import EvaluationBatches, Windows
from sampan.engine.open import open_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.evaluation.losses import evaluate
from sampan.machine import world
from sampan.model.count import flops_per_token
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.plan import Plan
from sampan.training.schedule import is_enough, learning_rate

PEAK_EVERY = 60.0  # seconds between measurements of the machine's peak: each takes the time of some steps
MOST_REFUSED = 20  # steps in a row that --on_nan skip passes over


@dataclass(frozen=True)
class Step:
    """One optimizer step has been taken."""

    step: int  # counted from 0, as nanoGPT's iter
    loss: float  # mean over the global batch, nats per token, before the step
    lr: float
    grad_norm: float  # before clipping; where it or the loss is not finite, the step has changed nothing
    seconds: float
    tokens_per_second: float
    mfu: float  # share of the peak that the engine measured on this machine, 0 to 1


@dataclass(frozen=True)
class Evaluation:
    """Both losses were measured on fixed windows, after `step` optimizer steps."""

    step: int
    train_loss: float  # nan where the training data can be read only once
    val_loss: float
    best: bool  # the lowest val_loss so far
    lr: float


def train(plan: Plan, engine: Engine | None = None) -> Generator[Step | Evaluation, None, None]:
    """Run a plan. The run's folder is written at evaluations, at the end and when the consumer stops early.

    Raises UserError where the plan cannot run here, another process trains in its folder, the folder cannot be
    written, or a loss, a gradient or a weight is not finite.
    """
    run, keeps = Run(plan.config.out_dir), world()[0] == 0 and not plan.config.eval_only
    with run.locked() if keeps else contextlib.nullcontext():
        yield from train_locked(plan, engine or open_engine(plan.model, plan.config), run, keeps)


def train_locked(plan: Plan, engine: Engine, run: Run, keeps: bool) -> Generator[Step | Evaluation, None, None]:
    """`train`, with the folder to itself. `keeps`: this process writes it."""
    config, model = plan.config, plan.model
    if plan.resume:
        weights, state, progress = run.load_last(model)
        engine.load(weights)
        engine.load_state(state)
        if keeps:
            run.write_settings(config, plan.data.record())
    else:
        progress = Progress()
        engine.load(plan.weights())
    weights = state = None  # the engine has its own copies

    windows = Windows(plan.data.train, config.block_size, config.seed, model.vocab_size)
    splits = {
        split: EvaluationBatches(
            plan.data.tokens(split), config.block_size, config.batch_size, config.eval_iters, model.vocab_size
        )
        for split in ("train", "val")
    }
    steps = micro_batches(windows, config, progress.step)
    keep = RunWriter(run, plan.data.tokenizer, plan.data.record(), begun=plan.resume) if keeps else None
    yield from learn(engine, model, config, steps, splits, progress, keep)


@dataclass(frozen=True)
class RunWriter:
    """The folder that a loop writes, and what is in it that a loop does not know."""

    run: Run
    tokenizer: Tokenizer | None
    data: dict
    begun: bool  # the run is there, and goes on


def learn(
    engine: Engine,
    model: ModelConfig,
    config: TrainConfig,
    steps: Iterator[list[Batch]],
    splits: dict[str, Iterable[Batch]],
    progress: Progress,
    keep: RunWriter | None,
) -> Generator[Step | Evaluation, None, None]:
    """The loop. It goes on from `progress` until max_iters, or until `steps` ends, which gives each step's micro-batches.

    `splits` are what is evaluated on, "val" and where it can be had "train"; {} evaluates nothing. `keep` is None where
    nothing is written.
    """
    rank, processes = world()
    flops = flops_per_token(model)
    peak, peak_again = 0.0, 0.0  # FLOP/s; when to measure it again
    saved = progress if keep and keep.begun else None  # what last/ has

    def save(best: bool = False) -> None:
        nonlocal saved
        if keep is None or not (best or saved != progress):
            return
        weights = engine.params()
        run = keep.run
        begins = run.begin(config, model, keep.tokenizer, keep.data) if saved is None else contextlib.nullcontext(run)
        with begins as place:
            if best:
                place.save_best(model, weights, progress)
            if saved != progress:
                place.save_last(model, weights, engine.state(), progress)
        saved = progress

    try:
        while True:
            step = progress.step
            lr = learning_rate(config, step)
            start = time.perf_counter()
            batch = next(steps, None) if step < config.max_iters else None
            ends = batch is None
            waited = time.perf_counter() - start

            # evaluate, and keep what is worth keeping
            if splits and (step % config.eval_interval == 0 or ends):
                losses = {split: evaluate(engine, batches) for split, batches in splits.items()}
                if not all(map(math.isfinite, losses.values())):
                    found = ", ".join(f"{split} {loss}" for split, loss in losses.items())
                    raise UserError(f"the losses after step {step} are {found}: {diverged(saved)}")
                # a resume begins with the evaluation that it was saved at, and finds the same
                best = losses["val"] < progress.best_val_loss or step == progress.best_step
                progress = replace(progress, val_loss=losses["val"])
                if best:
                    progress = replace(progress, best_step=step, best_val_loss=losses["val"])
                ends = ends or is_enough(config, progress)
                if best or config.always_save_checkpoint or ends:
                    save(best)
                yield Evaluation(step, losses.get("train", math.nan), losses["val"], best, lr)
            if ends or config.eval_only:
                return
            if time.perf_counter() >= peak_again:
                peak = max(peak, engine.peak_flops())  # a busy machine shows less of it at times
                peak_again = time.perf_counter() + PEAK_EVERY

            # one step: the gradient of the global batch, in micro-batches
            start = time.perf_counter()
            for number, (x, y) in enumerate(batch, 1):
                engine.accumulate(x, y, more=number < len(batch))
            loss, grad_norm, refused = engine.update(lr)
            progress = replace(progress, step=step + 1, refused=progress.refused + 1 if refused else 0)
            if refused and (config.on_nan == "stop" or progress.refused >= MOST_REFUSED):
                row = f", {progress.refused} such steps in a row" if progress.refused > 1 else ""
                raise UserError(f"step {step}: {refused} (loss {loss}{row}): {diverged(saved)}")
            if refused and rank == 0:
                warnings.warn(f"step {step} is skipped: {refused} (loss {loss})", stacklevel=2)
            seconds = waited + time.perf_counter() - start

            # everything that follows is just diagnostics
            speed = sum(x.size for x, _ in batch) * processes / seconds
            yield Step(step, loss, lr, grad_norm, seconds, speed, speed * flops / peak)
    except GeneratorExit:  # the consumer has had enough
        save()
        raise


def diverged(saved: Progress | None) -> str:
    kept = "nothing was saved" if saved is None else f"last/ has step {saved.step}, from before"
    return f"the training diverged ({kept}); lower --learning_rate, or pass over single steps with --on_nan skip"
