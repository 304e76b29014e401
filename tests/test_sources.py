"""sources.py: text out of any file, the same whatever its encoding, its format and the pieces that it is read in.

Encodings are Python's own codecs', which are the oracle; archives and tables are written by the libraries that others use.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import threading
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest
from conftest import readable
from helpers import sampan as program
from hypothesis import given, strategies as st

import sampan.text.encodings
from sampan.cli.main import main
from sampan.config import DataConfig
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.text.characters import blocks_of, split_at
from sampan.text.formats import clean
from sampan.text.sources import find_source

NOVEL = "第一回　張天師祈禳瘟疫\n\n話說大宋仁宗天子在位，嘉祐三年三月三日五更三點，天子駕坐紫宸殿。\n百官朝賀。\n" * 40
SIMPLE = "话说大宋仁宗天子在位，嘉祐三年三月三日五更三点，天子驾坐紫宸殿。\n但见：祥云迷凤阁，瑞气罩龙楼。\n" * 40
FRENCH = "Où est passé le garçon ? Il a été élevé à la campagne, près d’un château.\n" * 20
CHAR = DataConfig(tokenizer="char")


def write(name: str, data: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    return name


def read(*names: str, **settings) -> str:
    """The documents of a source, with a bar between them."""
    documents = map("".join, find_source(names, DataConfig(**settings)).documents())
    return "|".join(filter(None, documents))


def encoding_of(*names: str, **settings) -> dict:
    source = find_source(names, DataConfig(**settings))
    for _ in source.blocks():
        pass
    return source.findings()._asdict()


# ---- encodings ----

ENCODINGS = {
    "utf-8": (NOVEL, "utf-8", "utf-8 (detected)"),
    "with a mark": (NOVEL, "utf-8-sig", "utf-8 (byte order mark)"),
    "utf-16": (NOVEL, "utf-16", "utf-16-le (byte order mark)"),
    "utf-16-be": (NOVEL, "utf-16-be", "utf-16-be (detected)"),
    "utf-16-le": (NOVEL, "utf-16-le", "utf-16-le (detected)"),
    "utf-16 of english": (readable(3000), "utf-16-le", "utf-16-le (detected)"),
    "utf-32": (NOVEL, "utf-32", "utf-32-le (byte order mark)"),
    "gb18030": (SIMPLE, "gb18030", "gb18030 (detected)"),
    "gbk": (SIMPLE, "gbk", "gb18030 (detected)"),
    "big5": (NOVEL, "big5", "big5hkscs (detected)"),
    "latin-1": (FRENCH.replace("’", "'"), "latin-1", "cp1252 (detected)"),
    "cp1252": (FRENCH, "cp1252", "cp1252 (detected)"),
    "shift_jis": ("吾輩は猫である。名前はまだ無い。どこで生れたか。\n" * 9, "shift_jis", "cp932 (detected)"),
    "iso-2022-jp": ("吾輩は猫である。名前はまだ無い。\n" * 9, "iso2022_jp", "iso2022_jp_ext (detected)"),
    "iso-2022-kr": ("모든 행복한 가정은 서로 닮았다.\n" * 9, "iso2022_kr", "iso2022_kr (detected)"),
    "hz": (SIMPLE.replace("祐", "佑") + "~ tilde\n", "hz", "hz (detected)"),
    "euc-kr": ("모든 행복한 가정은 서로 닮았다.\n" * 9, "cp949", "cp949 (detected)"),
    "cp1251": ("Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n" * 9,
               "cp1251", "cp1251 (detected)"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "codec", "label"), ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("chunk", [1 << 20, 61])
def test_an_encoding_is_found_and_said(monkeypatch, text, codec, label, chunk):
    source = find_source([write("a.txt", text.encode(codec))], DataConfig())
    for size in (1 << 20, chunk):  # characters are cut between chunks
        monkeypatch.setattr(sampan.text.encodings, "READ_BYTES", size)
        assert "".join(block.text for block in source.blocks()) == text
        assert source.findings() == ({label: 1}, 0, [])


def test_one_novel_in_many_encodings_gives_the_same_files():
    text = SIMPLE + "天罡星、地煞星。\n"
    files = []
    for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gb18030", "utf-32"):
        write(f"{codec}/novel.txt", text.replace("\n", "\r\n").encode(codec))
        config = DataConfig(tokenizer="char+bytes", data_dir=f"data/{codec}")
        data = prepare(f"{codec}/novel.txt", config)
        names = ("train.bin", "val.bin", "tokenizer.json")
        files.append([data.meta.sha256, *[(data.folder / n).read_bytes() for n in names]])
    assert all(f == files[0] for f in files)
    assert len(files[0][1]) > 1000


def test_an_english_text_with_one_accent_far_in_is_found():
    text = readable(40_000) + "a café\n" + readable(1000)
    assert read(write("a.txt", text.encode("cp1252"))) == text


@pytest.mark.parametrize("codec", ["gb18030", "big5", "utf-16-le", "utf-16"])
def test_a_said_encoding_is_taken(codec):
    text = "天子在位"
    write("a.txt", text.encode(codec))
    assert read("a.txt", encoding=codec) == text
    assert "(as asked)" in str(encoding_of("a.txt", encoding=codec)["encodings"])


@pytest.mark.parametrize("name", ["klingon", "hex", "rot13", "zlib"])
def test_an_encoding_that_is_none_is_one_sentence(name):
    with pytest.raises(UserError, match=f"encoding={name}"):
        read(write("a.txt", "text"), encoding=name)


def test_the_wrong_encoding_is_refused_and_the_likely_one_named():
    with pytest.raises(UserError, match=r"a\.txt, line 1, column 1: cannot be read as utf-8 .*; it looks like gb18030"):
        read(write("a.txt", SIMPLE.encode("gb18030")), encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "codec"), [(NOVEL, "utf-8"), (SIMPLE, "gb18030"), ("café\n" + readable(9000), "utf-8")]
)
def test_few_bad_bytes_are_replaced_counted_and_located(text, codec):
    raw = (text * 2).encode(codec)
    cut = raw.index(b"\n", len(raw) // 2) + 1
    line = raw[:cut].count(b"\n") + 1
    write("a.txt", raw[:cut] + b"\xff" + raw[cut:])
    found = encoding_of("a.txt")
    assert found["undecodable"] == 1
    assert found["places"] == [f"a.txt, line {line:,}, column 1"]
    assert read("a.txt") == raw[:cut].decode(codec) + "\ufffd" + raw[cut:].decode(codec)
    assert "1 unreadable characters became U+FFFD: a.txt" in "\n".join(prepare("a.txt", CHAR).summary())


def test_a_binary_file_is_no_utf16_whatever_line_ends_it_has():
    numbers = random.Random(0).choices(
        [*range(1, 9), *range(0xE000, 0xE100)], k=9000
    )  # controls, and nobody's characters
    write("a.bin", b"".join(n.to_bytes(2, "little") for n in numbers) + b" \0\n\0" * 50)
    with pytest.raises(UserError, match=r"a\.bin is binary"):
        read("a.bin")


def test_many_bad_bytes_are_refused_with_the_first_place():
    raw = bytearray(NOVEL.encode())
    raw[9::50] = b"\xff" * len(raw[9::50])
    with pytest.raises(UserError, match=r"a\.txt, line 1, column [34]: cannot be read as utf-8.*--encoding"):
        prepare(write("a.txt", bytes(raw)), CHAR)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"hello caf\xc3", "hello caf\ufffd"),
        (b"hello caf\xe6\x9c", "hello caf\ufffd"),
        ("话说大宋".encode()[:-1], "话说大\ufffd"),
        ("话说大宋".encode()[:-2], "话说大\ufffd"),
        ((SIMPLE * 9)[:5000].encode("gb18030") + b"\xb4", (SIMPLE * 9)[:5000] + "\ufffd"),
        (SIMPLE.encode("utf-16")[:-1], SIMPLE[:-1] + "\ufffd"),
        (b"hello caf\xe9", "hello café"),  # a whole word in Latin-1
    ],
)
def test_a_text_may_end_within_a_character(raw, text):
    assert read(write("a.txt", raw)) == text
    assert encoding_of("a.txt")["undecodable"] == text.count("\ufffd")
    write("a.txt.gz", gzip.compress(raw))
    assert read("a.txt.gz") == text


@pytest.mark.parametrize("codec", ["gb18030", "utf-8", "big5", "hz"])
def test_a_long_line_is_cut_between_characters_to_be_looked_at(codec):
    text = (SIMPLE.replace("祐", "佑") if codec != "big5" else NOVEL).replace("\n", "") * 30
    assert len(text.encode(codec)) > 1 << 16
    assert read(write("a.txt", text.encode(codec))) == text


def test_a_zero_byte_in_a_text_is_replaced_counted_and_located():
    text = readable(60_000) + "a\0b\n" + readable(200)
    write("a.txt", text)
    assert read("a.txt") == text.replace("\0", "\ufffd")
    line = text[: text.index("\0")].count("\n") + 1
    column = text.index("\0") - text.rindex("\n", 0, text.index("\0"))
    assert encoding_of("a.txt")["places"] == [f"a.txt, line {line:,}, column {column:,}"]
    for codec, begin in (("cp1252", FRENCH), ("gb18030", SIMPLE)):
        write("b.txt", (begin + text).encode(codec))
        assert read("b.txt") == (begin + text).replace("\0", "\ufffd")


@pytest.mark.parametrize(
    "raw", [b"\0\0\0", b"a\0" * 3 + b"\1" * 9, bytes(range(256)) * 9, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]
)
def test_a_binary_file_stays_one(raw):
    with pytest.raises(UserError, match=r"a\.txt"):
        read(write("a.txt", raw))


@pytest.mark.parametrize(
    "text", ["a~{b}~{c} \\~{n}\n", "\x1b[1mbold\x1b(B\x1b[m\n", "price ~{5} and ~}\n", "\x1b$ is no escape sequence\n"]
)
def test_ascii_that_only_looks_like_an_escape_is_ascii(text):
    assert read(write("a.txt", text * 50)) == text * 50


# ---- line ends and normalisation ----


@given(st.text(alphabet="a\r\n\u0301é한中", max_size=40), st.integers(1, 5), st.sampled_from(["none", "nfc", "nfkc"]))
def test_pieces_are_cleaned_as_the_whole(text, size, form):
    whole = text.replace("\r\n", "\n").replace("\r", "\n")
    whole = whole if form == "none" else unicodedata.normalize(form.upper(), whole)
    assert "".join(clean([text[i : i + size] for i in range(0, len(text), size)], form)) == whole


@given(st.lists(st.lists(st.text(max_size=9), max_size=5), max_size=5), st.integers(1, 9))
def test_blocks_have_the_text_and_the_ends_of_the_documents(documents, size):
    blocks = list(blocks_of(documents, size))
    assert all(len(text) == size for text, _ in blocks[:-1]) and all(0 < len(text) <= size for text, _ in blocks)
    assert all(0 < end <= len(text) for text, ends in blocks for end in ends)
    again, begun = [], ""
    for text, ends in blocks:
        *whole, rest = split_at(text, ends)
        for part in whole:
            again.append(begun + part)
            begun = ""
        begun += rest
    assert again == [text for text in map("".join, documents) if text] and not begun


def test_normalize_is_a_setting():
    write("a.txt", "ﬁne cafe\u0301")
    assert [read("a.txt", normalize=n) for n in ("none", "nfc", "nfkc")] == ["ﬁne cafe\u0301", "ﬁne café", "fine café"]


# ---- formats ----

DOCUMENTS = ["one\n", "二🙂", "three\r\nlines\r"]
WANTED = "|".join(["one\n", "二🙂", "three\nlines\n"])


def parquet(name: str, rows: list, column: str = "text") -> str:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"n": list(range(len(rows))), column: rows}), name, row_group_size=2)
    return name


def archive(name: str, members: dict, **how) -> str:
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as file:
        for member, text in members.items():
            file.writestr(member, text)
    return name


def jsonl(documents=DOCUMENTS, field: str = "text") -> str:
    return "\n".join(json.dumps({"n": 1, field: d}) for d in documents) + "\n\n"


def test_every_format_gives_its_documents():
    write("a.jsonl", jsonl([DOCUMENTS[0], "", *DOCUMENTS[1:]]))
    write("a.jsonl.gz", gzip.compress(jsonl().encode()))
    parquet("a.parquet", [DOCUMENTS[0], None, "", *DOCUMENTS[1:]])
    archive("a.zip", {"1.txt": DOCUMENTS[0], "2/b.md": DOCUMENTS[1], "3.jsonl": jsonl(DOCUMENTS[2:]), "z.png": b"\0"})
    for i, text in enumerate(DOCUMENTS):
        write(f"folder/{i}.txt.gz", gzip.compress(text.encode()))
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.zip", "folder", "folder/*.gz"):
        assert read(name) == WANTED, name


def test_sources_are_read_in_the_order_given_and_none_twice():
    write("b.txt", "b"), write("t/a.txt", "a"), write("t/c.md", "c"), write("t/.hidden/d.txt", "d")
    assert read("b.txt", "t", "b.txt", "t/*") == "b|a|c"
    assert read("t", "b.txt") == "a|c|b"
    data = prepare(["b.txt", "t"], CHAR)
    assert data.folder.name == "b-and-1-more" and data.meta.documents == 3


def test_a_tree_of_code_is_a_glob():
    write("src/a.py", "a = 1\n"), write("src/x/b.py", "b = 2\n"), write("src/x/c.txt", "no")
    assert read("src/**/*.py") == "a = 1\n|b = 2\n"
    assert find_source(["src/**/*.py"], CHAR).name == "src"
    with pytest.raises(UserError, match="no file matches"):
        find_source(["src/**/*.rs"], CHAR)


def test_a_name_that_looks_like_a_glob_is_a_file_where_there_is_one():
    assert read(write("a[1].txt", "text")) == "text"


def test_another_field_holds_the_text():
    write("a.jsonl", jsonl(field="content"))
    parquet("b.parquet", DOCUMENTS, "content")
    assert read("a.jsonl", text_field="content") == read("b.parquet", text_field="content") == WANTED
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(UserError, match=f'{name}.*"text".*--text_field: n, content'):
            read(name)


@pytest.mark.parametrize("how", ["standard input", "a pipe"])
def test_what_can_be_read_once_is_read_twice(monkeypatch, how):
    text = SIMPLE.encode("gb18030")
    if how == "standard input":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        name = "-"
    else:
        os.mkfifo("pipe.txt")
        threading.Thread(target=lambda: Path("pipe.txt").write_bytes(text), daemon=True).start()
        name = "pipe.txt"
    data = prepare(name, CHAR)
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == SIMPLE
    assert data.meta.stamp is None and data.folder.name in ("stdin", "pipe")
    assert {p.name for p in Path().iterdir()} <= {"data", "pipe.txt", ".cache"}


def test_a_dataset_of_the_hub_is_read_through_the_datasets_library(monkeypatch):
    """A local folder stands for one of the hub: the library reads both alike."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", "cache")
    write("web/train.jsonl", jsonl()), write("web/validation.jsonl", jsonl(["val"]))
    source = find_source(["hf:./web"], CHAR)
    assert ["|".join(map("".join, source.documents())) for _ in range(2)] == [
        WANTED,
        WANTED,
    ]  # the second from what was kept
    assert source.name == "web" and source.stamp
    assert read("hf:./web::validation") == "val"
    with pytest.raises(UserError, match="--text_field"):
        read("hf:./web", text_field="content")


