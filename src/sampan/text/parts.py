"""One thing that is read from beginning to end: a file, a member of an archive, a dataset.

    part = Part("letters.txt", "text", lambda: open("letters.txt", "rb"), size=2000)

What can be read only once is kept in an unnamed temporary file. What the bytes mean is for formats.py and encodings.py.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from sampan.errors import UserError
from sampan.messages import _

READ_BYTES = 1 << 20  # of a file, as many at once


@dataclass
class Encoding:
    """How a file's bytes are decoded, and which of them could not be."""

    name: str
    how: str  # "detected", "byte order mark" or "as asked"
    mark: int = 0  # bytes of a byte order mark
    bad: int = 0  # bytes that could not be decoded
    total: int = 0  # bytes that were read
    places: list[tuple[int, int]] = field(default_factory=list)  # (offset, line from 1) of the first bad bytes


@dataclass
class Part:
    """One thing that is read from its beginning to its end."""

    where: str  # as messages name it
    kind: str  # "text", "jsonl", "parquet" or "hub"
    open: Callable[[], Any]  # its bytes, decompressed: a BinaryIO; of a dataset, its documents: an Iterator[str]
    size: int = 0  # bytes on disk, for progress
    encoding: Encoding | None = None  # found when it is first read


def kept(open_once: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """Return an `open` for bytes that can be read only once: a file without a name keeps them."""
    files: list[BinaryIO] = []

    def again() -> BinaryIO:
        if not files:
            file = temporary_file()
            source = open_once()
            while chunk := source.read(READ_BYTES):
                file.write(chunk)
            file.flush()
            files.append(file)
        reader = os.fdopen(os.dup(files[0].fileno()), "rb")
        reader.seek(0)
        return reader

    return again


def remembered(make: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
    """Return an `open` for the strings of `make`, which is called once: a file without a name keeps them as JSON lines."""
    files: list[BinaryIO] = []

    def again() -> Iterator[str]:
        if not files:
            file = temporary_file()
            for text in make():
                file.write(json.dumps(text, ensure_ascii=False).encode() + b"\n")
                yield text
            files.append(file)
            return
        files[0].seek(0)
        yield from map(json.loads, files[0])

    return again


def temporary_file() -> BinaryIO:
    """Return an unnamed file beside the data, since the system's own place for such files is often small."""
    import tempfile

    return tempfile.TemporaryFile(dir=".")


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what a damaged file raises into one sentence."""
    import zipfile
    import zlib

    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(_("{where}: cannot be read ({why})", where=where, why=why)) from None
