"""Is it reciting? Which part of what a model wrote stands verbatim in the text that it learnt from.

    sampan sample out/shakespeare --check

    data = training_data(SampleConfig(out_dir="out/shakespeare"))
    print("\n".join(report(["what the model wrote"], data)))
    found = search(["some", "texts"], pieces_of(data, "train"), least=20)

Characters are compared, not tokens, for one text can be cut into tokens in several ways. The training text is read
once and in pieces, whatever its size: a hash of each of its windows of `least` characters is looked up among those of
what was written (Karp and Rabin 1987), and what is found is compared itself. This file does not see a paraphrase.
"""

import codecs
import functools
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sampan.checkpoint.run import Run
from sampan.config import SampleConfig
from sampan.data.meta import Data, open_folder
from sampan.errors import UserError
from sampan.text.characters import code_points
from sampan.tokens.bytes import token_bytes

# Characters from which on a run counts. Shorter ones are a language's common phrases: of the last tenth of
# tinyshakespeare 1.5% stands in the nine tenths before it in runs of 20, and 23% in runs of 14; of 水浒传 1.9% in
# runs of 12, as a Chinese character says more than a letter.
RUN, RUN_OF_IDEOGRAPHS = 20, 12
HELD_OUT = 10_000  # characters of the val split that are looked up too, to compare with
QUOTED = 400  # characters of the longest run that are shown
PIECE = 1 << 16  # tokens that are read at a time; what is computed of them stays in a processor's cache

FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
FILTER_BITS = 20
UNREADABLE, BORDER = 0x110000, 0x110001  # no code points: they equal nothing in a text


class Verbatim(NamedTuple):
    """A run of characters that stands both in a text that was looked up and in the training text."""

    text: int  # which of the texts
    start: int  # its first character there
    length: int
    place: int  # its first character in the training text, from 0
    line: int  # the line it begins in, from 1


@dataclass(frozen=True)
class Found:
    covered: list[np.ndarray]  # for each text, bool (characters,): inside a run of `least` characters or more
    longest: Verbatim | None  # None where no run is as long as `least`


# ---- what `sampan sample --check` says ----


def training_data(config: SampleConfig) -> Data:
    """The data that a run learnt from. Raises UserError where that is not known, not here, or not the same any more."""
    run = Run(config.out_dir if config.init_from == "resume" else config.init_from)
    if not run.exists():
        raise UserError(f"check: {run.folder} does not say what it was trained on (it has no run.json)")
    recorded = run.data()
    folder = Path(str(recorded.get("folder", "")))
    if not (folder / "meta.json").is_file():
        raise UserError(
            f"check: the text of this run was in {folder}, which is not here; run this where the training ran, "
            "or prepare the text again"
        )
    data = open_folder(folder)
    if not data.is_recorded(recorded):
        raise UserError(f"check: {folder} holds another text than the one that this run learnt from")
    return data


def verbatim_report(written: list[str], data: Data) -> list[str]:
    """Lines of 80 columns: the share of `written` that stands in the training text, and the longest run, quoted."""
    length = sum(map(len, written))
    if length == 0:
        return ["check: nothing was written"]
    is_wide = np.mean(code_points("".join(written)) >= 0x2E80) > 0.5
    least = RUN_OF_IDEOGRAPHS if is_wide else RUN
    held_out = first_characters(pieces_of(data, "val"), HELD_OUT)
    size = max(map(len, [*written, held_out]))
    found = search([*written, held_out], pieces_of(data, "train", size), least, quote=len(written))
    share = sum(covered.sum() for covered in found.covered[:-1]) / length
    text = f"check: {share:.1%} of the {length:,} characters written stand verbatim in the training text, in runs of "
    text += f"{least} or more"
    if held_out:
        text += f"; of held-out text {found.covered[-1].mean():.1%} do"
    lines = textwrap.wrap(text + ".", 80)
    if found.longest:
        number, start, count, place, line = found.longest
        text = (
            f"The longest run has {count:,} characters, from character {place + 1:,} (line {line:,}) of that text on:"
        )
        quote = written[number][start : start + count]
        quote = quote if count <= QUOTED else quote[:QUOTED] + "..."
        columns = 39 if is_wide else 78
        lines += textwrap.wrap(text, 80)
        lines += ["  " + part for row in quote.split("\n") for part in textwrap.wrap(row, columns) or [""]]
    return lines


