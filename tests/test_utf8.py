"""utf8.py: each token's bytes are what the library decodes, and the mask is Python's own idea of UTF-8."""

import itertools

import numpy as np
import pytest
import tokenizers
from conftest import readable
from hypothesis import given, strategies as st
from tokenizers import decoders, models

from sampan.errors import UserError
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.bytes import BROKEN, WHOLE, stream_text, token_bytes, transitions
from sampan.tokens.characters import characters
from sampan.tokens.kinds import open_tokenizer
from sampan.tokens.tokenizer import Tokenizer

TEXT = readable(2000) + "舢板有三块木板：准备👩‍👩‍👧、训练🏳️‍🌈、写作。\ufffd"


def with_decoder(decoder, words=("木", "▁the", "th", "▁", "木板", "<0xZZ>")) -> Tokenizer:
    vocab = {token: i for i, token in enumerate([f"<0x{b:02X}>" for b in range(256)] + list(words))}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    inner.decoder = decoder
    return open_tokenizer(inner)


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.inner.add_tokens(["X Y", "木舟"])  # the first is no byte-level spelling, nor is the second
    return open_tokenizer(tokenizer.inner)


space = decoders.Replace("▁", " ")
KINDS = {
    "char": lambda: characters(TEXT, end_of_text=True),
    "bpe": lambda: train_bpe([TEXT * 5], 400),
    "bpe with more tokens": lambda: with_added(train_bpe([TEXT], 300)),
    "byte fallback": lambda: with_decoder(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])),
    "llama": lambda: with_decoder(
        decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    ),
    "gemma": lambda: with_decoder(decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])),
    "metaspace": lambda: with_decoder(decoders.Metaspace(), ["木", "▁the", "th", "▁"]),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return KINDS[request.param]()


@given(data=st.data())
def test_the_bytes_are_what_the_library_decodes(tokenizer, data):
    table = token_bytes(tokenizer, tokenizer.vocab_size)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(225, 240), max_size=12))
    ids = [min(i, tokenizer.vocab_size - 1) for i in ids]
    raw = b"".join(table[i] for i in ids)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return  # how many U+FFFD stand for it is the library's own affair
    begun = tokenizer.inner.encode("木", add_special_tokens=False).ids  # the library strips a first space
    assert tokenizer.inner.decode([*begun, *ids], skip_special_tokens=False) == "木" + text


@given(data=st.data())
def test_a_stream_shows_each_character_with_its_last_byte(tokenizer, data):
    table = token_bytes(tokenizer, tokenizer.vocab_size + 5)
    next_text, raw, shown = stream_text(table), b"", ""
    for i in data.draw(st.lists(st.integers(0, len(table) - 1), max_size=20)):
        raw += table[i]
        shown += next_text(i)
        assert shown == whole_part(raw).decode("utf-8", "replace")


HALVES = [bytes((0xED, second)) for second in range(0xA0, 0xC0)]  # of surrogate pairs; Python waits for a third byte


def whole_part(raw: bytes) -> bytes:
    """Without the bytes at the end that a character could begin with."""
    for n in (3, 2, 1):
        try:
            raw[-n:].decode()
        except UnicodeDecodeError as error:
            is_begun = error.reason == "unexpected end of data" or raw[-n:] in HALVES
            if n <= len(raw) and error.start == 0 and is_begun:
                return raw[:-n]
    return raw


def test_a_replacement_character_of_the_text_itself_is_shown_at_once():
    tokenizer = train_bpe(["a"], 257)
    next_text = stream_text(token_bytes(tokenizer, 257))
    assert "".join(next_text(int(i)) for i in tokenizer.encode("\ufffd")) == "\ufffd"


@pytest.mark.parametrize(
    "decoder", [None, decoders.WordPiece(), decoders.BPEDecoder(), decoders.CTC(), decoders.Replace("▁▁", " ")]
)
def test_where_a_token_depends_on_its_neighbours_it_has_no_bytes(decoder):
    tokenizer = characters("abc")
    tokenizer.inner.decoder = decoder
    assert token_bytes(open_tokenizer(tokenizer.inner), 3) is None


# ---- the mask ----

EDGES = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
         0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]  # fmt: skip
BEGUN = [b"", b"\xc3", b"\xe6", b"\xf1", b"\xe0", b"\xed", b"\xf0", b"\xf4", b"\xe6\x9c", b"\xf1\x80", b"\xf1\x80\x80"]


def can_become_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def is_utf8(raw: bytes) -> bool:
    return can_become_utf8(raw) and raw.decode("utf-8", "ignore").encode() == raw


@pytest.mark.parametrize("begun", BEGUN)
def test_what_may_follow_is_what_python_can_decode(begun):
    """All single bytes, and up to three of those at the borders of the ranges, after each kind of beginning."""
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes(t) for n in (2, 3) for t in itertools.product(EDGES, repeat=n)]
    after = transitions([*tokens, begun])
    state = after[WHOLE, -1] if begun else WHOLE
    found = after[state, :-1]
    assert (found != BROKEN).tolist() == [can_become_utf8(begun + t) for t in tokens]
    assert (found == WHOLE).tolist() == [is_utf8(begun + t) for t in tokens]


@given(st.lists(st.binary(max_size=6) | st.text(max_size=3).map(str.encode), min_size=1, max_size=30), st.integers(0))
def test_whatever_the_tokens_no_way_ends_broken_or_stuck(tokens, seed):
    """A walk through any vocabulary, also one that lacks bytes: there is a next token at every step, and UTF-8 at the end."""
    try:
        after = transitions(tokens)
    except UserError:
        assert not any(t and is_utf8(t) for t in tokens)
        return
    rng, state, raw = np.random.default_rng(seed), WHOLE, b""
    for _ in range(40):
        token = int(rng.choice(np.flatnonzero(after[state] != BROKEN)))
        assert tokens[token] or state == WHOLE  # a character is gone on with
        state, raw = after[state, token], raw + tokens[token]
        assert can_become_utf8(raw) and (state == WHOLE) == is_utf8(raw)


@pytest.mark.parametrize("tokens", [[b"\x80"], [b"\xe6", b"\xc3"], [b"\xe6\x9c", b"\xf0\x9f"]])
def test_a_vocabulary_of_half_characters_is_one_sentence(tokens):
    with pytest.raises(UserError, match="one whole character"):
        transitions(tokens)
