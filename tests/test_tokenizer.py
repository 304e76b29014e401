"""tokenizer.py: text to ids and back without loss, as the `tokenizers` library and transformers do it.

The library itself, reading the same tokenizer.json, is the oracle. Tokenizers are made here; no file is
fetched.
"""

import _thread
import contextlib
import itertools
import json
import random
import struct
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import readable
from hypothesis import given, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer as Inner, decoders, models, normalizers, pre_tokenizers, processors

import sampan.tokens.byte_level
from sampan.config import DataConfig, ModelSettings, SampleConfig
from sampan.data.prepare import prepare
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.model.parameters import initialize
from sampan.model.shape import resolve
from sampan.sampling.write import write
from sampan.tokens.byte_level import (
    PIECE_CHARACTERS,
    SEPARATORS,
    first_merges,
    interruptible,
    split_pieces,
    train_bpe,
    training_pieces,
)
from sampan.tokens.characters import characters
from sampan.tokens.kinds import KINDS, find_kind, fingerprint, names_of_kinds, open_tokenizer, read_tokenizer
from sampan.tokens.tokenizer import END_OF_TEXT, Tokenizer

CHINESE = "舢板有三块木板：准备、训练、写作。河水很慢，船也很慢。\n"
HARD = [
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳", "👍🏽", "e\u0301\u0323", "ก็", "한\u1112\u1161\u11ab", "𠮷", "𪚥", "\U00030ede",
    "\U0010ffff",
    "\0",
    "\x1b[0m", "\x7f", "\x85", "\u2028", "\u200b", "\ufeff", "\ufffd", "\r", "\r\n", "\n\r", "\t",
    "  ", "\u3000",
    "'s", "<|endoftext", "|>", "Ġ", "Ċ", "▁", "##", "中文", "，", "ﬁ", "ß", "İ", "\u202eabc",
]  # fmt: skip
hard_text = st.lists(st.sampled_from(HARD) | st.text(max_size=8), max_size=20).map("".join)
hard_text = hard_text.filter(lambda t: "<|endoftext|>" not in t)  # it has a meaning of its own


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """400 ids, learnt from English and Chinese."""
    return train_bpe([readable(4000) + CHINESE * 20], 400)


@pytest.fixture(scope="module", params=["char", "char+bytes", "bpe"])
def any_tokenizer(request, bpe) -> Tokenizer:
    if request.param == "bpe":
        return bpe
    known = readable(4000) + CHINESE + "".join(HARD) * (request.param == "char")
    return characters(known, end_of_text=True, byte_tokens=request.param == "char+bytes")


def reloaded(tokenizer: Tokenizer) -> Inner:
    """The library's own reading of the tokenizer.json."""
    return Inner.from_str(tokenizer.to_json())


def long_text(kind: str) -> str:
    spaces = "a \n\n b\t\tc   d\u3000\u3000e\r\n\r\nf \xa0g' s.\n\n\nh1 2  3!  (i)  \x1c \x1fj\u0301  k"
    return {"english": readable(3000), "chinese": CHINESE * 60, "spaces": spaces * 20, "one word": "a" * 900}[kind]


# ---- round trips ----