def pieces_of(data: Data, split: str, size: int = PIECE) -> Iterator[np.ndarray]:
    """The text of a split in pieces, uint32 code points; U+FFFD stands between its documents."""
    table = token_bytes(data.tokenizer, data.meta.vocab_size)
    if table is None:
        raise UserError(f"the tokens of {data.folder} have no bytes of their own, so its text is not known exactly")
    if data.tokenizer.end_of_text is not None:
        table[data.tokenizer.end_of_text] = b"\xff"  # never in UTF-8
    lengths = np.fromiter(map(len, table), np.int64, len(table))
    starts, flat = np.cumsum(lengths) - lengths, np.frombuffer(b"".join(table), np.uint8)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    tokens, size = data.tokens(split), max(size, PIECE)
    for i in range(0, len(tokens), size):
        ids = tokens[i : i + size]
        if ids.max() >= len(table):
            raise UserError(f"{data.folder} has token {ids.max()}, and its vocabulary {len(table)}; prepare it again")
        counts = lengths[ids]
        ends = np.cumsum(counts)
        yield code_points(decode(flat[np.arange(ends[-1]) + np.repeat(starts[ids] - ends + counts, counts)].tobytes()))


def first_characters(pieces: Iterable[np.ndarray], count: int) -> str:
    points = next(iter(pieces), np.empty(0, np.uint32))[:count]
    return points.tobytes().decode("utf-32-le")


# ---- the search ----


def search(texts: list[str], pieces: Iterable[np.ndarray], least: int, quote: int | None = None) -> Found:
    """Where `texts` stand in the text whose code points `pieces` are; `longest` is of the first `quote` texts (None: all).

    Every run is found and none is made up. Memory: the largest piece and the texts, some 50 bytes a character.
    """
    query = np.array([BORDER, *itertools.chain(*([*code_points(t), BORDER] for t in texts))], np.uint32)
    query[query == 0xFFFD] = UNREADABLE
    borders = np.flatnonzero(query == BORDER)
    quoted = texts[:quote]
    to_quote = query[: borders[len(quoted)] + 1]
    begins = np.zeros(len(query), bool)  # here begins a window of `least` that stands in the training text
    all_found = np.zeros(len(query), bool)  # so do all that have its hash; kept for the first of them
    best = None
    if len(query) < least:
        return Found([np.zeros(len(t), bool) for t in texts], None)
    known = WindowHashes(query, least)
    maybe = np.zeros(1 << FILTER_BITS, bool)
    maybe[known.sorted >> np.uint64(64 - FILTER_BITS)] = True
    for place, lines, piece in overlapping(pieces, max([least, *map(len, quoted)])):
        sums = prefix_sums(piece)
        hashes = window_hashes(sums, least)
        hits = np.flatnonzero(maybe[hashes >> np.uint64(64 - FILTER_BITS)])
        hits = hits[known.has(hashes[hits])]
        first = known.first(hashes[hits])
        for at, group in zip(hits[~all_found[first]], first[~all_found[first]], strict=True):
            if not all_found[group]:  # not even since this piece began
                same = known.where(hashes[at])
                begins[same] |= [np.array_equal(query[i : i + least], piece[at : at + least]) for i in same]
                all_found[group] = begins[same].all()
        while (
            quoted
            and len(hits)
            and (longer := longer_run(to_quote, piece, sums, hits, best.length + 1 if best else least))
        ):
            start, at, length = longer
            text = int(np.searchsorted(borders, start)) - 1
            line = lines + np.count_nonzero(piece[:at] == ord("\n")) + 1
            best = Verbatim(text, start - int(borders[text]) - 1, length, place + at, line)
    steps = np.zeros(len(query) + 1, np.int64)
    steps[:-1] += begins
    steps[least:] -= begins[: len(steps) - least]
    covered = np.cumsum(steps)[:-1] > 0
    return Found([covered[b + 1 : b + 1 + len(t)] for b, t in zip(borders, texts, strict=False)], best)


