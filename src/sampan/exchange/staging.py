"""New files and folders that appear whole or not at all, and optional libraries.

with new_files(Path("model.gguf")) as staged: ...
"""

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sampan.errors import UserError, install

# ---- libraries and files ----


def need_library(library: str, extra: str) -> ModuleType:
    """An optional library. Raises UserError that says what to install."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"this needs {library}: {install(extra)}") from None


def find_library(library: str) -> ModuleType | None:
    try:
        return importlib.import_module(library)
    except ImportError:
        return None


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder beside, which takes this name when it is whole. Raises UserError where there is one already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; move it away, or choose another --out_dir")
    with beside(folder) as staged:
        yield staged
        os.replace(staged, folder)


@contextlib.contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """Yields a path in a folder beside; every file there takes its place next to `out`, the file itself last."""
    with beside(out) as staged:
        yield staged / out.name
        for path in sorted(staged.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    staged = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
