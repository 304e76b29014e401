"""Pass a run's records to Weights & Biases and TensorBoard, under nanoGPT's names.

    show = TensorBoard(plan); show(record); show.close()

Both libraries are extras, imported when a setting asks for them.
"""

from dataclasses import asdict
from pathlib import Path

from sampan.errors import UserError, install
from sampan.training.loop import Evaluation, Step
from sampan.training.plan import Plan


class Wandb:
    def __init__(self, plan: Plan):
        try:
            import wandb
        except ImportError:
            raise UserError("wandb_log needs its library: pip install wandb") from None
        name = plan.config.wandb_run_name or Path(plan.config.out_dir).name
        self.run = wandb.init(project=plan.config.wandb_project, name=name, config=asdict(plan.config))

    def __call__(self, record: Step | Evaluation) -> None:
        values = scalars(record)
        self.run.log(values, step=record.step)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    def __init__(self, plan: Plan):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(f"tensorboard needs a library: {install('tensorboard')}") from None
        self.folder = Path(plan.config.out_dir) / "tensorboard"
        self.make = SummaryWriter
        self.writer = None

    def __call__(self, record: Step | Evaluation) -> None:
        if self.writer is None:  # not before the run has made its folder
            self.writer = self.make(str(self.folder), purge_step=record.step)
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def scalars(record: Step | Evaluation) -> dict[str, float]:
    """The numbers of a record under nanoGPT's names in Weights & Biases."""
    if isinstance(record, Evaluation):
        return {"train/loss": record.train_loss, "val/loss": record.val_loss}
    return {"iter/loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm, "mfu": record.mfu * 100}
