"""What every test stands on: no network, a folder of its own, and small things to work with.

A test's working directory is its tmp_path. So is its cache: nothing is read from the developer's, and
nothing from another test's. Hypothesis is deterministic here and keeps no database: a failure comes again.
"""

import importlib.util
import logging
import os
import random
from pathlib import Path

import hypothesis
import pytest

if importlib.util.find_spec("sampan") is None:
    pytest.exit("sampan is not installed; the tests see only what is installed: pip install -e '.[test]'", returncode=4)

from sampan.config import FAMILIES, ModelSettings
from sampan.messages import set_language
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve

if os.environ.get("PYTEST_XDIST_WORKER"):  # there is a process for each core already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile(
    "sampan", max_examples=50, deadline=None, database=None, derandomize=True, print_blob=False
)
hypothesis.settings.load_profile("sampan")

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"  # texts that no commit holds


@pytest.fixture(autouse=True)
def hermetic(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # the program's messages in English
    set_language("en")
    logging.getLogger("sampan").setLevel(logging.INFO)  # as main() does; a test may be the first of its process
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SAMPAN_CACHE", str(tmp_path / ".cache"))
    for name in ("SAMPAN_MIRROR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def real():
    """The folder of real texts; a test that needs it is skipped where it is absent."""
    if not REAL.is_dir():
        pytest.skip("needs the real texts in ../shared/data, beside the repository")
    return REAL


def readable(characters: int, seed: int = 0) -> str:
    """A text of words, sentences and lines, of exactly so many characters."""
    rng = random.Random(seed)
    words = [
        "the", "boat", "a", "river", "we", "row", "and", "bail", "slowly", "under", "old", "bridges", "rain",
        "teak",
    ]  # fmt: skip
    lines, length = [], 0
    while length <= characters:
        sentence = " ".join(rng.choices(words, k=rng.randint(3, 9)))
        lines.append(sentence.capitalize() + rng.choice([". ", "!\n", "?\n", ", ", ".\n\n"]))
        length += len(lines[-1])
    return "".join(lines)[:characters]


@pytest.fixture(scope="session")
def small_text() -> str:
    """5,000 characters in English words."""
    return readable(5000)


def tiny_config(family: str, **settings) -> ModelShape:
    """A resolved model of a few thousand parameters; keys are grouped where the family allows it."""
    shape = dict(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=65, bias=True if family == "gpt2" else None)
    if family != "gpt2":
        shape |= dict(n_kv_head=2, n_inner=48, tie_word_embeddings=family == "qwen3")
    return resolve(ModelSettings(**{"family": family} | shape | settings))


@pytest.fixture(params=FAMILIES)
def tiny_model(request) -> ModelShape:
    """A tiny model of each of the three families in turn."""
    return tiny_config(request.param)


@pytest.fixture
def make_folder(tmp_path):
    """make_folder(name, family="gpt2", **shape): a model's folder, initial weights and a char tokenizer."""

    def make(name: str = "model", family: str = "gpt2", text: str | None = None, seed: int = 1, **shape) -> Path:
        from sampan.checkpoint.folder import save_model
        from sampan.tokens.characters import characters

        tokenizer = characters(text or readable(2000), end_of_text=True)
        model = tiny_config(family, vocab_size=tokenizer.vocab_size, **shape)
        save_model(tmp_path / name, model, initialize(model, seed), tokenizer)
        return tmp_path / name

    return make


@pytest.fixture(params=["c", "torch"])
def engine_name(request) -> str:
    """Each engine in turn."""
    from sampan.engine.open import engines_here

    if request.param not in engines_here():
        pytest.skip(f"the {request.param} engine is not installed")
    return request.param
