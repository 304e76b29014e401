"""Verbatim runs: all that the training text has are found and no others, however it is cut into pieces.

The reference searches for every part of the output with Python's `in`.
"""

import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import readable, tiny_config
from hypothesis import given, strategies as st

import sampan.report.verbatim
from sampan.checkpoint.run import Progress, Run
from sampan.checkpoint.save import WritableRun
from sampan.cli.main import main
from sampan.config import DataConfig, TrainConfig
from sampan.data.meta import open_folder
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.model.parameters import initialize
from sampan.report.verbatim import FACTOR, pieces_of, search, training_data, verbatim_report, window_hashes

CHINESE = "舢板有三块木板：准备、训练、写作。一人划桨，一人掌舵，一人舀水，慢慢过了旧桥。\n"


def by_definition(texts: list[str], training: str, least: int) -> tuple[list[list[bool]], int]:
    """(for each text which characters are in a run of `least` or more, the length of the longest run or 0)."""
    covered, longest = [], 0
    for text in texts:
        inside = [False] * len(text)
        for start in range(len(text)):
            for end in range(start + least, len(text) + 1):
                part = text[start:end]
                if "\ufffd" in part or part not in training:
                    break
                inside[start:end] = [True] * len(part)
                longest = max(longest, len(part))
        covered.append(inside)
    return covered, longest


def cut(text: str, at: list[int]) -> list[str]:
    places = [0, *sorted(min(i, len(text)) for i in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


few = st.text("ab\n木\ufffd", max_size=60)


@given(st.lists(few, min_size=1, max_size=3), few, st.integers(1, 8), st.data())
def test_every_run_is_found_and_none_is_made_up(texts, training, least, data):
    if data.draw(st.booleans()):  # a part that does stand there
        a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(training))] * 2)))
        texts = [*texts, texts[0] + training[a:b] + texts[-1]]
    pieces = cut(training, data.draw(st.lists(st.integers(0, 60), max_size=5)))
    covered, longest = by_definition(texts, training, least)
    found = search(texts, pieces, least)
    assert [c.tolist() for c in found.covered] == covered
    assert (found.longest.length if found.longest else 0) == longest
    if found.longest:
        number, start, length, place, line = found.longest
        assert texts[number][start : start + length] == training[place : place + length]
        assert line == training[:place].count("\n") + 1


def test_hashes_that_collide_make_up_nothing(monkeypatch):
    """With a hash of one bit every window is a candidate, and only the comparison of characters is left."""
    real = window_hashes
    monkeypatch.setattr(sampan.report.verbatim, "window_hashes", lambda *a: real(*a) >> np.uint32(31) << np.uint32(31))
    rng = random.Random(0)
    for _ in range(40):
        training = "".join(rng.choices("abc", k=80))
        texts = ["".join(rng.choices("abc", k=30)), training[20:40]]
        covered, longest = by_definition(texts, training, 4)
        found = search(texts, cut(training, [30, 50]), 4)
        assert [c.tolist() for c in found.covered] == covered and found.longest.length == longest


def test_only_what_is_to_be_quoted_is_the_longest():
    training = readable(500)
    found = search([training[10:30], training[100:200]], cut(training, []), 5, quote=1)
    assert found.longest.text == 0 and found.longest.length == 20
    assert all(c.all() for c in found.covered)


