"""A run's folder: a model folder that can be resumed, written whole or not at all.

    run = Run("out/shakespeare"); run.save_last(...); run.load_last()

A run's folder is such a folder, with the best weights so far, and beside them

    run.json                     every resolved setting, the data's checksum, versions, machine
    last/                        such a folder with the newest weights, and optimizer.safetensors: for --resume
    metrics.jsonl, loss.svg      written by report/
    .lock                        says who is training here; new/ and *.partial are saves in the making

No pickle is read or written; nothing in a folder can run. This file does not know how a model computes.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from sampan import __version__
from sampan.checkpoint.folder import load_model, load_model_config, save_description, writing
from sampan.checkpoint.huggingface import to_hf_weights
from sampan.checkpoint.tensors import OPTIMIZER, WEIGHTS, commit, open_safetensors, stage_safetensors
from sampan.config import ModelConfig, TrainConfig, build, is_name
from sampan.errors import UserError
from sampan.files import Held, lock_file, read_json, sync_folder, write_json
from sampan.model.parameters import parameters
from sampan.tokens.tokenizer import Tokenizer


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
