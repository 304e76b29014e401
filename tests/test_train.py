"""The loop: its schedule and records, exact resume, best and last, evaluation that moves nothing, several processes."""

import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import RECIPE, result, sampan as sampan_command

import sampan
from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Run, read_note
from sampan.cli import train as cli_train
from sampan.config import TrainConfig
from sampan.data.windows import EvaluationBatches
from sampan.engine.open import engines_here, open_engine
from sampan.errors import UserError
from sampan.evaluation.losses import MOST_TOKENS, evaluate, final_windows
from sampan.training import loop, recipe
from sampan.training.cost import Costs
from sampan.training.final import measure_final
from sampan.training.loop import Evaluation, Sample, Step, train
from sampan.training.plan import make_plan
from sampan.training.schedule import learning_rate, restart_rate


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text of words in a file, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", "。\n", "好"]
    (tmp_path / "text.txt").write_text(" ".join(draw.choice(words, 800)), encoding="utf-8")
    return "text.txt"


def start(text, out, **settings):
    return make_plan(text, RECIPE | {"out_dir": out} | settings)


def resume(out, **settings):
    return make_plan(None, {"init_from": "resume", "out_dir": out} | settings)


SLOW = pytest.mark.slow
VARIANTS = [
    dict(dropout=0.2),
    pytest.param(dict(), marks=SLOW),
    pytest.param(dict(family="llama", n_kv_head=1, dropout=0.1, gradient_accumulation_steps=3), marks=SLOW),
    pytest.param(dict(family="qwen3", always_save_checkpoint=False, eval_interval=3, optimizer="muon"), marks=SLOW),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_anywhere_and_resumed_is_never_stopped(text, variant, engine_name):
    variant = variant | {"engine": engine_name}
    whole = list(train(start(text, "whole", **variant)))
    expected = result("whole")
    for stop in range(0, len(whole), 3):  # after any record: a step's or an evaluation's
        out = f"stopped{stop}"
        records = train(start(text, out, **variant))
        seen = [next(records) for _ in range(stop + 1)]
        records.close()
        again = list(train(resume(out)))
        assert result(out) == expected, f"stopped after {seen[-1]}"
        losses = {r.step: r.loss for r in seen + again if isinstance(r, Step)}
        assert losses == {r.step: r.loss for r in whole if isinstance(r, Step)}


def test_records_come_in_order_and_the_model_learns(text):
    records = list(train(start(text, "out")))
    kinds = [(type(r).__name__, r.step) for r in records]
    assert kinds == (
        [("Evaluation", 0)]
        + [("Step", i) for i in range(4)]
        + [("Evaluation", 4)]
        + [("Step", i) for i in range(4, 8)]
        + [("Evaluation", 8)]
    )
    first, last = records[0], records[-1]
    assert first.val_loss == pytest.approx(math.log(len(set(Path(text).read_text(encoding="utf-8")))), rel=0.05), (
        "untrained is uniform"
    )
    assert last.val_loss < first.val_loss - 0.2 and last.best
    assert all(r.mfu > 0 and r.tokens_per_second > 0 for r in records if isinstance(r, Step))


def test_evaluation_never_moves_training(text):
    often = list(train(start(text, "often", eval_interval=1, dropout=0.2)))
    seldom = list(train(start(text, "seldom", eval_interval=8, dropout=0.2)))
    assert [r.loss for r in often if isinstance(r, Step)] == [r.loss for r in seldom if isinstance(r, Step)]


def test_losses_do_not_depend_on_the_micro_batch(text):
    def losses(name, batch_size, accumulation):
        plan = start(text, name, batch_size=batch_size, gradient_accumulation_steps=accumulation)
        return [r.loss for r in train(plan) if isinstance(r, Step)]

    reference = losses("a", 6, 1)
    for name, batch_size, accumulation in (("b", 3, 2), ("c", 1, 6)):
        assert losses(name, batch_size, accumulation) == pytest.approx(reference, rel=1e-4)


def test_best_is_not_overwritten_by_worse(text, monkeypatch):
    """The losses are made up: better, worse, equal, better, worse."""
    val_losses = [4.0, 2.0, 3.0, 2.0, 1.5, 1.75]
    measured = iter([loss for val in val_losses for loss in (1.0, val)])  # each evaluation measures train, then val
    monkeypatch.setattr(loop, "evaluate", lambda engine, batches: next(measured))
    evaluations = [r for r in train(start(text, "out", max_iters=10, eval_interval=2)) if isinstance(r, Evaluation)]
    assert [r.val_loss for r in evaluations] == val_losses and next(measured, None) is None
    assert [r.best for r in evaluations] == [True, True, False, False, True, False]
    assert read_note(Run("out").folder / "model.safetensors")["step"] == 8
    assert read_note(Run("out").last / "model.safetensors")["step"] == 10
    progress = Run("out").load_last(load_model("out")[0])[2]
    assert (progress.best_step, progress.best_val_loss, progress.val_loss) == (8, 1.5, 1.75)


def test_the_schedule_is_nanogpts():
    c = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    assert learning_rate(c, 0) == pytest.approx(1 / 11)
    assert learning_rate(c, 9) == pytest.approx(10 / 11)
    assert learning_rate(c, 10) == 1.0
    assert learning_rate(c, 60) == pytest.approx(0.55)
    assert learning_rate(c, 110) == learning_rate(c, 10**6) == 0.1
    assert learning_rate(TrainConfig(decay_lr=False, learning_rate=3.0), 5) == 3.0


def test_a_run_that_goes_on_falls_in_a_line_from_a_rate_that_its_new_share_gives():
    c = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=0, lr_decay_iters=None, max_iters=2000, start_iter=1000)
    assert learning_rate(c, 1000) == restart_rate(c) == pytest.approx(0.5**0.5)
    assert learning_rate(c, 1500) == pytest.approx((0.1 + 0.5**0.5) / 2)
    assert learning_rate(c, 2000) == learning_rate(c, 3000) == 0.1
    assert restart_rate(replace(c, max_iters=100_000)) > 0.99, "almost a new run"
    assert restart_rate(replace(c, max_iters=1001)) == 0.1, "almost at its end"
    assert learning_rate(replace(c, lr_decay_iters=1000), 1500) == 0.1, "nanoGPT's files say where the decay ends"
    planned = replace(c, lr_decay_iters=2000)
    assert learning_rate(planned, 1500) == learning_rate(replace(planned, start_iter=0), 1500)


