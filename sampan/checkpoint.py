"""Model folders: Hugging Face's on the outside, one table of parameters inside; written atomically, read without trust.

    model, weights = load_model("out/shakespeare")          # or any folder of the gpt2, llama and qwen3 families
    save_model("copy", model, weights, tokenizer)
    run = Run("out/shakespeare"); run.save_last(...); run.load_last()

A run's folder is such a folder, with the best weights so far, and beside them

    run.json                     every resolved setting, the data's checksum, versions, machine
    last/                        such a folder with the newest weights, and optimizer.safetensors: for --resume
    metrics.jsonl, loss.svg      written by report.py
    .lock                        says who is training here; new/ and *.partial are saves in the making

No pickle is read or written; nothing in a folder can run. This file does not know how a model computes.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import reprlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from . import __version__, tokenizer as tokenizers
from .config import FAMILIES, ModelConfig, TrainConfig, build, is_name
from .data import write_json, write_text
from .errors import UserError
from .fetch import mirror_folder
from .files import Held, lock_file, sync_folder
from .model import Param, parameters, resolve
from .tokenizer import Tokenizer

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
JSON_BYTES = 1 << 24  # the largest JSON file that is read: an index of 100,000 tensors has half of it
ROTARY_ANGLES = 1 << 25  # block_size x head_dim: a table of that size is made whatever the weights' size is

# ---- config.json ----

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def to_hf_config(config: ModelConfig, end_of_text: int | None) -> dict:
    """The config.json that transformers reads as the same model."""
    c = config
    common = {
        "architectures": [ARCHITECTURES[c.family]],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "float32",
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    if c.family == "gpt2":
        return common | {
            "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "n_inner": c.n_inner,
            "n_positions": c.block_size, "n_ctx": c.block_size, "activation_function": "gelu_new",
            "layer_norm_epsilon": c.norm_eps, "embd_pdrop": c.dropout, "attn_pdrop": c.dropout,
            "resid_pdrop": c.dropout, "bias": c.bias,
        }  # fmt: skip
    return common | {
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim, "hidden_size": c.n_embd, "intermediate_size": c.n_inner,
        "max_position_embeddings": c.block_size, "hidden_act": "silu", "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta, "rope_scaling": c.rope_scaling, "attention_bias": c.bias,
        "attention_dropout": c.dropout,
    } | ({"mlp_bias": c.bias} if c.family == "llama" else {"use_sliding_window": False})  # fmt: skip


def from_hf_config(hf: dict, where: str) -> ModelConfig:
    """The model that a config.json describes. Raises UserError for one that is not exactly of our families."""
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{where}: model_type {reprlib.repr(family)} is none of {', '.join(FAMILIES)}")

    def refuse_unless(key, *allowed):
        if hf.get(key, allowed[0]) not in allowed:
            only = " or ".join(map(repr, allowed))
            raise UserError(f"{where}: {key} {reprlib.repr(hf[key])} is not supported (only {only})")

    def pick(names: dict) -> dict:
        return {ours: hf[theirs] for ours, theirs in names.items() if hf.get(theirs) is not None}

    if family == "gpt2":
        refuse_unless("activation_function", "gelu_new", "gelu_pytorch_tanh")
        refuse_unless("scale_attn_weights", True)
        refuse_unless("scale_attn_by_inverse_layer_idx", False)
        refuse_unless("add_cross_attention", False)
        settings = {"vocab_size": 50257, "norm_eps": 1e-5, "bias": True, "block_size": 1024}
        settings |= pick({"vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd",
                          "n_inner": "n_inner", "block_size": "n_positions", "norm_eps": "layer_norm_epsilon",
                          "bias": "bias", "tie_word_embeddings": "tie_word_embeddings"})  # fmt: skip
    else:
        refuse_unless("hidden_act", "silu")
        refuse_unless("use_sliding_window", False)
        refuse_unless("pretraining_tp", 1)
        if family == "llama" and hf.get("mlp_bias", False) != hf.get("attention_bias", False):
            raise UserError(f"{where}: attention_bias and mlp_bias differ, which is not supported")
        settings = {"norm_eps": 1e-6, "tie_word_embeddings": False, "block_size": 2048}
        settings |= pick({"vocab_size": "vocab_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
                          "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "n_embd": "hidden_size",
                          "n_inner": "intermediate_size", "block_size": "max_position_embeddings",
                          "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta", "rope_scaling": "rope_scaling",
                          "bias": "attention_bias", "tie_word_embeddings": "tie_word_embeddings"})  # fmt: skip
        if family == "qwen3" and "head_dim" not in settings:
            settings["head_dim"] = 128  # its default in transformers
        rope = hf.get("rope_parameters")  # transformers 5 keeps both in one table
        if isinstance(rope, dict):
            settings |= {"rope_theta": rope.get("rope_theta", 10000.0)}
            if rope.get("rope_type", "default") != "default":
                settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    try:
        config = resolve(build(ModelConfig, {"family": family} | settings))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if family != "gpt2" and config.block_size * config.head_dim > ROTARY_ANGLES:
        raise UserError(
            f"{where}: max_position_embeddings {config.block_size} with heads {config.head_dim} wide asks for too large "
            f"a table of positions; set it to {ROTARY_ANGLES // config.head_dim} or less"
        )
    return config


# ---- weights ----


def to_hf_weights(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names and in its layout."""
    tensors = {}
    for p in parameters(config):
        pieces = np.split(weights[p.name], np.cumsum([rows for _, rows in p.stored])[:-1])
        for (name, _), piece in zip(p.stored, pieces, strict=True):
            tensors[name] = np.ascontiguousarray(piece.T if p.transposed and piece.ndim == 2 else piece)
    if config.family == "gpt2" and not config.bias:  # Hugging Face's GPT-2 always has biases: zeros are none
        for p in parameters(config):
            is_vector_with_bias = p.name.endswith(".weight") and not p.name.startswith(("wte", "wpe", "lm_head"))
            if is_vector_with_bias:
                tensors[p.stored[0][0].removesuffix("weight") + "bias"] = np.zeros(p.shape[0], np.float32)
    return tensors


