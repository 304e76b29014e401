"""Text out of files: where it is, in which format and encoding, and where a document ends.

    source = find_source(["my-novel.txt", "letters/", "web/*.jsonl.gz"], DataConfig())
    for document in source.documents():     # its text in pieces
        ...
    for text, ends in source.blocks():      # at most BLOCK characters, and where documents end in them
        ...
    source.findings()                       # after the first reading: encodings, and bytes that could not be decoded

A source is files (.txt .md .jsonl .txt.gz .jsonl.gz .parquet .zip; any other name is taken for text), folders of them,
globs, `-` for standard input, `hf:NAME` for a dataset of the Hugging Face Hub, or a corpus's name. It can be read
again and again, and is never whole in memory: what cannot be read twice is kept in an unnamed temporary file.

A .txt or .md is one document; of the other formats each record is one. Nothing is extracted from an archive to disk,
and nothing is tokenized or split here (data.py).
"""

import glob
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from sampan.config import DataConfig
from sampan.errors import UserError
from sampan.messages import _
from sampan.text.characters import Block, Document, blocks_of
from sampan.text.corpora import Corpus, corpus_text, find_corpus, unknown_corpus
from sampan.text.encodings import SHOWN, Tick, check_encoding
from sampan.text.formats import READERS, hub_documents
from sampan.text.parts import Encoding, Part, kept, reading, remembered

BLOCK = 1 << 18  # characters; small enough for a processor's cache, large enough that Python's own time does not show
SUFFIXES = (".txt", ".md", ".jsonl", ".txt.gz", ".md.gz", ".jsonl.gz", ".parquet", ".zip")
IN_ARCHIVES = (".txt", ".md", ".jsonl")


class Findings(NamedTuple):
    """How the files of a source were decoded."""

    encodings: dict[str, int]  # {"utf-8 (detected)": number of files}
    undecodable: int  # bytes
    places: list[str]  # where the first of them are in each file


@dataclass
class Source:
    """A text to prepare: its parts in order. `stamp` changes when any part may have; None where that is not known."""

    name: str
    key: str  # four digits that tell it from another source of the same name
    origin: str  # one sentence for meta.json: where it came from
    parts: list[Part]
    config: DataConfig
    stamp: str | None = None
    changed: float = 0.0  # when its youngest part was last written, seconds since 1970
    tokenizer: str | None = None  # the corpus's own choice
    val_fraction: float | None = None  # the same

    @property
    def work(self) -> int:
        """Bytes to go through, for a progress bar: a file of unknown encoding is looked at before it is read."""
        return sum(p.size * (2 if p.encoding is None and p.kind in ("text", "jsonl") else 1) for p in self.parts)

    def documents(self, tick: Tick = lambda count: None) -> Iterator[Document]:
        """Yield the documents in order; each is to be read before the next one, and some may be empty.

        `tick` is told how many more bytes have been read. Raises UserError for what cannot be read as text.
        """
        for part in self.parts:
            yield from READERS[part.kind](part, self.config, tick)

    def blocks(self, tick: Tick = lambda count: None) -> Iterator[Block]:
        """Yield all of the text in blocks of BLOCK characters, the last one shorter; the last document ends it."""
        return blocks_of(self.documents(tick), BLOCK)

    def findings(self) -> Findings:
        """Return what the last reading found."""
        found = [(part.where, part.encoding) for part in self.parts if part.encoding is not None]
        places = [
            _("byte {at:,}, line {line:,} of {where}", at=at, line=line, where=where)
            for where, encoding in found
            for at, line in encoding.places
        ]
        return Findings(
            dict(Counter(f"{encoding.name} ({encoding.how})" for _where, encoding in found)),
            sum(encoding.bad for _where, encoding in found),
            places[:SHOWN],
        )


# ---- what is read ----


def find_source(names: Iterable[str], config: DataConfig, left_out: Iterable[Path] = ()) -> Source:
    """Return the source of these names, without the files `left_out`. Raises UserError for one that is missing or empty."""
    names = list(names)
    if not names or "" in names:
        raise UserError(_("empty name: give a corpus's name, a file or a folder"))
    check_encoding(config.encoding)
    entry = find_corpus(names[0]) if len(names) == 1 else None
    if entry is not None:
        return corpus_source(entry, config)
    parts, seen = [], {path.resolve() for path in left_out}
    for name in names:
        parts += parts_of(name, seen, config)
    stamp, changed = stamp_of_parts(parts, config)
    said = [_("standard input") if name == "-" else name for name in names]
    origin = ", ".join(said) if len(said) < 4 else _("{first} to {last}", first=said[0], last=said[-1])
    if [part.where for part in parts] != said:
        many = _("{count:,} files of {names}") if len(parts) > 1 else _("1 file of {names}")
        origin = many.format(count=len(parts), names=origin)
    return Source(source_name(names), source_key(names), origin, parts, config, stamp, changed)


def source_key(names: Sequence[str]) -> str:
    """Return four digits that follow from where a source is: those of a/x.txt are not those of b/x.txt.

    >>> source_key(["x.txt"]) == source_key(["./x.txt"]), source_key(["a/x.txt"]) == source_key(["b/x.txt"])
    (True, False)
    """
    is_path = [not (find_corpus(name) or name == "-" or name.startswith("hf:")) for name in names]
    places = [place_of(Path(name)) if own else name for name, own in zip(names, is_path, strict=True)]
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:4]


