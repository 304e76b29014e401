"""Text out of files: where it is, in which format and encoding, and where a document ends.

    source = find(["my-novel.txt", "letters/", "web/*.jsonl.gz"], DataConfig())
    for text in source.blocks():            # str of at most BLOCK characters; END stands between documents
        ...
    source.findings()                       # after the first reading: encodings, and bytes that none could read

A source is files (.txt .md .jsonl .txt.gz .jsonl.gz .parquet .zip; any other name is taken for text), folders of them,
globs, `-` for standard input, `hf:NAME` for a dataset of the Hugging Face Hub, or a corpus's name. It can be read
again and again, and is never whole in memory: what cannot be read twice is kept in an unnamed temporary file.

A .txt or .md is one document; of the other formats each record is one. Nothing is extracted from an archive to disk,
and nothing is tokenized or split here (data.py).
"""

import codecs
import contextlib
import glob
import hashlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import corpus
from .config import DataConfig
from .errors import UserError, install
from .fetch import is_offline
from .tokenizer import END, is_unicode

BLOCK = 1 << 18  # characters; small enough for a processor's cache, large enough that Python's own time does not show
CHUNK = 1 << 20  # bytes
SUFFIXES = (".txt", ".md", ".jsonl", ".txt.gz", ".md.gz", ".jsonl.gz", ".parquet", ".zip")
IN_ARCHIVES = (".txt", ".md", ".jsonl")
FEW = 1000  # one byte in so many may be undecodable
SHOWN = 3  # of the undecodable bytes, as many are located
EVIDENCE = 1 << 16  # bytes that an encoding is guessed from
# Tried before all that the detector knows: half of its errors on a few characters are encodings that nobody uses.
COMMON = ["gb18030", "big5", "cp1252", "shift_jis", "euc_jp", "euc_kr"]
MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
ADVICE = "say which encoding it has with --encoding, such as gb18030, big5 or cp1252"


@dataclass
class Encoding:
    """What a file's bytes are, and which of them are not."""

    name: str
    how: str  # "detected", "byte order mark" or "as asked"
    mark: int = 0  # bytes of a byte order mark
    bad: int = 0
    total: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)  # (offset, line from 1) of the first bad bytes


@dataclass
class Part:
    """One thing that is read from its beginning to its end: a file, a member of an archive, a dataset."""

    where: str  # as messages name it
    kind: str  # "text", "jsonl", "parquet" or "hub"
    open: Callable[[], BinaryIO | Iterator[str]]  # its bytes, decompressed; of a dataset, its documents
    size: int = 0  # bytes on disk, for progress
    encoding: Encoding | None = None  # found when it is first read


@dataclass
class Source:
    """A text to prepare: its parts in order. `stamp` changes when any part may have; None where that is not known."""

    name: str
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

    def blocks(self, tick: Callable[[int], None] = lambda count: None) -> Iterator[str]:
        """All of the text, in strings of BLOCK characters but for the last; END stands between documents.

        `tick` is told how many more bytes have been read. Raises UserError for what cannot be read as text.
        """
        first = True
        for text in rechunk(self.pieces(tick), BLOCK):
            yield text[1:] if first else text
            first = False

    def pieces(self, tick: Callable[[int], None]) -> Iterator[str]:
        """The text as it comes, each document begun by END."""
        for part in self.parts:
            with reading(part.where):
                yield from READERS[part.kind](part, self.config, tick)

    def findings(self) -> dict:
        """{"encodings": {name: number of files}, "undecodable": number of bytes, "places": where the first are}."""
        known = [part for part in self.parts if part.encoding is not None]
        count: dict[str, int] = {}
        for part in known:
            label = f"{part.encoding.name} ({part.encoding.how})"
            count[label] = count.get(label, 0) + 1
        bad = [part for part in known if part.encoding.bad]
        places = [f"byte {at:,}, line {line:,} of {part.where}" for part in bad for at, line in part.encoding.places]
        return {
            "encodings": count,
            "undecodable": sum(part.encoding.bad for part in bad),
            "places": places[:SHOWN],
        }


# ---- what is read ----


