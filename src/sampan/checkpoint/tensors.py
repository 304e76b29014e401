"""safetensors files: read one tensor at a time, written whole or not at all.

    tensors = Tensors(Path("out/shakespeare")); tensors["transformer.wte.weight"]

No pickle is read or written.
"""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from sampan.errors import UserError
from sampan.files import read_json, sync_folder
from sampan.messages import _

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class Tensors(Mapping):
    """The tensors of a model folder by name, read one at a time; bfloat16 and float16 as float32."""

    def __init__(self, folder: Path):
        index, single = folder / "model.safetensors.index.json", folder / WEIGHTS
        if single.is_file():
            paths = [single]
        elif index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(v, str) and Path(v).name == v for v in shards.values()
            ):
                raise UserError(_("{offset}: not an index of shards in this folder").format(offset=index))
            paths = [folder / name for name in sorted(set(shards.values()))]
        else:
            raise UserError(
                _("{folder} has no {weights}; it is not a model's folder (pickled weights are never read)").format(
                    folder=folder, weights=WEIGHTS
                )
            )
        self.opened = contextlib.ExitStack()  # one reading: a run that saves meanwhile does not mix two steps into it
        self.where = {}
        for path in paths:
            file = self.opened.enter_context(open_safetensors(path))
            self.where.update(dict.fromkeys(file.keys(), (path, file)))

    def __getitem__(self, name: str) -> np.ndarray:
        path, file = self.where[name]
        kind = file.get_slice(name).get_dtype()
        if kind == "BF16":
            return read_bfloat16(path, name)
        if kind not in ("F32", "F16", "F64"):
            raise UserError(
                _("{path}: tensor {name} is of type {kind}; only float tensors are read").format(
                    path=path, name=reprlib.repr(name), kind=kind
                )
            )
        with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity
            return file.get_tensor(name).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


@contextlib.contextmanager
def open_safetensors(path: Path):
    try:
        file = safetensors.safe_open(path, "numpy")
    except FileNotFoundError:
        raise UserError(_("{path} is missing").format(path=path)) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:  # ValueError: no name of a file
        raise UserError(_("{path}: not a whole safetensors file ({error})").format(path=path, error=error)) from None
    with file as opened:
        yield opened


def read_bfloat16(path: Path, name: str) -> np.ndarray:
    """A bfloat16 tensor as float32, by its place in the file: NumPy has no such type. safe_open has checked the header."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            entry = json.loads(file.read(header_size))[name]
            (begin, end), shape = entry["data_offsets"], entry["shape"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                _("{path}: tensor {name} is described in an unusual way").format(path=path, name=reprlib.repr(name))
            ) from None
        file.seek(8 + header_size + begin)
        raw = np.frombuffer(file.read(end - begin), np.uint16)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def stage_safetensors(path: Path, tensors: dict[str, np.ndarray], note: dict) -> Path:
    """Write beside `path` and sync; `commit` puts it in place."""
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
    for beside in staged:
        os.replace(beside, beside.with_name(beside.name.removesuffix(".partial")))
    sync_folder(staged[0].parent)
