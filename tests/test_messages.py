"""messages.py: the language follows the locale and what is asked for, and lines fit their columns in both languages."""

import ast
import gettext
import importlib.util
import re
from pathlib import Path
from string import Formatter

import pytest
from hypothesis import given, strategies as st

from sampan.cli.main import main
from sampan.errors import UserError
from sampan.messages import CATALOGUES, columns_of, locale_language, pad, set_language, wrap


@pytest.mark.parametrize(
    ("names", "language"),
    [
        ({"LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "de_DE.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
    ],
)
def test_the_language_is_the_locales(names, language, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.setenv(name, names.get(name, ""))
    assert locale_language() == language


def test_a_language_that_is_not_spoken_is_refused():
    with pytest.raises(UserError, match="expected one of en, zh"):
        set_language("fr")


@given(st.text(st.sampled_from("ab ，。三板 船\u0301"), max_size=60), st.integers(8, 30))
def test_lines_fit_their_columns_and_lose_nothing(text, columns):
    lines = wrap(text, columns)
    longest_word = max((columns_of(word) for word in text.split()), default=0)
    assert all(columns_of(line) <= max(columns, longest_word) for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())


def test_padding_counts_columns():
    assert columns_of(pad("三板", 10)) == columns_of(pad("planks", 10)) == 10
    assert pad("planks", 3) == "planks"


# ---- the catalogue ----


@pytest.fixture(scope="module")
def catalogue():
    """tools/catalogue.py as a module."""
    path = Path(__file__).parents[1] / "tools" / "catalogue.py"
    spec = importlib.util.spec_from_file_location("catalogue", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def placeholders(text: str) -> list[tuple[str, str]]:
    """The (name, format) of each placeholder, in order of their names."""
    return sorted((name, f"{form}!{conversion}") for _, name, form, conversion in Formatter().parse(text) if name)


def test_every_message_has_its_chinese(catalogue):
    messages, translations = catalogue.collect_messages(), catalogue.read_catalogue()
    assert len(messages) > 300
    missing = {message: messages[message] for message in messages if not translations.get(message)}
    assert not missing, f"run tools/catalogue.py and translate: {missing}"
    assert not translations.keys() - messages.keys(), "run tools/catalogue.py: some messages are gone"


def test_placeholders_of_a_translation_are_the_messages(catalogue):
    for message, chinese in catalogue.read_catalogue().items():
        assert placeholders(chinese) == placeholders(message), message
        assert message.endswith("\n") == chinese.endswith("\n"), message


def test_translations_are_chinese(catalogue):
    """A few are names or formulas alone; the others have Chinese characters, and no straight copy of the English."""
    translations = catalogue.read_catalogue()
    chinese = [text for text in translations.values() if any("\u4e00" <= c <= "\u9fff" for c in text)]
    assert len(chinese) > 0.97 * len(translations)


def test_the_compiled_catalogue_is_the_text_one(catalogue):
    compiled = gettext.translation("sampan", CATALOGUES, ["zh"])
    for message, chinese in catalogue.read_catalogue().items():
        assert compiled.gettext(message) == chinese, "run tools/catalogue.py"


def test_messages_are_literals_that_the_catalogue_has(catalogue):
    """What `_` is given is a literal, and what a UserError is given goes through `_`."""
    for path in sorted(catalogue.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            text = node.args[0]
            where = f"{path.name}:{node.lineno}"
            if node.func.id == "_" and isinstance(text, ast.JoinedStr):
                raise AssertionError(f"{where}: an f-string cannot be translated; give its values as keywords")
            if node.func.id == "UserError" and isinstance(text, (ast.JoinedStr, ast.Constant)):
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                words = " ".join(p.value for p in parts if isinstance(p, ast.Constant))
                english = re.findall(r"[A-Za-z]{3,}", words)
                assert len(english) < 2 or path.name == "messages.py", f"{where}: {words!r} is not translated"


def test_the_program_speaks_chinese(capsys, tmp_path):
    """Help, an error and what a command prints, each in Chinese and in English; wide lines fit 80 columns."""
    (tmp_path / "boat.txt").write_text("the boat goes, and comes back. " * 40, encoding="utf-8")
    shown = {}
    for lang in ("zh", "en"):
        assert main(["--lang", lang, "prepare", "boat.txt"]) == 0
        said = capsys.readouterr().out
        assert main([f"--lang={lang}", "sample", "nowhere"]) == 2
        assert main(["train", "--help", "--lang", lang]) == 0
        shown[lang] = said + capsys.readouterr().out
        assert all(columns_of(line) <= 80 for line in shown[lang].splitlines())
    chinese, english = (sum("\u4e00" <= c <= "\u9fff" for c in shown[lang]) for lang in ("zh", "en"))
    assert chinese > 200 and english == 0
    assert main(["prepare", "--lang", "fr", "boat.txt"]) == 2
    assert "en" in capsys.readouterr().err
