"""Every setting of Sampan: its default, its range and its help text, each in this one place.

Command-line flags and configuration files are made from the dataclasses below. Names and defaults are nanoGPT's
where nanoGPT has them, so that its commands and its files mean here what they mean there.

    settings = read_file("configs/shakespeare_char.toml")          # {"n_layer": 6, ...}
    config = build(TrainConfig, settings | {"max_iters": 100})     # checked; raises UserError

This file does not choose sizes for a text (plan.py does) and imports nothing but the standard library.
"""

import difflib
import os
import types
import typing
from dataclasses import dataclass, field, fields, replace

from sampan.errors import UserError


def setting(default, help, *, choices=None, low=None, high=None, aliases=(), literal=False):
    """A dataclass field that carries its help text and range. `low` and `high` are inclusive."""
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "low": low, "high": high, "aliases": aliases, "literal": literal},
    )


FAMILIES = ("gpt2", "llama", "qwen3")
OPTIMIZERS = ("adamw", "muon")
SIZES = {"tiny": 2, "mini": 3, "small": 4, "medium": 6, "large": 8, "xlarge": 12, "huge": 16}  # layers; see recipe.py


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. `None` means "derived": `model.resolve` fills it in."""

    title: typing.ClassVar[str] = "model"
    family: str = setting("gpt2", "architecture", choices=FAMILIES)
    n_layer: int = setting(12, "transformer blocks", low=1, high=1 << 12)
    n_head: int = setting(12, "attention heads", low=1, high=1 << 16)
    n_kv_head: int | None = setting(None, "key and value heads (llama, qwen3); auto: n_head", low=1, high=1 << 16)
    n_embd: int = setting(768, "width of the residual stream", low=1, high=1 << 20)
    n_inner: int | None = setting(
        None, "width inside the MLP; auto: 4 x n_embd, or 8/3 x n_embd with SwiGLU", low=1, high=1 << 22
    )
    head_dim: int | None = setting(None, "width of a head; auto: n_embd / n_head", low=1, high=1 << 20)
    block_size: int = setting(1024, "context length, in tokens", low=1, high=1 << 24)
    vocab_size: int | None = setting(None, "number of tokens; auto: the tokenizer's", low=1, high=1 << 24)
    bias: bool = setting(False, "biases in linear layers, and in gpt2's LayerNorm")
    tie_word_embeddings: bool = setting(True, "the head shares the token embedding's weights")
    dropout: float = setting(0.0, "dropout probability", low=0.0, high=0.99)
    norm_eps: float = setting(1e-5, "epsilon inside the norms", low=0.0)
    rope_theta: float = setting(10000.0, "base of the rotary positions (llama, qwen3)", low=1.0)
    rope_scaling: dict | None = setting(None, "Hugging Face's rope_scaling; only a checkpoint sets it")


@dataclass(frozen=True)
class DataConfig:
    """How a text becomes tokens."""

    title: typing.ClassVar[str] = "data"
    tokenizer: str = setting(
        "auto", "char | char+bytes | gpt2 | bpe:SIZE | path of a tokenizer.json; auto: what suits the text"
    )
    val_fraction: float | None = setting(
        None,
        "share of the text, at its end, kept for validation; auto: 0.1 (openwebtext: 0.0005)",
        low=0.0001,
        high=0.9,
    )
    val_file: str | None = setting(None, "validate on this text instead, and train on all of the other")
    encoding: str | None = setting(None, "encoding of the files, such as gb18030; auto: detected, file by file")
    normalize: str = setting("none", "Unicode normalisation of the text", choices=("none", "nfc", "nfkc"))
    text_field: str = setting("text", "where a record of a .jsonl, .parquet or hf: has its text")
    data_dir: str | None = setting(None, "folder of train.bin and val.bin; auto: data/NAME")


@dataclass(frozen=True)
class MachineConfig:
    """What runs the arithmetic, and how."""

    title: typing.ClassVar[str] = "machine"
    engine: str = setting(
        "auto", "what computes; auto: torch where there is a GPU, else c", choices=("auto", "c", "torch")
    )
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto: the fastest there is")
    dtype: str = setting("auto", "precision of the products", choices=("auto", "float32", "bfloat16", "float16"))
    compile: bool | None = setting(None, "torch.compile; auto: on a GPU")
    threads: int | None = setting(None, "CPU threads; auto: the physical cores", low=1, high=1024)
    seed: int = setting(1337, "everything random follows from it", low=0, high=2**63 - 1)


@dataclass(frozen=True)
class TrainConfig(ModelConfig, DataConfig, MachineConfig):
    """Everything that `sampan train` can be told. The defaults are those of nanoGPT's train.py (GPT-2 124M)."""

    title: typing.ClassVar[str] = "training"
    dataset: tuple[str, ...] = setting(
        ("openwebtext",), "a corpus's name, files, folders, globs, hf:NAME, or - for standard input"
    )
    out_dir: str = setting("out", "the run's folder")
    init_from: str = setting("scratch", "scratch | resume | a Hugging Face folder or hub name, such as gpt2")
    minutes: float | None = setting(
        None, "how long a training with no configuration may take; auto: 1, on a GPU 3", low=0.01, high=1e6
    )
    size: str | None = setting(
        None, "of the model, from which the widths follow; auto: by the minutes", choices=tuple(SIZES)
    )
    fit: str | None = setting(
        None, "memory that training may take, such as 2GB: micro-batch and gradient_checkpointing are chosen to fit"
    )
    batch_size: int = setting(12, "windows per micro-batch", low=1)
    gradient_accumulation_steps: int = setting(40, "micro-batches per step, over all processes together", low=1)
    max_iters: int = setting(600000, "optimizer steps", low=0)
    optimizer: str = setting("adamw", "muon: that for the blocks' matrices, AdamW for the rest", choices=OPTIMIZERS)
    learning_rate: float = setting(6e-4, "highest learning rate", low=0.0)
    decay_lr: bool = setting(True, "warm up, then decay along a cosine; else constant")
    warmup_iters: int = setting(2000, "steps of linear warm-up", low=0)
    lr_decay_iters: int | None = setting(600000, "step at which the cosine reaches min_lr; auto: max_iters", low=1)
    min_lr: float = setting(6e-5, "learning rate after the decay", low=0.0)
    weight_decay: float = setting(0.1, "decoupled weight decay, on matrices only", low=0.0)
    beta1: float = setting(0.9, "AdamW's first moment", low=0.0, high=0.999999)
    beta2: float = setting(0.95, "AdamW's second moment", low=0.0, high=0.999999)
    momentum: float = setting(0.95, "Muon's momentum", low=0.0, high=0.999999)
    adamw_lr_ratio: float = setting(0.2, "beside Muon, AdamW's learning rate as a share of learning_rate", low=0.0)
    gradient_checkpointing: bool = setting(
        False, "keep less of the forward pass and compute it again in the backward pass: less memory, a third more time"
    )
    grad_clip: float = setting(1.0, "clip the gradient to this norm; 0 does not clip", low=0.0)
    on_nan: str = setting(
        "stop", "what a loss or gradient that is not finite does; skip: not that step", choices=("stop", "skip")
    )
    eval_interval: int = setting(2000, "steps between evaluations", low=1)
    eval_iters: int = setting(200, "batches per split in an evaluation, or the whole split if that is less", low=1)
    patience: int | None = setting(
        None,
        "stop after so many evaluations without a better val loss; auto: 6 where nothing else is configured",
        low=1,
    )
    eval_only: bool = setting(False, "evaluate once and stop")
    log_interval: int = setting(1, "steps between log lines, off a terminal", low=1)
    always_save_checkpoint: bool = setting(True, "keep last/ at every evaluation, not only when val improves")
    backend: str | None = setting(None, "torch.distributed backend under torchrun; auto: nccl on cuda, else gloo")
    process_timeout: int = setting(600, "seconds that a process under torchrun waits for the others", low=1)
    wandb_log: bool = setting(False, "log to Weights & Biases too (pip install wandb)")
    wandb_project: str = setting("sampan", "its project")
    wandb_run_name: str | None = setting(None, "its run name; auto: the run's folder")
    tensorboard: bool = setting(False, "log to TensorBoard too, into the run's folder (pip install tensorboard)")

    @property
    def windows_per_step(self) -> int:
        """Of the global batch: over all micro-batches and processes."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        return self.windows_per_step * self.block_size


@dataclass(frozen=True)
class SampleConfig(MachineConfig):
    """Everything that `sampan sample` can be told. Names and defaults are those of nanoGPT's sample.py."""

    title: typing.ClassVar[str] = "sampling"
    out_dir: str = setting("out", "a run's folder, any Hugging Face folder of a known family, or a hub name")
    init_from: str = setting("resume", "resume: from out_dir | a Hugging Face folder or hub name, such as gpt2")
    weights: str = setting("best", "which of a run's weights", choices=("best", "last"))
    start: str | None = setting(
        None,
        "the prompt; FILE:PATH reads it from a file, - from standard input; auto: a line end",
        aliases=("--prompt",),
        literal=True,
    )
    num_samples: int = setting(1, "samples, drawn as one batch", low=1)
    max_new_tokens: int = setting(500, "tokens to add to the prompt", low=0)
    temperature: float = setting(0.8, "0: the likeliest token always; 1: as the model says; above: wilder", low=0.0)
    top_k: int | None = setting(200, "draw from the k likeliest tokens; 0 or auto: from all", low=0)
    top_p: float = setting(
        1.0, "draw from the likeliest tokens that hold this share of the probability", low=0.0, high=1.0
    )
    stop: tuple[str, ...] = setting((), "end a sample before this string; may be given more than once", literal=True)
    valid_utf8: bool | None = setting(
        None, "draw only tokens that keep the text UTF-8; auto: where tokens are parts of characters"
    )
    check: bool = setting(False, "say afterwards how much of the output stands verbatim in the training text")
    oov: str = setting("error", "a character that the vocabulary lacks", choices=("error", "skip"))


