"""What a run is told at its end: each sentence where it is true, and not where it is not."""

import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import readable, tiny_config
from helpers import sampan

from sampan.config import TrainConfig
from sampan.model.count import count_parameters
from sampan.report.baselines import Baselines
from sampan.report.verdict import loss_table, verdict
from sampan.training.loop import Evaluation

MODEL = tiny_config("qwen3")
SEEN = Baselines(
    data={}, characters=1000, bytes=1500, tokens=500, unseen=0.0, overlap=0.0, unused=0, vocab_size=65,
    uniform=3.0, unigram=2.0, xz=1.5,
)  # fmt: skip


def plan(tokens: int, **settings):
    return SimpleNamespace(
        config=TrainConfig(**settings),
        model=MODEL,
        pretrained=None,
        resume=False,
        data=SimpleNamespace(meta=SimpleNamespace(train_tokens=tokens)),
    )


def course(*losses: tuple[float, float]) -> list[Evaluation]:
    best, found = float("inf"), []
    for i, (train, val) in enumerate(losses):
        found.append(Evaluation(100 * i, train, val, val < best, 1e-3))
        best = min(best, val)
    return found


def said(evaluations, tokens=10**9, val_loss=1.0, seen=SEEN, **settings) -> str:
    lines = verdict(plan(tokens, **settings), evaluations, val_loss, seen, ["a.txt"])
    assert all(len(line) <= 80 or line.startswith("    sampan ") for line in lines)
    return " ".join(line.strip() for line in lines)


OVERFIT = course((4.0, 4.0), (2.0, 2.5), (1.0, 3.0))
FALLING = course((4.0, 4.0), (2.0, 2.1), (1.50, 1.55))
DONE = course((4.0, 4.0), (2.0, 2.1), (1.0, 1.5))


def test_overfitting_names_the_step_and_both_losses():
    words = said(OVERFIT)
    assert "Overfitted since step 100" in words
    assert "rose from 2.50 to 3.00" in words and "fell from 2.00 to 1.00" in words
    assert "Overfitted" not in said(FALLING) + said(DONE)
    assert "too small" not in words


