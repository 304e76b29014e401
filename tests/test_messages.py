"""messages.py: the language follows the locale and what is asked for, and lines fit their columns in both languages."""

import pytest
from hypothesis import given, strategies as st

from sampan.errors import UserError
from sampan.messages import columns_of, locale_language, pad, set_language, wrap


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
