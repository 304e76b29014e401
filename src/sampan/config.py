"""Every setting of Sampan: its default, its range and its help text, each in this one place.

Command-line flags and configuration files are made from the dataclasses below. Names and defaults are nanoGPT's
where nanoGPT has them, so that its commands and files mean the same here.

    settings = read_file("configs/shakespeare_char.toml")          # {"n_layer": 6, ...}
    config = build(TrainConfig, settings | {"max_iters": 100})     # checked; raises UserError

This file does not choose sizes for a text (plan.py does) and imports nothing but the standard library.
"""

import difflib
import math
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sampan.errors import UserError
from sampan.messages import N_, _

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Settings = TypeVar("Settings", bound="DataclassInstance")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    aliases: Sequence[str] = (),
    literal: bool = False,
) -> Any:
    """Return a dataclass field with its help text and range. `low` and `high` are inclusive; a `literal` is no path."""
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "low": low, "high": high, "aliases": aliases, "literal": literal},
    )


def modules_of(folder: str) -> tuple[str, ...]:
    """Return the names of the modules in a folder of the package, such as model/families, without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / folder)])))


FAMILIES = modules_of("model/families")  # a file each
ACTIVATIONS = ("gelu_new", "silu", "relu2")  # Hugging Face's names
TOKENIZERS = {
    "char": "characters",
    "char+bytes": "characters",
    "gpt2": "byte_level",
    "bpe:SIZE": "byte_level",
}  # file of tokens/


class OptimizerKind(typing.NamedTuple):
    """What the memory, the folder of a run and the plan must know of an optimizer; csrc/ops/optimizers.h says it in C."""

    title: str
    moments: tuple[str, ...]  # what it keeps of each parameter that it updates, by PyTorch's names
    matrices_only: bool = False  # it updates the blocks' matrices, and AdamW the rest


OPTIMIZERS = {
    "adamw": OptimizerKind("AdamW", ("exp_avg", "exp_avg_sq")),
    "muon": OptimizerKind(N_("Muon and AdamW"), ("exp_avg",), matrices_only=True),
}
SIZES = {"tiny": 2, "mini": 3, "small": 4, "medium": 6, "large": 8, "xlarge": 12, "huge": 16}  # layers; see recipe.py


@dataclass(frozen=True)
class ModelSettings:
    """What can be asked for of a model. `None` is derived: `model.shape.resolve` makes a ModelShape of it."""

    title: typing.ClassVar[str] = N_("model")
    family: str = setting("gpt2", "architecture", choices=FAMILIES)
    n_layer: int = setting(12, "transformer blocks", low=1, high=1 << 12)
    n_head: int = setting(12, "attention heads", low=1, high=1 << 16)
    n_kv_head: int | None = setting(
        None, "key and value heads (in every family but gpt2); auto: n_head", low=1, high=1 << 16
    )
    n_embd: int = setting(768, "width of the residual stream", low=1, high=1 << 20)
    n_inner: int | None = setting(
        None, "width inside the MLP; auto: 4 x n_embd, or 8/3 x n_embd if the MLP is gated", low=1, high=1 << 22
    )
    head_dim: int | None = setting(None, "width of a head; auto: n_embd / n_head", low=1, high=1 << 20)
    block_size: int = setting(1024, "context length, in tokens", low=1, high=1 << 24)
    vocab_size: int | None = setting(None, "number of tokens; auto: the tokenizer's", low=1, high=1 << 24)
    activation: str | None = setting(
        None, "activation function of the MLP; auto: gelu_new in gpt2, else silu", choices=ACTIVATIONS
    )
    bias: bool | None = setting(
        None, "biases in linear layers, and in gpt2's LayerNorm; auto: only those that the family always has"
    )
    tie_word_embeddings: bool = setting(True, "share the weights of the token embedding and the output layer")
    dropout: float = setting(0.0, "dropout probability", low=0.0, high=0.99)
    norm_eps: float = setting(1e-5, "epsilon inside the norms", low=0.0)
    rope_theta: float = setting(10000.0, "base of the rotary positions", low=1.0)
    rope_scaling: dict | None = setting(None, "Hugging Face's rope_scaling; only a checkpoint sets it")


@dataclass(frozen=True)
class DataConfig:
    """Say how a text becomes tokens."""

    title: typing.ClassVar[str] = N_("data")
    tokenizer: str = setting(
        "auto",
        "char, char+bytes, gpt2, bpe:SIZE or the path of a model's folder or tokenizer.json; auto: chosen for the text",
    )
    val_fraction: float | None = setting(
        None,
        "share of the text, at its end, used for validation; auto: 0.1 (openwebtext: 0.0005)",
        low=0.0001,
        high=0.9,
    )
    val_file: str | None = setting(None, "validate on this text, and train on all of the other")
    encoding: str | None = setting(None, "encoding of the files, such as gb18030; auto: detected for each file")
    skip_unreadable: bool = setting(False, "leave out files that cannot be read, and name them")
    normalize: str = setting("none", "Unicode normalization of the text", choices=("none", "nfc", "nfkc"))
    text_field: str = setting("text", "field that holds the text in .jsonl, .json, .parquet and hf: records")
    data_dir: str | None = setting(None, "folder of train.bin and val.bin; auto: data/NAME")


@dataclass(frozen=True)
class MachineConfig:
    """Say what runs the arithmetic, and how."""

    title: typing.ClassVar[str] = N_("machine")
    engine: str = setting("auto", "engine; auto: torch if there is a GPU, else c", choices=("auto", "c", "torch"))
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto: the fastest available")
    dtype: str = setting("auto", "precision of matrix products", choices=("auto", "float32", "bfloat16", "float16"))
    compile: bool | None = setting(None, "torch.compile; auto: on a GPU")
    threads: int | None = setting(
        None, "CPU threads; auto: OMP_NUM_THREADS, else the physical cores that this process may use", low=1, high=1024
    )


@dataclass(frozen=True)
class OptimizerSettings:
    """What an engine must know to train: the optimizer, and how a step's batch reaches it."""

    title: typing.ClassVar[str] = N_("optimizer")
    batch_size: int = setting(12, "sequences per micro-batch", low=1)
    gradient_accumulation_steps: int = setting(40, "micro-batches per step, of all processes together", low=1)
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, about a third more time"
    )
    document_mask: bool = setting(
        False, "a token sees only its own document, also where a window holds several; training and evaluation"
    )
    end_of_text: int | None = setting(
        None, "id of the token at which a document begins, for document_mask; auto: the tokenizer's", low=0
    )
    optimizer: str = setting(
        "adamw", "muon: Muon for the blocks' matrices, AdamW for the rest", choices=tuple(OPTIMIZERS)
    )
    weight_decay: float = setting(0.1, "decoupled weight decay, on matrices only", low=0.0)
    beta1: float = setting(0.9, "AdamW: decay of the first moment", low=0.0, high=0.999999)
    beta2: float = setting(0.95, "AdamW: decay of the second moment", low=0.0, high=0.999999)
    momentum: float = setting(0.95, "Muon: momentum", low=0.0, high=0.999999)
    adamw_lr_ratio: float = setting(0.2, "with Muon: AdamW's learning rate as a share of learning_rate", low=0.0)
    grad_clip: float = setting(1.0, "clip the gradient norm to this value; 0: no clipping", low=0.0)
    backend: str | None = setting(None, "torch.distributed backend; auto: nccl on CUDA, else gloo")
    process_timeout: int = setting(600, "seconds to wait for the other ranks under torchrun", low=1)
    seed: int = setting(1337, "random seed", low=0, high=2**63 - 1)

    @property
    def windows_per_step(self) -> int:
        """Windows of the global batch, over all micro-batches and processes."""
        return self.batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class TrainConfig(ModelSettings, DataConfig, MachineConfig, OptimizerSettings):
    """Hold all settings of `sampan train`. The defaults are those of nanoGPT's train.py (GPT-2 124M)."""

    title: typing.ClassVar[str] = N_("training")
    dataset: tuple[str, ...] = setting(
        ("openwebtext",), "name of a corpus, files, folders, globs, hf:NAME, or - for standard input"
    )
    out_dir: str = setting("out", "folder of the run; out/NAME for a bare text")
    init_from: str = setting(
        "scratch", "scratch, resume, or what to fine-tune: a run's folder, a Hugging Face folder or a hub name"
    )
    minutes: float | None = setting(
        None, "training time, if there is no config file; auto: 1, on a GPU 3", low=0.01, high=1e6
    )
    size: str | None = setting(None, "model size; auto: chosen for the minutes", choices=tuple(SIZES))
    fit: str | None = setting(None, "memory limit, such as 2GB: choose micro-batch and gradient_checkpointing to fit")
    max_iters: int = setting(600000, "optimizer steps", low=0)
    max_epochs: float | None = setting(None, "train for at most this many passes over the text", low=0.001, high=1e6)
    learning_rate: float = setting(6e-4, "peak learning rate", low=0.0)
    decay_lr: bool = setting(True, "warm up, then decay along a cosine; False: constant rate")
    warmup_iters: int = setting(2000, "steps of linear warm-up", low=0)
    lr_decay_iters: int | None = setting(600000, "step at which the cosine reaches min_lr; auto: max_iters", low=1)
    min_lr: float = setting(6e-5, "learning rate after the decay", low=0.0)
    start_iter: int = setting(
        0,
        "step at which a run went on for longer: the rate falls in a line from there; a resume with more steps sets it",
        low=0,
    )
    on_nan: str = setting(
        "stop",
        "what to do if a loss or gradient is NaN or infinite: stop the run, or skip the step",
        choices=("stop", "skip"),
    )
    eval_interval: int = setting(2000, "steps between evaluations", low=1)
    eval_iters: int = setting(200, "batches per split in an evaluation, at most the whole split", low=1)
    patience: int | None = setting(
        None, "stop after this many evaluations without a lower val loss; auto: 6 for a bare text, else never", low=1
    )
    sample_interval: int | None = setting(
        None, "steps between samples, each after an evaluation; auto: four for a bare text, else none", low=1
    )
    eval_only: bool = setting(False, "evaluate once and stop")
    log_interval: int = setting(1, "steps between log lines, if output is not a terminal", low=1)
    always_save_checkpoint: bool = setting(True, "save last/ at every evaluation, not only at a new best")
    wandb_log: bool = setting(False, "log to Weights & Biases (pip install wandb)")
    wandb_project: str = setting("sampan", "Weights & Biases project")
    wandb_run_name: str | None = setting(None, "Weights & Biases run name; auto: name of the run's folder")
    tensorboard: bool = setting(False, "log to TensorBoard, in the run's folder (pip install tensorboardX)")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch."""
        return self.windows_per_step * self.block_size


@dataclass(frozen=True)
class SampleConfig(MachineConfig):
    """Hold all settings of `sampan sample`. Names and defaults are those of nanoGPT's sample.py."""

    title: typing.ClassVar[str] = N_("sampling")
    out_dir: str = setting("out", "a run's folder, a Hugging Face folder or a hub name")
    init_from: str = setting("resume", "resume: the model in out_dir; else a Hugging Face folder or hub name")
    weights: str = setting("best", "use the best or the last weights of a run", choices=("best", "last"))
    start: str | None = setting(
        None,
        "prompt; FILE:PATH reads it from a file, - from standard input; auto: a line end, or the beginning of a document",
        aliases=("--prompt",),
        literal=True,
    )
    num_samples: int = setting(1, "samples, drawn as one batch", low=1)
    max_new_tokens: int = setting(500, "tokens to generate after the prompt", low=0)
    temperature: float = setting(
        0.8, "0: always the likeliest token; 1: as the model says; above 1: more random", low=0.0
    )
    top_k: int | None = setting(200, "sample from the k likeliest tokens; 0 or auto: from all", low=0)
    top_p: float = setting(
        1.0,
        "nucleus sampling: keep the smallest set of tokens whose probabilities add up to this",
        low=0.0,
        high=1.0,
    )
    seed: int | None = setting(
        None,
        "random seed; the same seed writes the same text; auto: a new one, which is printed",
        low=0,
        high=2**63 - 1,
    )
    min_p: float = setting(
        0.0, "drop tokens less probable than this share of the likeliest token's probability", low=0.0, high=1.0
    )
    repetition_penalty: float = setting(
        1.0, "above 1: lower the logits of tokens that were written already, as transformers does; 1: off", low=1e-6
    )
    no_repeat_ngram_size: int = setting(0, "never write the same sequence of this many tokens twice; 0: off", low=0)
    stop: tuple[str, ...] = setting((), "end a sample before this string; may be repeated", literal=True)
    valid_utf8: bool | None = setting(
        None, "sample only tokens that keep the text valid UTF-8; auto: if tokens can be parts of characters"
    )
    check: bool = setting(False, "report how much of the output is quoted from the training text")
    oov: str = setting(
        "error",
        "if the vocabulary lacks a character of the prompt: stop, or skip the character",
        choices=("error", "skip"),
    )