def find(names: Iterable[str], config: DataConfig, left_out: Iterable[Path] = ()) -> Source:
    """The source of these names, without the files `left_out`. Raises UserError for one that is missing or empty."""
    names = list(names)
    if not names or "" in names:
        raise UserError("an empty name is no text; give a corpus's name, a file or a folder")
    check_encoding(config.encoding)
    entry = corpus.find(names[0]) if len(names) == 1 else None
    if entry is not None:
        return corpus_source(entry, config)
    parts, seen = [], {path.resolve() for path in left_out}
    for name in names:
        parts += parts_of(name, seen, config)
    stamp, changed = stamp_of(parts, config)
    said = ["standard input" if name == "-" else name for name in names]
    many = f"{len(parts):,} file{'s' * (len(parts) > 1)} of " if [part.where for part in parts] != said else ""
    origin = many + (", ".join(said) if len(said) < 4 else f"{said[0]} to {said[-1]}")
    return Source(source_name(names), origin, parts, config, stamp, changed)


def source_name(names: Iterable[str]) -> str:
    """What a text is called, and its folders are.

    >>> source_name(["texts/my-novel.txt"]), source_name(["src/**/*.py"]), source_name(["hf:roneneldan/TinyStories"])
    ('my-novel', 'src', 'TinyStories')
    """
    first, *more = names
    if entry := corpus.find(first):
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
        path = path.resolve()
        name = path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name
    return (name or "text") + (f"-and-{len(more)}-more" if more else "")


def is_glob(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def corpus_source(entry: corpus.Corpus, config: DataConfig) -> Source:
    if entry.streamed:
        part = hub_part(entry.hub, config)
        stamp = stamp_of([part], config)[0]
        return Source(entry.name, entry.summary, [part], config, stamp, 0.0, entry.tokenizer, entry.val_fraction)
    text, origin = corpus.text(entry)
    raw = text.encode()
    part = Part(entry.name, "text", lambda: io.BytesIO(raw), len(raw), Encoding("utf-8", "detected", total=len(raw)))
    return Source(entry.name, origin, [part], config, tokenizer=entry.tokenizer, val_fraction=entry.val_fraction)


def parts_of(name: str, seen: set[Path], config: DataConfig) -> list[Part]:
    """The parts of one name on the command line, in order; a file that was `seen` is not read twice."""
    if name == "-":
        return [Part("standard input", "text", kept(lambda: sys.stdin.buffer))]
    if name.startswith("hf:"):
        return [hub_part(name.removeprefix("hf:"), config)]
    path = Path(name)
    if path.is_dir():
        runs = {p.parent for p in path.rglob("run.json")}  # of `sampan train`; their metrics are no text
        paths = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and is_plain(p, path))
        paths = [p for p in paths if runs.isdisjoint(p.parents)]
        if not paths:
            raise UserError(
                f"{path} has no text ({', '.join(SUFFIXES)}); for other names give a glob: '{path}/**/*.py'"
            )
    elif is_glob(name):
        paths = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not paths:
            raise UserError(f"{name}: no file has such a name")
    elif path.exists():
        paths = [path]
    else:
        raise UserError(corpus.unknown(name))
    parts = []
    for file in paths:
        if file.resolve() not in seen:
            seen.add(file.resolve())
            parts += archive_parts(file) if file.suffix == ".zip" else [file_part(file)]
    return parts


