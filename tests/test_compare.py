"""compare.py: every tokenizer measured on a text, and the mark at the one that the text gets."""

from pathlib import Path

import pytest
from conftest import readable

from sampan.cli.main import main
from sampan.config import DataConfig
from sampan.data.compare import compare_tokenizers, table
from sampan.data.prepare import prepare
from sampan.tokens.byte_level import train_bpe

CHINESE = "".join(chr(0x4E00 + i * 7 % 900) + "，"[: i % 5 == 0] for i in range(9000))


@pytest.mark.parametrize(("text", "recommended"), [(readable(6000), "char"), (CHINESE, "char+bytes")])
def test_the_mark_is_what_the_text_gets_and_the_figures_are_the_tokenizers_own(text, recommended):
    Path("a.txt").write_text(text, encoding="utf-8")
    result = compare_tokenizers("a.txt", DataConfig())
    rows = {row.name: row for row in result.rows}
    assert result.recommended == prepare("a.txt", DataConfig()).meta.tokenizer == recommended
    assert "cannot fetch gpt2" in rows["gpt2"].left_out
    assert not any(row.vocab_size for row in result.rows if row.left_out)
    cut = int(len(text) * 0.9)
    for row in result.rows:
        if row.left_out:
            continue
        made = prepare("a.txt", DataConfig(tokenizer=row.name)) if row.name.startswith("char") else None
        tokenizer = made.tokenizer if made else train_bpe([text[:cut]], int(row.name[4:]))
        assert row.vocab_size == tokenizer.vocab_size
        assert row.characters_per_token == pytest.approx((len(text) - cut) / len(tokenizer.encode(text[cut:])))
        assert row.used == pytest.approx(len(set(tokenizer.encode(text[:cut]).tolist())) / row.vocab_size)


def test_the_table_fits_and_nothing_is_written(capfd):
    Path("a.txt").write_text(readable(6000), encoding="utf-8")
    assert main(["prepare", "a.txt", "--compare"]) == 0
    shown = capfd.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()) and "* " in shown and "gpt2 is left out" in shown
    assert {p.name for p in Path().iterdir()} <= {"a.txt", ".cache"}
    assert shown.rstrip("\n").splitlines()[0] == table(compare_tokenizers("a.txt", DataConfig())).splitlines()[0]
