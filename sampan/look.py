"""A look at prepared data: what is in it that a model cannot learn, and what a loss on it has to beat.

    seen = look(data)
    print("\\n".join(lines(data, seen)))             # `sampan prepare` prints them
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
from dataclasses import asdict, dataclass, fields

import numpy as np

from .data import Data, write_json
from .errors import UserError
from .recite import BORDER, PIECE, pieces_of, search

LOOKED_AT = {"train": 64 * PIECE, "val": 8 * PIECE}  # tokens
XZ_READS = 2_000_000  # characters of train, its last: more takes seconds and helps little
OVERLAP = 50  # characters from which on a run of val counts as standing in train: no language repeats so much by chance


@dataclass(frozen=True)
class Look:
    """Of the val split where nothing else is said. A share is between 0 and 1."""

    sha256: str  # of the text that was looked at
    tokenizer: str
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


def look(data: Data) -> Look:
    """Raises UserError where the text cannot be read back from its tokens."""
    path = data.folder / "look.json"
    identity = {"sha256": data.meta["sha256"], "tokenizer": data.meta["tokenizer"]}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {f.name for f in fields(Look)} == kept.keys() and identity.items() <= kept.items():
            return Look(**kept)
    except (OSError, ValueError, AttributeError):
        pass  # there is none, or it is not of this version
    seen = Look(**identity, **measure(data))
    with contextlib.suppress(OSError):  # a folder that cannot be written can still be looked at
        write_json(path, asdict(seen))
    return seen


def measure(data: Data) -> dict:
    train, val = (text_of(data, split) for split in ("train", "val"))
    if not len(val):
        raise UserError(f"{data.folder} has nothing in its val split to look at; prepare the text again")
    known = np.zeros(BORDER + 1, bool)
    known[train] = True
    words = val.tobytes().decode("utf-32-le", "replace")
    pieces = (train[i : i + PIECE] for i in range(0, len(train), PIECE))
    overlap = search([words], pieces, OVERLAP).covered[0].mean()
    size = data.meta["vocab_size"]
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
        "xz": bits_with_xz(train, val) / len(val),
    }


def text_of(data: Data, split: str) -> np.ndarray:
    """Code points of a split's first tokens; what stands between documents is left out."""
    pieces = list(itertools.islice(pieces_of(data, split), LOOKED_AT[split] // PIECE))
    points = np.concatenate(pieces) if pieces else np.empty(0, np.uint32)
    return points[points != 0xFFFD]


def bits_with_xz(train: np.ndarray, val: np.ndarray) -> int:
    """What val adds to the size of train under `xz -6`."""
    read = train[-XZ_READS:].tobytes().decode("utf-32-le", "replace").encode("utf-8", "replace")
    both = read + val.tobytes().decode("utf-32-le", "replace").encode("utf-8", "replace")
    # a dictionary as long as the text finds what a longer one finds, in less memory
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": max(4096, len(both))}]
    return 8 * (len(lzma.compress(both, filters=chain)) - len(lzma.compress(read, filters=chain)))


def lines(data: Data, seen: Look) -> list[str]:
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