def test_the_hub_is_not_asked_offline_and_its_library_is_named(monkeypatch):
    for name in ("hf:nobody/nothing", "openwebtext"):
        with pytest.raises(UserError, match="SAMPAN_OFFLINE"):
            read(name)
    monkeypatch.delenv("SAMPAN_OFFLINE")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install datasets pyarrow"):
        read("openwebtext")
    with pytest.raises(UserError, match="pip install datasets pyarrow"):
        read(write("a.parquet", "x"))


POEMS = [
    {"title": "静夜思", "paragraphs": ["床前明月光，", "疑是地上霜。"]},
    {"title": "春晓", "paragraphs": ["春眠不觉晓"]},
]
JSON = {
    "an array": (json.dumps([{"text": d} for d in DOCUMENTS], indent=1), WANTED),
    "an array of texts": (json.dumps(DOCUMENTS, ensure_ascii=False), WANTED),
    "an object that holds it": (json.dumps({"version": 1, "data": [{"text": d} for d in DOCUMENTS]}), WANTED),
    "lines": (jsonl(), WANTED),
    "objects in many lines": ("\n".join(json.dumps({"text": d}, indent=2) for d in DOCUMENTS), WANTED),
    "a text and no more": (json.dumps({"text": "one"}), "one"),
    "null": ('[{"text": null}, {"text": "one"}]', "one"),
    "empty": ("[]", ""),
}


