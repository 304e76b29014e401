"""Text as code points, and as blocks that know where documents end.

    code_points("né")                                     # uint32 (2,)
    for text, ends in blocks_of([["one"], ["two", "!"]], 1 << 18): ...

A document is an iterable of pieces of text, so that one of any size can be streamed.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Document = Iterable[str]


class Block(NamedTuple):
    """Consecutive text, and the positions in it at which documents end, ascending, from 1 to len(text)."""

    text: str
    ends: list[int]


def code_points(text: str) -> np.ndarray:
    """Return the Unicode code points of `text`, uint32 (len(text),); a lone surrogate is one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def blocks_of(documents: Iterable[Document], size: int) -> Iterator[Block]:
    """Yield the text of `documents` in blocks of `size` characters, the last one shorter. Empty documents are dropped.

    >>> list(blocks_of([["ab", "c"], [""], ["de"]], 2))
    [Block(text='ab', ends=[]), Block(text='cd', ends=[1]), Block(text='e', ends=[1])]
    """
    held: list[str] = []
    ends: list[int] = []
    length = 0
    for document in documents:
        is_empty = True
        for piece in filter(None, document):
            is_empty = False
            held.append(piece)
            length += len(piece)
            if length > size:  # at least one character stays, so that no block begins with an end
                text = "".join(held)
                whole = (length - 1) // size * size
                for start in range(0, whole, size):
                    yield Block(text[start : start + size], ends)
                    ends = []
                held, length = [text[whole:]], length - whole
        if not is_empty:
            ends.append(length)
    if length:
        yield Block("".join(held), ends)


def split_at(text: str, places: Sequence[int]) -> list[str]:
    """Return the parts of `text` between `places`.

    >>> split_at("abcde", [1, 3])
    ['a', 'bc', 'de']
    """
    if not places:
        return [text]
    return [text[start:end] for start, end in itertools.pairwise([0, *places, len(text)])]
