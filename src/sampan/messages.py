"""The program's words in the user's language: English, or Chinese where --lang or the locale says so.

    from sampan.messages import _
    raise UserError(_("{path}: no such file", path=path))

`_` takes a literal with named placeholders, so that a translation can put them in another order. English text is the
key; locale/zh/LC_MESSAGES/sampan.po holds the Chinese, and tools/catalogue.py compiles it. What a text file, a prompt
or another program says is never translated.
"""

import gettext
import locale
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

from sampan.errors import UserError

LANGUAGES = ("en", "zh")
CATALOGUES = Path(__file__).parent / "locale"
_translation = gettext.NullTranslations()


def _(message: str, /, **values: Any) -> str:
    """Return a message in the language that was set, or in English if the catalogue lacks it.

    `values` fill its placeholders, as str.format does; without values, braces stay as they are.
    """
    translated = _translation.gettext(message) if message else ""
    return translated.format(**values) if values else translated


def N_(message: str) -> str:
    """Mark a literal for the catalogue where it is defined; `_` translates it where it is shown."""
    return message


def set_language(wanted: str | None = None) -> str:
    """Set the language of all messages: "en", "zh", or None for the locale's. Return the one that was set.

    Raises UserError for a language that the program does not speak.
    """
    global _translation
    if wanted is not None and wanted not in LANGUAGES:
        raise UserError(f"lang={wanted}: expected one of {', '.join(LANGUAGES)}")
    language = wanted or locale_language()
    _translation = gettext.translation("sampan", CATALOGUES, [language], fallback=True)
    return language


def locale_language() -> str:
    """Return "zh" where the locale is a Chinese one, else "en"."""
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    name = next(filter(None, names), "") or (locale.getlocale()[0] or "")  # Windows sets none of the three
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


# ---- columns of a terminal ----

WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"  # two columns each
OPENING, CLOSING = "（《“‘「『【", "，。；：！？、）》”’」』】"  # never at the end of a line; never at its beginning
WORD = re.compile(rf"\s+|[{OPENING}]*(?:[^\s{WIDE}{OPENING}{CLOSING}]+|[{WIDE}])?[{CLOSING}]*")
WIDEST = 100  # columns: longer lines are hard to read


def width() -> int:
    """Return how many columns a line may take: the terminal's, at most WIDEST; 80 where the output is no terminal."""
    return min(shutil.get_terminal_size((80, 24)).columns, WIDEST)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    >>> columns_of("三 planks")
    9
    """
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def pad(text: str, columns: int) -> str:
    """Return `text` with spaces behind it, so that it takes at least so many columns."""
    return text + " " * (columns - columns_of(text))


def wrap(text: str, columns: int | None = None, indent: str = "") -> list[str]:
    """Return `text` in lines of at most so many columns, by default `width()`; all but the first begin with `indent`.

    Lines break at spaces and between Chinese characters; a longer word stands in a line of its own.

    >>> wrap("prepare, train, sample", 16, "  ")
    ['prepare, train,', '  sample']
    >>> wrap("三块木板，一条船。", 10)
    ['三块木板，', '一条船。']
    """
    columns = width() if columns is None else columns
    lines, line = [], ""
    for word in WORD.findall(" ".join(text.split())):
        if columns_of(line) + columns_of(word) > columns and line.strip():
            lines.append(line.rstrip())
            line = indent + word.lstrip()
        else:
            line += word
    return [*lines, line.rstrip()]


def fill(text: str, columns: int | None = None, indent: str = "") -> str:
    """Return the lines of `wrap` as one string."""
    return "\n".join(wrap(text, columns, indent))
