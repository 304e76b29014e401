"""What a run costs: seconds, measured on a few of its own steps, and bytes, counted by part.

    costs = measure(engine, model, config)          # Costs(step=0.012, window=0.0003): seconds
    seconds = run_seconds(config, model, data, costs)
    parts = memory_parts(model, config, "c")        # {"weights": ..., "activations": ...}: bytes

A measurement leaves the engine as it was: the rate is 0, and the optimizer's state is put back. What files are
written is counted at a guess; that a machine is shared with other programs shows in the seconds.
"""

import functools
import mmap
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sampan.config import TrainConfig
from sampan.data.meta import Data
from sampan.engine.open import has_gpu, load_engine, memory_of, pick_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.evaluation.losses import final_windows
from sampan.machine import world
from sampan.messages import _
from sampan.model.count import count_parameters
from sampan.model.shape import ModelShape
from sampan.units import bytes_of, size_of

MEASURE_SECONDS = 0.4  # seconds that a measurement takes, at least three steps
GPU_DRIVER = 600_000_000  # bytes of a GPU that are gone before a model comes
AROUND = 3e-4  # seconds of a step that read its batch and tell of it
LOADED_LATER = 25_000_000  # bytes: what draws the picture, and what samples
DISK = 1e9  # bytes a second that a checkpoint is written with, about, on an SSD


class Costs(NamedTuple):
    step: float  # seconds of an optimizer step, all its micro-batches and the update
    window: float  # seconds of one window in an evaluation


def micro_batch(config: TrainConfig) -> int:
    """Return how many sequences one process computes at a time."""
    return min(config.batch_size, config.windows_per_step // world()[1])


def time_step(engine: Engine, model: ModelShape, config: TrainConfig, seconds: float = MEASURE_SECONDS) -> Costs:
    """Return medians over real steps on random tokens. Under torchrun all processes call this together."""
    draw = np.random.default_rng(0)
    windows = micro_batch(config)
    x = draw.integers(0, model.vocab_size, (windows, config.block_size), dtype=np.int32)
    before = engine.state()
    rounds = max(1, config.windows_per_step // (windows * world()[1]))
    passes: list[float] = []
    updates: list[float] = []
    engine.accumulate(x, x)  # the first allocates and warms up
    engine.update(0.0)
    end = time.perf_counter() + seconds
    while len(passes) < 3 or (time.perf_counter() < end and world()[1] == 1):
        start = time.perf_counter()
        engine.accumulate(x, x)
        between = time.perf_counter()
        engine.update(0.0)  # also waits for what a GPU is still computing
        passes.append(between - start)
        updates.append(time.perf_counter() - between)
    start = time.perf_counter()
    engine.loss(x, x)
    window = (time.perf_counter() - start) / windows
    engine.load_state(before)
    if config.device.startswith("cuda"):  # its passes end inside of `update`
        passes, updates = [p + u for p, u in zip(passes, updates, strict=True)], [0.0]
    return Costs(rounds * statistics.median(passes) + statistics.median(updates) + AROUND, window)


def evaluation_windows(config: TrainConfig, data: Data) -> int:
    """Return how many windows of both splits an evaluation reads."""
    most = config.eval_iters * config.batch_size
    return sum(min(most, data.meta.tokens(split) // config.block_size) for split in ("train", "val"))


def run_seconds(config: TrainConfig, model: ModelShape, data: Data, costs: Costs, start_step: int = 0) -> float:
    """Return the seconds from the first step to the loss over the val split."""
    steps = max(0, config.max_iters - start_step)
    evaluations = -(-steps // config.eval_interval) + 1
    evaluation = evaluation_windows(config, data) * costs.window + save_seconds(model)
    if config.eval_only:
        return evaluation_windows(config, data) * costs.window
    return steps * costs.step + evaluations * evaluation + final_windows(config, data) * costs.window


def save_seconds(model: ModelShape) -> float:
    """Return the seconds that a checkpoint takes: weights and optimizer, synced to disk."""
    return 16 * count_parameters(model) / DISK + 0.02


# ---- memory ----


def memory_parts(model: ModelShape, config: TrainConfig, engine: str) -> dict[str, int]:
    """Return the bytes of training by part (weights, gradients, optimizer, activations), for one process.

    `engine` is "c" or "torch"; each counts its own.
    """
    parts = memory_of(engine)(model, config, config, micro_batch(config), config.block_size)
    return {name: parts[name] for name in ("weights", "gradients", "optimizer", "activations")}


def total_memory(model: ModelShape, config: TrainConfig) -> int:
    """Return the bytes at the peak: the parts, the copies made for a save, and the program.

    With a GPU, count its memory: the parts and the driver.
    """
    parts = memory_parts(model, config, pick_engine(config))
    if has_gpu(config.device):
        return sum(parts.values()) + GPU_DRIVER
    return sum(parts.values()) + parts["weights"] + parts["optimizer"] + program_memory(config) + LOADED_LATER


def program_memory(config: TrainConfig) -> int:
    """Return the resident memory (bytes) of Python and the engine's libraries, sampled once, before any model exists."""
    return program_memory_of(load_engine(config))


@functools.cache
def program_memory_of(engine: type) -> int:
    return resident_memory()


def resident_memory() -> int:
    """Return the bytes of RAM that this process has now; 0 if the system is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * mmap.PAGESIZE if sys.platform == "linux" else 0


def fit_memory(config: TrainConfig, model: ModelShape) -> tuple[TrainConfig, str]:
    """Return the settings with the largest micro-batch that fits into `fit`, and why. Raise UserError if none does.

    The global batch stays; activations are recomputed only if nothing else fits.
    """
    try:
        limit = bytes_of(str(config.fit))
    except (ValueError, OverflowError):
        raise UserError(_("fit={fit!r}: expected a size such as 2GB or 750MB", fit=config.fit)) from None
    windows = config.windows_per_step
    for again in dict.fromkeys((config.gradient_checkpointing, True)):
        for count in range(micro_batch(config), 0, -1):
            if windows % (count * world()[1]):
                continue
            changed = replace(
                config, batch_size=count, gradient_accumulation_steps=windows // count, gradient_checkpointing=again
            )
            need = total_memory(model, changed)
            if need <= limit:
                return changed, _("the largest micro-batch that fits into {size_of}", size_of=size_of(limit))
    raise UserError(
        _(
            "fit={fit}: one window at a time needs {size_of}; choose a smaller model or block_size",
            fit=config.fit,
            size_of=size_of(need),
        )
    )
