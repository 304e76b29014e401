"""loss.svg: the losses of a run as a picture, drawn from its records.

show = Picture(metrics); show(record); show.close()
"""

import math
import os
import time
from dataclasses import asdict

from sampan.errors import UserError
from sampan.files import write_text
from sampan.report.metrics import Metrics, read_record
from sampan.training.loop import Evaluation, Step

PICTURE_POINTS = 1000  # at most, of a curve
PICTURE_LOSS = 1e6  # at most
DRAWING_SHARE = 0.02  # of the time: evaluations may follow one another faster than pictures can be drawn


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
