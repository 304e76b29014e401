"""Report how much of what a model wrote is copied verbatim from its training text.

    sampan sample out/shakespeare --check

    data = training_data(Run("out/shakespeare"))
    print("\n".join(verbatim_report(["what the model wrote"], data)))
    found = search(["some", "texts"], pieces_of(data, "train"), least=20)

Characters are compared, not tokens, because the same text can be tokenized in several ways. The training text is read
once, in pieces: the hash of each window of `least` characters is looked up among the hashes of the windows that were
written (Karp and Rabin 1987), and each hit is compared character by character. It does not detect paraphrases.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sampan.checkpoint.run import Run
from sampan.data.meta import Data, open_folder
from sampan.errors import UserError
from sampan.messages import _, wrap
from sampan.text.characters import code_points
from sampan.tokens.bytes import token_bytes

# The shortest run, in characters, that counts as copied. Shorter ones are common phrases of a language: 1.5% of the
# last tenth of tinyshakespeare occurs in the first nine tenths in runs of 20 or more, and 23% in runs of 14; of 水浒传
# 1.9% in runs of 12, since a Chinese character carries more information than a letter.
RUN, RUN_OF_IDEOGRAPHS = 20, 12
HELD_OUT = 10_000  # characters of the val split, searched for as a comparison
QUOTED = 400  # the report shows at most this many characters of the longest run
PIECE = 1 << 16  # tokens read at a time, so that the arrays computed from them stay in the CPU's cache

BITS = 22  # of a hash
FACTOR = 0x9E3779B1  # base of the rolling hash, odd; 32 bits, since CPUs multiply eight of these at once
BORDER, UNREADABLE = "\ud800", "\ud801"  # lone surrogates, which no training text contains


class Verbatim(NamedTuple):
    """A run of characters that occurs both in a searched text and in the training text."""

    text: int  # index of the searched text
    start: int  # offset in that text
    length: int
    place: int  # offset in the training text
    line: int  # line in the training text, from 1


@dataclass(frozen=True)
class Found:
    covered: list[np.ndarray]  # for each text, bool (characters,): inside a run of `least` characters or more
    longest: Verbatim | None  # None if no run has `least` characters


# ---- sampan sample --check ----


def training_data(run: Run) -> Data:
    """Return the data that a run was trained on. Raises UserError if it is unknown, missing or has changed."""
    if not run.exists():
        raise UserError(_("check: {folder} has no run.json, so its training text is unknown", folder=run.folder))
    recorded = run.data()
    folder = Path(str(recorded.get("folder", "")))
    if not (folder / "meta.json").is_file():
        raise UserError(
            _(
                "check: cannot find {folder}, the training data of this run. Run this in the folder where it was "
                "trained, or prepare the text again.",
                folder=folder,
            )
        )
    data = open_folder(folder)
    if not data.is_recorded(recorded):
        raise UserError(_("check: {folder} no longer contains the text that this run was trained on", folder=folder))
    return data


def verbatim_report(written: list[str], data: Data) -> list[str]:
    """Return lines of 80 columns: the share of `written` that occurs in the training text, and the longest quote."""
    length = sum(map(len, written))
    if length == 0:
        return [_("check: nothing was written")]
    is_wide = np.mean(code_points("".join(written)) >= 0x2E80) > 0.5
    least = RUN_OF_IDEOGRAPHS if is_wide else RUN
    held_out = next(pieces_of(data, "val"), "")[:HELD_OUT]
    size = max(map(len, [*written, held_out]))
    found = search([*written, held_out], pieces_of(data, "train", size), least, quote=len(written))
    share = sum(covered.sum() for covered in found.covered[:-1]) / length
    text = _(
        "check: {share:.1%} of the {length:,} characters written are copied verbatim from the training "
        "text, in runs of {least} or more.",
        share=share,
        length=length,
        least=least,
    )
    lines = wrap(text, 80)
    if held_out:
        lines += wrap(_("For comparison, {mean:.1%} of held-out text occurs there.", mean=found.covered[-1].mean()), 80)
    if found.longest:
        number, start, count, place, line = found.longest
        text = _(
            "The longest run has {count:,} characters, from character {place:,} (line {line:,}) of that text:",
            count=count,
            place=place + 1,
            line=line,
        )
        quote = written[number][start : start + count]
        quote = quote if count <= QUOTED else quote[:QUOTED] + "..."
        lines += wrap(text, 80)
        lines += ["  " + part for row in quote.split("\n") for part in wrap(row, 78)]
    return lines


def pieces_of(data: Data, split: str, size: int = PIECE) -> Iterator[str]:
    """Yield the text of a split in pieces of `size` tokens or more; U+FFFD separates its documents.

    Raises UserError if the text cannot be restored from its tokens.
    """
    table = token_bytes(data.tokenizer, data.meta.vocab_size)
    if table is None:
        raise UserError(
            _("{folder}: its tokenizer cannot restore the exact text, so it cannot be searched", folder=data.folder)
        )
    if data.tokenizer.end_of_text is not None:
        table[data.tokenizer.end_of_text] = b"\xff"  # never in UTF-8
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    tokens, size = data.tokens(split), max(size, PIECE)
    for i in range(0, len(tokens), size):
        ids = tokens[i : i + size]
        if ids.max() >= len(table):
            raise UserError(
                _(
                    "{folder}: token {id} is outside its vocabulary of {count}; prepare it again",
                    folder=data.folder,
                    id=ids.max(),
                    count=len(table),
                )
            )
        yield decode(b"".join(map(table.__getitem__, ids.tolist())))


# ---- the search ----


def search(texts: list[str], pieces: Iterable[str], least: int, quote: int | None = None) -> Found:
    """Find the parts of `texts` that occur in the text whose `pieces` are given, in runs of `least` characters or more.

    `longest` is searched for in the first `quote` texts only (None: in all). U+FFFD matches nothing.
    """
    query = "".join(text + BORDER for text in texts).replace("\ufffd", UNREADABLE)
    to_quote = query[: sum(len(text) + 1 for text in texts[:quote])]
    windows: dict[str, list[int]] = {}  # {window of `least` characters that was not found yet: where it begins}
    for i in range(len(query) - least + 1):
        windows.setdefault(query[i : i + least], []).append(i)
    maybe = np.zeros(1 << BITS, bool)  # by the first bits of a hash; rules most windows out, and fits a CPU's cache
    maybe[window_hashes(query, least) >> np.uint32(32 - BITS)] = True
    begins = np.zeros(len(query), bool)  # whether the window that begins here occurs in the training text
    best: Verbatim | None = None
    for place, line, piece in overlapping(pieces, max([least, *map(len, texts[:quote])])):
        hits = np.flatnonzero(maybe[window_hashes(piece, least) >> np.uint32(32 - BITS)]).tolist()
        for at in hits:
            if starts := windows.pop(piece[at : at + least], None):
                begins[starts] = True
        if run := longest_run(to_quote, piece, hits, least, best.length if best else least - 1):
            start, at, length = run
            border = to_quote.rfind(BORDER, 0, start)
            number = to_quote.count(BORDER, 0, start)
            best = Verbatim(number, start - border - 1, length, place + at, line + piece.count("\n", 0, at))
    steps = np.zeros(len(query) + least, np.int64)
    steps[: len(query)] += begins
    steps[least:] -= begins
    ends = np.cumsum([len(text) + 1 for text in texts])[:-1]
    return Found([part[:-1] for part in np.split(np.cumsum(steps)[: len(query)] > 0, ends)], best)


def longest_run(query: str, piece: str, hits: list[int], least: int, length: int) -> tuple[int, int, int] | None:
    """Return (start in `query`, start in `piece`, length) of the longest run of more than `length` characters, or None.

    `hits` are the places in `piece` where a window of `least` characters of the query may begin, in order.
    """
    most = max(map(len, query.split(BORDER)))
    best, failed = None, set()  # a text that repeats itself would try the same again and again
    for i, at in enumerate(hits):
        while True:
            more = i + length + 1 - least  # the last window of a longer run: each window in it is a hit
            longer = piece[at : at + length + 1]
            if length >= most or more >= len(hits) or hits[more] - at != more - i or longer in failed:
                break
            start = query.find(longer)
            if start < 0:
                failed.add(longer)
                break
            while query[start + length] == piece[at + length : at + length + 1]:  # BORDER ends the query
                length += 1
            best = start, at, length
    return best


def window_hashes(text: str, length: int) -> np.ndarray:
    """Return the hash of each window of `length` characters, uint32: the sum of x[i] FACTOR^(length-1-i) modulo 2^32.

    Windows are put together from windows of 1, 2, 4, ... characters, by the binary digits of `length`.
    """
    block, size = code_points(text) * np.uint32(FACTOR), 1  # of `size` characters
    hashes, done = np.zeros(len(block) + 1, np.uint32), 0  # of `done` characters
    if len(block) < length:
        return np.empty(0, np.uint32)
    while True:
        if length & size:
            hashes = hashes[: len(block) - done] * np.uint32(pow(FACTOR, size, 1 << 32)) + block[done:]
            done += size
        if done == length:
            return hashes
        block = block[:-size] * np.uint32(pow(FACTOR, size, 1 << 32)) + block[size:]
        size *= 2


def overlapping(pieces: Iterable[str], overlap: int) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, line from 1, piece), each piece preceded by the last `overlap` characters before it.

    A run of at most `overlap` characters is whole in one of them.
    """
    place, line, held = 0, 1, ""
    for piece in pieces:
        piece = held + piece
        yield place, line, piece
        done = max(0, len(piece) - overlap)
        place, line, held = place + done, line + piece.count("\n", 0, done), piece[done:]
