"""Decode a file: by its byte order mark, as UTF-8 where all of it is UTF-8, else as the detector says.

    for text in decode_part(part, asked=None, tick=lambda count: None): ...
    part.encoding                          # its name, how it was found, and which bytes could not be decoded

A few bytes that cannot be decoded become U+FFFD, counted and located. Line ends are formats.py's.
"""

import codecs
import dataclasses
import itertools
import unicodedata
from collections.abc import Callable, Iterator

import numpy as np

from sampan.errors import UserError
from sampan.messages import N_, _
from sampan.text.parts import READ_BYTES, Encoding, Part, reading

FEW = 1000  # one byte in so many may be undecodable
BAD_AT_ONCE = 1000  # undecodable bytes after which a file is refused before its end
SHOWN = 3  # of the undecodable bytes, as many are located
EVIDENCE = 1 << 16  # bytes that an encoding is guessed from
# Tried before all that the detector knows: half of its errors on a few characters are encodings that nobody uses.
COMMON = ["gb18030", "big5", "cp1252", "shift_jis", "euc_jp", "euc_kr"]
# Code pages with more characters than the standard that they began as.
WIDER = {"big5": ("cp950", "big5hkscs"), "shift_jis": ("cp932",), "euc_kr": ("cp949",)}
MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip

Tick = Callable[[int], None]  # is told how many more bytes have been read


def check_encoding(name: str | None) -> None:
    """Raise UserError for a name that is not an encoding of text."""
    try:
        if name is not None:
            "".encode(name)
            codecs.getincrementaldecoder(name)("replace")
    except (LookupError, ValueError, TypeError, AssertionError):
        raise UserError(
            _("encoding={name}: unknown encoding; examples: gb18030, big5, utf-16, cp1252", name=name)
        ) from None


def decode_part(part: Part, asked: str | None, tick: Tick) -> Iterator[str]:
    """Yield a part's text in pieces, what cannot be decoded as U+FFFD; `part.encoding` counts and locates that.

    Raises UserError for binary data, and where more than one byte in FEW cannot be decoded.
    """
    with reading(part.where):
        found = part.encoding or find_encoding(part, asked, tick)
        part.encoding = found = dataclasses.replace(found, bad=0, total=0, places=[])
        decoder, line = codecs.getincrementaldecoder(found.name)(), 1
        for chunk in itertools.chain(chunks(part, found.mark, tick), [b""]):  # at the end, what the decoder still holds
            found.total += len(chunk)
            rest, text = chunk, None
            while text is None:
                try:
                    text = decoder.decode(rest, not chunk)
                except UnicodeDecodeError as error:
                    raw, good, rest = error.object, error.object[: error.start], error.object[error.end :]
                    found.bad += error.end - error.start
                    if len(found.places) < SHOWN:
                        offset = found.mark + found.total - len(raw) + error.start
                        found.places.append((offset, line + good.count(b"\n")))
                    if found.bad > BAD_AT_ONCE and not is_few(found):
                        raise undecodable(part, found) from None
                    line += raw.count(b"\n", 0, error.end)
                    decoder.reset()
                    yield decoder.decode(good) + "\ufffd"
            yield text
            line += rest.count(b"\n")
        if not is_few(found):
            raise undecodable(part, found)


def is_few(found: Encoding) -> bool:
    return found.bad * FEW <= found.total


def undecodable(part: Part, found: Encoding) -> UserError:
    offset, line = found.places[0]
    with part.open() as file:
        likely = guess(lines_with_high_bytes(file.read(READ_BYTES)))
    what = _(
        "{where} cannot be read as {name}: {bad:,} of the first {total:,} bytes do not fit",
        where=part.where,
        name=found.name,
        bad=found.bad,
        total=found.total,
    )
    where = _("the first at offset {offset:,}, line {line:,}", offset=offset, line=line)
    if likely and likely != found.name:
        return UserError(
            _(
                "{what}, {where}; it looks like {likely}: give the encoding with --encoding {likely}",
                what=what,
                where=where,
                likely=likely,
            )
        )
    return UserError(
        _("{what}, {where}; give the encoding with --encoding, such as gb18030, big5 or cp1252", what=what, where=where)
    )


def chunks(part: Part, mark: int, tick: Tick) -> Iterator[bytes]:
    """Yield a part's bytes after its byte order mark."""
    with part.open() as file:
        on_disk = getattr(file, "fileobj", None) or file  # of a .gz, what is compressed
        last = 0
        file.read(mark)
        while chunk := file.read(READ_BYTES):
            yield chunk
            now = min(on_disk.tell(), part.size)
            tick(now - last)
            last = now
        tick(part.size - last)


# ---- which encoding ----


def find_encoding(part: Part, asked: str | None, tick: Tick) -> Encoding:
    """Return how a part's bytes are to be decoded. Raises UserError for binary data."""
    with part.open() as file:
        head = file.read(READ_BYTES)
    mark, marked = next(((len(m), name) for m, name in MARKS if head.startswith(m)), (0, None))
    if asked is not None:
        name = codecs.lookup(asked).name
        if marked and name.split("-")[:2] == marked.split("-")[:2]:
            return Encoding(marked, N_("as asked"), mark)
        return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else asked, N_("as asked"))  # Windows' byte order
    if marked:
        return Encoding(marked, N_("byte order mark"), mark)
    if b"\0" in head:
        if wide := guess_wide(head[:EVIDENCE]):
            return Encoding(wide, N_("detected"))
        raise UserError(
            _(
                "{where} is binary: it has a zero byte at offset {offset}; give a text file",
                where=part.where,
                offset=head.index(0),
            )
        )
    sample = lines_with_high_bytes(first_not_utf8(part, tick))
    high = sum(byte > 0x7F for byte in sample)
    if len(sample.decode("utf-8", "ignore").encode()) >= len(sample) - high / 2:  # or damaged in a few places
        return Encoding("utf-8", N_("detected"))
    likely = guess(sample)
    if likely is None:
        return Encoding("utf-8", N_("detected"))  # decode_part says which bytes do not fit
    among = (likely, *WIDER.get(likely, ()))
    return Encoding(min(among, key=lambda name: sample.decode(name, "replace").count("\ufffd")), N_("detected"))


def first_not_utf8(part: Part, tick: Tick) -> bytes:
    """Return the first chunk of a part that is not UTF-8, b"" where there is none."""
    decoder, chunk = codecs.getincrementaldecoder("utf-8")(), b""
    try:
        for chunk in chunks(part, 0, tick):
            decoder.decode(chunk)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return chunk
    return b""


def lines_with_high_bytes(chunk: bytes) -> bytes:
    """Return EVIDENCE bytes from the first line that is not ASCII: where a line begins, no character is cut in two."""
    high = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) > 0x7F)
    start = chunk.rfind(b"\n", 0, int(high[0])) + 1 if len(high) else 0
    return chunk[start : start + EVIDENCE]


def guess(sample: bytes) -> str | None:
    """Return the encoding that these bytes look most like, or None."""
    from charset_normalizer import from_bytes

    controls = sum(byte < 0x20 and byte not in b"\t\n\v\f\r\x1b" for byte in sample)
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
    """Return the byte order of UTF-16 without a mark: the one with more line ends, spaces and full stops."""
    scores: dict[str, int] = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = sample[: len(sample) // 2 * 2].decode(name, "replace")
        strange = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f" for c in text)
        if strange * 100 <= len(text):
            scores[name] = sum(text.count(c) for c in "\n .,，。")
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best and scores[best] else None
