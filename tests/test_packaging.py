"""What the package says of itself is true: its dependencies, its layers, its versions."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import environment

import sampan
from sampan.errors import PACKAGES

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "sampan"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUND = (
    "config.py",
    "errors.py",
    "fetch.py",
    "files.py",
    "machine.py",
    "messages.py",
    "units.py",
)  # only the standard library
NAMES = {"llama_cpp": "llama-cpp-python"}  # modules whose package has another name
NOT_DECLARED = {"llama_cpp"}  # has to be compiled, so the README names it and no extra brings it
LAZY = {"need_library", "find_library"}  # functions that import the module that they are given


def packages(requirements: list[str]) -> set[str]:
    """Return the normalized names of requirements such as "numpy>=1.26"."""
    return {normalized(re.match(r"[\w.-]+", line).group()) for line in requirements}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def third_party(file: Path) -> dict[str, bool]:
    """Return {top-level module: whether it is imported at the top level of the file} of what others make."""
    found: dict[str, bool] = {}

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LAZY:
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        for name in (name.split(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name != "sampan":
                found[name] = found.get(name, False) or top
        for child in ast.iter_child_nodes(node):
            visit(child, top and not isinstance(node, (ast.FunctionDef, ast.Lambda)))

    visit(ast.parse(file.read_text(encoding="utf-8")), True)
    return found


def test_every_import_is_declared():
    base = packages(PROJECT["dependencies"])
    extras = set().union(*(packages(r) for extra, r in PROJECT["optional-dependencies"].items() if extra != "test"))
    seen = set()
    for file in SOURCES.rglob("*.py"):
        for module, at_top in third_party(file).items():
            name = normalized(NAMES.get(module, module))
            if module in NOT_DECLARED and not at_top:
                continue
            seen.add(name)
            if SOURCES / "engine" / "torch" in file.parents:
                allowed = base | {"torch"}
            else:
                allowed = base if at_top else base | extras
            assert name in allowed, f"{file} imports {module}, which pyproject.toml does not declare for this place"
    assert {"numpy", "torch", "onnx", "huggingface-hub"} <= seen, "the test itself can see"


def test_the_ground_needs_the_standard_library_alone():
    for name in GROUND:
        at_top = [module for module, top in third_party(SOURCES / name).items() if top]
        assert not at_top, f"{name} imports {at_top}"


def test_imports_keep_the_contracts():
    """In a process of its own: the tool disables the loggers that there are, and with them this program's notices."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tools_have_one_version_everywhere():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = set(re.findall(r"[\w-]+==[\d.]+", hooks))
    assert pinned and pinned <= set(PROJECT["optional-dependencies"]["test"])


def test_the_version_is_the_same_everywhere():
    assert version("sampan") == sampan.__version__
    assert f"version: {sampan.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert sampan.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_printed_commands_install_what_the_extras_have():
    extras = {name: packages(lines) for name, lines in PROJECT["optional-dependencies"].items() if name in PACKAGES}
    assert extras == {name: {normalized(word) for word in names.split()} for name, names in PACKAGES.items()}
