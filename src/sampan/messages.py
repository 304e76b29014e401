"""The program's words in the user's language: English, or Chinese where --lang or the locale says so.

    from sampan.messages import _
    raise UserError(_("{path}: no such file").format(path=path))

`_` takes a literal with named placeholders, so that a translation can put them in another order. English text is the
key; locale/zh/LC_MESSAGES/sampan.po holds the Chinese, and tools/catalogue.py compiles it. What a text file, a prompt
or another program says is never translated.
"""

import gettext
import locale
import os
from pathlib import Path

from sampan.errors import UserError

LANGUAGES = ("en", "zh")
CATALOGUES = Path(__file__).parent / "locale"
_translation = gettext.NullTranslations()


def _(message: str) -> str:
    """Return a message in the language that was set, or in English where the catalogue lacks it."""
    return _translation.gettext(message) if message else ""


def N_(message: str) -> str:  # noqa: N802  gettext's name for it
    """Mark a literal for the catalogue where it is defined; `_` translates it where it is shown."""
    return message


def ngettext(one: str, many: str, count: int) -> str:
    """Return the form of a message for `count` things; Chinese has a single form."""
    return _translation.ngettext(one, many, count)


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
