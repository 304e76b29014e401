"""Text to token ids and back. A tokenizer is one tokenizer.json in the format of the `tokenizers` library.

    tokenizer = characters("to be or not")            # one token a character, any Unicode
    tokenizer = characters("to be", byte_tokens=True) # and 256 for the bytes of all others
    tokenizer = gpt2()                                # GPT-2's byte-level BPE, fetched once
    tokenizer = train_bpe(texts, vocab_size=4096)     # a byte-level BPE of your own text
    tokenizer = load("tokenizer.json")
    ids = tokenizer.encode(text); text = tokenizer.decode(ids)

Characters are looked up in a table; GPT-2's kind of BPE is encoded by `tiktoken`, several times faster than
`tokenizers`, which encodes the rest. The libraries are imported when they are needed. This file does not choose a
tokenizer for a text (data.py) and does not stream output (sample.py).
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from sampan.errors import UserError
from sampan.machine import cores
from sampan.text.characters import END, code_points, is_unicode

EACH = r"[\s\S]"  # a character
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
END_OF_TEXT = "<|endoftext|>"  # stands between documents; GPT-2's name for it
MAX_IDS = 1 << 24
MAX_GAPS = 1 << 20  # ids that no token has: the library goes through them all
MAX_GROWTH = 1 << 10  # of a text by a tokenizer's own replacements
PIECE = 1 << 14  # characters that a thread is given at a time
# After a letter, every byte-level pre-tokenizer known here (GPT-2's, Llama 3's, Qwen's, GPT-4o's) cuts before these.
SEPARATORS = frozenset(" \t\n\r\v\f\u3000,.;:!?，。；：！？、")


class Tokenizer:
    """A `tokenizers.Tokenizer` with what Sampan needs around it. `inner` is the library's own object."""

    def __init__(self, inner):
        self.inner = inner
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > min(MAX_IDS, len(vocabulary) + MAX_GAPS):  # before the library writes them all out
            raise UserError(f"token id {self.vocab_size - 1:,} is more than this program allows")
        inner.no_truncation()
        inner.no_padding()
        self.end_of_text = next(
            (inner.token_to_id(t) for t in self.end_names() if inner.token_to_id(t) is not None), None
        )
        config = json.loads(inner.to_str())
        if growth([config["normalizer"], config["decoder"]]) > MAX_GROWTH:
            raise UserError(f"its replacements make a text more than {MAX_GROWTH:,} times as long")
        model, cut = config["model"], config["pre_tokenizer"]
        each = {"type": "Split", "pattern": {"Regex": EACH}, "behavior": "Isolated", "invert": False}
        plain = config["normalizer"] is None
        single = cut == each and plain
        has_bytes = single and model["type"] == "BPE" and model["byte_fallback"] and not model["merges"]
        self.is_characters = single and (model["type"] == "WordLevel" or has_bytes)
        # Before a separator that follows a letter, the byte-level pre-tokenizers known here always cut.
        pre = json.dumps(cut)
        words = '"use_regex": true' in pre or '"Split"' in pre  # else a token may reach across spaces
        self.may_split = "ByteLevel" in pre and words and plain and '"add_prefix_space": true' not in pre
        named = model.get("unk_token")
        self.unknown = inner.token_to_id(named) if named else model.get("unk_id")
        self.table = self.character_table() if self.is_characters else None
        self.byte_ids = np.array([inner.token_to_id(byte_token(b)) for b in range(256)]) if has_bytes else None

    @staticmethod
    def end_names() -> tuple[str, ...]:
        return (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>")

    @property
    def takes_any_text(self) -> bool:
        """Whether every text can be encoded, whatever its characters."""
        return self.byte_ids is not None or self.fast is not None

    def character_table(self) -> np.ndarray:
        """The id of each code point, int32, up to the highest that is known; -1 where there is none."""
        single = {
            ord(token): i for token, i in self.inner.get_vocab(with_added_tokens=False).items() if len(token) == 1
        }
        if self.end_of_text is not None:
            single[ord(END)] = self.end_of_text
        table = np.full(max(single, default=0) + 2, -1, dtype=np.int32)
        table[list(single)] = list(single.values())
        return table

    def encode(self, text: str, oov: str = "error", before: int = 0) -> np.ndarray:
        """Ids of `text`, int32 (n,). No token is added at either end; END becomes the end-of-text token.

        A character that the vocabulary lacks raises UserError with its position, counted from `before`, or is left
        out (`oov="skip"`).
        """
        if self.end_of_text is None:
            text = text.replace(END, "")
        if self.is_characters:
            return self.encode_characters(text, oov, before)
        if len(text) >= PIECE and self.fast is not None:
            return self.encode_fast(text)
        documents = [list(split_pieces(d)) if self.may_split else [d] for d in text.split(END)]
        pieces = [piece for document in documents for piece in document]
        with library_errors("the tokenizer cannot encode this text"):
            encodings = self.inner.encode_batch_fast(pieces, add_special_tokens=False)
        lists = [e.ids for e in encodings]
        if self.unknown is not None and any(self.unknown in ids for ids in lists):
            if oov != "skip":
                raise self.find_unknown(pieces, before)
            lists = [[i for i in ids if i != self.unknown] for ids in lists]
        result, rest = [], iter(lists)
        for number, document in enumerate(documents):
            result += [self.end_of_text] if number else []
            for _ in document:
                result += next(rest)
        return np.array(result, dtype=np.int32)

    def encode_characters(self, text: str, oov: str, before: int) -> np.ndarray:
        points = code_points(text)
        ids = self.table[np.minimum(points, len(self.table) - 1)]  # the table's last entry is -1
        unknown = np.flatnonzero(ids < 0)
        if not len(unknown):
            return ids
        if self.byte_ids is not None:
            try:
                raw = points[unknown].tobytes().decode("utf-32-le").encode()
            except UnicodeDecodeError:
                raise UserError("the text has half of a surrogate pair, which is no character") from None
            rest = points[unknown]
            lengths = np.ones(len(ids), dtype=np.int64)
            lengths[unknown] += (rest > 0x7F).astype(np.int64) + (rest > 0x7FF) + (rest > 0xFFFF)
            ids = np.repeat(ids, lengths)
            ids[ids < 0] = self.byte_ids[np.frombuffer(raw, dtype=np.uint8)]
            return ids
        if oov == "error":
            raise unknown_character(text, int(unknown[0]), before, self)
        return ids[ids >= 0]

    @cached_property
    def fast(self):
        """This tokenizer as a `tiktoken.Encoding`, or None where that would not be exactly the same.

        tiktoken knows no list of merges: it joins the two neighbours that make the token of the lowest rank. That is
        the same where ids rise in the order of merges and every token's own bytes give that token, for then a span that
        no merge crosses goes through the same joins as the token does by itself.
        """
        config = json.loads(self.inner.to_str())
        model, cut, decoder = config["model"], config["pre_tokenizer"] or {}, config["decoder"] or {}
        is_gpt2s = cut.get("type") == decoder.get("type") == "ByteLevel" and cut["use_regex"]
        if not is_gpt2s or cut["add_prefix_space"] or config["normalizer"] or model["type"] != "BPE":
            return None
        odd = (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "byte_fallback",
            "ignore_merges",
        )
        added = {t["content"]: t["id"] for t in config["added_tokens"]}
        changed = any(
            t[how] for t in config["added_tokens"] for how in ("single_word", "lstrip", "rstrip", "normalized")
        )
        tokens = {t: i for t, i in model["vocab"].items() if t not in added}
        alphabet = byte_alphabet()
        made = [tokens.get(left + right, -1) for left, right in model["merges"]]
        if any(model[name] for name in odd) or changed or made != sorted(set(made)) or -1 in made:
            return None
        if set(tokens) != {*alphabet, *("".join(pair) for pair in model["merges"])}:
            return None
        with library_errors("the tokenizer cannot encode its own tokens"):
            if any(len(self.inner.model.tokenize(token)) != 1 for token in tokens):
                return None
        import tiktoken

        ranks = {bytes(alphabet[c] for c in token): i for token, i in tokens.items()}
        return tiktoken.Encoding("sampan", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=added)

    def encode_fast(self, text: str) -> np.ndarray:
        from concurrent.futures import ThreadPoolExecutor

        if END in text:
            text = text.replace(END, self.inner.id_to_token(self.end_of_text))
        if not is_unicode(text):
            raise UserError("the text has half of a surrogate pair, which is no character")

        def encode(piece: str) -> np.ndarray:
            try:
                return self.fast.encode_to_numpy(piece, allowed_special="all")
            except ValueError:  # its regular expressions give up on a million spaces in a row
                return np.array(self.inner.encode(piece, add_special_tokens=False).ids, dtype=np.uint32)

        with (
            library_errors("the tokenizer cannot encode this text"),
            ThreadPoolExecutor(cores()) as pool,
        ):  # the library leaves Python's lock to others while it works
            return np.concatenate(list(pool.map(encode, split_pieces(text)))).astype(np.int32)

    def find_unknown(self, pieces: list[str], before: int) -> UserError:
        for piece in pieces:
            encoding = self.inner.encode(piece, add_special_tokens=False)
            for i, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
                if i == self.unknown:
                    return unknown_character(piece, start, before, self)
            before += len(piece)
        raise AssertionError("an id that was there is gone")

    def decode(self, ids: Iterable[int]) -> str:
        with library_errors("the tokenizer cannot decode this text"):
            return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self):
        """A function from the next id to the text that it completes, or None while a character is incomplete."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=False)

        def step(i: int) -> str | None:
            with library_errors("the tokenizer cannot decode this text"):
                return decoder.step(self.inner, int(i))

        return step

    def to_json(self) -> str:
        return self.inner.to_str(pretty=True)


def byte_token(byte: int) -> str:
    """The name of a byte in vocabularies with byte fallback.

    >>> byte_token(10)
    '<0x0A>'
    """
    return f"<0x{byte:02X}>"


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises UserError where there is none."""
    from tokenizers import Tokenizer as Inner

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        with library_errors("not a tokenizer.json of the tokenizers library"):
            return Tokenizer(Inner.from_str(text))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