@dataclass(frozen=True)
class EvalConfig(MachineConfig):
    """Hold all settings of `sampan eval`."""

    title: typing.ClassVar[str] = N_("evaluation")
    out_dir: str = setting("out", "a run's folder, a Hugging Face folder or a hub name")
    weights: str = setting("best", "use the best or the last weights of a run", choices=("best", "last"))
    stride: int | None = setting(
        None, "tokens by which the window moves on; auto: half a block; a whole block is fastest", low=1
    )
    batch_size: int = setting(16, "sequences at once", low=1)
    per_token: str | None = setting(None, "write the loss of each token to this file, a table with tabs")
    delimiter: str = setting(" ", "multiple choice: what stands between a context and its endings", literal=True)
    json: bool = setting(False, "print the figures as JSON")
    encoding: str | None = setting(None, "encoding of the files, such as gb18030; auto: detected for each file")
    text_field: str = setting("text", "field that holds the text in .jsonl, .json, .parquet and hf: records")


RUN_SORTS = ("changed", "name", "val_loss", "bits_per_character", "parameters", "step")


@dataclass(frozen=True)
class RunsConfig:
    """Hold all settings of `sampan runs`."""

    title: typing.ClassVar[str] = N_("runs")
    out_dir: str = setting("out", "folder that holds runs")
    sort: str = setting("changed", "column to sort by; changed: the newest first", choices=RUN_SORTS)
    json: bool = setting(False, "print the runs with all their settings as JSON")


