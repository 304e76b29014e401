"""Pass a run's records to Weights & Biases and TensorBoard, under nanoGPT's names.

    show = TensorBoard(plan); show(record); show.close()

Both libraries are optional, and are imported when a setting asks for them.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sampan.errors import UserError, install
from sampan.messages import _
from sampan.training.loop import Evaluation, Final, Record, Sample
from sampan.training.plan import Plan


class Wandb:
    """Log to Weights & Biases. Raise UserError if it is not installed."""

    def __init__(self, plan: Plan):
        try:
            import wandb
        except ImportError:
            raise UserError(_("wandb_log needs Weights & Biases: pip install wandb")) from None
        name = plan.config.wandb_run_name or Path(plan.config.out_dir).name
        self.run = wandb.init(project=plan.config.wandb_project, name=name, config=asdict(plan.config))

    def __call__(self, record: Record) -> None:
        self.run.log(scalars(record), step=record.step)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """Write TensorBoard's files into the run's folder. Raise UserError if the library is not installed."""

    def __init__(self, plan: Plan):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            message = _("tensorboard needs a library: {command}", command=install("tensorboard"))
            raise UserError(message) from None
        self.folder, self.make = Path(plan.config.out_dir) / "tensorboard", SummaryWriter
        self.writer: Any = None

    def __call__(self, record: Record) -> None:
        if self.writer is None:  # by now the run has made its folder
            self.writer = self.make(str(self.folder), purge_step=record.step)
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a record under nanoGPT's names in Weights & Biases."""
    if isinstance(record, Evaluation):
        return {"train/loss": record.train_loss, "val/loss": record.val_loss}
    if isinstance(record, Final):
        return {"val/final_loss": record.final_loss}
    if isinstance(record, Sample):
        return {}
    return {"iter/loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm, "mfu": record.mfu * 100}