def from_hf_weights(config: ModelConfig, tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Our parameters out of Hugging Face's tensors, float32.

    Raises UserError for a tensor that is missing, has another shape, or has no place in the model.
    """
    left = set(tensors)
    weights = {}
    for p in parameters(config):
        pieces = []
        for name, rows in p.stored:
            # GPT-2's own folders lack the prefix
            found = next((n for n in (name, name.removeprefix("transformer.")) if n in tensors), None)
            if found is None:
                raise UserError(f"{where}: tensor {name} is missing")
            left.discard(found)
            value = tensors[found].T if p.transposed and len(p.shape) == 2 else tensors[found]
            shape = (rows, *p.shape[1:])
            if p.name == "wpe.weight" and value.ndim == 2 and value.shape[0] > rows:
                value = value[:rows]  # a cropped block_size
            if value.shape != shape:
                raise UserError(
                    f"{where}: tensor {found} has shape {tensors[found].shape}, expected {hf_shape(p, shape)}"
                )
            pieces.append(value)
        weights[p.name] = np.concatenate(pieces).astype(np.float32, copy=False)
    for name in sorted(left):
        is_buffer = name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))
        is_tied = name == "lm_head.weight" and config.tie_word_embeddings
        is_zero_bias = name.endswith(".bias") and not config.bias and not tensors[name].any()
        if not (is_buffer or is_tied or is_zero_bias):
            raise UserError(
                f"{where}: tensor {reprlib.repr(name)} has no place in a {config.family} model of this configuration"
            )
    return weights


def hf_shape(p: Param, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if p.transposed else shape


class Tensors(Mapping):
    """The tensors of a model folder by name, read one at a time; bfloat16 and float16 as float32."""

    def __init__(self, folder: Path):
        index, single = folder / "model.safetensors.index.json", folder / WEIGHTS
        if single.is_file():
            paths = [single]
        elif index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(v, str) and Path(v).name == v for v in shards.values()
            ):
                raise UserError(f"{index}: not an index of shards in this folder")
            paths = [folder / name for name in sorted(set(shards.values()))]
        else:
            raise UserError(f"{folder} has no {WEIGHTS}; it is not a model's folder (pickled weights are never read)")
        self.opened = contextlib.ExitStack()  # one reading: a run that saves meanwhile does not mix two steps into it
        self.where = {}
        for path in paths:
            file = self.opened.enter_context(open_safetensors(path))
            self.where.update(dict.fromkeys(file.keys(), (path, file)))

    def __getitem__(self, name: str) -> np.ndarray:
        path, file = self.where[name]
        kind = file.get_slice(name).get_dtype()
        if kind == "BF16":
            return read_bfloat16(path, name)
        if kind not in ("F32", "F16", "F64"):
            raise UserError(f"{path}: tensor {reprlib.repr(name)} is of type {kind}; only float tensors are read")
        with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity
            return file.get_tensor(name).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


@contextlib.contextmanager
def open_safetensors(path: Path):
    try:
        file = safetensors.safe_open(path, "numpy")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:  # ValueError: no name of a file
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    with file as opened:
        yield opened


def read_bfloat16(path: Path, name: str) -> np.ndarray:
    """A bfloat16 tensor as float32, by its place in the file: NumPy has no such type. safe_open has checked the header."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            entry = json.loads(file.read(header_size))[name]
            (begin, end), shape = entry["data_offsets"], entry["shape"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}: tensor {reprlib.repr(name)} is described in an unusual way") from None
        file.seek(8 + header_size + begin)
        raw = np.frombuffer(file.read(end - begin), np.uint16)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > JSON_BYTES:
            raise UserError(f"{path}: larger than any such file ({path.stat().st_size:,} bytes)")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


# ---- model folders ----


def find_model(name: str) -> Path:
    """The folder of a local path, of SAMPAN_MIRROR/NAME, or of a hub name, fetched once by huggingface_hub.

    Raises UserError where it cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    mirrored = mirror_folder(name)
    if mirrored is not None and (mirrored / "config.json").is_file():
        return mirrored
    if Path(name).is_file():
        raise UserError(f"{name} is a file; give a run's folder, a Hugging Face folder or a hub name")
    if name.startswith((".", "/", "~", "out/")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir()):
        raise UserError(f"{name}: no such folder{runs_near(Path(name).parent)}")
    import huggingface_hub
    from huggingface_hub.utils import HFValidationError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, etag_timeout=5))
    except HFValidationError:
        raise UserError(f"{name}: no such folder, and not a name on the Hugging Face hub") from None
    except Exception as error:  # the hub's client and what it stands on raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{name}: no such folder, and it cannot be fetched from the Hugging Face hub ({reason}); give the path of a "
            "downloaded folder, or set SAMPAN_MIRROR to a folder that contains it, or HF_ENDPOINT to a mirror of the hub"
        ) from None


def runs_near(folder: Path) -> str:
    """The end of a sentence that names the runs in a folder, if there are any."""
    names = sorted(str(path.parent) for path in folder.glob("*/run.json"))
    return f"; the runs here are {', '.join(names[:8])}" if names else ""


def load_model_config(folder: str | Path) -> ModelConfig:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json{runs_near(Path(folder))}")
    return from_hf_config(read_json(path), str(path))


def load_model(folder: str | Path, block_size: int | None = None) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """A folder's model and weights, {name: float32}; `block_size` crops the context. Raises UserError."""
    config = crop(load_model_config(folder), block_size, str(folder))
    return config, from_hf_weights(config, Tensors(Path(folder)), str(folder))


def crop(config: ModelConfig, block_size: int | None, where: str) -> ModelConfig:
    if block_size is None:
        return config
    if block_size > config.block_size:
        raise UserError(
            f"block_size={block_size}: {where} has {config.block_size}, which can be cropped but not extended"
        )
    return replace(config, block_size=block_size)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json")
    return tokenizers.load(path)


def save_model(
    folder: str | Path, config: ModelConfig, weights: Mapping, tokenizer: Tokenizer | None, note=None
) -> None:
    """Write a folder that transformers loads as it is; `note` is kept in the weights' header. The weights come last."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_description(folder, config, tokenizer)
        commit(stage_safetensors(folder / WEIGHTS, to_hf_weights(config, weights), note or {}))


def save_description(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    end_of_text = tokenizer.end_of_text if tokenizer else None
    write_json(folder / "config.json", to_hf_config(config, end_of_text))
    if tokenizer:
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.block_size}
        described["clean_up_tokenization_spaces"] = False
        if end_of_text is not None:
            described["eos_token"] = tokenizer.inner.id_to_token(end_of_text)
        write_json(folder / "tokenizer_config.json", described)


# ---- writing ----


@contextlib.contextmanager
def writing(folder: Path):
    """Turns what the system refuses into a sentence; whatever was there before is still whole."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        fate = "what was saved before is still whole" if folder.exists() else "the folder is not there"
        raise UserError(f"{folder}: cannot be written ({reason}); {fate}") from None


def stage_safetensors(path: Path, tensors: dict[str, np.ndarray], note: dict) -> Path:
    """Write beside `path` and sync; `commit` puts it in place."""
    beside = path.with_name(path.name + ".partial")
    try:
        # transformers asks for "format"
        safetensors.numpy.save_file(tensors, beside, metadata={"format": "pt", "sampan": json.dumps(note)})
        beside.chmod(0o644)  # the library makes it readable to its owner alone
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def commit(*staged: Path) -> None:
    for beside in staged:
        os.replace(beside, beside.with_name(beside.name.removesuffix(".partial")))
    sync_folder(staged[0].parent)


def refuse_not_finite(weights: Mapping[str, np.ndarray], folder: Path) -> None:
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{folder}: the weights of {name} are not finite and are not saved (what was saved before is still whole); "
                "lower --learning_rate"
            )


