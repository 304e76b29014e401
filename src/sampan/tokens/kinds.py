"""All kinds of tokenizer: what --tokenizer can name, and what can be read from a tokenizer.json.

    tokenizer = read_tokenizer("tokenizer.json")
    kind, size = find_kind("bpe:4096")

A new kind is a file beside this one and its line in KINDS; if it encodes in a way of its own, a line in CLASSES.
"""

from pathlib import Path
from typing import Any

from sampan.errors import UserError
from sampan.messages import _
from sampan.tokens.byte_level import BPE, GPT2, ByteLevel
from sampan.tokens.characters import CHAR, CHAR_BYTES, Characters
from sampan.tokens.tokenizer import Kind, Tokenizer, describe, library_errors

KINDS = (CHAR, CHAR_BYTES, GPT2, BPE)  # in the order of --help and of the comparison
CLASSES: tuple[type[Tokenizer], ...] = (Characters, ByteLevel, Tokenizer)  # the first that fits encodes


def find_kind(wanted: str) -> tuple[Kind, int | None] | None:
    """Return the kind and the size that a setting such as "bpe:4096" names, or None.

    >>> find_kind("bpe:4096")[1], find_kind("char")[1], find_kind("bpe"), find_kind("model/tokenizer.json")
    (4096, None, None, None)
    """
    name, colon, size = wanted.partition(":")
    for kind in KINDS:
        known, takes_size, _ = kind.label.partition(":")
        if (known, takes_size) == (name, colon) and (size.isdecimal() or not colon):
            return kind, int(size) if colon else None
    return None


def names_of_kinds() -> str:
    """Return what --tokenizer can name, for messages and --help."""
    return ", ".join(kind.label for kind in KINDS)


def open_tokenizer(inner: Any) -> Tokenizer:
    """Return the fitting kind around a `tokenizers.Tokenizer`."""
    description = describe(inner)
    return next(known for known in CLASSES if known.fits(description))(inner, description)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json. Raises UserError where there is none."""
    from tokenizers import Tokenizer as Inner

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        with library_errors(_("not a tokenizer.json of the tokenizers library")):
            return open_tokenizer(Inner.from_str(text))
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror)) from None
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