@pytest.mark.parametrize(("raw", "wanted"), JSON.values(), ids=JSON)
@pytest.mark.parametrize("chunk", [1 << 20, 1, 7])
def test_json_is_read_as_records(monkeypatch, raw, wanted, chunk):
    monkeypatch.setattr(sampan.text.encodings, "READ_BYTES", chunk)
    for name in ("a.json", "B.NDJSON"):
        assert read(write(name, raw)) == wanted


def test_a_text_that_is_a_list_of_lines_is_joined():
    write("a.json", json.dumps(POEMS))
    assert read("a.json", text_field="paragraphs") == "床前明月光，\n疑是地上霜。|春眠不觉晓"
    with pytest.raises(UserError, match=r"a\.json, line 1: .*--text_field: title, paragraphs"):
        read("a.json")


def test_json_that_ends_early_is_refused():
    with pytest.raises(UserError, match=r"a\.json, line 2: not JSON"):
        read(write("a.json", '[{"text": "a"},\n {"text": "b'))


def test_half_a_surrogate_pair_in_a_record_is_replaced_counted_and_located():
    write("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d!"}\n{"text": "\\ud83d\\ude00\\u0000"}\n')
    assert read("a.jsonl") == "a|\ufffd!|😀\ufffd"
    found = encoding_of("a.jsonl")
    assert (found["undecodable"], found["places"]) == (2, ["a.jsonl, line 2", "a.jsonl, line 3"])


