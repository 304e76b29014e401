"""Read a run's folder: a Hugging Face folder with the best weights, and what a resume needs.

    run = Run("out/shakespeare"); weights, state, progress = run.load_last(model)

    model.safetensors, config.json, ...   the best weights so far, as any Hugging Face folder
    run.json                     every resolved setting, the data's checksum, versions, machine
    last/                        such a folder with the newest weights, and optimizer.safetensors: for --resume
    metrics.jsonl, loss.svg      written by report/
    .lock                        names the process that trains here; new/ and *.partial are unfinished saves

No pickle is read; nothing in a folder can run. Writing is save.py's.
"""

import hashlib
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint.folder import load_model, load_model_config
from sampan.checkpoint.tensors import OPTIMIZER, WEIGHTS, open_safetensors
from sampan.config import TrainConfig, build, is_name
from sampan.errors import UserError
from sampan.files import read_json
from sampan.messages import N_, _
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape, settings_of

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Progress:
    """Say where a run is: all that a resume needs besides weights and optimizer."""

    step: int = 0  # optimizer steps done
    val_loss: float = math.inf  # at the last evaluation
    val_step: int = 0  # of that evaluation
    best_step: int = 0
    best_val_loss: float = math.inf
    refused: int = 0  # steps in a row, up to this one, with NaN or infinity


