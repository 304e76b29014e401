"""Collect the program's messages into the Chinese catalogue, and compile it.

    python tools/catalogue.py          # needs babel: pip install '.[test]'

Writes src/sampan/locale/zh/LC_MESSAGES/sampan.po, with an empty translation for each new message, and sampan.mo, which the
program reads. It translates nothing. Messages that the sources no longer have are dropped.
"""

from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sampan"
CHINESE = PACKAGE / "locale" / "zh" / "LC_MESSAGES" / "sampan.po"
KEYWORDS = {"_": None, "N_": None, "setting": (2,)}  # the second argument of `setting` is a help text
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)  # the same messages give the same bytes


def collect_messages() -> dict[str, list[str]]:
    """Return {message: ["file:line", ...]} of every literal that is marked in the package."""
    found: dict[str, list[str]] = {}
    for name, line, message, _, _ in extract_from_dir(PACKAGE, [("**.py", "python")], keywords=KEYWORDS):
        if isinstance(message, str) and message:
            found.setdefault(message, []).append(f"{name}:{line}")
    return found


def read_catalogue() -> dict[str, str]:
    """Return {message: Chinese}, "" where it is not translated."""
    if not CHINESE.exists():
        return {}
    with CHINESE.open("rb") as file:
        return {m.id: m.string for m in read_po(file, "zh") if isinstance(m.id, str) and m.id}


def write_catalogue(translations: dict[str, str]) -> None:
    """Write the .po file and compile it beside."""
    catalogue = Catalog(
        "zh", project="Sampan", version="", header_comment="# Sampan's messages in Chinese.", fuzzy=False,
        creation_date=LONG_AGO, revision_date=LONG_AGO, last_translator="", language_team="", msgid_bugs_address="",
    )  # fmt: skip
    for message, chinese in sorted(translations.items()):
        catalogue.add(message, chinese, flags=("python-brace-format",) if "{" in message else ())
    with CHINESE.open("wb") as file:
        write_po(file, catalogue, width=0)
    with CHINESE.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalogue)


def main() -> None:
    known = read_catalogue()
    translations = {message: known.get(message, "") for message in collect_messages()}
    write_catalogue(translations)
    missing = [message for message, chinese in translations.items() if not chinese]
    print(f"{len(translations)} messages, {len(missing)} without Chinese", *missing, sep="\n  ")


if __name__ == "__main__":
    main()