@contextlib.contextmanager
def library_errors(what: str):
    """Turns what the library raises into a sentence: Exception itself, and Rust's panics, which are not even that."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} ({str(error)[:200]})") from None


def growth(part) -> int:
    """How many times as long a normalizer or decoder, as its JSON, can make a text by its replacements."""
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = len(str(part.get("content", ""))) if isinstance(part, dict) and part.get("type") == "Replace" else 1
    return math.prod(map(growth, parts), start=max(1, own))


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of GPT-2's byte-level vocabularies stands for.

    The printable characters of Latin-1 stand for themselves, the other bytes in turn for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def may_cut(text: str, position: int) -> bool:
    """Whether byte-level tokens never reach across `position` of the text."""
    return text[position] in SEPARATORS and text[position - 1].isalpha()


def split_pieces(text: str) -> Iterator[str]:
    """`text` in pieces of about PIECE characters, cut where `may_cut`.

    The libraries encode pieces in parallel, and their cost per character grows with the length of one. A text
    without such a place is one piece.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        while end < len(text) and not may_cut(text, end):
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def unknown_character(text: str, position: int, before: int, tokenizer: Tokenizer) -> UserError:
    c = text[position]
    shown = c if c.isprintable() else repr(c)
    return UserError(
        f"the vocabulary of {tokenizer.vocab_size} has no {shown} (U+{ord(c):04X}), character {before + position + 1:,} "
        "of the text; leave it out (sampan sample --oov skip does), or train from scratch with --tokenizer char+bytes"
    )
