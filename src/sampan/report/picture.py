"""loss.svg: the losses of a run as a picture, drawn from its metrics.jsonl.

show = Picture(metrics); show(record); show.close()

It writes no record (metrics.py) and prints nothing (terminal.py).
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sampan.data.meta import Data
from sampan.errors import UserError
from sampan.files import write_text
from sampan.messages import _
from sampan.report.baselines import kept_baselines, measure_baselines
from sampan.report.metrics import Metrics, read_record
from sampan.training.loop import Evaluation, Final, Record

POINTS = 1000  # at most, of a curve
HIGHEST = 1e6  # a loss above is left out: the run diverged
LINE_BYTES = 230  # of metrics.jsonl, about
EARLY = 0.1  # share of the steps that may lie above the picture
COLORS = ("#b8c4ce", "#1f77b4", "#d62728", "#2ca02c")  # each step, train, val, best
GUESSES = ("#8c6bb1", "#e08214")
SHARE = 0.02  # of the time goes into drawing, at most: evaluations may follow one another faster


class Picture:
    """Draw the picture at evaluations, as often as SHARE allows, and at the end."""

    def __init__(self, metrics: Metrics, data: Data | None = None):
        self.metrics, self.path = metrics.path, metrics.path.with_name("loss.svg")
        self.data = data  # whose baselines are drawn
        self.final: Final | None = None  # the loss on all of val
        self.outdated, self.again = False, 0.0  # whether it lacks an evaluation; when it may be drawn again

    def __call__(self, record: Record) -> None:
        if record.step == 0 and not isinstance(record, Final):
            self.path.unlink(missing_ok=True)  # an older run's, that this one replaces
        if isinstance(record, Final):
            self.final, self.outdated = record, True
        elif record.step and isinstance(record, Evaluation):
            self.outdated = True
            if time.perf_counter() >= self.again:
                self.renew()

    def renew(self) -> None:
        start = time.perf_counter()
        try:
            curves = read_curves(self.metrics)
            if curves.evaluations:
                write_text(self.path, draw(curves, self.path.absolute().parent.name, self.final, self.guesses()))
        except OSError as error:
            raise UserError(_("{path}: cannot write ({reason})", path=self.path, reason=error.strerror)) from None
        end = time.perf_counter()
        self.outdated, self.again = False, end + (end - start) / SHARE

    def guesses(self) -> dict[str, float]:
        """Return the losses of the unigram and of xz, in nats per token: measured at the end, and before that if kept."""
        if self.data is None:
            return {}
        seen = kept_baselines(self.data.folder, self.data.meta.identity)
        if seen is None and self.final is not None:
            with contextlib.suppress(UserError):  # a text that cannot be restored from its tokens
                seen = measure_baselines(self.data)
        if seen is None:
            return {}
        return {_("unigram"): seen.nats_per_token(seen.unigram), "xz": seen.nats_per_token(seen.xz)}

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


def draw(curves: Curves, name: str = "", final: Final | None = None, guesses: Mapping[str, float] = {}) -> str:
    """Return the picture as SVG: the curves, and horizontal lines at `guesses`, {label: loss}.

    The axis ends above what follows the first steps, so that their high losses do not take half of the picture.
    """
    import pygal
    from pygal.style import Style

    last = max(step for step, *_losses in [*curves.steps, *curves.evaluations])
    late = [loss for step, *losses in [*curves.steps, *curves.evaluations] for loss in losses if step >= EARLY * last]
    low, high = min(late), max(late)
    lines = {label: loss for label, loss in guesses.items() if 2 * low - high < loss < 2 * high - low}
    low, high = min([low, *lines.values()]), max([high, *lines.values()])
    margin = 0.05 * (high - low) or 0.1
    top = high + margin
    step, loss = curves.best
    title = _("{name}: best val loss {loss:.4f} at step {step}", name=name, loss=loss, step=step)
    if final is not None:
        title += "; " + _("{loss:.4f} on all of val", loss=final.final_loss)
    style = Style(
        background="white", plot_background="white", font_family="sans-serif",
        colors=(*COLORS, *GUESSES[: len(lines)]),
        guide_stroke_color="#dde3e8", major_guide_stroke_color="#dde3e8",
        title_font_size=18, label_font_size=13, major_label_font_size=13, legend_font_size=14,
    )  # fmt: skip
    chart = pygal.XY(
        style=style, js=(), width=900, height=540, legend_at_bottom=True, legend_at_bottom_columns=6, dots_size=2.5,
        title=title, x_title=_("step"), y_title=_("loss (nats per token)"), show_x_guides=False, truncate_legend=-1,
        range=(max(0.0, low - margin), top), xrange=(0, max(1, last)),
        x_value_formatter=lambda x: f"{x:,.0f}", value_formatter=lambda y: f"{y:.2f}",
    )  # fmt: skip
    shown = [(s, loss) for s, loss in curves.steps if loss <= top]
    chart.add(_("each step"), shown, show_dots=False, stroke_style={"width": 1})
    for number, label in ((1, _("train")), (2, _("val"))):
        points = [(e[0], e[number]) for e in curves.evaluations if e[number] <= top]
        first = (
            [*points[:1], None] if points and points[0][0] == 0 else []
        )  # the way to the next is not a straight line
        chart.add(label, first + points[bool(first) :], stroke_style={"width": 2})
    chart.add(_("best"), [curves.best], dots_size=7, stroke=False)
    for label, guess in lines.items():
        ends = [(0, guess), (max(1, last), guess)]
        chart.add(f"{label} {guess:.2f}", ends, show_dots=False, stroke_style={"width": 2, "dasharray": "8, 5"})
    return chart.render(is_unicode=True)
