"""What consumers make of records: nanoGPT's lines, metrics.jsonl, the picture, the live display, TensorBoard."""

import io
import json
import re
import shutil
import sys
import types
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import pytest
from conftest import readable

import sampan.engine.open
from sampan import GPT
from sampan.config import MachineConfig, TrainConfig
from sampan.engine.open import load_engine, pick_engine
from sampan.errors import UserError
from sampan.messages import _, columns_of, set_language
from sampan.report.consumers import consumers
from sampan.report.picture import COLORS, GUESSES, POINTS, Curves, Picture, draw, read_curves, thin
from sampan.report.plan_lines import gpu_lines, plan_lines
from sampan.report.terminal import MARGIN, Live
from sampan.training.loop import Evaluation, Final, Sample, Step
from sampan.training.plan import make_plan

RECORDS = [
    Evaluation(0, 4.25, 4.27, True, 1e-4, 0.0, True, 10**8),
    Step(0, 4.2, 1e-4, 1.5, 0.031371, 24480.0, 0.213, 0.25),
    Step(1, 4.1, 2e-4, 1.2, 0.030, 25000.0, 0.22, 0.5),
    Evaluation(2, 1.97144, 2.05278, True, 1e-3, 0.5, True, 10**8),
    Step(2, 3.9, 2e-4, 1.2, 0.030, 25000.0, 0.22, 0.75),
    Evaluation(3, 1.5, 2.2, False, 1e-3, 0.75, False, 10**8),
    Sample(3, "the boat\n"),
    Final(3, 2, 2.1, 500),
]


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_text(readable(3000))
    (tmp_path / "out").mkdir()
    settings = {"out_dir": "out", "max_iters": 3, "log_interval": 2, "device": "cpu", "n_layer": 1, "n_embd": 8}
    return make_plan("text.txt", settings)


def show_all(plan, records=RECORDS) -> str:
    out = io.StringIO()
    with consumers(plan, out) as show:
        for record in records:
            show(record)
    return out.getvalue()


def test_lines_are_nanogpts(plan):
    *lines, last = show_all(plan).splitlines()
    assert lines == [
        "step 0: train loss 4.2500, val loss 4.2700",
        "saving checkpoint to out",
        "iter 0: loss 4.2000, time 31.37ms, mfu 21.30%, lr 0.0001, norm 1.5, epoch 0.25",
        "step 2: train loss 1.9714, val loss 2.0528",
        "saving checkpoint to out",
        "iter 2: loss 3.9000, time 30.00ms, mfu 22.00%, lr 0.0002, norm 1.2, epoch 0.75",
        "step 3: train loss 1.5000, val loss 2.2000",
        "sample at step 3:",
        "the boat",
        "",
        "step 2: final val loss 2.1000 (500 tokens)",
    ]
    assert re.fullmatch(r"3 steps in 0\.1 s: [\d,]+ tokens/s, peak memory \d+ MB", last)


def test_metrics_have_every_field_and_a_resume_repeats_none(plan, tmp_path):
    show_all(plan)
    path = tmp_path / "out" / "metrics.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(r) for r in RECORDS]
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # what a killed process leaves
    show_all(plan, RECORDS[3:])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(r) for r in RECORDS]


def test_the_picture_is_svg_and_marks_the_best(plan, tmp_path):
    show_all(plan)
    source = (tmp_path / "out" / "loss.svg").read_text()
    assert ElementTree.fromstring(source).tag.endswith("svg")
    assert "out: best val loss 2.0528 at step 2" in source
    assert not re.search(r"""(src|href)=["'](https?:)?//""", source), "nothing is loaded from elsewhere"


def test_the_picture_takes_little_time_and_has_the_last_evaluation_all_the_same(plan, tmp_path, monkeypatch):
    drawn = []
    renew = Picture.renew
    monkeypatch.setattr(
        Picture, "renew", lambda self: (renew(self), drawn.append(read_curves(self.metrics).evaluations[-1][0]))
    )
    show_all(plan, [Evaluation(step, 3.0, 3.0 - step / 1000, True, 1e-3) for step in range(500)])
    assert drawn[0] == 1 and drawn[-1] == 499 and len(drawn) < 20
    assert "best val loss 2.5010 at step 499" in (tmp_path / "out" / "loss.svg").read_text()


def test_a_new_run_removes_the_picture_of_the_one_that_it_replaces(plan, tmp_path):
    show_all(plan)
    show_all(plan, RECORDS[:1])
    assert not (tmp_path / "out" / "loss.svg").exists()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_curve_keeps_its_shape_in_few_points():
    points = []
    for step in range(100_000):
        points.append((step, float(step % 7)))
        points = thin(points)
    assert POINTS / 2 <= len(points) <= POINTS + 1
    assert points[0][0] == 0 and points[-1][0] > 90_000


