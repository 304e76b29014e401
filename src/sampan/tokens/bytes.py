"""Tokens as bytes: characters come out as soon as they are whole and, where asked, nothing but characters can.

    table = token_bytes(tokenizer, vocab_size)   # what each id writes, [b"the", b"\xe6\x9c", ...]
    next_text = stream_text(table); next_text(id)     # the characters that this id completes
    after = transitions(table)                   # after[state, id]: the state that follows, BROKEN if none can

A state is what a text may end with and still become UTF-8: whole characters (WHOLE), or a character's first bytes,
of which only the range of the next byte matters: seven more states. This file draws nothing (sample.py).
"""

import codecs
import re
from collections.abc import Callable

import numpy as np

from sampan.errors import UserError
from sampan.messages import _
from sampan.tokens.fast import byte_alphabet
from sampan.tokens.tokenizer import Tokenizer

WHOLE, ONE, TWO, THREE, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4, BROKEN = range(9)  # ONE: one more byte, and so on

# (state, first byte, last byte, state that follows): table 3-7 of the Unicode Standard, which leaves out overlong
# forms (C0, C1, E0 80, F0 80), surrogates (ED A0) and what lies beyond U+10FFFF (F4 90, F5)
BYTES = (
    (WHOLE, 0x00, 0x7F, WHOLE), (WHOLE, 0xC2, 0xDF, ONE), (WHOLE, 0xE0, 0xE0, AFTER_E0), (WHOLE, 0xE1, 0xEC, TWO),
    (WHOLE, 0xED, 0xED, AFTER_ED), (WHOLE, 0xEE, 0xEF, TWO), (WHOLE, 0xF0, 0xF0, AFTER_F0),
    (WHOLE, 0xF1, 0xF3, THREE), (WHOLE, 0xF4, 0xF4, AFTER_F4),
    (ONE, 0x80, 0xBF, WHOLE), (TWO, 0x80, 0xBF, ONE), (THREE, 0x80, 0xBF, TWO),
    (AFTER_E0, 0xA0, 0xBF, ONE), (AFTER_ED, 0x80, 0x9F, ONE), (AFTER_F0, 0x90, 0xBF, TWO), (AFTER_F4, 0x80, 0x8F, TWO),
)  # fmt: skip


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes] | None:
    """Return what each id below `vocab_size` writes, b"" where the tokenizer has no such token.

    None where that depends on the neighbours: the decoder is none of GPT-2's kind (ByteLevel), SentencePiece's
    (Metaspace or a replaced character, with or without ByteFallback) or characters'.

    >>> from sampan.tokens.characters import characters
    >>> token_bytes(characters("né"), 3)
    [b'n', b'\\xc3\\xa9', b'']
    """
    steps = steps_of(tokenizer.decoder) if tokenizer.decoder else []
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        to_bytes = alphabet_bytes(byte_alphabet())
    elif kinds and kinds <= {"Fuse", "ByteFallback", "Metaspace", "Replace", "Strip"}:
        spaces: dict[
            int, str
        ] = {}  # Strip drops a space at the beginning of a text, where a continuation does not stand
        for step in steps:
            if step["type"] == "Metaspace":
                spaces[ord(step["replacement"])] = " "
            elif step["type"] == "Replace":
                if len(step["pattern"].get("String", "")) != 1:
                    return None
                spaces[ord(step["pattern"]["String"])] = step["content"]
        to_bytes = fallback_bytes(spaces, "ByteFallback" in kinds)
    else:
        return None
    table = [b""] * vocab_size
    for token, i in tokenizer.inner.get_vocab(with_added_tokens=True).items():
        if i < vocab_size:
            table[i] = to_bytes(token)
    return table


def steps_of(decoder: dict) -> list[dict]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in steps_of(part)]


def alphabet_bytes(alphabet: dict[str, int]) -> Callable[[str], bytes]:
    def to_bytes(token: str) -> bytes:
        try:
            return bytes(map(alphabet.__getitem__, token))
        except KeyError:  # an added token, which the library then takes as it is
            return token.encode()

    return to_bytes


def fallback_bytes(spaces: dict[int, str], has_bytes: bool) -> Callable[[str], bytes]:
    one_byte = re.compile("<0x([0-9A-Fa-f]{2})>")

    def to_bytes(token: str) -> bytes:
        byte = one_byte.fullmatch(token) if has_bytes else None
        return bytes.fromhex(byte[1]) if byte else token.translate(spaces).encode()

    return to_bytes


def stream_text(table: list[bytes]) -> Callable[[int], str]:
    """Return a function from the next id to the characters that it completes.

    Bytes that cannot belong to a character become U+FFFD; those that still may are waited for.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda i: decode(table[i])


def transitions(table: list[bytes]) -> np.ndarray:
    """Return the state after each token from each state, uint8 (BROKEN, V); BROKEN where no UTF-8 can follow.

    Raises UserError for a vocabulary that cannot write one whole character.

    >>> transitions([b"a", b"\\xe6", b"\\x9c", b"\\x9c\\x9fa"])[[WHOLE, TWO]].tolist()
    [[0, 2, 8, 8], [8, 8, 1, 0]]
    """
    step = np.full((BROKEN + 1, 256), BROKEN, np.uint8)
    for state, first, last, follows in BYTES:
        step[state, first : last + 1] = follows
    lengths = np.fromiter(map(len, table), np.int64, len(table))
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b"".join(table), np.uint8)
    after = np.repeat(np.arange(BROKEN, dtype=np.uint8)[:, None], len(table), axis=1)
    longer = np.flatnonzero(lengths)
    for position in range(lengths.max(initial=0)):
        longer = longer[lengths[longer] > position]
        after[:, longer] = step[after[:, longer], flat[starts[longer] + position]]
    after[WHOLE + 1 :, lengths == 0] = BROKEN  # an id that writes nothing does not go on with a character
    while True:  # what leads where no token goes on, in a vocabulary that lacks some bytes, leads nowhere itself
        ends = np.flatnonzero((after == BROKEN).all(axis=1))
        if WHOLE in ends:
            raise UserError(_("the tokenizer's vocabulary cannot write one whole character: it is damaged"))
        dead = np.isin(after, ends)
        if not dead.any():
            return after
        after[dead] = BROKEN