class Run:
    """Read the folder of a run."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.last = self.folder / "last"
        self.about = self.folder / "run.json"

    def exists(self) -> bool:
        return self.about.exists()

    def has_weights(self) -> bool:
        return (self.folder / WEIGHTS).exists() or self.can_resume()

    def can_resume(self) -> bool:
        return self.exists() and (self.last / OPTIMIZER).exists()

    # ---- run.json ----

    def settings(self) -> TrainConfig:
        """Return every setting of the run, as resolved when it began. Raise UserError if there is no run."""
        if not self.exists():
            raise UserError(_("{folder} holds no run (run.json is missing)", folder=self.folder))
        settings = read_json(self.about).get("settings")
        if not isinstance(settings, dict):
            raise UserError(_("{path}: it has no settings", path=self.about))
        return build(TrainConfig, settings, str(self.about))

    def data(self) -> dict[str, Any]:
        """Return what run.json records of the data. Raise UserError if that is damaged."""
        data = read_json(self.about).get("data") or {}
        if not isinstance(data, dict) or not is_name(str(data.get("folder", ""))):
            raise UserError(_("{path}: its data is not a table with a folder", path=self.about))
        return data

    def documents(self) -> int | None:
        """Return the number of documents in the training text, None where it is unknown."""
        count = self.data().get("documents") if self.exists() else None
        return count if isinstance(count, int) else None

    def job(self) -> str | None:
        """Return the torchrun job that began the run, None for a run without torchrun."""
        return read_json(self.about).get("job") if self.exists() else None

    def check_unchanged(self) -> None:
        """Raise UserError if somebody edited what a resume relies on."""
        about, settings = read_json(self.about), self.settings()
        if about.get("sha256") != digest({key: about.get(key) for key in ("settings", "data")}):
            message = _("{path} has been edited. Undo the edit and pass changed settings as flags with --resume.")
            raise UserError(message.format(path=self.about))
        for name, value in vars(settings_of(load_model_config(self.last))).items():
            if name != "dropout" and value != getattr(settings, name):
                message = _("{path} has been edited: {name} is {value}, and run.json has {recorded}. Undo the edit.")
                path, recorded = self.last / "config.json", getattr(settings, name)
                raise UserError(message.format(path=path, name=name, value=value, recorded=recorded))

    # ---- weights ----

    def load_last(self, model: ModelShape) -> tuple[Arrays, Arrays, Progress]:
        """Return (weights, optimizer state, progress). Raise UserError if there is nothing to resume.

        A process that died between the two renames of `save_last` left new weights, and the optimizer that belongs to
        them under its temporary name.
        """
        if not self.can_resume():
            message = _("{folder} holds nothing to resume (last/{file} is missing)")
            raise UserError(message.format(folder=self.folder, file=OPTIMIZER))
        optimizer, staged = self.last / OPTIMIZER, self.last / f"{OPTIMIZER}.partial"
        progress = read_note(self.last / WEIGHTS)
        if read_note(optimizer) != progress and staged.exists():
            optimizer = staged
        if read_note(optimizer) != progress or not progress:
            message = _("{folder}: weights and optimizer are from different steps; the folder was changed by hand")
            raise UserError(message.format(folder=self.last))
        state = read_state(optimizer)
        for p in parameters(model):
            for key in p.moments(self.settings().optimizer):
                name = f"{key}.{p.name}"
                if name not in state or state[name].shape != p.shape:
                    raise UserError(_("{path}: {name} is missing or has another shape", path=optimizer, name=name))
        _model, weights = load_model(self.last)
        return weights, state, Progress(**{f.name: progress.get(f.name, f.default) for f in fields(Progress)})

    def describe(self, which: str) -> str:
        """Return one line on weights, such as "best, step 500, val 4.4100; last, step 5000, val 5.5800"."""
        other = N_("last") if which == "best" else N_("best")
        paths = {"best": self.folder / WEIGHTS, "last": self.last / WEIGHTS}
        notes = {name: read_note(path) if path.exists() else {} for name, path in paths.items()}
        if "step" not in notes[which]:
            return _("{which}, written by another program", which=_(which))
        lines = []
        for name in (which, other):
            note = notes[name]
            if "step" not in note or (name == other and note["step"] == notes[which]["step"]):
                continue
            loss, measured = note.get("val_loss", math.nan), note.get("val_step", note["step"])
            if (final := self.final()).get("step") == note["step"]:
                loss, measured = final["val_loss"], note["step"]
            if measured == note["step"]:
                lines.append(_("{which}, step {step}, val {loss:.4f}", which=_(name), step=measured, loss=loss))
            else:
                text = _("{which}, step {step}, val {loss:.4f} at step {measured}")
                lines.append(text.format(which=_(name), step=note["step"], loss=loss, measured=measured))
        return "; ".join(lines)

    def final(self) -> dict[str, Any]:
        """Return run.json's step, val_loss and tokens of the best weights, as measured at the end; {} before that."""
        final = read_json(self.about).get("final") if self.exists() else None
        is_sound = isinstance(final, dict) and type(final.get("step")) is int and type(final.get("val_loss")) is float
        return final if isinstance(final, dict) and is_sound else {}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_note(path: Path) -> dict[str, Any]:
    """Return the progress in the header of a weights file; {} for another program's. Raise UserError if it is damaged."""
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get("sampan", "{}")
    try:
        note = json.loads(text)
        is_sound = isinstance(note, dict) and all(is_progress(key, value) for key, value in note.items())
    except (ValueError, RecursionError):
        is_sound = False
    if not is_sound:
        raise UserError(_("{path}: its note of the run's progress is damaged", path=path))
    return note


def is_progress(key: str, value: Any) -> bool:
    """Return whether a field of Progress can have this value."""
    if key in ("step", "val_step", "best_step"):
        return type(value) is int and 0 <= value < 1 << 53
    is_number = type(value) is float or (type(value) is int and abs(value) < 1 << 53)
    return key not in Progress.__dataclass_fields__ or is_number


def read_state(path: Path) -> Arrays:
    """Return the tensors of an optimizer: `step`, a whole number, and others. Raise UserError."""
    with open_safetensors(path) as file:
        state = {name: file.get_slice(name) for name in file.keys()}
        if any(entry.get_dtype() not in ("F32", "F64", "I64") for entry in state.values()):
            raise UserError(_("{path}: it holds tensors of a type that no optimizer has", path=path))
        if "step" not in state or (state["step"].get_dtype(), state["step"].get_shape()) != ("I64", []):
            raise UserError(_("{path}: the step is missing", path=path))
        return {name: file.get_tensor(name) for name in state}
