"""Replacing a file at once: whoever reads it sees the old bytes or the new ones, and never a part.

    replace_file(Path("out/run.json"), text.encode())
    with replacing(Path("large.bin")) as file: file.write(...)

A run's weights, which come in pairs, are checkpoint.py's.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, data: bytes) -> None:
    """Raises OSError."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write into; synced and renamed at the end, nothing is left of it when that fails.

    Raises OSError.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes do not write into each other's
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
