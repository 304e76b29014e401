"""llm.c's files, both ways: weights, token files, its tokenizer file and the debug state of its test.

    sampan import gpt2_124M.bin --out_dir out/gpt2           # weights -> a Hugging Face folder
    sampan import tiny_shakespeare_train.bin                 # it and the _val.bin beside it -> a data folder
    sampan export out/gpt2 --to llmc --out . --debug_state   # a model -> what test_gpt2 and train_gpt2 open
    sampan export data/shakespeare --to llmc --out dev/data/shakespeare            # shakespeare_train.bin, _val.bin
    sampan export tinyshakespeare --to llmc --out dev/data/tinyshakespeare         # a text, as llm.c's script splits it

    ./test_gpt2; ./train_gpt2                                # llm.c's programs, in the folder of the first
    csrc/build/sampan-c test --init_from gpt2_124M.bin --debug_state gpt2_124M_debug_state.bin

All of them begin with 256 int32: a magic number, a version, sizes. A file's length is checked against its header
before anything else is read. Version 3 of the weights is float32 and version 5 bfloat16; token files are uint16
(GPT-2's) or uint32 (Llama 3's).

It does not read optimizer states, multiple-choice files or the weights of llm.c's Llama 3.
"""

import hashlib
import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sampan.checkpoint.folder import find_model, load_model, save_model
from sampan.checkpoint.tensors import WEIGHTS
from sampan.config import DataConfig, ExportConfig, ImportConfig, ModelConfig, TrainConfig
from sampan.data.meta import FORMAT, Data, Meta, open_folder
from sampan.data.prepare import write_folder
from sampan.engine.open import open_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.exchange.check import all_logits
from sampan.files import replacing
from sampan.model.parameters import Param, parameters
from sampan.model.shape import resolve
from sampan.text.characters import END
from sampan.text.corpora import find_corpus
from sampan.text.sources import find_source
from sampan.tokens.kinds import byte_level, from_symbols, gpt2_tokenizer
from sampan.tokens.tokenizer import END_OF_TEXT, Tokenizer, read_tokenizer

HEADER = 256  # int32
MODEL, STATE, TOKENIZER, TOKENS, TOKENS_LLAMA3 = 20240326, 20240327, 20240328, 20240520, 20240801
KINDS = {
    MODEL: "weights", STATE: "a debug state", TOKENIZER: "a tokenizer", TOKENS: "tokens", TOKENS_LLAMA3: "tokens",
    20240522: "multiple-choice questions", 20240527: "an optimizer's state", 20240803: "weights of a Llama 3",
}  # fmt: skip
TOKEN_FILES = {TOKENS: (1, np.dtype("<u2")), TOKENS_LLAMA3: (7, np.dtype("<u4"))}  # magic: version, type of an id
DTYPES = {
    "f32": (3, np.dtype("<f4"), ""),
    "bf16": (5, np.dtype("<u2"), "_bf16"),
}  # version, type, file's ending
SHARD = 100_000_000  # tokens in a file, as in llm.c's large data sets; its reader seeks with 31 bits
PADDED_TO = 128  # rows of the token embedding
STATE_BATCH, STATE_TOKENS = 4, 64  # of a debug state; llm.c's own has these
VAL_TOKENS = 32_768  # that llm.c's script takes from the beginning of a text
OF_A_BLOCK = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


# ---- what the commands call ----


def claims(path: str | Path) -> bool:
    """Whether a file begins with one of llm.c's magic numbers."""
    try:
        with Path(path).open("rb") as file:
            return int.from_bytes(file.read(4), "little") in KINDS
    except OSError:
        return False


def import_path(path: Path, config: ImportConfig) -> list[str]:
    """`read`, into a folder that is named after the file where no other is."""
    magic = read_header(path)[0]
    folder = (
        Path("data", path.stem.split("_train")[0].split("_val")[0])
        if magic in TOKEN_FILES
        else Path("out", f"llmc-{path.stem}")
    )
    return read(path, config.out_dir or folder, None if config.tokenizer == "auto" else config.tokenizer)


