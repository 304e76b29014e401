"""sample.py: what is drawn is what the definition says, and text comes out whole, stopped where it should.

`draw` takes its random numbers, so its distribution is read off exactly instead of being estimated. The
engine is a few lines of numpy whose logits depend on the whole context: it can tell a right one from a wrong.
"""

import collections
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import readable, tiny_config
from helpers import sampan as command
from hypothesis import given, strategies as st
from tokenizers import decoders

import sampan
import sampan.sampling.write
from sampan.checkpoint.folder import load_tokenizer, save_model
from sampan.checkpoint.run import Run
from sampan.cli.sample import read_prompt
from sampan.config import ModelSettings, SampleConfig
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve
from sampan.sampling.draw import WIDE, draw, generate
from sampan.sampling.write import Writer, beginning_of_text, default_prompt, keep_known, write
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.bytes import stream_text, token_bytes, transitions
from sampan.tokens.characters import Characters, characters
from sampan.tokens.kinds import open_tokenizer
from sampan.tokens.tokenizer import Tokenizer

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
    top = float(max(row))
    weights = [np.exp((float(z) - top) / temperature) for z in row]
    if top_k and top_k < V:
        least = sorted(row)[-top_k]
        weights = [w if z >= least else 0.0 for w, z in zip(weights, row, strict=True)]
    total = sum(weights)
    p = [w / total for w in weights]
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
    for top_k, top_p in itertools.product([None, 0, 1, 2, 3, 100], [0.0, 0.1, 0.5, 0.83, 1.0]):
        expected = by_definition(row, temperature, top_k, top_p)
        found, step = measured(row, temperature, top_k, top_p)
        assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= step, (top_k, top_p)
        assert (found[expected == 0] == 0).all(), (top_k, top_p)


def fits(counts: np.ndarray, p: np.ndarray) -> bool:
    """Pearson's chi-square test, with one false alarm in 3 million (5 sigma, by Wilson and Hilferty 1931).

    What is expected fewer than ten times counts together.
    """
    if counts[p == 0].any():
        return False
    expected = p * counts.sum()
    rare = expected < 10
    expected, counts = (np.append(x[~rare], max(x[rare].sum(), 1e-9)) for x in (expected, counts))
    chi_square, free = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    return chi_square < free * (1 - 2 / (9 * free) + 5 * np.sqrt(2 / (9 * free))) ** 3


OPTIONS = [
    dict(temperature=1.0), dict(temperature=0.5), dict(temperature=3.0), dict(temperature=0.0),
    dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_k=3), dict(temperature=1.0, top_k=0),
    dict(temperature=1.0, top_k=99), dict(temperature=1.0, top_p=0.0), dict(temperature=1.0, top_p=0.6),
    dict(temperature=1.0, top_p=0.95), dict(temperature=9.0, top_p=0.9), dict(temperature=1.7, top_k=5, top_p=0.8),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_frequencies_of_what_is_generated(options):
    """The whole way from the seed on: each token, each pair in a sample, and each pair of two samples."""
    row, B, steps = np.float32(ROWS["usual"]), 40, 500
    settings = SampleConfig(**{"top_k": None} | options, num_samples=B, seed=5)
    shape = model(8, len(row))
    tokens = np.stack(list(itertools.islice(generate(Constant(row), shape, np.array([0]), settings), steps)), axis=1)
    p = by_definition(row, settings.temperature, settings.top_k, settings.top_p)
    V = len(row)
    assert fits(np.bincount(tokens.ravel(), minlength=V), p)
    pairs = np.outer(p, p).ravel()
    assert fits(np.bincount((tokens[:, 1::2] * V + tokens[:, ::2]).ravel(), minlength=V * V), pairs)
    assert fits(np.bincount((tokens[1::2] * V + tokens[::2]).ravel(), minlength=V * V), pairs)


def test_the_test_of_frequencies_can_fail():
    row = np.float32(ROWS["usual"])
    drawn = draw(np.repeat(row[None], 20_000, axis=0), np.random.default_rng(0).random(20_000), 1.1)
    counts = np.bincount(drawn, minlength=len(row))
    assert not fits(counts, by_definition(row, 1.0, None, 1.0))
    assert fits(counts, by_definition(row, 1.1, None, 1.0))


