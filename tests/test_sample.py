"""sample.py: what is drawn is what the definition says, and text comes out whole, stopped where it should.

`draw` takes its random numbers, so its distribution is read off exactly instead of being estimated. The
engine is a few lines of numpy whose logits depend on the whole context: it can tell a right one from a wrong.
"""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import readable
from hypothesis import given, strategies as st

from sampan.config import ModelConfig, SampleConfig
from sampan.errors import UserError
from sampan.sample import Writer, draw, generate, read_prompt, write
from sampan.tokenizer import characters, train_bpe
from sampan.utf8 import stream, token_bytes

CHINESE = "舢板有三块木板：准备👩‍👩‍👧、训练🏳️‍🌈、写作。"
TEXT = readable(3000)


@pytest.fixture(scope="module")
def chars():
    return characters(TEXT + CHINESE, end_of_text=True)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT + CHINESE], 320)


# ---- draw ----


def by_definition(row, temperature: float, top_k: int | None, top_p: float) -> np.ndarray:
    """The distribution of one row of logits, token by token, in Python's own words."""
    V = len(row)
    if temperature == 0:
        return np.eye(V)[int(np.argmax(row))]
    weights = [np.exp((float(z) - float(max(row))) / temperature) for z in row]
    if top_k is not None and top_k < V:
        least = sorted(row)[-top_k]
        weights = [w if z >= least else 0.0 for w, z in zip(weights, row, strict=True)]
    p = [w / sum(weights) for w in weights]
    if top_p < 1.0:
        kept, held = set(), 0.0
        for i in sorted(range(V), key=lambda i: (-p[i], i)):
            if kept and held >= top_p:
                break
            kept.add(i)
            held += p[i]
        p = [q if i in kept else 0.0 for i, q in enumerate(p)]
    return np.array(p) / sum(p)


def measured(row, *settings) -> tuple[np.ndarray, float]:
    """The same, read off `draw` at evenly spaced uniforms, and how fine they are."""
    n = 4000
    uniforms = (np.arange(n) + 0.5) / n
    drawn = draw(np.repeat(np.asarray(row, np.float32)[None], n, axis=0), uniforms, *settings)
    assert (np.diff(drawn) >= 0).all()  # the inverse of a cumulative distribution
    return np.bincount(drawn, minlength=len(row)) / n, 1 / n


ROWS = {
    "usual": [0.3, -1.2, 2.0, 0.0, 1.1, -3.0, 0.9],
    "flat": [1.0, 1.0, 1.0, 1.0],
    "ties": [0.0, 2.0, 2.0, 1.0, 1.0, 2.0],
    "some impossible": [-np.inf, 0.5, -np.inf, 1.5, 0.0],
    "one": [3.0],
    "far apart": [-1e30, 1e30, 0.0],
}


