"""A look at a text: shares against brute force, guessers' losses against their definitions."""

import json
import lzma
import math
from collections import Counter

import pytest
from conftest import readable
from hypothesis import given, strategies as st

from sampan.config import DataConfig
from sampan.data.prepare import prepare
from sampan.report.baselines import OVERLAP, PIECE, baseline_lines, measure_baselines


def prepared(tmp_path, text: str, tokenizer: str = "char", **settings):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = prepare("text.txt", DataConfig(tokenizer=tokenizer, **settings))
    cut = int(len(text) * (1 - data.meta.val_fraction))
    return data, text[:cut], text[cut:]


def test_guessers_are_what_they_say(tmp_path):
    data, train, val = prepared(tmp_path, readable(20_000) + "Zebras & quays!" * 10)
    seen = measure_baselines(data)
    counts, size = Counter(train), data.meta.vocab_size
    unigram = -sum(math.log2((counts[c] + 1) / (len(train) + size)) for c in val) / len(val)
    assert (seen.characters, seen.bytes, seen.tokens) == (len(val), len(val.encode()), len(val))
    assert seen.uniform == pytest.approx(math.log2(size), rel=1e-6)
    assert seen.unigram == pytest.approx(unigram, rel=1e-6)
    added = len(lzma.compress((train + val).encode())) - len(lzma.compress(train.encode()))
    assert seen.xz == pytest.approx(8 * added / len(val), rel=1e-6)
    assert 0 < seen.xz < seen.unigram < seen.uniform


def test_shares_are_counted_by_characters(tmp_path):
    """The same under a tokenizer whose tokens are not characters."""
    text = readable(9_000) + "水" * 50 + readable(950)[:-100] + "滸" * 150
    for tokenizer in ("char", "bpe:300"):
        data, train, val = prepared(tmp_path, text, tokenizer, data_dir=tokenizer.replace(":", ""))
        seen = measure_baselines(data)
        assert seen.unseen == pytest.approx(sum(c not in train for c in val) / len(val))
        assert seen.unseen > 0.1
        known = {train[i : i + OVERLAP] for i in range(len(train))}
        inside = [False] * len(val)
        for i in range(len(val) - OVERLAP + 1):
            if val[i : i + OVERLAP] in known:
                inside[i : i + OVERLAP] = [True] * OVERLAP
        assert seen.overlap == pytest.approx(sum(inside) / len(val))
        assert seen.unused == data.meta.vocab_size - len({*data.train.tolist(), *data.val.tolist()})


def test_a_text_of_many_pieces_is_looked_at_as_a_whole(tmp_path):
    """Train is read piece by piece: what only the first has is known, xz has read all, a run may lie over a border."""
    train = "水" * 50 + readable(PIECE - 80, seed=1) + "here, over the border of two pieces, is one sentence of it. "
    train += readable(PIECE, seed=2)
    assert train.index("here, over") < PIECE < train.index("one sentence")
    val = "here, over the border of two pieces, is one sentence of it. 水滸" + readable(300, seed=9)
    (tmp_path / "val.txt").write_text(val, encoding="utf-8")
    (tmp_path / "train.txt").write_text(train, encoding="utf-8")
    seen = measure_baselines(prepare("train.txt", DataConfig(tokenizer="char", val_file="val.txt")))
    assert seen.unseen == pytest.approx(1 / len(val)), "of those two characters"
    assert seen.overlap == pytest.approx(60 / len(val))
    added = len(lzma.compress((train + val).encode())) - len(lzma.compress(train.encode()))
    assert seen.xz == pytest.approx(8 * added / len(val), rel=0.02)
    assert 8 * added < 0.8 * (8 * len(lzma.compress(val.encode()))), "train helps, or this shows nothing"


def test_a_short_val_is_looked_at_too(tmp_path):
    train, val = readable(500), "the 滸!" + readable(30)
    (tmp_path / "val.txt").write_text(val, encoding="utf-8")
    (tmp_path / "train.txt").write_text(train, encoding="utf-8")
    seen = measure_baselines(prepare("train.txt", DataConfig(tokenizer="char", val_file="val.txt")))
    assert len(val) < OVERLAP and seen.overlap == 0
    assert seen.unseen == pytest.approx(sum(c not in train for c in val) / len(val)) != 1


def test_what_stands_between_documents_is_no_character(tmp_path):
    for name, count in (("train", 40), ("val", 5)):
        lines = "".join(json.dumps({"text": f"document {i}. "}) + "\n" for i in range(10, 10 + count))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    data = prepare("train.jsonl", DataConfig(tokenizer="bpe:280", val_file="val.jsonl"))
    seen = measure_baselines(data)
    assert seen.characters == seen.bytes == 5 * len("document 10. ")
    assert seen.tokens == data.meta.val_tokens < seen.characters
    assert seen.uniform == pytest.approx(math.log2(data.meta.vocab_size) * seen.tokens / seen.characters)


@given(st.floats(0.01, 20.0))
def test_units_are_converted_there_and_back(tmp_path_factory, loss):
    tmp_path = tmp_path_factory.getbasetemp()
    (tmp_path / "units.txt").write_text("水浒传 and more. " * 200, encoding="utf-8")
    seen = measure_baselines(
        prepare(str(tmp_path / "units.txt"), DataConfig(tokenizer="bpe:280", data_dir=str(tmp_path / "units")))
    )
    assert seen.nats_per_token(seen.bits_per_character(loss)) == pytest.approx(loss)
    assert seen.bits_per_byte(loss) * seen.bytes == pytest.approx(loss / math.log(2) * seen.tokens)
    assert seen.bytes > seen.characters > seen.tokens


def test_it_is_made_anew_when_the_split_changes(tmp_path):
    data, *_ = prepared(tmp_path, readable(3000) + "滸" * 900)
    first = measure_baselines(data)
    again, *_ = prepared(tmp_path, readable(3000) + "滸" * 900, val_fraction=0.5)
    assert again.folder == data.folder and measure_baselines(again).characters > first.characters


def test_it_is_kept_and_made_anew_when_the_text_changes(tmp_path):
    data, *_ = prepared(tmp_path, readable(3000))
    first = measure_baselines(data)
    (data.folder / "look.json").write_text('{"characters": 3}')  # of another version
    assert measure_baselines(data) == first
    again, *_ = prepared(tmp_path, readable(4000, seed=5))
    assert again.folder == data.folder and measure_baselines(again) != first


def test_published_figures(real):
    """27.6% of the last tenth of 三字经 is symbols that the first nine tenths lack."""
    seen = measure_baselines(prepare(str(real / "sanzijing.txt"), DataConfig(tokenizer="char")))
    assert seen.unseen == pytest.approx(0.276, abs=5e-4)
    assert all(
        len(line) <= 80
        for line in baseline_lines(prepare(str(real / "sanzijing.txt"), DataConfig(tokenizer="char")), seen)
    )
