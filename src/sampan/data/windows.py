"""Cut token files into batches of integers, as a function of (seed, index).

    windows = Windows(data.train, block_size=64, seed=1337)
    x, y = windows.batch(first=0, count=12)                 # int32 (12, 64) each; y is x one token later

Nothing needs to be saved to continue where a run stopped.
"""

import functools
import mmap
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sampan.errors import UserError
from sampan.messages import _

AT_ONCE = 1024  # examples whose order is computed at once


# ---- batches ----


def check_length(count: int, block_size: int, name: str) -> None:
    """Raise UserError if `count` tokens are too few for a window; `name` stands for them."""
    if count <= block_size:
        message = _(
            "{name} is too short: it has {count:,} tokens, and a block of {block_size:,} needs {need:,}. Give more text, "
            "lower block_size or change val_fraction."
        )
        raise UserError(message.format(name=name, count=count, block_size=block_size, need=block_size + 1))


class Windows:
    """The training windows of a split, endlessly, each once per epoch and shuffled, as a function of (seed, index).

    An epoch lays windows of block_size tokens end to end from an offset of its own, so that over the epochs a
    token is met in every position, and visits them in an order of its own.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, seed: int, vocab_size: int | None = None):
        check_length(len(tokens), block_size, _("the train split"))
        self.tokens, self.block_size, self.seed, self.vocab_size = tokens, block_size, seed, vocab_size
        self.per_epoch = max(1, (len(tokens) - block_size) // block_size)
        # An epoch leaves out some tokens, between one block and two of them: the offset says how many at the beginning,
        # from none to all, so that over the epochs every token is learnt from, the last one too.
        self.offsets = len(tokens) - self.per_epoch * block_size

    def starts(self, first: int, count: int) -> np.ndarray:
        """Return the positions of windows first .. first + count - 1 of the endless order, int64 (count,)."""
        order, key = endless_order(first, count, self.per_epoch, self.seed)
        return (key % np.uint64(self.offsets) + order * np.uint64(self.block_size)).astype(np.int64)

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of `count` windows, int32 (count, block_size) each."""
        return cut_windows(self.tokens, self.starts(first, count), self.block_size, self.vocab_size)


def endless_order(first: int, count: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (items, keys), uint64 (count,) each, of an endless order of 0 .. n-1: each item once per epoch, shuffled.

    An item's key is a random number of its epoch.
    """
    parts = [order_of_chunk(chunk, n, seed) for chunk in range(first // AT_ONCE, (first + count - 1) // AT_ONCE + 1)]
    items, keys = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    here = slice(first % AT_ONCE, first % AT_ONCE + count)
    return items[here], keys[here]


@functools.lru_cache(maxsize=4)
def order_of_chunk(chunk: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return AT_ONCE items of that order at once: for the few of a step alone, it would take longer than reading them."""
    epoch, within = np.divmod(np.arange(chunk * AT_ONCE, (chunk + 1) * AT_ONCE, dtype=np.uint64), np.uint64(n))
    key = mix(mix(np.array(seed, np.uint64)) + epoch)
    return shuffle(within, n, key), key


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a well-mixed 64-bit hash of each uint64 (the finalizer of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def shuffle(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Return where a permutation of 0 .. n-1, named by `key`, puts each index; uint64, elementwise, in no memory.

    A Feistel network permutes the next power of four; an index that lands beyond n goes through it again
    ("cycle walking", Black and Rogaway 2002), which keeps it a permutation of 0 .. n-1.
    """
    half = np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = index.astype(np.uint64)
    key = np.broadcast_to(key, result.shape)
    out = np.ones(result.shape, dtype=bool)  # first all, then those that are still beyond n
    while out.any():
        left, right = result[out] >> half, result[out] & mask
        for turn in range(4):
            with np.errstate(over="ignore"):
                left, right = right, left ^ (mix(key[out] + right * np.uint64(4) + np.uint64(turn)) & mask)
        result[out] = (left << half) | right
        out = result >= np.uint64(n)
    return result


class EvaluationBatches:
    """(x, y), int32 (B, T) each, that cover a split evenly, and whole where it has no more windows than asked for.

    The same windows every time; they do not overlap, and are cut when they are read, so that they take no memory. Where
    the whole split is read, a last window ends at its last token, and the targets that it shares with the one before are
    -1 (ignored).
    """

    def __init__(
        self, tokens: np.ndarray, block_size: int, batch_size: int, batches: int, vocab_size: int | None = None
    ):
        check_length(len(tokens), block_size, _("the val split"))
        available = (len(tokens) - 1) // block_size
        self.tokens, self.block_size, self.batch_size, self.vocab_size = tokens, block_size, batch_size, vocab_size
        count = min(available, batch_size * batches)
        self.starts = np.arange(count, dtype=np.int64) * available // count * block_size
        rest = len(tokens) - 1 - available * block_size
        self.shared = 0  # targets of the last window that the one before has already
        if count == available and rest > 0:
            self.starts = np.append(self.starts, len(tokens) - 1 - block_size)
            self.shared = block_size - rest

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(0, len(self.starts), self.batch_size):
            starts = self.starts[i : i + self.batch_size]
            x, y = cut_windows(self.tokens, starts, self.block_size, self.vocab_size)
            if i + self.batch_size >= len(self.starts):
                y[-1, : self.shared] = -1
            yield x, y


def cut_windows(
    tokens: np.ndarray, starts: np.ndarray, block_size: int, vocab_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of the windows that begin at `starts`, int32 (len(starts), block_size) each."""
    rows = np.stack([tokens[s : s + block_size + 1] for s in starts])
    file = getattr(tokens, "_mmap", None)
    if file and hasattr(mmap, "MADV_DONTNEED") and getattr(tokens, "mode", None) == "r":  # of others, it undoes changes
        file.madvise(mmap.MADV_DONTNEED)  # else every page that was ever read counts as this process's memory
    if vocab_size is not None and (rows.max() >= vocab_size or rows.min() < 0):
        wrong = rows.max() if rows.max() >= vocab_size else rows.min()
        raise UserError(
            _(
                "the data has token {wrong}, and the vocabulary {vocab_size}; prepare the text again",
                wrong=wrong,
                vocab_size=vocab_size,
            )
        )
    return rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)