def export_path(source: str, config: ExportConfig) -> list[str]:
    """`write`, into the run's folder where no other is named; a line for each file."""
    out = Path(config.out or Path(source if Path(source).is_dir() else "", "llmc"))
    if config.weights == "last":
        source = str(Path(source, "last"))
    paths = write(source, out, config.dtype, config.debug_state, config.data_dir)
    return [f"{path}: {path.stat().st_size / 1e6:,.1f} MB" for path in paths]


def read(path: str | Path, out: str | Path, tokenizer: str | None = None) -> list[str]:
    """Make a model's or a data folder `out` of a file of llm.c's; the lines to print.

    `tokenizer` is gpt2, a tokenizer.json or its folder, or a tokenizer file of llm.c's; without it a
    gpt2_tokenizer.bin beside the file, else GPT-2's. Raises UserError for what cannot be carried over whole.
    """
    path, out = Path(path), Path(out)
    magic = read_header(path)[0]
    if magic in TOKEN_FILES:
        return read_data(path, out, tokenizer).summary()
    if magic != MODEL:
        raise UserError(f"{path} is {KINDS[magic]}; only weights and tokens become a folder")
    if (out / WEIGHTS).exists():
        raise UserError(f"{out} already holds a model; choose another folder")
    model, weights = read_weights(path)
    found = find_tokenizer(tokenizer, path)
    if found.vocab_size > model.vocab_size:
        raise UserError(
            f"{path} has {model.vocab_size:,} tokens and the tokenizer {found.vocab_size:,}: say which is its own with "
            "--tokenizer, a tokenizer.json or a tokenizer file of llm.c's"
        )
    save_model(out, model, weights, found)
    return [f"{out}: gpt2, {model.n_layer} layers, width {model.n_embd}, vocabulary {model.vocab_size:,}"]