def test_a_table_in_an_archive_and_one_with_bytes_that_are_no_text():
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    raw = pa.array([b"one", b"caf\xc3", b"a\0"], pa.binary())
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(3, *raw.buffers()[1:])}), "a.parquet")
    archive("a.zip", {"a.parquet": Path("a.parquet").read_bytes()})
    for name in ("a.parquet", "a.zip"):
        assert read(name) == "one|caf\ufffd|a\ufffd"
        found = encoding_of(name)
        assert (found["undecodable"], len(found["places"])) == (2, 2) and found["places"][0].endswith(
            "a.parquet, row 2"
        )


def test_a_large_json_is_read_in_small_memory():
    with gzip.open("a.json.gz", "wt") as file:
        file.write("[" + ",\n".join(f'{{"n": {i}, "text": "{"x" * 5000}"}}' for i in range(4_000)) + "]")
    tracemalloc.start()
    assert sum(len(text) for text, _ in find_source(["a.json.gz"], CHAR).blocks()) == 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 15 << 20
    tracemalloc.stop()


# ---- folders and archives ----


def lines_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


MIXED = {
    "A.TXT": "upper", "b.txt": "lower", "c.Md": "mark", "D.JSONL": jsonl(["line"]), "e.ndjson": jsonl(["nd"]),
    "f.json": json.dumps([{"text": "array"}]), "package.json": '{"name": "x"}', "g.csv": "x,y\n", "h.png": "\x89PNG",
    "i.PNG": "\x89PNG", "README": "no suffix", ".hidden": "no", "sub/J.txt": "below", ".git/k.txt": "no",
}  # fmt: skip
READ = "upper|lower|mark|line|nd|array|x,y\n|below"


