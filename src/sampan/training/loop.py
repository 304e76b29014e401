"""The training loop: a generator that yields a record for each step, each evaluation and each sample.

    for record in train(make_plan("my-novel.txt", {})):
        print(record)

`learn` is the loop; it reads from top to bottom in the order in which things happen. `train` calls it with the text
and the folder of a plan, api.py with any data and no folder. Consumers of the records show or keep them (report/).
Close the generator to stop after the current step: the run is saved and can be resumed.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sampan.checkpoint.run import Progress
from sampan.checkpoint.save import WritableRun
from sampan.config import SampleConfig, TrainConfig
from sampan.data.examples import Batch, micro_batches
from sampan.data.windows import EvaluationBatches, Windows
from sampan.engine.open import open_engine, peak_memory
from sampan.engine.protocol import Engine, Update
from sampan.errors import UserError
from sampan.evaluation.losses import evaluate
from sampan.machine import torchrun_job, world
from sampan.messages import _
from sampan.model.count import flops_per_token
from sampan.sampling.write import default_prompt, write
from sampan.training.plan import Plan
from sampan.training.schedule import is_enough, learning_rate
from sampan.training.writer import RunWriter

MOST_REFUSED = 20  # bad steps in a row that --on_nan skip accepts
SAMPLE_TOKENS = 100


@dataclass(frozen=True)
class Step:
    """Report one optimizer step."""

    step: int  # counted from 0, as nanoGPT's iter
    loss: float  # mean over the global batch, nats per token, before the step
    lr: float
    grad_norm: float  # before clipping; if it or the loss is NaN or infinite, the step has changed nothing
    seconds: float
    tokens_per_second: float
    mfu: float  # share of the peak: what the engine measured on this machine, or what a step reached if that is more
    epoch: float = 0.0  # passes over the training data after this step; 0 for data of unknown length


@dataclass(frozen=True)
class Evaluation:
    """Report both losses on fixed windows, after `step` optimizer steps."""

    step: int
    train_loss: float  # NaN where the training data can be read only once
    val_loss: float
    best: bool  # the lowest val_loss so far
    lr: float  # of the next step
    epoch: float = 0.0  # passes over the training data
    saved: bool = False  # whether a checkpoint was written
    peak_memory: int = field(default=0, compare=False)  # bytes so far, of this process or of its GPU; 0 where unknown


@dataclass(frozen=True)
class Sample:
    """Show what the model writes after `step` optimizer steps."""

    step: int
    text: str


@dataclass(frozen=True)
class Final:
    """Report the loss of the best weights on the val split, once, at the end."""

    step: int  # of the run
    best_step: int  # of the weights
    final_loss: float  # nats per token
    tokens: int  # of the val split that were read


Record = Step | Evaluation | Sample | Final
Records = Generator[Record, None, None]
Learning = Generator[Step | Evaluation, None, None]


def train(plan: Plan, engine: Engine | None = None) -> Records:
    """Run a plan. Evaluations, the end and an early stop by the consumer write the run's folder.

    Raise UserError if the plan cannot run here, another process trains in the folder, the folder cannot be written, or
    a loss, a gradient or a weight is NaN or infinite.
    """
    config, model, run = plan.config, plan.model, WritableRun(plan.config.out_dir)
    writes = world()[0] == 0 and not config.eval_only
    with run.locked() if writes else contextlib.nullcontext():
        engine = engine or open_engine(model, config, config)
        progress = load_start(plan, run, engine)
        if writes and plan.resume:
            run.write_settings(config, plan.data.record(), torchrun_job())
        saved = progress if plan.resume else None
        about, reasons = plan.data.record(), plan.reasons
        writer = RunWriter(run, engine, config, plan.data.tokenizer, about, reasons, saved)
        windows = Windows(plan.data.train, config.block_size, config.seed, model.vocab_size)
        steps = micro_batches(windows, config, progress.step)
        splits = {split: evaluation_batches(plan, split) for split in ("train", "val")}
        epoch = plan.data.meta.train_tokens / config.tokens_per_step
        keeps = writer if writes else None
        with contextlib.closing(
            learn(engine, config, steps, splits, flops_per_token(model), epoch, progress, keeps)
        ) as learnt:
            for record in learnt:
                yield record
                if writes and isinstance(record, Evaluation) and wants_sample(config, record.step):
                    yield Sample(record.step, sample_text(plan, engine))


def wants_sample(config: TrainConfig, step: int) -> bool:
    """Return whether an evaluation is the first at or after a multiple of sample_interval, before the end."""
    every, before = config.sample_interval, max(0, step - config.eval_interval)
    return every is not None and step < config.max_iters and step // every > before // every


def sample_text(plan: Plan, engine: Engine) -> str:
    """Return what the model writes now, without a prompt."""
    settings = SampleConfig(max_new_tokens=SAMPLE_TOKENS, seed=plan.config.seed)
    tokenizer = plan.data.tokenizer
    prompt = default_prompt(tokenizer, plan.data.meta.documents)
    return "".join(text for _sample, text in write(engine, plan.model, tokenizer, prompt, settings))


def load_start(plan: Plan, run: WritableRun, engine: Engine) -> Progress:
    """Load into the engine what the plan starts from: the run's last save, or its initial weights."""
    if plan.resume and engine.config.edited and not plan.model.edited:
        raise UserError(_("engine/torch/model.py was edited after the run began: undo the edit, or start a new run"))
    if not plan.resume:
        engine.load(plan.weights())
        return Progress()
    weights, state, progress = run.load_last(plan.model)
    engine.load(weights)
    engine.load_state(state)
    return progress