def test_a_text_that_repeats_itself_is_searched_in_time():
    """A million spaces, and a thousand of them written: every window equals every other. The same with lines of a log."""
    for line in (" ", "2026-11-25 INFO request served in 12 ms\n"):
        training = line * (1_000_000 // len(line))
        found = search([training[7:1007], training[7:507] + "?"], cut(training, [*range(0, 1_000_000, 50_000)]), 20)
        assert found.covered[0].all() and found.longest.length == 1000
        assert found.covered[1].sum() == 500


@pytest.mark.parametrize("length", [1, 2, 3, 12, 20, 31])
def test_window_hashes_are_the_sums_they_say(length):
    text = "".join(random.Random(length).choices("ab木🛶", k=40))
    powers = [pow(FACTOR, length - i, 1 << 32) for i in range(length)]
    sums = [sum(ord(c) * p for c, p in zip(text[i:], powers, strict=False)) % (1 << 32) for i in range(41 - length)]
    assert window_hashes(text, length).tolist() == sums
    assert len(window_hashes(text[: length - 1], length)) == 0


# ---- data folders ----


@pytest.fixture(params=["char", "bpe:300"])
def data(request):
    Path("river.txt").write_text(readable(3000) + CHINESE * 3, encoding="utf-8")
    return prepare("river.txt", DataConfig(tokenizer=request.param, val_fraction=0.2))


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_the_pieces_of_a_split_are_its_text(data, size, monkeypatch):
    monkeypatch.setattr(sampan.report.verbatim, "PIECE", 1)
    for split in ("train", "val"):
        pieces = [*pieces_of(data, split, size)]
        assert "".join(pieces) == data.tokenizer.decode(data.tokens(split))
        assert len(pieces) == -(-len(data.tokens(split)) // size)


def test_documents_do_not_run_into_each_other():
    Path("texts").mkdir()
    for i, text in enumerate(["the river ends here", "and another begins. " * 9]):
        Path(f"texts/{i}.txt").write_text(text)
    folder = prepare("texts", DataConfig(val_fraction=0.1))
    pieces = [*pieces_of(folder, "train")]
    found = search(["ends hereand another beg"], pieces, 9)
    assert found.longest.length == len("and another beg") and found.covered[0].all()
    assert search(["ends hereand"], pieces, 10).longest is None


def test_the_report_names_share_place_and_longest_run(data):
    text = Path("river.txt").read_text(encoding="utf-8")
    quote = text[400:460]
    lines = verbatim_report(["#" * 30 + quote + "@@@", "#" * 27], data)
    assert all(len(line) <= 80 for line in lines)
    said = " ".join(lines)
    assert "50.0% of the 120 characters" in said and "runs of 20 or more" in said and "of held-out text" in said
    place, line = re.search(r"60 characters, from character ([\d,]+) \(line ([\d,]+)\)", said).groups()
    at = text.index(quote)
    assert int(place.replace(",", "")) == at + 1 and int(line.replace(",", "")) == text[:at].count("\n") + 1
    assert " ".join(quote.split()) in " ".join(said.split())
    assert "of 12 or more" in " ".join(verbatim_report([CHINESE], data))
    assert verbatim_report(["", ""], data) == ["check: nothing was written"]


# ---- the command ----


@pytest.fixture
def run_folder(data):
    shape = tiny_config("gpt2", vocab_size=data.meta.vocab_size)
    run = WritableRun("out/river")
    with run.begin(TrainConfig(out_dir="out/river"), shape, data.tokenizer, data.record()) as first:
        first.save_best(shape, initialize(shape, 1), Progress(step=1))
    return data


def test_the_command_checks_what_it_wrote(run_folder, capsys):
    assert main(["sample", "out/river", "--check", "--max_new_tokens=60", "--num_samples=2", "--threads=1"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"check: \d+\.\d% of the [\d,]+ characters", err) and "held-out" in err


@pytest.mark.parametrize("spoil", ["moved", "changed", "not a run"])
def test_a_check_that_cannot_be_made_is_one_sentence(run_folder, capsys, spoil):
    folder = run_folder.folder
    if spoil == "moved":
        folder.rename("elsewhere")
    elif spoil == "changed":
        Path("river.txt").write_text(readable(4000, seed=9))
        prepare("river.txt", DataConfig(tokenizer=run_folder.meta.tokenizer, val_fraction=0.2, data_dir=str(folder)))
    else:
        Path("out/river/run.json").unlink()
    assert main(["sample", "out/river", "--check"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("sampan: check: ")
    with pytest.raises(UserError):
        training_data(Run("out/river"))


def test_a_token_beyond_the_vocabulary_is_one_sentence(data):
    ids = np.fromfile(data.folder / "train.bin", np.uint16)
    ids[5] = 65535
    ids.tofile(data.folder / "train.bin")
    with pytest.raises(UserError, match="token 65535"):
        verbatim_report(["some text that was written"], open_folder(data.folder))
