"""Show a run's records on a terminal: nanoGPT's lines for logs and pipes, or a live display.

    show = Lines(plan, sys.stdout); show(record); show.close()

Files are metrics.py's and picture.py's.
"""

import math
from collections import deque
from statistics import fmean
from typing import TYPE_CHECKING, TextIO

from sampan.messages import _
from sampan.training.loop import Evaluation, Final, Record, Sample, Step
from sampan.training.plan import Plan
from sampan.units import duration, size_of

if TYPE_CHECKING:
    from rich.text import Text

RECENT = 50  # steps whose mean the live display shows: a single step's loss jumps too much to read
BAR = 16  # columns
MARGIN = 6  # columns that the live display leaves free: a line that fills the terminal breaks when it gets narrower


class Lines:
    """Print nanoGPT's lines, for logs and pipes; programs read them, so they stay English."""

    def __init__(self, plan: Plan, out: TextIO):
        self.config, self.out = plan.config, out
        self.totals = Totals(plan)

    def __call__(self, record: Record) -> None:
        self.totals.add(record)
        if not isinstance(record, Step):
            self.print(record_line(record))
            if isinstance(record, Evaluation) and record.saved:
                self.print(f"saving checkpoint to {self.config.out_dir}")
        elif record.step % self.config.log_interval == 0:
            self.print(
                f"iter {record.step}: loss {record.loss:.4f}, time {record.seconds * 1000:.2f}ms, mfu {record.mfu:.2%}, "
                f"lr {record.lr:.3g}, norm {record.grad_norm:.3g}, epoch {record.epoch:.2f}"
            )

    def print(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def close(self) -> None:
        if self.totals.steps:
            self.print(self.totals.line())


class Live:
    """Renew two lines in place, below the evaluations; at the end one that sums up takes their place."""

    def __init__(self, plan: Plan, out: TextIO):
        from rich import console, live

        self.totals, self.step, self.of = Totals(plan), plan.start_step, plan.config.max_iters
        self.recent: deque[Step] = deque(maxlen=RECENT)
        self.console = console.Console(file=out, highlight=False)
        self.live = live.Live(console=self.console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def __call__(self, record: Record) -> None:
        self.step = record.step
        self.totals.add(record)
        if not isinstance(record, Step):
            self.live.stop()  # the terminal is free for other displays until the next step
            best = isinstance(record, Evaluation) and record.best
            self.console.print(record_line(record) + (_(" (best)") if best else ""), markup=False, soft_wrap=True)
            return
        self.live.start()
        self.step += 1
        if math.isfinite(record.loss):  # a skipped step has its own warning
            self.recent.append(record)

    def render(self) -> "Text":
        from rich.text import Text

        done = BAR * self.step // max(1, self.of)
        lines = [f"{self.step:,}/{self.of:,} [{'=' * done}{' ' * (BAR - done)}]"]
        if self.recent:
            loss, norm, mfu, speed, seconds = (
                fmean(getattr(record, name) for record in self.recent)
                for name in ("loss", "grad_norm", "mfu", "tokens_per_second", "seconds")
            )
            left, last = duration(seconds * (self.of - self.step)), self.recent[-1]
            lines[0] += _(" {speed:,.0f} tokens/s, {mfu:.0%} of peak; {left} left", speed=speed, mfu=mfu, left=left)
            about = _("mean of {count} steps: loss {loss:.4f}, norm {norm:.2g}; rate {rate:.3g}, epoch {epoch:.2f}")
            lines.append(about.format(count=len(self.recent), loss=loss, norm=norm, rate=last.lr, epoch=last.epoch))
        shown = [Text(line) for line in lines]
        for line in shown:
            line.truncate(max(1, self.console.width - MARGIN))
        return Text("\n").join(shown)

    def close(self) -> None:
        self.live.stop()
        if self.totals.steps:
            self.console.print(self.totals.line(), soft_wrap=True)


def record_line(record: Evaluation | Sample | Final) -> str:
    if isinstance(record, Evaluation):
        return f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}"
    if isinstance(record, Sample):
        return f"sample at step {record.step}:\n{record.text.strip()}\n"
    return f"step {record.best_step}: final val loss {record.final_loss:.4f} ({record.tokens} tokens)"


class Totals:
    """Count the steps of a run, and say at its end what they took."""

    def __init__(self, plan: Plan):
        self.steps, self.seconds, self.memory = 0, 0.0, 0
        self.per_step = plan.config.tokens_per_step

    def add(self, record: Record) -> None:
        if isinstance(record, Step):
            self.steps += 1
            self.seconds += record.seconds
        elif isinstance(record, Evaluation):
            self.memory = record.peak_memory

    def line(self) -> str:
        about = _("{steps:,} steps in {time}: {speed:,.0f} tokens/s, peak memory {memory}")
        speed = self.steps * self.per_step / self.seconds
        return about.format(steps=self.steps, time=duration(self.seconds), speed=speed, memory=size_of(self.memory))