def test_a_folder_is_read_whatever_the_case_and_what_is_left_out_is_counted(caplog):
    for name, text in MIXED.items():
        write(f"d/{name}", text)
    write("d/z.JSONL.GZ", gzip.compress(jsonl(["packed"]).encode()))
    write("d/run/run.json", "{}"), write("d/run/metrics.jsonl", "{}")
    assert read("d") == READ.replace("|below", "|below|packed")
    left_out, tables = lines_of(caplog)
    assert left_out == ('left out of d: 1 .json without "text", 2 .png, 1 folder of a run, 2 hidden, 1 without suffix')
    assert "1 .csv read as plain text" in tables


def test_a_zip_is_read_as_a_folder_is(caplog):
    members = MIXED | {"z.jsonl.gz": gzip.compress(jsonl(["packed"]).encode()), "in.zip": b"PK", "__MACOSX/b.txt": "no"}
    archive("A.ZIP", members)
    assert read("A.ZIP") == READ.replace("|below", "|below|packed")
    assert lines_of(caplog)[0] == (
        'left out of A.ZIP: 1 .json without "text", 2 .png, 1 .zip in a .zip, 3 hidden, 1 without suffix'
    )


@pytest.mark.parametrize("name", ["a.TXT.GZ", "a.txt.bz2", "a.TXT.XZ"])
def test_packed_texts(name):
    module = {"gz": gzip, "z2": bz2, "xz": lzma}[name[-2:].lower()]
    write(f"d/{name}", module.compress(NOVEL.encode()))
    assert read("d") == read(f"d/{name}") == NOVEL
    assert find_source([f"d/{name}"], CHAR).name == "a"


