"""Train a PyTorch module of one's own in Sampan's loop, with its batches, schedule, evaluations and records.

    python examples/own_module.py            # a recurrent network learns to count modulo 7

It saves nothing: a folder that `sampan sample` reads holds models of Sampan's families only.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sampan.config import TrainConfig
from sampan.data.examples import fixed_batches, open_data, training_steps
from sampan.engine.protocol import Update
from sampan.training.loop import Evaluation, learn


class OwnEngine:
    """What the loop asks of an engine, for a module that turns ids (B, T) into logits (B, T, V)."""

    def __init__(self, module: nn.Module):
        self.module, self.losses = module, []
        self.optimizer = torch.optim.AdamW(module.parameters())

    def mean_loss(self, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        logits, targets = self.module(torch.from_numpy(x).long()), torch.from_numpy(y).long()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def accumulate(self, x: np.ndarray, y: np.ndarray, more: bool = False) -> None:
        loss = self.mean_loss(x, y)
        loss.backward()  # gradients add up until `update`
        self.losses.append(loss.item())

    def update(self, lr: float) -> Update:
        for p in self.module.parameters():
            p.grad /= len(self.losses)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss, self.losses = float(np.mean(self.losses)), []
        return Update(loss, norm.item())

    @torch.no_grad()
    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        return self.mean_loss(x, y).item()

    def peak_flops(self) -> float:
        return math.inf  # not known: the records' mfu is 0


class Recurrent(nn.Module):
    def __init__(self, vocab_size: int, width: int = 64):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)
        self.rnn = nn.GRU(width, width, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])  # (B, T, V)


if __name__ == "__main__":
    config = TrainConfig(
        block_size=16, vocab_size=7, batch_size=8, gradient_accumulation_steps=2, max_iters=200, eval_interval=50,
        learning_rate=1e-2, warmup_iters=10, lr_decay_iters=None,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    data = open_data(np.arange(2000) % 7, config, config.seed, "data")
    splits = {"val": fixed_batches(data, config, "data")}
    for record in learn(OwnEngine(Recurrent(7)), config, training_steps(data, config), splits):
        if isinstance(record, Evaluation):
            print(f"step {record.step}: val loss {record.val_loss:.4f}")
