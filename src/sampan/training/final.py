"""Measure the best weights of a finished run on the val split, and keep that loss in run.json.

    final = measure_final(plan, engine)

Evaluations during a run read a small part of val; this is the loss that everything else shows.
"""

from collections.abc import Callable

from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import read_note
from sampan.checkpoint.save import WritableRun
from sampan.checkpoint.tensors import WEIGHTS
from sampan.engine.protocol import Engine
from sampan.evaluation.losses import final_loss
from sampan.progress import Progress, silent
from sampan.training.loop import Final
from sampan.training.plan import Plan


def measure_final(
    plan: Plan, engine: Engine, progress: Progress = silent, stopped: Callable[[], bool] = lambda: False
) -> Final:
    """Load the best weights of a plan's run into the engine and return their loss. Raise UserError for files that fail.

    When `stopped` becomes true, the loss is that of the part of val read until then.
    """
    run = WritableRun(plan.config.out_dir)
    engine.load(load_model(run.folder)[1])
    step, best_step = (read_note(folder / WEIGHTS)["step"] for folder in (run.last, run.folder))
    loss, tokens = final_loss(engine, plan.data, plan.config, progress, stopped)
    final = Final(step, best_step, loss, tokens)
    with run.locked():
        run.write_final({"step": final.best_step, "val_loss": final.final_loss, "tokens": final.tokens})
    return final
