"""Turn any data of integers into batches for the training loop: a list of micro-batches (x, y) for each step.

    source = open_data(data, model, seed=1337, name="data")       # any data of integers; see `Data`
    for micro_batches in training_steps(source, config):          # of one optimizer step, of this process
        for x, y in micro_batches: ...                            # int32 (B, T) each; a target of -1 is ignored

Indexable data is visited in an order that depends on the seed alone, each example once per epoch. Data that can only be
iterated comes in its own order, and is read when it is needed. Texts and their files are in prepare.py and meta.py.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from sampan.config import TrainConfig
from sampan.data.windows import EvaluationBatches, Windows, check_length, endless_order
from sampan.errors import UserError
from sampan.machine import world
from sampan.messages import _

Batch = tuple[np.ndarray, np.ndarray]  # x, y


class Dataset(Protocol):
    """Describe indexable data, such as a torch Dataset or a list, whose items are pairs (x, y) of integers, (T,) each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


# An array of tokens (n,), from which windows are cut; an array of rows (N, T + 1), in which each token is predicted from
# those before it; a tuple of two arrays x, y (N, T) each; a Dataset; an iterable of pairs (x, y), each an example (T,)
# or a batch (B, T) that is used as it is; a function that returns such a pair whenever it is called.
Data = npt.ArrayLike | Dataset | Iterable[Any] | Callable[[], Any]


class Limits(Protocol):
    """Describe what data must fit: tokens per sequence and the size of the vocabulary. A ModelShape is one."""

    @property
    def block_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...


class Examples:
    """Serve indexable examples endlessly and shuffled, each once per epoch, as a function of (seed, index)."""

    def __init__(self, count: int, at: Callable[[np.ndarray], Batch], seed: int):
        """Keep `at`, which returns the batch of an array of indices, int64 (B,). Raise UserError if `count` is 0."""
        if count < 1:
            raise UserError(_("the data is empty: it has no example"))
        self.count, self.at, self.seed = count, at, seed

    def batch(self, first: int, count: int) -> Batch:
        """Return examples first .. first + count - 1 of the endless order, int32 (count, T) each for x and y."""
        return self.at(endless_order(first, count, self.count, self.seed)[0].astype(np.int64))


def micro_batches(source: Windows | Examples, config: TrainConfig, step: int = 0) -> Iterator[list[Batch]]:
    """Yield, for each step from `step` on, this rank's micro-batches: its share of the global batch, cut at batch_size."""
    rank, processes = world()
    per_step = config.windows_per_step
    first, end = rank * per_step // processes, (rank + 1) * per_step // processes
    for start in itertools.count(step * per_step, per_step):
        yield [source.batch(start + i, min(config.batch_size, end - i)) for i in range(first, end, config.batch_size)]


class Stream:
    """Read batches from data that can only be iterated or called."""

    def __init__(self, data: Iterable[Any] | Callable[[], Any], model: Limits, name: str):
        """Keep the data, the limits that it must fit and the name that errors give it."""
        self.data, self.model, self.name = data, model, name

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the batches of one pass, int32 (B, T) each for x and y; a function is called endlessly.

        Batches stay as they are, and examples are stacked batch_size at a time. Raise UserError if the data is empty or
        does not fit the model.
        """
        data = self.data
        items = data if isinstance(data, Iterable) else itertools.starmap(data, itertools.repeat(()))
        examples: list[tuple[Any, Any]] = []
        empty = True
        for item in items:
            empty = False
            x, y = pair(item, self.name)
            if np.ndim(x) == 2:
                yield as_batch(x, y, self.model, self.name)
                continue
            examples.append((x, y))
            if len(examples) == batch_size:
                yield stacked(examples, self.model, self.name)
                examples = []
        if examples:
            yield stacked(examples, self.model, self.name)
        if empty:
            raise UserError(_("{name} is empty: there is no batch in it", name=self.name))

    def epochs(self, batch_size: int) -> Iterator[Batch]:
        """Yield the batches of pass after pass; an iterator cannot start again, so it ends after one."""
        once = isinstance(self.data, Iterator)
        while True:
            yield from self.batches(batch_size)
            if once:
                return


def training_steps(source: Windows | Examples | Stream, config: TrainConfig) -> Iterator[list[Batch]]:
    """Return an iterator over the micro-batches of each step; it ends only if the data is an iterator that ends."""
    if not isinstance(source, Stream):
        return micro_batches(source, config)
    count = max(1, config.gradient_accumulation_steps // world()[1])  # each process brings its own data
    batches = source.epochs(config.batch_size)
    return iter(lambda: list(itertools.islice(batches, count)), [])


def steps_per_epoch(source: Windows | Examples | Stream, config: TrainConfig) -> float:
    """Return the steps in a pass over the data; infinity for a stream, whose length is unknown."""
    if isinstance(source, Stream):
        return math.inf
    count = len(source.tokens) / source.block_size if isinstance(source, Windows) else source.count
    return count / config.windows_per_step


def fixed_batches(source: Windows | Examples | Stream, config: TrainConfig, name: str) -> Iterable[Batch]:
    """Return at most eval_iters batches to evaluate on, the same every time; fewer if the data has no more.

    They are spread evenly over indexable data, and are the first batches of other data. Raise UserError if they have no
    target.
    """
    batches: Iterable[Batch]
    if isinstance(source, Windows):
        tokens, vocab_size = source.tokens, source.vocab_size
        batches = EvaluationBatches(tokens, source.block_size, config.batch_size, config.eval_iters, vocab_size)
    elif isinstance(source, Examples):
        count = min(source.count, config.batch_size * config.eval_iters)
        indices = np.arange(count) * source.count // count
        batches = [source.at(indices[i : i + config.batch_size]) for i in range(0, count, config.batch_size)]
    else:
        batches = list(itertools.islice(source.batches(config.batch_size), config.eval_iters))
    if not any((y != -1).any() for _, y in batches):
        raise UserError(_("{name} has no target: nothing can be evaluated on it", name=name))
    return batches


# ---- any data ----


def open_data(data: Data, model: Limits, seed: int, name: str) -> Windows | Examples | Stream:
    """Return the source of batches for any data; `name` stands for the data in errors.

    Raise UserError if the data is not integers, or does not fit the model's vocabulary and block size. Tokens
    of a memory-mapped file, and examples of a Dataset or a stream, are checked when they are read.
    """
    if hasattr(data, "__array__") or is_numbers(data):
        tokens = as_integers(data, name)
        if tokens.ndim == 2:
            return open_data((tokens[:, :-1], tokens[:, 1:]), model, seed, name)
        if tokens.ndim != 1:
            raise UserError(
                _(
                    "{name} has {ndim} dimensions: expected tokens (n,) or rows of them (N, T + 1)",
                    name=name,
                    ndim=tokens.ndim,
                )
            )
        check_length(len(tokens), model.block_size, name)
        if not isinstance(tokens, np.memmap):  # a file is looked at as it is read
            check_range(tokens, 0, model.vocab_size, name)
        return Windows(tokens, model.block_size, seed, model.vocab_size)
    if isinstance(data, tuple) and len(data) == 2:
        x, y = as_batch(*data, model, name)
        return Examples(len(x), lambda i: (x[i], y[i]), seed)
    can_be_indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, Mapping)
    if can_be_indexed and not is_iterable_dataset(data):
        dataset = cast(Dataset, data)
        return Examples(len(dataset), lambda i: stacked([dataset[int(k)] for k in i], model, name), seed)
    if isinstance(data, Mapping) or (not callable(data) and not isinstance(data, Iterable)):
        raise UserError(
            _(
                "{name} is a {name_2}: expected an array of integers, a pair of them, a Dataset, an iterable of "
                "(x, y) or a function that returns (x, y)",
                name=name,
                name_2=type(data).__name__,
            )
        )
    return Stream(data, model, name)


def is_numbers(data: object) -> bool:
    """Return whether `data` is a list of integers or of rows of integers, which is then read as an array."""
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, (list, tuple, np.ndarray)) and len(first):
        first = first[0]
    return isinstance(first, Integral)


def is_iterable_dataset(data: object) -> bool:
    """Return whether `data` is torch's IterableDataset, whose `__getitem__` only raises; torch is not imported for this."""
    return any(cls.__name__ == "IterableDataset" for cls in type(data).__mro__)