def read_note(path: Path) -> dict:
    """What `save_model` was told to note in the header of a weights file; {} for others' files.

    Raises UserError for a note that says something else than a run's progress.
    """
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get("sampan", "{}")
    try:
        note = json.loads(text)
        is_sound = isinstance(note, dict) and all(is_progress(key, value) for key, value in note.items())
    except (ValueError, RecursionError):
        is_sound = False
    if not is_sound:
        raise UserError(f"{path}: its note of the run's progress is damaged")
    return note


def is_progress(key: str, value) -> bool:
    """Whether a value is one that the field of Progress can have."""
    if key in ("step", "best_step"):
        return type(value) is int and 0 <= value < 1 << 53
    is_number = type(value) is float or (type(value) is int and abs(value) < 1 << 53)
    return key not in Progress.__dataclass_fields__ or is_number


def read_state(path: Path) -> dict[str, np.ndarray]:
    """An optimizer's tensors: `step`, a whole number, and others. Raises UserError."""
    with open_safetensors(path) as file:
        state = {name: file.get_slice(name) for name in file.keys()}
        if any(entry.get_dtype() not in ("F32", "F64", "I64") for entry in state.values()):
            raise UserError(f"{path}: holds tensors of a type that no optimizer has")
        if "step" not in state or (state["step"].get_dtype(), state["step"].get_shape()) != ("I64", []):
            raise UserError(f"{path}: has no step")
        return {name: file.get_tensor(name) for name in state}


