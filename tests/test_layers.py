"""A command loads what it needs and no more, and the base install works without PyTorch: seen in fresh interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

import sampan
from sampan.engine.open import engines_here

PACKAGE = Path(sampan.__file__).parent
HEAVY = {"numpy", "torch", "tokenizers", "rich", "safetensors", "huggingface_hub", "pygal", "transformers"}


def python(code: str, *args: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, in the test's folder, with this checkout's package."""
    start = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    return subprocess.run([sys.executable, "-c", start + code, *args], capture_output=True, text=True, timeout=120)


def loaded_by(code: str) -> set[str]:
    done = python(code + "\nprint('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import sampan.cli.main") & HEAVY
    assert not loaded_by("import sampan.cli.main\nsampan.cli.main.main(['train', '--help'])") & HEAVY
    assert "numpy" in loaded_by("import sampan.data.meta")  # the measure itself can see


# As if PyTorch had never been installed: neither found nor imported.
NO_TORCH = """
import importlib.util
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Refuse())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == "torch" else real(name, *a)
from pathlib import Path
import sampan.engine.c
if "--no-engine" in sys.argv:
    sys.argv.remove("--no-engine")
    sampan.engine.c.library_path = lambda: Path("not-built")
from sampan.cli.main import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.fixture
def text_file(tmp_path, small_text):
    (tmp_path / "boat.txt").write_text(small_text, encoding="utf-8")
    return "boat.txt"


@pytest.mark.parametrize("command", [["prepare"], ["prepare", "--tokenizer=bpe:300"], ["plan"]])
def test_prepare_and_plan_run_without_torch(text_file, command):
    done = python(NO_TORCH, command[0], text_file, *command[1:])
    assert done.returncode == 0, done.stderr
    assert "train tokens" in done.stdout or "parameters" in done.stdout
    assert Path("data").is_dir()


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["train", "--help"]])
def test_help_runs_without_torch(command):
    done = python(NO_TORCH, *command)
    assert done.returncode == 0 and "sampan" in done.stdout, done.stderr


def test_the_base_install_trains_and_samples_without_torch(text_file):
    if "c" not in engines_here():
        pytest.skip("the C engine is not built")
    flags = ["--max_iters=3", "--n_layer=1", "--n_embd=16", "--block_size=16"]
    done = python(NO_TORCH, "train", text_file, *flags)
    assert done.returncode == 0 and "A sample" in done.stdout, done.stderr
    assert python(NO_TORCH, "sample", "out/boat", "--max_new_tokens=9").returncode == 0


def test_training_without_an_engine_says_what_to_install(text_file):
    done = python(NO_TORCH, "train", text_file, "--no-engine")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install" in done.stderr and "torch" in done.stderr
    assert not Path("out").exists()
