"""A look at prepared data: what is in it that a model cannot learn, and what a loss on it has to beat.

    seen = look(data)
    print("\n".join(lines(data, seen)))             # `sampan prepare` prints them
    seen.bits_per_character(1.47)                   # of a loss in nats per token

It is kept in the data's folder (look.json), since a large text takes a while; of a text of any size a split's first
tokens are looked at. It knows no model.
"""

import contextlib
import itertools
import json
import lzma
import math
import textwrap
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np

from sampan.data.meta import Data
from sampan.errors import UserError
from sampan.files import write_json
from sampan.report.verbatim import BORDER, PIECE, pieces_of, search

LOOKED_AT = {"train": 64 * PIECE, "val": 8 * PIECE}  # tokens
XZ_READS = 2_000_000  # characters of train, its last: more takes seconds and helps little
OVERLAP = 50  # characters from which on a run of val counts as standing in train: no language repeats so much by chance


@dataclass(frozen=True)
class Baselines:
    """Of the val split where nothing else is said. A share is between 0 and 1."""

    data: dict  # what was looked at: its text, tokenizer and split
    characters: int
    bytes: int
    tokens: int
    unseen: float  # share of characters that train never has
    overlap: float  # share of characters in runs of OVERLAP or more that stand in train, word for word
    unused: int  # ids of the vocabulary that occur in neither split
    vocab_size: int
    uniform: float  # bits per character of guessing each token alike
    unigram: float  # of guessing each token as often as train has it
    xz: float  # of xz, which has read train before

    def bits_per_character(self, loss: float) -> float:
        """A loss in nats per token as bits per character: what losses under different tokenizers have in common."""
        return loss / math.log(2) * self.tokens / self.characters

    def bits_per_byte(self, loss: float) -> float:
        return self.bits_per_character(loss) * self.characters / self.bytes

    def nats_per_token(self, bits_per_character: float) -> float:
        return bits_per_character * math.log(2) * self.characters / self.tokens


def measure_baselines(data: Data) -> Baselines:
    """Raises UserError where the text cannot be read back from its tokens."""
    path = data.folder / "look.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {f.name for f in fields(Baselines)} == kept.keys() and kept["data"] == data.meta.identity:
            return Baselines(**kept)
    except (OSError, ValueError, AttributeError):
        pass  # there is none, or it is not of this version
    seen = Baselines(data.meta.identity, **measure_text(data))
    with contextlib.suppress(OSError):  # a folder that cannot be written can still be looked at
        write_json(path, asdict(seen))
    return seen


def measure_text(data: Data) -> dict:
    val = np.concatenate([np.empty(0, np.uint32), *pieces_looked_at(data, "val")])
    if not len(val):
        raise UserError(f"{data.folder} has nothing in its val split to look at; prepare the text again")
    known = np.zeros(BORDER + 1, bool)
    last = np.empty(0, np.uint32)  # characters of train

    def read_train() -> Iterator[np.ndarray]:
        nonlocal last
        for piece in pieces_looked_at(data, "train"):
            known[piece] = True
            last = np.concatenate([last, piece])[-XZ_READS:]
            yield piece

    words = text_of(val)
    train = read_train()
    overlap = search([words], train, OVERLAP, quote=0).covered[0].mean()
    deque(train, maxlen=0)  # a val that is shorter than OVERLAP was not searched for
    size = data.meta.vocab_size
    counts = {split: np.bincount(data.tokens(split)[: LOOKED_AT[split]], minlength=size) for split in LOOKED_AT}
    frequency = (counts["train"] + 1) / (counts["train"].sum() + size)  # one more of each, so that none is impossible
    tokens = int(counts["val"].sum())
    return {
        "characters": len(val),
        "bytes": len(words.encode("utf-8", "replace")),
        "tokens": tokens,
        "unseen": float(1 - known[val].mean()),
        "overlap": float(overlap),
        "unused": int((counts["train"] + counts["val"] == 0).sum()),
        "vocab_size": size,
        "uniform": math.log2(size) * tokens / len(val),
        "unigram": float((counts["val"] * -np.log2(frequency)).sum() / len(val)),
        "xz": bits_with_xz(text_of(last), words) / len(val),
    }


def pieces_looked_at(data: Data, split: str) -> Iterator[np.ndarray]:
    """Code points of a split's first tokens, uint32; what stands between documents is left out."""
    for piece in itertools.islice(pieces_of(data, split), LOOKED_AT[split] // PIECE):
        yield piece[piece != 0xFFFD]


def text_of(points: np.ndarray) -> str:
    return points.tobytes().decode("utf-32-le", "replace")


def bits_with_xz(train: str, val: str) -> int:
    """What val adds to the size of train under `xz -6`."""
    read = train.encode("utf-8", "replace")
    both = read + val.encode("utf-8", "replace")
    # a dictionary as long as the text finds what a longer one finds, in less memory
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": max(4096, len(both))}]
    return 8 * (len(lzma.compress(both, filters=chain)) - len(lzma.compress(read, filters=chain)))


def baseline_lines(data: Data, seen: Baselines) -> list[str]:
    """What `sampan prepare` prints under the counts: 80 columns."""
    per_token = seen.characters / seen.tokens
    text = [f"{per_token:.2f} characters per token"]
    if seen.unused:
        text.append(f"{seen.unused:,} of the {seen.vocab_size:,} ids of the vocabulary are never used")
    if seen.unseen > 0:
        text.append(f"{percent(seen.unseen)} of the val characters are symbols that train never has")
    if seen.overlap > 0.01:
        text.append(f"{percent(seen.overlap)} of val stands in train word for word, in runs of {OVERLAP} or more")
    text.append(
        f"val to beat, in bits per character: uniform {seen.uniform:.2f}, unigram {seen.unigram:.2f}, xz {seen.xz:.2f}"
    )
    return [part for line in text for part in textwrap.wrap(line, 80, subsequent_indent="  ")]


def percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