# ---- runs ----


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def restarted() -> bool:
    """Whether torchrun has started this job again after one of its processes died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def job() -> str | None:
    """torchrun's name of the job, the same for all its starts; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: all that a resume needs beside weights and optimizer."""

    step: int = 0  # optimizer steps done
    val_loss: float = math.inf  # at the last evaluation
    best_step: int = 0
    best_val_loss: float = math.inf
    refused: int = 0  # steps in a row, up to this one, whose loss or gradient was not finite


class Run:
    """A run's folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.last = self.folder / "last"

    @contextlib.contextmanager
    def locked(self):
        """Keep other processes from writing here, and mend first what a killed one left. Reading needs no lock.

        Raises UserError that names the process which has the folder.
        """
        host, since = platform.node(), time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    words = f"process {os.getpid()} on {host}, since {since}"
                    stack.enter_context(lock_file(self.folder / ".lock", words))
                except Held as holder:
                    raise UserError(
                        f"{self.folder}: another run trains here ({holder}); wait for it, stop it, "
                        "or choose another --out_dir"
                    ) from None
                self.mend()
            yield

    def mend(self) -> None:
        """Finish what a killed process had decided, and remove what it had only begun. The lock is held."""
        if self.new.is_dir():
            self.take_new()
        staged = self.last / f"{OPTIMIZER}.partial"
        if self.can_resume() and read_note(self.last / OPTIMIZER) != read_note(self.last / WEIGHTS) and staged.exists():
            commit(staged)
        for left in [*self.folder.glob("*.partial"), *self.last.glob("*.partial")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @property
    def new(self) -> Path:
        """Where a run that replaces another stands, whole, until it has taken its place."""
        return self.folder / "new"

    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    def has_weights(self) -> bool:
        return (self.folder / WEIGHTS).exists() or self.can_resume()

    def can_resume(self) -> bool:
        return self.exists() and (self.last / OPTIMIZER).exists()

    @contextlib.contextmanager
    def begin(self, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer | None, data: dict):
        """Start a folder: `with run.begin(...) as first: first.save_last(...)`.

        When the block ends, what it saved takes the place of a run that is there. That one is whole until the new one
        is, beside it. The caller has asked whether it may, and holds the lock.
        """
        first = Run(self.new.with_suffix(".partial"))
        try:
            with writing(self.folder):
                first.last.mkdir(parents=True)
                for folder in (first.folder, first.last):
                    save_description(folder, model, tokenizer)
                first.write_settings(config, data)
            yield first
            with writing(self.folder):
                os.replace(first.folder, self.new)
                sync_folder(self.folder)
                with contextlib.suppress(OSError):  # its own name, in a folder that may not be ours
                    sync_folder(self.folder.resolve().parent)
                self.take_new()
        except BaseException:
            shutil.rmtree(first.folder, ignore_errors=True)
            raise

    def take_new(self) -> None:
        """Put what is in new/ where it belongs; a process that dies here leaves the rest to the next one's `mend`."""
        for name in ("metrics.jsonl", "loss.svg"):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.new.iterdir():
            old = self.folder / path.name
            if old.is_dir():
                shutil.rmtree(old)
            os.replace(path, old)
        self.new.rmdir()
        sync_folder(self.folder)

    def write_settings(self, config: TrainConfig, data: dict) -> None:
        versions = {"sampan": __version__, "python": platform.python_version(), "numpy": np.__version__}
        machine = {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
        }
        about = {"settings": asdict(config), "data": data}
        about |= {"sha256": digest(about), "job": job(), "versions": versions, "machine": machine}
        with writing(self.folder):
            write_json(self.folder / "run.json", about)

    def check_unchanged(self) -> None:
        """Raises UserError where somebody edited what a resume relies on."""
        path = self.folder / "run.json"
        about = read_json(path)
        if about.get("sha256") != digest({key: about.get(key) for key in ("settings", "data")}):
            raise UserError(f"{path} was edited; undo that, and give what is to change at a resume as flags")
        settings = self.settings()
        for name, value in asdict(load_model_config(self.last)).items():
            if name != "dropout" and value != getattr(settings, name):
                raise UserError(
                    f"{self.last / 'config.json'}: {name} is {value}, and run.json has {getattr(settings, name)}; "
                    "undo the edit"
                )

    def is_of_this_job(self) -> bool:
        """Whether the job began this run that torchrun has now started again."""
        return restarted() and self.exists() and read_json(self.folder / "run.json").get("job") == job()

    def settings(self) -> TrainConfig:
        """Every setting of the run, as resolved when it began."""
        path = self.folder / "run.json"
        if not path.exists():
            raise UserError(f"{self.folder} holds no run (no run.json)")
        settings = read_json(path).get("settings")
        if not isinstance(settings, dict):
            raise UserError(f"{path}: no settings in it")
        return build(TrainConfig, settings, str(path))

    def data(self) -> dict:
        path = self.folder / "run.json"
        data = read_json(path).get("data") or {}
        if not isinstance(data, dict) or not is_name(str(data.get("folder", ""))):
            raise UserError(f"{path}: its data is not a table with a folder")
        return data

    def save_best(self, model: ModelConfig, weights: Mapping, progress: Progress) -> None:
        refuse_not_finite(weights, self.folder)
        with writing(self.folder):
            commit(stage_safetensors(self.folder / WEIGHTS, to_hf_weights(model, weights), asdict(progress)))

    def save_last(self, model: ModelConfig, weights: Mapping, state: dict[str, np.ndarray], progress: Progress) -> None:
        """Replace last/. Both files are whole on disk before the first takes its place; see `load_last`."""
        refuse_not_finite(weights, self.folder)
        with writing(self.last):
            first = stage_safetensors(self.last / WEIGHTS, to_hf_weights(model, weights), asdict(progress))
            second = stage_safetensors(self.last / OPTIMIZER, state, asdict(progress))
            commit(first, second)

    def load_last(self, model: ModelConfig) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Progress]:
        """(weights, optimizer state, progress). Raises UserError where there is nothing to resume.

        A process that died between the two renames of `save_last` left new weights, and the optimizer that belongs
        to them still under its temporary name.
        """
        if not self.can_resume():
            raise UserError(f"{self.folder} holds nothing to resume (no last/{OPTIMIZER})")
        optimizer, staged = self.last / OPTIMIZER, self.last / f"{OPTIMIZER}.partial"
        progress = read_note(self.last / WEIGHTS)
        if read_note(optimizer) != progress and staged.exists():
            optimizer = staged
        if read_note(optimizer) != progress or not progress:
            raise UserError(
                f"{self.last}: weights and optimizer are not of the same step; this folder was changed by hand"
            )
        state = read_state(optimizer)
        for p in parameters(model):
            for key in p.moments(self.settings().optimizer):
                if getattr(state.get(f"{key}.{p.name}"), "shape", None) != p.shape:
                    raise UserError(f"{self.last / OPTIMIZER}: {key}.{p.name} is missing or has another shape")
        _, weights = load_model(self.last)
        return weights, state, Progress(**{f.name: progress.get(f.name, f.default) for f in fields(Progress)})

    def describe(self, which: str) -> str:
        """One line on the weights that sampling uses: "best, step 500, val 4.41; the run's last was step 5000, val 5.58"."""
        best, last = (read_note(p) if p.exists() else {} for p in (self.folder / WEIGHTS, self.last / WEIGHTS))
        chosen, other, name = (best, last, "last") if which == "best" else (last, best, "best")
        if "step" not in chosen:  # weights that another program put here
            return f"{which}, as another program wrote them"
        line = f"{which}, step {chosen['step']}, val {chosen.get('val_loss', math.nan):.4f}"
        if other and other.get("step") != chosen.get("step"):
            line += f"; the run's {name} was step {other.get('step')}, val {other.get('val_loss', math.nan):.4f}"
        return line
