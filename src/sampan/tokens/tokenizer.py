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
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sampan.errors import UserError
from sampan.fetch import Remote
from sampan.files import write_text
from sampan.messages import N_, _
from sampan.text.characters import split_at
from sampan.tokens.beside import Beside, write_beside

END_OF_TEXT = "<|endoftext|>"  # follows each document; GPT-2's name for it
# Names of it where no file says which token it is, the likelier first, as `plain_name` gives them.
END_NAMES = ("endoftext", "endofsentence", "eos", "eot", "/s", "imend", "sep")
# What a tokenizer may not keep, with two texts that it then makes one.
LOSSES = (
    (N_("line ends"), "a\nb", "a b"), (N_("capital letters"), "Ab", "ab"), (N_("accents"), "caf\u00e9 \u00e9a", "cafe ea"),
    (N_("repeated spaces"), "a  b", "a b"), (N_("spaces between Chinese characters"), "\u6c34 \u8def", "\u6c34\u8def"),
)  # fmt: skip
MAX_IDS = 1 << 24
MAX_GAPS = 1 << 20  # ids that no token has: the library goes through them all
MAX_GROWTH = 1 << 10  # of a text by a tokenizer's own replacements


class Tokenizer:
    """A `tokenizers.Tokenizer` with what Sampan needs around it. `inner` is the library's own object.

    `beside` is what the files beside its tokenizer.json say. Raises UserError for a vocabulary that is absurdly large.
    """

    def __init__(self, inner: Any, described: "Described | None" = None, beside: Beside | None = None):
        self.inner = inner
        description, self.vocab_size = described or describe(inner)
        self.beside = beside or Beside()
        self.unknowns: Counter[str] = Counter()  # what the unknown token stood for so far
        inner.no_truncation()
        inner.no_padding()
        if growth([description["normalizer"], description["decoder"]]) > MAX_GROWTH:
            raise UserError(
                _("its replacements make a text more than {max_growth:,} times as long", max_growth=MAX_GROWTH)
            )
        self.decoder: dict[str, Any] = description["decoder"] or {}
        named = description["model"].get("unk_token")
        self.unknown: int | None = inner.token_to_id(named) if named else description["model"].get("unk_id")
        self.begin, after = template(inner)  # what it puts before a text and after one, such as BOS
        self.ends = self.find_ends(description["added_tokens"], after)  # of a text; the first follows each document

    def find_ends(self, added: list[dict[str, Any]], after: tuple[int, ...]) -> list[int]:
        """Return the tokens that end a text: as the files beside say, else by the template, else by its name."""
        said = self.inner.token_to_id(self.beside.token("eos") or "")
        if found := list(dict.fromkeys([*([] if said is None else [said]), *self.special_ids("eos")])):
            return found
        if after:
            return [after[-1]]
        special = {token["content"]: token["id"] for token in added if token["special"]}
        return ends_by_name(special) or ends_by_name(self.inner.get_vocab())  # "</s>" may be HTML's in the second

    @property
    def end_of_text(self) -> int | None:
        """The token that follows each document."""
        return self.ends[0] if self.ends else None

    @property
    def between(self) -> list[int]:
        """What is between two documents: the end of one and the beginning of the next."""
        return [*self.ends[:1], *self.begin]

    @property
    def stops(self) -> frozenset[int]:
        """The tokens at which sampling stops."""
        return frozenset(self.ends)

    def role(self, role: str) -> int | None:
        """Return the token that has a role, such as "bos" or "pad", by the files beside; None where there is none."""
        said = self.inner.token_to_id(self.beside.token(role) or "")
        return said if said is not None else next(iter(self.special_ids(role)), None)

    def special_ids(self, role: str) -> list[int]:
        """Return the ids that configs give for a role, without ordinary tokens: 50256 is GPT2Config's default."""
        added = self.inner.get_added_tokens_decoder()
        return [i for i in self.beside.ids(role) if i in added or is_marked(self.inner.id_to_token(i))]

    def config_ids(self) -> dict[str, Any]:
        """Return the ids that a model's config.json has of its tokenizer."""
        bos = next((i for i in (self.role("bos"), *self.begin, self.end_of_text) if i is not None), None)
        ends = self.ends if len(self.ends) > 1 else self.end_of_text
        return {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": self.role("pad")}

    def has_token(self, count: int) -> np.ndarray:
        """Return which of the ids below `count` the vocabulary has, bool (count,)."""
        has = np.zeros(count, dtype=bool)
        ids = np.fromiter(self.inner.get_vocab(with_added_tokens=True).values(), np.int64)
        has[ids[ids < count]] = True
        return has

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

        Documents end at the positions `ends`: there the end-of-text token is put in, if the vocabulary has one, and what
        the template begins a text with before the next document; no token reaches across. A character that the
        vocabulary lacks becomes its unknown token, and is counted in `unknowns`; without such a token it raises
        UserError with its position, counted from `before`. With `oov="skip"` it is left out.
        """
        ids, places = self.encode_documents(text, oov, ends, before)
        if not len(places) or not self.between:
            return ids
        ids = np.insert(ids, np.repeat(places, len(self.between)), np.tile(self.between, len(places)))
        return self.without_next(ids, text, ends)

    def without_next(self, ids: np.ndarray, text: str, ends: Sequence[int]) -> np.ndarray:
        """Return the ids of a text without the beginning of the next document, where it ends with the last one."""
        return ids[: len(ids) - len(self.begin)] if ends and ends[-1] == len(text) else ids

    def encode_documents(self, text: str, oov: str, ends: Sequence[int], before: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of `text` as `encode` does, with nothing between documents, and the places of `ends` in them."""
        documents = [list(self.pieces(document)) for document in split_at(text, ends)]
        pieces = [piece for document in documents for piece in document]
        try:
            with library_errors(_("the tokenizer cannot encode this text")):
                lists = [e.ids for e in self.inner.encode_batch_fast(pieces, add_special_tokens=False)]
        except UserError as error:
            raise self.find_unknown(text, before) or error from None
        for number, piece in enumerate(pieces):
            if self.unknown in lists[number]:
                lists[number] = self.resolve_unknown(piece, oov)
        rest = iter(lists)
        counts = [sum(len(next(rest)) for _piece in document) for document in documents]
        return np.array([i for ids in lists for i in ids], dtype=np.int32), np.cumsum(counts[:-1], dtype=np.int64)

    def find_unknown(self, text: str, before: int) -> UserError | None:
        """Return what is wrong with a text that a tokenizer of words without an unknown token refuses."""
        if type(self.inner.model).__name__ != "WordLevel" or self.inner.pre_tokenizer is None:
            return None
        with library_errors(_("the tokenizer cannot encode this text")):
            words = self.inner.pre_tokenizer.pre_tokenize_str(text)
        for word, (start, _end) in words if self.inner.normalizer is None else ():
            if self.inner.token_to_id(word) is None:
                return unknown_word(word, before + start, self.vocab_size)
        return None

    def resolve_unknown(self, piece: str, oov: str) -> list[int]:
        """Return the ids of a piece that has the unknown token, and count what it stands for in `unknowns`."""
        with library_errors(_("the tokenizer cannot encode this text")):
            encoding = self.inner.encode(piece, add_special_tokens=False)
        name, ids = self.inner.id_to_token(self.unknown), []
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i == self.unknown and piece[start:end].strip() != name:  # a text may have the token's own name
                self.unknowns[piece[start:end]] += 1
                if oov == "skip":
                    continue
            ids.append(i)
        return ids

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

    def most_unknown(self) -> list[str]:
        """Return what the unknown token stood for most often."""
        return [word[:20] for word, _count in self.unknowns.most_common(8)]

    def losses(self) -> list[str]:
        """Return what a text loses when it is encoded and decoded, in English."""
        lost = []
        for what, probe, other in LOSSES:
            with contextlib.suppress(UserError), library_errors(""):
                both = [self.inner.decode(self.inner.encode(t, add_special_tokens=False).ids) for t in (probe, other)]
                lost += [what] if both[0] == both[1] else []
        return lost

    def to_json(self) -> str:
        return self.inner.to_str(pretty=True)

    def save(self, folder: Path, context: int | None = None) -> None:
        """Write tokenizer.json and the files beside it; `context`, in tokens, is a model's. Raises OSError."""
        write_text(folder / "tokenizer.json", self.to_json())
        config, generation = dict(self.beside.config), dict(self.beside.generation)
        if context is not None:
            config |= {"model_max_length": context, "clean_up_tokenization_spaces": False}
        if config or self.beside.model:
            roles = {"eos": self.end_of_text, "bos": self.role("bos"), "pad": self.role("pad")}
            for role, i in roles.items():
                if i is not None and self.beside.token(role) is None:
                    config[f"{role}_token"] = self.inner.id_to_token(i)
        if generation or len(self.ends) > 1:
            generation |= {key: i for key, i in self.config_ids().items() if i is not None or key in generation}
        write_beside(folder, Beside(config, generation, template=self.beside.template))


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
    """A tokenizer that --tokenizer can name, and `sampan prepare` makes. config.py lists them all."""

    label: str  # as --help shows it: "char", or "bpe:SIZE" for one of any size
    make: Callable[[Material], Tokenizer]
    encodes: type[Tokenizer] = Tokenizer  # the class that encodes with it, also when it is read from a file
    check_size: Callable[[int], None] = lambda size: None  # raises UserError, before a large text is read
    files: tuple[Remote, ...] = ()  # what has to be fetched for it


# ---- the library ----


class Described(NamedTuple):
    """A library tokenizer's JSON, parsed, and its highest id plus one."""

    parts: dict[str, Any]
    vocab_size: int


def describe(inner: Any) -> Described:
    """Return what a library tokenizer is. Raises UserError for a vocabulary that is absurdly large."""
    vocabulary = inner.get_vocab(with_added_tokens=True)
    count = max(vocabulary.values(), default=-1) + 1
    if count > min(MAX_IDS, len(vocabulary) + MAX_GAPS):  # the library writes out every id that no token has
        raise UserError(_("token id {id:,} is more than this program allows", id=count - 1))
    return Described(json.loads(inner.to_str()), count)


def template(inner: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a library tokenizer's template puts before a text, and after one."""
    if inner.post_processor is None:
        return (), ()
    with library_errors(_("the tokenizer's template cannot be used")):
        for probe in filter(None, ("a", *map(inner.id_to_token, range(16)))):
            plain, whole = (inner.encode(probe, add_special_tokens=adds).ids for adds in (False, True))
            for start in range(len(whole) - len(plain) + 1 if plain else 0):
                if whole[start : start + len(plain)] == plain:
                    return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def ends_by_name(tokens: dict[str, int]) -> list[int]:
    """Return the token whose name says that it ends a text, in a list; [] where none does."""
    names = {plain_name(token): i for token, i in tokens.items() if is_marked(token)}
    return [names[name] for name in END_NAMES if name in names][:1]


def is_marked(token: str | None) -> bool:
    """Return whether a token looks like no text: "<eos>", "[SEP]"."""
    return token is not None and len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def plain_name(token: str) -> str:
    """Return a token's name without its marks.

    >>> plain_name("<｜end▁of▁sentence｜>"), plain_name("<|im_end|>")
    ('endofsentence', 'imend')
    """
    return re.sub(r"[^\w/]|_", "", token).lower()


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


def unknown_sentence(count: int, most: Sequence[str]) -> str:
    """Return what a user must know of a text in which the unknown token stands for something."""
    return _(
        "{count:,} characters or words that the tokenizer lacks became its unknown token, most often {most}",
        count=count,
        most=", ".join(most),
    )


def unknown_word(word: str, position: int, vocab_size: int) -> UserError:
    """Return the error for a word, or for a character, that a vocabulary without an unknown token lacks."""
    if len(word) == 1:
        return unknown_character(word, position, vocab_size)
    return UserError(
        _(
            "the vocabulary of {vocab_size:,} words has no {word!r}, at character {position:,} of the text, and no "
            "unknown token; train from scratch with --tokenizer bpe:SIZE",
            vocab_size=vocab_size,
            word=word[:100],
            position=position + 1,
        )
    )


def unknown_character(c: str, position: int, vocab_size: int) -> UserError:
    return UserError(
        _(
            "the vocabulary of {vocab_size} has no {shown} (U+{ord:04X}), character {position:,} of the "
            "text; leave it out (sampan sample --oov skip does), or train from scratch with --tokenizer "
            "char+bytes",
            vocab_size=vocab_size,
            shown=c if c.isprintable() else repr(c),
            ord=ord(c),
            position=position + 1,
        )
    )
