"""One thing that is read from beginning to end: a file, a member of an archive, a dataset.

    part = Part("letters.txt", "text", lambda: open("letters.txt", "rb"), size=2000)

What can be read only once is kept in an unnamed temporary file. What the bytes mean is for formats.py and encodings.py.
"""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sampan.errors import UserError
from sampan.messages import _

READ_BYTES = 1 << 20  # of a file, as many at once


HALF = "\ud800"  # half of a surrogate pair, which no text has: the mark of bytes that could not be decoded
UNREADABLE = re.compile("[\0\ud800-\udfff]")
FEW = 1000  # one character in so many may be unreadable, and one in any text
SHOWN = 3  # of the unreadable characters, as many are located


@dataclass(frozen=True)
class Encoding:
    """How a file's bytes are decoded."""

    name: str
    how: str  # "detected", "byte order mark" or "as asked"
    mark: int = 0  # bytes of a byte order mark


@dataclass
class Damage:
    """Count and locate the characters that became U+FFFD: undecodable bytes, zero bytes, halves of surrogate pairs."""

    count: int = 0
    decoded: int = 0  # those of them that decoding has met; the others are in records
    characters: int = 0  # of text that was looked at
    line: int = 1  # where that ends
    column: int = 1
    places: list[str] = field(default_factory=list)  # of the first ones

    def mend(self, piece: str, where: str) -> str:
        """Return the next piece of the text `where` with U+FFFD for each HALF and zero byte."""
        lines, last = piece.count("\n"), piece.rfind("\n")
        if HALF in piece or "\0" in piece:
            for match in itertools.islice(UNREADABLE.finditer(piece), SHOWN - len(self.places)):
                at = match.start()
                line = self.line + piece.count("\n", 0, at)
                column = at - piece.rfind("\n", 0, at) if line > self.line else self.column + at
                self.places.append(
                    _("{where}, line {line:,}, column {column:,}", where=where, line=line, column=column)
                )
            piece, count = UNREADABLE.subn("\ufffd", piece)
            self.count, self.decoded = self.count + count, self.decoded + count
        self.characters += len(piece)
        self.line += lines
        self.column = len(piece) - last if lines else self.column + len(piece)
        return piece

    def add(self, count: int, place: str) -> None:
        self.count += count
        self.places = [*self.places, place][:SHOWN]

    @property
    def is_small(self) -> bool:
        return is_few(self.decoded, self.characters)


def is_few(count: int, characters: int) -> bool:
    return count <= max(1, characters // FEW)


@dataclass
class Part:
    """One thing that is read from its beginning to its end."""

    where: str  # as messages name it
    kind: str  # "text", "json", "parquet" or "hub"
    open: Callable[[], Any]  # its bytes, decompressed: a BinaryIO; of a dataset, its documents: an Iterator[str]
    size: int = 0  # bytes on disk, for progress
    file: Path | None = None  # that it is, or is in
    encoding: Encoding | None = None  # found when it is first read
    damage: Damage = field(default_factory=Damage)  # found by the last reading
    is_readable: bool = False  # known to be, to its end
    characters: int = 0  # of the last reading

    def counted(self, document: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of a document of this part, and count their characters."""
        for piece in document:
            self.characters += len(piece)
            yield piece


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


def remembered(make: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
    """Return an `open` for the JSON values of `make`, which is called once: a file without a name keeps them as JSON lines."""
    files: list[BinaryIO] = []

    def again() -> Iterator[Any]:
        if not files:
            file = temporary_file()
            for text in make():
                file.write(json.dumps(text).encode() + b"\n")
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
    import lzma
    import zipfile
    import zlib

    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(_("{where}: cannot be read ({why})", where=where, why=why)) from None
