"""--document_mask: a token sees its own document only, in both engines, forward and backward.

A document begins at its end-of-text token, as a sample does. With rotary positions, which are relative, documents packed
into one window are the same as documents alone: that is the reference, besides the other engine.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import random_config, random_weights, refused, relative_error, sampan

import sampan as library
from sampan.config import MachineConfig, OptimizerSettings
from sampan.engine.open import open_engine
from sampan.errors import UserError

END = 0


def make(shape, engine_name: str, seed: int = 1, masked: bool = True, **settings):
    machine = MachineConfig(engine=engine_name, device="cpu", dtype="float32", threads=2)
    engine = open_engine(shape, machine, OptimizerSettings(document_mask=masked, end_of_text=END, **settings))
    engine.load(random_weights(shape, seed))
    return engine


def packed(shape, lengths: list[list[int]], seed: int = 1) -> np.ndarray:
    """Rows of documents of these lengths, each of which begins with END."""
    draw = np.random.default_rng(seed)
    rows = [
        np.concatenate([np.append(END, draw.integers(1, shape.vocab_size, n - 1)) for n in lengths_of_row])
        for lengths_of_row in lengths
    ]
    return np.array(rows, np.int32)


def long(seed: int):
    """A model whose context is more than two strips of the C engine's attention."""
    return replace(random_config(seed), block_size=150)


LENGTHS = [[1, 20, 70, 3, 56], [150], [75, 75]]  # 150 in all


@pytest.mark.parametrize("seed", range(5))
def test_engines_agree_on_losses_and_gradients(seed):
    shape = long(seed)
    x = packed(shape, LENGTHS)
    x[1, 0] = 1  # a window that begins within a document
    y = np.roll(x, -1, axis=1)
    ours, theirs = (make(shape, name) for name in ("c", "torch"))
    assert relative_error(ours.losses(x, y), theirs.losses(x, y)) < 1e-5
    for engine in (ours, theirs):
        engine.accumulate(x, y)
    gradients, expected = ours.gradients(), theirs.gradients()
    for name, gradient in expected.items():
        assert relative_error(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("seed", [1, 2, 3, 4])  # gpt2 has learned positions
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_documents_are_documents_alone(seed, checkpointing, engine_name):
    shape = long(seed)
    (lengths,) = LENGTHS[:1]
    x = packed(shape, [lengths])
    y = np.roll(x, -1, axis=1)
    engine = make(shape, engine_name, gradient_checkpointing=checkpointing)
    alone = make(shape, engine_name, masked=False)
    begins = np.cumsum([0, *lengths])
    parts = [(x[:, a:b], y[:, a:b]) for a, b in itertools.pairwise(begins)]
    expected = np.concatenate([alone.losses(*part) for part in parts], axis=1)
    assert relative_error(engine.losses(x, y), expected) < 1e-5
    assert relative_error(alone.losses(x, y), expected) > 1e-3, "without a mask it is another loss"
    engine.accumulate(x, y)
    for part in parts:
        alone.accumulate(*part)
    gradients, expected = engine.gradients(), alone.gradients()
    for name, gradient in expected.items():
        assert relative_error(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("seed", range(5))
def test_nothing_before_a_document_matters(seed, engine_name):
    shape = long(seed)
    x = packed(shape, LENGTHS[:1])
    y = np.roll(x, -1, axis=1)
    changed = x.copy()
    changed[0, 22:90] = changed[0, 22:90] % (shape.vocab_size - 1) + 1  # of the third document
    engine = make(shape, engine_name)
    before, after = engine.losses(x, y), engine.losses(changed, y)
    assert np.array_equal(before[0, 91:], after[0, 91:]) and relative_error(after[0, 22:90], before[0, 22:90]) > 1e-2
    unmasked = make(shape, engine_name, masked=False)
    assert not np.allclose(unmasked.losses(x, y)[0, 91:], unmasked.losses(changed, y)[0, 91:], rtol=1e-4)


def test_one_document_needs_no_mask(engine_name):
    shape = long(2)
    x = packed(shape, [[150]])
    y = np.roll(x, -1, axis=1)
    expected = make(shape, engine_name, masked=False).losses(x, y)
    assert relative_error(make(shape, engine_name).losses(x, y), expected) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_is_that_of_the_loss(dropout, engine_name):
    """Along a random direction, by central differences; dropout's masks are those of the step, and so the same."""
    shape = replace(random_config(2), block_size=80, dropout=dropout)
    x = packed(shape, [[30, 1, 49]])
    y = np.roll(x, -1, axis=1)
    direction = random_weights(shape, 9)

    def loss_at(step: float) -> float:
        engine = make(shape, engine_name)
        engine.load({name: w + np.float32(step) * direction[name] for name, w in random_weights(shape, 1).items()})
        engine.accumulate(x, y)
        return engine.update(0.0).loss

    engine = make(shape, engine_name)
    engine.accumulate(x, y)
    slope = sum(float((g * direction[name]).sum()) for name, g in engine.gradients().items())
    measured = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    assert abs(measured) > 1e-2 and slope == pytest.approx(measured, rel=2e-2)


def test_a_run_on_documents_takes_the_mask():
    records = [{"text": f"{i}: " + "a boat " * (3 + i % 5)} for i in range(60)]
    Path("r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    settings = ["n_layer=1", "n_head=2", "n_embd=16", "block_size=32", "max_iters=2", "eval_iters=1", "engine=c"]
    flags = [f"--{setting}" for setting in settings]
    sampan("train", "r.jsonl", *flags, "--document_mask", "True", "--out_dir", "out/r")
    settings = json.loads(Path("out/r/run.json").read_text())["settings"]
    tokenizer = json.loads(Path("out/r/tokenizer.json").read_text())
    ends = [token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|endoftext|>"]
    assert settings["document_mask"] and [settings["end_of_text"]] == ends
    sampan("train", "--resume", "--out_dir", "out/r", "--max_iters", "3")
    assert json.loads(Path("out/r/run.json").read_text())["settings"]["document_mask"]
    Path("one.txt").write_text("a boat on a river " * 90, encoding="utf-8")
    assert "has a single document" in refused("train", "one.txt", *flags, "--document_mask", "True")


def test_a_mask_without_its_token_is_refused(engine_name):
    shape = random_config(1)
    machine = MachineConfig(engine=engine_name, device="cpu")
    for end in (None, shape.vocab_size):
        with pytest.raises(UserError, match="document_mask needs end_of_text"):
            open_engine(shape, machine, OptimizerSettings(document_mask=True, end_of_text=end))


def test_a_gpt_of_ones_own_data_takes_the_mask(engine_name):
    rows = np.random.default_rng(1).integers(0, 5, (20, 17))
    trained = []
    for masked in (True, False):
        gpt = library.GPT(vocab_size=5, block_size=16, n_layer=1, n_head=2, n_embd=16, engine=engine_name, device="cpu")
        for _record in gpt.train(rows, max_iters=2, document_mask=masked, end_of_text=END):
            pass
        trained.append(gpt.weights["wte.weight"])
    assert relative_error(trained[0], trained[1]) > 1e-4