EXPORTS = ("gguf", "llmc", "onnx")  # formats that a model is written in, each a file of exchange/
EXPORT_DTYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ImportConfig:
    """Everything that `sampan import` can be told."""

    title: typing.ClassVar[str] = "import"
    out_dir: str | None = setting(None, "the new folder; auto: out/PROGRAM-NAME")
    data_dir: str | None = setting(None, "the data that a run was trained on; auto: data/DATASET, where it is")
    tokenizer: str = setting(
        "auto", "gpt2 | a meta.pkl | a tokenizer.json | gpt2_tokenizer.bin | the text learnt, by characters"
    )
    n_head: int | None = setting(None, "attention heads, where the file does not say", low=1)


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `sampan export` can be told."""

    title: typing.ClassVar[str] = "export"
    to: str | None = setting(None, "the format, which has to be said", choices=EXPORTS)
    out: str | None = setting(None, "the file, or llmc's folder; auto: in the run's folder")
    dtype: str = setting("f32", "what the matrices are stored as", choices=EXPORT_DTYPES)
    weights: str = setting("best", "which of a run's weights", choices=("best", "last"))
    kv_cache: bool = setting(False, "onnx: with past keys and values as inputs and outputs")
    debug_state: bool = setting(False, "llmc: also what its test_gpt2 compares")
    data_dir: str | None = setting(None, "llmc: the data whose first val tokens that is of; auto: random tokens")


SHAPE = tuple(f.name for f in fields(ModelConfig))


def shape_of(config: ModelConfig) -> ModelConfig:
    """The shape alone, of a config that has other settings too."""
    return ModelConfig(**{name: getattr(config, name) for name in SHAPE})


def types_of(cls) -> dict:
    """{field name: (base type, optional)}; `int | None` is (int, True)."""
    found = {}
    hints = typing.get_type_hints(cls)
    for name in cls.__dataclass_fields__:
        hint = hints[name]
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        optional = isinstance(hint, types.UnionType)
        found[name] = (next(t for t in hint.__args__ if t is not types.NoneType) if optional else hint, optional)
    return found


def convert(cls, name: str, value):
    """The value of setting `name` from a string (a flag) or from a file's literal.

    >>> convert(TrainConfig, "compile", "False"), convert(TrainConfig, "threads", "auto")
    (False, None)

    Raises UserError where it is of the wrong type or out of range.
    """
    kind, optional = types_of(cls)[name]
    meta = cls.__dataclass_fields__[name].metadata
    if value is None or (optional and not meta["literal"] and str(value).lower() in ("auto", "none")):
        if optional:
            return None
        raise UserError(f"{name} needs a value")
    if kind is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name}={value!r}: expected a table")
        return value
    if kind == tuple[str, ...]:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise UserError(f"{name}={value!r}: expected a text, or a list of texts")
        if not meta["literal"] and not all(map(is_name, items)):
            raise UserError(f"{name}: holds what no file or folder can be called")
        return tuple(items)
    try:
        if kind is bool:
            result = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
        elif kind is int:
            number = float(value) if not isinstance(value, (int, str)) or "e" in str(value).lower() else int(value)
            result = int(number)
            if result != number or isinstance(value, bool):
                raise ValueError
        elif kind is float:
            if isinstance(value, bool):
                raise ValueError
            result = float(value)
        else:
            if not isinstance(value, (str, int, float)):
                raise ValueError
            result = str(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise UserError(f"{name}={value!r}: expected {wanted}{' or auto' if optional else ''}") from None
    if kind is str and not meta["literal"] and not is_name(result):
        raise UserError(f"{name}={result[:80]!r}: not what a file or folder can be called")
    if meta["choices"] and result not in meta["choices"]:
        raise UserError(f"{name}={result}: expected one of {', '.join(meta['choices'])}")
    if kind in (int, float):
        low, high = meta["low"], meta["high"]
        if not (float("-inf") < result < float("inf")):
            raise UserError(f"{name}={result}: expected a finite number")
        if (low is not None and result < low) or (high is not None and result > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"{name}={result}: expected {bounds}")
    return result


def is_name(text: str) -> bool:
    """Whether the system can be asked for a file of that name: Linux's limits, which others' do not exceed."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in raw and len(raw) < 4096 and all(len(part) < 256 for part in raw.split(b"/"))


def check_keys(cls, keys, where: str) -> None:
    """Raises UserError for the first key that is no setting of `cls`, naming the nearest one that is."""
    known = [f.name for f in fields(cls)]
    aliases = [alias.lstrip("-") for f in fields(cls) for alias in f.metadata["aliases"]]
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known + aliases, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown setting {key!r}{hint}")


def build(cls, settings: dict, where: str = "settings"):
    """An instance of `cls` with `settings` over its defaults, each converted and checked."""
    check_keys(cls, settings, where)
    return cls(**{name: convert(cls, name, value) for name, value in settings.items()})


def change(config, settings: dict):
    """`config` with `settings` over it, each converted and checked."""
    check_keys(type(config), settings, "settings")
    return replace(config, **{name: convert(type(config), name, value) for name, value in settings.items()})
