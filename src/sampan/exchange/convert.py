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

import importlib
from pathlib import Path

from sampan.checkpoint.folder import find_model, load_model, load_tokenizer
from sampan.checkpoint.run import Run
from sampan.config import ExportConfig, ImportConfig
from sampan.errors import UserError
from sampan.exchange.check import reference
from sampan.exchange.staging import new_files
from sampan.messages import _
from sampan.tokens.kinds import has_tokenizer

IMPORTS = ("llmc", "nanogpt")  # what is read, in the order of asking; what is written is config.EXPORTS


def import_path(path: str, config: ImportConfig) -> list[str]:
    if not Path(path).exists():
        raise UserError(_("{path}: no such file or folder", path=path))
    for name in IMPORTS:
        module = importlib.import_module(f"sampan.exchange.{name}")
        if module.claims(Path(path)):
            return module.import_path(Path(path), config)
    raise UserError(_("{path}: not of a format that can be imported; sampan import --help lists them", path=path))


def export_model(folder: str, config: ExportConfig) -> list[str]:
    if config.to is None:
        raise UserError(_("say the format, such as: sampan export out/shakespeare --to gguf"))
    module = importlib.import_module(f"sampan.exchange.{config.to}")
    if hasattr(module, "export_path"):
        return module.export_path(folder, config)
    source = find_model(folder)
    home = Path() if source.is_absolute() and not Path(folder).is_dir() else source  # not into the cache of the hub
    out = Path(config.out or home / f"{Path(folder).resolve().name}{module.suffix(config)}")
    run = Run(source)
    about = [run.describe(config.weights)] if run.exists() else []
    if config.weights == "last":
        source = run.last
    model, weights = load_model(source)
    if model.edited:
        raise UserError(_("{folder}: other programs cannot run an edited engine/torch/model.py", folder=source))
    tokenizer = load_tokenizer(source) if has_tokenizer(source) else None
    with new_files(out) as staged:
        notes = module.write(staged, model, weights, tokenizer, config)
        checked = module.check(staged, model, tokenizer, reference(model, weights), config)
    return [f"{out}: {out.stat().st_size / 1e6:,.1f} MB, {config.dtype}", *about, checked, *notes]
