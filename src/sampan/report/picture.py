"""loss.svg: the losses of a run as a picture, drawn from its metrics.jsonl.

show = Picture(metrics); show(record); show.close()

It writes no record (metrics.py) and prints nothing (terminal.py).
"""

import math
import os
import time
from pathlib import Path
from typing import NamedTuple

from sampan.errors import UserError
from sampan.files import write_text
from sampan.messages import _
from sampan.report.metrics import Metrics, read_record
from sampan.training.loop import Evaluation, Record

POINTS = 1000  # at most, of a curve
HIGHEST = 1e6  # a loss above is left out: the run diverged
LINE_BYTES = 100  # of metrics.jsonl, about
SHARE = 0.02  # of the time goes into drawing, at most: evaluations may follow one another faster


class Picture:
    """Draw the picture at evaluations, as often as SHARE allows, and at the end."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.path = metrics.path, metrics.path.with_name("loss.svg")
        self.outdated, self.again = False, 0.0  # whether it lacks an evaluation; when it may be drawn again

    def __call__(self, record: Record) -> None:
        if record.step == 0:
            self.path.unlink(missing_ok=True)  # an older run's, that this one replaces
        elif isinstance(record, Evaluation):
            self.outdated = True
            if time.perf_counter() >= self.again:
                self.renew()

    def renew(self) -> None:
        start = time.perf_counter()
        try:
            curves = read_curves(self.metrics)
            if curves.evaluations:
                write_text(self.path, draw(curves))
        except OSError as error:
            raise UserError(_("{path}: cannot write ({reason})", path=self.path, reason=error.strerror)) from None
        end = time.perf_counter()
        self.outdated, self.again = False, end + (end - start) / SHARE

    def close(self) -> None:
        if self.outdated:
            self.renew()


class Curves(NamedTuple):
    steps: list[tuple[int, float]]  # step, loss
    evaluations: list[tuple[int, float, float]]  # step, train loss, val loss
    best: tuple[int, float]  # step, val loss


def read_curves(path: Path) -> Curves:
    """Return the curves of a metrics.jsonl: all evaluations and few of its steps, thinned to POINTS. Raise OSError."""
    steps: list[tuple[int, float]] = []
    evaluations: list[tuple[int, float, float]] = []
    best = (0, math.inf)
    with path.open("rb") as file:
        stride = 1 + os.fstat(file.fileno()).st_size // (10 * POINTS * LINE_BYTES)
        for number, line in enumerate(file):
            if b'"val_loss"' not in line and number % stride:
                continue
            record = read_record(line)
            if record is None or any(
                abs(record.get(name, 0.0)) > HIGHEST for name in ("loss", "train_loss", "val_loss")
            ):
                continue
            if "val_loss" in record:
                evaluations.append((record["step"], record["train_loss"], record["val_loss"]))
                evaluations = thin(evaluations)
                best = min(best, (record["step"], record["val_loss"]), key=lambda point: point[1])
            else:
                steps.append((record["step"], record["loss"]))
                steps = thin(steps)
    return Curves(steps, evaluations, best)


def thin(points: list) -> list:
    """Return every second point if they have become too many; a curve keeps its shape."""
    return points if len(points) <= POINTS else points[::2]


def draw(curves: Curves) -> str:
    """Return the picture as SVG."""
    import pygal
    from pygal.style import Style

    style = Style(
        background="white", plot_background="white", font_family="sans-serif",
        colors=("#b8c4ce", "#1f77b4", "#d62728", "#d62728"),
        guide_stroke_color="#dde3e8", major_guide_stroke_color="#dde3e8",
        title_font_size=18, label_font_size=13, major_label_font_size=13, legend_font_size=14,
    )  # fmt: skip
    step, loss = curves.best
    chart = pygal.XY(
        style=style, js=(), width=900, height=540, legend_at_bottom=True, legend_at_bottom_columns=4, dots_size=2.5,
        title=_("best val loss {loss:.4f} at step {step}", loss=loss, step=step),
        x_title=_("step"), y_title=_("loss (nats per token)"), show_x_guides=False, truncate_legend=-1,
        x_value_formatter=lambda x: f"{x:,.0f}", value_formatter=lambda y: f"{y:.2f}",
    )  # fmt: skip
    chart.add(_("each step"), curves.steps, show_dots=False, stroke_style={"width": 1})
    chart.add(_("train"), [(s, t) for s, t, _v in curves.evaluations], stroke_style={"width": 2})
    chart.add(_("val"), [(s, v) for s, _t, v in curves.evaluations], stroke_style={"width": 2})
    chart.add(_("best"), [curves.best], dots_size=7, stroke=False)
    return chart.render(is_unicode=True)
