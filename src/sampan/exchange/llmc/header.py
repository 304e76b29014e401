"""The 256 int32 with which every file of llm.c begins: a magic number, a version, sizes.

    header = read_header(path); KINDS[header[0]]     # "weights", "tokens", ...

The bodies of the files are in the other modules of this folder.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from sampan.errors import UserError
from sampan.messages import N_, _

HEADER = 256  # int32
MODEL, STATE, TOKENIZER, TOKENS, TOKENS_LLAMA3 = 20240326, 20240327, 20240328, 20240520, 20240801
KINDS = {
    MODEL: N_("weights"), STATE: N_("a debug state"), TOKENIZER: N_("a tokenizer"), TOKENS: N_("tokens"),
    TOKENS_LLAMA3: N_("tokens"), 20240522: N_("multiple-choice questions"), 20240527: N_("an optimizer state"),
    20240803: N_("Llama 3 weights"),
}  # fmt: skip


def has_magic(path: Path) -> bool:
    """Return whether a file begins with one of llm.c's magic numbers."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(4), "little") in KINDS
    except OSError:
        return False


def read_header(path: Path, *magics: int) -> list[int]:
    """Return the 256 numbers that a file begins with.

    Raises UserError if it is not a file of llm.c, or if `magics` are given and its magic number is none of them.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(4 * HEADER)
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror)) from None
    header = list(struct.unpack(f"<{HEADER}i", raw)) if len(raw) == 4 * HEADER else [0]
    if header[0] not in KINDS:
        raise UserError(_("{path} is not a file of llm.c: it does not begin with one of its magic numbers", path=path))
    if magics and header[0] not in magics:
        raise UserError(
            _(
                "{path} contains {kind}, not {expected}",
                path=path,
                kind=_(KINDS[header[0]]),
                expected=_(KINDS[magics[0]]),
            )
        )
    return header


def check_size(path: Path, expected: int) -> None:
    """Raise UserError unless a file has as many bytes as its header implies."""
    size = path.stat().st_size
    if size != expected:
        raise UserError(
            _(
                "{path} has {size:,} bytes, but its header implies {expected:,}; it is incomplete or damaged",
                path=path,
                size=size,
                expected=expected,
            )
        )


def write_header(file: BinaryIO, *numbers: int) -> None:
    """Write the header of a file: these numbers, then zeros."""
    file.write(struct.pack(f"<{HEADER}i", *numbers, *[0] * (HEADER - len(numbers))))
