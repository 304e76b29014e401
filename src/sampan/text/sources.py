"""Text out of files: where it is, in which format and encoding, and where a document ends.

    source = find_source(["my-novel.txt", "letters/", "web/*.jsonl.gz"], DataConfig())
    for document in source.documents():     # its text in pieces
        ...
    for text, ends in source.blocks():      # at most BLOCK characters, and where documents end in them
        ...
    source.findings()                       # after the first reading: encodings, and bytes that could not be decoded

A source is files (folders.py has their suffixes; any other name is taken for text), folders of them, globs, addresses,
`-` for standard input, `hf:NAME` for a dataset of the Hugging Face Hub, or a corpus's name. It can be read again and
again, and is never whole in memory: what cannot be read twice is kept in an unnamed temporary file.

A .txt or .md is one document; of the other formats each record is one. Nothing is extracted from an archive to disk,
and nothing is tokenized or split here (data.py).
"""

import glob
import hashlib
import itertools
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from sampan.config import DataConfig
from sampan.errors import UserError
from sampan.fetch import fetch_address, file_name, is_address
from sampan.messages import _
from sampan.text.characters import Block, Document, blocks_of
from sampan.text.corpora import Corpus, corpus_file, find_corpus
from sampan.text.encodings import Tick, check_encoding
from sampan.text.folders import KINDS, files_of, packing, parts_of_file, plain_suffix
from sampan.text.formats import READERS, hub_texts
from sampan.text.parts import SHOWN, Damage, Part, kept, remembered

BLOCK = 1 << 18  # characters; small enough for a processor's cache, large enough that Python's own time does not show
log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """How the files of a source were decoded."""

    encodings: dict[str, int]  # {"utf-8 (detected)": number of files}
    undecodable: int  # characters
    places: list[str]  # where the first of them are in each file


@dataclass
class Source:
    """A text to prepare: its parts in order. `stamp` changes when any part may have; None where that is not known."""

    name: str
    key: str  # four digits that tell it from another source of the same name
    names: list[str]  # as they were given
    parts: list[Part]
    config: DataConfig
    stamp: str | None = None
    changed: float = 0.0  # when its youngest part was last written, seconds since 1970
    corpus: Corpus | None = None

    @property
    def tokenizer(self) -> str | None:
        """The corpus's own choice."""
        return self.corpus.tokenizer if self.corpus else None

    @property
    def val_fraction(self) -> float | None:
        """The corpus's own choice."""
        return self.corpus.val_fraction if self.corpus else None

    @property
    def origin(self) -> str:
        """One sentence for meta.json: where the text comes from."""
        if self.corpus:
            return self.corpus.summary if self.corpus.streamed else f"{self.corpus.summary}; {self.corpus.licence}"
        said = [_("standard input") if name == "-" else name for name in self.names]
        names = ", ".join(said) if len(said) < 4 else _("{first} to {last}", first=said[0], last=said[-1])
        where = [part.where for part in self.parts]
        if where == said:
            return names
        if len(where) < 2:
            return _("1 file of {names}", names=names)
        if len(said) > 1:
            return _("{count:,} files of {names}", count=len(where), names=names)
        first, last = (PurePath(name).name for name in (where[0], where[-1]))
        about = dict(count=len(where), names=names, first=first, last=last)
        return _("{count:,} files of {names}, in natural order: {first} to {last}", **about)

    @property
    def work(self) -> int:
        """Bytes to go through, for a progress bar: a file of unknown encoding is looked at before it is read."""
        return sum(p.size * (2 if p.encoding is None and p.kind in ("text", "json") else 1) for p in self.parts)

    def documents(self, tick: Tick = lambda count: None) -> Iterator[Document]:
        """Yield the documents in order; each is to be read before the next one, and some may be empty.

        `tick` is told how many more bytes have been read. Raises UserError for what cannot be read as text.
        """
        if self.config.skip_unreadable:
            self.parts = [part for part in self.parts if part.is_readable or self.try_part(part)]
        for part in self.parts:
            part.damage, part.characters = Damage(), 0
            for document in READERS[part.kind](part, self.config, tick):
                yield part.counted(document)

    def try_part(self, part: Part) -> bool:
        """Return whether a part can be read to its end; the log says why not."""
        try:
            for document in READERS[part.kind](part, self.config, lambda count: None):
                for _piece in document:
                    pass
        except UserError as error:
            log.warning(_("left out: {error}", error=error))
            return False
        part.is_readable = True
        return True

    def blocks(self, tick: Tick = lambda count: None) -> Iterator[Block]:
        """Yield all of the text in blocks of BLOCK characters, the last one shorter; the last document ends it."""
        try:
            yield from blocks_of(self.documents(tick), BLOCK)
        except UserError as error:
            if len(self.parts) < 2:
                raise
            raise UserError(_("{error} (--skip_unreadable leaves such files out)", error=error)) from None

    def part_at(self, character: int) -> Part:
        """Return the part that has this character of the text, counted from 0, after a reading."""
        ends = itertools.accumulate(part.characters for part in self.parts)
        return next(part for part, end in zip(self.parts, ends, strict=True) if character < end)

    def findings(self) -> Findings:
        """Return what the last reading found."""
        encodings = [part.encoding for part in self.parts if part.encoding is not None]
        return Findings(
            dict(Counter(f"{encoding.name} ({encoding.how})" for encoding in encodings)),
            sum(part.damage.count for part in self.parts),
            [place for part in self.parts for place in part.damage.places][:SHOWN],
        )