def test_the_program_says_what_is_left_out(monkeypatch):
    for name in ("d/A.TXT", "d/b.txt"):
        write(name, f"{name}\n" * 99)
    write("d/c.pdf", "%PDF")
    done = program("prepare", "d", "--tokenizer=char")
    assert "2 files of d, in natural order: A.TXT to b.txt" in done.stdout
    assert done.stderr == "sampan: left out of d: 1 .pdf\n"
    monkeypatch.setenv("RANK", "1")  # of torchrun; the first process has said it
    assert program("prepare", "d", "--tokenizer=char").stderr == ""


ORDERS = {
    "numbers": ["1.txt", "2.txt", "9.txt", "10.txt", "11.txt", "100.txt"],
    "inside names": ["chapter 2 b.txt", "Chapter 10 a.txt", "chapter 10 b.txt"],
    "chinese": [
        "第一回.txt",
        "第二回.txt",
        "第九回.txt",
        "第十回.txt",
        "第十一回.txt",
        "第二十回.txt",
        "第一百零五回.txt",
    ],
    "volumes": ["上册.txt", "中册.txt", "下册.txt"],
    "folders": ["part 2/1.txt", "part 2/10.txt", "part 10/1.txt"],
    "padded": ["01.txt", "2.txt", "003.txt"],
}


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_chapters_are_read_in_natural_order(names):
    for name in sorted(names):
        write(f"d/{name}", name)
    archive("d.zip", {name: name for name in sorted(names)})
    for source in ("d", "d.zip", "d/**/*.txt"):
        assert read(source) == "|".join(names)
    assert find_source(["d"], CHAR).origin.endswith(
        f"in natural order: {Path(names[0]).name} to {Path(names[-1]).name}"
    )