class Constant:
    """An engine that gives the same logits whatever it is fed: one row for all samples, or one for each."""

    def __init__(self, logits: np.ndarray):
        self.logits = logits

    def session(self, batch_size: int):
        return self

    def feed(self, ids: np.ndarray, slots=None) -> np.ndarray:
        return np.resize(self.logits, (len(ids), self.logits.shape[-1]))

    def clear(self, slot: int) -> None:
        pass


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_large_vocabulary_has_the_same_definition(options):
    """Where what cannot be drawn is left out first: two rows whose likely tokens are not the same."""
    rng = np.random.default_rng(1)
    logits = (4 * rng.standard_normal((2, WIDE + 500))).astype(np.float32)
    uniforms = (np.arange(50) + 0.5) / 50
    settings = {"top_k": None, "top_p": 1.0} | options
    for row in range(2):
        expected = np.cumsum(by_definition(logits[row], **settings))
        both = np.repeat(logits[None], 50, axis=0).reshape(-1, logits.shape[1])
        drawn = draw(both, np.repeat(uniforms, 2), **settings)[row::2]
        low = np.where(drawn > 0, expected[drawn - 1], 0)
        assert ((low - 1e-9 <= uniforms) & (uniforms <= expected[drawn] + 1e-9)).all()


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
    with pytest.raises(UserError, match="NaN or infinite"):
        draw(logits, np.zeros(2), temperature)


# ---- repetition ----


