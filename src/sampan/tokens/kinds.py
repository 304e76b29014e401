"""All kinds of tokenizer: what --tokenizer can name, and what can be read from a tokenizer.json.

    tokenizer = read_tokenizer("tokenizer.json")
    kind, size = find_kind("bpe:4096")

A new kind is a file beside this one, with a `Kind` and perhaps a class that encodes, and its line in config.py.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from sampan.config import TOKENIZERS
from sampan.errors import UserError
from sampan.messages import _
from sampan.tokens.beside import Beside, read_beside
from sampan.tokens.older import MORE, OLDER, build_older
from sampan.tokens.tokenizer import Kind, Tokenizer, describe, library_errors


def load_kinds() -> tuple[Kind, ...]:
    """Return the kinds that config.py names, from their files, in the order of --help and of the comparison."""
    files = [importlib.import_module(f"{__package__}.{name}") for name in TOKENIZERS.values()]
    kinds = {kind.label: kind for file in files for kind in vars(file).values() if isinstance(kind, Kind)}
    return tuple(kinds[label] for label in TOKENIZERS)


KINDS = load_kinds()
# The first that fits a file encodes.
CLASSES: tuple[type[Tokenizer], ...] = (*dict.fromkeys(kind.encodes for kind in KINDS), Tokenizer)


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


def open_tokenizer(inner: Any, beside: Beside | None = None) -> Tokenizer:
    """Return the fitting kind around a `tokenizers.Tokenizer`; `beside` is what the files beside its own say."""
    described = describe(inner)
    return next(known for known in CLASSES if known.fits(described.parts))(inner, described, beside)


def tokenizer_file(path: str | Path) -> Path | None:
    """Return the file that holds a tokenizer: `path` itself, or the one in that folder; None where there is none."""
    path = Path(path)
    found = [path / name for name in ("tokenizer.json", *OLDER)] if path.is_dir() else [path]
    return next(filter(Path.is_file, found), None)


def has_tokenizer(folder: str | Path) -> bool:
    return Path(folder).is_dir() and tokenizer_file(folder) is not None


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a folder, or of one of its files, with what the files beside it say. Raises UserError."""
    from tokenizers import Tokenizer as Inner

    path = tokenizer_file(path) or Path(path)
    if path.is_dir():
        raise UserError(_("{folder} has no tokenizer.json", folder=path))
    try:
        beside = read_beside(path.parent)
        if path.name in OLDER:
            with library_errors(_("not a tokenizer")):
                return open_tokenizer(build_older(path, beside), beside)
        text = path.read_text(encoding="utf-8")
        with library_errors(_("not a tokenizer.json of the tokenizers library")):
            return open_tokenizer(Inner.from_str(text), beside)
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror)) from None
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a tokenizer's files, and of what those beside it say of its tokens. Raises UserError."""
    files = [path, *(path.with_name(name) for name in MORE if path.name in OLDER)]
    beside = read_beside(path.parent).to_json()
    beside["config"].pop("model_max_length", None)  # the model's, not the tokenizer's
    said = json.dumps(beside, sort_keys=True).encode()
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file()) + said).hexdigest()
