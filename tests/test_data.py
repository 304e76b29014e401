"""data.py: a text becomes two files once and whole, and those become batches as a function of (seed, index).

Sizes are small enough to look at every window. Errors are one sentence and leave what was there as it was.
"""

import errno
import functools
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import readable
from hypothesis import given, settings, strategies as st
from tokenizers import pre_tokenizers

import sampan
import sampan.data.prepare
import sampan.data.survey
import sampan.text.encodings
import sampan.text.sources
import sampan.tokens.byte_level
from sampan.config import DataConfig
from sampan.data.encode import join_words, split_blocks
from sampan.data.meta import open_folder
from sampan.data.prepare import prepare
from sampan.data.survey import Reading, read_through, sample_documents
from sampan.data.texts import find_texts
from sampan.data.windows import EvaluationBatches, Windows, shuffle
from sampan.errors import UserError
from sampan.files import Held, lock_file
from sampan.machine import NO_QUOTA, count_cores, count_quota
from sampan.text.characters import Block, blocks_of, split_at
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.characters import characters
from sampan.tokens.choose import ALPHABET, CHARACTERS_UP_TO, choose_tokenizer
from sampan.tokens.kinds import open_tokenizer

TEXT = readable(2000) + "三块木板。\n"
CHAR = DataConfig(tokenizer="char")


def write(name: str, text: str | bytes = TEXT) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def snapshot(folder="data") -> dict:
    """Every file below a folder but its lock, with its bytes."""
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name != ".lock"}


def text_of(data, split: str) -> str:
    return data.tokenizer.decode(data.tokens(split))


# ---- the shuffle ----


@given(st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 4096, 4097, 10_000]), st.integers(0, 2**64 - 1))
def test_shuffle_is_a_permutation(n, key):
    order = shuffle(np.arange(n, dtype=np.uint64), n, np.uint64(key))
    assert sorted(order.tolist()) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.data())
def test_shuffle_is_elementwise_and_within_bounds_for_any_size(n, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)), dtype=np.uint64)
    order = shuffle(index, n, np.uint64(key))
    assert (order < n).all()
    assert len(set(order.tolist())) == len(set(index.tolist()))
    assert [int(shuffle(index[i : i + 1], n, np.uint64(key))[0]) for i in range(len(index))] == order.tolist()


def test_keys_give_different_orders_without_a_favourite():
    """Over many keys every place gets every index about equally often: chi-square, 225 degrees of freedom."""
    n, keys = 16, 2000
    places = np.stack([shuffle(np.arange(n, dtype=np.uint64), n, np.uint64(k)) for k in range(keys)]).astype(int)
    counts = np.stack([np.bincount(places[:, i], minlength=n) for i in range(n)])
    statistic = ((counts - keys / n) ** 2 / (keys / n)).sum() * (n - 1) / n
    assert abs(statistic - 225) < 5 * np.sqrt(2 * 225)
    assert len({tuple(row) for row in places}) == keys


# ---- training windows ----


@st.composite
def splits(draw):
    """(tokens, block_size): the tokens are their own positions."""
    block_size = draw(st.integers(1, 12))
    return np.arange(draw(st.integers(block_size + 1, 8 * block_size + 5))), block_size


@given(splits(), st.integers(0, 2**63 - 1))
def test_each_window_once_per_epoch_laid_end_to_end_and_in_the_text(split, seed):
    tokens, block_size = split
    windows = Windows(tokens, block_size, seed)
    for epoch in range(3):
        starts = np.sort(windows.starts(epoch * windows.per_epoch, windows.per_epoch))
        assert starts[0] >= 0 and starts[-1] + block_size < len(tokens)
        assert (np.diff(starts) == block_size).all()
    left_out = len(tokens) - 1 - windows.per_epoch * block_size
    assert 0 <= left_out < 2 * block_size  # an epoch is about all of it


@given(splits(), st.integers(0, 2**32), st.integers(0, 200), st.integers(1, 12))
def test_targets_are_inputs_one_later(split, seed, first, count):
    tokens, block_size = split
    x, y = Windows(tokens, block_size, seed).batch(first, count)
    assert x.shape == y.shape == (count, block_size) and x.dtype == y.dtype == np.int32
    assert (y == x + 1).all() and (np.diff(x, axis=1) == 1).all()


@given(
    splits(),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.sampled_from([5, 1020, 2047]),
)
def test_windows_do_not_depend_on_how_batches_cut_them(split, seed, cuts, first):
    windows = Windows(*split, seed)
    whole = windows.batch(first, sum(cuts))
    parts = [windows.batch(first + sum(cuts[:i]), cut) for i, cut in enumerate(cuts)]
    for side in (0, 1):
        assert (np.concatenate([p[side] for p in parts]) == whole[side]).all()


def test_epochs_and_seeds_differ_and_a_token_is_met_in_every_position():
    tokens = np.arange(1000)
    epochs = [Windows(tokens, 10, 7).starts(e * 99, 99).tolist() for e in range(100)]
    assert Windows(tokens, 10, 7).per_epoch == 99
    assert len({tuple(e) for e in epochs}) == 100
    assert {e[0] % 10 for e in epochs} == set(range(10))
    assert epochs[0] != Windows(tokens, 10, 8).starts(0, 99).tolist()