def processed(history: np.ndarray, logits: np.ndarray, settings: dict) -> np.ndarray:
    """Return the probabilities of the next token as transformers computes them: its own processors in its own order."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    plain = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=logits.shape[1], n_positions=64)
    config = transformers.GenerationConfig(do_sample=True, **settings)
    processors = transformers.GPT2LMHeadModel(plain)._get_logits_processor(
        config, input_ids_seq_length=history.shape[1]
    )
    assert len(processors) == len(settings)
    scores = processors(torch.from_numpy(history.astype(np.int64)), torch.from_numpy(logits.copy()))
    return scores.double().softmax(-1).numpy()


LIMITS = [
    dict(repetition_penalty=1.4), dict(repetition_penalty=0.7), dict(no_repeat_ngram_size=1), dict(no_repeat_ngram_size=2),
    dict(no_repeat_ngram_size=3), dict(min_p=0.2), dict(min_p=1.0), dict(temperature=2.0, min_p=0.3),
    dict(temperature=0.6, top_k=5, top_p=0.9, min_p=0.15, repetition_penalty=1.3, no_repeat_ngram_size=2),
]  # fmt: skip


@pytest.mark.parametrize("settings", LIMITS, ids=str)
@pytest.mark.parametrize("V", [9, WIDE + 50])
def test_repetition_and_min_p_are_transformers(settings, V):
    """The distribution of the next token, read off from many samples of one history: its support, and its shape."""
    rng = np.random.default_rng(V)
    history = rng.integers(0, 6, (1, 40)).astype(np.int32)
    logits = (2 * rng.standard_normal((1, V))).astype(np.float32)
    logits[:, 6:] -= 2.0
    expected = processed(history, logits, settings)[0]
    B = 4000 if V < WIDE else 500
    config = SampleConfig(**dict(temperature=1.0, top_k=0, seed=3, num_samples=B) | settings)
    engine = Constant(np.repeat(logits, B, axis=0))
    tokens = next(generate(engine, model(64, V), history[0], config))
    counts = np.bincount(tokens, minlength=V)
    assert fits(counts, expected) and (expected == 0).any() == (not settings.keys() <= {"repetition_penalty"})
    if V < WIDE:
        plain = processed(history, logits, {})[0]
        assert not fits(counts, plain), "without the settings it is another distribution"


@pytest.mark.parametrize("settings", [dict(repetition_penalty=1.3), dict(no_repeat_ngram_size=2),
                                      dict(repetition_penalty=1.2, no_repeat_ngram_size=3)], ids=str)  # fmt: skip
def test_greedy_text_without_repetition_is_transformers(settings, engine_name):
    """A whole text, past the prompt: the same ids as transformers writes with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = tiny_config("gpt2", block_size=64, vocab_size=30)
    weights = {name: 5 * w for name, w in initialize(shape, seed=3).items()}
    save_model("model", shape, weights, None)
    ids = np.array([3, 4, 3, 5], np.int32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    made = theirs.generate(torch.from_numpy(ids[None].astype(np.int64)), do_sample=False, max_new_tokens=50,
                           eos_token_id=None, pad_token_id=0, **settings)[0].tolist()  # fmt: skip
    config = SampleConfig(engine=engine_name, device="cpu", dtype="float32", threads=1, temperature=0.0, **settings)
    engine = open_engine(shape, config)
    engine.load(weights)
    ours = [int(t[0]) for t in itertools.islice(generate(engine, shape, ids, config), 50)]
    assert ours == made[4:] and len(set(ours)) > 5
    plain = [int(t[0]) for t in itertools.islice(generate(engine, shape, ids, SampleConfig(temperature=0.0)), 50)]
    assert plain != ours


def test_a_ban_that_leaves_nothing_is_lifted():
    """Where every token has been written, transformers fails; a text of three letters goes on."""
    engine, config = Constant(np.float32([0.1, 0.3, 0.2])), SampleConfig(no_repeat_ngram_size=1, temperature=0.0)
    tokens = [int(t[0]) for t in itertools.islice(generate(engine, model(8, 3), np.int32([2]), config), 6)]
    assert tokens == [1, 0, 1, 1, 1, 1]


# ---- the writer ----


def writer_of(tokenizer, stop=()) -> Writer:
    return Writer(stream_text(token_bytes(tokenizer, 351)), tokenizer.stops, stop)


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
    if shown != text:  # the first to be complete ends it, at the earliest, however the text is cut into tokens
        whole = next(text[:n] for n in range(len(text) + 1) if any(s in text[:n] for s in stops))
        assert shown == whole[: min(whole.find(s) for s in stops if s in whole)]


@pytest.mark.parametrize("tokens", [["x", "a", "b", "c", "d"], ["xa", "bcd", "y"], ["xabcdy"], ["xabcd"]])
def test_how_the_text_is_cut_does_not_decide_which_stop_string_counts(tokens):
    """Of abcd and bc, which lies inside it, bc is complete first."""
    writer = Writer(tokens.__getitem__, frozenset(), ("abcd", "bc"))
    assert "".join(writer.add(i) for i in range(len(tokens))) + writer.finish() == "xa"


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


@given(ids=st.lists(st.integers(0, 350), max_size=40))
def test_any_tokens_at_all_make_text(bpe, ids):
    """An untrained model writes bytes that are no UTF-8 where it may, and ids that a padded vocabulary has no token
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

    def __init__(self, model: ModelShape):
        self.model, self.contexts, self.passes = model, [], 0

    def session(self, batch_size: int):
        return RecorderSession(self, batch_size)


class RecorderSession:
    def __init__(self, engine: Recorder, slots: int):
        self.engine, self.fed = engine, [[] for _ in range(slots)]

    def clear(self, slot: int) -> None:
        self.fed[slot] = []

    def feed(self, ids: np.ndarray, slots=None) -> np.ndarray:
        slots = range(len(ids)) if slots is None else slots
        assert ids.dtype == np.int32 and len(ids) == len(slots) and ids.shape[1] > 0
        result = []
        for slot, new in zip(slots, ids.tolist(), strict=True):
            self.fed[slot] += new
            assert len(self.fed[slot]) <= self.engine.model.block_size
            self.engine.contexts.append((slot, [*self.fed[slot]]))
            self.engine.passes += len(new)
            seed = hash(tuple(self.fed[slot])) % 2**32
            result.append(np.random.default_rng(seed).standard_normal(self.engine.model.vocab_size))
        return np.stack(result).astype(np.float32)


def model(block_size: int = 8, vocab_size: int = 11) -> ModelShape:
    return resolve(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=block_size, vocab_size=vocab_size))


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
    for row in range(2):
        contexts = [context for slot, context in engine.contexts if slot == row]
        for count, context in enumerate(contexts):
            so_far = ids + tokens[row, :count].tolist()
            assert context == so_far[-len(context) :]
            assert len(context) == len(so_far) or len(context) >= max(1, block_size // 2)
        assert len(contexts) == 40  # one pass a token, and none for nothing


def test_a_window_that_slides_costs_few_tokens():
    _, engine = run([1], 400, block_size=8)
    assert engine.passes <= 400 * 2


def test_a_sample_is_the_same_whatever_is_drawn_beside_it():
    many, _ = run([3, 1], 30, num_samples=5, seed=7)
    for n in (1, 2, 4):
        assert run([3, 1], 30, num_samples=n, seed=7)[0].tolist() == many[:n].tolist()
    assert len({tuple(row) for row in many.tolist()}) == 5
    assert run([3, 1], 30, num_samples=1, seed=8)[0].tolist() != many[:1].tolist()


@pytest.mark.parametrize("V", [11, WIDE + 9])
def test_prompts_of_any_lengths_give_what_each_gives_alone(V):
    """Also where their windows slide, each at its own time."""
    prompts = [np.int32(range(1, n)) for n in (2, 9, 4)]
    shape, config = model(8, V), SampleConfig(seed=7, num_samples=3, top_p=0.9, no_repeat_ngram_size=3)
    together = [*itertools.islice(generate(Recorder(shape), shape, prompts, config), 30)]
    for i, prompt in enumerate(prompts):
        same_place = [prompt] * 3  # sample i draws its own random numbers
        alone = [*itertools.islice(generate(Recorder(shape), shape, same_place, config), 30)]
        assert [t[i] for t in together] == [t[i] for t in alone]


def test_greedy_samples_are_equal_and_need_no_seed():
    one, _ = run([3, 1], 30, num_samples=2, temperature=0.0, seed=1)
    two, _ = run([3, 1], 30, num_samples=2, temperature=0.0, seed=2)
    assert one.tolist() == two.tolist() and one[0].tolist() == one[1].tolist()


# ---- writing ----


def texts(tokenizer, prompt, vocab_size=None, **settings) -> list[str]:
    config = SampleConfig(**{"max_new_tokens": 40, "seed": 1337} | settings)
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


@pytest.mark.parametrize("settings", [{}, {"valid_utf8": False}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_ids_that_no_token_has_are_not_drawn(chars, bpe, kind, settings):
    """A padded vocabulary: such an id would write nothing, and take a place of max_new_tokens."""
    tokenizer = bpe if kind == "bpe" else chars
    shape = model(16, 4 * tokenizer.vocab_size)
    engine, config = Recorder(shape), SampleConfig(max_new_tokens=50, seed=1, top_k=0, num_samples=9, **settings)
    collections.deque(write(engine, shape, tokenizer, "the", config), maxlen=0)
    fed = np.array([context[-1] for _, context in engine.contexts if len(context) > 3])
    assert len(fed) > 100 and fed.max() < tokenizer.vocab_size
    assert len({*fed.tolist()}) > 10


def test_a_vocabulary_that_does_not_fit_is_one_sentence(bpe):
    with pytest.raises(UserError, match="does not match the model"):
        texts(bpe, "the boat", vocab_size=10)


def test_an_unknown_character_of_a_prompt(chars):
    with pytest.raises(UserError, match=r"龍 \(U\+9F8D\), character 5"):
        texts(chars, "the 龍 boat")
    assert texts(chars, "the 龍 boat", oov="skip", max_new_tokens=0) == ["the  boat"]
    with pytest.raises(UserError, match="none of the prompt"):
        texts(chars, "龍龍", oov="skip")


@pytest.mark.parametrize("oov", ["error", "skip"])
def test_a_prompt_that_is_no_unicode_is_one_sentence(chars, bpe, oov):
    """What a command line has where its bytes are not of the terminal's encoding."""
    for tokenizer in (chars, bpe):
        with pytest.raises(UserError, match="character 5 of the prompt"):
            texts(tokenizer, "the " + b"\xe6".decode("utf-8", "surrogateescape"), oov=oov)


@pytest.mark.parametrize("prompt", [None, ""])
def test_no_prompt_begins_somewhere(chars, bpe, prompt):
    for tokenizer in (chars, bpe, characters("abc"), characters("abc\n")):
        text = texts(tokenizer, prompt)[0]
        assert text and "<|endoftext|>" not in text
        is_line = prompt is None and not tokenizer.between  # else the text begins as a document does
        assert not is_line or text[0] == ("a" if tokenizer.encode("\n", "skip").size == 0 else "\n")


@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_without_a_prompt_a_sample_begins_as_the_texts_do(tokenizer, monkeypatch):
    """With the end-of-text token where there were documents, in `train`, `sample` and a copy of the model; else a line."""
    rows = [json.dumps({"text": readable(60, seed=i)}) for i in range(40)]
    Path("jokes.jsonl").write_text("\n".join(rows)), Path("book.txt").write_text(readable(2000))
    begun: list[list[int]] = []

    def begin(engine, model, ids, config, after):
        begun.append(ids.tolist())
        return generate(engine, model, ids, config, after)

    monkeypatch.setattr(sampan.sampling.write, "generate", begin)
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--max_iters=1", "--threads=1"]
    for text, documents in (("jokes.jsonl", 40), ("book.txt", 1)):
        command("train", text, f"--tokenizer={tokenizer}", "--out_dir=out", "--overwrite", *sizes)
        command("sample", "out", "--max_new_tokens=1")
        tokenizer_of_run = load_tokenizer("out")
        first = [tokenizer_of_run.end_of_text] if documents > 1 else tokenizer_of_run.encode("\n").tolist()
        assert None not in first and begun == [first, first]
        assert Run("out").documents() == documents
        begun.clear()
    command("train", "jokes.jsonl", f"--tokenizer={tokenizer}", "--out_dir=out", "--overwrite", *sizes)
    Path("out/run.json").unlink()  # a model's folder
    assert command("sample", "out", "--max_new_tokens=0", "--seed=1").stdout == "\n"
    command("sample", "out", "--max_new_tokens=1")
    assert begun[-1] == [load_tokenizer("out").end_of_text]


def test_a_window_slides_in_a_real_engine_too(engine_name):
    """What follows is what the window alone gives, fed whole: the engine's cache knows nothing else."""
    shape = tiny_config("llama", block_size=12, vocab_size=40)
    settings = SampleConfig(engine=engine_name, device="cpu", temperature=0.0, top_k=None, num_samples=2, threads=1)
    engine = open_engine(shape, settings)
    engine.load({name: 5 * w for name, w in initialize(shape, seed=3).items()})
    ids = [5, 1, 9]
    tokens = [int(t[1]) for t in itertools.islice(generate(engine, shape, np.int32(ids), settings), 60)]
    length = len(ids)
    for count, token in enumerate(tokens):
        window = (ids + tokens[:count])[-length:]
        logits = engine.session(1).feed(np.int32([window]))[0]
        assert logits[token] >= logits.max() - 1e-4 * np.abs(logits).max()
        length = length + 1 if length < shape.block_size else shape.block_size // 2
    assert len(set(tokens)) > 3


def test_samples_stop_each_at_its_own_place(chars):
    prompt = "the "
    whole = [t[len(prompt) :] for t in texts(chars, prompt, num_samples=6, max_new_tokens=200)]
    stopped = [t[len(prompt) :] for t in texts(chars, prompt, num_samples=6, max_new_tokens=200, stop=("w", "木", "e"))]
    assert len({len(t) for t in stopped}) > 2
    for full, part in zip(whole, stopped, strict=True):
        assert part == re.split("[w木e]", full)[0]


# ---- anything that a user can ask ----


@pytest.fixture(scope="module")
def writers(chars, bpe):
    """Random models, (engine, model, tokenizer), over the kinds of vocabularies that there are."""
    made = []
    for seed, tokenizer in enumerate((chars, bpe, with_bytes(CHINESE), characters("ab"))):
        shape = tiny_config("gpt2", block_size=16, vocab_size=tokenizer.vocab_size + seed)  # one is exact, some padded
        engine = open_engine(shape, SampleConfig(threads=1, device="cpu"))
        engine.load({name: 5 * w for name, w in initialize(shape, seed).items()})
        made.append((engine, shape, tokenizer))
    return made


def any_prompt(rng: random.Random) -> str:
    def any_character() -> str:
        return chr(rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)]))

    kind = rng.randrange(7)
    if kind == 0:
        return ""
    if kind == 1:  # half of a surrogate pair may be in a command line
        return "".join(any_character() for _ in range(rng.randrange(40)))
    if kind == 2:
        return "".join(
            rng.choices("龍龘\U00020000é\0", k=rng.randrange(1, 30))
        )  # no vocabulary has these as characters
    if kind == 3 and rng.random() < 0.1:
        return "".join(rng.choices(TEXT, k=rng.randrange(20_000)))
    if kind == 4:
        return rng.choice(["<|endoftext|>", "<0xE6>", "\ufffd", "\r\n", " ", "a" * 500, "-", "FILE:"])
    return "".join(rng.choices(TEXT + CHINESE, k=rng.randrange(60)))


