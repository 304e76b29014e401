"""sampan runs: what the table says of each run is what the run's own files say."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import readable
from helpers import losses, refused, sampan

from sampan.data.meta import open_folder
from sampan.messages import columns_of
from sampan.report.baselines import measure_baselines
from sampan.report.runs import differences, find_runs, run_lines

SETTINGS = [
    "n_layer=1",
    "n_head=2",
    "n_embd=16",
    "block_size=16",
    "batch_size=2",
    "eval_interval=2",
    "eval_iters=1",
    "engine=c",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, one of them a folder deeper, and things that are no runs."""
    place = tmp_path_factory.mktemp("runs")
    (place / "book.txt").write_text(readable(3000), encoding="utf-8")
    data = ["--data_dir", str(place / "data")]
    for name, rate, steps in (("a", 0.01, 4), ("b", 0.02, 4), ("deep/第三次", 0.01, 6)):
        flags = [f"--{s}" for s in SETTINGS] + [f"--learning_rate={rate}", f"--max_iters={steps}"]
        sampan("train", str(place / "book.txt"), *flags, *data, "--out_dir", str(place / "out" / name))
    measure_baselines(open_folder(place / "data"))
    (place / "out" / "no run").mkdir()
    shutil.copytree(place / "out" / "a", place / "out" / "damaged")
    (place / "out" / "damaged" / "run.json").write_text("{", encoding="utf-8")
    return place / "out"


def test_each_run_is_found_with_its_figures(folder):
    runs = {Path(run.folder).name: run for run in find_runs(folder)}
    assert runs.keys() == {"a", "b", "第三次"}
    for run in runs.values():
        evaluations = [line for line in losses(run.folder) if "val_loss" in line]
        best = min(evaluations, key=lambda line: line["val_loss"])
        assert run.val_loss == pytest.approx(best["val_loss"], rel=1e-12) and run.best_step == best["step"]
        assert run.step == run.max_iters == run.settings["max_iters"]
        seen = measure_baselines(open_folder(folder.parent / "data"))
        assert run.bits_per_character == pytest.approx(seen.bits_per_character(run.val_loss)) and run.parameters > 1000


def test_differences_are_what_was_asked_for(folder):
    runs = find_runs(folder, "name")
    shown = [{name: d[name] for name in ("learning_rate", "max_iters")} for d in differences(runs)]
    assert [(d["learning_rate"], d["max_iters"]) for d in shown] == [(0.01, 4), (0.02, 4), (0.01, 6)]
    assert not {"out_dir", "n_layer", "seed"} & differences(runs)[0].keys()
    assert differences(runs[:1]) == [{}]


@pytest.mark.parametrize("sort", ["name", "val_loss", "bits_per_character", "parameters", "step"])
def test_sorted_by_any_column(folder, sort):
    key = "folder" if sort == "name" else sort
    values = [getattr(run, key) for run in find_runs(folder, sort)]
    assert values == sorted(values) and len(values) == 3


def test_newest_first(folder):
    assert [Path(run.folder).name for run in find_runs(folder)] == ["第三次", "b", "a"]


def test_lines_fit_the_terminal(folder):
    for columns in (60, 80, 200):
        lines = run_lines(find_runs(folder), columns)
        assert all(columns_of(line) <= columns or " " not in line.strip() for line in lines)
        assert any("第三次" in line for line in lines)


def test_command(folder):
    table = sampan("runs", str(folder), "--sort", "name").stdout
    assert table.index("learning_rate 0.01") < table.index("learning_rate 0.02")
    found = json.loads(sampan("runs", str(folder), "--json", "True").stdout)
    assert {run["settings"]["learning_rate"] for run in found} == {0.01, 0.02}
    Path("empty").mkdir()
    assert "holds no runs" in refused("runs", "empty")
    assert "no such folder" in refused("runs", "nowhere")
    assert "expected one of changed, name" in refused("runs", str(folder), "--sort", "loss")
    assert "one folder" in refused("runs", "a", "b")
