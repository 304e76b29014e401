"""Other programs' formats, one file each: what people trained elsewhere comes in, what was trained here goes out.

    lines = import_path("out-shakespeare-char/ckpt.pt", ImportConfig())
    lines = export_model("out/shakespeare", ExportConfig(to="gguf", dtype="q8_0"))

A format that is read has `claims(path)` and `import_path(path, config)`. One that is written has

    suffix                                                of its files
    write(path, model, weights, tokenizer, config)        what its user must know, in lines; may write files beside
    check(path, model, tokenizer, reference, config)      loads it again with its own runtime; what was seen, a line

or, where data are written as well as models, `export_path(source, config)` instead of these three.
Both return lines for people and raise UserError for what cannot be carried faithfully. A model is only read. Files
are made in a folder beside and renamed when they are whole and checked.
"""

import contextlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from ..checkpoint import Run, find_model, load_model, load_tokenizer
from ..config import ExportConfig, ImportConfig, MachineConfig, ModelConfig
from ..engine import Engine, open_engine
from ..errors import UserError, install

IMPORTS = ("llmc", "nanogpt")  # what is read, in the order of asking; what is written is config.EXPORTS


def import_path(path: str, config: ImportConfig) -> list[str]:
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or folder")
    for name in IMPORTS:
        module = importlib.import_module(f".{name}", __name__)
        if module.claims(Path(path)):
            return module.import_path(Path(path), config)
    raise UserError(f"{path}: not of a format that can be imported; sampan import --help lists them")


def export_model(folder: str, config: ExportConfig) -> list[str]:
    if config.to is None:
        raise UserError("say the format, such as: sampan export out/shakespeare --to gguf")
    module = importlib.import_module(f".{config.to}", __name__)
    if hasattr(module, "export_path"):
        return module.export_path(folder, config)
    source = find_model(folder)
    home = source if Path(folder).is_dir() else Path()  # not into the cache of the hub
    out = Path(config.out or home / f"{Path(folder).resolve().name}{module.suffix(config)}")
    run = Run(source)
    about = [run.describe(config.weights)] if run.exists() else []
    if config.weights == "last":
        source = run.last
    model, weights = load_model(source)
    tokenizer = load_tokenizer(source) if (source / "tokenizer.json").is_file() else None
    with new_files(out) as staged:
        notes = module.write(staged, model, weights, tokenizer, config)
        checked = module.check(staged, model, tokenizer, reference(model, weights), config)
    return [f"{out}: {out.stat().st_size / 1e6:,.1f} MB, {config.dtype}", *about, checked, *notes]


# ---- checking ----


def reference(model: ModelConfig, weights: dict) -> Callable[[np.ndarray], np.ndarray]:
    """A function from ids, int (B, T), to what our own engine makes of them in float32: logits (B, T, vocab)."""
    engine = open_engine(model, MachineConfig(device="cpu", dtype="float32"))
    engine.load(weights)
    return lambda ids: all_logits(engine, ids)


def all_logits(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """The logits of every position of ids, int (B, T): float32 (B, T, vocab)."""
    session = engine.session(len(ids))
    return np.stack([session.feed(np.ascontiguousarray(ids[:, t : t + 1], np.int32)) for t in range(ids.shape[1])], 1)


def check_ids(model: ModelConfig, count: int = 3) -> np.ndarray:
    """A few prompts of random tokens, int32 (count, T)."""
    length = min(model.block_size, 48)
    return np.random.default_rng(0).integers(0, model.vocab_size, (count, length), dtype=np.int32)


def compare(theirs: np.ndarray, ours: np.ndarray, allowed: float, runtime: str) -> str:
    """The largest difference of logits, relative to the largest of ours. Raises UserError beyond `allowed`."""
    error = float(np.abs(np.asarray(theirs, np.float64) - ours).max() / np.abs(ours).max())
    if not error <= allowed:
        raise UserError(
            f"{runtime} computes other logits than Sampan: they differ by {error:.1e} of the largest, and {allowed:.0e} is "
            "what rounding explains; nothing was written"
        )
    return f"checked with {runtime}: its logits differ from ours by {error:.1e} of the largest"


# ---- libraries and files ----


def need(library: str, extra: str) -> ModuleType:
    """An optional library. Raises UserError that says what to install."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"this needs {library}: {install(extra)}") from None


def find(library: str) -> ModuleType | None:
    try:
        return importlib.import_module(library)
    except ImportError:
        return None


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder beside, which takes this name when it is whole. Raises UserError where there is one already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; move it away, or choose another --out_dir")
    with beside(folder) as staged:
        yield staged
        os.replace(staged, folder)


@contextlib.contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """Yields a path in a folder beside; every file there takes its place next to `out`, the file itself last."""
    with beside(out) as staged:
        yield staged / out.name
        for path in sorted(staged.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    staged = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