EXPORTS = ("gguf", "llmc", "onnx")  # formats that a model is written in, each a file of exchange/
EXPORT_DTYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ImportConfig:
    """Hold all settings of `sampan import`."""

    title: typing.ClassVar[str] = N_("import")
    out_dir: str | None = setting(None, "new folder; auto: out/PROGRAM-NAME")
    data_dir: str | None = setting(None, "data that the run was trained on; auto: data/DATASET, if it exists")
    tokenizer: str = setting(
        "auto", "gpt2, a meta.pkl, a tokenizer.json, a gpt2_tokenizer.bin, or the training text of a character model"
    )
    n_head: int | None = setting(None, "attention heads, if the file does not record them", low=1)


@dataclass(frozen=True)
class ExportConfig:
    """Hold all settings of `sampan export`."""

    title: typing.ClassVar[str] = N_("export")
    to: str | None = setting(None, "output format (required)", choices=EXPORTS)
    out: str | None = setting(None, "output file, or folder for llmc; auto: in the run's folder")
    dtype: str = setting("f32", "precision of the stored matrices", choices=EXPORT_DTYPES)
    weights: str = setting("best", "export the best or the last weights of a run", choices=("best", "last"))
    kv_cache: bool = setting(False, "onnx: with past keys and values as inputs and outputs")
    debug_state: bool = setting(False, "llmc: also write the debug state that its test_gpt2 compares")
    data_dir: str | None = setting(None, "llmc: data folder that the debug batch is taken from; auto: random tokens")