def is_plain(path: Path, folder: Path) -> bool:
    """Whether it is a file and neither hidden nor in a hidden folder below `folder`."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def file_part(path: Path) -> Part:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not path.is_file():  # a pipe, such as bash's <(command)
        return Part(str(path), "text", kept(lambda: path.open("rb")))
    return Part(str(path), kind_of(path.name), lambda: open_file(path), size)


def kind_of(name: str) -> str:
    suffix = Path(name.removesuffix(".gz")).suffix
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(suffix, "text")


def open_file(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        import gzip

        return gzip.open(path, "rb")
    return path.open("rb")


def archive_parts(path: Path) -> list[Part]:
    """The texts in a .zip, by name; they are read from within it and never written anywhere."""
    import zipfile

    with reading(str(path)):
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda m: m.filename)
    members = [m for m in members if m.filename.endswith(IN_ARCHIVES) and "__MACOSX" not in m.filename]
    if not members:
        raise UserError(f"{path} holds no text ({', '.join(IN_ARCHIVES)})")
    if any(m.flag_bits & 1 for m in members):
        raise UserError(f"{path} is encrypted; unpack it first")
    return [
        Part(f"{path}/{m.filename}", kind_of(m.filename), lambda m=m: archive.open(m), m.compress_size) for m in members
    ]


def hub_part(name: str, config: DataConfig) -> Part:
    return Part(f"hf:{name}", "hub", remembered(lambda: hub_documents(name, config)))


def stamp_of(parts: list[Part], config: DataConfig) -> tuple[str | None, float]:
    """(what changes when a part may have changed, when the youngest was written), from names, sizes and times alone."""
    state, changed = [], 0.0
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
        state.append((str(path), status.st_size, status.st_mtime_ns))
    said = [state, config.encoding, config.normalize, config.text_field]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest(), changed


def kept(open_once: Callable[[], BinaryIO]) -> Callable[[], BinaryIO]:
    """`open` for bytes that can be read only once: they are kept in a file without a name, which nothing leaves behind."""
    files: list[BinaryIO] = []

    def again() -> BinaryIO:
        if not files:
            file = temporary_file()
            source = open_once()
            while chunk := source.read(CHUNK):
                file.write(chunk)
            file.flush()
            files.append(file)
        reader = os.fdopen(os.dup(files[0].fileno()), "rb")
        reader.seek(0)
        return reader

    return again


def remembered(make: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
    """The strings of `make`, which is called once: the first reading keeps them in a file without a name."""
    files: list[BinaryIO] = []

    def again() -> Iterator[str]:
        if not files:
            file = temporary_file()
            for text in make():
                file.write(text.encode("utf-8", "surrogatepass"))
                yield text
            files.append(file)
            return
        files[0].seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        while chunk := files[0].read(CHUNK):
            yield decoder.decode(chunk)

    return again


def temporary_file() -> BinaryIO:
    """Beside the data, since the system's own place for such files is often small."""
    import tempfile

    return tempfile.TemporaryFile(dir=".")


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what a damaged file raises into one sentence."""
    import zipfile
    import zlib

    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be read ({why})") from None


# ---- formats ----


def read_text(part: Part, config: DataConfig, tick) -> Iterator[str]:
    """One document."""
    begun = False
    for text in clean(decoded(part, config, tick), config.normalize):
        if text:
            yield text if begun else END + text
            begun = True


def read_jsonl(part: Part, config: DataConfig, tick) -> Iterator[str]:
    """A document for each line, from its field."""
    name = config.text_field
    for number, line in enumerate(lines(clean(decoded(part, config, tick), "none")), 1):
        if not line.strip():
            continue
        where = f"{part.where}, line {number}"
        try:
            text = json.loads(line)[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{where}: expected an object with a "{name}" field (--text_field names another)') from None
        yield from document(text, where, config)


def read_parquet(part: Part, config: DataConfig, tick) -> Iterator[str]:
    """A document for each row, from its column."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{part.where}: .parquet is read by the pyarrow library: {install('hf')}") from None
    name = config.text_field
    with part.open() as raw:
        try:
            file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=CHUNK)
            if name not in file.schema_arrow.names:
                there = ", ".join(file.schema_arrow.names)
                raise UserError(f'{part.where} has no column "{name}"; choose one with --text_field: {there}')
            rows = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=1024, columns=[name]):
                for text in batch.column(0).to_pylist():
                    yield from document("" if text is None else text, part.where, config)
                tick(part.size * batch.num_rows // max(rows, 1))
        except pa.ArrowException as error:
            raise UserError(f"{part.where}: cannot be read ({str(error).splitlines()[0]})") from None


def hub_documents(name: str, config: DataConfig) -> Iterator[str]:
    """The documents of NAME[:CONFIG[:SPLIT]], a dataset of the Hugging Face Hub or a folder that the library reads."""
    path, subset, split = (*name.split(":"), "", "")[:3]
    if is_offline() and not Path(path).exists():
        raise UserError(f"{name} is streamed from the network: unset SAMPAN_OFFLINE to read it")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"{name} is read by the datasets library: {install('hf')}") from None
    try:
        for row in load_dataset(path, subset or None, split=split or "train", streaming=True):
            if config.text_field not in row:
                raise UserError(
                    f'{name} has no field "{config.text_field}"; choose one with --text_field: {", ".join(row)}'
                )
            yield from document(row[config.text_field], name, config)
    except (OSError, RuntimeError, ValueError) as error:  # datasets' own errors are among these
        why = f"{name} cannot be read from the Hugging Face Hub ({str(error).splitlines()[0]})"
        raise UserError(f"{why}: check the name, try again, or set HF_ENDPOINT to a mirror of the hub") from None


READERS = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "hub": lambda part, config, tick: part.open(),
}