def evaluation_batches(plan: Plan, split: str) -> EvaluationBatches:
    c = plan.config
    return EvaluationBatches(plan.data.tokens(split), c.block_size, c.batch_size, c.eval_iters, plan.model.vocab_size)


def learn(
    engine: Engine,
    config: TrainConfig,
    steps: Iterator[list[Batch]],
    splits: Mapping[str, Iterable[Batch]],
    flops: float = 0.0,
    epoch: float = math.inf,
    progress: Progress = Progress(),  # noqa: B008  (it is frozen)
    writer: RunWriter | None = None,
) -> Learning:
    """Train from `progress` to max_iters, or to the end of `steps`, which yields the micro-batches of each step.

    `splits` are evaluated on: "val" and, where it can be read again, "train"; {} evaluates nothing. `flops` per token
    give the share of the machine's peak, `epoch` is its steps. Without a `writer` nothing is saved. Raise UserError for
    NaN or infinity.
    """
    processes, peak = world()[1], engine.peak_flops()
    try:
        while True:
            step, lr = progress.step, learning_rate(config, progress.step)
            start = time.perf_counter()
            batch = next(steps, None) if step < config.max_iters else None
            ends = batch is None
            waited = time.perf_counter() - start

            # evaluate, and keep what is worth keeping
            if splits and (step % config.eval_interval == 0 or ends or config.eval_only):
                losses = {split: evaluate(engine, batches) for split, batches in splits.items()}
                progress = evaluated(progress, losses, writer)
                best = progress.best_step == step
                ends = ends or is_enough(config, progress)
                saved = writer is not None and writer.keep(progress, best, ends)
                both, memory = (losses.get("train", math.nan), losses["val"]), peak_memory(config)
                yield Evaluation(step, *both, best, lr, step / epoch, saved, memory)
            if batch is None or ends or config.eval_only:
                return

            # one step: the gradient of the global batch, in micro-batches
            start = time.perf_counter()
            for number, (x, y) in enumerate(batch, 1):
                engine.accumulate(x, y, more=number < len(batch))
            update = engine.update(lr)
            progress = stepped(progress, update, config, writer)
            seconds = waited + time.perf_counter() - start

            # everything that follows is just diagnostics
            speed = sum(x.size for x, y in batch) * processes / seconds
            peak = max(peak, speed * flops)  # which was measured too low, if the machine was busy
            yield Step(
                step, update.loss, lr, update.grad_norm, seconds, speed, speed * flops / peak, (step + 1) / epoch
            )
    except GeneratorExit:  # the consumer stops the run
        if writer:
            writer.save(progress)
        raise


def evaluated(progress: Progress, losses: dict[str, float], writer: RunWriter | None) -> Progress:
    """Return the progress after an evaluation. Raise UserError if a loss is NaN or infinite."""
    if not all(map(math.isfinite, losses.values())):
        found = ", ".join(f"{split} {loss}" for split, loss in losses.items())
        raise diverged(_("losses after step {step}: {found}", step=progress.step, found=found), writer)
    # a resume begins with the evaluation that it was saved at, and finds the same best
    if losses["val"] < progress.best_val_loss or progress.step == progress.best_step:
        progress = replace(progress, best_step=progress.step, best_val_loss=losses["val"])
    return replace(progress, val_loss=losses["val"], val_step=progress.step)


def stepped(progress: Progress, update: Update, config: TrainConfig, writer: RunWriter | None) -> Progress:
    """Return the progress after a step. For NaN or infinity, raise UserError or, with --on_nan skip, warn."""
    after = replace(progress, step=progress.step + 1, refused=progress.refused + 1 if update.refused else 0)
    if not update.refused:
        return after
    about = dict(step=progress.step, reason=update.refused, loss=update.loss, count=after.refused)
    if after.refused >= MOST_REFUSED:
        raise diverged(_("step {step}: {reason} (loss {loss}), {count} bad steps in a row", **about), writer)
    if config.on_nan == "stop":
        raise diverged(_("step {step}: {reason} (loss {loss})", **about), writer)
    if world()[0] == 0:
        warnings.warn(_("skipped step {step}: {reason} (loss {loss})", **about), stacklevel=2)
    return after


def diverged(what: str, writer: RunWriter | None) -> UserError:
    if writer is None or writer.saved is None:
        advice = _("Training diverged, nothing was saved: lower --learning_rate, or skip bad steps with --on_nan skip.")
        return UserError(f"{what}. {advice}")
    advice = _(
        "Training diverged (the last good checkpoint is step {step}): lower --learning_rate, or skip bad steps with "
        "--on_nan skip."
    )
    return UserError(f"{what}. {advice.format(step=writer.saved.step)}")
