"""The examples run: each in a short form, and the notebook's cells one after the other. (In full: pytest -m full.)"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import readable

import sampan

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHORT = {
    "adder": ["--max_iters=150"],
    "sorting": ["--length=3", "--digits=3", "--max_iters=5"],
    "characters": ["text.txt", "--max_iters=5"],
    "bpe": ["text.txt", "--max_iters=5", "--vocab_size=300"],
}


@pytest.fixture
def text():
    Path("text.txt").write_text(readable(6000), encoding="utf-8")


def run(name: str, *arguments: str) -> str:
    script = [sys.executable, str(EXAMPLES / f"{name}.py")]
    where = {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}  # the package that is tested, installed or not
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=600, env=os.environ | where)
    assert done.returncode == 0, done.stderr
    return done.stdout


def share(output: str) -> float:
    """The last percentage that a program prints."""
    return float(re.findall(r"\((\d+\.\d+)%\)", output)[-1])


def test_each_example_is_tested():
    assert sorted([*SHORT, "own_module"]) == sorted(p.stem for p in EXAMPLES.glob("*.py"))  # that: test_hacking.py


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs(name, text):
    output = run(name, *SHORT[name])
    assert "parameters" in output
    if name == "characters":
        assert Path("out/characters/model.safetensors").exists()
    if name == "adder":  # a random answer is right in one of a thousand
        assert share(output) > 50


@pytest.mark.full
def test_sums_and_sequences_are_learnt():
    assert share(run("adder")) > 99
    assert share(run("adder", "--digits=3", "--max_iters=1000")) > 99
    assert share(run("sorting")) > 99


def cells(name: str) -> list[dict]:
    return [c for c in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(text):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    names = {}
    for cell in cells("from_text_to_samples.ipynb"):
        parameters = "parameters" in cell["metadata"].get("tags", ())
        source = "text_name, max_iters = 'text.txt', 3" if parameters else "".join(cell["source"])
        exec(compile(source, "notebook", "exec"), names)
    assert [r.step for r in names["steps"]] == [0, 1, 2] and names["p"].sum(axis=1) == pytest.approx(1.0)


def test_the_notebook_is_small_and_was_run():
    assert (EXAMPLES / "from_text_to_samples.ipynb").stat().st_size < 200_000
    assert all(cell["execution_count"] for cell in cells("from_text_to_samples.ipynb"))
