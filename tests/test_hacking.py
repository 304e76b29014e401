"""The code of docs/en/hacking.md is what the package has, and works; the Chinese page has the same code."""

import re
import sys
import types
from pathlib import Path

import pytest

from sampan.config import ExportConfig
from sampan.exchange.convert import export_model

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / language / "hacking.md").read_text(encoding="utf-8")
    return re.findall(r"```\w+\n(.*?)```", page, re.S)


def plain(text: str) -> str:
    """The text without indentation, which a block of a page does not have."""
    return "\n".join(line.strip() for line in text.splitlines())


SOURCES = ["examples/own_module.py", "examples/own_module.py", "src/sampan/config.py", "src/sampan/engine/torch/model.py",
           "csrc/matmul/activations.h", "src/sampan/model/families/qwen2.py"]  # fmt: skip


def test_the_code_on_the_page_is_the_packages():
    for source, block in zip(SOURCES, blocks("en"), strict=False):
        assert plain(block) in plain((ROOT / source).read_text(encoding="utf-8")), source
    assert len(blocks("en")) == len(SOURCES) + 1


def test_both_pages_have_the_same_code():
    assert blocks("zh") == blocks("en")


def test_an_export_format_is_a_file(make_folder, monkeypatch):
    module = types.ModuleType("sampan.exchange.npz")
    exec(blocks("en")[-1], vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    folder = make_folder("model")
    lines = export_model(str(folder), ExportConfig(to="npz"))
    assert (folder / "model.npz").is_file() and any("loaded again" in line for line in lines)


def test_a_module_of_ones_own_learns_in_the_loop(capsys):
    pytest.importorskip("torch")
    source = (ROOT / "examples" / "own_module.py").read_text(encoding="utf-8").replace("max_iters=200", "max_iters=60")
    exec(compile(source, "own_module.py", "exec"), {"__name__": "__main__"})
    found = [float(number) for number in re.findall(r"val loss (\S+)", capsys.readouterr().out)]
    assert found[0] > 1.5 and found[-1] < 0.1