def document(text, where: str, config: DataConfig) -> Iterator[str]:
    """A record's text, begun by END; nothing where it is empty."""
    if not isinstance(text, str):
        raise UserError(f'{where}: "{config.text_field}" is not a string')
    if not is_unicode(text):
        raise UserError(f'{where}: "{config.text_field}" has half of a surrogate pair')
    if text:
        yield END + "".join(clean([text], config.normalize))


# ---- text in pieces ----


def rechunk(pieces: Iterable[str], size: int) -> Iterator[str]:
    """The same text in pieces of exactly `size` characters, but for the last.

    >>> list(rechunk(["ab", "cdefg", ""], 3))
    ['abc', 'def', 'g']
    """
    held, length = [], 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= size:
            text = "".join(held)
            whole = length - length % size
            for start in range(0, whole, size):
                yield text[start : start + size]
            held, length = [text[whole:]], length - whole
    if length:
        yield "".join(held)


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """
    >>> list(lines(["a\\nb", "c\\n", "d"]))
    ['a', 'bc', 'd']
    """
    held = []
    for piece in pieces:
        first, *others = piece.split("\n")
        held.append(first)
        for line in others:
            yield "".join(held)
            held = [line]
    yield "".join(held)


def clean(pieces: Iterable[str], form: str) -> Iterator[str]:
    """Every line ended by one newline character, and normalised to Unicode's NFC or NFKC where that is asked for."""
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    held = ""
    for piece in pieces:
        text = ends.decode(piece)
        if form == "none":
            yield text
            continue
        held += text
        cut = next((i for i in range(len(held) - 1, 0, -1) if stands_alone(held[i])), 0)
        yield unicodedata.normalize(form.upper(), held[:cut])
        held = held[cut:]
    held += ends.decode("", final=True)
    yield held if form == "none" else unicodedata.normalize(form.upper(), held)


def stands_alone(c: str) -> bool:
    """Whether a character is never composed with one before it: ASCII and the common ideographs."""
    return c < "\x7f" or "\u4e00" <= c <= "\u9fff"


# ---- encodings ----


def check_encoding(name: str | None) -> None:
    """Raises UserError for a name that is no encoding of text."""
    try:
        if name is not None:
            "".encode(name)
            codecs.getincrementaldecoder(name)("replace")
    except (LookupError, ValueError, TypeError, AssertionError):
        raise UserError(f"encoding={name}: not known; for example gb18030, big5, utf-16, cp1252") from None


def decoded(part: Part, config: DataConfig, tick) -> Iterator[str]:
    if part.encoding is None:
        part.encoding = find_encoding(part, config.encoding, tick)
    decoder = codecs.getincrementaldecoder(part.encoding.name)("replace")
    for chunk in chunks(part, part.encoding.mark, tick):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def chunks(part: Part, mark: int, tick) -> Iterator[bytes]:
    """A part's bytes without its byte order mark."""
    with part.open() as file:
        on_disk = getattr(file, "fileobj", None) or file  # of a .gz, what is compressed
        last = 0
        file.read(mark)
        while chunk := file.read(CHUNK):
            yield chunk
            now = min(on_disk.tell(), part.size)
            tick(now - last)
            last = now
        tick(part.size - last)


def find_encoding(part: Part, asked: str | None, tick) -> Encoding:
    """What a part's bytes are: as asked, by their mark, UTF-8 where they all are, or what the detector says.

    The whole part is looked at, so that what can be decoded is known before anything is written. Raises UserError for
    binary data, and where more than one byte in FEW fits no encoding.
    """
    with part.open() as file:
        head = file.read(CHUNK)
    mark, marked = next(((len(m), name) for m, name in MARKS if head.startswith(m)), (0, None))
    if asked is not None:
        own = marked and codecs.lookup(asked).name.split("-")[:2] == marked.split("-")[:2]
        found, _ = scan(part, Encoding(marked if own else asked, "as asked", mark if own else 0), tick)
        if is_few(found):
            return found
        raise undecodable(part, found, guess(lines_with_high_bytes(head)))
    if marked:
        found, _ = scan(part, Encoding(marked, "byte order mark", mark), tick)
        if is_few(found):
            return found
        raise undecodable(part, found, None)
    if b"\0" in head and (wide := guess_wide(head[:EVIDENCE])):
        found, _ = scan(part, Encoding(wide, "detected"), tick)
        if is_few(found):
            return found
    if b"\0" in head:
        raise UserError(f"{part.where} is binary: it has a zero byte at offset {head.index(0)}; give a text file")
    utf8, evidence = scan(part, Encoding("utf-8", "detected"), tick)
    if not utf8.bad:
        return utf8
    high = sum(b > 0x7F for b in evidence)
    if is_few(utf8) and len(evidence.decode("utf-8", "ignore").encode()) > len(evidence) - high / 2:
        return utf8  # damaged in a few places
    name = guess(evidence)
    if name is not None:
        tries = [scan(part, Encoding(n, "detected"), lambda count: None)[0] for n in (name, *WIDER.get(name, ()))]
        best = min(tries, key=lambda found: found.bad)
        if is_few(best):
            return best
    raise undecodable(part, utf8, name)


