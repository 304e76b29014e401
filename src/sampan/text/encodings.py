"""Find out in which encoding a file is, and count the bytes that do not fit.

    encoding = find_encoding(part, asked=None, tick=lambda count: None)

It looks at the whole file before anything is written. It does not decode the text for its caller (formats.py does).
"""

import codecs
import unicodedata
from collections.abc import Iterator

import numpy as np

from sampan.errors import UserError
from sampan.text.parts import CHUNK, Encoding, Part

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


# ---- encodings ----


def check_encoding(name: str | None) -> None:
    """Raises UserError for a name that is no encoding of text."""
    try:
        if name is not None:
            "".encode(name)
            codecs.getincrementaldecoder(name)("replace")
    except (LookupError, ValueError, TypeError, AssertionError):
        raise UserError(f"encoding={name}: not known; for example gb18030, big5, utf-16, cp1252") from None


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
