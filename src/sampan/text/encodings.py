"""Decode a file: by its byte order mark, as UTF-8 where all of it is UTF-8, else as charset-normalizer says.

    for text in decode_part(part, asked=None, tick=lambda count: None): ...
    part.encoding, part.damage             # its name and how it was found; what could not be decoded

A few bytes that cannot be decoded become U+FFFD, and so do zero bytes (parts.py counts and locates them). Line ends are
formats.py's.
"""

import codecs
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator

from sampan.errors import UserError
from sampan.messages import N_, _
from sampan.text.parts import FEW, HALF, READ_BYTES, Damage, Encoding, Part, is_few, reading

BAD_AT_ONCE = 1000  # unreadable characters after which a file is refused before its end
EVIDENCE = 1 << 16  # bytes that an encoding is guessed from
# Tried before all that the detector knows: half of its errors on a few characters are encodings that nobody uses.
COMMON = ["gb18030", "big5", "cp1252", "shift_jis", "euc_jp", "euc_kr"]
# The standards as Windows has extended them, which browsers read too.
EXTENDED = {"big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949"}
WIDE = ["utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be"]
MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
ESCAPES = {  # of the encodings that look like ASCII: what shows that a text is one, and which it is
    "iso2022_kr": re.compile(rb"\x1b\$\)C"),
    "iso2022_jp_ext": re.compile(rb"\x1b(\$[@B]|\$\(D|\([IJ])"),
    "hz": re.compile(rb"~\{([!-w][!-~])+(~\}|\Z)"),
}
TEXTUAL = bytes([*b"\t\n\v\f\r\x0e\x0f\x1b", *range(0x20, 0x100)])  # of other bytes, a text has few

Tick = Callable[[int], None]  # is told how many more bytes have been read

codecs.register_error("sampan", lambda error: (HALF, error.end))  # type: ignore[attr-defined]


def check_encoding(name: str | None) -> None:
    """Raise UserError for a name that is not an encoding of text."""
    try:
        if name is not None:
            "".encode(name)
            codecs.getincrementaldecoder(name)("replace")
            with contextlib.suppress(UnicodeError):
                HALF.encode(name)  # utf-7 and the escapes of programs let halves of characters in
                raise LookupError(name)
    except (LookupError, ValueError, TypeError, AssertionError):
        raise UserError(
            _("encoding={name}: unknown encoding; examples: gb18030, big5, utf-16, cp1252", name=name)
        ) from None


def decode_part(part: Part, asked: str | None, tick: Tick) -> Iterator[str]:
    """Yield a part's text in pieces, what cannot be decoded as U+FFFD.

    Raises UserError for binary data, and where more than a few characters cannot be decoded.
    """
    with reading(part.where):
        part.encoding = found = part.encoding or find_encoding(part, asked, tick)
        part.damage = damage = Damage()
        decoder = codecs.getincrementaldecoder(found.name)("sampan")
        for chunk in itertools.chain(chunks(part, found.mark, tick), [b""]):  # at the end, what the decoder still holds
            text = damage.mend(decoder.decode(chunk, not chunk), part.where)
            if not damage.is_small and (damage.decoded > BAD_AT_ONCE or not chunk):
                raise undecodable(part, found)
            yield text


