"""Save the weights of a run: the best so far and the newest.

    writer = RunWriter(run, engine, config, tokenizer, data.record(), plan.reasons)
    writer.keep(progress, best=True)

It decides when to save. How a save stays whole when the process is killed is checkpoint/save.py's.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from sampan.checkpoint.run import Progress
from sampan.checkpoint.save import WritableRun
from sampan.config import TrainConfig
from sampan.engine.protocol import Engine
from sampan.machine import torchrun_job
from sampan.tokens.tokenizer import Tokenizer


@dataclass
class RunWriter:
    """Write the folder of a run from an engine, and remember what is saved."""

    run: WritableRun
    engine: Engine
    config: TrainConfig
    tokenizer: Tokenizer | None
    data: dict  # what run.json records of it
    reasons: Mapping[str, str]  # why each setting was chosen that nobody gave
    saved: Progress | None = None  # the progress that last/ holds; None: the folder is not begun

    def keep(self, progress: Progress, best: bool, ends: bool) -> bool:
        """Save after an evaluation, where the settings ask for it: new best weights and the last weights always."""
        saves = best or ends or self.config.always_save_checkpoint
        if saves:
            self.save(progress, best)
        return saves

    def save(self, progress: Progress, best: bool = False) -> None:
        """Replace last/ unless it has this progress, and with `best` the best weights. Raise UserError where it fails."""
        if self.saved == progress and not best:
            return
        weights = self.engine.params()
        with self.folder() as folder:
            if best:
                folder.save_best(self.engine.config, weights, progress)
            if self.saved != progress:
                folder.save_last(self.engine.config, weights, self.engine.state(), progress)
        self.saved = progress

    def folder(self) -> contextlib.AbstractContextManager[WritableRun]:
        """Return where to save: the run's folder, or before the first save a new one that replaces it when complete."""
        if self.saved is None:
            job = torchrun_job()
            model = self.engine.config
            return self.run.begin(self.config, model, self.tokenizer, self.data, job, self.reasons)
        return contextlib.nullcontext(self.run)
