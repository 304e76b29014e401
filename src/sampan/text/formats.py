"""Read documents from .txt, .jsonl, .parquet and datasets of the Hugging Face Hub.

    for text in READERS[part.kind](part, config, tick): ...

Line ends and Unicode normalisation are settled here. Where files come from is sources.py's.
"""

import codecs
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from sampan.config import DataConfig
from sampan.errors import UserError, install
from sampan.fetch import is_offline
from sampan.text.characters import END, is_unicode
from sampan.text.encodings import chunks, find_encoding
from sampan.text.parts import CHUNK, Part

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


def decoded(part: Part, config: DataConfig, tick) -> Iterator[str]:
    if part.encoding is None:
        part.encoding = find_encoding(part, config.encoding, tick)
    decoder = codecs.getincrementaldecoder(part.encoding.name)("replace")
    for chunk in chunks(part, part.encoding.mark, tick):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)
