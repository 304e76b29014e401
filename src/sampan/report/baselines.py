"""Measure prepared data: what in it no model can learn, and which losses a model has to beat.

    seen = measure_baselines(data)
    print("\n".join(baseline_lines(data, seen)))    # `sampan prepare` prints them
    seen.bits_per_character(1.47)                   # of a loss in nats per token

The result is cached in the data's folder (look.json), because a large text takes a while; of each split only the first
tokens are measured. This file does not use a model.
"""

import contextlib
import itertools
import json
import lzma
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sampan.data.meta import Data
from sampan.errors import UserError
from sampan.files import write_json
from sampan.messages import _, wrap
from sampan.report.verbatim import PIECE, pieces_of, search
from sampan.text.characters import code_points

LOOK = "look.json"  # in the data's folder
MEASURED = {"train": 64 * PIECE, "val": 8 * PIECE}  # tokens
XZ_READS = 2_000_000  # the last characters of train; more would take seconds and help little
OVERLAP = 50  # a run of val this long or longer counts as copied from train: no language repeats so much by chance


@dataclass(frozen=True)
class Baselines:
    """Measurements of the val split, unless stated otherwise. A share is between 0 and 1."""

    data: dict[str, Any]  # identity of the measured data: its text, tokenizer and split
    characters: int
    bytes: int
    tokens: int
    unseen: float  # share of characters that do not occur in train
    overlap: float  # share of characters in runs of OVERLAP or more that occur verbatim in train
    unused: int  # ids of the vocabulary that occur in neither split
    vocab_size: int
    uniform: float  # bits per character, if all tokens are equally likely
    unigram: float  # the same, if tokens are as likely as they are frequent in train
    xz: float  # the same, of xz after it has compressed train

    def bits_per_character(self, loss: float) -> float:
        """Return a loss in nats per token as bits per character, which can be compared across tokenizers."""
        return loss / math.log(2) * self.tokens / self.characters

    def bits_per_byte(self, loss: float) -> float:
        """Return a loss in nats per token as bits per byte of UTF-8."""
        return self.bits_per_character(loss) * self.characters / self.bytes

    def nats_per_token(self, bits_per_character: float) -> float:
        """Return the loss in nats per token of a loss in bits per character."""
        return bits_per_character * math.log(2) * self.characters / self.tokens


def measure_baselines(data: Data) -> Baselines:
    """Return the baselines of a data folder, cached there. Raises UserError if val is empty or cannot be decoded."""
    if kept := kept_baselines(data.folder, data.meta.identity):
        return kept
    seen = Baselines(data.meta.identity, **measure_text(data))
    with contextlib.suppress(OSError):  # a read-only folder can still be measured
        write_json(data.folder / LOOK, asdict(seen))
    return seen


def kept_baselines(folder: Path, data: Mapping[str, Any]) -> Baselines | None:
    """Return the baselines that are kept in a data folder, if they are those of this `data`, its identity or record."""
    try:
        kept = json.loads((folder / LOOK).read_text(encoding="utf-8"))
        is_same = all(data.get(name) == value for name, value in kept["data"].items())
        if {f.name for f in fields(Baselines)} == kept.keys() and is_same:
            return Baselines(**kept)
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        pass  # none, or of another version
    return None


def measure_text(data: Data) -> dict[str, Any]:
    """Return the fields of `Baselines` other than `data`. Raises UserError if val is empty or cannot be decoded."""
    val = "".join(first_pieces(data, "val"))
    if not val:
        raise UserError(
            _(
                "{folder} has an empty val split; prepare the text again with a larger --val_fraction",
                folder=data.folder,
            )
        )
    known = np.zeros(sys.maxunicode + 1, bool)
    last = ""  # characters of train

    def read_train() -> Iterator[str]:
        nonlocal last
        for piece in first_pieces(data, "train"):
            known[code_points(piece)] = True
            last = (last + piece)[-XZ_READS:]
            yield piece

    overlap = search([val], read_train(), OVERLAP, quote=0).covered[0].mean()
    size = data.meta.vocab_size
    counts = {split: np.bincount(data.tokens(split)[: MEASURED[split]], minlength=size) for split in MEASURED}
    frequency = (counts["train"] + 1) / (counts["train"].sum() + size)  # one more of each: no token is impossible
    tokens = int(counts["val"].sum())
    return {
        "characters": len(val),
        "bytes": len(val.encode("utf-8", "replace")),
        "tokens": tokens,
        "unseen": float(1 - known[code_points(val)].mean()),
        "overlap": float(overlap),
        "unused": int((counts["train"] + counts["val"] == 0).sum()),
        "vocab_size": size,
        "uniform": math.log2(size) * tokens / len(val),
        "unigram": float((counts["val"] * -np.log2(frequency)).sum() / len(val)),
        "xz": bits_with_xz(last, val) / len(val),
    }


