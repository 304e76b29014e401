"""Text to token ids and back. A tokenizer is one tokenizer.json in the format of the `tokenizers` library.

    tokenizer = characters("to be or not")            # one token a character, any Unicode
    tokenizer = gpt2()                                # GPT-2's byte-level BPE, fetched once
    tokenizer = train_bpe(texts, vocab_size=4096)     # a byte-level BPE of your own text
    tokenizer = load("tokenizer.json")
    ids = tokenizer.encode(text); text = tokenizer.decode(ids)

The library is imported when a tokenizer is first made. This file does not choose a tokenizer for a text (data.py)
and does not stream output (sample.py).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .errors import UserError
from .fetch import GPT2_MERGES, GPT2_VOCAB, fetch

EACH = r"[\s\S]"  # a character
END_OF_TEXT = "<|endoftext|>"  # stands between documents; GPT-2's name for it
MAX_IDS = 1 << 24
PIECE = 1 << 16  # characters that the library is given at a time


class Tokenizer:
    """A `tokenizers.Tokenizer` with what Sampan needs around it. `inner` is the library's own object."""

    def __init__(self, inner):
        self.inner = inner
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocab_size > MAX_IDS:  # before the library writes them all out
            raise UserError(f"token id {self.vocab_size - 1:,} is more than this program allows")
        inner.no_truncation()
        inner.no_padding()
        self.end_of_text = next(
            (inner.token_to_id(t) for t in self.end_names() if inner.token_to_id(t) is not None), None
        )
        config = json.loads(inner.to_str())
        self.is_characters = (
            config["model"]["type"] == "WordLevel"
            and config["normalizer"] is None
            and config["pre_tokenizer"]
            == {"type": "Split", "pattern": {"Regex": EACH}, "behavior": "Isolated", "invert": False}
        )
        # Before a space that follows a letter, the byte-level pre-tokenizers of GPT-2, Llama 3 and Qwen always cut.
        pre = json.dumps(config["pre_tokenizer"])
        words = '"use_regex": true' in pre or '"Split"' in pre  # else a token may reach across spaces
        self.may_split = "ByteLevel" in pre and words and config["normalizer"] is None
        named = config["model"].get("unk_token")
        self.unknown = inner.token_to_id(named) if named else config["model"].get("unk_id")
        self.table = self.character_table() if self.is_characters else None

    @staticmethod
    def end_names() -> tuple[str, ...]:
        return (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>")

    def character_table(self) -> np.ndarray:
        """The id of each code point, int32, up to the highest that is known; -1 where there is none."""
        single = {
            ord(token): i for token, i in self.inner.get_vocab(with_added_tokens=False).items() if len(token) == 1
        }
        table = np.full(max(single, default=0) + 2, -1, dtype=np.int32)
        table[list(single)] = list(single.values())
        return table

    def encode(self, text: str, oov: str = "error") -> np.ndarray:
        """Ids of `text`, int32 (n,). No token is added at either end.

        A character that the vocabulary lacks raises UserError with its position, or is left out (`oov="skip"`).
        """
        if self.is_characters:
            points = code_points(text)
            ids = self.table[np.minimum(points, len(self.table) - 1)]  # the table's last entry is -1
            unknown = np.flatnonzero(ids < 0)
            if len(unknown) and oov == "error":
                raise unknown_character(text, int(unknown[0]), self)
            return ids[ids >= 0] if len(unknown) else ids
        pieces = list(split_pieces(text)) if self.may_split else [text]
        try:
            encodings = self.inner.encode_batch(pieces, add_special_tokens=False)
        except Exception as error:  # the library raises Exception itself, e.g. for WordLevel with no unknown token
            raise UserError(f"the tokenizer cannot encode this text: {error}") from None
        ids = np.concatenate([np.array(e.ids, dtype=np.int32) for e in encodings] or [np.empty(0, np.int32)])
        if self.unknown is not None and (ids == self.unknown).any():
            if oov == "skip":
                return ids[ids != self.unknown]
            for start, e in zip(offsets(pieces), encodings, strict=True):
                for i, span in zip(e.ids, e.offsets, strict=True):
                    if i == self.unknown:
                        raise unknown_character(text, start + span[0], self)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self):
        """A function from the next id to the text that it completes, or None while a character is incomplete."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=False)
        return lambda i: decoder.step(self.inner, int(i))

    def to_json(self) -> str:
        return self.inner.to_str(pretty=True)


def characters(text: str, end_of_text: bool = False) -> Tokenizer:
    """One token for each distinct character of `text`, in code-point order, as nanoGPT's shakespeare_char.

    >>> characters("hello").encode("hole").tolist()
    [1, 3, 2, 0]
    """
    return from_symbols([chr(point) for point in distinct(text)], end_of_text)


def from_symbols(symbols: list[str], end_of_text: bool = False) -> Tokenizer:
    """One token for each of `symbols`, which are distinct characters, in their order."""
    from tokenizers import Regex, Tokenizer as Inner, decoders, models, pre_tokenizers

    inner = Inner(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")
    inner.decoder = decoders.Fuse()
    if end_of_text:
        inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner)


def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, 50,257 ids, made from OpenAI's two files (fetched once, checked). Raises UserError."""
    from tokenizers import models

    vocab = json.loads(fetch(GPT2_VOCAB).read_text(encoding="utf-8"))
    lines = fetch(GPT2_MERGES).read_text(encoding="utf-8").split("\n")[1:]  # the first says its version
    merges = [tuple(line.split(" ")) for line in lines if line]
    return Tokenizer(byte_level(models.BPE(vocab, merges)))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of `vocab_size` ids, learnt from `texts`."""
    from tokenizers import models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if not len(alphabet) < vocab_size <= MAX_IDS:
        raise UserError(
            f"bpe:{vocab_size}: a byte-level vocabulary has at least {len(alphabet) + 1} entries, and at most {MAX_IDS:,}"
        )
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], show_progress=False
    )
    inner.train_from_iterator((piece for text in texts for piece in split_pieces(text)), trainer)
    return Tokenizer(inner)


def byte_level(model):
    """A library tokenizer around a BPE model, with GPT-2's way of cutting text into words and words into bytes."""
    from tokenizers import Tokenizer as Inner, decoders, pre_tokenizers

    inner = Inner(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises UserError where there is none."""
    from tokenizers import Tokenizer as Inner

    path = Path(path)
    try:
        return Tokenizer(Inner.from_str(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # the library raises Exception itself for every kind of malformed file
        raise UserError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from None


# ---- text as arrays ----


def code_points(text: str) -> np.ndarray:
    """Unicode code points of `text`, uint32 (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def distinct(text: str) -> list[int]:
    """Its distinct code points, ascending. A bitmap is several times faster than sorting."""
    seen = np.zeros(0x110000, dtype=bool)
    seen[code_points(text)] = True
    return np.flatnonzero(seen).tolist()


def split_pieces(text: str) -> Iterator[str]:
    """`text` in pieces of about PIECE characters, cut before a space that follows a letter.

    The library encodes pieces in parallel, and its cost per character grows with the length of one. A text
    without such a place is one piece.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        while end < len(text) and not (text[end].isspace() and text[end - 1].isalpha()):
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def offsets(pieces: list[str]) -> list[int]:
    return [0, *np.cumsum([len(p) for p in pieces]).tolist()][: len(pieces)]


def unknown_character(text: str, position: int, tokenizer: Tokenizer) -> UserError:
    c = text[position]
    shown = c if c.isprintable() else repr(c)
    return UserError(
        f"the vocabulary of {tokenizer.vocab_size} has no {shown} (U+{ord(c):04X}), character {position + 1} of the text; "
        "leave it out (sampan sample has --oov skip for that)"
    )