def test_fine_tuning_starts_from_the_given_weights(text):
    list(train(start(text, "base")))
    plan = make_plan(text, {"init_from": "base", "out_dir": "tuned", "max_iters": 3, "block_size": 8, "device": "cpu"})
    assert plan.model.block_size == 8 and plan.model.n_embd == 16
    base = load_model("base", block_size=8)[1]
    assert all(np.array_equal(plan.weights()[name], base[name]) for name in base)
    records = list(train(plan))
    assert records[0].val_loss < 2.7, "the first evaluation is of trained weights"


def test_a_run_may_change_engine(text, engine_name):
    """Other rounding, the same curve: the losses agree until chance has grown."""
    expected = [r.loss for r in train(start(text, "one", engine="torch", dtype="float32")) if isinstance(r, Step)]
    records = train(start(text, "two", engine=engine_name, dtype="float32", max_iters=4))
    losses = [r.loss for r in records if isinstance(r, Step)]
    other = {"c": "torch", "torch": "c"}[engine_name]
    if other not in engines_here():
        pytest.skip(f"the {other} engine is not installed")
    losses += [r.loss for r in train(resume("two", engine=other, max_iters=8)) if isinstance(r, Step)]
    assert losses == pytest.approx(expected, rel=1e-4)


def test_what_a_resume_may_change(text):
    list(train(start(text, "out")))
    longer = [r.step for r in train(resume("out", max_iters=10)) if isinstance(r, Step)]
    assert longer == [8, 9]
    assert Run("out").settings().max_iters == 10, "run.json says what was last asked for"
    with pytest.raises(UserError, match="step 10 already"):
        resume("out", max_iters=9)
    for setting in (dict(n_layer=3), dict(seed=2), dict(tokenizer="bpe:300"), dict(block_size=8)):
        with pytest.raises(UserError, match=f"cannot change {next(iter(setting))} to .* at a resume"):
            resume("out", **setting)


def test_a_resume_says_that_the_text_has_grown_and_refuses_other_reading(text, caplog):
    list(train(start(text, "out", max_iters=1)))
    resume("out")
    assert not caplog.text
    Path(text).write_text(Path(text).read_text(encoding="utf-8") + " more", encoding="utf-8")
    for asked in (None, text):
        again = make_plan(asked, dict(init_from="resume", out_dir="out", max_iters=2))
        assert again.data.meta.characters < len(Path(text).read_text(encoding="utf-8"))
        assert "text.txt has changed since the run in out began" in caplog.text
        caplog.clear()
    for name, value in (("encoding", "gb18030"), ("normalize", "nfc"), ("val_file", text), ("val_fraction", 0.3)):
        with pytest.raises(UserError, match=f"cannot change {name} to {value} at a resume"):
            resume("out", **{name: value})
    Path(again.data.folder).rename("moved")
    assert resume("out", data_dir="moved").data.folder == Path("moved")