def types_of(cls: type) -> dict[str, tuple[Any, bool]]:
    """Return {setting: (base type, optional)}; `int | None` is (int, True)."""
    found = {}
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        kinds = [t for t in typing.get_args(hints[f.name]) if t is not types.NoneType]
        optional = isinstance(hints[f.name], types.UnionType)
        found[f.name] = (kinds[0] if optional else hints[f.name], optional)
    return found


def convert(cls: type, name: str, value: Any) -> Any:
    """Return the value of setting `name` from a string (a flag) or from a literal of a config file.

    >>> convert(TrainConfig, "compile", "False"), convert(TrainConfig, "threads", "auto")
    (False, None)

    Raise UserError if it is of the wrong type or out of range.
    """
    kind, optional = types_of(cls)[name]
    meta = cls.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    if value is None or (optional and not meta["literal"] and str(value).lower() in ("auto", "none")):
        if optional:
            return None
        raise UserError(_("{name} needs a value", name=name))
    read, wanted = READERS[kind]
    try:
        result = read(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        message = (
            _("{name}={value!r}: expected {wanted} or auto") if optional else _("{name}={value!r}: expected {wanted}")
        )
        raise UserError(message.format(name=name, value=value, wanted=_(wanted))) from None
    check_value(name, result, meta)
    return result


def check_value(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    """Raise UserError for a value outside of its range or choices, and for text that cannot be a path."""
    low, high, choices = meta["low"], meta["high"], meta["choices"]
    if value == "" and not meta["literal"]:
        raise UserError(_("{name} needs a value", name=name))
    about = dict(name=name, value=value, low=low, high=high)
    texts = value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
    if not meta["literal"] and not all(map(is_name, texts)):
        raise UserError(_("{name}: not a valid path: {texts}", name=name, texts=str(value)[:80]))
    if choices and value not in choices:
        raise UserError(_("{name}={value}: expected one of {choices}", choices=", ".join(choices), **about))
    if low is not None and high is not None and not low <= value <= high:
        raise UserError(_("{name}={value}: expected a value from {low} to {high}", **about))
    if low is not None and value < low:
        raise UserError(_("{name}={value}: expected at least {low}", **about))


# ---- what a flag or a file says, as each type ----


BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_bool(value: Any) -> bool:
    return BOOLEANS[str(value).lower()]


def read_int(value: Any) -> int:
    """Return a whole number, also of "1e3" and 4.0; Python's own limit refuses thousands of digits."""
    number = float(value) if not isinstance(value, (int, str)) or "e" in str(value).lower() else int(value)
    if isinstance(value, bool) or int(number) != number:
        raise ValueError(value)
    return int(number)


def read_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def read_text(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise TypeError(value)
    return str(value)


def read_texts(value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else tuple(value)
    if isinstance(value, dict) or not all(isinstance(item, str) for item in items):
        raise TypeError(value)
    return items


def read_table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {  # type: (function, what it expects)
    bool: (read_bool, N_("True or False")),
    int: (read_int, N_("a whole number")),
    float: (read_float, N_("a finite number")),
    str: (read_text, N_("a text")),
    tuple[str, ...]: (read_texts, N_("a text or a list of texts")),
    dict: (read_table, N_("a table")),
}


def is_name(text: str) -> bool:
    """Return whether a file can have this name: within the limits of Linux, which are the narrowest."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in raw and len(raw) < 4096 and all(len(part) < 256 for part in raw.split(b"/"))


def check_keys(cls: type, keys: Iterable[str], where: str) -> None:
    """Raise UserError for the first key that is no setting of `cls`, with the nearest setting."""
    known = [f.name for f in fields(cls)]
    aliases = [alias.lstrip("-") for f in fields(cls) for alias in f.metadata["aliases"]]
    for key in keys:
        if key in known:
            continue
        near = [name for name in known if initials(name) == key]  # lr is learning_rate, and not min_lr
        near += difflib.get_close_matches(key, known + aliases, n=1, cutoff=0.5)
        if near:
            about = dict(where=where, key=key, near=near[0])
            raise UserError(_("{where}: unknown setting {key!r}; did you mean {near}?", **about))
        raise UserError(_("{where}: unknown setting {key!r}", where=where, key=key))


def initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_"))


def build(cls: type[Settings], settings: Mapping[str, Any], where: str = "settings") -> Settings:
    """Return an instance of `cls` with `settings` over its defaults, each converted and checked."""
    check_keys(cls, settings, where)
    return cls(**{name: convert(cls, name, value) for name, value in settings.items()})


def change(config: Settings, settings: Mapping[str, Any]) -> Settings:
    """Return `config` with `settings` over it, each converted and checked."""
    check_keys(type(config), settings, "settings")
    return replace(config, **{name: convert(type(config), name, value) for name, value in settings.items()})
