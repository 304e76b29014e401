"""Consumers of a run's records: lines, a live display, metrics.jsonl, loss.svg, Weights & Biases, TensorBoard.

    with consumers(plan) as show:
        for record in train(plan):
            show(record)

Each is called with every record and knows nothing of training. metrics.jsonl has one record a line, with exactly the
fields of loop.Step and loop.Evaluation.
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from .data import write_text
from .errors import UserError, install
from .loop import Evaluation, Step
from .plan import Plan

PICTURE_POINTS = 1000  # at most, of a curve
PICTURE_LOSS = 1e6  # at most
DRAWING_SHARE = 0.02  # of the time: evaluations may follow one another faster than pictures can be drawn
RECORD = re.compile(rb'\{"step": (\d{1,18}), .*\}\n')  # a whole line of metrics.jsonl


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


def evaluations_of(folder: str | Path) -> list[Evaluation]:
    """Those of a run, in order, out of its metrics.jsonl."""
    found = []
    with (Path(folder) / "metrics.jsonl").open("rb") as file:
        for line in file:
            if b'"val_loss"' in line and (record := read_record(line)):
                found.append(Evaluation(**{name: record[name] for name in Evaluation.__dataclass_fields__}))
    return found


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


class Metrics:
    """metrics.jsonl. A resumed run's file loses the records that are about to be made again.

    Each record is with the system at once, so that a killed run loses none that its last save has passed. What is not
    finite is null: JSON has no word for it.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.file = None

    def open(self, first_step: int) -> None:
        """Cut the file before the first record of `first_step`, and before what a killed process left of a line."""
        self.file = self.path.open("a+b")
        self.file.seek(0)
        at = whole = 0
        for line in self.file:  # there may be millions: none is kept in memory
            step = RECORD.match(line)
            if step and int(step[1]) >= first_step:
                break
            at += len(line)
            if step:
                whole = at
        self.file.truncate(whole)

    def __call__(self, record: Step | Evaluation) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in asdict(record).items()}
        try:
            if self.file is None:
                self.open(record.step)
            self.file.write(json.dumps(values).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported by then
                self.file.close()


def read_record(line: bytes) -> dict | None:
    """A line of metrics.jsonl; None for half a line, another program's, and one with a number that is not finite."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    kind = Evaluation if "val_loss" in record else Step
    is_number = (isinstance(v, float) or (isinstance(v, int) and 0 <= v < 1 << 53) for v in record.values())
    return record if kind.__dataclass_fields__.keys() <= record.keys() and all(is_number) else None


class Picture:
    """loss.svg: both evaluated losses and the steps' own, the best marked; renewed at evaluations and at the end."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.path = metrics.path, metrics.path.with_name("loss.svg")
        self.steps: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float, float]] = []
        self.best = (0, math.inf)  # step, val loss
        self.started = False
        self.outdated, self.again = False, 0.0  # whether it lacks an evaluation; when it may be drawn again

    def __call__(self, record: Step | Evaluation) -> None:
        if self.started:
            self.add(asdict(record))
        else:
            self.started = True
            self.read()
        if isinstance(record, Evaluation) and record.step > 0 and self.evaluations:
            self.outdated = True
            if time.perf_counter() >= self.again:
                self.renew()

    def renew(self) -> None:
        start = time.perf_counter()
        try:
            write_text(self.path, self.draw())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        end = time.perf_counter()
        self.outdated, self.again = False, end + (end - start) / DRAWING_SHARE

    def read(self) -> None:
        """The records so far, of this run's earlier parts and the one that has just come: few steps of many."""
        with self.metrics.open("rb") as file:
            stride = 1 + os.fstat(file.fileno()).st_size // (PICTURE_POINTS * 1000)  # a line has some 100 bytes
            for number, line in enumerate(file):
                if (b'"val_loss"' in line or number % stride == 0) and (record := read_record(line)):
                    self.add(record)

    def add(self, record: dict) -> None:
        if not all(abs(record.get(name, 0.0)) < PICTURE_LOSS for name in ("loss", "train_loss", "val_loss")):
            return  # not a number, or of a run that diverged: nowhere in a picture
        if "val_loss" in record:
            self.evaluations.append((record["step"], record["train_loss"], record["val_loss"]))
            self.evaluations = thin(self.evaluations)
            if record["val_loss"] < self.best[1]:
                self.best = record["step"], record["val_loss"]
        else:
            self.steps.append((record["step"], record["loss"]))
            self.steps = thin(self.steps)

    def draw(self) -> str:
        import pygal
        from pygal.style import Style

        style = Style(
            background="white", plot_background="white", font_family="sans-serif",
            colors=("#b8c4ce", "#1f77b4", "#d62728", "#d62728"),
            guide_stroke_color="#dde3e8", major_guide_stroke_color="#dde3e8",
            title_font_size=18, label_font_size=13, major_label_font_size=13, legend_font_size=14,
        )  # fmt: skip
        best_step, best = self.best
        chart = pygal.XY(
            style=style, js=(), width=900, height=540, legend_at_bottom=True, legend_at_bottom_columns=4, dots_size=2.5,
            title=f"best val loss {best:.4f} at step {best_step}", x_title="step", y_title="loss (nats per token)",
            show_x_guides=False, truncate_legend=-1, x_value_formatter=lambda x: f"{x:,.0f}",
            value_formatter=lambda y: f"{y:.2f}",
        )  # fmt: skip
        chart.add("each step", self.steps, show_dots=False, stroke_style={"width": 1})
        chart.add("train", [(s, t) for s, t, _ in self.evaluations], stroke_style={"width": 2})
        chart.add("val", [(s, v) for s, _, v in self.evaluations], stroke_style={"width": 2})
        chart.add("best", [(best_step, best)], dots_size=7, stroke=False)
        return chart.render(is_unicode=True)

    def close(self) -> None:
        if self.outdated:
            self.renew()


def thin(points: list) -> list:
    """Every second point, when they have become too many: a curve keeps its shape."""
    return points if len(points) <= PICTURE_POINTS else points[::2]


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