@pytest.mark.parametrize("temperature", [0, 1e-6, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_distribution_is_the_definition(row, temperature):
    row = np.float32(row)
    for top_k, top_p in itertools.product([None, 1, 2, 3, 100], [0.0, 0.1, 0.5, 0.83, 1.0]):
        expected = by_definition(row, temperature, top_k, top_p)
        found, step = measured(row, temperature, top_k, top_p)
        assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= step, (top_k, top_p)
        assert (found[expected == 0] == 0).all(), (top_k, top_p)


def test_drawing_with_random_numbers_gives_the_frequencies():
    """Chi-square with 6 degrees of freedom: beyond 22.5 once in a thousand seeds, and this is one seed."""
    row, n = ROWS["usual"], 20_000
    drawn = draw(np.repeat(np.float32([row]), n, axis=0), np.random.default_rng(0).random(n), 0.8)
    expected = by_definition(np.float32(row), 0.8, None, 1.0) * n
    assert ((np.bincount(drawn, minlength=7) - expected) ** 2 / expected).sum() < 22.5


finite = st.floats(-1e38, 1e38).map(lambda x: float(np.float32(x)))
rows = st.integers(1, 9).flatmap(
    lambda V: st.lists(
        st.lists(finite | st.just(-np.inf) | st.integers(-3, 3).map(float), min_size=V, max_size=V).filter(
            lambda row: max(row) > -np.inf
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
temperatures = st.sampled_from([0, 0.0, 5e-324, 1e-300, 1e-9, 1.0, 100.0, 1e300]) | st.floats(0, 10)
below_one = float(np.nextafter(1.0, 0.0))


@given(
    rows, temperatures, st.none() | st.integers(1, 20), st.floats(0, 1),
    st.lists(st.sampled_from([0.0, 5e-324, below_one]) | st.floats(0, below_one), min_size=4, max_size=4),
)  # fmt: skip
def test_whatever_the_settings_a_possible_token_is_drawn(logits, temperature, top_k, top_p, uniforms):
    logits = np.float32(logits)
    before = logits.copy()
    ids = draw(logits, np.array(uniforms[: len(logits)]), temperature, top_k, top_p)
    assert ids.shape == (len(logits),) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < logits.shape[1]
    chosen = logits[np.arange(len(ids)), ids]
    assert (chosen > -np.inf).all()
    if temperature == 0 or top_k == 1 or top_p == 0:
        assert (chosen == logits.max(axis=1)).all()
    assert (logits == before).all()  # they may be the engine's own


@given(rows, st.floats(0.1, 3), st.floats(0, below_one))
def test_a_row_is_drawn_as_if_it_were_alone(logits, temperature, uniform):
    logits = np.float32(logits)
    u = np.full(len(logits), uniform)
    together = draw(logits, u, temperature, 3, 0.9)
    assert together.tolist() == [draw(logits[i : i + 1], u[:1], temperature, 3, 0.9)[0] for i in range(len(logits))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_one_sentence(bad, temperature):
    logits = np.zeros((2, 3), np.float32)
    logits[1] = bad if bad == -np.inf else [0, bad, 1]
    with pytest.raises(UserError, match="not finite"):
        draw(logits, np.zeros(2), temperature)


# ---- the writer ----


def writer_of(tokenizer, stop=()) -> Writer:
    return Writer(stream(token_bytes(tokenizer, tokenizer.vocab_size)), tokenizer.end_of_text, stop)


def written(tokenizer, ids, stop=()) -> list[str]:
    writer = writer_of(tokenizer, stop)
    return [writer.add(int(i)) for i in ids] + [writer.finish()]


def splits_no_character(pieces: list[str]) -> bool:
    return not any("\ufffd" in piece for piece in pieces)


bits = st.lists(
    st.sampled_from([*CHINESE, " the boat", "a ", "row", "\n", ". ", "e", "👩‍👩‍👧", "木板"]), max_size=12
).map("".join)


@given(
    text=bits,
    stop=st.sampled_from(["\n", "a r", "the", "木", "、", "👩‍👩‍👧", "ee", "e ea", ". ", "row\n"]) | bits,
)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_stop_string_ends_the_text_before_it(chars, bpe, kind, text, stop):
    tokenizer = bpe if kind == "bpe" else chars
    pieces = written(tokenizer, tokenizer.encode(text, "skip"), (stop,))
    kept = tokenizer.decode(tokenizer.encode(text, "skip"))
    assert "".join(pieces) == (kept.split(stop)[0] if stop else kept)
    assert splits_no_character(pieces)


stop_strings = st.lists(st.sampled_from(["the boat", "boat", "at", "、训", "。", "row", "ow"]), max_size=4)


@given(text=bits, stops=stop_strings)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_of_several_stop_strings_none_is_shown(chars, bpe, kind, text, stops):
    tokenizer = bpe if kind == "bpe" else chars
    text = tokenizer.decode(tokenizer.encode(text, "skip"))
    shown = "".join(written(tokenizer, tokenizer.encode(text), tuple(stops)))
    assert text.startswith(shown) and not any(s in shown for s in stops)
    assert shown == text or any(s in text for s in stops)
    if kind == "char" and shown != text:  # the first to be complete ends it, at the earliest
        whole = next(text[:n] for n in range(len(text) + 1) if any(s in text[:n] for s in stops))
        assert shown == whole[: min(whole.find(s) for s in stops if s in whole)]


@given(text=bits)
def test_what_cannot_be_a_stop_string_is_not_held_back(chars, text):
    writer = writer_of(chars, ("\n\n",))
    for c in chars.encode(text.replace("\n", "")):
        assert writer.add(int(c)) == chars.decode([c])


@given(text=bits)
def test_each_character_comes_as_soon_as_it_is_whole(bpe, text):
    writer, shown, raw = writer_of(bpe), "", b""
    for token in bpe.encode(text):
        piece = writer.add(int(token))
        raw += bytes_of(bpe, int(token))
        shown += piece
        assert shown == raw.decode("utf-8", "ignore")  # all whole characters so far


def bytes_of(tokenizer, token: int) -> bytes:
    """The bytes of a byte-level token, by GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
    return bytes(table[c] for c in tokenizer.inner.id_to_token(token))


@given(ids=st.lists(st.integers(0, 350) | st.integers(0, 10**9), max_size=40))
def test_any_tokens_at_all_make_text(bpe, ids):
    """An untrained model writes bytes that are no UTF-8, and ids that a padded vocabulary has no token
    for."""
    kept = list(itertools.takewhile(lambda i: i != bpe.end_of_text, ids))
    shown = "".join(written(bpe, ids))
    raw = b"".join(bytes_of(bpe, i) for i in kept if i < bpe.vocab_size)
    whole = raw.decode("utf-8", "replace")
    assert whole.startswith(shown)
    assert whole[len(shown) :].strip("\ufffd") == ""  # only what is incomplete at the end is missing


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_end_of_text_ends_a_sample_and_is_not_shown(chars, bpe, kind):
    tokenizer = bpe if kind == "bpe" else chars
    ids = [*tokenizer.encode("the a"), tokenizer.end_of_text, *tokenizer.encode("boat")]
    assert "".join(written(tokenizer, ids)) == "the a"
    assert "".join(written(tokenizer, ids, ("a boat",))) == "the a"  # what was held back is shown


# ---- generating ----


class Recorder:
    """An engine whose logits follow from the whole context, and that writes down what it was fed."""

    def __init__(self, model: ModelConfig):
        self.model, self.contexts, self.passes = model, [], 0

    def session(self, batch_size: int):
        return RecorderSession(self, batch_size)


class RecorderSession:
    def __init__(self, engine: Recorder, batch_size: int):
        self.engine, self.fed = engine, np.empty((batch_size, 0), np.int64)

    @property
    def position(self) -> int:
        return self.fed.shape[1]

    def feed(self, ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int32 and ids.shape[0] == len(self.fed) and ids.shape[1] > 0
        self.fed = np.concatenate((self.fed, ids), axis=1)
        assert self.position <= self.engine.model.block_size
        self.engine.contexts.append(self.fed.tolist())
        self.engine.passes += ids.shape[1]
        seeds = [hash(tuple(row)) % 2**32 for row in self.fed.tolist()]
        return np.stack([np.random.default_rng(s).standard_normal(self.engine.model.vocab_size) for s in seeds]).astype(
            np.float32
        )


def model(block_size: int = 8, vocab_size: int = 11) -> ModelConfig:
    return ModelConfig(block_size=block_size, vocab_size=vocab_size)


def run(ids, count: int, block_size: int = 8, **settings) -> tuple[np.ndarray, Recorder]:
    """(tokens, int (num_samples, count); the engine that gave the logits)."""
    engine = Recorder(model(block_size))
    drawn = generate(engine, engine.model, np.array(ids, np.int32), SampleConfig(**{"top_k": None} | settings))
    return np.stack([next(drawn) for _ in range(count)], axis=1), engine


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 30])
def test_a_context_is_the_newest_tokens_whole_or_at_least_half(prompt, block_size):
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 11, prompt)]
    tokens, engine = run(ids, 40, block_size, num_samples=2, temperature=1.0)
    for count, fed in enumerate(engine.contexts):
        for row, context in enumerate(fed):
            so_far = ids + tokens[row, :count].tolist()
            assert context == so_far[-len(context) :]
            assert len(context) == len(so_far) or len(context) >= max(1, block_size // 2)
    assert len(engine.contexts) == 40  # one pass a token, and none for nothing


def test_a_window_that_slides_costs_few_tokens():
    _, engine = run([1], 400, block_size=8)
    assert engine.passes <= 400 * 2


def test_a_sample_is_the_same_whatever_is_drawn_beside_it():
    many, _ = run([3, 1], 30, num_samples=5, seed=7)
    for n in (1, 2, 4):
        assert run([3, 1], 30, num_samples=n, seed=7)[0].tolist() == many[:n].tolist()
    assert len({tuple(row) for row in many.tolist()}) == 5
    assert run([3, 1], 30, num_samples=1, seed=8)[0].tolist() != many[:1].tolist()


def test_greedy_samples_are_equal_and_need_no_seed():
    one, _ = run([3, 1], 30, num_samples=2, temperature=0.0, seed=1)
    two, _ = run([3, 1], 30, num_samples=2, temperature=0.0, seed=2)
    assert one.tolist() == two.tolist() and one[0].tolist() == one[1].tolist()


# ---- writing ----


def texts(tokenizer, prompt, vocab_size=None, **settings) -> list[str]:
    config = SampleConfig(**{"max_new_tokens": 40} | settings)
    shape = model(16, vocab_size or tokenizer.vocab_size)
    result = [""] * config.num_samples
    for number, piece in write(Recorder(shape), shape, tokenizer, prompt, config):
        result[number] += piece
    return result


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_text_is_the_prompt_and_what_follows(chars, bpe, kind):
    tokenizer = bpe if kind == "bpe" else chars
    prompt = "the boat 舢板"
    many = texts(tokenizer, prompt, num_samples=3)
    assert all(t.startswith(prompt) and len(t) > len(prompt) for t in many)
    assert texts(tokenizer, prompt) == many[:1]
    assert texts(tokenizer, prompt, max_new_tokens=0, num_samples=2) == [prompt] * 2
    if tokenizer is chars:
        assert max(len(t) for t in many) == len(prompt) + 40


def test_a_stop_string_in_the_prompt_stops_nothing():
    tokenizer, prompt = characters(TEXT), "the\nboat"
    whole = texts(tokenizer, prompt)[0]
    new = whole[len(prompt) :]
    stop = new[12:14]
    assert len(new) == 40 and new.find(stop) > 0
    assert texts(tokenizer, prompt, stop=(stop, prompt, "boat")) == [prompt + new.split(stop)[0]]


def test_a_padded_vocabulary_writes_too(bpe):
    assert texts(bpe, "the", vocab_size=bpe.vocab_size * 4)[0].startswith("the")


def test_a_vocabulary_that_does_not_fit_is_one_sentence(bpe):
    with pytest.raises(UserError, match="do not belong together"):
        texts(bpe, "the boat", vocab_size=10)


def test_an_unknown_character_of_a_prompt(chars):
    with pytest.raises(UserError, match=r"龍 \(U\+9F8D\), character 5"):
        texts(chars, "the 龍 boat")
    assert texts(chars, "the 龍 boat", oov="skip", max_new_tokens=0) == ["the  boat"]
    with pytest.raises(UserError, match="nothing is left"):
        texts(chars, "龍龍", oov="skip")


@pytest.mark.parametrize("prompt", [None, ""])
def test_no_prompt_begins_somewhere(chars, bpe, prompt):
    for tokenizer in (chars, bpe, characters("abc"), characters("abc\n")):
        text = texts(tokenizer, prompt)[0]
        assert text and "<|endoftext|>" not in text
        assert prompt == "" or text[0] == ("a" if tokenizer.encode("\n", "skip").size == 0 else "\n")


# ---- prompts ----


def test_a_prompt_is_itself_a_file_or_standard_input():
    Path("p.txt").write_bytes("ROMEO:\n木".encode())
    assert read_prompt("ROMEO:\n", None) == "ROMEO:\n"
    assert read_prompt("FILE:p.txt", None) == "ROMEO:\n木"
    assert read_prompt("-", io.StringIO("from a pipe")) == "from a pipe"
    assert read_prompt("-5", None) == "-5" and read_prompt("", None) == ""


def test_marks_of_windows_are_no_part_of_a_prompt():
    Path("p.txt").write_bytes(b"\xef\xbb\xbfROMEO:\r\n")
    assert read_prompt("FILE:p.txt", None) == "ROMEO:\n"


@pytest.mark.parametrize("start", ["FILE:missing.txt", "FILE:bad.txt", "FILE:.", "FILE:"])
def test_a_prompt_that_cannot_be_read_is_one_sentence(start):
    Path("bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as a prompt"):
        read_prompt(start, None)


def test_standard_input_that_is_no_text_is_one_sentence():
    with pytest.raises(UserError, match="standard input"):
        read_prompt("-", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