# Code pages with more characters than the standard that they began as.
WIDER = {"big5": ("cp950", "big5hkscs"), "shift_jis": ("cp932",), "euc_kr": ("cp949",)}


def is_few(found: Encoding) -> bool:
    return found.bad * FEW <= found.total


def undecodable(part: Part, found: Encoding, likely: str | None) -> UserError:
    at, line = found.places[0]
    looks = f"; it looks like {likely}" if likely and likely != found.name else ""
    return UserError(
        f"{part.where} cannot be read as {found.name}: {found.bad:,}{'' if found.total else ' or more'} bytes do not fit, "
        f"the first at offset {at:,}, line {line:,}{looks}; {ADVICE}"
    )


class Enough(Exception):
    """So many bytes are wrong that the encoding is."""


def scan(part: Part, found: Encoding, tick) -> tuple[Encoding, bytes]:
    """(`found` with its bad bytes counted and located, some lines around them to guess an encoding from).

    It stops where an encoding is plainly wrong; then the count is of what was read.
    """
    evidence = bytearray()
    newlines = 0

    def note(error: UnicodeDecodeError) -> tuple[str, int]:
        at = found.mark + found.total - len(error.object) + error.start
        found.bad += error.end - error.start
        if len(found.places) < SHOWN:
            found.places.append((at, newlines + error.object.count(b"\n", 0, error.start) + 1))
        if found.bad > EVIDENCE and not is_few(found):
            raise Enough
        return "\ufffd", error.end

    codecs.register_error("sampan.note", note)
    decoder = codecs.getincrementaldecoder(found.name)("sampan.note")
    try:
        for chunk in chunks(part, found.mark, tick):
            found.total += len(chunk)
            before = found.bad
            decoder.decode(chunk)
            newlines += chunk.count(b"\n")
            if found.bad > before and len(evidence) < EVIDENCE:
                evidence += lines_with_high_bytes(chunk)
        decoder.decode(b"", final=True)
    except Enough:
        evidence += lines_with_high_bytes(chunk)
    return found, bytes(evidence[:EVIDENCE] or b"")


def lines_with_high_bytes(chunk: bytes) -> bytes:
    """From the beginning of the first line that is not ASCII: there, no character is cut in two."""
    high = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) > 0x7F)
    start = chunk.rfind(b"\n", 0, int(high[0])) + 1 if len(high) else 0
    return chunk[start : start + EVIDENCE]


def guess(sample: bytes) -> str | None:
    """The encoding that these bytes look most like, or None."""
    from charset_normalizer import from_bytes

    controls = sum(b < 0x20 and b not in b"\t\n\v\f\r\x1b" for b in sample)
    if controls * 100 > len(sample):
        return None
    rows = sample.splitlines(keepends=True)
    quarter = -(-len(rows) // 4)
    parts = [b"".join(rows[i : i + quarter]) for i in range(0, len(rows), quarter)]
    for among in (COMMON, None):
        for part in (sample, *parts):  # where the whole has a bad byte, a part of it may have none
            best = from_bytes(part, cp_isolation=among).best()
            if best is not None and best.encoding not in ("ascii", "utf_8"):
                return best.encoding
    return None


def guess_wide(sample: bytes) -> str | None:
    """UTF-16 without a mark: the byte order that gives more line ends, spaces and full stops, and no controls."""
    scores = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = sample[: len(sample) // 2 * 2].decode(name, "replace")
        strange = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f" for c in text)
        if strange * 100 <= len(text):
            scores[name] = sum(text.count(c) for c in "\n .,，。")
    best = max(scores, key=scores.get, default=None)
    return best if best and scores[best] else None
