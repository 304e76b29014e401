"""The protocol of an engine: what the rest of the program may ask of it.

An engine owns the arithmetic of one model: weights, gradients, optimizer state and key-value caches. It does not own
initial weights, batches, the schedule, sampling, logging or files; those exist once, outside.

    engine.load(weights)
    engine.accumulate(x, y); loss, grad_norm, refused = engine.update(lr=1e-3)
    session = engine.session(slots=1); logits = session.feed(ids)
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sampan.model.shape import ModelShape


class Update(NamedTuple):
    """What an optimizer step reports; both floats are over the whole global batch."""

    loss: float  # mean over the targets of all micro-batches since the last update, nats per token
    grad_norm: float  # of the mean gradient over all parameters, before clipping
    refused: str = ""  # why nothing was changed: "the gradient of wte.weight is not finite"; "" where all went well


class Session(Protocol):
    """Decoding with a key-value cache that has slots for sequences of any lengths, at most block_size each.

    A sequence's logits have the same bits whatever is in the other slots, and whatever was in its own before.
    """

    positions: np.ndarray  # tokens in each slot, int64 (slots,)

    def feed(self, ids: np.ndarray, slots: Sequence[int] | None = None) -> np.ndarray:
        """Append ids, int32 (n, tokens), to the sequences in n slots, ascending; by default the first n.

        Return the logits that follow the last of them, float32 (n, vocab).
        """

    def clear(self, slot: int) -> None:
        """Forget the sequence in a slot, which another can take then."""


class Engine(Protocol):
    """One model on one machine. `x` and `y` are int32 (batch, tokens); a target of -1 is ignored."""

    config: ModelShape  # the model; marked as edited if this engine computes another one than its parts say
    description: str  # for the plan: "torch 2.13.0 on cpu, 2 threads, float32"

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take float32 arrays under the names and shapes of `model.parameters`."""

    def params(self) -> dict[str, np.ndarray]:
        """Copies of the weights, as `load` takes them."""

    def gradients(self) -> dict[str, np.ndarray]:
        """Copies of what `accumulate` has added up since the last update, as the gradient of the mean loss."""

    def accumulate(self, x: np.ndarray, y: np.ndarray, more: bool = False) -> None:
        """Forward and backward of one micro-batch; gradients add up. `more`: another follows before the update.

        With the optimizer's document_mask, a token of `x` sees nothing before the last `end_of_text` up to it, here and
        in the losses. A session has one document and no mask.
        """

    def update(self, lr: float) -> Update:
        """Average and clip the gradients, step the optimizer, and begin again from zero.

        Where the loss or the norm is not finite, weights and moments stay as they are: the step counts, and the
        update says why. An overflow that float16's loss scaler mends changes nothing either, and is no refusal.
        """

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        """Mean loss over the targets, without dropout; changes nothing."""

    def losses(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The loss of each target, float32 (batch, tokens), 0 where it is ignored; without dropout; changes nothing."""

    def session(self, slots: int) -> Session:
        """A new, empty cache for so many sequences."""

    def state(self) -> dict[str, np.ndarray]:
        """The optimizer: arrays under `exp_avg.NAME`, `exp_avg_sq.NAME`, `step`, `applied_steps` and what else it needs.

        `applied_steps` are those updates that changed the weights; `step` counts all.
        """

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state` returned, of either engine."""

    def peak_flops(self) -> float:
        """What this machine's matrix product reaches, measured now: FLOP/s in this engine's precision."""


def check_room(positions: np.ndarray, slots: np.ndarray, tokens: int, block_size: int) -> None:
    """Raise ValueError unless these slots of a session exist, ascend and have room for so many tokens each."""
    if not len(slots) or (np.diff(slots, prepend=-1) <= 0).any() or slots[-1] >= len(positions):
        raise ValueError(f"slots {slots.tolist()} of a session of {len(positions)}")
    if positions[slots].max() + tokens > block_size:
        raise ValueError("the cache is full")