def test_one_unreadable_file_among_many_stops_or_is_left_out_and_named(caplog):
    write("d/1.txt", "one"), write("d/2.txt", b"\0\1\2" * 99), write("d/3.jsonl", "{"), write("d/4.zip", "PK no")
    write("d/5.txt", "five"), write("d/6.txt.gz", gzip.compress(readable(9000).encode())[:-50])
    with pytest.raises(UserError, match=r"d/4\.zip"):
        read("d")
    Path("d/4.zip").unlink()
    with pytest.raises(UserError, match=r"d/2\.txt is binary.*--skip_unreadable"):
        prepare("d", CHAR)
    write("d/4.zip", "PK no")
    source = find_source(["d"], DataConfig(skip_unreadable=True))
    for _time in range(2):
        assert "".join(block.text for block in source.blocks()) == "onefive"
    assert [line.split(":")[1].split()[0].rstrip(",") for line in lines_of(caplog)] == [
        "d/4.zip", "d/2.txt", "d/3.jsonl", "d/6.txt.gz"
    ]  # fmt: skip
    assert source.origin == "2 files of d, in natural order: 1.txt to 5.txt"


# ---- damage ----


def encrypted() -> bytes:
    archive("e.zip", {"a.txt": "text"})
    raw = bytearray(Path("e.zip").read_bytes())
    raw[6] |= 1  # the flag, in the member's header and in the directory
    raw[raw.index(b"PK\1\2") + 8] |= 1
    return bytes(raw)


def corrupt() -> bytes:
    archive("c.zip", {"a.txt": readable(5000)})
    raw = bytearray(Path("c.zip").read_bytes())
    raw[200:220] = bytes(20)
    return bytes(raw)


DAMAGED = {
    "not a zip": ("a.zip", lambda: b"PK nothing", "a.zip: cannot be read"),
    "no text in it": (
        "a.zip",
        lambda: Path(archive("n.zip", {"a.png": b"\0"})).read_bytes(),
        ".parquet .zip); left out: 1 .png; for other",
    ),
    "encrypted": ("a.zip", encrypted, "a.zip is encrypted"),
    "corrupt": ("a.zip", corrupt, "a.zip/a.txt: cannot be read"),
    "not gzip": ("a.txt.gz", lambda: b"plain text", "a.txt.gz: cannot be read"),
    "half of a gzip": ("a.txt.gz", lambda: gzip.compress(readable(9000).encode())[:-50], "a.txt.gz: cannot be read"),
    "not parquet": ("a.parquet", lambda: b"PAR1 nothing", "a.parquet: cannot be read"),
    "a folder's bad file": ("t/a.jsonl", lambda: b"{", r"t/a.jsonl, line 1"),
}


@pytest.mark.parametrize(("name", "make", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_sentence_and_writes_nothing(name, make, sentence, capfd):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    write(name, make())
    assert main(["prepare", name, "--tokenizer=char"]) == 2
    shown = capfd.readouterr().err
    assert sentence in shown and "Traceback" not in shown and shown.count("\n") == 1
    assert not Path("data").exists()


def test_members_that_would_leave_a_folder_go_nowhere():
    archive("a.zip", {"../../evil.txt": "text", "/abs.txt": " and more"})
    assert read("a.zip") == "text| and more"
    assert {p.name for p in Path().iterdir()} == {"a.zip"} and not Path("../../evil.txt").exists()


def test_a_zip_bomb_is_read_in_small_memory():
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.txt", "w") as member:
        for _ in range(200):
            member.write(b"0" * (1 << 20))
    assert Path("a.zip").stat().st_size < 1 << 20
    tracemalloc.start()
    assert sum(len(text) for text, _ in find_source(["a.zip"], CHAR).blocks()) == 200 << 20
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
