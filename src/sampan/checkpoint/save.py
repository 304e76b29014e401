"""Write a run's folder, complete or not at all: a killed process leaves the save before.

    run = WritableRun("out/shakespeare")
    with run.locked(), run.begin(config, model, tokenizer, data) as first: first.save_last(...)

Files are written beside, synced and renamed. It decides neither what is worth saving nor when (training/writer.py).
"""

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sampan import __version__
from sampan.checkpoint.folder import save_description, writing
from sampan.checkpoint.huggingface import to_hf_weights
from sampan.checkpoint.run import Progress, Run, digest, read_note
from sampan.checkpoint.tensors import OPTIMIZER, WEIGHTS, commit, stage_safetensors
from sampan.config import TrainConfig
from sampan.errors import UserError
from sampan.files import Held, lock_file, read_json, sync_folder, write_json
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.tokens.tokenizer import Tokenizer


class WritableRun(Run):
    """Write the folder of a run."""

    @property
    def new(self) -> Path:
        """Where a run that replaces another is complete, until it takes that one's place."""
        return self.folder / "new"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here, and repair what a killed one left. Reading needs no lock.

        Raise UserError with the process that holds the lock.
        """
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = _("process {id} on {machine}, since {time}", id=os.getpid(), machine=platform.node(), time=now)
        with contextlib.ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(lock_file(self.folder / ".lock", holder))
                except Held as other:
                    message = _(
                        "{folder}: another run trains here ({holder}). Wait for it, stop it, or choose another --out_dir."
                    )
                    raise UserError(message.format(folder=self.folder, holder=other)) from None
                self.mend()
            yield

    def mend(self) -> None:
        """Finish the save that a killed process had decided on, and remove what it had only begun. Needs the lock."""
        if self.new.is_dir():
            self.take_new()
        staged = self.last / f"{OPTIMIZER}.partial"
        if self.can_resume() and read_note(self.last / OPTIMIZER) != read_note(self.last / WEIGHTS) and staged.exists():
            commit(staged)
        for left in [*self.folder.glob("*.partial"), *self.last.glob("*.partial")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @contextlib.contextmanager
    def begin(
        self,
        config: TrainConfig,
        model: ModelShape,
        tokenizer: Tokenizer | None,
        data: dict[str, Any],
        job: str | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> Iterator["WritableRun"]:
        """Start a run: `with run.begin(...) as first: first.save_last(...)`. Needs the lock.

        At the end of the block it replaces the run that is in the folder, which is complete until then. Reports of that
        run are left to report/, which begins them anew.
        """
        first = WritableRun(self.new.with_suffix(".partial"))
        try:
            with writing(self.folder):
                first.last.mkdir(parents=True)
                for folder in (first.folder, first.last):
                    save_description(folder, model, tokenizer)
                first.write_settings(config, data, job, reasons)
            yield first
            with writing(self.folder):
                os.replace(first.folder, self.new)
                sync_folder(self.folder)
                with contextlib.suppress(OSError):  # the folder's own name, in a parent that may not be ours
                    sync_folder(self.folder.resolve().parent)
                self.take_new()
        except BaseException:
            shutil.rmtree(first.folder, ignore_errors=True)
            raise

    def take_new(self) -> None:
        """Move what is in new/ to its place. If the process dies here, the next one's `mend` does the rest."""
        for path in self.new.iterdir():
            old = self.folder / path.name
            if old.is_dir():
                shutil.rmtree(old)
            os.replace(path, old)
        self.new.rmdir()
        sync_folder(self.folder)

    def write_settings(
        self,
        config: TrainConfig,
        data: dict[str, Any],
        job: str | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        """Write run.json. `job` is torchrun's name for all starts of this job.

        `reasons` say why a setting was chosen, {setting: why}; None keeps those of before.
        """
        if reasons is None:
            reasons = read_json(self.about).get("reasons") if self.exists() else {}
        about: dict[str, Any] = {"settings": asdict(config), "data": data}
        about |= {"sha256": digest(about), "job": job, "reasons": reasons}
        about["versions"] = {"sampan": __version__, "python": platform.python_version(), "numpy": np.__version__}
        processor = platform.processor() or platform.machine()
        about["machine"] = {"system": platform.platform(), "processor": processor, "cpus": os.cpu_count()}
        with writing(self.folder):
            write_json(self.about, about)

    def write_final(self, final: dict[str, Any]) -> None:
        """Add to run.json the loss of the best weights on the val split. Needs the lock."""
        with writing(self.folder):
            write_json(self.about, read_json(self.about) | {"final": final})

    def save_best(self, model: ModelShape, weights: Mapping[str, np.ndarray], progress: Progress) -> None:
        refuse_nan(weights, self.folder)
        with writing(self.folder):
            commit(stage_safetensors(self.folder / WEIGHTS, to_hf_weights(model, weights), asdict(progress)))

    def save_last(
        self, model: ModelShape, weights: Mapping[str, np.ndarray], state: dict[str, np.ndarray], progress: Progress
    ) -> None:
        """Replace last/. Both files are complete on disk before the first is renamed; see `Run.load_last`."""
        refuse_nan(weights, self.folder)
        with writing(self.last):
            first = stage_safetensors(self.last / WEIGHTS, to_hf_weights(model, weights), asdict(progress))
            second = stage_safetensors(self.last / OPTIMIZER, state, asdict(progress))
            commit(first, second)


def refuse_nan(weights: Mapping[str, np.ndarray], folder: Path) -> None:
    """Raise UserError if a weight is NaN or infinite."""
    for name, value in weights.items():
        if not np.isfinite(value).all():
            message = _(
                "{folder}: not saved, since the weights of {name} contain NaN or infinity. The previous checkpoint is "
                "intact; lower --learning_rate."
            )
            raise UserError(message.format(folder=folder, name=name))