# ---- what is read ----


def find_source(names: Iterable[str], config: DataConfig, without: Iterable[Path] = ()) -> Source:
    """Return the source of these names, without some files. Raises UserError for one that is missing or empty.

    The log says what is left out of folders and archives.
    """
    names = list(names)
    if not names or "" in names:
        raise UserError(_("empty name: give a corpus's name, a file or a folder"))
    check_encoding(config.encoding)
    entry = find_corpus(names[0]) if len(names) == 1 else None
    seen = {path.resolve() for path in without}
    parts, left_out, nothing_is_an_error = [], Counter[str](), not seen
    for name in names:
        parts += corpus_parts(entry, config) if entry else parts_of(name, seen, config, left_out)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted((+left_out).items()))
    if not parts and nothing_is_an_error:
        about = dict(names=", ".join(names), suffixes=" ".join(KINDS), first=names[0], kinds=kinds or "-")
        raise UserError(
            _(
                "{names} has no text ({suffixes}); left out: {kinds}; for other files give a glob: '{first}/**/*.py'",
                **about,
            )
        )
    if kinds:
        log.warning(_("left out of {names}: {kinds}", names=", ".join(names), kinds=kinds))
    tables = sum(plain_suffix(part.where) in (".csv", ".tsv") for part in parts)
    if tables:
        log.warning(
            _("{tables:,} .csv read as plain text, commas included; .jsonl has a document per record", tables=tables)
        )
    stamp, changed = stamp_of_parts(parts, config)
    return Source(source_name(names), source_key(names), names, parts, config, stamp, changed, entry)


def source_key(names: Sequence[str]) -> str:
    """Return four digits that follow from where a source is: those of a/x.txt are not those of b/x.txt.

    >>> source_key(["x.txt"]) == source_key(["./x.txt"]), source_key(["a/x.txt"]) == source_key(["b/x.txt"])
    (True, False)
    """
    is_path = [not (find_corpus(name) or name == "-" or name.startswith("hf:") or is_address(name)) for name in names]
    places = [place_of(Path(name)) if own else name for name, own in zip(names, is_path, strict=True)]
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:4]


def place_of(path: Path) -> str:
    """Return where a file is, the same for every spelling: relative to the working directory if it is below that."""
    path, here = path.resolve(), Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def source_name(names: Iterable[str]) -> str:
    """Return the name of a text, which its folders get too.

    >>> source_name(["texts/my-novel.txt"]), source_name(["src/**/*.py"]), source_name(["https://a.org/b.TXT.gz?c=1"])
    ('my-novel', 'src', 'b')
    """
    first, *more = names
    if entry := find_corpus(first):
        name = entry.name
    elif first == "-":
        name = "stdin"
    elif first.startswith("hf:"):
        name = Path(first.removeprefix("hf:").split(":")[0]).name
    else:
        path = Path(file_name(first)) if is_address(first) else Path(first)
        if not path.exists():  # of a glob, the folder that it begins with
            path = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        if path.name == "input.txt" and path.parent.name:  # nanoGPT's name for any text
            path = path.parent
        path = path.resolve()
        name = path.name if path.is_dir() else path.name.removesuffix(packing(path.name)).rsplit(".", 1)[0] or path.name
    return (name or "text") + (f"-and-{len(more)}-more" if more else "")


def corpus_parts(entry: Corpus, config: DataConfig) -> list[Part]:
    if entry.streamed:
        return [hub_part(entry.hub, config)]
    return parts_of_file(corpus_file(entry), entry.name, True, config, Counter())


def parts_of(name: str, seen: set[Path], config: DataConfig, left_out: Counter[str]) -> list[Part]:
    """Return the parts of one name on the command line, in order; a file that was `seen` is not read twice."""
    if name == "-":
        return [Part(_("standard input"), "text", kept(lambda: sys.stdin.buffer))]
    if name.startswith("hf:"):
        return [hub_part(name.removeprefix("hf:"), config)]
    path = fetch_address(name) if is_address(name) else Path(name)
    parts: list[Part] = []
    for file in files_of(path, left_out):
        if file.resolve() not in seen:
            seen.add(file.resolve())
            where = name if file == path else str(file)
            try:
                parts += parts_of_file(file, where, where == name, config, left_out)
            except UserError as error:
                if not config.skip_unreadable:
                    raise
                log.warning(_("left out: {error}", error=error))
    return parts


def hub_part(name: str, config: DataConfig) -> Part:
    return Part(f"hf:{name}", "hub", remembered(lambda: hub_texts(name, config)))


def stamp_of_parts(parts: list[Part], config: DataConfig) -> tuple[str | None, float]:
    """Return (a hash of names, sizes and times, the time of the youngest part); no hash where a part has no time."""
    state, changed = [], 0.0
    for part in parts:
        if part.kind != "hub" and part.file is None:  # standard input, or a pipe
            return None, 0.0
        status = part.file.stat() if part.file else None
        changed = max(changed, status.st_mtime if status else 0.0)
        where = place_of(part.file) if part.file else part.where
        state.append((where, *((status.st_size, status.st_mtime_ns) if status else ())))
    said = [state, config.encoding, config.normalize, config.text_field, config.skip_unreadable]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest(), changed
