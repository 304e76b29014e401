"""The loop: its schedule and records, exact resume, best and last, evaluation that moves nothing, several processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import RECIPE, result

import sampan
from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Run, read_note
from sampan.config import TrainConfig
from sampan.engine.open import engines_here
from sampan.errors import UserError
from sampan.training import loop
from sampan.training.loop import Evaluation, Step, train
from sampan.training.plan import make_plan
from sampan.training.schedule import learning_rate


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
