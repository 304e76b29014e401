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
from typing import Protocol, TextIO

from sampan.errors import UserError
from sampan.machine import world
from sampan.report.metrics import Metrics
from sampan.report.picture import Picture
from sampan.report.terminal import Lines, Live
from sampan.report.trackers import TensorBoard, Wandb
from sampan.training.loop import Record
from sampan.training.plan import Plan


class Consumer(Protocol):
    def __call__(self, record: Record, /) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def consumers(plan: Plan, out: TextIO | None = None) -> Iterator[Callable[[Record], None]]:
    """Yield a function that passes a record to all that the plan's settings ask for; under torchrun, in rank 0 only."""
    active = open_consumers(plan, out or sys.stdout) if world()[0] == 0 else []

    def show(record: Record) -> None:
        for consumer in active:
            consumer(record)

    try:
        yield show
    except BaseException:
        for consumer in active:
            with contextlib.suppress(UserError):  # the first error is the one to report
                consumer.close()
        raise
    with contextlib.ExitStack() as stack:  # closes the others, too, if one fails
        for consumer in reversed(active):
            stack.callback(consumer.close)


def open_consumers(plan: Plan, out: TextIO) -> list[Consumer]:
    config = plan.config
    active: list[Consumer] = [Live(plan, out) if out.isatty() else Lines(plan, out)]
    if not config.eval_only:
        metrics = Metrics(Path(config.out_dir))
        active += [metrics, Picture(metrics, plan.data)]
    if config.wandb_log:
        active.append(Wandb(plan))
    if config.tensorboard:
        active.append(TensorBoard(plan))
    return active
