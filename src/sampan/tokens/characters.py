"""One token per character, as nanoGPT's shakespeare_char, and where wanted 256 more for the bytes of all others.

    tokenizer = characters("to be or not")              # any Unicode
    tokenizer = characters("to be", byte_tokens=True)   # any text can be encoded

Characters are looked up in a table, a hundred times faster than by the library, which reads the same tokenizer.json.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sampan.messages import _
from sampan.text.characters import code_points
from sampan.tokens.beside import Beside
from sampan.tokens.tokenizer import END_OF_TEXT, Described, Kind, Material, Tokenizer, library_errors, unknown_character

EACH = r"[\s\S]"  # a character


class Characters(Tokenizer):
    """Tokens that are single characters. `byte_ids`, int (256,), are the tokens of bytes, if it has them."""

    def __init__(self, inner: Any, described: Described | None = None, beside: Beside | None = None):
        super().__init__(inner, described, beside)
        names = inner.get_vocab(with_added_tokens=False)
        single = {ord(token): i for token, i in names.items() if len(token) == 1}
        # The id of each code point up to the highest that is known; the last entry is for all beyond.
        self.table = np.full(max(single, default=0) + 2, -1, dtype=np.int32)
        self.table[list(single)] = list(single.values())
        has_bytes = byte_token(0) in names
        self.byte_ids = np.array([names[byte_token(b)] for b in range(256)], np.int32) if has_bytes else None

    @classmethod
    def fits(cls, description: dict[str, Any]) -> bool:
        model, cut = description["model"], description["pre_tokenizer"]
        each = {"type": "Split", "pattern": {"Regex": EACH}, "behavior": "Isolated", "invert": False}
        has_bytes = model["type"] == "BPE" and model["byte_fallback"] and not model["merges"]
        lacks = model["type"] == "WordLevel" and model["unk_token"] not in model["vocab"]
        return cut == each and description["normalizer"] is None and (lacks or has_bytes)

    def last_cut(self, text: str) -> int:
        return len(text)

    def encode_documents(self, text: str, oov: str, ends: Sequence[int], before: int) -> tuple[np.ndarray, np.ndarray]:
        points = code_points(text)
        ids = self.table[np.minimum(points, len(self.table) - 1)]
        places = np.asarray(ends, dtype=np.int64)  # where documents end among the ids
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            lengths = np.ones(len(ids), dtype=np.int64)  # tokens of each character
            if self.byte_ids is not None:
                rest = points[unknown]
                lengths[unknown] += (rest > 0x7F).astype(np.int64) + (rest > 0x7FF) + (rest > 0xFFFF)
                with library_errors(_("the tokenizer cannot encode this text")):  # half of a surrogate pair
                    raw = rest.tobytes().decode("utf-32-le").encode()
                ids = np.repeat(ids, lengths)
                ids[ids < 0] = self.byte_ids[np.frombuffer(raw, dtype=np.uint8)]
            elif oov == "error":
                first = int(unknown[0])
                raise unknown_character(text[first], before + first, self.vocab_size)
            else:
                lengths[unknown] = 0
                ids = ids[ids >= 0]
            places = np.concatenate([[0], np.cumsum(lengths)])[places]
        return ids, places


def characters(symbols: Iterable[str], end_of_text: bool = False, byte_tokens: bool = False) -> Characters:
    """Return one token for each distinct character of `symbols`, in code-point order.

    With `byte_tokens` the first 256 ids stand for bytes, in which every other character is spelt in UTF-8.

    >>> characters("hello").encode("hole").tolist()
    [1, 3, 2, 0]
    >>> characters("hello", byte_tokens=True).encode("hé").tolist()
    [257, 195, 169]
    """
    return from_symbols(sorted(set(symbols)), end_of_text, byte_tokens)


def from_symbols(symbols: list[str], end_of_text: bool = False, byte_tokens: bool = False) -> Characters:
    """Return one token for each of `symbols`, which are distinct characters, in their order."""
    from tokenizers import Regex, Tokenizer as Inner, decoders, models, pre_tokenizers

    names = [byte_token(b) for b in range(256)] if byte_tokens else []
    vocab = {name: i for i, name in enumerate([*names, *symbols])}
    if byte_tokens:
        inner = Inner(models.BPE(vocab, [], byte_fallback=True))
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        inner = Inner(models.WordLevel(vocab))
        inner.decoder = decoders.Fuse()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")
    if end_of_text:
        inner.add_special_tokens([END_OF_TEXT])
    return Characters(inner)


def byte_token(byte: int) -> str:
    """Return the name of a byte in vocabularies with byte fallback.

    >>> byte_token(10)
    '<0x0A>'
    """
    return f"<0x{byte:02X}>"


def make_char(material: Material) -> Characters:
    """Every symbol gets an id, also one that only val has."""
    return characters(map(chr, np.flatnonzero(material.counts)), material.has_documents)


def make_char_bytes(material: Material) -> Characters:
    """What the text has once is spelt in bytes, which are learnt from that."""
    return characters(map(chr, np.flatnonzero(material.counts > 1)), material.has_documents, byte_tokens=True)


CHAR = Kind("char", make_char, Characters)
CHAR_BYTES = Kind("char+bytes", make_char_bytes, Characters)
