"""Read documents from .txt, .jsonl, .json, .parquet and datasets of the Hugging Face Hub.

    for document in READERS[part.kind](part, config, tick):
        for piece in document: ...

Line ends and Unicode normalisation are settled here. Where files come from is sources.py's.
"""

import contextlib
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from sampan.config import DataConfig
from sampan.errors import UserError, install
from sampan.fetch import is_offline
from sampan.messages import _
from sampan.text.characters import Document
from sampan.text.encodings import Tick, decode_part
from sampan.text.parts import READ_BYTES, UNREADABLE, Part, reading

BETWEEN = re.compile(r"[\s,\[\]]*")  # JSON values

# ---- formats ----


def read_text(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield one document."""
    yield clean(decode_part(part, config.encoding, tick), config.normalize)


def read_json(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield a document for each record of JSON lines, or of an array."""
    for number, value in json_values(clean(decode_part(part, config.encoding, tick), "none"), part):
        for text in texts_of(value, part, number, config.text_field):
            yield record(text, part, number, config)


def json_values(pieces: Iterable[str], part: Part) -> Iterator[tuple[int, object]]:
    """Yield (its line, value) for each JSON value of a text; brackets and commas between values are passed over.

    >>> list(json_values(['{"a": 1}\\n{"a"', ': [2]}'], None)), list(json_values(['["b", ', '"c"]'], None))
    ([(1, {'a': 1}), (2, {'a': [2]})], [(1, 'b'), (1, 'c')])
    """
    decoder, held, line = json.JSONDecoder(), "", 1
    for piece, is_last in itertools.chain(((piece, False) for piece in pieces), [("", True)]):
        held, at = held + piece, 0
        while at < len(held):
            begin = BETWEEN.match(held, at).end()  # type: ignore[union-attr]
            line += held.count("\n", at, begin)
            at = begin
            if begin == len(held):
                break
            try:
                value, at = decoder.raw_decode(held, begin)
            except (ValueError, RecursionError) as error:
                position, what = getattr(error, "pos", 0), getattr(error, "msg", "nested too deeply")
                if not is_last and (position + 8 > len(held) or what.startswith("Unterminated")):
                    break  # the rest of it is in the next piece
                raise UserError(_("{where}: not JSON ({what})", where=place(part, line), what=what)) from None
            yield line, value
            line += held.count("\n", begin, at)
        held = held[at:]


def texts_of(value: object, part: Part, number: int, name: str) -> Iterator[object]:
    """Yield the texts of a JSON value: of a string, a record with a field of that name, or one that holds a list of such."""
    if isinstance(value, str):
        yield value
    elif not isinstance(value, dict):
        where = place(part, number)
        raise NoField(_('{where}: expected an object with a "{name}" field', where=where, name=name))
    elif name in value:
        text = value[name]
        is_lines = isinstance(text, list) and all(isinstance(line, str) for line in text)
        yield "\n".join(text) if is_lines else text
    else:
        inner = [v for v in value.values() if isinstance(v, list) and v]
        inner = [v for v in inner if all(isinstance(each, dict) and name in each for each in v)]
        if len(inner) != 1:
            raise no_field(place(part, number), name, value)
        for each in inner[0]:
            yield from texts_of(each, part, number, name)


class NoField(UserError):
    """A record lacks the field that holds the text."""


def no_field(where: str, name: str, there: Iterable[str]) -> NoField:
    about = dict(where=where, name=name, fields=", ".join(there) or "-")
    return NoField(_('{where}: no field "{name}"; choose one of these with --text_field: {fields}', **about))


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
                raise no_field(part.where, name, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[name]):
                column = batch.column(0)
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    column = column.cast(pa.large_binary())  # which may not be the UTF-8 that it should be
                for row, text in enumerate(column.to_pylist(), row + 1):  # noqa: B020
                    text = text.decode("utf-8", "sampan") if isinstance(text, bytes) else text
                    yield record(text, part, row, config)
                tick(part.size * batch.num_rows // max(file.metadata.num_rows, 1))
        except pa.ArrowException as error:
            raise UserError(
                _("{where}: cannot be read ({error})", where=part.where, error=str(error).splitlines()[0])
            ) from None


def read_hub(part: Part, config: DataConfig, tick: Tick) -> Iterator[Document]:
    """Yield the documents of a dataset, which come whole."""
    with reading(part.where):
        for row, text in enumerate(part.open(), 1):
            yield record(text, part, row, config)


def hub_texts(name: str, config: DataConfig) -> Iterator[object]:
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
                raise no_field(name, config.text_field, row)
            yield row[config.text_field]
    except (OSError, RuntimeError, ValueError) as error:  # datasets' own errors are among these
        why = _(
            "{name} cannot be read from the Hugging Face Hub ({error})", name=name, error=str(error).splitlines()[0]
        )
        raise UserError(
            _("{why}: check the name, try again, or set HF_ENDPOINT to a mirror of the hub", why=why)
        ) from None


READERS = {
    "text": read_text,
    "json": read_json,
    "parquet": read_parquet,
    "hub": read_hub,
}


def record(text: object, part: Part, number: int, config: DataConfig) -> Document:
    """Return a record's text as a document, an empty one of None. Raises UserError where it is not text."""
    text = "" if text is None else text
    if not isinstance(text, str):
        where = place(part, number)
        raise UserError(_('{where}: "{text_field}" is not a string', where=where, text_field=config.text_field))
    return clean([mend_record(text, part, number)], config.normalize)


def mend_record(text: str, part: Part, number: int) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair and zero byte, which are counted and located."""
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        if "\0" not in text:
            return text
    mended, count = UNREADABLE.subn("\ufffd", text)
    part.damage.add(count, place(part, number))
    return mended


def place(part: Part, number: int) -> str:
    """Return where a record is, for messages."""
    if part.kind == "json":
        return _("{where}, line {number:,}", where=part.where, number=number)
    return _("{where}, row {number:,}", where=part.where, number=number)


# ---- text in pieces ----


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
