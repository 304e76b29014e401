"""llm.c's debug states: the logits, loss and gradients of one training step, which its test_gpt2 compares with its own.

    state = compute_state(model, weights, *state_batch(model, None))
    write_state(Path("gpt2_124M_debug_state.bin"), model, state)

The optimizer states that llm.c saves while it trains are other files, which are not read.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sampan.data.meta import Data
from sampan.errors import UserError
from sampan.exchange.llmc.gradients import backward
from sampan.exchange.llmc.header import HEADER, STATE, check_size, read_header, write_header
from sampan.exchange.llmc.weights import count_numbers, padded_vocabulary, read_tensors, write_tensors
from sampan.files import replacing
from sampan.messages import _
from sampan.model.forward import forward
from sampan.model.shape import ModelShape

BATCH, TOKENS = 4, 64  # as in llm.c's own debug state


@dataclass(frozen=True)
class State:
    """What one training step computes before the weights change."""

    x: np.ndarray  # int32 (B, T)
    y: np.ndarray  # int32 (B, T)
    logits: np.ndarray  # float32 (B, T, vocab_size)
    loss: float  # mean over the targets, nats
    gradients: dict[str, np.ndarray]  # {name: float32}, of that loss


def state_batch(model: ModelShape, data: Data | None) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, int32 (4, 64): the first tokens of val, or random ones without data.

    Raises UserError if val is too short or has a token that the model lacks.
    """
    B, T = BATCH, min(TOKENS, model.block_size)
    if data is None:
        ids = np.random.default_rng(1337).integers(model.vocab_size, size=B * T + 1)
    elif len(data.val) <= B * T:
        raise UserError(
            _(
                "{folder}: a debug state needs {b} val tokens, but there are only {count}",
                folder=data.folder,
                b=B * T + 1,
                count=len(data.val),
            )
        )
    else:
        ids = data.val[: B * T + 1]
        if ids.max() >= model.vocab_size:
            raise UserError(
                _(
                    "{folder}: token {id} is outside the model's vocabulary of {vocab_size}",
                    folder=data.folder,
                    id=ids.max(),
                    vocab_size=model.vocab_size,
                )
            )
    ids = ids.astype(np.int32)
    return ids[:-1].reshape(B, T), ids[1:].reshape(B, T)


def compute_state(model: ModelShape, weights: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> State:
    """Return one forward and backward pass in NumPy, so that a state can test every engine."""
    kept = forward(model, weights, x)
    loss, gradients = backward(model, weights, kept, x, y)
    return State(x, y, kept["logits"], loss, gradients)


def read_state(path: Path, model: ModelShape) -> State:
    """Return a debug state of this model, whose sizes are not in the file. Raises UserError if they do not match."""
    _magic, version, B, T = read_header(path, STATE)[:4]
    if version != 2 or B < 1 or not 0 < T <= model.block_size:
        raise UserError(
            _(
                "{path}: not a debug state of this model (version {version}, {b} sequences of {t} tokens)",
                path=path,
                version=version,
                b=B,
                t=T,
            )
        )
    padded = padded_vocabulary(model)
    end = B * T * model.vocab_size
    check_size(path, 4 * (HEADER + 2 * B * T + end + 1 + count_numbers(model, padded)))
    ids = np.fromfile(path, "<i4", 2 * B * T, offset=4 * HEADER).reshape(2, B, T)
    numbers = np.memmap(path, "<f4", "c", 4 * (HEADER + 2 * B * T))
    gradients = read_tensors(numbers[end + 1 :], model, padded, path)
    return State(ids[0], ids[1], numbers[:end].reshape(B, T, -1), float(numbers[end]), gradients)


def write_state(path: Path, model: ModelShape, state: State) -> None:
    """Write a debug state. Raises OSError."""
    with replacing(path) as file:
        write_header(file, STATE, 2, *state.x.shape)
        for array in (state.x, state.y):
            file.write(np.ascontiguousarray(array, "<i4").data)
        file.write(np.ascontiguousarray(state.logits, "<f4").data)
        file.write(struct.pack("<f", state.loss))
        write_tensors(file, model, state.gradients, "f32")
