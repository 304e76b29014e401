"""Text to token ids and back. A tokenizer is one tokenizer.json in the format of the `tokenizers` library.

    tokenizer = read_tokenizer("tokenizer.json")           # kinds.py
    ids = tokenizer.encode(text); text = tokenizer.decode(ids)

`Tokenizer` encodes by that library whatever its file says; characters.py and byte_level.py are the kinds that Sampan
makes, and encodes faster. The libraries are imported when they are needed. This file does not choose a tokenizer for a
text (choose.py) and does not stream output (bytes.py).
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sampan.errors import UserError
from sampan.fetch import Remote
from sampan.messages import _
from sampan.text.characters import split_at

END_OF_TEXT = "<|endoftext|>"  # follows each document; GPT-2's name for it
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>")
MAX_IDS = 1 << 24
MAX_GAPS = 1 << 20  # ids that no token has: the library goes through them all
MAX_GROWTH = 1 << 10  # of a text by a tokenizer's own replacements


class Tokenizer:
    """A `tokenizers.Tokenizer` with what Sampan needs around it. `inner` is the library's own object.

    `description` is its tokenizer.json, parsed. Raises UserError for a vocabulary that is absurdly large.
    """

    def __init__(self, inner: Any, description: dict[str, Any] | None = None):
        self.inner = inner
        self.vocab_size = count_ids(inner)
        inner.no_truncation()
        inner.no_padding()
        ends = (inner.token_to_id(name) for name in END_NAMES)
        self.end_of_text: int | None = next((i for i in ends if i is not None), None)
        description = describe(inner) if description is None else description
        if growth([description["normalizer"], description["decoder"]]) > MAX_GROWTH:
            raise UserError(
                _("its replacements make a text more than {max_growth:,} times as long", max_growth=MAX_GROWTH)
            )
        self.decoder: dict[str, Any] = description["decoder"] or {}
        named = description["model"].get("unk_token")
        self.unknown: int | None = inner.token_to_id(named) if named else description["model"].get("unk_id")

    @classmethod
    def fits(cls, description: dict[str, Any]) -> bool:
        """Return whether this class can encode as a parsed tokenizer.json says. This one takes all."""
        return True

    def last_cut(self, text: str) -> int:
        """Return the last position at which `text` can be cut without a change of its ids; 0 where none is known."""
        return 0

    def pieces(self, text: str) -> Iterable[str]:
        """Return `text` in parts that can be encoded one by one."""
        return (text,) if text else ()

    def encode(self, text: str, oov: str = "error", ends: Sequence[int] = (), before: int = 0) -> np.ndarray:
        """Return the ids of `text`, int32 (n,). No token is added at either end.

        Documents end at the positions `ends`: there the end-of-text token is put in, if the vocabulary has one, and no
        token reaches across. A character that the vocabulary lacks raises UserError with its position, counted from
        `before`, or is left out (`oov="skip"`).
        """
        documents = [list(self.pieces(document)) for document in split_at(text, ends)]
        pieces = [piece for document in documents for piece in document]
        with library_errors(_("the tokenizer cannot encode this text")):
            lists = [e.ids for e in self.inner.encode_batch_fast(pieces, add_special_tokens=False)]
        if self.unknown is not None and any(self.unknown in ids for ids in lists):
            if oov != "skip":
                raise self.find_unknown(pieces, before)
            lists = [[i for i in ids if i != self.unknown] for ids in lists]
        end = [] if self.end_of_text is None else [self.end_of_text]
        result: list[int] = []
        rest = iter(lists)
        for number, document in enumerate(documents):
            result += end if number else []
            for _piece in document:
                result += next(rest)
        return np.array(result, dtype=np.int32)

    def find_unknown(self, pieces: list[str], before: int) -> UserError:
        for piece in pieces:
            encoding = self.inner.encode(piece, add_special_tokens=False)
            for i, (start, _end) in zip(encoding.ids, encoding.offsets, strict=True):
                if i == self.unknown:
                    return unknown_character(piece[start], before + start, self.vocab_size)
            before += len(piece)
        raise AssertionError("an id that was there is gone")

    def decode(self, ids: Iterable[int]) -> str:
        with library_errors(_("the tokenizer cannot decode this text")):
            return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self) -> Callable[[int], str | None]:
        """Return a function from the next id to the text that it completes, or None while a character is incomplete."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=False)

        def step(i: int) -> str | None:
            with library_errors(_("the tokenizer cannot decode this text")):
                return decoder.step(self.inner, int(i))

        return step

    def to_json(self) -> str:
        return self.inner.to_str(pretty=True)


# ---- what --tokenizer can name ----


@dataclass(frozen=True)
class Material:
    """What a tokenizer can be made from."""

    counts: np.ndarray  # occurrences of each code point in the whole text, int64 (0x110000,)
    sample: Callable[[], list[str]]  # documents, or parts of them, from all over the train part
    has_documents: bool  # more than one, so that an end-of-text token is needed
    size: int | None = None  # of bpe:SIZE
    files: list[Path] = field(default_factory=list)  # the kind's own, fetched


@dataclass(frozen=True)
class Kind:
    """A tokenizer that --tokenizer can name, and `sampan prepare` makes. kinds.py lists them all."""

    label: str  # as --help shows it: "char", or "bpe:SIZE" for one of any size
    make: Callable[[Material], Tokenizer]
    check_size: Callable[[int], None] = lambda size: None  # raises UserError, before a large text is read
    files: tuple[Remote, ...] = ()  # what has to be fetched for it


# ---- the library ----


def count_ids(inner: Any) -> int:
    """Return the highest id of a library tokenizer plus one. Raises UserError for a vocabulary that is absurdly large."""
    vocabulary = inner.get_vocab(with_added_tokens=True)
    count = max(vocabulary.values(), default=-1) + 1
    if count > min(MAX_IDS, len(vocabulary) + MAX_GAPS):
        raise UserError(_("token id {id:,} is more than this program allows", id=count - 1))
    return count


def describe(inner: Any) -> dict[str, Any]:
    """Return a library tokenizer's JSON, parsed. Raises UserError for a vocabulary that is absurdly large."""
    count_ids(inner)  # or the library writes out every id that no token has
    return json.loads(inner.to_str())


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises into a sentence: Exception itself, and Rust's panics, which are not even that."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} ({str(error)[:200]})") from None


def growth(part: Any) -> int:
    """Return how many times as long a normalizer or decoder, as its JSON, can make a text by its replacements."""
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = len(str(part.get("content", ""))) if isinstance(part, dict) and part.get("type") == "Replace" else 1
    return math.prod(map(growth, parts), start=max(1, own))


def unknown_character(c: str, position: int, vocab_size: int) -> UserError:
    shown = c if c.isprintable() else repr(c)
    return UserError(
        _(
            "the vocabulary of {vocab_size} has no {shown} (U+{ord:04X}), character {position:,} of the "
            "text; leave it out (sampan sample --oov skip does), or train from scratch with --tokenizer "
            "char+bytes",
            vocab_size=vocab_size,
            shown=shown,
            ord=ord(c),
            position=position + 1,
        )
    )