def undecodable(part: Part, found: Encoding) -> UserError:
    likely = guess(first_odd(part, lambda count: None))
    about = dict(place=part.damage.places[0], name=found.name, bad=part.damage.decoded, total=part.damage.characters)
    what = _("{place}: cannot be read as {name} ({bad:,} of the first {total:,} characters do not fit)", **about)
    if likely and likely != found.name:
        return UserError(
            _("{what}; it looks like {likely}: give the encoding with --encoding {likely}", what=what, likely=likely)
        )
    return UserError(_("{what}; give the encoding with --encoding, such as gb18030, big5 or cp1252", what=what))


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
        head = file.read(EVIDENCE)
    mark, marked = next(((len(m), name) for m, name in MARKS if head.startswith(m)), (0, None))
    if asked is not None:
        name = codecs.lookup(asked).name
        if marked and name.split("-")[:2] == marked.split("-")[:2]:
            return Encoding(marked, N_("as asked"), mark)
        return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else asked, N_("as asked"))  # Windows' byte order
    if marked:
        return Encoding(marked, N_("byte order mark"), mark)
    odd, zeros = head.translate(None, TEXTUAL), head.count(0)
    is_utf8, has_controls = fits(head, "utf-8"), (len(odd) - zeros) * 100 > len(head)
    is_binary = not is_few(zeros, len(head)) or (has_controls and not is_utf8)
    may_be_wide = is_binary or (zeros * FEW > len(head) and not is_utf8)
    whole = head[: len(head) // 4 * 4]
    if may_be_wide and (wide := detect(whole, WIDE, threshold=1)) and re.search("[\n .,，。]", whole.decode(wide)):
        return Encoding(wide.replace("_", "-"), N_("detected"))
    if is_binary:
        raise UserError(
            _(
                "{where} is binary: it has byte {byte} at offset {offset:,}; give a text file",
                where=part.where,
                byte=f"0x{odd[0]:02x}",
                offset=head.index(odd[0]),
            )
        )
    return Encoding(guess(first_odd(part, tick)) or "utf-8", N_("detected"))  # decode_part says what does not fit


def first_odd(part: Part, tick: Tick) -> bytes:
    """Return EVIDENCE bytes of the first chunk that is not plain UTF-8, from its first line that is not ASCII."""
    decoder, held = codecs.getincrementaldecoder("utf-8")(), b""
    for chunk in itertools.chain(chunks(part, 0, tick), [b""]):
        held = chunk or held
        with contextlib.suppress(UnicodeDecodeError):
            decoder.decode(chunk, not chunk)
            if not any(shown.search(chunk) for shown in ESCAPES.values()):
                continue
        high = re.search(rb"[\x80-\xff]|\x1b|~\{", held)
        start = held.rfind(b"\n", 0, high.start() if high else 0) + 1
        return held[start : start + EVIDENCE]
    return b""


def guess(sample: bytes) -> str | None:
    """Return the encoding that these bytes look most like; None for ASCII, and for what looks like none."""
    high = len(sample) - len(sample.translate(None, bytes(range(0x80, 0x100))))
    if not high:
        return next((name for name, shown in ESCAPES.items() if shown.search(sample) and fits(sample, name)), None)
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    whole, (begun, _flags) = len(decoder.decode(sample).encode()), decoder.getstate()
    if len(begun) > 1 or begun.decode("cp1252").isupper():  # a lone é may be a letter, and the text Latin-1
        whole += len(begun)
    if whole >= len(sample) - high / 2:  # or damaged in a few places
        return "utf-8"
    rows = sample.splitlines(keepends=True)
    quarter = -(-len(rows) // 4)
    parts = [b"".join(rows[i : i + quarter]) for i in range(0, len(rows), quarter)]
    ends = [sample[: len(sample) - cut] for cut in range(4)]  # a character may be cut in two
    tries = itertools.product((COMMON, None), (*ends, *parts))  # where the whole has a bad byte, a part may have none
    return next(filter(None, (detect(part, among) for among, part in tries)), None)


def fits(sample: bytes, name: str) -> bool:
    text = codecs.getincrementaldecoder(name)("sampan").decode(sample)
    return is_few(text.count(HALF), len(text))


def detect(sample: bytes, among: list[str] | None, threshold: float = 0.2) -> str | None:
    """Return the encoding that charset-normalizer finds, without its own names for ASCII and UTF-8."""
    from charset_normalizer import from_bytes

    without = None if among else ["ascii", "utf_8", *WIDE]
    best = from_bytes(sample, cp_isolation=among, cp_exclusion=without, threshold=threshold).best()
    return EXTENDED.get(best.encoding, best.encoding) if best else None