@given(hard_text)
def test_characters_give_their_own_text_back(text):
    tokenizer = characters(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(text=hard_text)
def test_bpe_gives_any_text_back(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert ids.dtype == np.int32 and (len(ids) == 0 or 0 <= ids.min() <= ids.max() < bpe.vocab_size)


@given(known=st.text(max_size=9), text=hard_text | st.text(st.characters(exclude_categories=["Cs"])))
def test_characters_with_bytes_give_any_text_back(known, text):
    tokenizer = characters(known + "ab\n", byte_tokens=True)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == sum(1 if c in known + "ab\n" else len(c.encode()) for c in text)


def test_bytes_that_make_no_character_do_not_hide_what_follows():
    tokenizer = characters("ab", byte_tokens=True)
    assert tokenizer.decode([*"木".encode()[:2], *tokenizer.encode("a木b")]).endswith("a木b")


@given(hard_text)
def test_an_id_is_the_index_among_the_sorted_characters(text):
    symbols = sorted(set(text))
    tokenizer = characters(text)
    assert tokenizer.vocab_size == len(symbols) and tokenizer.end_of_text is None
    assert tokenizer.encode(text).tolist() == [symbols.index(c) for c in text]


def test_the_end_of_text_is_one_more_id_and_moves_none():
    plain, ended = characters("hello"), characters("hello", end_of_text=True)
    assert ended.encode("hello").tolist() == plain.encode("hello").tolist()
    assert (ended.vocab_size, ended.end_of_text) == (plain.vocab_size + 1, plain.vocab_size)


def test_bpe_learns_words():
    text = readable(4000)
    assert 0 < len(train_bpe([text], 400).encode(text)) < len(text) / 2
    assert len(train_bpe([text], 400).encode(CHINESE)) == len(CHINESE.encode())  # of what it never met, the bytes


# ---- the library as oracle ----


@given(data=st.data())
def test_ids_are_the_librarys(any_tokenizer, data):
    known = HARD + list(readable(200)) + list(CHINESE)
    text = data.draw(st.lists(st.sampled_from(known), max_size=30).map("".join))
    if END_OF_TEXT in text:  # "<|endoftext" and "|>" met
        return
    ids = any_tokenizer.encode(text)
    inner = reloaded(any_tokenizer)
    assert ids.tolist() == inner.encode(text, add_special_tokens=False).ids
    assert inner.decode(ids.tolist(), skip_special_tokens=False) == any_tokenizer.decode(ids) == text


def test_saved_and_loaded_is_the_same(any_tokenizer, tmp_path):
    text = readable(1000, seed=1) + CHINESE
    (tmp_path / "tokenizer.json").write_text(any_tokenizer.to_json(), encoding="utf-8")
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.to_json() == any_tokenizer.to_json()
    assert again.encode(text).tolist() == any_tokenizer.encode(text).tolist() != []
    assert type(again) is type(any_tokenizer)
    for name in ("vocab_size", "end_of_text"):
        assert getattr(again, name) == getattr(any_tokenizer, name), name


def test_transformers_reads_it_as_the_same(any_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    from sampan.checkpoint.folder import save_description
    from sampan.config import ModelSettings
    from sampan.model.shape import resolve

    text = readable(500, seed=2) + CHINESE + " a , s . 's  !"  # which a clean-up would change
    model = resolve(ModelSettings(n_layer=1, n_head=1, n_embd=8, vocab_size=any_tokenizer.vocab_size))
    save_description(tmp_path, model, any_tokenizer)
    wanted = any_tokenizer.encode(text).tolist()
    for theirs in (
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")),
        transformers.AutoTokenizer.from_pretrained(str(tmp_path)),
    ):
        assert theirs(text)["input_ids"] == wanted
        assert theirs.decode(wanted) == text
    assert theirs.eos_token_id == any_tokenizer.end_of_text


def with_settings(**settings) -> Inner:
    """A byte-level library tokenizer with something that Sampan's own do not have."""
    inner = Inner.from_str(train_bpe([readable(2000)], 300).to_json())
    for name, value in settings.items():
        setattr(inner, name, value)
    return inner


UNUSUAL = {
    "prefix space": lambda: with_settings(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no words": lambda: with_settings(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "lowercase": lambda: with_settings(normalizer=normalizers.Lowercase()),
    "llama 3": lambda: with_settings(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(
                        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                    ),
                    "isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
}


def words_learnt_across_spaces() -> Inner:
    """A byte-level BPE that was trained with no cut at all, so that its tokens hold spaces."""
    from tokenizers import trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(readable(4000).split("\n"), trainer)
    return inner


@pytest.mark.parametrize("kind", ["english", "chinese", "spaces", "one word"])
@pytest.mark.parametrize("make", [*UNUSUAL.values(), words_learnt_across_spaces], ids=[*UNUSUAL, "superwords"])
def test_somebody_elses_tokenizer_encodes_as_the_library_does(monkeypatch, make, kind):
    """Whatever cutting into pieces may do, the ids are those of the whole text."""
    monkeypatch.setattr(sampan.tokens.byte_level, "PIECE_CHARACTERS", 50)
    inner, text = make(), long_text(kind)
    assert open_tokenizer(inner).encode(text).tolist() == inner.encode(text, add_special_tokens=False).ids


def test_truncation_and_padding_of_a_file_do_not_touch_a_text(monkeypatch, tmp_path):
    """A tokenizer.json of the hub may ask for both, for batches of a classifier."""
    monkeypatch.setattr(sampan.tokens.byte_level, "PIECE_CHARACTERS", 50)
    inner, text = with_settings(), readable(2000)
    wanted = inner.encode(text, add_special_tokens=False).ids
    inner.enable_truncation(8)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path / "tokenizer.json").encode(text).tolist() == wanted


# ---- pieces ----


@given(st.text(alphabet="ab1 \n\u3000中，'-", max_size=200), st.integers(1, 20))
def test_pieces_are_the_text_cut_before_a_separator_after_a_letter(text, size):
    before = sampan.tokens.byte_level.PIECE_CHARACTERS
    sampan.tokens.byte_level.PIECE_CHARACTERS = size
    try:
        pieces = list(split_pieces(text))
    finally:
        sampan.tokens.byte_level.PIECE_CHARACTERS = before
    assert "".join(pieces) == text
    assert all(len(p) >= size for p in pieces[:-1])
    assert all(left[-1].isalpha() and right[0] in SEPARATORS for left, right in itertools.pairwise(pieces) if right)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("kind", ["english", "chinese", "spaces", "one word"])
def test_pieces_give_the_ids_of_the_whole(monkeypatch, bpe, kind, size):
    text = long_text(kind)
    whole = reloaded(bpe).encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(sampan.tokens.byte_level, "PIECE_CHARACTERS", size)
    assert len(list(split_pieces(text))) > 1 or kind == "one word"
    assert bpe.encode(text).tolist() == whole


@given(text=hard_text, size=st.integers(1, 8))
def test_pieces_of_hard_text_too(bpe, text, size):
    before = sampan.tokens.byte_level.PIECE_CHARACTERS
    sampan.tokens.byte_level.PIECE_CHARACTERS = size
    try:
        ids = bpe.encode(text)
    finally:
        sampan.tokens.byte_level.PIECE_CHARACTERS = before
    assert ids.tolist() == bpe.inner.encode(text, add_special_tokens=False).ids


# ---- tiktoken for tokenizers ----


@given(
    text=st.lists(st.sampled_from([*HARD, "the", " boat", "'ll", "舢板", "  ", "123"]) | st.text(max_size=8)).map(
        "".join
    )
)
def test_the_fast_way_gives_the_librarys_ids(bpe, text):
    assert bpe.fast is not None
    if text:
        assert bpe.encode_fast(text).tolist() == bpe.inner.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["english", "chinese", "spaces", "one word"])
def test_a_long_text_goes_the_fast_way_and_gives_the_same(bpe, kind):
    text = long_text(kind) * 20
    assert len(text) > PIECE_CHARACTERS
    wanted = bpe.inner.encode(text, add_special_tokens=False).ids
    assert bpe.encode(text).tolist() == wanted


def test_a_million_spaces_are_encoded():
    tokenizer = train_bpe([readable(2000)], 300)
    text = "a" + " " * 1_000_000 + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def with_model(change) -> Inner:
    config = json.loads(train_bpe([readable(4000)], 400).to_json())
    change(config["model"])
    return Inner.from_str(json.dumps(config))


def swap_merges(model: dict) -> None:
    """A list of merges out of the order of their ids, as somebody may have put tokens in front."""
    model["merges"][0], model["merges"][1] = model["merges"][1], model["merges"][0]


def unreachable(model: dict) -> None:
    """A token that its own bytes do not give: another merge comes first."""
    model["vocab"] |= {"zq": 400, "qz": 401, "zqz": 402}
    model["merges"] += [["z", "q"], ["q", "z"], ["z", "qz"]]


@pytest.mark.parametrize("change", [swap_merges, unreachable])
def test_what_tiktoken_would_encode_otherwise_stays_with_the_library(change):
    tokenizer = open_tokenizer(with_model(change))
    assert tokenizer.fast is None
    text = readable(3000) * 8 + "zqzqz" * 9
    assert tokenizer.encode(text).tolist() == tokenizer.inner.encode(text, add_special_tokens=False).ids


def test_the_end_of_text_follows_each_document(any_tokenizer):
    end = any_tokenizer.end_of_text
    for one, two in (("the", "boat"), (readable(9000) + CHINESE, readable(9000, seed=1) + CHINESE)):
        wanted = [*any_tokenizer.encode(one), end, *any_tokenizer.encode(two), end]
        assert any_tokenizer.encode(one + two, ends=[len(one), len(one + two)]).tolist() == wanted
    assert characters("ab").encode("ab", ends=[1, 2]).tolist() == [0, 1]


@given(documents=st.lists(st.text(alphabet="ab ，木🙂", min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_vocabulary_without_an_end_keeps_documents_apart(documents):
    for tokenizer in (characters("ab ", byte_tokens=True), open_tokenizer(with_settings()), no_end()):
        end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        ends = np.cumsum([len(document) for document in documents]).tolist()
        wanted = [i for document in documents for i in [*tokenizer.encode(document).tolist(), *end]]
        assert tokenizer.encode("".join(documents), ends=ends).tolist() == wanted


def no_end() -> Tokenizer:
    description = json.loads(train_bpe([readable(2000)], 300).to_json())
    description["added_tokens"] = []
    description["model"]["vocab"] = {t: i for t, i in description["model"]["vocab"].items() if t != END_OF_TEXT}
    return open_tokenizer(Inner.from_str(json.dumps(description)))


# ---- the tokens that begin and end a text ----

MARKS = ["<pad>", "<eos>", "<bos>", "</s>", "<|im_end|>", "<|endoftext|>"]


def marked(special=("<pad>", "<eos>", "<bos>"), begins=()) -> Inner:
    """A tokenizer of letters with ids 0 to 5 as Gemma 3 has them: its </s> is HTML's, and no special token."""
    inner = Inner(models.BPE({token: i for i, token in enumerate([*MARKS, *"abcdefg"])}, []))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(list(special))
    if begins:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{' '.join(begins)} $A", special_tokens=[(token, MARKS.index(token)) for token in begins]
        )
    return inner


FOLDERS = {
    "a special token's name": ({}, [1]),
    "tokenizer_config": ({"tokenizer_config.json": {"eos_token": "<|im_end|>"}}, [4]),
    "tokenizer_config, a table": ({"tokenizer_config.json": {"eos_token": {"content": "</s>", "lstrip": False}}}, [3]),
    "special_tokens_map": ({"special_tokens_map.json": {"eos_token": "</s>"}}, [3]),
    "config": ({"config.json": {"eos_token_id": 5}}, [5]),
    "config, several": ({"config.json": {"eos_token_id": [1, 4]}}, [1, 4]),
    "generation_config": ({"generation_config.json": {"eos_token_id": 4}, "config.json": {"eos_token_id": 3}}, [4, 3]),
    "all": (
        {
            "tokenizer_config.json": {"eos_token": "<|im_end|>"},
            "generation_config.json": {"eos_token_id": [4, 5]},
            "config.json": {"eos_token_id": 4},
        },
        [4, 5],
    ),
    "GPT2Config's default in another vocabulary": ({"config.json": {"eos_token_id": 50256}}, [1]),
    "an ordinary token": ({"config.json": {"eos_token_id": 8}}, [1]),
    "nonsense": (
        {"config.json": {"eos_token_id": ["x", None, True, -1, 1 << 40]}, "tokenizer_config.json": {"eos_token": 7}},
        [1],
    ),
}


@pytest.mark.parametrize("files, ends", FOLDERS.values(), ids=FOLDERS)
def test_the_files_beside_say_which_tokens_end_a_text(files, ends, tmp_path):
    marked().save(str(tmp_path / "tokenizer.json"))
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path)
    assert (tokenizer.ends, tokenizer.end_of_text, tokenizer.stops) == (ends, ends[0], frozenset(ends))
    assert tokenizer.encode("ab", ends=[1, 2]).tolist() == [6, ends[0], 7, ends[0]]
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy, 64)
    assert read_tokenizer(copy).ends == ends


@pytest.mark.parametrize("name", ["<eos>", "<｜end▁of▁sentence｜>", "<EOT>", "</s>", "<|end_of_text|>", "<|im_end|>"])
def test_the_end_of_text_is_known_by_many_names(name):
    tokenizer = open_tokenizer(Inner(models.BPE({"a": 0, name: 1, "<b>": 2}, [])))
    assert tokenizer.ends == [1]


def test_what_the_template_begins_a_text_with_is_before_each_document(tmp_path):
    transformers = pytest.importorskip("transformers")
    inner = marked(begins=["<bos>"])
    tokenizer = open_tokenizer(inner)
    assert tokenizer.begin == (2,)
    assert tokenizer.encode("abc", ends=[1, 3]).tolist() == [6, 1, 2, 7, 8, 1]  # the first is not encode's to begin
    assert tokenizer.encode("abc", ends=[1]).tolist() == [6, 1, 2, 7, 8]
    tokenizer.save(tmp_path, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs("bc")["input_ids"] == [*tokenizer.begin, *tokenizer.encode("bc")] == [2, 7, 8]


def test_a_prepared_folder_begins_and_ends_documents_as_the_model_does(tmp_path):
    marked(begins=["<bos>"]).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}')
    Path("docs").mkdir()
    for name in "abcd":
        Path("docs", f"{name}.txt").write_text(name * 3)
    data = prepare("docs", DataConfig(tokenizer=str(tmp_path), val_fraction=0.25))
    documents = [[2, i, i, i, 4] for i in range(6, 10)]
    assert data.train.tolist() == [i for ids in documents[:3] for i in ids] and data.val.tolist() == documents[3]
    assert (data.tokenizer.ends, data.tokenizer.begin) == ([4], (2,))
    assert data.tokenizer.beside.chat_template == "{{ messages }}"
    assert prepare("docs", DataConfig(tokenizer=str(tmp_path), val_fraction=0.25)).folder == data.folder
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    changed = prepare("docs", DataConfig(tokenizer=str(tmp_path), val_fraction=0.25))
    assert changed.train.tolist()[4] == 3 and changed.tokenizer.beside.chat_template is None


def test_transformers_finds_in_the_copy_what_the_original_had(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, copy = tmp_path / "original", tmp_path / "copy"
    for path in (folder, copy):
        path.mkdir()
    marked().save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "bos_token": "<bos>",
        "pad_token": "<pad>",
        "chat_template": "{{ messages[0] }}",
    }
    generation = {"eos_token_id": [4, 5], "bos_token_id": 2, "pad_token_id": 0, "temperature": 0.7}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GemmaTokenizer"}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = read_tokenizer(folder)
    tokenizer.save(copy, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(str(copy))
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (4, 2, 0)
    assert theirs.chat_template == "{{ messages }}"
    assert json.loads((copy / "generation_config.json").read_text()) == generation
    assert tokenizer.config_ids() == {"bos_token_id": 2, "eos_token_id": [4, 5], "pad_token_id": 0}
    characters("ab").save(copy)  # another tokenizer leaves nothing of it
    assert [path.name for path in copy.iterdir()] == ["tokenizer.json"]


def test_a_tokenizer_says_which_ids_it_has():
    inner = Inner(models.WordLevel({"a": 0, "b": 3}))
    assert open_tokenizer(inner).has_token(6).tolist() == [True, False, False, True, False, False]
    assert open_tokenizer(inner).has_token(2).tolist() == [True, False]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_a_damaged_file_beside_is_one_sentence_with_its_path(name, tmp_path):
    marked().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text("[1")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_tokenizer(tmp_path)


# ---- folders without a tokenizer.json ----


def write_gpt2(folder: Path) -> None:
    described = json.loads(train_bpe([readable(4000) + CHINESE * 20], 400).to_json())["model"]
    (folder / "vocab.json").write_text(json.dumps(described["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in described["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def write_bert(folder: Path) -> None:
    symbols = sorted({c for c in CHINESE if not c.isspace()} | set("abcdefghijklmnop"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *symbols, "##a", "##b", "##o", "##at", "boat"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "write, config, name",
    [
        (write_gpt2, {}, "GPT2Tokenizer"),
        (write_gpt2, {"add_prefix_space": True, "add_bos_token": True, "bos_token": "<|endoftext|>"}, "GPT2Tokenizer"),
        (write_bert, {}, "BertTokenizer"),
        (write_bert, {"do_lower_case": False, "cls_token": "[MASK]", "sep_token": "[PAD]"}, "BertTokenizer"),
    ],
)
def test_a_folder_with_older_files_is_read_as_transformers_reads_it(write, config, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))
    tokenizer, theirs = read_tokenizer(tmp_path), getattr(transformers, name).from_pretrained(str(tmp_path))
    for text in (CHINESE, readable(500), " two  spaces\n\n龘 Boat boats", "船" * 200):
        ids = theirs(text)["input_ids"]
        ours = tokenizer.encode(text).tolist()
        assert len(ours) > 1 and ids[: len(ids) - (name == "BertTokenizer")] == [*tokenizer.begin, *ours]
    assert tokenizer.vocab_size == len(theirs)
    assert tokenizer.end_of_text == (theirs.sep_token_id if name == "BertTokenizer" else theirs.eos_token_id)
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy, 64)
    assert transformers.AutoTokenizer.from_pretrained(str(copy))(text)["input_ids"] == ids


def test_a_fingerprint_changes_with_each_file_that_says_what_tokens_are(tmp_path):
    write_gpt2(tmp_path)
    path, seen = tmp_path / "vocab.json", set()
    for name, text in (
        ("vocab.json", path.read_text(encoding="utf-8")),
        ("merges.txt", "#version: 0.2\n"),
        ("added_tokens.json", "{}"),
        ("tokenizer_config.json", '{"eos_token": "a"}'),
        ("config.json", '{"eos_token_id": 3}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        seen.add(fingerprint(path))
    assert len(seen) == 5
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a", "model_max_length": 64}')
    assert fingerprint(path) in seen


def test_what_a_tokenizer_does_not_keep_is_said(tmp_path):
    write_bert(tmp_path)
    Path("t.txt").write_text(("Boat\u9f98\u6c34\n" * 50), encoding="utf-8")
    data = prepare("t.txt", DataConfig(tokenizer=str(tmp_path)))
    assert data.meta.unknown == 50 and data.meta.unknown_most == ["\u9f98"]
    said = " ".join("\n".join(data.summary()).split())
    assert (
        "does not keep line ends, capital letters, accents, repeated spaces, spaces between Chinese characters" in said
    )
    assert "50 characters or words that the tokenizer lacks became its unknown token, most often \u9f98" in said
    for tokenizer in ("char", "char+bytes", "bpe:300"):
        data = prepare("t.txt", DataConfig(tokenizer=tokenizer))
        assert data.meta.unknown == 0 and data.meta.losses == []


def test_a_prompt_says_what_became_the_unknown_token(caplog):
    tokenizer = words()
    shape = resolve(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=tokenizer.vocab_size))
    engine = open_engine(shape, SampleConfig(engine="c"))
    engine.load(initialize(shape, 0))
    list(write(engine, shape, tokenizer, "the old boat", SampleConfig(max_new_tokens=1)))
    assert "1 characters or words that the tokenizer lacks became its unknown token, most often old" in caplog.text


def proto(*fields) -> bytes:
    """A protobuf message of (number, value), value an int below 128, a float or bytes."""
    made = b""
    for number, value in fields:
        kind = {int: 0, bytes: 2, float: 5}[type(value)]
        value = bytes([value]) if kind == 0 else struct.pack("<f", value) if kind == 5 else bytes([len(value)]) + value
        made += (
            bytes([number << 3 | kind]) if number < 16 else bytes([number << 3 & 0x7F | 0x80 | kind, number >> 4])
        ) + value
    return made


def sentence_piece(kind: int, *rules, **options) -> bytes:
    """A SentencePiece model: <unk>, <s>, </s> and a few pieces with their scores."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256) if "bytes" in options]
    pieces += [(t, -float(i + 5), 1) for i, t in enumerate(["ab", "▁ab", "c", "a", "b", "▁", "d"])]
    pieces += [("[x]", 0.0, 4)]
    messages = [(1, proto((1, t.encode()), (2, score), (3, k))) for t, score, k in pieces]
    trainer = proto((3, kind), (35, 1)) if "bytes" in options else proto((3, kind))
    return proto(*messages, (2, trainer), (3, proto(*rules)))


@pytest.mark.parametrize("kind", [1, 2], ids=["unigram", "bpe"])
def test_a_sentencepiece_model_is_read(kind, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece(kind))
    tokenizer = read_tokenizer(tmp_path)

    def tokens(text: str) -> list[str]:
        return [tokenizer.inner.id_to_token(i) for i in tokenizer.encode(text)]

    assert tokens("abc  ab") == ["▁ab", "c", "▁ab"]
    assert tokens("d[x]ab") == ["▁", "d", "[x]", "ab"]
    assert tokens("é") == ["▁", "<unk>"] and tokenizer.unknowns == {"é": 1}
    assert tokenizer.decode(tokenizer.encode("abc dab")) == "abc dab"
    assert tokenizer.end_of_text == 2
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece(kind, (3, 0), (4, 0), bytes=True))
    tokenizer = read_tokenizer(tmp_path / "tokenizer.model")
    assert tokens(" ab  abé") == ["▁ab", "▁", "▁ab", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode(" ab  dé\n")) == " ab  dé\n"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "options",
    [{}, {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
     {"add_dummy_prefix": False, "user_defined_symbols": ["<b>", "舢板"], "normalization_rule_name": "identity",
      "remove_extra_whitespaces": False}],
    ids=["default", "Llama's", "Gemma's"],
)  # fmt: skip
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(kind, options, tmp_path):
    library = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text(readable(20_000) + CHINESE * 20, encoding="utf-8")
    size = 400 + 256 * ("byte_fallback" in options)
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=size, model_type=kind,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = read_tokenizer(tmp_path)
    for text in (*HARD, readable(300, seed=3), CHINESE, "  two  spaces \n", "<b>舢板舢", ""):
        if "\0" not in text:  # the end of a text, for SentencePiece
            assert tokenizer.encode(text).tolist() == theirs.encode(text), text


NOT_READ = {
    "another class": (
        {"vocab.txt": "a\n", "tokenizer_config.json": '{"tokenizer_class": "CpmTokenizer"}'},
        "from_pretrained",
    ),
    "no merges": ({"vocab.json": "{}"}, "merges.txt is missing"),
    "odd merges": ({"vocab.json": "{}", "merges.txt": "a b c\n"}, "two tokens"),
    "no json": ({"vocab.json": "[", "merges.txt": ""}, "JSON"),
    "not SentencePiece": ({"tokenizer.model": "aGVsbG8= 0\n"}, "SentencePiece"),
    "an empty model": ({"tokenizer.model": ""}, "SentencePiece"),
    "other ids": ({"vocab.txt": "a\nb\n[UNK]\n", "added_tokens.json": '{"<x>": 7}'}, "should have id 7"),
}


@pytest.mark.parametrize("files, sentence", NOT_READ.values(), ids=NOT_READ)
def test_older_files_that_cannot_be_read_are_one_sentence(files, sentence, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_tokenizer(tmp_path)


@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_damaged_sentencepiece_model_is_one_sentence(tmp_path_factory, bytes_, place):
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    whole = sentence_piece(2)
    path.write_bytes(whole[:place] + bytes_ + whole[place + len(bytes_) :])
    with contextlib.suppress(UserError):
        read_tokenizer(path)


def test_every_kind_is_in_the_help_and_can_be_found():
    shown = next(f for f in fields(DataConfig) if f.name == "tokenizer").metadata["help"]
    assert shown.startswith(names_of_kinds())
    for kind in KINDS:
        assert find_kind(kind.label.replace("SIZE", "300"))[0] is kind


# ---- characters that are not known ----


@given(st.text(alphabet="ab\n", max_size=10), st.characters(exclude_characters="ab\n", exclude_categories=["Cs"]))
def test_an_unknown_character_is_named_with_its_position(before, unknown):
    with pytest.raises(UserError) as error:
        characters("ab\n").encode(before + unknown + "a?")
    assert f"U+{ord(unknown):04X}" in str(error.value)
    assert f"character {len(before) + 1} of the text" in str(error.value)


@given(hard_text, hard_text)
def test_skip_leaves_out_what_is_unknown(known, text):
    tokenizer = characters(known)
    ids = tokenizer.encode(text, oov="skip")
    assert tokenizer.decode(ids) == "".join(c for c in text if c in known)


UNKNOWN_TOKEN = {
    "wordlevel": lambda: Inner(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]")),
    "bpe": lambda: Inner(models.BPE({"[UNK]": 0, "a": 1, "b": 2}, [], unk_token="[UNK]")),
    "unigram": lambda: Inner(models.Unigram([("[UNK]", 0.0), ("a", -1.0), ("b", -1.0)], 0)),
}


@pytest.mark.parametrize("make", UNKNOWN_TOKEN.values(), ids=UNKNOWN_TOKEN)
def test_an_unknown_token_of_another_tokenizer_is_used_and_counted(make):
    inner = make()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = open_tokenizer(inner)
    assert tokenizer.encode("ab龍a").tolist() == [1, 2, 0, 1]
    assert tokenizer.unknowns == {"龍": 1}
    assert tokenizer.encode("ab龍a龍", oov="skip").tolist() == [1, 2, 1]
    assert tokenizer.unknowns == {"龍": 3}


def words(**added) -> Tokenizer:
    """A word-level tokenizer as WikiText's; `added` are keywords of its <unk> as an added token."""
    inner = Inner(models.WordLevel({"<unk>": 0, "the": 1, "boat": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if added:
        inner.add_special_tokens([AddedToken("<unk>", **added)])
    return open_tokenizer(inner)


@pytest.mark.parametrize("added", [{}, {"lstrip": True}, {"rstrip": True}], ids=str)
def test_a_text_with_the_unknown_tokens_own_name_has_nothing_unknown(added):
    """As WikiText has it."""
    tokenizer = words(**added)
    for oov in ("error", "skip"):
        assert tokenizer.encode("the <unk> boat", oov).tolist() == [1, 0, 2]
    assert not tokenizer.unknowns


def test_an_unknown_word_is_named_as_a_word():
    inner = Inner(models.WordLevel({"the": 0, "boat": 1}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for text in ("the boat sails", "the sails"):
        with pytest.raises(UserError, match=f"no 'sails', at character {text.index('s') + 11} of the text"):
            open_tokenizer(inner).encode(text, before=10)


def test_an_unknown_word_is_counted_as_a_word():
    tokenizer = words()
    assert tokenizer.encode("the <unk> old boat", before=100).tolist() == [1, 0, 0, 2]
    assert tokenizer.unknowns == {"old": 1}


@pytest.mark.parametrize("long", [False, True])
def test_a_byte_that_a_vocabulary_lacks_is_an_error(long):
    """A byte-level BPE that was trained without the whole alphabet, as most tutorials do."""
    from tokenizers import trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.train_from_iterator([readable(2000)], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    tokenizer, text = open_tokenizer(inner), readable(40_000 if long else 200)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(UserError, match=rf"U\+6C34.*character {len(text) + 11:,} of the text"):
        tokenizer.encode(text + "水x水", before=10)
    assert tokenizer.encode(f"{text}水 {text}水", "skip", [len(text) + 1]).tolist() == [
        *tokenizer.encode(text), *tokenizer.encode(" " + text)
    ]  # fmt: skip


def test_words_that_are_no_characters_are_not_taken_for_characters():
    inner = Inner(models.WordLevel({"to": 0, "be": 1, "a": 2}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "removed")
    assert open_tokenizer(inner).encode("to be a").tolist() == [0, 1, 2]


def test_characters_with_a_normalizer_go_through_it():
    inner = characters("abc").inner
    inner.normalizer = normalizers.Lowercase()
    assert open_tokenizer(inner).encode("aBC").tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff"])
def test_half_a_surrogate_pair_is_one_sentence(any_tokenizer, text):
    """The operating system gives such strings for arguments that are not UTF-8."""
    with pytest.raises(UserError):
        any_tokenizer.encode(text)


# ---- training ----


@pytest.mark.parametrize("size", [257, 258, 300, 1000])
def test_a_trained_vocabulary_has_the_size_that_was_asked_for(size):
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(2000))
    tokenizer = train_bpe([text], size)
    assert tokenizer.vocab_size == len(tokenizer.inner.get_vocab()) == size
    assert tokenizer.end_of_text is not None


@pytest.mark.parametrize("size", [257, 258, 300, 399, 400])
def test_the_first_merges_are_the_smaller_vocabulary(bpe, size):
    small = train_bpe([readable(4000) + CHINESE * 20], size)
    assert json.loads(first_merges(bpe, size).to_json()) == json.loads(small.to_json())


def test_a_text_too_small_for_it_gives_a_smaller_one():
    assert 257 < train_bpe(["to be or not to be " * 3], 5000).vocab_size < 5000


@pytest.mark.parametrize("size", [0, 1, 256])
def test_too_small_a_vocabulary_is_one_sentence_with_the_smallest(size):
    with pytest.raises(UserError, match=r"at least 257|more than 256"):
        train_bpe(["text"], size)


def test_too_large_a_vocabulary_is_one_sentence():
    """The library aborts the process where it cannot have the memory; so this asks for more than it can
    count."""
    with pytest.raises(UserError):
        train_bpe(["text"], 1 << 70)


def test_training_is_deterministic_and_cutting_into_pieces_does_not_change_it(monkeypatch):
    text = readable(5000) + CHINESE * 10
    first = train_bpe([text], 400).to_json()
    assert train_bpe([text], 400).to_json() == first
    monkeypatch.setattr(sampan.tokens.byte_level, "PIECE_CHARACTERS", 40)
    assert train_bpe([text], 400).to_json() == first
    assert train_bpe([readable(5000, seed=9)], 400).to_json() != first


RUNS = {
    "digits": lambda rng, n: "".join(rng.choices("0123456789", k=n)),
    "letters": lambda rng, n: "".join(rng.choices("ACGT", k=n)),
    "chinese": lambda rng, n: "".join(rng.choices("舢板有三块木", k=n)),
    "spaces": lambda rng, n: " " * n,
    "signs": lambda rng, n: "".join(rng.choices("=_-*", k=n)),
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_a_long_run_without_a_break_is_learnt_in_short_pieces(monkeypatch, make):
    """Learning takes time with the square of a word; of 400,000 digits in one line it would never end."""
    monkeypatch.setattr(sampan.tokens.byte_level, "RUN_CHARACTERS", 2000)
    run, text = make(random.Random(0), 10_000), readable(2000)
    mark = "," if run.isdigit() else "5"
    pieces = list(training_pieces([f"{text}{mark}{run}{mark}{text}"]))
    short = [piece for piece in pieces if piece in run]
    assert 1900 <= sum(map(len, short)) <= 2000 and max(map(len, short)) <= 32
    assert "".join(piece for piece in pieces if piece not in short) == f"{text}{mark}{mark}{text}"
    tokenizer = train_bpe([run], 300)
    assert tokenizer.vocab_size > 260 and tokenizer.decode(tokenizer.encode(run)) == run


def test_ordinary_texts_are_learnt_as_they_are():
    text = readable(20_000) + CHINESE * 100 + "a" * 63 + "\n" * 63
    assert list(training_pieces([text])) == list(split_pieces(text))


def test_ctrl_c_ends_the_learning_at_once():
    is_over = threading.Event()

    def learn(pieces):
        is_over.wait(20)  # in a library, which does not look

    threading.Timer(0.2, _thread.interrupt_main).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(learn, iter(()))
    assert time.monotonic() - start < 10
    is_over.set()
    with pytest.raises(ZeroDivisionError):  # what the library raises
        interruptible(lambda pieces: print(1 / len(list(pieces))), iter(()))


# ---- files that are none ----


def broken(change) -> str:
    config = json.loads(characters("abc").to_json())
    change(config)
    return json.dumps(config)


MALFORMED = {
    "empty": "",
    "not json": "{", "a list": "[]", "a number": "1", "null": "null", "empty object": "{}",
    "deep": "[" * 100_000,
    "no model": broken(lambda c: c.pop("model")),
    "null model": broken(lambda c: c.update(model=None)),
    "unknown model": broken(lambda c: c["model"].update(type="Magic")),
    "vocabulary of strings": broken(lambda c: c["model"].update(vocab={"a": "0"})),
    "negative id": broken(lambda c: c["model"].update(vocab={"a": -1})),
    "unknown pre-tokenizer": broken(lambda c: c.update(pre_tokenizer={"type": "Magic"})),
    "bad pattern": broken(lambda c: c["pre_tokenizer"].update(pattern={"Regex": "("})),
    "merge of unknown tokens": json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}),
}  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_sentence_with_its_path(text):
    Path("tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer("tokenizer.json")


def test_a_file_that_is_no_text_or_not_there():
    Path("tokenizer.json").write_bytes(b"\xff\x00\x80")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer("tokenizer.json")
    with pytest.raises(UserError, match=r"nothing\.json.*No such file"):
        read_tokenizer("nothing.json")


@pytest.mark.parametrize("vocabulary", [{}, {"a": 0, "b": 0}, {"a": 5, "b": 70_000}, {"a": 4_000_000_000}])
def test_a_strange_vocabulary_is_read_or_refused(vocabulary):
    Path("tokenizer.json").write_text(broken(lambda c: c["model"].update(vocab=vocabulary)))
    try:
        tokenizer = read_tokenizer("tokenizer.json")
    except UserError:
        return
    assert tokenizer.vocab_size == max(vocabulary.values(), default=-1) + 1
    if "a" in vocabulary:
        assert tokenizer.encode("a").tolist() == [vocabulary["a"]]


def test_the_real_text_has_nanogpts_vocabulary(real):
    text = (real / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = characters(text)
    assert tokenizer.vocab_size == 65 and len(tokenizer.encode(text)) == len(text) == 1_115_394
    assert tokenizer.encode("\n !").tolist() == [0, 1, 2]
