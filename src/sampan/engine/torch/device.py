"""Choose a device and a precision for PyTorch.

device = pick_device("auto"); dtype = pick_dtype("auto", device)
"""

import os

import torch

from sampan.errors import UserError
from sampan.messages import _

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """The device of a setting. Raises UserError for one that this machine or this build of PyTorch lacks."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(_("device={wanted}: expected auto, cpu, cuda, cuda:N or mps", wanted=wanted)) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(_("device={wanted}: expected auto, cpu, cuda, cuda:N or mps", wanted=wanted))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(_("device={wanted}: this PyTorch sees no CUDA GPU; use --device cpu", wanted=wanted))
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(
                _(
                    "device={wanted}: this machine has {device_count} GPU(s)",
                    wanted=wanted,
                    device_count=torch.cuda.device_count(),
                )
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(_("device={wanted}: this PyTorch sees no Apple GPU; use --device cpu", wanted=wanted))
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the precision that a GPU is fastest in, float32 elsewhere.

    bfloat16 where the hardware has it (PyTorch emulates it elsewhere, slowly), float16 on Volta and Turing, which have
    tensor cores for it (V100, T4), float32 on older ones, of which most compute float16 at a 64th of the rate.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32


def peak_gpu_memory() -> int:
    """Return the most bytes that tensors of this process have had on the current GPU so far."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else torch.mps.driver_allocated_memory()