def longer_run(query, piece, sums, hits, length: int) -> tuple[int, int, int] | None:
    """(start in `query`, start in `piece`, length) of a run of at least `length`, as long as it goes; None if none.

    `hits` are the places in `piece` where any run can begin.
    """
    hits = hits[hits + length <= len(piece)]
    if length > len(query) or not len(hits):
        return None
    known = WindowHashes(query, length)
    hashes = window_hashes(sums, length, hits)
    for at, value in zip(hits[known.has(hashes)], hashes[known.has(hashes)], strict=True):
        for i in known.where(value):
            count = min(len(query) - i, len(piece) - at)
            different = np.flatnonzero(query[i : i + count] != piece[at : at + count])
            if (run := int(different[0]) if len(different) else count) >= length:
                return int(i), int(at), run
    return None


class WindowHashes:
    """The hashes of all windows of `length` of a text, to be looked up."""

    def __init__(self, points: np.ndarray, length: int):
        hashes = window_hashes(prefix_sums(points), length)
        self.order = np.argsort(hashes, kind="stable")
        self.sorted = hashes[self.order]

    def has(self, hashes: np.ndarray) -> np.ndarray:
        return self.sorted[np.minimum(np.searchsorted(self.sorted, hashes), len(self.sorted) - 1)] == hashes

    def first(self, hashes: np.ndarray) -> np.ndarray:
        """The first place of each of `hashes`, all of which are there."""
        return self.order[np.searchsorted(self.sorted, hashes)]

    def where(self, value) -> np.ndarray:
        """All places of one hash."""
        return self.order[np.searchsorted(self.sorted, value) : np.searchsorted(self.sorted, value, "right")]


# The hash of x[i .. i+n-1] is the sum of x[j] FACTOR^(j-i) modulo 2^64: two prefix sums' difference, shifted by i.


@functools.lru_cache(maxsize=4)
def powers(factor: int, bits: int) -> np.ndarray:
    result = np.full(1 << bits, factor, np.uint64)
    result[0] = 1
    return np.cumprod(result)


def prefix_sums(points: np.ndarray) -> np.ndarray:
    return np.concatenate(
        (np.zeros(1, np.uint64), np.cumsum(points * powers(FACTOR, len(points).bit_length())[: len(points)]))
    )


def window_hashes(sums: np.ndarray, length: int, starts: np.ndarray | None = None) -> np.ndarray:
    """Of the windows of `length` at `starts` (all), uint64."""
    down = powers(pow(FACTOR, -1, 1 << 64), len(sums).bit_length())
    if starts is None:
        return (sums[length:] - sums[:-length]) * down[: max(0, len(sums) - length)]
    return (sums[starts + length] - sums[starts]) * down[starts]


def overlapping(pieces: Iterable[np.ndarray], overlap: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(characters before it, line ends before it, piece), each after the last `overlap` characters of the one before.

    So that a run of no more than `overlap` characters is whole in one of them.
    """
    place, lines, held = 0, 0, np.empty(0, np.uint32)
    for piece in pieces:
        piece = np.concatenate((held, piece))
        yield place, lines, piece
        kept = max(0, len(piece) - overlap)
        place, lines, held = place + kept, lines + np.count_nonzero(piece[:kept] == ord("\n")), piece[kept:]
