"""Layers: imports go down the list of DESIGN.md, PyTorch stays in its two files, and a command loads what
it needs.

The rule is read from the source by `ast`; what really loads is seen in fresh interpreters.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sampan
from sampan.engine import engines_here

PACKAGE = Path(sampan.__file__).parent
# From the top; a module imports only what is below it.
ORDER = (
    "__main__", "cli", "compare",
    "exchange.llmc", "exchange.nanogpt", "exchange.gguf", "exchange.onnx", "exchange.pickles", "exchange",
    "report", "library", "verdict", "loop", "look", "recite", "plan", "recipe", "cost", "sample", "utf8",
    "batches", "torch_engine", "torch_muon", "torch_model", "c_engine", "engine",
    "checkpoint", "data", "sources", "corpus", "tokenizer", "model", "config", "fetch", "files", "errors", "__init__",
)  # fmt: skip
# engine.py names the protocol, which the engines below use, and opens an engine when it is asked for one.
UP_INSIDE_FUNCTIONS = {("engine", "torch_engine"), ("engine", "c_engine")}
# Upper layers know an engine by the protocol alone.
KNOWS_TORCH_ENGINE = {"engine"}
HAS_TORCH = {"torch_model", "torch_muon", "torch_engine"}
HEAVY = {"numpy", "torch", "tokenizers", "rich", "safetensors", "huggingface_hub", "pygal", "transformers"}


def imports(module: str) -> list[tuple[str, bool, bool]]:
    """(what is imported, whether it is of this package, whether inside a function) for each import of a
    module."""
    found = []
    path = PACKAGE / module.replace(".", "/")
    package = (module if path.is_dir() else module.rpartition(".")[0]).split(".")

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((a.name, False, inside) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module, False, inside))
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) + 1 - node.level]).strip(".")
            names = [node.module] if node.module else [a.name for a in node.names]
            full = [f"{start}.{name}".strip(".") for name in names]
            found.extend((n if n in ORDER else start or "__init__", True, inside) for n in full)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return [(n.removeprefix("sampan."), True, i) if n.startswith("sampan") else (n, own, i) for n, own, i in found]


def test_the_list_is_the_package():
    files = (p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py"))
    assert sorted(ORDER) == sorted(name.removesuffix(".__init__") for name in files)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_down(module):
    for name, own, inside in imports(module):
        if own and not (inside and (module, name) in UP_INSIDE_FUNCTIONS):
            assert ORDER.index(name) > ORDER.index(module), f"{module} imports {name}, which is above it"


def test_the_exceptions_are_used():
    used = {(m, name) for m in ORDER for name, own, inside in imports(m) if own and inside}
    assert used >= UP_INSIDE_FUNCTIONS


def test_only_two_files_import_torch():
    users = {m for m in ORDER for name, _, _ in imports(m) if name.split(".")[0] == "torch"}
    assert users == HAS_TORCH


def test_only_engine_knows_which_engines_there_are():
    users = {m for m in ORDER for name, own, _ in imports(m) if own and name in HAS_TORCH}
    assert users - HAS_TORCH == KNOWS_TORCH_ENGINE


def test_config_and_errors_need_the_standard_library_alone():
    for module in ("config", "errors", "fetch"):
        outside = {n.split(".")[0] for n, own, _ in imports(module) if not own}
        assert outside <= set(sys.stdlib_module_names), module


def python(code: str, *args: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, in the test's folder, with this checkout's package."""
    start = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    return subprocess.run([sys.executable, "-c", start + code, *args], capture_output=True, text=True, timeout=120)


def loaded_by(code: str) -> set[str]:
    done = python(code + "\nprint('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import sampan.cli") & HEAVY
    assert not loaded_by("import sampan.cli\nsampan.cli.make_parser()[0].format_help()") & HEAVY
    assert "numpy" in loaded_by("import sampan.data")  # the measure itself can see


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
import sampan.c_engine
if "--no-engine" in sys.argv:
    sys.argv.remove("--no-engine")
    sampan.c_engine.library_path = lambda: Path("not-built")
from sampan.cli import main
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