def test_a_resume_goes_on_for_minutes(text, monkeypatch):
    list(train(start(text, "out")))
    monkeypatch.setattr(recipe, "time_step", lambda *args, **kwargs: Costs(step=0.01, window=1e-4))
    plan = resume("out", minutes=0.05)
    assert plan.start_step == plan.config.start_iter == 8
    assert 8 + 200 < plan.config.max_iters < 8 + 300, "3 seconds"
    assert plan.config.eval_interval > 10, "not the interval of a run of 8 steps"
    assert resume("out", minutes=0.05, eval_interval=7).config.eval_interval == 7
    assert resume("out", minutes=0.05, max_iters=9).config.max_iters == 9, "what is said more exactly"
    assert next(r.step for r in train(resume("out", minutes=0.01, eval_interval=4)) if isinstance(r, Step)) == 8
    assert Run("out").settings().start_iter == 8
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="give --max_iters"):
        resume("out", minutes=0.05)


def test_a_resume_counts_epochs_from_the_beginning(text):
    plan = start(text, "out")
    list(train(plan))
    steps = plan.data.meta.train_tokens // (3 * 2 * 16)
    assert resume("out", max_epochs=2).config.max_iters in (2 * steps, 2 * steps + 1)
    with pytest.raises(UserError, match="step 8 already"):
        resume("out", max_epochs=0.01)


def test_going_on_gives_patience_a_new_start(text, monkeypatch):
    """A run that ended for want of a better loss goes on for as long as is asked, at least for the patience again."""
    settings = dict(max_iters=40, eval_interval=2, patience=2, learning_rate=3.0, warmup_iters=0)
    ended = list(train(start(text, "out", **settings)))[-1].step
    assert ended < 40
    assert [r.step for r in train(resume("out"))] == [ended], "without a longer plan, it stays ended"
    monkeypatch.setattr(recipe, "time_step", lambda *args, **kwargs: Costs(step=0.2, window=1e-4))
    plan = resume("out", minutes=0.01)
    assert ended < plan.config.max_iters < 40, "fewer steps than there were to be"
    assert list(train(plan))[-1].step == plan.config.max_iters
    again = [r.step for r in train(resume("out", max_iters=50))]
    assert again[-1] >= plan.config.max_iters + 4


def test_a_folder_that_cannot_be_one_is_refused_before_any_measurement(text, monkeypatch):
    monkeypatch.setattr(recipe, "time_step", lambda *args, **kwargs: pytest.fail("it was measured"))
    Path("file").write_text("")
    for out in ("file", "file/run"):
        with pytest.raises(UserError, match="file is a file"):
            make_plan(text, {"out_dir": out, "minutes": 0.1})
    with pytest.raises(UserError, match="out_dir needs a value"):
        make_plan(text, {"out_dir": ""})
    Path("out").mkdir()
    Path("out/text").write_text("")
    with pytest.raises(UserError, match="out/text is a file"):
        make_plan(text, {})


def test_a_folder_in_use_is_refused_with_a_command_that_goes_on(text, monkeypatch):
    list(train(start(text, "my run")))
    with pytest.raises(UserError) as refused:
        start(text, "my run")
    command = re.search(r"go on with it: (.*?);", str(refused.value))[1]
    assert command == "sampan train --resume --out_dir 'my run' --minutes 1"
    monkeypatch.setattr(recipe, "time_step", lambda *args, **kwargs: Costs(step=1.0, window=1e-4))
    assert sampan_command(*shlex.split(command)[1:], "--max_iters=9", "--sample_interval=none").stdout


def test_a_resume_names_changed_data(text):
    list(train(start(text, "out")))
    with open(text, "a", encoding="utf-8") as file:
        file.write("another end")
    make_plan(text, RECIPE | {"out_dir": "other"})  # prepares the changed text into the same folder
    with pytest.raises(UserError, match="has changed"):
        resume("out")


def test_divergence_is_named_and_not_saved(text):
    with pytest.raises(UserError, match="diverged"):
        for _ in train(start(text, "out", learning_rate=1e30, min_lr=1e30, grad_clip=0.0, warmup_iters=0)):
            pass
    _, weights = load_model("out/last")
    assert all(np.isfinite(w).all() for w in weights.values())


def test_eval_only_evaluates_at_any_step(text):
    records = train(start(text, "out", eval_interval=5))
    for record in records:
        if isinstance(record, Step) and record.step == 5:
            break  # at a step that is no multiple of the interval
    records.close()
    before = result("out")
    found = list(train(resume("out", eval_only=True)))
    assert [(type(r), r.step) for r in found] == [(Evaluation, 6)] and found[0].val_loss < 3
    assert result("out") == before and not found[0].saved