def any_settings(rng: random.Random, vocab_size: int) -> dict:
    return dict(
        temperature=rng.choice([0.0, 1.0, 100.0, 5e-324, rng.uniform(0, 100), 10 ** rng.uniform(-12, 2)]),
        top_k=rng.choice([None, 0, 1, rng.randrange(2 * vocab_size), 10**9]),
        top_p=rng.choice([0.0, 1.0, rng.random(), below_one]),
        stop=rng.choice([(), (), ("the", "\n"), ("木", "", "板有"), (any_prompt(rng)[:5],)]),
        oov=rng.choice(["error", "skip"]), num_samples=rng.choice([1, 1, 2, 5]), seed=rng.randrange(2**63),
        max_new_tokens=rng.choice([0, 1, 7, 20, 45]), valid_utf8=rng.choice([None, True]),
    )  # fmt: skip


def write_anything(writers, seed: int) -> bool:
    """Whether anything was written, which is asserted to be text; an error is asserted to be one sentence."""
    rng = random.Random(seed)
    engine, shape, tokenizer = rng.choice(writers)
    prompt, settings = any_prompt(rng), SampleConfig(**any_settings(rng, shape.vocab_size))
    pieces = [[] for _ in range(settings.num_samples)]
    try:
        for number, piece in write(engine, shape, tokenizer, prompt, settings):
            pieces[number].append(piece)
    except UserError as error:
        unknown = [c for c in prompt if isinstance(tokenizer, Characters) and not len(tokenizer.encode(c, "skip"))]
        refused = unknown and (settings.oov == "error" or len(unknown) == len(prompt))
        assert "\n" not in str(error) and (refused or re.search("[\ud800-\udfff]", prompt))
        return False
    for shown, *new in pieces:
        assert shown == prompt or (settings.oov == "skip" and isinstance(tokenizer, Characters))
        assert all(piece.encode() or True for piece in new)  # no half of a surrogate pair
        assert "\ufffd" not in "".join(new)
        assert not any(stop and stop in "".join(new) for stop in settings.stop)
    return any(any(new) for _, *new in pieces)