@pytest.mark.parametrize("times", [4, 50])
def test_a_text_that_is_too_small_says_by_how_much(times):
    words = said(OVERFIT, tokens=count_parameters(MODEL) // times)
    assert "too small for this model" in words and f"About {times} times as much" in words


def test_still_falling_says_what_to_try():
    assert "still falling" in said(FALLING, minutes=1.5) and "train --resume --out_dir=out --minutes=1.5" in said(
        FALLING, minutes=1.5
    )
    assert "train --resume --out_dir=out --max_iters=600" in said(FALLING, max_iters=300)
    assert "still falling" not in said(DONE) and "more text" in said(DONE)
    assert said(FALLING[:1]) == ""


def test_each_course_has_its_own_words():
    """What is said of both losses is what they did."""
    diverged = said(course((4.0, 4.0), (2.0, 2.0), (3.0, 3.0)))
    assert "Diverged: since step 100" in diverged and "Overfitted" not in diverged and "fell" not in diverged
    flat = said(course((4.0, 4.0), (4.0, 4.01), (4.0, 3.99)))
    assert "hardly moved" in flat and "still falling" not in flat
    late = said(course((4.0, 4.0), (1.2, 2.0), (1.0, 2.015)))
    assert "lowest at step 100 and has hardly changed" in late and "lowest at the end" in said(DONE)
    assert "nothing left to learn" in said(course((1.0, 1.0), (0.0, 0.002), (0.0, 0.001)))


def test_a_run_that_patience_ended_says_so_and_how_to_go_on():
    words = said(OVERFIT, patience=6, max_iters=500)
    assert (
        "Stopped at step 200 of 500: the val loss did not improve in 6 evaluations" in words
        and "sampan train --resume --out_dir=out --patience=none" in words
    )
    assert "Stopped" not in said(OVERFIT, patience=6, max_iters=200) + said(OVERFIT, patience=None, max_iters=500)


def test_a_val_that_train_has_is_no_test():
    assert "99.0% of val is copied verbatim from train" in said(DONE, seen=replace(SEEN, overlap=0.99))
    assert "copied" not in said(DONE, seen=replace(SEEN, overlap=0.05))


def test_guessing_is_named():
    """500 tokens are 1000 characters: a bit per character is 2 bits, 1.386 nats, per token."""
    assert "Worse than guessing" in said(DONE, val_loss=3.1 * 1.3863)
    assert "No better than counting" in said(DONE, val_loss=2.1 * 1.3863)
    assert "Worse than xz" in said(DONE, val_loss=1.6 * 1.3863) and "xz" not in said(DONE, val_loss=1.4 * 1.3863)
    assert "guessing" not in said(DONE, val_loss=1.9 * 1.3863) and "counting" not in said(DONE, val_loss=1.9 * 1.3863)


def test_unseen_symbols_are_named():
    assert "27.6% of the val characters" in said(DONE, seen=replace(SEEN, unseen=0.276))
    assert "symbols" not in said(DONE, seen=replace(SEEN, unseen=0.001))


def test_the_table_compares_in_three_units():
    rows = [line.split() for line in loss_table(1.3863, SEEN)]
    assert [float(x) for x in rows[1][-3:]] == pytest.approx([1.3863, 1.0, 1000 / 1500], abs=1e-4)
    assert [float(row[-2]) for row in rows[1:]] == [1.0, 1.5, 2.0, 3.0]
    assert all(len(line) <= 80 for line in loss_table(1.3863, SEEN))


LEVEL = course((8.0, 8.0), (5.5, 5.5), (5.1, 5.3804), (5.1, 5.3798))
ADVISED = {  # sentence: a course of which it is said, and the settings that it needs
    "still falling": (FALLING, {}),
    "hardly moved": (course((4.0, 4.0), (4.0, 4.01), (4.0, 3.99)), {}),
    "has hardly changed": (LEVEL, {}),
    "far below": (DONE, {}),
    "too small": (OVERFIT, {"size": "mini"}),
    "Diverged": (course((4.0, 4.0), (2.0, 2.0), (3.0, 3.0)), {}),
    "Stopped": (OVERFIT, {"patience": 6, "max_iters": 1000}),
}


def test_a_level_course_is_not_falling():
    words = said(LEVEL)
    assert "hardly changed since step 200, from 5.38 to 5.38" in words and "still falling" not in words


SMALL = ["--block_size=8", "--batch_size=2", "--max_iters=2", "--eval_iters=1", "--threads=1"]
RUNS = {  # what somebody trains: the words
    "text": ["my text.txt", "--size=mini"],
    "standard input": ["-", "--size=mini", "--tokenizer=char"],
    "a config file": ["config.toml"],
    "fine-tuning": ["my text.txt", "--init_from=out/first"],
    "a resume": ["--resume", "--max_iters=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_each_advice_is_a_command_that_works(kind, tmp_path, monkeypatch):
    """Pasted as it is where the run was made, of whichever source."""
    (tmp_path / "my text.txt").write_text(readable(3000), encoding="utf-8")
    (tmp_path / "config.toml").write_text("dataset = ['my text.txt']\nn_layer = 1\nn_embd = 8\nn_head = 1")
    if kind in ("fine-tuning", "a resume"):
        folder = "--out_dir=out/first" if kind == "fine-tuning" else "--out_dir=out/my run"
        sampan("train", *RUNS["text"], *SMALL, folder)
    plans = []
    monkeypatch.setattr("sampan.cli.train.print_results", lambda plan, *others: plans.append(plan))
    words = [*RUNS[kind], *([] if kind == "a resume" else SMALL), "--out_dir=out/my run"]
    sampan("train", *words, stdin=readable(3000))
    advised = set()
    for sentence, (course, settings) in ADVISED.items():
        data = SimpleNamespace(folder=plans[0].data.folder, meta=SimpleNamespace(train_tokens=100))
        config = replace(plans[0].config, minutes=0.01, patience=None, max_iters=2)
        made = replace(plans[0], data=data, config=replace(config, **settings))
        lines = verdict(made, course, 1.0, SEEN, words)
        assert sentence in " ".join(line.strip() for line in lines)
        advised |= {line for line in lines if line.startswith("    ")}
    assert len(advised) >= 5 and any("--resume" in line for line in advised)
    for line in sorted(advised, key=lambda line: "--resume" not in line):
        sampan(*shlex.split(line)[1:], *([] if "--resume" in line else ["--max_iters=4"]))


def test_no_size_is_advised_where_there_is_none():
    """A model of `tiny` has no smaller size."""
    small = plan(100)
    small.model = replace(MODEL, n_layer=2)
    lines = verdict(small, OVERFIT, 1.0, SEEN, ["a.txt"])
    assert not any("--size" in line for line in lines) and any("--dropout=0.2" in line for line in lines)
    small.model = replace(MODEL, n_layer=16)
    assert any("--size=xlarge" in line for line in verdict(small, OVERFIT, 1.0, SEEN, ["a.txt"]))
    assert not any("--size" in line for line in verdict(small, LEVEL, 1.0, SEEN, ["a.txt"])), "none is larger"
