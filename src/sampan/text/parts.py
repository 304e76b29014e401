"""One thing that is read from beginning to end: a file, a member of an archive, a dataset.

    part = Part("letters.txt", "text", lambda: open("letters.txt", "rb"), size=2000)

What can be read only once is kept in an unnamed temporary file. Formats and encodings are formats.py's and encodings.py's.
"""

import codecs
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from sampan.errors import UserError

CHUNK = 1 << 20  # bytes


@dataclass
class Encoding:
    """What a file's bytes are, and which of them are not."""

    name: str
    how: str  # "detected", "byte order mark" or "as asked"
    mark: int = 0  # bytes of a byte order mark
    bad: int = 0
    total: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)  # (offset, line from 1) of the first bad bytes


@dataclass
class Part:
    """One thing that is read from its beginning to its end: a file, a member of an archive, a dataset."""

    where: str  # as messages name it
    kind: str  # "text", "jsonl", "parquet" or "hub"
    open: Callable[[], BinaryIO | Iterator[str]]  # its bytes, decompressed; of a dataset, its documents
    size: int = 0  # bytes on disk, for progress
    encoding: Encoding | None = None  # found when it is first read


def kept(open_once: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """`open` for bytes that can be read only once: they are kept in a file without a name, which nothing leaves behind."""
    files: list[BinaryIO] = []

    def again() -> BinaryIO:
        if not files:
            file = temporary_file()
            source = open_once()
            while chunk := source.read(CHUNK):
                file.write(chunk)
            file.flush()
            files.append(file)
        reader = os.fdopen(os.dup(files[0].fileno()), "rb")
        reader.seek(0)
        return reader

    return again


def remembered(make: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
    """The strings of `make`, which is called once: the first reading keeps them in a file without a name."""
    files: list[BinaryIO] = []

    def again() -> Iterator[str]:
        if not files:
            file = temporary_file()
            for text in make():
                file.write(text.encode("utf-8", "surrogatepass"))
                yield text
            files.append(file)
            return
        files[0].seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        while chunk := files[0].read(CHUNK):
            yield decoder.decode(chunk)

    return again


def temporary_file() -> BinaryIO:
    """Beside the data, since the system's own place for such files is often small."""
    import tempfile

    return tempfile.TemporaryFile(dir=".")


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what a damaged file raises into one sentence."""
    import zipfile
    import zlib

    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be read ({why})") from None
