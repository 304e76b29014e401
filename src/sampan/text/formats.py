"""Read documents from .txt, .jsonl, .parquet and datasets of the Hugging Face Hub.

    for document in READERS[part.kind](part, config, tick):
        for piece in document: ...

Line ends and Unicode normalisation are settled here. Where files come from is sources.py's.
"""

import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from sampan.config import DataConfig
from sampan.errors import UserError, install
from sampan.fetch import is_offline
from sampan.messages import _
from sampan.text.characters import Document
from sampan.text.encodings import Tick, decode_part
from sampan.text.parts import READ_BYTES, Part, reading

# ---- formats ----


def read_text(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield one document."""
    yield clean(decode_part(part, config.encoding, tick), config.normalize)


def read_jsonl(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield a document for each line, from its field."""
    name = config.text_field
    for number, line in enumerate(lines(clean(decode_part(part, config.encoding, tick), "none")), 1):
        if not line.strip():
            continue
        where = f"{part.where}, line {number}"
        try:
            text = json.loads(line)[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                _(
                    '{where}: expected an object with a "{name}" field (--text_field names another)',
                    where=where,
                    name=name,
                )
            ) from None
        yield record(text, where, config)


def read_parquet(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield a document for each row, from its column."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            _("{where}: .parquet is read by the pyarrow library: {command}", where=part.where, command=install("hf"))
        ) from None
    name = config.text_field
    with reading(part.where), part.open() as raw:
        try:
            file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=READ_BYTES)
            if name not in file.schema_arrow.names:
                there = ", ".join(file.schema_arrow.names)
                raise UserError(
                    _(
                        '{where} has no column "{name}"; choose one with --text_field: {there}',
                        where=part.where,
                        name=name,
                        there=there,
                    )
                )
            rows = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=1024, columns=[name]):
                for text in batch.column(0).to_pylist():
                    yield record("" if text is None else text, part.where, config)
                tick(part.size * batch.num_rows // max(rows, 1))
        except pa.ArrowException as error:
            raise UserError(
                _("{where}: cannot be read ({error})", where=part.where, error=str(error).splitlines()[0])
            ) from None


def read_hub(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield the documents of a dataset, which come whole."""
    with reading(part.where):
        for text in part.open():
            yield [text]


def hub_documents(name: str, config: DataConfig) -> Iterator[str]:
    """Yield the texts of NAME[:CONFIG[:SPLIT]], a dataset of the Hugging Face Hub or a folder that the library reads."""
    path, subset, split = (*name.split(":"), "", "")[:3]
    if is_offline() and not Path(path).exists():
        raise UserError(_("{name} is streamed from the network: unset SAMPAN_OFFLINE to read it", name=name))
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            _("{name} is read by the datasets library: {command}", name=name, command=install("hf"))
        ) from None
    try:
        for row in load_dataset(path, subset or None, split=split or "train", streaming=True):
            if config.text_field not in row:
                raise UserError(
                    _(
                        '{name} has no field "{text_field}"; choose one with --text_field: {row}',
                        name=name,
                        text_field=config.text_field,
                        row=", ".join(row),
                    )
                )
            yield "".join(record(row[config.text_field], name, config))
    except (OSError, RuntimeError, ValueError) as error:  # datasets' own errors are among these
        why = _(
            "{name} cannot be read from the Hugging Face Hub ({error})", name=name, error=str(error).splitlines()[0]
        )
        raise UserError(
            _("{why}: check the name, try again, or set HF_ENDPOINT to a mirror of the hub", why=why)
        ) from None


READERS = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "hub": read_hub,
}


def record(text: object, where: str, config: DataConfig) -> Document:
    """Return a record's text as a document. Raises UserError where it is not text."""
    if not isinstance(text, str):
        raise UserError(_('{where}: "{text_field}" is not a string', where=where, text_field=config.text_field))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            _('{where}: "{text_field}" has half of a surrogate pair', where=where, text_field=config.text_field)
        ) from None
    return clean([text], config.normalize)


# ---- text in pieces ----


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text, without the characters that end them.

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
    """Yield the text with one newline character after each line, normalised to Unicode's NFC or NFKC where asked for."""
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    held = ""
    for piece in pieces:
        text = ends.decode(piece)
        if form == "none":
            yield text
            continue
        held += text
        cut = next((i for i in range(len(held) - 1, 0, -1) if stands_alone(held[i])), 0)
        yield normalized(form, held[:cut])
        held = held[cut:]
    held += ends.decode("", final=True)
    yield held if form == "none" else normalized(form, held)


def normalized(form: str, text: str) -> str:
    return unicodedata.normalize("NFC" if form == "nfc" else "NFKC", text)


def stands_alone(c: str) -> bool:
    """Return whether a character is never composed with one before it: ASCII and the common ideographs."""
    return c < "\x7f" or "\u4e00" <= c <= "\u9fff"
