"""minGPT's programs of 2020, in small: its names, datasets of its kind, and what it computes with the same weights."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import readable

import sampan
from sampan import UserError
from sampan.mingpt import GPT, GPT1Config, GPTConfig, Ignoring, Trainer, TrainerConfig, sample, set_seed

TEXT = readable(2000)


class Characters:
    """As play_char's: windows of a text, the target of each place being the next character."""

    def __init__(self, text: str, block_size: int):
        self.stoi = {c: i for i, c in enumerate(sorted(set(text)))}
        self.vocab_size, self.block_size, self.text = len(self.stoi), block_size, text

    def __len__(self):
        return len(self.text) - self.block_size

    def __getitem__(self, i):
        ids = np.array([self.stoi[c] for c in self.text[i : i + self.block_size + 1]])
        return ids[:-1], ids[1:]


class Sums:
    """As play_math's: the digits of a, b and a + b, of which only the sum is learnt; -100 masks the rest."""

    vocab_size, block_size = 10, 3

    def __init__(self, part: int):
        self.pairs = [
            (a, b) for a in range(10) for b in range(10) if (a * 10 + b) % 5 in ((0,) if part else (1, 2, 3, 4))
        ]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        torch = pytest.importorskip("torch")
        a, b = self.pairs[i]
        ids = [a, b, *divmod(a + b, 10)]
        return torch.tensor(ids[:-1]), torch.tensor([-100, *ids[2:]])


def small(data, **settings):
    config = GPTConfig(data.vocab_size, data.block_size, n_layer=1, n_head=2, n_embd=32, **settings)
    return GPT(config, threads=1, device="cpu", dtype="float32")


def test_a_character_model(capsys):
    data = Characters(TEXT, 16)
    model = small(data)
    trainer = Trainer(
        model, data, None, TrainerConfig(max_epochs=1, batch_size=64, learning_rate=3e-3, ckpt_path="kept")
    )
    before = model.loss(*data[0])
    trainer.train()
    assert model.loss(*data[0]) < 0.8 * before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("epoch 1: train loss ") and lines[0].endswith("learning rate 0.003")
    x = np.array([[data.stoi[c] for c in "the"]])
    y = sample(model, x, 30, temperature=1.0, sample=True, top_k=10)[0]
    assert y[:3].tolist() == x[0].tolist() and y.shape == (33,)
    again = sampan.GPT.load("kept", threads=1, dtype="float32")
    assert all(np.array_equal(a, b) for a, b in zip(again.weights.values(), model.weights.values(), strict=True))


def test_addition_of_tensors(capsys):
    """Sums of digits, taught on four fifths and mostly right in the rest, where one of ten or less would be by chance."""
    torch = pytest.importorskip("torch")
    data, test = Sums(0), Sums(1)
    model = small(data, resid_pdrop=0.0)
    config = TrainerConfig(
        max_epochs=150, batch_size=80, learning_rate=1e-2, lr_decay=True, warmup_tokens=800, final_tokens=150 * 80 * 2
    )
    trainer = Trainer(model, data, test, config)
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 150 and "test loss" in lines[-1] and lines[-1].startswith("epoch 150:")
    x = torch.stack([data[i][0][:2] for i in range(len(data))]).to(trainer.device)
    found = sample(model, x, 2)
    assert isinstance(found, torch.Tensor) and found.dtype == x.dtype and torch.equal(found[:, :2], x)
    right = (found[:, 2] * 10 + found[:, 3] == x.sum(dim=1)).float().mean()
    assert right > 0.9


def test_masked_targets_and_the_test_loss():
    """A target of -100 counts as little as one of -1; the test loss is the mean over the targets that count."""
    pytest.importorskip("torch")
    data = Ignoring(Sums(1))
    assert len(data) == 20 and data[3][1].tolist()[0] == -1 and data[3][1].min() == -1
    model = small(Sums(1), resid_pdrop=0.0)
    trainer = Trainer(model, Sums(0), Sums(1), TrainerConfig(batch_size=7))
    pairs = [data[i] for i in range(20)]
    logits = model.logits(np.stack([x for x, _ in pairs])).astype(float)
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    expected = [-math.log(p[i, t, y[t]]) for i, (_, y) in enumerate(pairs) for t in (1, 2)]
    assert trainer.test_loss() == pytest.approx(np.mean(expected), rel=1e-5) and np.mean(expected) > 1


def test_the_rate_is_counted_in_tokens(capsys):
    """20 examples of 2 targets, 5 at a time: 10 tokens a step, so 20 of them are two steps of warm-up."""
    pytest.importorskip("torch")
    model, data = small(Sums(1)), Sums(1)
    config = TrainerConfig(2, 5, 1e-2, lr_decay=True, warmup_tokens=20, final_tokens=60)
    settings = Trainer(model, data, None, config).settings()
    rates = [record.lr for record in model.train(Ignoring(data), max_iters=8, **settings)]
    assert settings["warmup_iters"] == 2 and settings["lr_decay_iters"] == 6
    assert max(rates) == rates[2] == pytest.approx(1e-2) and rates[6:] == pytest.approx([1e-3] * 2)
    plain = Trainer(model, data, None, TrainerConfig(2, 5, 1e-2)).settings()
    assert {record.lr for record in model.train(Ignoring(data), max_iters=3, **plain)} == {1e-2}


def test_what_is_saved_is_the_best_on_the_test_set(capsys, monkeypatch):
    pytest.importorskip("torch")
    model = small(Sums(1))
    trainer = Trainer(model, Sums(0), Sums(1), TrainerConfig(max_epochs=3, batch_size=80, ckpt_path="kept"))
    losses, saved = iter([2.0, 1.0, 1.5]), []
    monkeypatch.setattr(trainer, "test_loss", lambda: next(losses))
    monkeypatch.setattr(model, "save", saved.append)
    trainer.train()
    assert saved == ["kept"] * 2


def test_configurations():
    """Which parts a minGPT has, and that a setting that is unknown or cannot be kept is named."""
    model = GPT(GPTConfig(11, 6, n_layer=2, n_head=2, n_embd=8), threads=1).model
    assert (model.family, model.dropout, model.tie_word_embeddings, model.mlp_bias) == ("gpt2", 0.1, False, True)
    assert GPT1Config(11, 6).n_embd == 768 and GPT1Config(11, 6, n_layer=2).n_layer == 2
    with pytest.warns(UserWarning, match="using resid_pdrop=0.2"):
        assert GPTConfig(11, 6, embd_pdrop=0.0, resid_pdrop=0.2).dropout == 0.2
    with pytest.raises(UserError, match="GPTConfig: unknown setting 'n_heads'; did you mean n_head"):
        GPTConfig(11, 6, n_heads=2)


def test_a_seed_makes_samples_deterministic():
    model = small(Characters(TEXT, 16))
    texts = []
    for seed in (1, 1, 2):
        set_seed(seed)
        texts.append((sample(model, [[1]], 30, sample=True).tolist(), random.random()))
    assert texts[0] == texts[1] != texts[2]
    assert sample(model, [[1]], 30, sample=True).tolist() != texts[2][0], "the next is another"
    assert not Path("kept").exists()
