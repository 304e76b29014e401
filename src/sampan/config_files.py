"""Read configuration files: .toml, and nanoGPT's .py as literals that are never executed.

    settings = read_file(find_file("shakespeare_char.toml"))      # {"n_layer": 6, ...}

The settings themselves are config.py's.
"""

import ast
import operator
import time
import tomllib
import types
from pathlib import Path
from typing import Any

from sampan.config import TrainConfig, check_keys, convert
from sampan.errors import UserError
from sampan.files import read_json
from sampan.messages import _

# ---- configuration files ----

FILE_BYTES = 1 << 16  # more than any configuration has

# What nanoGPT's prepare.py and those of its forks make of a text, where the folder is not there; the tokens are a setting
# of their own here.
NANOGPT_DATASETS: dict[str, dict[str, Any]] = {
    "shakespeare_char": {"dataset": "tinyshakespeare", "tokenizer": "char"},
    "shakespeare": {"dataset": "tinyshakespeare", "tokenizer": "gpt2"},
    "openwebtext": {"dataset": "openwebtext", "tokenizer": "gpt2"},
    "sanzijing_char": {"dataset": "sanzijing", "tokenizer": "char"},
    "shuixu_char": {"dataset": "shuihu", "tokenizer": "char"},
    "shuixu_full": {"dataset": "shuihu", "tokenizer": "gpt2"},  # the first of its eight books
    "chucknorris": {"dataset": "chuck_norris", "tokenizer": "gpt2"},
}


def find_file(name: str) -> Path:
    """A configuration file: the path itself, or a recipe of that name that ships with Sampan (configs/)."""
    shipped = Path(__file__).parent / "configs"
    for path in (Path(name), shipped / Path(name).name):
        if path.is_file():
            return path
    names = sorted(path.name for path in shipped.glob("*.toml"))
    raise UserError(
        _("{name}: no such file; the recipes that come with Sampan are {names}", name=name, names=", ".join(names))
    )


def read_file(path: str | Path) -> dict:
    """The settings of a .toml file, or of a nanoGPT .py file, which is read as literals and never executed.

    Raises UserError for a file that cannot be read, is not of its format, or sets an unknown key.
    """
    path = Path(path)
    try:
        if path.stat().st_size > FILE_BYTES:
            raise UserError(
                _("{path}: larger than any configuration ({size:,} bytes)", path=path, size=path.stat().st_size)
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(_("{path}: cannot be read as a configuration ({error})", path=path, error=error)) from None
    settings = read_python(text, path) if path.suffix == ".py" else read_toml(text, path)
    check_keys(TrainConfig, settings, str(path))
    for name, value in settings.items():
        try:
            convert(TrainConfig, name, value)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return settings


def read_toml(text: str, path: Path) -> dict:
    if text.count(".") > 2000:  # a key a.b.c... costs tomllib memory by the square of its parts
        raise UserError(_("{path}: has more dots than any configuration", path=path))
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise UserError(_("{path}: not valid TOML: {error}", path=path, error=error)) from None


def read_python(text: str, path: Path) -> dict:
    """The assignments of a nanoGPT configuration: literals, arithmetic on them, names assigned above."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(_("{path}: not valid Python: {error}", path=path, error=error)) from None
    settings: dict[str, Any] = {}
    for node in tree.body:
        is_note = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_note or isinstance(node, (ast.Import, ast.ImportFrom)):
            continue  # finetune_shakespeare.py imports time for its run name; nothing is imported here
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise UserError(
                _(
                    "{path}, line {lineno}: only NAME = VALUE is read from a .py configuration",
                    path=path,
                    lineno=node.lineno,
                )
            )
        try:
            settings[node.targets[0].id] = evaluate_expression(node.value, settings)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise UserError(f"{path}, line {node.lineno}: {error}") from None
    return settings | nanogpt_dataset(str(settings.get("dataset", "")))


def nanogpt_dataset(name: str) -> dict[str, Any]:
    """The settings for a dataset of nanoGPT, which is a folder of data/: its train.bin, the text in it, or a known text."""
    folder = Path("data") / name
    if name and (folder / "train.bin").is_file() and not is_made_of_text(folder):
        return {"dataset": str(folder)}
    texts = sorted(folder.glob("input.txt")) or sorted(folder.glob("*.txt"))
    if name and texts:
        return {"dataset": [str(path) for path in texts]} | ({"tokenizer": "char"} if name.endswith("_char") else {})
    return NANOGPT_DATASETS.get(name, {})


def is_made_of_text(folder: Path) -> bool:
    """Whether `sampan prepare` made a data folder, perhaps of another text than the one that nanoGPT calls so."""
    try:
        return "source" in read_json(folder / "meta.json")
    except UserError:
        return False


BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
          ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}  # fmt: skip


def evaluate_expression(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression of literals, arithmetic on them, and `str(time.time())`.

    >>> evaluate_expression(ast.parse("5 * 8", mode="eval").body, {})
    40

    Raises ValueError for anything else. There is no power and numbers alone are multiplied, so that no small
    file can ask for a huge value.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str, types.NoneType)):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate_expression(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = evaluate_expression(node.left, names), evaluate_expression(node.right, names)
        if not isinstance(node.op, ast.Add) and (isinstance(left, str) or isinstance(right, str)):
            raise ValueError("strings can only be added")
        result = BINARY[type(node.op)](left, right)
        if len(result) > 4096 if isinstance(result, str) else abs(result) > 1e30:
            raise ValueError("too large a value")
        return result
    source = ast.unparse(node)
    if source == "time.time()":
        return time.time()
    casts = {"str": str, "int": int, "float": float}
    if isinstance(node, ast.Call) and ast.unparse(node.func) in casts and len(node.args) == 1 and not node.keywords:
        return casts[ast.unparse(node.func)](evaluate_expression(node.args[0], names))
    raise ValueError(f"{source[:60]!r} is more than literals and arithmetic; a configuration is never executed")
