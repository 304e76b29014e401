"""Create files and folders that appear whole or not at all, and import optional libraries.

    with new_files(Path("model.gguf")) as staged: ...
    onnx = need_library("onnx", "onnx")

An existing folder is never overwritten.
"""

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sampan.errors import UserError, install
from sampan.messages import _


def need_library(library: str, extra: str) -> ModuleType:
    """Return an optional library. Raises UserError with the command that installs it."""
    found = find_library(library)
    if found is None:
        raise UserError(_("this needs {library}: {command}", library=library, command=install(extra)))
    return found


def find_library(library: str) -> ModuleType | None:
    """Return an optional library, or None if it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError:
        return None


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `folder` at the end. Raises UserError if that is in use."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(_("{folder} already exists; move it away, or choose another --out_dir", folder=folder))
    with beside(folder) as staged:
        yield staged
        os.replace(staged, folder)


@contextlib.contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, whose files are moved next to `out` at the end, `out` itself last."""
    with beside(out) as staged:
        yield staged / out.name
        for path in sorted(staged.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` and remove it at the end. Raises UserError if it cannot be written."""
    staged = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
    except OSError as error:
        raise UserError(_("{path}: cannot be written ({reason})", path=path, reason=error.strerror or error)) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