@given(splits(), st.integers(0, 2**32))
def test_every_token_is_learnt_from_the_last_one_too(split, seed):
    tokens, block_size = split
    windows = Windows(tokens, block_size, seed)
    _, y = windows.batch(0, 400 * windows.per_epoch)
    assert set(y.flatten().tolist()) == set(range(1, len(tokens)))


def test_late_indices_are_as_good_as_early_ones():
    windows = Windows(np.arange(1000), 10, 7)
    late = np.sort(windows.starts(99 * 10**12, 99))
    assert (np.diff(late) == 10).all() and late[-1] + 10 < 1000


@given(splits())
def test_a_text_shorter_than_a_block_is_one_sentence(split):
    tokens, block_size = split
    with pytest.raises(UserError, match="block_size"):
        Windows(tokens[:block_size], block_size, 0)
    with pytest.raises(UserError, match="block_size"):
        EvaluationBatches(tokens[:block_size], block_size, 2, 2)


def test_a_token_beyond_the_vocabulary_is_one_sentence():
    tokens = np.full(100, 99, dtype=np.uint16)
    with pytest.raises(UserError, match="token 99, and the vocabulary 99"):
        Windows(tokens, 10, 0, vocab_size=99).batch(0, 20)
    with pytest.raises(UserError, match="token 99, and the vocabulary 99"):
        list(EvaluationBatches(tokens, 10, 4, 100, vocab_size=99))
    assert Windows(tokens, 10, 0, vocab_size=100).batch(0, 20)[1].max() == 99


def test_a_private_map_keeps_its_changes_and_its_tokens_are_seen_as_they_are():
    np.arange(300, dtype=np.int64).tofile("ids.bin")
    tokens = np.memmap("ids.bin", np.int64, "c")
    tokens[:] = 3
    x, _ = Windows(tokens, 10, 0, vocab_size=9).batch(0, 20)
    assert (x == 3).all() and (tokens == 3).all()
    for wrong in (2**32 + 5, -1):
        tokens[:] = wrong
        with pytest.raises(UserError, match=f"token {wrong}, and the vocabulary 9"):
            Windows(tokens, 10, 0, vocab_size=9).batch(0, 20)


def test_processes_that_prepare_the_same_text_wait_for_each_other(tmp_path):
    (tmp_path / "big.txt").write_text(readable(400_000), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
    command = [sys.executable, "-m", "sampan", "prepare", "big.txt", "--tokenizer", "bpe:2000"]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in started:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and "vocabulary" in output, errors
    left = {p.name for p in Path("data/big-bpe2000").iterdir()}
    assert left == {"train.bin", "val.bin", "tokenizer.json", "meta.json", "look.json", ".lock"}
    assert len(open_folder("data/big-bpe2000").train) > 1000


# ---- evaluation windows ----


@given(splits(), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=200)
def test_evaluation_reads_each_target_once_and_all_of_them_where_it_may(split, batch_size, batches):
    tokens, block_size = split
    result = EvaluationBatches(tokens, block_size, batch_size, batches)
    x, y = (np.concatenate([b[side] for b in result]) for side in (0, 1))
    counted = y[y >= 0]
    assert (y[y >= 0] == x[y >= 0] + 1).all()
    assert len(set(counted.tolist())) == len(counted)
    asked, available = batch_size * batches, (len(tokens) - 1) // block_size
    if asked >= available:
        assert sorted(counted.tolist()) == list(range(1, len(tokens)))
    else:
        assert len(counted) == asked * block_size
        starts = x[:, 0]
        gaps = np.diff(starts) // block_size
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1  # evenly over the split
        assert starts[0] == 0 and available * block_size - starts[-1] <= -(-available // asked) * block_size
    assert all(len(b[0]) <= batch_size for b in result) and len([*result]) == len(result)


def test_evaluation_is_the_same_every_time():
    tokens = np.arange(997)
    for one, two in zip(EvaluationBatches(tokens, 8, 4, 5), EvaluationBatches(tokens, 8, 4, 5), strict=True):
        assert (one[0] == two[0]).all() and (one[1] == two[1]).all()


# ---- prepare: what is written ----


@given(st.text(min_size=1, max_size=60).filter(str.strip), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]))
@settings(max_examples=25)
def test_the_split_is_by_characters_as_nanogpt(text, val_fraction):
    if "\0" in text:
        return
    text = text.replace("\r", "\n").removeprefix("\ufeff")
    if not text:
        return
    data = prepare(write("a.txt", text), DataConfig(tokenizer="char", val_fraction=val_fraction))
    cut = int(len(text) * (1 - val_fraction))
    assert (text_of(data, "train"), text_of(data, "val")) == (text[:cut], text[cut:])
    assert data.meta.characters == len(text) and data.meta.symbols == len(set(text))


@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_the_files_are_raw_ids_with_the_tokenizer_and_a_summary(tokenizer):
    data = prepare(write("a.txt"), DataConfig(tokenizer=tokenizer))
    cut = int(len(TEXT) * 0.9)
    for split, text in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        raw = np.fromfile(data.folder / f"{split}.bin", dtype=np.uint16)
        assert raw.tolist() == data.tokenizer.encode(text).tolist() == data.tokens(split).tolist() != []
        assert data.meta.tokens(split) == len(raw)
    assert sorted(p.name for p in data.folder.iterdir()) == [
        ".lock",
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]
    shown = "\n".join(data.summary())
    for value in (len(TEXT), len(set(TEXT)), data.meta.vocab_size, len(data.train), len(data.val)):
        assert f"{value:,}" in shown
    assert open_folder(data.folder).meta == data.meta


