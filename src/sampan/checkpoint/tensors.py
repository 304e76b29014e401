"""Read safetensors files one tensor at a time, and write them atomically.

    tensors = Tensors(Path("out/shakespeare")); tensors["transformer.wte.weight"]

Folders of other programs may have a pytorch_model.bin instead, which pickles.py reads; none is written.
"""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from sampan.errors import UserError
from sampan.files import read_json, sync_folder
from sampan.messages import _
from sampan.pickles import read_checkpoint

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
PICKLED = "pytorch_model.bin"


class Tensors(Mapping[str, np.ndarray]):
    """Map names to the tensors of a model folder, in one file or several shards.

    Every tensor comes as float32; the files may hold float16, bfloat16, float32 or float64. A tensor of a safetensors file
    is read when it is asked for. Where there is none, pytorch_model.bin is read at once, as plain data.
    """

    def __init__(self, folder: Path):
        """Open the folder's files. Raise UserError if they are missing or damaged, or the index of shards is invalid."""
        self.opened = contextlib.ExitStack()  # one reading: a run that saves meanwhile does not mix two steps into it
        self.where: dict[str, tuple[Path, safetensors.safe_open | None]] = {}
        self.unpickled: dict[str, np.ndarray] = {}
        for path in weight_files(folder):
            refuse_pointer(path)
            if path.suffix == ".bin":
                self.unpickled |= read_state_dict(path)
                self.where |= dict.fromkeys(self.unpickled, (path, None))
            else:
                file = self.opened.enter_context(open_safetensors(path))
                self.where |= dict.fromkeys(file.keys(), (path, file))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor as float32. Raise KeyError for an unknown name, UserError if the dtype is not a float."""
        path, file = self.where[name]
        kind = file.get_slice(name).get_dtype() if file else self.unpickled[name].dtype.name
        if kind == "BF16":
            return read_bfloat16(path, name)
        if kind not in ("F32", "F16", "F64", "float32", "float16", "float64"):
            raise UserError(
                _(
                    "{path}: tensor {name} is of type {kind}; only float tensors are read",
                    path=path,
                    name=reprlib.repr(name),
                    kind=kind,
                )
            )
        with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity
            return (file.get_tensor(name) if file else self.unpickled[name]).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a folder's weights: safetensors, or else pickles. Raise UserError if there are none."""
    for name in (WEIGHTS, PICKLED):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(v, str) and Path(v).name == v and Path(v).suffix == single.suffix for v in shards.values()
            ):
                raise UserError(_("{offset}: not an index of shards in this folder", offset=index))
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise UserError(
        _(
            "{folder} has neither {weights} nor {pickled}; it is not a model's folder",
            folder=folder,
            weights=WEIGHTS,
            pickled=PICKLED,
        )
    )


def refuse_pointer(path: Path) -> None:
    """Raise UserError if a file is what Git leaves in place of a large one: a clone without Git LFS has only pointers."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(
                _("{path} is a pointer of Git LFS, not the file itself: run git lfs pull in its folder", path=path)
            )


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a pytorch_model.bin. Raise UserError if it is damaged or holds anything else."""
    tensors = read_checkpoint(path)
    if not isinstance(tensors, dict) or not all(isinstance(v, np.ndarray) for v in tensors.values()):
        raise UserError(_("{path}: not the weights of a model, which are tensors by name", path=path))
    return {str(name): tensor for name, tensor in tensors.items()}


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[safetensors.safe_open]:
    """Open a safetensors file as NumPy arrays for a `with` block. Raise UserError if it is missing or damaged."""
    try:
        file = safetensors.safe_open(path, "numpy")
    except FileNotFoundError:
        raise UserError(_("{path} is missing", path=path)) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:  # ValueError: no name of a file
        raise UserError(_("{path}: not a whole safetensors file ({error})", path=path, error=error)) from None
    with file as opened:
        yield opened


def read_bfloat16(path: Path, name: str) -> np.ndarray:
    """Return a bfloat16 tensor as float32.

    NumPy has no bfloat16, so the bytes are read from the file; `open_safetensors` must have checked its header. Raise
    UserError if the header describes the tensor in an unusual way.
    """
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            entry = json.loads(file.read(header_size))[name]
            (begin, end), shape = entry["data_offsets"], entry["shape"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                _("{path}: tensor {name} is described in an unusual way", path=path, name=reprlib.repr(name))
            ) from None
        file.seek(8 + header_size + begin)
        raw = np.frombuffer(file.read(end - begin), np.uint16)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def stage_safetensors(path: Path, tensors: dict[str, np.ndarray], note: dict[str, Any]) -> Path:
    """Write tensors beside `path`, sync, and return that file for `commit` to rename; `note` goes into the header as JSON.

    Raise OSError or SafetensorError if it cannot be written; then no partial file is left.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        # transformers asks for "format"
        safetensors.numpy.save_file(tensors, beside, metadata={"format": "pt", "sampan": json.dumps(note)})
        beside.chmod(0o644)  # the library makes it readable to its owner alone
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def commit(*staged: Path) -> None:
    """Rename staged files, in this order, to their final names, and sync their folder. Raise OSError if that fails."""
    for beside in staged:
        os.replace(beside, beside.with_name(beside.name.removesuffix(".partial")))
    sync_folder(staged[0].parent)
