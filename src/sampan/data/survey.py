"""The first reading of a text: counts, checksum and a sample of it.

    survey = read_through(train_source, val_source)

A text of any size is read block by block. The tokenizer is chosen from the survey (tokens/choose.py).
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from sampan.config import DataConfig
from sampan.data.meta import Facts, read_meta
from sampan.errors import UserError
from sampan.messages import _
from sampan.progress import Progress, silent
from sampan.text.characters import Block, code_points, split_at
from sampan.text.parts import SHOWN
from sampan.text.sources import Source, find_source
from sampan.tokens.choose import check_tokenizer

SAMPLE = 6_000_000  # bytes that a BPE is trained on, spread over the text; of Chinese, in 400 MB of memory
SETTLED = 2.0  # seconds; a file younger than that may change again without a new time


@dataclass
class Survey:
    """What one reading of a text tells about it."""

    facts: Facts
    begun: int = 0  # when the reading began, seconds since 1970
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0x110000, np.int64))  # of each code point
    sample: list[tuple[int, Block]] = field(default_factory=list)  # blocks spread over train, with their positions


class Reading:
    """The counts, checksum and sample of a text while it is read, block by block."""

    def __init__(self) -> None:
        self.digest, self.ends = hashlib.sha256(), hashlib.sha256()  # of the text, and of where documents end in it
        self.counts = np.zeros(0x110000, np.int64)
        self.sample: list[tuple[int, Block]] = []
        self.characters = self.documents = self.sampled = 0
        self.stride = 1  # every so many-th block is kept

    def take(self, number: int, block: Block) -> None:
        """Add block `number` of the text."""
        text, ends = block
        raw = text.encode()
        self.digest.update(raw)
        self.ends.update((np.array(ends, np.int64) + self.characters).tobytes())
        here = np.bincount(code_points(text))
        self.counts[: len(here)] += here
        if number % self.stride == 0:
            self.sample.append((self.characters, block))
            self.sampled += len(raw)
            if self.sampled > SAMPLE and len(self.sample) > 1:
                self.sample, self.stride, self.sampled = self.sample[::2], self.stride * 2, self.sampled // 2
        self.characters += len(text)
        self.documents += len(ends)

    def sha256(self) -> bytes:
        if self.documents > 1:
            self.digest.update(self.ends.digest())
        return self.digest.digest()


def read_through(train: Source, val: Source | None, progress: Progress = silent) -> Survey:
    """Return counts, checksum and a sample of a text. Raises UserError where it is empty."""
    begun = int(time.time())
    sources = [train] if val is None else [train, val]
    readings = [Reading() for _ in sources]
    with progress("reading", sum(source.work for source in sources)) as tick:
        for source, reading in zip(sources, readings, strict=True):
            for number, block in enumerate(source.blocks(tick)):
                reading.take(number, block)
            if not reading.characters:
                names = ", ".join(source.names)
                raise UserError(_("{origin} is empty: there is nothing to learn from", origin=names))
    found = [source.findings() for source in sources]
    digests = [reading.sha256() for reading in readings]
    counts = np.sum([reading.counts for reading in readings], axis=0)
    facts = Facts(
        sha256=(hashlib.sha256(b"".join(digests)).digest() if val else digests[0]).hex(),
        characters=sum(reading.characters for reading in readings),
        train_characters=readings[0].characters,
        symbols=int(np.count_nonzero(counts)),
        documents=max(reading.documents for reading in readings),
        encodings={name: sum(f.encodings.get(name, 0) for f in found) for f in found for name in f.encodings},
        undecodable=sum(f.undecodable for f in found),
        places=[place for f in found for place in f.places][:SHOWN],
    )
    return Survey(facts, begun, counts, readings[0].sample)


def sample_documents(survey: Survey, end: int, begin: int = 0) -> list[str]:
    """Return the sample's documents from character `begin` to `end` of the text; they are cut where it has gaps."""
    documents: list[list[str]] = []
    expected = -1
    for position, (text, ends) in survey.sample:
        first, last = max(0, begin - position), max(0, end - position)
        head, *others = split_at(text[first:last], [e - first for e in ends if first < e <= last])
        if position == expected:
            documents[-1].append(head)
        else:
            documents.append([head])
        documents += [[other] for other in others]
        expected = position + len(text)
    return [text for text in map("".join, documents) if text]


def find_both(names: Iterable[str], config: DataConfig) -> tuple[Source, Source | None]:
    """Return the sources of train and of val; None where val is a part of train's. Raises UserError."""
    if config.val_file is not None and config.val_fraction is not None:
        raise UserError(_("--val_file and --val_fraction both say what val is: give one of them"))
    check_tokenizer(config.tokenizer)
    if config.val_file is None:
        return find_source(names, config), None
    val = find_source([config.val_file], config)
    files = [part.file for part in val.parts if part.file]
    train = find_source(names, config, files)
    if not train.parts or train.key == val.key:
        raise UserError(_("--val_file {val} is the whole text: nothing is left to train on", val=config.val_file))
    return train, val


def recall(folders: Iterable[Path], train: Source, val: Source | None) -> Survey | None:
    """Return the facts of an earlier reading of the same files, so that a large text is not read to see that."""
    stamp = stamp_of_sources(train, val)
    for meta in map(read_meta, folders if stamp else ()):
        if meta and meta.stamp == stamp and meta.read_at and is_settled(meta.read_at, train, val):
            return Survey(Facts(**{f.name: getattr(meta, f.name) for f in fields(Facts)}), meta.read_at)
    return None


def is_settled(read_at: int, train: Source, val: Source | None) -> bool:
    """Return whether a text was read so long after its last change that another one would have another time."""
    return read_at > max(train.changed, val.changed if val else 0.0) + SETTLED


def stamp_of_sources(train: Source, val: Source | None) -> str | None:
    """Return what tells without reading that a text is the one that was read; None where nothing does."""
    if val is None or train.stamp is None or val.stamp is None:
        return train.stamp if val is None else None
    return f"{train.stamp} {val.stamp}"
