"""The C sources as text: includes go down the tower, and what is generated from the package is up to date."""

import importlib.util
import re
import unicodedata
from pathlib import Path

import pytest

from sampan.config import OPTIMIZERS

CSRC = Path(__file__).parents[1] / "csrc"
TOWER = ("include", "platform", "matmul", "ops", "engine", "program")
SOURCES = sorted(path for folder in TOWER for path in (CSRC / folder).iterdir() if path.suffix in (".c", ".h", ".inc"))


def included(source: Path) -> list[Path]:
    """Return our files that a source includes."""
    names = re.findall(r'^#include "([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    folders = (source.parent, CSRC, CSRC / "include")
    return [next(f / name for f in folders if (f / name).is_file()) for name in names]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_includes_only_its_folder_and_those_below(source):
    floor = TOWER.index(source.parent.name)
    for path in included(source):
        assert TOWER.index(path.parent.name) <= floor, path
        assert path.suffix in (".h", ".inc"), f"{path} is included, and compiled by itself"


def test_what_is_only_included_is_included():
    used = {path.resolve() for source in SOURCES for path in included(source)}
    assert {path for path in SOURCES if path.suffix == ".inc"} <= used


@pytest.mark.parametrize("name", ["families.inc", "settings.inc", "unicode.inc"])
def test_generated_files_are_what_the_package_says(name):
    spec = importlib.util.spec_from_file_location("generate", CSRC / "program" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    text = (CSRC / "program" / name).read_text(encoding="utf-8")
    if name == "unicode.inc" and f"Unicode {unicodedata.unidata_version}." not in text:
        pytest.skip("this Python knows another version of Unicode")
    assert text == generate.FILES[name](), f"run: python csrc/program/generate.py, which writes {name}"


def test_both_tables_of_optimizers_agree():
    rows = re.findall(r"X\((\w+), +UPDATES_(\w+), +(\d), ", (CSRC / "ops" / "optimizers.h").read_text(encoding="utf-8"))
    found = {name: (int(moments), updates == "MATRICES") for name, updates, moments in rows}
    assert found == {name: (len(kind.moments), kind.matrices_only) for name, kind in OPTIMIZERS.items()}