def write(
    source: str, out: str | Path, dtype: str = "f32", debug_state: bool = False, data_dir: str | None = None
) -> list[Path]:
    """Write a model's folder, a data folder or a text into the folder `out`, as llm.c reads it; the paths written.

    A model becomes gpt2_124M.bin and gpt2_tokenizer.bin whatever its size, the names that llm.c's programs open; with
    `dtype` bf16, gpt2_124M_bf16.bin. `debug_state` adds what test_gpt2 compares: one step's logits, loss and
    gradients, on the first val tokens of `data_dir`, or on random ones. A corpus's name or a text file is cut into
    documents and split as llm.c's script does for tinyshakespeare. Raises UserError where llm.c has no such model.
    """
    out, folder = Path(out), Path(source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (folder / "meta.json").is_file():
            return write_data(open_folder(folder), out)
        if folder.is_file() or find_corpus(source):
            return write_text(source, out)
        return write_model(find_model(source), out, dtype, open_folder(data_dir) if data_dir else None, debug_state)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None


# ---- headers ----


def read_header(path: Path) -> list[int]:
    """The 256 numbers that a file begins with. Raises UserError for a file that is not one of llm.c's."""
    try:
        with path.open("rb") as file:
            raw = file.read(4 * HEADER)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    header = list(struct.unpack(f"<{HEADER}i", raw)) if len(raw) == 4 * HEADER else [0]
    if header[0] not in KINDS:
        raise UserError(f"{path} is not a file of llm.c's: it does not begin with one of its magic numbers")
    return header


def open_kind(path: Path, *magics: int) -> list[int]:
    header = read_header(path)
    if header[0] not in magics:
        raise UserError(f"{path} is {KINDS[header[0]]}, not {KINDS[magics[0]]}")
    return header


def check_size(path: Path, expected: int, what: str) -> None:
    size = path.stat().st_size
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes, and {what} would have {expected:,}; it is not whole")


def write_header(file: BinaryIO, *numbers: int) -> None:
    file.write(struct.pack(f"<{HEADER}i", *numbers, *[0] * (HEADER - len(numbers))))


# ---- weights ----


def table_of(config: ModelConfig) -> list[Param]:
    """The parameters in llm.c's order: each kind of a block's tensors for all blocks, before the next kind."""
    rows = {p.name: p for p in parameters(config)}
    blocks = (f"h.{i}.{name}" for name in OF_A_BLOCK for i in range(config.n_layer))
    return [rows[name] for name in ("wte.weight", "wpe.weight", *blocks, "ln_f.weight", "ln_f.bias")]


def read_config(path: Path) -> tuple[ModelConfig, str, int]:
    """(model, dtype, rows of the padded token embedding) of a weights file, whose length has been checked."""
    _, version, block_size, vocab_size, n_layer, n_head, n_embd, padded = open_kind(path, MODEL)[:8]
    dtype = next((name for name, row in DTYPES.items() if row[0] == version), None)
    if dtype is None:
        raise UserError(f"{path}: version {version} of llm.c's weights; 3 (float32) and 5 (bfloat16) are read")
    if not all(0 < n < 1 << 28 for n in (block_size, vocab_size, n_layer, n_head, n_embd)) or padded < vocab_size:
        raise UserError(f"{path}: its header has a size that no model has")
    shape = dict(block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    check_size(path, 4 * HEADER + DTYPES[dtype][1].itemsize * count_floats(padded, shape), "such a model")
    try:
        return resolve(ModelConfig(family="gpt2", bias=True, norm_eps=1e-5, **shape)), dtype, padded
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def count_floats(padded: int, shape: Mapping[str, int]) -> int:
    """Of all tensors; in closed form, as a header may ask for 2^28 layers."""
    C = shape["n_embd"]
    return (padded + shape["block_size"] + 2) * C + shape["n_layer"] * (12 * C * C + 13 * C)


def read_weights(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """A weights file's model and parameters, {name: float32}, a matrix (out, in); without the padding's rows.

    Raises UserError for a file that is not whole, and where the padding is not zero.
    """
    path = Path(path)
    config, dtype, padded = read_config(path)
    return config, read_tensors(np.memmap(path, DTYPES[dtype][1], "c", 4 * HEADER), config, padded, str(path))


def read_tensors(values: np.ndarray, config: ModelConfig, padded: int, where: str) -> dict[str, np.ndarray]:
    tensors, start = {}, 0
    for p in table_of(config):
        tensors[p.name] = to_float32(values[start : start + p.size]).reshape(p.shape)
        start += p.size
        if p.name == "wte.weight":
            rest, start = start, start + (padded - config.vocab_size) * config.n_embd
            if values[rest:start].any():
                raise UserError(f"{where}: the rows beyond its vocabulary of {config.vocab_size:,} are not zero")
    return tensors


def write_weights(path: Path, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str) -> None:
    shape = (config.block_size, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    with replacing(path) as file:
        write_header(file, MODEL, DTYPES[dtype][0], *shape, padded_vocabulary(config))
        write_tensors(file, config, weights, dtype)


def write_tensors(file: BinaryIO, config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    for p in table_of(config):
        values = to_bfloat16(tensors[p.name]) if dtype == "bf16" else tensors[p.name].astype("<f4", copy=False)
        file.write(np.ascontiguousarray(values).data)
        if p.name == "wte.weight":
            file.write(bytes((padded_vocabulary(config) - config.vocab_size) * config.n_embd * values.itemsize))


def padded_vocabulary(config: ModelConfig) -> int:
    return -(-config.vocab_size // PADDED_TO) * PADDED_TO


def to_float32(values: np.ndarray) -> np.ndarray:
    """Of float32, or of bfloat16 as its uint16."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.itemsize == 2 else values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The uint16 of each float32's nearest bfloat16, ties to even.

    >>> [hex(v) for v in to_bfloat16(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, np.nan], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fc0']
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def as_llmc(config: ModelConfig, weights: dict[str, np.ndarray], where: str) -> tuple[ModelConfig, dict]:
    """The same function as a model that llm.c has. Biases are added, as zeros. Raises UserError for any other."""
    c = config
    complaints = {
        f"it is of the {c.family} family, and llm.c's files hold gpt2": c.family != "gpt2",
        "llm.c shares the token embedding with the head, and this model does not": not c.tie_word_embeddings,
        f"the MLP is {c.n_inner} wide, and llm.c's 4 x {c.n_embd}": c.n_inner != 4 * c.n_embd,
        f"norm_eps is {c.norm_eps:g}, and llm.c's 1e-05": np.float32(c.norm_eps) != np.float32(1e-5),
    }
    for complaint, applies in complaints.items():
        if applies:
            raise UserError(f"{where} cannot be a file of llm.c's: {complaint}")
    full = replace(c, bias=True, dropout=0.0)
    return full, {p.name: weights.get(p.name, np.zeros(p.shape, np.float32)) for p in parameters(full)}


def write_model(folder: Path, out: Path, dtype: str, data: Data | None, debug_state: bool) -> list[Path]:
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: llm.c's weights are {' or '.join(DTYPES)}")
    model, weights = as_llmc(*load_model(folder), str(folder))
    paths = []
    if (folder / "tokenizer.json").is_file():
        paths.append(out / "gpt2_tokenizer.bin")
        write_tokenizer(paths[-1], read_tokenizer(folder / "tokenizer.json"))
    paths.append(out / f"gpt2_124M{DTYPES[dtype][2]}.bin")
    write_weights(paths[-1], model, weights, dtype)
    if debug_state:
        if dtype == "bf16":
            weights = {name: to_float32(to_bfloat16(w)) for name, w in weights.items()}  # as they were written
        paths.append(out / "gpt2_124M_debug_state.bin")
        engine = open_engine(model, TrainConfig(dtype="float32"))
        engine.load(weights)
        write_state(paths[-1], model, compute_state(engine, *state_batch(model, data)))
    return paths


# ---- debug states ----


@dataclass(frozen=True)
class State:
    """What one step computes before the weights change: llm.c's test compares its own with it."""

    x: np.ndarray  # int32 (B, T)
    y: np.ndarray  # int32 (B, T)
    logits: np.ndarray  # float32 (B, T, vocab_size)
    loss: float  # mean over the targets, nats
    gradients: dict[str, np.ndarray]  # of that loss, under our names; float32


def state_batch(model: ModelConfig, data: Data | None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets for a debug state, int32 (4, 64): the first of the val split, or random where there is none."""
    B, T = STATE_BATCH, min(STATE_TOKENS, model.block_size)
    if data is None:
        ids = np.random.default_rng(1337).integers(model.vocab_size, size=B * T + 1)
    elif len(data.val) <= B * T:
        raise UserError(f"{data.folder}: a debug state needs {B * T + 1} val tokens, and there are {len(data.val)}")
    else:
        ids = data.val[: B * T + 1]
    if ids.max() >= model.vocab_size:
        raise UserError(f"{data.folder}: token {ids.max()} is beyond the model's vocabulary of {model.vocab_size}")
    ids = ids.astype(np.int32)
    return ids[:-1].reshape(B, T), ids[1:].reshape(B, T)


def compute_state(engine: Engine, x: np.ndarray, y: np.ndarray) -> State:
    """One forward and backward pass of a new engine."""
    loss = engine.loss(x, y)
    engine.accumulate(x, y)
    return State(x, y, all_logits(engine, x), loss, engine.gradients())


def write_state(path: Path, model: ModelConfig, state: State) -> None:
    with replacing(path) as file:
        write_header(file, STATE, 2, *state.x.shape)
        for array in (state.x, state.y):
            file.write(np.ascontiguousarray(array, "<i4").data)
        file.write(np.ascontiguousarray(state.logits, "<f4").data)
        file.write(struct.pack("<f", state.loss))
        write_tensors(file, model, state.gradients, "f32")


def read_state(path: str | Path, model: ModelConfig) -> State:
    """A debug state of this model, which has the sizes that are not in the file. Raises UserError where they disagree."""
    path = Path(path)
    _, version, B, T = open_kind(path, STATE)[:4]
    if version != 2 or B < 1 or not 0 < T <= model.block_size:
        raise UserError(f"{path}: version {version}, {B} sequences of {T} tokens; not a debug state of this model")
    padded = padded_vocabulary(model)
    gradients = count_floats(padded, vars(model))
    check_size(path, 4 * (HEADER + 2 * B * T + B * T * model.vocab_size + 1 + gradients), "one of this model")
    ids = np.fromfile(path, "<i4", 2 * B * T, offset=4 * HEADER).reshape(2, B, T)
    values = np.memmap(path, "<f4", "c", 4 * (HEADER + 2 * B * T))
    end = B * T * model.vocab_size
    tensors = read_tensors(values[end + 1 :], model, padded, str(path))
    return State(ids[0], ids[1], values[:end].reshape(B, T, -1), float(values[end]), tensors)


# ---- token files ----


def read_tokens(path: str | Path) -> np.ndarray:
    """The ids of a token file, uint16 or uint32 (n,), read as they are used. Raises UserError."""
    path = Path(path)
    magic, version, count = open_kind(path, *TOKEN_FILES)[:3]
    expected, dtype = TOKEN_FILES[magic]
    if version != expected or count < 1:
        raise UserError(f"{path}: version {version}, {count} tokens; version {expected} with some tokens is read")
    check_size(path, 4 * HEADER + count * dtype.itemsize, f"{count:,} tokens")
    return np.memmap(path, dtype, "r", 4 * HEADER, (count,))


def write_tokens(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    magic = TOKENS if vocab_size <= 1 << 16 else TOKENS_LLAMA3
    version, dtype = TOKEN_FILES[magic]
    with replacing(path) as file:
        write_header(file, magic, version, len(ids))
        for piece in pieces(ids):
            file.write(piece.astype(dtype).data)


def pieces(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + (1 << 22)] for start in range(0, len(ids), 1 << 22))


def read_data(path: Path, out: Path, tokenizer: str | None) -> Data:
    """A data folder of a token file and all that belong to it: NAME_train.bin, NAME_val.bin, or shards of them."""
    files = sibling_files(path)
    ids = {split: [read_tokens(p) for p in paths] for split, paths in files.items()}
    if (out / "train.bin").exists():
        raise UserError(f"{out} already holds data; choose another folder")
    if read_header(path)[0] == TOKENS_LLAMA3 and tokenizer is None:
        raise UserError(f"{path} has the ids of Llama 3's tokenizer: say where its tokenizer.json is, with --tokenizer")
    found = find_tokenizer(tokenizer, path)
    counts = {split: sum(map(len, arrays)) for split, arrays in ids.items()}
    digest = hashlib.sha256(b"".join(digest_of(p) for paths in files.values() for p in paths)).hexdigest()
    origin = f"{', '.join(str(p) for paths in files.values() for p in paths[:1])} of llm.c"
    describe = partial(
        Meta,
        name=out.name,
        origin=origin,
        format=FORMAT,
        sha256=digest,
        tokenizer="gpt2" if found.vocab_size == 50257 else "llmc",
        reason="llm.c's ids",
        val_fraction=counts["val"] / sum(counts.values()),
        characters=0,
        symbols=0,
        documents=1,
    )

    def parts() -> Iterator[tuple[str, np.ndarray]]:
        for split, arrays in ids.items():
            for array, file in zip(arrays, files[split], strict=True):
                for piece in pieces(array):
                    if piece.max() >= found.vocab_size:
                        raise UserError(f"{file}: token {piece.max()} is beyond the tokenizer's {found.vocab_size:,}")
                    yield split, piece

    return write_folder(out, found, describe, parts())


def sibling_files(path: Path) -> dict[str, list[Path]]:
    """The files of both splits in a token file's folder that are named as it is; in order."""
    parts = re.fullmatch(r"(.*_)?(train|val)(_\d+)?\.bin", path.name)
    if not parts:
        raise UserError(f"{path}: name the files NAME_train.bin and NAME_val.bin, to tell which they are")
    pattern = re.compile(re.escape(parts[1] or "") + r"(train|val)(_\d+)?\.bin")
    files: dict[str, list[Path]] = {"train": [], "val": []}
    for other in sorted(path.parent.iterdir()):
        if match := pattern.fullmatch(other.name):
            files[match[1]].append(other)
    for split, found in files.items():
        if not found:
            raise UserError(f"{path}: there is no {parts[1] or ''}{split}.bin beside it")
    return files


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_data(data: Data, out: Path) -> list[Path]:
    """A data folder's ids as NAME_train.bin and NAME_val.bin, in several files of each where there are very many."""
    splits = {"train": data.train, "val": data.val}
    for split, ids in splits.items():
        if not len(ids):
            raise UserError(f"{data.folder}: its {split} split is empty, which llm.c does not read")
    return write_splits(out, file_name(data.meta.name), splits, data.meta.vocab_size)


def write_splits(out: Path, name: str, splits: dict[str, np.ndarray], vocab_size: int) -> list[Path]:
    paths = []
    for split, ids in splits.items():
        starts = range(0, len(ids), SHARD)
        for number, start in enumerate(starts):
            paths.append(out / f"{name}_{split}{f'_{number:06d}' if len(starts) > 1 else ''}.bin")
            write_tokens(paths[-1], ids[start : start + SHARD], vocab_size)
    return paths


def file_name(name: str) -> str:
    """llm.c's programs open dev/data/tinyshakespeare/tiny_shakespeare_train.bin."""
    return {"tinyshakespeare": "tiny_shakespeare"}.get(name, name)


def write_text(text: str, out: Path) -> list[Path]:
    """A corpus's name or a text file, as dev/data/tinyshakespeare.py makes it into GPT-2's tokens."""
    source = find_source([text], DataConfig())
    if any(part.kind == "hub" for part in source.parts):
        raise UserError(f"{text} is streamed; prepare it first and export its data folder")
    tokenizer = gpt2_tokenizer()
    ids = encode_sections("".join(source.blocks()).replace(END, "\n\n"), tokenizer)
    if len(ids) <= VAL_TOKENS:
        raise UserError(f"{text}: llm.c's script keeps {VAL_TOKENS:,} tokens for val, and there are {len(ids):,}")
    splits = {"train": ids[VAL_TOKENS:], "val": ids[:VAL_TOKENS]}
    return write_splits(out, file_name(source.name), splits, tokenizer.vocab_size)


def encode_sections(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Ids, int32, of the sections between blank lines, each a document: the end-of-text token comes before it.

    Two line ends stay at the end of each section but the last.
    """
    sections = [section + "\n\n" for section in text.split("\n\n")]
    sections[-1] = sections[-1][:-2]
    begin = np.array([tokenizer.end_of_text], np.int32)
    return np.concatenate([part for section in sections for part in (begin, tokenizer.encode(section))])


# ---- tokenizers ----


def find_tokenizer(wanted: str | None, beside: Path) -> Tokenizer:
    path = beside.with_name("gpt2_tokenizer.bin") if wanted is None else Path(wanted)
    if claims(path):
        return read_llmc_tokenizer(path)
    if wanted in (None, "gpt2"):
        return gpt2_tokenizer()
    return read_tokenizer(path / "tokenizer.json" if path.is_dir() else path)


def read_llmc_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file that has every token's bytes, which is all that llm.c needs to print text.

    The merges of a byte-level BPE are found again: a token was made of the two that its bytes become by all earlier
    merges. How a text is cut into words is not in the file: it is taken to be GPT-2's way. A vocabulary of single
    characters becomes a tokenizer of characters. Raises UserError for any other.
    """
    path = Path(path)
    _, version, count, end = open_kind(path, TOKENIZER)[:4]
    raw = path.read_bytes()[4 * HEADER :]
    if version not in (1, 2) or not 0 < count <= len(raw) // 2:
        raise UserError(f"{path}: version {version} with {count} tokens in {len(raw)} bytes; not a tokenizer")
    tokens, at = [], 0
    while at < len(raw) and raw[at]:
        tokens.append(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
    end = 50256 if version == 1 else end
    if at != len(raw) or len(tokens) != count or len(set(tokens)) != count or not 0 <= end < count:
        raise UserError(f"{path}: its tokens are not the {count} different ones that its header says")
    return build_tokenizer(tokens, tokens[end] == END_OF_TEXT.encode(), str(path))


def build_tokenizer(tokens: list[bytes], has_end: bool, where: str) -> Tokenizer:
    words = [t for t in tokens if not (has_end and t == END_OF_TEXT.encode())]
    try:
        made = (
            bpe_of(tokens, words) if {bytes([b]) for b in range(256)} <= set(words) else characters_of(words, has_end)
        )
    except ValueError as error:
        raise UserError(f"{where}: its tokenizer cannot be found again ({error}); give a tokenizer.json") from None
    if token_bytes(made, where) != tokens:
        raise UserError(f"{where}: its tokenizer cannot be found again (other ids come out); give a tokenizer.json")
    return made


def bpe_of(tokens: list[bytes], words: list[bytes]) -> Tokenizer:
    from tokenizers import models

    names = {token: "".join(map(byte_names().__getitem__, token)) for token in words}
    rank = {token: i for i, token in enumerate(words)}
    merges = [tuple(names[part] for part in halves(token, rank)) for token in words if len(token) > 1]
    vocabulary = {names.get(token, END_OF_TEXT): i for i, token in enumerate(tokens)}
    return Tokenizer(byte_level(models.BPE(vocabulary, merges)))


def halves(token: bytes, rank: dict[bytes, int]) -> list[bytes]:
    """The two tokens that were merged into this one: its bytes, merged by every merge of a lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank.get(a + b, len(rank)) for a, b in itertools.pairwise(parts)]
        i = ranks.index(min(ranks))
        if ranks[i] >= rank[token]:
            raise ValueError(f"token {token!r} is not a merge of two earlier ones")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def characters_of(words: list[bytes], has_end: bool) -> Tokenizer:
    symbols = [word.decode() for word in words]
    if any(len(symbol) != 1 for symbol in symbols):
        raise ValueError("it is neither of bytes and their merges nor of characters")
    return from_symbols(symbols, has_end)


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer, str(path))
    begin = tokenizer.end_of_text
    if begin is None:  # llm.c's samples begin with this token
        begin = tokens.index(b"\n") if b"\n" in tokens else 0
    with replacing(path) as file:
        write_header(file, TOKENIZER, 2, len(tokens), begin)
        for token in tokens:
            file.write(bytes([len(token)]) + token)


def token_bytes(tokenizer: Tokenizer, where: str) -> list[bytes]:
    """Each token's bytes, by id. Raises UserError for a tokenizer that is neither byte-level nor of characters."""
    from tokenizers.decoders import ByteLevel

    inner = tokenizer.inner
    if not tokenizer.is_characters and not isinstance(inner.decoder, ByteLevel):
        raise UserError(f"{where}: llm.c's tokenizer file holds characters or byte-level tokens, and these are neither")
    added = inner.get_added_tokens_decoder()
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    tokens = []
    for i in range(tokenizer.vocab_size):
        name = inner.id_to_token(i) or ""
        plain = tokenizer.is_characters or i in added or not set(name) <= byte_of.keys()
        token = name.encode() if plain else bytes(byte_of[c] for c in name)
        if not 0 < len(token) < 256:
            raise UserError(f"{where}: token {i} has {len(token)} bytes; in llm.c's tokenizer file each has 1 to 255")
        tokens.append(token)
    return tokens


def byte_names() -> list[str]:
    """The character that stands for each byte in a byte-level tokenizer.json: itself where it is printable (GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]
