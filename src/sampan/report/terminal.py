"""A run's records on a terminal: nanoGPT's lines for logs and pipes, and a live display.

    show = Lines(plan, sys.stdout); show(record); show.close()

Files are metrics.py's and picture.py's.
"""

import math
from collections import deque

from sampan.training.loop import Evaluation, Step
from sampan.training.plan import Plan


def evaluation_line(record: Evaluation) -> str:
    return f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}"


class Lines:
    """nanoGPT's lines, for logs and pipes."""

    def __init__(self, plan: Plan, out):
        self.interval, self.out = plan.config.log_interval, out

    def __call__(self, record: Step | Evaluation) -> None:
        if isinstance(record, Evaluation):
            print(evaluation_line(record), file=self.out, flush=True)
        elif record.step % self.interval == 0:
            time = f"time {record.seconds * 1000:.2f}ms"
            print(
                f"iter {record.step}: loss {record.loss:.4f}, {time}, mfu {record.mfu:.2%}", file=self.out, flush=True
            )

    def close(self) -> None:
        pass


class Live:
    """A line that is renewed in place, with the evaluations standing above it; fits 80 columns."""

    def __init__(self, plan: Plan, out):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
        )
        self.progress = Progress(
            *columns, console=Console(file=out, highlight=False), expand=True, refresh_per_second=4
        )
        self.task = self.progress.add_task("", total=plan.config.max_iters, state="")
        self.recent = deque(maxlen=50)  # steps: a single loss jumps too much to read

    def __call__(self, record: Step | Evaluation) -> None:
        self.progress.start()  # at the first record
        if isinstance(record, Evaluation):
            self.progress.print(evaluation_line(record) + (" (best)" if record.best else ""), markup=False)
            self.progress.update(self.task, completed=record.step)
            return
        if not math.isfinite(record.loss):  # skipped, and said
            return
        self.recent.append(record)
        n = len(self.recent)
        loss, mfu = sum(r.loss for r in self.recent) / n, sum(r.mfu for r in self.recent) / n
        speed = sum(r.tokens_per_second for r in self.recent) / n
        state = f"loss {loss:.4f}  {speed:,.0f} tok/s  {mfu:.0%} of peak"
        self.progress.update(self.task, completed=record.step + 1, state=state)

    def close(self) -> None:
        self.progress.stop()