@dataclass(frozen=True)
class Text:
    """A text to measure a model on, and its baselines in bits per character."""

    origin: str
    ids: np.ndarray  # integers (n,)
    characters: int
    bytes: int
    uniform: float
    unigram: float
    xz: float


def measure_val(data: Data) -> Text:
    """Return the whole val split of a data folder; its unigram and xz have learnt from train. Raises UserError."""
    seen = measure_baselines(data)
    text = "".join(pieces_of(data, "val")).replace("\ufffd", "")
    origin = _("val split of {folder}", folder=data.folder)
    size = len(text.encode("utf-8", "replace"))
    return Text(origin, data.val, len(text), size, seen.uniform, seen.unigram, seen.xz)


def text_baselines(origin: str, text: str, ids: np.ndarray, vocab_size: int) -> Text:
    """Return a text with baselines that know nothing but this text: unigram is the entropy of its own tokens."""
    share = np.bincount(ids) / len(ids)
    entropy = -float((share[share > 0] * np.log2(share[share > 0])).sum())
    per_character = len(ids) / len(text)
    size = len(text.encode("utf-8", "replace"))
    xz = bits_with_xz("", text[:XZ_READS]) / len(text[:XZ_READS])
    return Text(origin, ids, len(text), size, math.log2(vocab_size) * per_character, entropy * per_character, xz)


def first_pieces(data: Data, split: str) -> Iterator[str]:
    """Yield the text of a split's first tokens in pieces, without the separators of documents."""
    for piece in itertools.islice(pieces_of(data, split), MEASURED[split] // PIECE):
        yield piece.replace("\ufffd", "")


def bits_with_xz(train: str, val: str) -> int:
    """Return how many bits `val` adds to the size of `train` under `xz -6`."""
    first = train.encode("utf-8", "replace")
    both = first + val.encode("utf-8", "replace")
    # a dictionary of the length of the text: a longer one would only take more memory
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": max(4096, len(both))}]
    return 8 * (len(lzma.compress(both, filters=chain)) - len(lzma.compress(first, filters=chain)))


def baseline_lines(data: Data, seen: Baselines) -> list[str]:
    """Return what `sampan prepare` prints below the counts, wrapped."""
    per_token = seen.characters / seen.tokens
    text = [_("{per_token:.2f} characters per token", per_token=per_token)]
    if seen.unused:
        text.append(
            _(
                "{unused:,} of the {vocab_size:,} ids of the vocabulary never occur",
                unused=seen.unused,
                vocab_size=seen.vocab_size,
            )
        )
    if seen.unseen > 0:
        text.append(
            _("{percent} of the val characters are symbols that do not occur in train", percent=percent(seen.unseen))
        )
    if seen.overlap > 0.01:
        text.append(
            _(
                "{percent} of val is copied verbatim from train, in runs of {overlap} characters or more",
                percent=percent(seen.overlap),
                overlap=OVERLAP,
            )
        )
    text.append(
        _(
            "baselines on val, in bits per character: uniform {uniform:.2f}, unigram {unigram:.2f}, xz {xz:.2f}",
            uniform=seen.uniform,
            unigram=seen.unigram,
            xz=seen.xz,
        )
    )
    return [part for line in text for part in wrap(line, indent="  ")]


def percent(share: float) -> str:
    """Return a share above 0 in percent, with one decimal."""
    return f"{share:.1%}" if share >= 0.001 else _("less than 0.1%")
