"""The first reading of a text: counts, checksum and a sample of it.

    survey = read_through(train_source, val_source)

A text of any size is read block by block. The tokenizer is chosen from the survey (tokens/choose.py).
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from sampan.data.meta import Facts, read_meta
from sampan.errors import UserError
from sampan.text.characters import END, code_points
from sampan.text.sources import Source

SAMPLE = 6_000_000  # bytes that a BPE is trained on, spread over the text; of Chinese, in 400 MB of memory
SETTLED = 2.0  # seconds; a file younger than that may change again without a new time


@dataclass
class Survey:
    """What one reading of a text tells about it."""

    facts: Facts | None = None  # what meta.json keeps of it
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0x110000, np.int64))  # of each code point
    again: np.ndarray = field(default_factory=lambda: np.full(0x110000, 1 << 62))  # where each is met a second time
    sample: list[tuple[int, str]] = field(default_factory=list)  # (position, text) of blocks spread over it


# ---- the first reading ----


def read_through(train: Source, val: Source | None) -> Survey:
    """Counts, checksum and a sample of a text. Raises UserError where it is empty."""
    survey, digest = Survey(), hashlib.sha256()
    begun, characters, documents, stride, sampled = time.time(), [0, 0], [0, 0], 1, 0
    sources = [source for source in (train, val) if source is not None]
    with progress("reading", sum(source.work for source in sources)) as tick:
        for number, source in enumerate(sources):
            digest.update(b"\xff" * number)  # no part of UTF-8
            for index, block in enumerate(source.blocks(tick)):
                digest.update(block.encode("utf-8", "surrogatepass"))
                position = characters[number]
                documents[number] += block.count(END) + (position == 0)
                text = block.replace(END, "")
                count_characters(survey, code_points(text), position if number == 0 else 1 << 62)
                characters[number] += len(text)
                if number == 0 and index % stride == 0:
                    survey.sample.append((position, block))
                    sampled += len(block) if block.isascii() else len(block.encode("utf-8", "surrogatepass"))
                    if sampled > SAMPLE and len(survey.sample) > 1:
                        survey.sample, stride, sampled = survey.sample[::2], stride * 2, sampled // 2
            if not characters[number]:
                raise UserError(f"{source.origin} is empty; there is nothing to learn from")
    found = [source.findings() for source in sources]
    encodings = {name: sum(f["encodings"].get(name, 0) for f in found) for f in found for name in f["encodings"]}
    places = [place for f in found for place in f["places"]]
    survey.facts = Facts(
        sha256=digest.hexdigest(),
        characters=sum(characters),
        train_characters=characters[0],
        symbols=int(np.count_nonzero(survey.counts)),
        documents=max(documents),
        encodings=encodings,
        undecodable=sum(f["undecodable"] for f in found),
        places=places,
    )
    if any(source.changed > begun - SETTLED for source in sources):
        for source in sources:
            source.stamp = None
    return survey


def count_characters(survey: Survey, points: np.ndarray, position: int) -> None:
    """Add a block, uint32 (n,), that begins at `position`, to the counts and to the places of second occurrences."""
    here = np.bincount(points)
    before = survey.counts[: len(here)]
    new = (here > 0) & (before < 2)
    if new.any():
        at = np.flatnonzero(new[points])
        place = np.zeros(len(here), np.int64)
        place[points[at][::-1]] = at[::-1]  # the first place: of equal indices the last assignment stays
        once = new & (before == 1)
        survey.again[: len(here)][once] = position + place[once]
        later = at[place[points[at]] != at]
        place[points[later][::-1]] = later[::-1]
        twice = new & (before == 0) & (here > 1)
        survey.again[: len(here)][twice] = position + place[twice]
    before += here


def sample_text(survey: Survey, end: int, begin: int = 0) -> list[str]:
    """The sample's characters from `begin` to `end` of the text, in as few strings as there are gaps between them."""
    runs, expected = [], -1
    for position, block in survey.sample:
        part = block[reach(block, begin - position) : reach(block, end - position)]
        if position != expected or not runs:
            runs.append([])
        runs[-1].append(part)
        expected = position + len(block) - block.count(END)
    return [text for text in map("".join, runs) if text]


def reach(text: str, count: int) -> int:
    """The length of the shortest beginning of `text` that has `count` characters besides END, or all of it.

    >>> reach(f"ab{END}cd", 2), reach(f"ab{END}cd", 3)
    (2, 4)
    """
    if END not in text or count <= 0:
        return max(0, min(count, len(text)))
    return min(int(np.searchsorted(np.cumsum(code_points(text) != ord(END)), count)) + 1, len(text))


def recall(folders: Iterable[Path], stamp: str | None) -> Survey | None:
    """The facts of an earlier reading of the same files, so that a large text is not read to see that it is the same."""
    metas = (read_meta(folder) for folder in folders if stamp)
    meta = next((m for m in metas if m and m.stamp == stamp), None)
    return meta and Survey(Facts(**{f.name: getattr(meta, f.name) for f in fields(Facts)}))


def stamp_of_sources(train: Source, val: Source | None) -> str | None:
    """What tells without reading that a text is the one that was read; None where nothing does."""
    if val is None or train.stamp is None or val.stamp is None:
        return train.stamp if val is None else None
    return f"{train.stamp} {val.stamp}"


@contextlib.contextmanager
def progress(what: str, total: int | None):
    """A function that is told how much more has been done; a bar with the time left where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda count: bar.advance(task, count)
