"""Format durations and sizes as text, and parse sizes.

duration(75), size_of(2e9), bytes_of("2GB")
"""


# ---- words ----


def duration(seconds: float) -> str:
    """Return seconds as text, in the two largest units: days, hours, minutes, seconds.

    >>> duration(75), duration(9.3), duration(90000)
    ('1 min 15 s', '9.3 s', '1 d 1 h')
    """
    s = round(seconds)
    if s < 10:
        return f"{seconds:.1f} s"
    parts = ((s // 86400, "d"), (s // 3600 % 24, "h"), (s // 60 % 60, "min"), (s % 60, "s"))
    first = next(i for i, (n, _) in enumerate(parts) if n)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n)


def size_of(count: float) -> str:
    """Return a number of bytes as text, in MB (10^6 bytes) or from 10^9 bytes on in GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def bytes_of(text: str) -> int:
    """Return the number of bytes in a size such as "2GB"; k, M, G and T are powers of 1000.

    Raise ValueError if `text` is not a positive size.

    >>> bytes_of("2GB"), bytes_of("1.5 g"), bytes_of("750M")
    (2000000000, 1500000000, 750000000)
    """
    word = text.strip().lower().removesuffix("b")
    unit = word[-1:] if word[-1:] in UNITS else ""
    size = int(float(word.removesuffix(unit)) * UNITS[unit])
    if size <= 0:
        raise ValueError(text)
    return size