def place_of(path: Path) -> str:
    """Return where a file is, the same for every spelling: relative to the working directory if it is below that."""
    path, here = path.resolve(), Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def source_name(names: Iterable[str]) -> str:
    """Return the name of a text, which its folders get too.

    >>> source_name(["texts/my-novel.txt"]), source_name(["src/**/*.py"]), source_name(["hf:roneneldan/TinyStories"])
    ('my-novel', 'src', 'TinyStories')
    """
    first, *more = names
    if entry := find_corpus(first):
        name = entry.name
    elif first == "-":
        name = "stdin"
    elif first.startswith("hf:"):
        name = Path(first.removeprefix("hf:").split(":")[0]).name
    else:
        path = Path(first)
        if is_glob(first):
            plain = [part for part in path.parts if not glob.has_magic(part)]
            path = (
                Path(*path.parts[: next(i for i, p in enumerate(path.parts) if glob.has_magic(p))]) if plain else Path()
            )
        if path.name == "input.txt" and path.parent.name:  # nanoGPT's name for any text
            path = path.parent
        path = path.resolve()
        name = path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name
    return (name or "text") + (f"-and-{len(more)}-more" if more else "")


def is_glob(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def corpus_source(entry: Corpus, config: DataConfig) -> Source:
    if entry.streamed:
        part = hub_part(entry.hub, config)
        stamp = stamp_of_parts([part], config)[0]
        return Source(
            entry.name,
            source_key([entry.name]),
            entry.summary,
            [part],
            config,
            stamp,
            0.0,
            entry.tokenizer,
            entry.val_fraction,
        )
    text, origin = corpus_text(entry)
    raw = text.encode()
    part = Part(entry.name, "text", lambda: io.BytesIO(raw), len(raw), Encoding("utf-8", "detected", total=len(raw)))
    return Source(
        entry.name,
        source_key([entry.name]),
        origin,
        [part],
        config,
        tokenizer=entry.tokenizer,
        val_fraction=entry.val_fraction,
    )


def parts_of(name: str, seen: set[Path], config: DataConfig) -> list[Part]:
    """Return the parts of one name on the command line, in order; a file that was `seen` is not read twice."""
    if name == "-":
        return [Part(_("standard input"), "text", kept(lambda: sys.stdin.buffer))]
    if name.startswith("hf:"):
        return [hub_part(name.removeprefix("hf:"), config)]
    path = Path(name)
    if path.is_dir():
        runs = {p.parent for p in path.rglob("run.json")}  # of `sampan train`; their metrics are no text
        paths = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and is_plain(p, path))
        paths = [p for p in paths if runs.isdisjoint(p.parents)]
        if not paths:
            raise UserError(
                _(
                    "{path} has no text ({suffixes}); for other names give a glob: '{path}/**/*.py'",
                    path=path,
                    suffixes=", ".join(SUFFIXES),
                )
            )
    elif is_glob(name):
        paths = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not paths:
            raise UserError(_("{name}: no file matches", name=name))
    elif path.exists():
        paths = [path]
    else:
        raise UserError(unknown_corpus(name))
    parts = []
    for file in paths:
        if file.resolve() not in seen:
            seen.add(file.resolve())
            parts += archive_parts(file) if file.suffix == ".zip" else [file_part(file)]
    return parts


def is_plain(path: Path, folder: Path) -> bool:
    """Return whether it is a file and neither hidden nor in a hidden folder below `folder`."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def file_part(path: Path) -> Part:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror)) from None
    if not path.is_file():  # a pipe, such as bash's <(command)
        return Part(str(path), "text", kept(lambda: path.open("rb")))
    return Part(str(path), kind_of(path.name), lambda: open_file(path), size)


def kind_of(name: str) -> str:
    suffix = Path(name.removesuffix(".gz")).suffix
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(suffix, "text")


def open_file(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        import gzip

        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def archive_parts(path: Path) -> list[Part]:
    """Return the texts in a .zip, by name; they are read from within it and never written anywhere."""
    import zipfile

    with reading(str(path)):
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda m: m.filename)
    members = [m for m in members if m.filename.endswith(IN_ARCHIVES) and "__MACOSX" not in m.filename]
    if not members:
        raise UserError(_("{path} holds no text ({in_archives})", path=path, in_archives=", ".join(IN_ARCHIVES)))
    if any(m.flag_bits & 1 for m in members):
        raise UserError(_("{path} is encrypted; unpack it first", path=path))
    return [
        Part(f"{path}/{m.filename}", kind_of(m.filename), partial(archive.open, m), m.compress_size) for m in members
    ]


def hub_part(name: str, config: DataConfig) -> Part:
    return Part(f"hf:{name}", "hub", remembered(lambda: hub_documents(name, config)))


def stamp_of_parts(parts: list[Part], config: DataConfig) -> tuple[str | None, float]:
    """Return (a hash of names, sizes and times, the time of the youngest part); no hash where a part has no time."""
    state: list[tuple[str, int, int]] = []
    changed = 0.0
    for part in parts:
        if part.kind == "hub":
            state.append((part.where, 0, 0))
            continue
        path = Path(part.where)
        outer = next((p for p in (path, *path.parents) if p.is_file()), None)  # of a member, its archive
        if outer is None:  # standard input, or a pipe
            return None, 0.0
        status = outer.stat()
        changed = max(changed, status.st_mtime)
        state.append((place_of(path), status.st_size, status.st_mtime_ns))
    said = [state, config.encoding, config.normalize, config.text_field]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest(), changed