@pytest.mark.parametrize(("symbols", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(symbols, dtype):
    points = [
        p for p in range(0x20, 0x20 + symbols + 2048 + 200) if not 0xD800 <= p < 0xE000 and p not in (0x85, 0xFEFF)
    ]
    text = "".join(map(chr, points[:symbols]))
    data = prepare(write("a.txt", text), CHAR)
    assert data.meta.vocab_size == symbols and data.train.dtype == data.val.dtype == dtype
    assert text_of(data, "train") + text_of(data, "val") == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "one\ntwo\n"), (b"one\rtwo\n\r", "one\ntwo\n\n"),
        (b"one\r\r\n\ntwo", "one\n\n\ntwo"),
        ("\u2028 \x85 \x0c é\n".encode(), "\u2028 \x85 \x0c é\n"), (b"no line end", "no line end"),
    ],
)  # fmt: skip
def test_marks_of_windows_are_no_part_of_a_text(raw, text):
    data = prepare(write("a.txt", raw), CHAR)
    assert text_of(data, "train") + text_of(data, "val") == text


def test_a_folder_is_its_texts_in_order_with_ends_between():
    for name, text in (
        ("b.txt", "two\r\n"),
        ("a.txt", "one\n"),
        ("c/d.txt", "three\n"),
        ("e.txt", ""),
        ("f.py", "no"),
        (".git/g.txt", "no"),
    ):
        write(f"texts/{name}", text)
    data = prepare("texts", DataConfig(tokenizer="char", val_fraction=0.0))
    end = data.tokenizer.inner.id_to_token(data.tokenizer.end_of_text)
    assert text_of(data, "train") == f"one\n{end}two\n{end}three\n{end}"
    assert len(data.val) == 0 and data.meta.characters == len("one\ntwo\nthree\n")


def test_a_jsonl_is_its_text_fields():
    lines = [{"text": "one\n", "n": 1}, {"text": ""}, {"n": 2, "text": "二🙂"}]
    write("a.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\n\n")
    data = prepare("a.jsonl", DataConfig(tokenizer="bpe:300", val_fraction=0.0))
    assert data.tokenizer.decode(data.train).replace("<|endoftext|>", "|") == "one\n|二🙂|"


def test_one_document_has_no_end():
    data = prepare(write("a.jsonl", json.dumps({"text": TEXT})), CHAR)
    assert text_of(data, "train") + text_of(data, "val") == TEXT and data.tokenizer.end_of_text is None


@given(
    st.lists(st.text(alphabet="ab\n", max_size=9), min_size=2, max_size=6).filter(any),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
)
@settings(max_examples=25)
def test_no_character_of_any_document_is_lost_or_moved(documents, val_fraction):
    write("a.jsonl", "\n".join(json.dumps({"text": d}) for d in documents))
    data = prepare("a.jsonl", DataConfig(tokenizer="char", val_fraction=val_fraction))
    plain = [text_of(data, s).replace("<|endoftext|>", "") for s in ("train", "val")]
    whole = "".join(documents)
    cut = int(len(whole) * (1 - val_fraction))
    assert plain == [whole[:cut], whole[cut:]]


