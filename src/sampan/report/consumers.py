"""One function that passes a run's records to everything that shows or keeps them.

    with consumers(plan) as show:
        for record in train(plan):
            show(record)

Each consumer is called with every record and knows nothing of training.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sampan.errors import UserError
from sampan.report.metrics import Metrics
from sampan.report.picture import Picture
from sampan.report.terminal import Lines, Live
from sampan.report.trackers import TensorBoard, Wandb
from sampan.training.loop import Evaluation, Step
from sampan.training.plan import Plan


@contextlib.contextmanager
def consumers(plan: Plan, out=None) -> Iterator[Callable[[Step | Evaluation], None]]:
    """One function that passes a record to everything that the plan's settings ask for."""
    out = out or sys.stdout
    config = plan.config
    active = [Live(plan, out) if out.isatty() else Lines(plan, out)]
    if not config.eval_only:
        metrics = Metrics(Path(config.out_dir))
        active += [metrics, Picture(metrics)]
    if config.wandb_log:
        active.append(Wandb(plan))
    if config.tensorboard:
        active.append(TensorBoard(plan))

    def show(record: Step | Evaluation) -> None:
        for consumer in active:
            consumer(record)

    try:
        yield show
    except BaseException:
        for consumer in active:
            with contextlib.suppress(UserError):  # what went wrong first is what is said
                consumer.close()
        raise
    with contextlib.ExitStack() as stack:  # also those behind one that fails
        for consumer in reversed(active):
            stack.callback(consumer.close)
