"""minGPT's names for what Sampan does, as minGPT's README used them in 2020: its programs run after a change of imports.

    from sampan.mingpt import GPT, GPTConfig, Trainer, TrainerConfig, sample
    model = GPT(GPTConfig(vocab_size, block_size, n_layer=12, n_head=12, n_embd=768))
    trainer = Trainer(model, train_dataset, test_dataset, TrainerConfig(max_epochs=10, batch_size=256))
    trainer.train()
    y = sample(model, x, steps=30, temperature=1.0, sample=True, top_k=5)[0]

GPT is `sampan.GPT`, which computes in C or in PyTorch; it is no torch module, so `model(x, y)` and
`configure_optimizers` are not here. What minGPT does otherwise: it computes GELU exactly (here GPT-2's approximation),
draws each epoch's batches with PyTorch's random numbers, and saves a state_dict instead of a model's folder.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np

from sampan.api import GPT
from sampan.config import ModelSettings, build
from sampan.messages import _
from sampan.report.progress_bar import progress_bar
from sampan.training.loop import Step

__all__ = ["GPT", "GPT1Config", "GPTConfig", "Trainer", "TrainerConfig", "sample", "set_seed"]

Pairs = Sequence[tuple[Any, Any]]  # a torch Dataset, or anything else with a length and pairs x and y, (T,) each
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")  # the first decides, where they differ


def GPTConfig(vocab_size: int, block_size: int, **settings: Any) -> ModelSettings:
    """Return the settings of a GPT-2 whose output layer has weights of its own. `settings` are n_layer, n_head, n_embd.

    minGPT's three dropout probabilities are one here; the default is minGPT's, 0.1.
    """
    given = {name: settings.pop(name) for name in DROPOUTS if name in settings}
    if len({*given.values()}) > 1:
        used = next(iter(given))
        warn(_("dropout is one setting here: using {name}={value}", name=used, value=given[used]), stacklevel=2)
    settings = dict(dropout=next(iter(given.values()), 0.1), bias=True, tie_word_embeddings=False) | settings
    return build(ModelSettings, dict(vocab_size=vocab_size, block_size=block_size) | settings, "GPTConfig")


def GPT1Config(vocab_size: int, block_size: int, **settings: Any) -> ModelSettings:
    """Return the settings of a model of GPT-1's size, about 125 million parameters."""
    return GPTConfig(vocab_size, block_size, **dict(n_layer=12, n_head=12, n_embd=768) | settings)


@dataclass
class TrainerConfig:
    """Hold the settings of a Trainer, with minGPT's names and defaults."""

    max_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    grad_norm_clip: float = 1.0
    weight_decay: float = 0.1
    lr_decay: bool = False  # warm up, then a cosine to a tenth of the rate
    warmup_tokens: float = 375e6
    final_tokens: float = 260e9  # where the rate is a tenth
    ckpt_path: str | None = None  # folder for the model with the lowest test loss; without a test set, for the newest
    num_workers: int = 0  # not needed: batches are made while they are used


class Trainer:
    """Train a model on a dataset, and measure its loss on another after each epoch."""

    device = "cpu"  # where `sample` takes and returns tensors; what computes is the model's own choice

    def __init__(self, model: GPT, train_dataset: Pairs, test_dataset: Pairs | None, config: TrainerConfig):
        self.model, self.config = model, config
        self.train_dataset = Ignoring(train_dataset)
        self.test_dataset = None if test_dataset is None else Ignoring(test_dataset)

    def train(self) -> None:
        """Train for max_epochs and print a line for each. Raise UserError for invalid settings or data."""
        c, count = self.config, len(self.train_dataset)
        steps = -(-c.max_epochs * count // c.batch_size)
        records = self.model.train(self.train_dataset, max_iters=steps, **self.settings())
        best, epoch, losses = float("inf"), 0, []
        with progress_bar(_("training"), steps) as tick:
            for record in records:
                tick(1)
                losses.append(record.loss)
                if (record.step + 1) * c.batch_size < (epoch + 1) * count:
                    continue
                epoch = (record.step + 1) * c.batch_size // count
                test_loss = self.test_loss()
                print(epoch_line(min(epoch, c.max_epochs), float(np.mean(losses)), test_loss, record), flush=True)
                losses = []
                if c.ckpt_path is not None and (test_loss is None or test_loss < best):
                    self.model.save(c.ckpt_path)
                best = min(best, float("inf") if test_loss is None else test_loss)

    def settings(self) -> dict[str, Any]:
        """Return the config as settings of `GPT.train`; tokens are counted in steps, by the targets of one example."""
        c = self.config
        per_step = c.batch_size * max(1, int((self.train_dataset[0][1] != -1).sum()))
        settings: dict[str, Any] = dict(
            optimizer="adamw", batch_size=c.batch_size, learning_rate=c.learning_rate, min_lr=c.learning_rate / 10,
            beta1=c.betas[0], beta2=c.betas[1], grad_clip=c.grad_norm_clip, weight_decay=c.weight_decay,
        )  # fmt: skip
        end = max(1, round(c.final_tokens / per_step))
        return settings | dict(decay_lr=c.lr_decay, warmup_iters=round(c.warmup_tokens / per_step), lr_decay_iters=end)

    def test_loss(self) -> float | None:
        """Return the mean loss on the test set in nats per target, or None without one."""
        data, size = self.test_dataset, self.config.batch_size
        if data is None:
            return None
        total = targets = 0.0
        for first in range(0, len(data), size):
            pairs = [data[i] for i in range(first, min(first + size, len(data)))]
            x, y = (np.stack(part) for part in zip(*pairs, strict=True))
            counted = int((y != -1).sum())
            total += self.model.loss(x, y) * counted if counted else 0.0
            targets += counted
        return total / max(1, targets)


class Ignoring:
    """A dataset in which PyTorch's ignored target, -100, is Sampan's, -1."""

    def __init__(self, data: Pairs):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = (np.asarray(part) for part in self.data[i])
        return x, np.where(y == -100, -1, y)


def epoch_line(epoch: int, train_loss: float, test_loss: float | None, record: Step) -> str:
    losses = _("train loss {loss:.5f}", loss=train_loss)
    if test_loss is not None:
        losses += ", " + _("test loss {loss:.5f}", loss=test_loss)
    return _("epoch {epoch}: {losses}, learning rate {rate:g}", epoch=epoch, losses=losses, rate=record.lr)


def sample(
    model: GPT, x: Any, steps: int, temperature: float = 1.0, sample: bool = False, top_k: int | None = None
) -> Any:
    """Return x (B, T) and the `steps` tokens that follow, (B, T + steps): a tensor if x is one, else an array.

    With `sample` they are drawn, with a seed from NumPy's global random numbers (see `set_seed`); without it each is the
    most probable one.
    """
    settings = dict(temperature=temperature if sample else 0.0, top_k=top_k, seed=int(np.random.randint(2**31)))
    ids = model.generate(x, steps, **settings)
    return x.new_tensor(ids) if hasattr(x, "new_tensor") else ids


def set_seed(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and PyTorch, which datasets and `sample` use.

    The weights and the order of the examples follow from the seed of the model, which is fixed by default.
    """
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