def test_tinyshakespeare_has_nanogpts_counts(real, monkeypatch):
    monkeypatch.setenv("SAMPAN_MIRROR", str(real))
    begin = time.monotonic()
    data = prepare("shakespeare_char", DataConfig())
    assert (len(data.train), len(data.val), data.meta.vocab_size) == (1_003_854, 111_540, 65)
    assert time.monotonic() - begin < 2  # "well under a second", on a slow day
    text = (real / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert text_of(data, "val") == text[-111_540:]


# ---- prepare: when ----


def test_only_a_change_prepares_again():
    write("a.txt")
    made = prepare("a.txt", CHAR)
    before = snapshot()

    def is_kept(config) -> bool:
        old = (made.folder / "train.bin").stat().st_mtime_ns
        data = prepare("a.txt", config)
        assert data.folder == made.folder
        return (made.folder / "train.bin").stat().st_mtime_ns == old

    assert is_kept(CHAR) and snapshot() == before
    os.utime("a.txt", (1, 1))
    assert is_kept(CHAR) and is_kept(DataConfig())  # "auto" is "char" for a short text
    assert not is_kept(DataConfig(tokenizer="char", val_fraction=0.2)) and is_kept(DataConfig(val_fraction=0.2))
    write("a.txt", TEXT + "!")
    assert not is_kept(CHAR) and text_of(open_folder(made.folder), "val").endswith("!")
    write("a.txt", b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode() + b"!")
    assert is_kept(CHAR)  # the same text in other bytes


def test_another_tokenizer_has_another_folder_and_its_file_is_watched():
    write("a.txt")
    folders = {prepare("a.txt", DataConfig(tokenizer=t)).folder for t in ("char", "bpe:300", "bpe:301")}
    assert len(folders) == 3
    for text in (TEXT, TEXT + "~"):
        write("model/tokenizer.json", characters(text).to_json())
        data = prepare("a.txt", DataConfig(tokenizer="model"))
        assert data.meta.vocab_size == len(set(text))


def test_a_tokenizer_in_the_working_folder_has_a_name():
    write("a.txt")
    write("tokenizer.json", train_bpe([TEXT], 300).to_json())
    data = prepare("a.txt", DataConfig(tokenizer="tokenizer.json"))
    assert data.meta.tokenizer and not str(data.folder).endswith("-")


@pytest.mark.parametrize("damage", ["cut", "gone", "no tokenizer", "no meta end"])
def test_a_damaged_folder_is_named_and_preparing_again_mends_it(damage):
    data = prepare(write("a.txt"), CHAR)
    before = {k: v for k, v in snapshot().items() if k.endswith(".bin")}
    if damage == "cut":
        (data.folder / "train.bin").write_bytes(b"12")
        with pytest.raises(UserError, match=r"train\.bin has 2 bytes"):
            _ = data.train
    elif damage == "gone":
        (data.folder / "val.bin").unlink()
        with pytest.raises(UserError, match=r"val\.bin"):
            _ = data.val
    elif damage == "no tokenizer":
        (data.folder / "tokenizer.json").unlink()
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            _ = open_folder(data.folder).tokenizer
    else:
        (data.folder / "meta.json").write_text('{"complete": true, "dty')
        with pytest.raises(UserError, match="not a prepared data folder"):
            open_folder(data.folder)
    mended = prepare("a.txt", CHAR)
    assert text_of(mended, "train") + text_of(mended, "val") == TEXT
    assert {k: v for k, v in snapshot().items() if k.endswith(".bin")} == before


# ---- prepare: a folder that is given ----


def test_a_given_folder_is_taken_as_it_is_and_flags_cannot_change_it():
    made = prepare(write("x.txt"), DataConfig(tokenizer="bpe:300", data_dir="data/x"))
    before = snapshot()
    for name in ("data/x", "x", str(Path("data/x").resolve())):
        for flags in ({}, {"tokenizer": "bpe:300"}, {"val_fraction": 0.1}, {"data_dir": "data/x"}):
            assert prepare(name, DataConfig(**flags)).meta == made.meta
        for flags in (
            {"tokenizer": "char"}, {"val_fraction": 0.3}, {"val_file": "v.txt"}, {"encoding": "gb18030"},
            {"normalize": "nfc"}, {"text_field": "body"}, {"data_dir": "data/y"},
        ):  # fmt: skip
            ((flag, value),) = flags.items()
            with pytest.raises(
                UserError, match=rf"prepared already: --{flag} {value} .*: sampan prepare x\.txt .*--{flag} {value}"
            ):
                prepare(name, DataConfig(**flags))
    assert snapshot() == before


def test_a_tokenizer_file_may_be_that_of_the_folder():
    made = prepare(write("x.txt"), DataConfig(tokenizer="bpe:300", data_dir="data/x"))
    assert prepare("data/x", DataConfig(tokenizer="data/x/tokenizer.json")).meta == made.meta
    write("other/tokenizer.json", train_bpe([TEXT], 301).to_json())
    with pytest.raises(UserError, match="--tokenizer other"):
        prepare("data/x", DataConfig(tokenizer="other"))


def test_a_text_that_changed_since_is_said(caplog):
    made = prepare(write("x.txt"), CHAR)
    prepare("data/x", CHAR)
    assert not caplog.text
    write("x.txt", TEXT + "!")
    assert prepare("data/x", CHAR).meta == made.meta and "x.txt has changed since data/x was made" in caplog.text
    caplog.clear()
    (
        prepare("./x.txt", CHAR),
        os.utime("x.txt", (1, 1)),
        prepare("x.txt", CHAR),
    )  # as the warning says; then only touched
    caplog.clear()
    assert text_of(prepare("data/x", CHAR), "val").endswith("!")
    Path("x.txt").unlink()
    prepare("data/x", CHAR)
    assert not caplog.text


@pytest.mark.parametrize("folder", ["data/book", "books/mine"])
def test_a_folder_that_was_made_of_its_own_texts_follows_them(folder):
    """`sampan prepare data/book`, as with nanoGPT's folders: input.txt and the tokens lie side by side."""
    write(f"{folder}/input.txt", TEXT)
    config = DataConfig(tokenizer="bpe:300", data_dir=folder)
    prepare(folder, config)
    for text in (TEXT + "!", TEXT * 2):
        write(f"{folder}/input.txt", text)
        data = prepare(folder, DataConfig())
        assert data.folder == Path(folder) and data.meta.tokenizer == "bpe:300"
        assert text_of(data, "train") + text_of(data, "val") == text
    Path(folder, "input.txt").unlink()
    assert prepare(folder, DataConfig()).meta == data.meta


def test_a_text_named_as_nanogpt_does_has_its_folders_name():
    write("data/book/input.txt", TEXT), write("input.txt", TEXT)
    assert prepare("data/book/input.txt", CHAR).folder == Path("data/book")
    assert prepare("input.txt", CHAR).folder == Path("data/input")


# ---- prepare: errors ----

BAD_SOURCES = {
    "missing": (None, r"a\.txt: no such corpus, file or folder"),
    "empty": (b"", r"a\.txt is empty"),
    "only a mark": (b"\xef\xbb\xbf", r"a\.txt is empty"),
    "binary": (b"ab\0cd" * 9, r"a\.txt is binary.*offset 2"),
    "controls": (bytes(range(1, 256)), r"a\.txt is binary"),
}
BAD_JSONL = {
    "not json": ("{", 1),
    "a number": ("1", 1),
    "no text": ('{"txt": "a"}', 1),
    "null": ("null", 1),
    "text is a number": ('{"text": 1}', 1),
    "second line": ('{"text": "a"}\n{"text": [1]}', 2),
    "deep": ('{"text": ' + "[" * 100_000, 1),
    "after an empty line": ('{"text": "a"}\n\n{}', 3),
    "long number": ('{"text": "a", "n": ' + "9" * 5000 + "}", 1),
}


@pytest.mark.parametrize(("raw", "sentence"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_bad_source_is_one_sentence_and_writes_nothing(raw, sentence):
    if raw is not None:
        write("a.txt", raw)
    with pytest.raises(UserError, match=sentence) as error:
        prepare("a.txt", CHAR)
    assert "\n" not in str(error.value) and not Path("data").exists()


def test_a_folder_is_as_bad_as_its_worst_file():
    write("texts/a.txt"), write("texts/b/c.txt", b"\0\0")
    with pytest.raises(UserError, match=r"c\.txt"):
        prepare("texts", CHAR)
    write("empty/a.txt", b""), write("empty/b.txt", b"\xef\xbb\xbf")
    with pytest.raises(UserError, match="empty is empty"):
        prepare("empty", CHAR)
    assert not Path("data").exists()


@pytest.mark.parametrize(("text", "line"), BAD_JSONL.values(), ids=BAD_JSONL)
def test_a_bad_jsonl_is_one_sentence_with_its_line(text, line):
    with pytest.raises(UserError, match=rf"a\.jsonl, line {line}: "):
        prepare(write("a.jsonl", text), CHAR)
    assert not Path("data").exists()


def test_a_folder_without_texts_and_a_name_with_a_slip():
    write("texts/a.rst", "no")
    with pytest.raises(UserError, match=r"texts has no text \(\.txt"):
        prepare("texts", CHAR)
    with pytest.raises(UserError, match="did you mean shakespeare"):
        prepare("shakespear", CHAR)


@pytest.mark.parametrize(
    "tokenizer", ["bpe", "bpe:", "bpe:x", "bpe:-1", "bpe:256", "gpt3", "missing.json", "", "a.txt"]
)
def test_a_tokenizer_that_is_none_is_one_sentence(tokenizer):
    with pytest.raises(UserError):
        prepare(write("a.txt"), DataConfig(tokenizer=tokenizer))
    assert not snapshot()


def test_a_foreign_train_bin_is_left_alone():
    write("data/a/train.bin", b"nanoGPT's")
    with pytest.raises(UserError, match=r"data/a holds a train\.bin that Sampan did not write"):
        prepare(write("a.txt"), DataConfig(data_dir="data/a"))
    assert snapshot() == {"data/a/train.bin": b"nanoGPT's"}
    assert prepare("a.txt", CHAR).folder.name.startswith("a-")
    assert snapshot("data/a") == {"data/a/train.bin": b"nanoGPT's"}


def test_a_character_that_the_tokenizer_lacks_changes_nothing():
    write("a.txt")
    write("model/tokenizer.json", characters(TEXT).to_json())
    config = DataConfig(tokenizer="model/tokenizer.json")
    prepare("a.txt", config)
    before = snapshot()
    write("a.txt", "龍" + TEXT)
    with pytest.raises(UserError, match="U\\+9F8D"):
        prepare("a.txt", config)
    assert snapshot() == before


def test_a_data_dir_that_is_a_file_is_one_sentence():
    write("file", "x")
    with pytest.raises(UserError, match="file: cannot be written"):
        prepare(write("a.txt"), DataConfig(tokenizer="char", data_dir="file"))
    assert Path("file").read_text() == "x"


def test_a_full_disk_at_any_moment_is_one_sentence_and_leaves_no_half(monkeypatch):
    """The n-th sync fails, for every n: the old data is whole, or the folder says that it is to be made
    again."""
    write("a.txt")
    old = prepare("a.txt", CHAR)
    write("a.txt", TEXT * 2)
    real, failures = os.fsync, 0
    for n in range(20):
        calls = iter(range(20))

        def full(descriptor, n=n, calls=calls):
            if next(calls) == n:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            prepare("a.txt", CHAR)
        except UserError as error:
            failures += 1
            assert "No space left" in str(error)
            left = {Path(name).name for name in snapshot()}
            assert left <= {"train.bin", "val.bin", "tokenizer.json", "meta.json"}, n
            try:
                whole = open_folder(old.folder)
            except UserError:
                assert "nothing was changed" not in str(error)
            else:
                assert text_of(whole, "train") + text_of(whole, "val") in (
                    TEXT,
                    TEXT * 2,
                )  # the last sync is the new one's
        else:
            break
    assert failures >= 4


def test_a_sync_that_fails_on_the_first_preparation_leaves_nothing(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    write("a.txt")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            prepare("a.txt", CHAR)
    assert not snapshot()
    assert text_of(prepare("a.txt", CHAR), "train") == TEXT[: int(len(TEXT) * 0.9)]


# ---- any size: blocks, cuts, validation ----


MARKED = st.lists(st.text(alphabet="ab ，中\n", min_size=1, max_size=12), min_size=1, max_size=6)


@given(MARKED, st.integers(1, 7), st.integers(0, 60))
def test_split_blocks_cut_by_characters_wherever_blocks_end(documents, size, cut):
    """Streamed text is the whole text: blocks of any size give the parts that the text as one string gives."""
    whole, borders = "".join(documents), np.cumsum([len(d) for d in documents]).tolist()
    parts, found = {"train": "", "val": ""}, {"train": [], "val": []}
    for split, (part, ends) in split_blocks(blocks_of([[d] for d in documents], size), cut):
        assert part and all(0 < end <= len(part) for end in ends)
        found[split] += [len(parts[split]) + end for end in ends]
        parts[split] += part
    assert list(parts.values()) == [whole[:cut], whole[cut:]]
    here = min(cut, len(whole))
    assert found["train"] == [p for p in borders if p < here] + [here] * (here > 0)
    assert found["val"] == [p - here for p in borders if p > here]


@pytest.mark.parametrize("kind", ["char", "char+bytes", "bpe:300", "no words"])
@given(documents=MARKED, size=st.integers(1, 9))
@settings(max_examples=25)
def test_blocks_of_any_size_give_the_ids_of_whole_documents(kind, documents, size):
    tokenizer = made(kind)
    wanted = [i for d in documents for i in [*tokenizer.encode(d).tolist(), tokenizer.end_of_text]]
    blocks = [("train", block) for block in blocks_of([[d] for d in documents], size)]
    ids = [i for _, (text, ends) in join_words(blocks, tokenizer) for i in tokenizer.encode(text, ends=ends).tolist()]
    assert ids == wanted


@functools.cache
def made(kind: str):
    text = TEXT + "ab ，中\n"
    if kind == "bpe:300":
        return train_bpe([text], 300)
    if kind == "no words":  # nothing is known of where it may be cut
        inner = train_bpe([text], 300).inner
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return open_tokenizer(inner)
    return characters(text.replace("a", "") if "bytes" in kind else text, True, byte_tokens="bytes" in kind)


def test_a_word_longer_than_any_block_is_cut_and_given_back(monkeypatch):
    monkeypatch.setattr(sampan.tokens.byte_level, "LONGEST", 100)
    monkeypatch.setattr(sampan.text.sources, "BLOCK", 64)
    data = prepare(write("a.txt", "a" * 1000 + " b"), DataConfig(tokenizer="bpe:257"))
    assert text_of(data, "train") + text_of(data, "val") == "a" * 1000 + " b"


@pytest.mark.parametrize("tokenizer", ["char", "char+bytes", "bpe:300"])
def test_small_blocks_give_the_files_of_large_ones(monkeypatch, tokenizer):
    write("texts/a.txt", TEXT), write("texts/b.txt", readable(3000, seed=1) + "水浒传，三字经。\n" * 9)
    config = DataConfig(tokenizer=tokenizer)
    prepare("texts", config)
    files = {k: v for k, v in snapshot().items() if "meta" not in k}
    shutil.rmtree("data")
    monkeypatch.setattr(sampan.text.sources, "BLOCK", 97), monkeypatch.setattr(sampan.text.encodings, "READ_BYTES", 61)
    prepare("texts", config)
    assert {k: v for k, v in snapshot().items() if "meta" not in k} == files


@given(st.lists(st.text(alphabet="abcdefgh中", max_size=9), max_size=12))
def test_counts_and_checksum_are_those_of_the_whole(texts):
    """However the text is cut into blocks; and where documents end is in the checksum."""
    whole, readings = "".join(texts), [Reading() for _ in range(3)]
    blocks = [Block(text, [len(text)]) for text in texts if text]
    for number, block in enumerate(blocks):
        readings[0].take(number, block)
    for number, block in enumerate(blocks_of([[text] for text in texts], 4)):
        readings[1].take(number, block)
    for number, block in enumerate(blocks_of([[whole]], 5)):
        readings[2].take(number, block)
    for reading in readings:
        assert all(reading.counts[ord(c)] == whole.count(c) for c in set(whole)) and reading.counts.sum() == len(whole)
        assert reading.characters == len(whole)
    assert readings[0].documents == readings[1].documents == len(blocks)
    first, second, one = (reading.sha256() for reading in readings)
    assert first == second and (first == one) == (len(blocks) < 2)
    assert one.hex() == hashlib.sha256(whole.encode()).hexdigest()


def test_what_the_text_has_once_is_spelt_in_bytes():
    text = TEXT + "龍水水"  # the last two are in val alone
    data = prepare(write("a.txt", text), DataConfig(tokenizer="char+bytes"))
    assert text_of(data, "train") + text_of(data, "val") == text
    assert data.meta.vocab_size == 256 + sum(text.count(c) > 1 for c in set(text))
    assert data.tokenizer.decode(data.tokenizer.encode("🙂 龍")) == "🙂 龍"


def test_a_long_text_is_learnt_from_blocks_all_over_it(monkeypatch):
    monkeypatch.setattr(sampan.data.survey, "SAMPLE", 3000), monkeypatch.setattr(sampan.text.sources, "BLOCK", 300)
    text = "".join(readable(1000, seed=i) for i in range(20))
    data = prepare(write("a.txt", text), DataConfig(tokenizer="bpe:300"))
    assert 1000 < data.meta.trained_on <= 3000 and "trained on" in "\n".join(data.summary())
    survey = read_through(find_texts(["a.txt"], CHAR))
    assert survey.sample[-1][0] > 15_000
    assert all(text[at : at + len(block.text)] == block.text for at, block in survey.sample)
    assert "".join(sample_documents(survey, len(text))) == "".join(block.text for _, block in survey.sample)


@given(MARKED, st.integers(1, 7), st.integers(0, 60), st.integers(0, 60))
def test_a_sample_of_everything_is_the_documents_between_two_places(documents, size, begin, end):
    reading, whole = Reading(), "".join(documents)
    for number, block in enumerate(blocks_of([[d] for d in documents], size)):
        reading.take(number, block)
    borders = [p for p in np.cumsum([len(d) for d in documents]).tolist() if begin < p < end]
    wanted = split_at(whole[:end], [begin, *borders])[1:] if begin < end else []
    assert sample_documents(reading, end, begin) == [text for text in wanted if text]


@pytest.mark.parametrize("name", ["b.txt", "texts/b.txt"])
def test_a_val_file_is_val_and_no_part_of_train(name):
    write("texts/a.txt", TEXT), write(name, "the river")
    data = prepare("texts", DataConfig(tokenizer="char", val_file=name))
    assert (text_of(data, "train"), text_of(data, "val")) == (TEXT, "the river")
    with pytest.raises(UserError, match="val_fraction"):
        prepare("texts", DataConfig(val_file=name, val_fraction=0.1))
    with pytest.raises(UserError, match="nothing is left to train on"):
        prepare(name, DataConfig(val_file=name))
    write(name, "")
    with pytest.raises(UserError, match=r"b\.txt is empty"):
        prepare("texts", DataConfig(tokenizer="char", val_file=name))


def test_where_val_begins_in_several_files_is_said():
    for name, text in (("a.txt", "ab" * 50), ("b.jsonl", '{"text": "cd"}\n' * 50), ("c.txt", "ef" * 50)):
        write(f"texts/{name}", text)
    letters = {"a.txt": "ab", "b.jsonl": "cd", "c.txt": "ef"}
    for fraction, name in ((0.1, "c.txt"), (0.33, "c.txt"), (0.34, "b.jsonl"), (0.9, "a.txt")):
        data = prepare("texts", DataConfig(tokenizer="char", val_fraction=fraction))
        assert data.meta.val_from == str(Path("texts", name)) and text_of(data, "val")[0] in letters[name]
        assert f"val is the end of the text, from {Path('texts', name)} on" in " ".join(
            "\n".join(data.summary()).split()
        )
    for text, config in (("texts/a.txt", CHAR), ("texts", DataConfig(val_file="texts/b.jsonl"))):
        assert prepare(text, config).meta.val_from is None


@pytest.mark.parametrize(("text", "val"), [("texts", "texts/v"), ("texts/v/b.txt", "texts"), ("x.zip", "x.zip")])
def test_a_val_folder_is_no_part_of_train(text, val):
    write("texts/a.txt", TEXT), write("texts/v/b.txt", "the river")
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.write("texts/a.txt")
    if text == "texts":
        data = prepare(text, DataConfig(tokenizer="char", val_file=val))
        assert (text_of(data, "train"), text_of(data, "val")) == (TEXT, "the river")
    else:
        with pytest.raises(UserError, match=f"--val_file {val} is the whole text"):
            prepare(text, DataConfig(val_file=val))


@pytest.mark.parametrize(
    ("facts", "choice"),
    [
        ((1_115_394, 65), "char"),
        ((928_466, 4513), "char+bytes"),
        ((10**7, 90), "bpe:8192"),
        ((10**7, 5000), "bpe:16384"),
    ],
)
def test_the_choice_follows_from_the_counts(facts, choice):
    assert choose_tokenizer("auto", *facts)[0] == choice


def test_a_large_text_is_not_read_to_see_that_it_is_the_same(monkeypatch):
    write("a.txt")
    os.utime("a.txt", (1, 1))
    made = prepare("a.txt", DataConfig())
    with monkeypatch.context() as patch:
        patch.setattr(sampan.data.prepare, "read_through", lambda *_: pytest.fail("it is read"))
        assert prepare("a.txt", DataConfig()).meta.stamp == made.meta.stamp is not None
        assert prepare("a.txt", CHAR).folder == made.folder
    write("a.txt", TEXT[:-1] + "!")  # a file of now: its time may stay when it changes again
    prepare("a.txt", DataConfig())
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="read"):
        patch.setattr(sampan.data.prepare, "read_through", lambda *_: exec("raise AssertionError('read')"))
        prepare("a.txt", DataConfig())


def test_a_kill_at_any_moment_leaves_nothing_half_done():
    """SIGKILL runs no `finally`: what is left then must not be taken for data."""
    write("a.txt")
    code = (
        "import sys, os, signal\n"
        f"sys.path.insert(0, {str(Path(sampan.__file__).parents[1])!r})\n"
        "from sampan.data.prepare import prepare\nfrom sampan.config import DataConfig\n"
        "calls, real = 0, os.replace\n"
        "def replace(*a):\n    global calls\n    calls += 1\n"
        "    if calls == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n    real(*a)\n"
        "os.replace = replace\nprepare('a.txt', DataConfig())\n"
    )
    for n in (1, 2, 3, 5):
        assert subprocess.run([sys.executable, "-c", code, str(n)]).returncode == -signal.SIGKILL
        with pytest.raises(UserError, match="not a prepared data folder"):
            open_folder("data/a")
        if n == 1:  # the next preparation mends what the last left
            data = prepare("a.txt", DataConfig())
            assert text_of(data, "train") + text_of(data, "val") == TEXT
            assert not list(Path("data").rglob("*.bin.partial"))
            shutil.rmtree("data")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_batches_leave_no_pages_behind():
    """A mapping counts every page that was read as memory of the process: a large text would fill it."""
    Path("tokens.bin").write_bytes(bytes(64 << 20))
    windows = Windows(np.memmap("tokens.bin", np.uint16, "r"), 1024, 1)
    for i in range(64):  # all of it
        windows.batch(i * 512, 512)
    status = Path("/proc/self/smaps").read_text()
    resident = status.split("tokens.bin", 1)[1].split("Rss:", 1)[1].split("kB", 1)[0]
    assert int(resident) < 4096


@pytest.mark.skipif("SAMPAN_TEST_LARGE" not in os.environ, reason="SAMPAN_TEST_LARGE=2 prepares so many GB")
@pytest.mark.parametrize("tokenizer", ["char", "bpe:8192"])
def test_gigabytes_are_prepared_in_little_memory(tokenizer):
    bench = Path(__file__).parents[1] / "bench" / "prepare.py"
    size = os.environ["SAMPAN_TEST_LARGE"]
    subprocess.run([sys.executable, bench, "--large", size, "--tokenizer", tokenizer, "--limit", "500"], check=True)


# ---- prepare: names and locks ----


def test_two_texts_of_one_name_have_two_folders(caplog):
    write("a/x.txt", TEXT), write("b/x.txt", TEXT * 2)
    first, second = prepare("a/x.txt", CHAR), prepare("b/x.txt", CHAR)
    assert str(first.folder) == str(Path("data/x")) and second.folder.name.startswith("x-")
    assert "data/x holds another text" in caplog.text and str(second.folder) in caplog.text
    caplog.clear()
    before = snapshot()
    for path, made in (("a/x.txt", first), ("./b/x.txt", second), (str(Path("b/x.txt").resolve()), second)):
        assert prepare(path, CHAR).folder == made.folder  # they do not take turns
    assert snapshot() == before and not caplog.text
    write("a/x.txt", TEXT + "!")
    assert prepare("a/x.txt", CHAR).folder == first.folder and "was made from another text" in caplog.text
    write("c/x.txt", TEXT * 2)
    assert prepare("c/x.txt", DataConfig(tokenizer="bpe:300")).folder.name == "x-bpe300"


HOLDER = """
import sys, time
from pathlib import Path
from sampan.data.prepare import preparation_lock
with preparation_lock(Path("data/a")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_preparation_is_waited_for_and_a_killed_ones_place_is_taken(caplog):
    env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
    write("a.txt")
    with subprocess.Popen([sys.executable, "-c", HOLDER], env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Held, match=f"process {holder.pid}"), lock_file(Path("data/a/.lock"), "us"):
            pass
        threading.Timer(0.5, holder.kill).start()
        data = prepare("a.txt", CHAR)
        assert holder.wait() == -signal.SIGKILL  # it was waited for until it was gone
    assert f"data/a is being prepared by process {holder.pid} on {platform.node()}; waiting" in caplog.text
    assert text_of(data, "train") + text_of(data, "val") == TEXT
    assert {p.name for p in Path("data").iterdir()} == {"a"}


# ---- cores ----


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "250000 100000", "a/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("5:cpuset:/a\n4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, NO_QUOTA),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, NO_QUOTA), ("0::/gone\n", {}, NO_QUOTA),
    ],
)  # fmt: skip
def test_a_containers_quota_is_whole_cores(tmp_path, groups, files, cores):
    for name, text in files.items():
        write(f"root/{name}", text + "\n")
    write("cgroup", groups)
    assert count_quota(tmp_path / "cgroup", tmp_path / "root") == cores
    assert count_quota(tmp_path / "missing", tmp_path / "root") == NO_QUOTA
    assert 1 <= count_cores() <= os.cpu_count()


def test_the_reasons_name_the_limits_of_the_choice():
    """They are literals, so that they can be translated."""
    for count, symbols in ((CHARACTERS_UP_TO + 1, 65), (CHARACTERS_UP_TO, 65), (CHARACTERS_UP_TO, ALPHABET + 1)):
        kind, reason = choose_tokenizer("auto", count, symbols)
        assert (f"{CHARACTERS_UP_TO:,}" in reason) == (kind != "char+bytes"), reason
        assert (f"{ALPHABET} symbols" in reason) == (count <= CHARACTERS_UP_TO), reason
