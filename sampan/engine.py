"""The protocol of an engine, and which engine serves this machine.

An engine owns the arithmetic of one model: weights, gradients, optimizer state and key-value caches. It does not
own initial weights, batches, the schedule, sampling, logging or files; those exist once, outside.

    engine = open_engine(model_config, settings)     # TrainConfig to train, SampleConfig to sample
    engine.load(weights)
    engine.accumulate(x, y); loss, grad_norm = engine.update(lr=1e-3)
    session = engine.session(batch_size=1); logits = session.feed(ids)

This file imports no engine until one is asked for, so the rest of the program runs where PyTorch is not installed.
"""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from .config import MachineConfig, ModelConfig
from .errors import UserError, install


class Update(NamedTuple):
    """What an optimizer step reports; both floats are over the whole global batch."""

    loss: float  # mean over the targets of all micro-batches since the last update, nats per token
    grad_norm: float  # of the mean gradient over all parameters, before clipping
    refused: str = ""  # why nothing was changed: "the gradient of wte.weight is not finite"; "" where all went well


class Session(Protocol):
    """Decoding with a key-value cache, for a batch of sequences of equal length."""

    position: int  # tokens fed so far; at most block_size

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Append ids, int32 (batch, tokens); the logits that follow the last of them, float32 (batch, vocab)."""


class Engine(Protocol):
    """One model on one machine. `x` and `y` are int32 (batch, tokens); a target of -1 is ignored."""

    description: str  # for the plan: "torch 2.13.0 on cpu, 2 threads, float32"

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take float32 arrays under the names and shapes of `model.parameters`."""

    def params(self) -> dict[str, np.ndarray]:
        """Copies of the weights, as `load` takes them."""

    def gradients(self) -> dict[str, np.ndarray]:
        """Copies of what `accumulate` has added up since the last update, as the gradient of the mean loss."""

    def accumulate(self, x: np.ndarray, y: np.ndarray, more: bool = False) -> None:
        """Forward and backward of one micro-batch; gradients add up. `more`: another follows before the update."""

    def update(self, lr: float) -> Update:
        """Average and clip the gradients, step the optimizer, and begin again from zero.

        Where the loss or the norm is not finite, weights and moments stay as they are: the step counts, and the
        update says why. An overflow that float16's loss scaler mends changes nothing either, and is no refusal.
        """

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        """Mean loss over the targets, without dropout; changes nothing."""

    def session(self, batch_size: int) -> Session:
        """A new, empty cache for `batch_size` sequences."""

    def state(self) -> dict[str, np.ndarray]:
        """The optimizer: arrays under `exp_avg.NAME`, `exp_avg_sq.NAME`, `step`, `applied_steps` and what else it needs.

        `applied_steps` are those updates that changed the weights; `step` counts all.
        """

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state` returned, of either engine."""

    def peak_flops(self) -> float:
        """What this machine's matrix product reaches, measured now: FLOP/s in this engine's precision."""


def engines_here() -> list[str]:
    """The engines that are installed, of "c" and "torch"."""
    from .c_engine import library_path

    return ["c"] * library_path().is_file() + ["torch"] * (importlib.util.find_spec("torch") is not None)


def pick_engine(settings: MachineConfig) -> str:
    """The engine of these settings, "c" or "torch". Raises UserError where it is not installed.

    torch where it alone can do what is asked or where there is a GPU; else the C engine.
    """
    here = engines_here()
    wanted = settings.engine
    if wanted == "auto":
        asked = (
            settings.device not in ("auto", "cpu") or settings.dtype == "float16" or settings.compile or world()[1] > 1
        )
        wanted = "torch" if asked or "c" not in here or ("torch" in here and has_gpu(settings.device)) else "c"
    if wanted in here:
        return wanted
    if not here:
        raise UserError(
            "no engine is installed: the C engine needs a C compiler when Sampan is installed (get one and install again); "
            f"or run {install('torch')}"
        )
    if wanted == "c":
        raise UserError(
            "the C engine was not built: install Sampan again where there is a C compiler, or use --engine torch"
        )
    raise UserError(f"this needs the torch engine: {install('torch')}")


def open_engine(model: ModelConfig, settings: MachineConfig) -> Engine:
    """An engine for a resolved `model`. Raises UserError where none can run, saying what to install."""
    return load_engine(settings)(model, settings)


def load_engine(settings: MachineConfig) -> type:
    """The class of these settings' engine, its libraries loaded."""
    if pick_engine(settings) == "c":
        from .c_engine import CEngine

        return CEngine
    from .torch_engine import TorchEngine

    return TorchEngine


def has_gpu(device: str = "auto") -> bool:
    """Whether this setting means a GPU; PyTorch, which takes a second to import, is asked only where one is likely."""
    if device != "auto":
        return device.startswith(("cuda", "mps"))
    is_likely = sys.platform in ("darwin", "win32") or any(
        map(os.path.exists, ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))
    )
    if not is_likely or "torch" not in engines_here():
        return False
    from .torch_engine import pick_device

    return pick_device("auto").type != "cpu"


# ---- processes and processors ----


def world() -> tuple[int, int]:
    """(rank, number of processes), as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any of torchrun's processes; they all call this together."""
    if world()[1] == 1:
        return flag
    from .torch_engine import any_process

    return any_process(flag)


def leave_processes() -> None:
    """The job is done: nothing that processes do together comes after."""
    if world()[1] > 1:
        from .torch_engine import leave_processes

        leave_processes()


@contextlib.contextmanager
def first_process_first(settings: MachineConfig):
    """Under torchrun, the body runs in process 0 before it runs in the others: what it prepares is there for them."""
    rank, processes = world()
    if processes == 1:
        yield
        return
    if "torch" not in engines_here():
        raise UserError(f"several processes need PyTorch: {install('torch')}")
    from .torch_engine import join_processes, tell_others, wait_for_all, wait_for_first

    join_processes(settings)
    if rank > 0:
        wait_for_first()
    yield
    if rank == 0:
        tell_others()
    wait_for_all()


def physical_cores() -> int:
    """Processors that this process may use, counting the two threads of one core once (Linux; else all)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)
