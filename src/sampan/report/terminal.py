"""Show a run's records on a terminal: nanoGPT's lines for logs and pipes, or a live display.

    show = Lines(plan, sys.stdout); show(record); show.close()

Files are metrics.py's and picture.py's.
"""

import math
from collections import deque
from typing import TextIO

from sampan.messages import _
from sampan.training.loop import Evaluation, Step
from sampan.training.plan import Plan


def evaluation_line(record: Evaluation) -> str:
    return f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}"


class Lines:
    """Print nanoGPT's lines, for logs and pipes; programs read them, so they stay English."""

    def __init__(self, plan: Plan, out: TextIO):
        self.interval, self.out = plan.config.log_interval, out

    def __call__(self, record: Step | Evaluation) -> None:
        if isinstance(record, Evaluation):
            self.print(evaluation_line(record))
        elif record.step % self.interval == 0:
            milliseconds = record.seconds * 1000
            self.print(f"iter {record.step}: loss {record.loss:.4f}, time {milliseconds:.2f}ms, mfu {record.mfu:.2%}")

    def print(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def close(self) -> None:
        pass


class Live:
    """Renew one line in place, below the evaluations; it fits 80 columns."""

    def __init__(self, plan: Plan, out: TextIO):
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
        self.recent: deque[Step] = deque(maxlen=50)  # a single step's loss jumps too much to read

    def __call__(self, record: Step | Evaluation) -> None:
        self.progress.start()  # at the first record
        if isinstance(record, Evaluation):
            self.progress.print(evaluation_line(record) + (_(" (best)") if record.best else ""), markup=False)
            self.progress.update(self.task, completed=record.step)
        elif math.isfinite(record.loss):  # a skipped step has its own warning
            self.recent.append(record)
            n = len(self.recent)
            loss, mfu = sum(r.loss for r in self.recent) / n, sum(r.mfu for r in self.recent) / n
            speed = sum(r.tokens_per_second for r in self.recent) / n
            state = _("loss {loss:.4f}  {speed:,.0f} tok/s  {mfu:.0%} of peak", loss=loss, speed=speed, mfu=mfu)
            self.progress.update(self.task, completed=record.step + 1, state=state)

    def close(self) -> None:
        self.progress.stop()