def test_any_prompt_and_any_settings(writers):
    assert 100 < sum(write_anything(writers, seed) for seed in range(400)) < 400


@pytest.mark.full
def test_ten_thousand_prompts_and_settings(writers):
    assert 2500 < sum(write_anything(writers, seed) for seed in range(10_000)) < 10_000


# ---- a model that knows nothing writes text ----


def with_bytes(text: str) -> Tokenizer:
    """Characters with byte fallback, made from the library's parts."""
    vocab = {f"<0x{b:02X}>": b for b in range(256)}
    vocab |= {c: 256 + i for i, c in enumerate(sorted(set(text)))}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return open_tokenizer(inner)


def sentencepiece(text: str) -> Tokenizer:
    """The same with Llama's way of writing a space."""
    made = with_bytes(text.replace(" ", "▁"))
    made.inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def only_bytes() -> Tokenizer:
    return train_bpe(["a"], 257)


VOCABULARIES = {
    "bytes": only_bytes,
    "bpe": lambda: train_bpe([CHINESE * 9 + TEXT], 400),
    "char+bytes": lambda: with_bytes(CHINESE + TEXT),
    "sentencepiece": lambda: sentencepiece(CHINESE + TEXT),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_thousand_wild_samples_are_utf8(kind):
    """From random models at temperature 5: half of what they draw freely is broken, and of the 1,000 nothing is."""
    tokenizer = VOCABULARIES[kind]()
    broken = unfinished = 0
    for seed in range(4):
        shape = tiny_config("qwen3", block_size=32, vocab_size=tokenizer.vocab_size + 3)
        settings = SampleConfig(
            num_samples=250, max_new_tokens=40, temperature=5.0, top_k=None, seed=seed, threads=1, device="cpu"
        )
        engine = open_engine(shape, settings)
        engine.load(initialize(shape, seed))
        written = [""] * 250
        for number, piece in write(engine, shape, tokenizer, "", settings):
            written[number] += piece
        table = token_bytes(tokenizer, shape.vocab_size)
        drawn = generate(
            engine,
            shape,
            beginning_of_text(tokenizer),
            settings,
            keep_known(tokenizer, shape.vocab_size, transitions(table)),
        )
        ids = np.stack([next(drawn) for _ in range(40)], axis=1)
        for text, row in zip(written, ids.tolist(), strict=True):
            raw = b"".join(table[i] for i in itertools.takewhile(lambda i: i != tokenizer.end_of_text, row))
            whole = raw.decode("utf-8", "ignore")
            assert raw.startswith(whole.encode()) and len(raw) - len(whole.encode()) <= 3
            assert text == whole and "\ufffd" not in text
            unfinished += raw != whole.encode()
        freely = write(engine, shape, tokenizer, "", replace(settings, valid_utf8=False))
        broken += len({number for number, piece in freely if "\ufffd" in piece})
    assert broken > 500 and unfinished > 100


def test_a_prompt_of_whole_characters_is_gone_on_with_by_whole_characters(bpe):
    for prompt in ("木", "the boat", "👩‍👩‍👧"):
        for text in texts(bpe, prompt, num_samples=20, temperature=5.0, top_k=0):
            assert text.startswith(prompt) and "\ufffd" not in text


# ---- prompts ----


def test_a_prompt_is_itself_a_file_or_standard_input():
    Path("p.txt").write_bytes("ROMEO:\n木".encode())
    assert read_prompt("ROMEO:\n", None) == "ROMEO:\n"
    assert read_prompt("FILE:p.txt", None) == "ROMEO:\n木"
    assert read_prompt("-", io.StringIO("from a pipe")) == "from a pipe"
    assert read_prompt("-5", None) == "-5" and read_prompt("", None) == ""


def test_marks_of_windows_are_no_part_of_a_prompt():
    marked = b"\xef\xbb\xbfROMEO:\r\n\r\nO"
    Path("p.txt").write_bytes(marked)
    as_on_linux = io.TextIOWrapper(io.BytesIO(marked), encoding="utf-8", newline="\n")  # it translates no line ends
    assert read_prompt("FILE:p.txt", None) == read_prompt("-", as_on_linux) == "ROMEO:\n\nO"
    assert read_prompt("ROMEO:\r\n\rO", None) == "ROMEO:\n\nO", "as a shell's $(cat p.txt) gives it"


# ---- the seed ----


def sample_twice(*words: str) -> list[tuple[str, str]]:
    """Return what two runs of the same command print and say."""
    shape, tokenizer = model(16, 30), characters(TEXT)
    save_model("model", shape, initialize(shape, 1), tokenizer)
    done = [command("sample", "model", "--prompt=the", "--max_new_tokens=60", *words) for _ in range(2)]
    return [(d.stdout, d.stderr) for d in done]


def test_each_run_draws_a_new_text_and_prints_its_seed():
    (one, said), (two, _said) = sample_twice()
    seed = re.search(r"--seed (\d+)", said)[1]
    assert one != two
    for again in (f"--seed={seed}", f"--seed={seed}"):
        assert [text for text, _ in sample_twice(again)] == [one, one]


def test_a_given_seed_or_none_at_all_is_not_printed():
    for words in (["--seed=1337"], ["--temperature=0"]):
        (one, said), (two, _said) = sample_twice(*words)
        assert one == two and "seed" not in said


@pytest.mark.parametrize("start", ["FILE:missing.txt", "FILE:bad.txt", "FILE:.", "FILE:"])
def test_a_prompt_that_cannot_be_read_is_one_sentence(start):
    Path("bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as a prompt"):
        read_prompt(start, None)


def test_standard_input_that_is_no_text_is_one_sentence():
    with pytest.raises(UserError, match="standard input"):
        read_prompt("-", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))


# ---- Ctrl-C ----


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_an_interrupt_shows_what_there_is():
    endless = characters(TEXT)  # it has no end-of-text token
    shape = tiny_config("gpt2", block_size=32, vocab_size=endless.vocab_size)
    save_model("model", shape, initialize(shape, 1), endless)
    process = subprocess.Popen(
        [sys.executable, "-m", "sampan", "sample", "model", "--max_new_tokens=100000000", "--num_samples=3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])},
    )  # fmt: skip
    assert process.stderr.readline()  # it has begun
    begun = process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and err.count("\n") == 1
    first, second, third = (begun + out).split("\n---------------\n")
    assert len(third) > 20 and third.endswith("\n")
    assert abs(len(first) - len(second)) <= 1


def test_a_vocabulary_without_a_line_end_begins_a_document():
    without, within = (characters(text, end_of_text=True) for text in ("abc", "abc\n"))
    assert default_prompt(without, documents=1) == ""
    assert default_prompt(within, documents=1) == "\n"
    assert default_prompt(within, documents=2) == default_prompt(within) == ""
    assert default_prompt(characters("abc"), documents=1) == "a"