def test_the_loss_of_a_stop_is_told_with_its_step(text):
    records = train(start(text, "out", eval_interval=5))
    for record in records:
        if isinstance(record, Step) and record.step == 6:
            break
    records.close()
    step5 = read_note("out/model.safetensors")["val_loss"]
    assert Run("out").describe("last") == f"last, step 7, val {step5:.4f} at step 5; best, step 5, val {step5:.4f}"


def test_records_tell_epochs_saves_and_memory(text):
    plan = start(text, "out", always_save_checkpoint=False)
    records = list(train(plan))
    per_epoch = plan.data.meta.train_tokens / (3 * 2 * 16)
    epochs = [(r.step + isinstance(r, Step)) / per_epoch for r in records]
    assert [r.epoch for r in records] == pytest.approx(epochs) and epochs[-1] > 0
    evaluations = [r for r in records if isinstance(r, Evaluation)]
    assert all(r.peak_memory > 20e6 for r in evaluations)
    assert evaluations[0].saved and evaluations[-1].saved
    assert all(0 < r.mfu <= 1 for r in records if isinstance(r, Step)), "no step is faster than the peak"


def test_samples_come_after_the_evaluations_that_reach_their_interval(text):
    list(train(start(text, "plain", eval_interval=2)))
    records = list(train(start(text, "out", eval_interval=2, sample_interval=3)))
    found = [(type(before), before.step, r.step) for before, r in itertools.pairwise(records) if isinstance(r, Sample)]
    assert found == [(Evaluation, 4, 4), (Evaluation, 6, 6)], "none at the end, which is sampled anyway"
    assert result("out") == result("plain"), "drawing changes nothing"
    assert all(r.text for r in records if isinstance(r, Sample))


def test_the_final_loss_is_one_figure_everywhere(text):
    plan = start(text, "out", max_iters=8)
    engine = open_engine(plan.model, plan.config, plan.config)
    list(train(plan, engine))
    final = measure_final(plan, engine)
    x = EvaluationBatches(plan.data.val, 16, 3, 10**6)
    engine.load(load_model("out")[1])
    assert final.final_loss == pytest.approx(evaluate(engine, x), rel=1e-6) and final.tokens == len(plan.data.val) - 1
    assert json.loads(Path("out/run.json").read_text())["final"]["val_loss"] == final.final_loss
    assert f"val {final.final_loss:.4f}" in Run("out").describe("best")
    assert resume("out", max_iters=9), "run.json is still sound"
    calls = []
    partial = measure_final(plan, engine, stopped=lambda: calls.append(1) or len(calls) == 2)
    assert partial.tokens == 2 * 3 * 16, "what was read until then"


def test_ctrl_c_while_the_val_split_is_read_keeps_the_verdict(text, monkeypatch):
    measure = cli_train.measure_final

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*args)

    monkeypatch.setattr(cli_train, "measure_final", interrupted)
    flags = [f"--{name}={value}" for name, value in (RECIPE | {"max_iters": 40, "eval_interval": 40}).items()]
    done = sampan_command("train", text, *flags, "--out_dir=out")
    assert f"on {3 * 16} of the" in done.stdout and "xz, after" in done.stdout, "of one batch"
    assert "\nstep 40: final val loss" in done.stdout


def test_the_final_loss_costs_no_more_than_a_share_of_the_training(text):
    plan = start(text, "out")
    short, long = (replace(plan.config, max_iters=n) for n in (8, 10**6))
    assert final_windows(short, plan.data) == 8 * 6 // 3
    assert final_windows(long, plan.data) == plan.data.meta.val_tokens // 16
    large = SimpleNamespace(meta=SimpleNamespace(val_tokens=10**9))
    assert final_windows(long, large) <= MOST_TOKENS / 16 + 1


def test_eval_only_writes_no_run(text):
    assert [type(r) for r in train(start(text, "out", eval_only=True))] == [Evaluation]
    assert not os.path.exists("out")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(), dict(family="llama", n_kv_head=1)])
def test_two_processes_give_the_losses_of_one(text, settings):
    """Under torchrun, with the same global batch; then stopped and resumed by one process alone."""
    flags = [f"--{name}={value}" for name, value in (RECIPE | settings).items()]
    expected = [r.loss for r in train(start(text, "one", **settings)) if isinstance(r, Step)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "sampan"]
    command = [*torchrun, "train", text, *flags, "--out_dir=two"]
    where = {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}  # the package that is tested, installed or not
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | where)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in Path("two/metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert [r.step for r in train(resume("two", max_iters=9)) if isinstance(r, Step)] == [8]
