"""Which engine serves this machine, and how it is opened.

An engine owns the arithmetic of one model: weights, gradients, optimizer state and key-value caches. It does not
own initial weights, batches, the schedule, sampling, logging or files; those exist once, outside.

    engine = open_engine(shape, MachineConfig(), OptimizerSettings())     # without an optimizer: to sample, not to train
    engine.load(weights)
    engine.accumulate(x, y); loss, grad_norm, refused = engine.update(lr=1e-3)
    session = engine.session(slots=1); logits = session.feed(ids)

This file imports no engine until one is asked for, so the rest of the program runs where PyTorch is not installed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sampan.config import MachineConfig, OptimizerSettings
from sampan.engine.protocol import Engine
from sampan.errors import UserError, install
from sampan.machine import world
from sampan.messages import _
from sampan.model.shape import ModelShape


def engines_here() -> list[str]:
    """The engines that are installed, of "c" and "torch"."""
    from sampan.engine.c import library_path

    return ["c"] * library_path().is_file() + ["torch"] * (importlib.util.find_spec("torch") is not None)


def pick_engine(machine: MachineConfig) -> str:
    """Return the engine of these settings, "c" or "torch". Raises UserError where it is not installed.

    torch where it alone can do what is asked or where there is a GPU; else the C engine.
    """
    here = engines_here()
    wanted = machine.engine
    if wanted == "auto":
        asked = machine.device not in ("auto", "cpu") or machine.dtype == "float16" or machine.compile or world()[1] > 1
        wanted = "torch" if asked or "c" not in here or ("torch" in here and has_gpu(machine.device)) else "c"
    if wanted in here:
        return wanted
    if not here:
        raise UserError(
            _(
                "no engine is installed: the C engine needs a C compiler when Sampan is installed (get one and "
                "install again); or run {command}",
                command=install("torch"),
            )
        )
    if wanted == "c":
        raise UserError(
            _("the C engine was not built: install Sampan again where there is a C compiler, or use --engine torch")
        )
    raise UserError(_("this needs the torch engine: {command}", command=install("torch")))


def open_engine(shape: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings | None = None) -> Engine:
    """Return an engine for a model, which trains if it is given an optimizer.

    Raises UserError where none can run, saying what to install. A TrainConfig is both machine and optimizer.
    """
    if optimizer is not None and optimizer.document_mask:
        end = optimizer.end_of_text
        if end is None or end >= shape.vocab_size:
            raise UserError(
                _(
                    "document_mask needs end_of_text, the id of the token at which a document begins; it is {end}",
                    end=end,
                )
            )
    if shape.edited and machine.engine == "c":
        raise UserError(_("the model was trained with an edited engine/torch/model.py: use --engine torch"))
    return load_engine(replace(machine, engine="torch") if shape.edited else machine)(shape, machine, optimizer)


def load_engine(machine: MachineConfig) -> type:
    """Return the class of these settings' engine, its libraries loaded."""
    if pick_engine(machine) == "c":
        from sampan.engine.c import CEngine

        return CEngine
    from sampan.engine.torch.engine import TorchEngine

    return TorchEngine


def memory_of(engine: str) -> Callable[..., dict[str, int]]:
    """Return the function with which the engine "c" or "torch" counts its memory, by part; neither loads PyTorch."""
    if engine == "c":
        from sampan.engine.c import memory

        return memory
    from sampan.engine.torch.memory import memory as torch_memory

    return torch_memory


def peak_memory(machine: MachineConfig) -> int:
    """Return the most memory in bytes that this process has had so far, of the GPU that it uses or else RAM; 0 on Windows."""
    if pick_engine(machine) == "torch" and has_gpu(machine.device):
        from sampan.engine.torch.device import peak_gpu_memory

        return peak_gpu_memory()
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def has_gpu(device: str = "auto") -> bool:
    """Whether this setting means a GPU; PyTorch, which takes a second to import, is asked only where one is likely."""
    if device != "auto":
        return device.startswith(("cuda", "mps"))
    is_likely = sys.platform in ("darwin", "win32") or any(
        map(os.path.exists, ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))
    )
    if not is_likely or "torch" not in engines_here():
        return False
    from sampan.engine.torch.device import pick_device

    return pick_device("auto").type != "cpu"


CUDA_WHEELS = "https://download.pytorch.org/whl/cu126"


def unused_gpu(machine: MachineConfig) -> str | None:
    """Return the command that lets an NVIDIA GPU be used which is here, but not for PyTorch; None if there is none."""
    if machine.device != "auto" or machine.engine == "c" or not nvidia_gpu_here() or has_gpu():
        return None
    return f"pip install --force-reinstall torch --index-url {CUDA_WHEELS}"


def nvidia_gpu_here() -> bool:
    """Return whether the driver knows a GPU: it lists each on Linux, and its program does elsewhere."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return subprocess.run([program, "-L"], capture_output=True, timeout=10).stdout.startswith(b"GPU")
    except (OSError, subprocess.SubprocessError):
        return False
