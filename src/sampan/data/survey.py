"""The first reading of a text: counts, checksum and a sample of it.

    survey = read_through(find_texts(["my-novel.txt"], DataConfig()))

A text of any size is read block by block. The tokenizer is chosen from the survey (tokens/choose.py).
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from sampan.data.meta import Facts, read_meta
from sampan.data.texts import Texts
from sampan.errors import UserError
from sampan.messages import _
from sampan.progress import Progress, silent
from sampan.text.characters import Block, code_points, split_at
from sampan.text.parts import SHOWN

SAMPLE = 6_000_000  # bytes that a BPE is trained on, spread over the text; of Chinese, in 400 MB of memory


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


def read_through(texts: Texts, progress: Progress = silent) -> Survey:
    """Return counts, checksum and a sample of a text. Raises UserError where it is empty."""
    begun = int(time.time())
    sources = texts.sources
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
        sha256=(hashlib.sha256(b"".join(digests)).digest() if texts.val else digests[0]).hex(),
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


def recall(folders: Iterable[Path], texts: Texts) -> Survey | None:
    """Return the facts of an earlier reading of the same files, so that a large text is not read to see that."""
    stamp = texts.stamp
    for meta in map(read_meta, folders if stamp else ()):
        if meta and meta.stamp == stamp and meta.read_at and texts.is_settled(meta.read_at):
            return Survey(Facts(**{f.name: getattr(meta, f.name) for f in fields(Facts)}), meta.read_at)
    return None