# ---- one batch ----


def pair(item: object, name: str) -> tuple[Any, Any]:
    """Return the x and y of a tuple or list of two. Raise UserError for anything else."""
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise UserError(_("{name}: expected pairs (x, y), not {name_2}", name=name, name_2=type(item).__name__))
    return item[0], item[1]


def stacked(examples: list[Any], model: Limits, name: str) -> Batch:
    """Return the batch of a list of pairs (x, y), (T,) each: int32 (len(examples), T) each for x and y.

    Raise UserError if the items are not such pairs, differ in length or do not fit the model.
    """
    xs, ys = zip(*(map(np.asarray, pair(example, name)) for example in examples), strict=True)
    shapes = {array.shape for array in (*xs, *ys)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise UserError(
            _(
                "{name}: examples of shapes {map}: expected x and y (T,), all of one length; fill short ones up, "
                "with targets of -1",
                name=name,
                map=" and ".join(map(str, sorted(shapes))),
            )
        )
    return as_batch(np.stack(xs), np.stack(ys), model, name)


def as_batch(x: npt.ArrayLike, y: npt.ArrayLike, model: Limits, name: str) -> Batch:
    """Return x and y as an engine takes them, int32 (B, T) each. Raise UserError if they are no batch of this model."""
    x, y = as_integers(x, f"{name}: x"), as_integers(y, f"{name}: y")
    if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
        raise UserError(
            _(
                "{name}: x and y have shapes {shape} and {shape_2}: expected two of the same (N, T)",
                name=name,
                shape=x.shape,
                shape_2=y.shape,
            )
        )
    if x.shape[1] > model.block_size:
        raise UserError(
            _(
                "{name} has sequences of {shape} tokens, and the model's block_size is {block_size}",
                name=name,
                shape=x.shape[1],
                block_size=model.block_size,
            )
        )
    check_range(x, 0, model.vocab_size, f"{name}: x")
    check_range(y, -1, model.vocab_size, f"{name}: y")
    return np.ascontiguousarray(x, np.int32), np.ascontiguousarray(y, np.int32)


def as_integers(value: object, name: str) -> np.ndarray:
    """Return `value` as an array of integers, in its own dtype and shape; an empty one may have any dtype.

    Raise UserError if it is not an array or not of integers.
    """
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; a tensor that is on a GPU
        raise UserError(
            _("{name} cannot be read as an array: {error}", name=name, error=str(error).splitlines()[0])
        ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise UserError(_("{name} is of {dtype}: expected integers", name=name, dtype=array.dtype))
    return array


def check_range(array: np.ndarray, low: int, high: int, name: str) -> None:
    """Raise UserError if an integer is less than `low`, or is `high` or more; the array must not be empty."""
    least, most = int(array.min()), int(array.max())
    if least < low or most >= high:
        message = (
            _("{name} has {wrong}: expected tokens from 0 to {last}")
            if low == 0
            else _("{name} has {wrong}: expected tokens from 0 to {last}, or -1 where there is no target")
        )
        raise UserError(message.format(name=name, wrong=least if least < low else most, last=high - 1))
