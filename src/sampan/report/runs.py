"""The runs in a folder side by side: size, steps, losses, and the settings in which they differ.

    found = find_runs(Path("out")); print("\n".join(run_lines(found, columns=80)))

A run is a folder with a run.json; other folders are passed over. Only what is on disk is read, so a run that is training
shows its last save. Losses of models with different tokenizers compare in bits per character.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sampan.checkpoint.folder import load_model_config
from sampan.checkpoint.run import Run, read_note
from sampan.checkpoint.tensors import WEIGHTS
from sampan.errors import UserError
from sampan.messages import N_, _, columns_of, pad, wrap
from sampan.model.count import count_parameters
from sampan.report.baselines import kept_baselines
from sampan.units import duration

DEPTH = 3  # folders below the one that is searched
# Follow from other settings, or say nothing of the model: not shown as differences.
DERIVED = ("out_dir", "n_inner", "head_dim", "n_kv_head", "vocab_size", "data_dir", "wandb_run_name", "lr_decay_iters")


@dataclass(frozen=True)
class RunSummary:
    folder: str
    parameters: int
    step: int  # of the last save
    max_iters: int
    val_loss: float | None  # the lowest, in nats per token; None before the first evaluation
    best_step: int
    bits_per_character: float | None  # of val_loss; None where the data's baselines are unknown
    changed: float  # when it was last written, seconds since 1970
    settings: Mapping[str, Any]


SORTS: dict[str, Callable[[RunSummary], Any]] = {
    "changed": lambda run: -run.changed,
    "name": lambda run: run.folder,
    "val_loss": lambda run: math.inf if run.val_loss is None else run.val_loss,
    "bits_per_character": lambda run: math.inf if run.bits_per_character is None else run.bits_per_character,
    "parameters": lambda run: run.parameters,
    "step": lambda run: run.step,
}


def find_runs(folder: Path, sort: str = "changed") -> list[RunSummary]:
    """Return the runs in a folder and up to DEPTH folders below. Raise UserError if it cannot be read or has none."""
    if not folder.is_dir():
        raise UserError(_("{folder}: no such folder", folder=folder))
    found = []
    for depth in range(DEPTH + 1):
        for about in folder.glob("/".join(["*"] * depth + ["run.json"])):
            summary = summarize(about.parent)
            if summary is not None:
                found.append(summary)
    if not found:
        raise UserError(_("{folder} holds no runs; sampan train makes one", folder=folder))
    return sorted(found, key=SORTS[sort])


def summarize(folder: Path) -> RunSummary | None:
    """Return what a run's folder says of it; None where it is damaged or has just been begun."""
    run = Run(folder)
    try:
        settings = vars(run.settings())
        newest = run.last if run.can_resume() else folder
        model, note = load_model_config(newest), read_note(newest / WEIGHTS)
        data = run.data()
    except UserError:
        return None
    best = note.get("best_val_loss", math.inf)
    seen = kept_baselines(Path(str(data.get("folder", ""))), data)
    is_known = math.isfinite(best)
    return RunSummary(
        folder=str(folder),
        parameters=count_parameters(model),
        step=note.get("step", 0),
        max_iters=settings["max_iters"],
        val_loss=best if is_known else None,
        best_step=note.get("best_step", 0),
        bits_per_character=seen.bits_per_character(best) if seen and is_known else None,
        changed=max(path.stat().st_mtime for path in folder.glob("*.json*")),
        settings=settings,
    )


def differences(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return for each run those of its settings in which the runs differ."""
    names = [
        name
        for name in (runs[0].settings if runs else ())
        if name not in DERIVED and any(run.settings[name] != runs[0].settings[name] for run in runs)
    ]
    return [{name: run.settings[name] for name in names} for run in runs]


def to_json(runs: Sequence[RunSummary]) -> str:
    return json.dumps([asdict(run) for run in runs], indent=2)


HEAD = (N_("run"), N_("parameters"), N_("step"), N_("val loss"), N_("bits/char"), N_("changed"))


def run_lines(runs: Sequence[RunSummary], columns: int) -> list[str]:
    """Return a table of the runs; below each row are the settings in which it differs from others."""
    now = time.time()
    rows = [[_(word) for word in HEAD]]
    for run in runs:
        rows.append(
            [
                run.folder,
                f"{run.parameters:,}",
                f"{run.step:,}/{run.max_iters:,}",
                "-" if run.val_loss is None else f"{run.val_loss:.4f}",
                "-" if run.bits_per_character is None else f"{run.bits_per_character:.4f}",
                _("{time} ago", time=duration(max(0.0, now - run.changed))),
            ]
        )
    names: list[list[str]] = [[] for _run in runs]
    lines = in_columns(rows)
    if max(map(columns_of, lines)) > columns:  # each name in a line of its own
        names, lines = [[run.folder] for run in runs], in_columns([["", *row[1:]] for row in rows])
    shown = lines[:1]
    for name, line, differs in zip(names, lines[1:], differences(runs), strict=True):
        text = ", ".join(f"{name} {value_text(value)}" for name, value in differs.items())
        shown += [*name, line, *("  " + part for part in wrap(text, columns - 2) if part)]
    return shown


def in_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(2, *map(columns_of, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(pad, row, widths)).rstrip() for row in rows]


def value_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "auto" if value is None else str(value)
