"""Sort files as people do.

sorted(paths, key=natural)             # 9.txt, 10.txt; 第九回, 第十回; 上册, 中册, 下册
"""

import re
from pathlib import PurePath

DIGITS = "〇一二三四五六七八九"
VOLUMES = " 上中下"
UNITS = {"十": 10, "百": 100, "千": 1000}
NUMBERS = re.compile(r"(\d+|[〇零一二两三四五六七八九十百千]+|[上中下])")


def natural(path: PurePath) -> list[list[str | int]]:
    """Return the key of a path: its numbers count as numbers.

    >>> [p.name for p in sorted(map(PurePath, ["10.txt", "Part 1.txt", "9.txt", "第十回", "第九回"]), key=natural)]
    ['9.txt', '10.txt', 'Part 1.txt', '第九回', '第十回']
    """
    split = (NUMBERS.split(part) for part in path.parts)  # every second piece is a number
    return [[number(piece) if i % 2 else piece.casefold() for i, piece in enumerate(pieces)] for pieces in split]


def number(text: str) -> int:
    """Return the value of digits or of a Chinese number.

    >>> number("12"), number("一百零五"), number("二〇"), number("中")
    (12, 105, 20, 2)
    """
    if text.isdecimal():
        return int(text)
    total = digits = 0
    for c in text.replace("零", "〇").replace("两", "二"):
        if c in UNITS:
            total, digits = total + (digits or 1) * UNITS[c], 0
        else:
            digits = digits * 10 + max(DIGITS.find(c), VOLUMES.find(c))
    return total + digits