def test_what_went_wrong_first_is_what_is_said(plan, tmp_path):
    """A folder that vanishes under a run: its own error, not the picture's."""
    with pytest.raises(UserError, match="first"), consumers(plan, io.StringIO()) as show:
        for record in (*RECORDS[:4], *RECORDS[5:]):
            show(record)
        shutil.rmtree(tmp_path / "out")
        raise UserError("first")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_live_display_labels_its_loss_and_leaves_columns_free(plan, columns, language):
    """A line as wide as the terminal would be broken by a typed ^C, and by a resize, and its rest stay behind."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    set_language(language)
    live = Live(plan, Terminal())
    live.console.width = columns
    for record in RECORDS:
        live(record)
    shown = str(live.render())
    live.close()
    assert all(columns_of(line) <= min(columns, 80) - MARGIN for line in shown.split("\n"))
    if language == "en" and columns > 40:
        assert "mean of 3 steps: loss 4.0667" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live.console.file.getvalue())
    assert "step 2: train loss 1.9714, val loss 2.0528" + _(" (best)") in plain


def test_tensorboard_has_the_losses(plan, tmp_path):
    pytest.importorskip("tensorboardX")
    show_all(replace(plan, config=replace(plan.config, tensorboard=True)))
    written = list((tmp_path / "out" / "tensorboard").iterdir())
    assert len(written) == 1
    assert b"val/loss" in written[0].read_bytes() and b"grad_norm" in written[0].read_bytes()


def test_wandb_gets_every_record(plan, monkeypatch):
    logged = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    show_all(replace(plan, config=replace(plan.config, wandb_log=True)))
    assert [entry[0] for entry in logged[:-1]] == [r.step for r in RECORDS] and logged[-1] == "end"
    assert logged[3][1] == {"train/loss": 1.97144, "val/loss": 2.05278}


@pytest.mark.parametrize("setting,module", [("wandb_log", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_library_is_named(plan, monkeypatch, setting, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install"):
        show_all(replace(plan, config=replace(plan.config, **{setting: True})))


def test_every_metric_is_finite_json():
    for record in RECORDS:
        json.loads(json.dumps(asdict(record), allow_nan=False))
    assert TrainConfig().log_interval == 1


def test_a_share_of_the_peak_is_never_above_one(engine_name, monkeypatch):
    """The peak is measured at the start, perhaps while the machine is busy."""
    gpt = GPT(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=8, engine=engine_name, device="cpu")
    monkeypatch.setattr(load_engine(MachineConfig(engine=engine_name, device="cpu")), "peak_flops", lambda self: 1.0)
    shares = [r.mfu for r in gpt.train([0, 1, 2, 3, 4] * 9, max_iters=3) if isinstance(r, Step)]
    assert shares[0] == max(shares) == 1.0


def test_a_plan_needs_no_open_engine(plan):
    """As in a notebook: which engine it will be and how much memory it takes follow from the settings."""
    text = "\n".join(plan_lines(plan))
    assert "none installed" not in text and "at the peak" in text and f"engine    {pick_engine(plan.config)}" in text


def test_a_gpu_that_pytorch_cannot_use_is_named_with_the_command(plan, monkeypatch):
    monkeypatch.setattr(sampan.engine.open, "has_gpu", lambda device="auto": False)
    monkeypatch.setattr(sampan.engine.open, "nvidia_gpu_here", lambda: True)
    auto = replace(plan, config=replace(plan.config, device="auto"))
    assert gpu_lines(auto)[-1].strip().startswith("pip install") and "--index-url https" in gpu_lines(auto)[-1]
    assert not any("--index-url" in line for line in gpu_lines(plan)), "the CPU was asked for"
    monkeypatch.setattr(sampan.engine.open, "has_gpu", lambda device="auto": True)
    assert not any("--index-url" in line for line in gpu_lines(auto))


def test_the_axis_of_the_picture_ends_above_what_follows_the_first_steps():
    """A loss of 9 at step 0 is not drawn, and so no straight line leads down from it; the guesses are in their place."""
    steps = [(step, 2.0 + 7.0 * 0.5**step) for step in range(100)]
    evaluations = [(step, 2.0 + 7.0 * 0.5**step, 2.1 + 7.0 * 0.5**step) for step in range(0, 101, 20)]
    curves = Curves(steps, evaluations, (100, 2.1))
    source = draw(curves, "river", Final(100, 100, 2.2345, 500), {"unigram": 2.11, "xz": 1.95, "far": 8.0})
    assert "river: best val loss 2.1000 at step 100; 2.2345 on all of val" in source
    assert "unigram 2.11" in source and "xz 1.95" in source and "far" not in source
    labels = [float(y) for y in re.findall(r">(\d\.\d\d)</text>", source)]
    assert min(labels) > 1.5 and max(labels) < 2.5
    colors = (*COLORS, *GUESSES)
    assert len(set(colors)) == len(colors) and all(color in source for color in colors)


def test_the_way_from_step_0_is_not_drawn_as_a_line():
    curves = Curves([(0, 2.0), (1, 1.9)], [(0, 2.0, 2.0), (10, 1.8, 1.9), (20, 1.7, 1.8)], (20, 1.8))
    paths = re.findall(r'<path d="M([^"]*)" class="line', draw(curves))
    assert len(paths) >= 3 and all(len(path.split("L")) <= 2 for path in paths), paths
