"""Read and write llm.c's files: weights, token files, its tokenizer file and the debug state of its test.

    sampan import gpt2_124M.bin --out_dir out/gpt2           # weights -> a Hugging Face folder
    sampan import tiny_shakespeare_train.bin                 # it and the _val.bin beside it -> a data folder
    sampan export out/gpt2 --to llmc --out . --debug_state   # a model -> what test_gpt2 and train_gpt2 open
    sampan export data/shakespeare --to llmc --out dev/data/shakespeare            # shakespeare_train.bin, _val.bin
    sampan export tinyshakespeare --to llmc --out dev/data/tinyshakespeare         # a text, as llm.c's script splits it

    ./test_gpt2; ./train_gpt2                                # llm.c's programs, in the folder of the first
    csrc/build/sampan-c test --init_from gpt2_124M.bin --debug_state gpt2_124M_debug_state.bin

One module a format. A file's length is checked against its header before anything else is read. Optimizer states,
multiple-choice files and the weights of llm.c's Llama 3 are not supported.
"""

import warnings
from pathlib import Path

from sampan.checkpoint.folder import find_model, load_model, save_model
from sampan.checkpoint.tensors import WEIGHTS
from sampan.config import ExportConfig, ImportConfig
from sampan.data.meta import Data, open_folder
from sampan.errors import UserError
from sampan.exchange.llmc.header import KINDS, MODEL, has_magic, read_header
from sampan.exchange.llmc.state import compute_state, state_batch, write_state
from sampan.exchange.llmc.tokenizer import find_tokenizer, write_tokenizer
from sampan.exchange.llmc.tokens import FORMATS, read_data, write_data, write_text
from sampan.exchange.llmc.weights import DTYPES, as_llmc, read_weights, to_bfloat16, to_float32, write_weights
from sampan.messages import _
from sampan.text.corpora import find_corpus
from sampan.tokens.kinds import has_tokenizer, read_tokenizer


def claims(path: Path) -> bool:
    """Return whether this is a file of llm.c."""
    return has_magic(path)


def import_path(path: Path, config: ImportConfig) -> list[str]:
    """Make a model's folder of weights, or a data folder of tokens, and return lines to print.

    Raises UserError if the file is damaged, cannot be carried over faithfully, or the folder is in use.
    """
    magic = read_header(path)[0]
    if magic in FORMATS:
        name = path.stem.split("_train")[0].split("_val")[0]
        return read_data(path, Path(config.out_dir or Path("data", name)), config.tokenizer).summary()
    if magic != MODEL:
        raise UserError(
            _("{path} contains {kind}; only weights and tokens can be imported", path=path, kind=_(KINDS[magic]))
        )
    out = Path(config.out_dir or Path("out", f"llmc-{path.stem}"))
    if (out / WEIGHTS).exists():
        raise UserError(_("{out} already contains a model; choose another folder", out=out))
    model, weights = read_weights(path)
    tokenizer = find_tokenizer(config.tokenizer, path)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            _(
                "{path} has {vocab_size:,} tokens, but the tokenizer has {vocab_size_2:,}. Give its own "
                "tokenizer with --tokenizer: a tokenizer.json or a tokenizer file of llm.c.",
                path=path,
                vocab_size=model.vocab_size,
                vocab_size_2=tokenizer.vocab_size,
            )
        )
    save_model(out, model, weights, tokenizer)
    about = _("{folder}: gpt2, {n_layer} layers, width {n_embd}, vocabulary {vocab_size:,}")
    sizes = dict(n_layer=model.n_layer, n_embd=model.n_embd, vocab_size=model.vocab_size)
    return [about.format(folder=out, **sizes)]


def export_path(source: str, config: ExportConfig) -> list[str]:
    """Write a model's folder, a data folder or a text for llm.c, by default into the source's folder.

    Returns a line for each file. Raises UserError if llm.c does not support the model, or the files cannot be written.
    """
    folder = Path(source)
    out = Path(config.out or Path(folder if folder.is_dir() else "", "llmc"))
    if config.weights == "last":
        source, folder = str(folder / "last"), folder / "last"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (folder / "meta.json").is_file():
            paths = write_data(open_folder(folder), out)
        elif folder.is_file() or find_corpus(source):
            paths = write_text(source, out)
        else:
            paths = write_model(find_model(source), out, config)
        return [f"{path}: {path.stat().st_size / 1e6:,.1f} MB" for path in paths]
    except OSError as error:
        raise UserError(_("{out}: cannot be written ({reason})", out=out, reason=error.strerror)) from None


def write_model(folder: Path, out: Path, config: ExportConfig) -> list[Path]:
    """Write a model under the names that llm.c's programs open, whatever its size; return the files."""
    if config.dtype not in DTYPES:
        raise UserError(
            _("dtype={dtype}: llm.c's weights are {dtypes}", dtype=config.dtype, dtypes=" or ".join(DTYPES))
        )
    model, weights = as_llmc(*load_model(folder), str(folder))
    data: Data | None = open_folder(config.data_dir) if config.data_dir else None
    paths = []
    if has_tokenizer(folder):
        try:
            write_tokenizer(out / "gpt2_tokenizer.bin", read_tokenizer(folder))
        except UserError as error:  # llm.c's programs print ids then
            warnings.warn(_("{error}; the weights are written without it", error=error), stacklevel=2)
        else:
            paths.append(out / "gpt2_tokenizer.bin")
    paths.append(out / f"gpt2_124M{DTYPES[config.dtype][2]}.bin")
    write_weights(paths[-1], model, weights, config.dtype)
    if config.debug_state:
        if config.dtype == "bf16":
            weights = {name: to_float32(to_bfloat16(w)) for name, w in weights.items()}  # as in the file
        paths.append(out / "gpt2_124M_debug_state.bin")
        batch = state_batch(model, data)
        write_state(paths[-1], model, compute_state(model, weights, *batch))
    return paths
