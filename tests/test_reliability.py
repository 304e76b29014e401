"""What docs/RELIABILITY.md promises: kills, faults of the disk, locks, numbers that go wrong, long runs.

    pytest tests/test_reliability.py               # the short form
    pytest tests/test_reliability.py -m full       # hundreds of kills, 20,000 steps, millions of lines

A killed process is a real one, and its end is SIGKILL. Several processes are test_torchrun.py's.
"""

import contextlib
import errno
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import readable, tiny_config
from helpers import CONFIG, TOKENIZER, environment, losses, refused, result, sampan, state, step_of, weights

from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Progress, Run, read_note
from sampan.checkpoint.save import WritableRun
from sampan.cli.signals import StopSignal
from sampan.config import OPTIMIZERS, TrainConfig
from sampan.engine.open import engines_here, open_engine
from sampan.errors import UserError
from sampan.model.parameters import initialize
from sampan.model.shape import settings_of
from sampan.report.metrics import Metrics
from sampan.report.picture import POINTS, Picture, draw, read_curves
from sampan.training import loop
from sampan.training.loop import MOST_REFUSED, Evaluation, Step, train
from sampan.training.plan import make_plan

posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
RECIPE = dict(
    engine="c" if "c" in engines_here() else "torch", device="cpu", threads=1, family="gpt2", n_layer=1, n_head=2,
    n_embd=16, patience=None,
    block_size=16, batch_size=2, gradient_accumulation_steps=2, max_iters=8, warmup_iters=2, learning_rate=1e-2,
    min_lr=1e-3, lr_decay_iters=8, eval_interval=2, eval_iters=1, log_interval=1,
)  # fmt: skip


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "river.txt").write_text(readable(3000), encoding="utf-8")
    return "river.txt"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What most of the time of such small runs goes into: a sync, and the machine's peak at each evaluation."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in engines_here():
        module = importlib.import_module({"c": "sampan.engine.c", "torch": "sampan.engine.torch.engine"}[name])
        monkeypatch.setattr(getattr(module, f"{name.title()}Engine"), "peak_flops", lambda self: 1e12)


def start(text, out="out", overwrite=False, **settings):
    return make_plan(text, RECIPE | {"out_dir": out} | settings, overwrite=overwrite)


def resume(out="out", **settings):
    return make_plan(None, {"init_from": "resume", "out_dir": out} | settings)


def assert_finite(out) -> None:
    for path in Path(out).rglob("*.safetensors"):
        for name, tensor in safetensors.numpy.load_file(path).items():
            assert np.isfinite(tensor).all(), f"{path}: {name}"


# ---- killed at any moment ----


def flags_of(settings: dict) -> list[str]:
    return [f"--{name}={'auto' if value is None else value}" for name, value in settings.items()]


def kill_somewhere(command: list[str], rng: random.Random) -> bool:
    """Run a command and kill it: soon after its start, or after some lines of its steps. Whether it was still alive."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sampan", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    with process:
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.5)
        else:
            wanted = rng.randint(1, 12)
            for line in process.stdout:
                wanted -= line.startswith((b"iter", b"step"))
                if wanted <= 0:
                    break
            time.sleep(rng.random() * 0.03)
        alive = process.poll() is None
        process.kill()
        errors = process.stderr.read()
    assert b"Traceback" not in errors, errors.decode()
    assert alive or process.returncode == 0, errors.decode()
    return alive


def killed_and_resumed(text: str, kills: int, seed: int, **settings) -> None:
    settings = RECIPE | dict(max_iters=7 * kills, lr_decay_iters=7 * kills, eval_interval=3) | settings
    command = ["train", text, *flags_of(settings)]
    sampan(*command, "--out_dir=whole")
    rng, survived, turns = random.Random(seed), 0, 0
    again = ["train", "--resume", "--out_dir=killed"]
    while survived < kills and turns < 3 * kills:
        turns += 1
        survived += kill_somewhere(again if Run("killed").can_resume() else [*command, "--out_dir=killed"], rng)
        assert_finite("killed")
    sampan(*(again if Run("killed").can_resume() else [*command, "--out_dir=killed"]))
    assert survived >= kills // 2, "it was through too early for this to mean anything"
    assert result("killed") == result("whole")
    assert losses("killed") == losses("whole")
    assert not list(Path("killed").rglob("*.partial")) and not Path("killed/new").exists()
    print(f"{survived} kills survived")


@pytest.mark.slow
@posix
@pytest.mark.skipif("c" not in engines_here(), reason="the C engine is not installed")
def test_a_dozen_kills_leave_no_trace(text):
    killed_and_resumed(text, 12, seed=1, optimizer="muon", dropout=0.1, gradient_checkpointing=True)


@pytest.mark.slow
@posix
def test_kills_of_the_torch_engine_leave_no_trace(text):
    killed_and_resumed(text, 2, seed=2, engine="torch", optimizer="muon", dropout=0.1, max_iters=12)


FULL = {
    "muon": (40, dict(engine="c", optimizer="muon", dropout=0.1, gradient_accumulation_steps=3)),
    "adamw": (40, dict(engine="c", dropout=0.2, family="llama", dtype="bfloat16")),
    "checkpointing": (40, dict(engine="c", gradient_checkpointing=True, family="qwen3", always_save_checkpoint=False)),
    "early stopping": (20, dict(engine="c", patience=2, learning_rate=0.1, min_lr=0.1, optimizer="adamw")),
    "torch muon": (15, dict(engine="torch", optimizer="muon", dropout=0.1)),
    "torch adamw": (15, dict(engine="torch", family="llama", gradient_checkpointing=True, dropout=0.1)),
}


@posix
@pytest.mark.full
@pytest.mark.parametrize("variant", FULL)
def test_many_kills_leave_no_trace(text, variant):
    kills, settings = FULL[variant]
    if settings["engine"] not in engines_here():
        pytest.skip("this engine is not installed")
    killed_and_resumed(text, kills, seed=3, **settings)


@pytest.mark.slow
def test_early_stopping_stops_a_resumed_run_at_the_same_step(text, engine_name):
    settings = dict(engine=engine_name, patience=2, learning_rate=0.3, min_lr=0.3, max_iters=60, lr_decay_iters=60)
    records = list(train(start(text, "whole", **settings)))
    assert records[-1].step < 60, "it stopped early"
    for stop in range(0, len(records), 7):
        out = f"stopped{stop}"
        parts = train(start(text, out, **settings))
        seen = [next(parts) for _ in range(stop + 1)]
        parts.close()
        seen += list(train(resume(out)))
        assert result(out) == result("whole")
        evaluations = {r.step: r for r in seen if isinstance(r, Evaluation)}
        assert list(evaluations.values()) == [r for r in records if isinstance(r, Evaluation)]


@pytest.mark.slow
@posix
def test_a_second_signal_stops_at_once(text):
    """The step that is running takes half a minute; what was saved before it is whole."""
    settings = RECIPE | dict(batch_size=1, gradient_accumulation_steps=400_000, out_dir="out")
    process = subprocess.Popen(
        [sys.executable, "-m", "sampan", "train", text, *flags_of(settings)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
    )  # fmt: skip
    with process:
        while not process.stdout.readline().startswith("saving checkpoint"):
            pass
        time.sleep(1)  # the step has begun
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "Stopping after this step. Press Ctrl-C again to quit now.\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGINT and "interrupted" in rest and "Traceback" not in rest, rest
    assert Run("out").load_last(tiny_of("out"))[2].step == 0
    assert [
        r.step for r in train(resume("out", gradient_accumulation_steps=1, max_iters=1)) if isinstance(r, Step)
    ] == [0]


def train_at_a_terminal(text: str) -> tuple[int, int]:
    """Begin a long run at a terminal of its own; its process and what reads the terminal."""
    import pty

    process, terminal = pty.fork()
    if process == 0:
        command = ["train", text, *flags_of(RECIPE | dict(max_iters=10**7, eval_interval=50)), "--out_dir=out"]
        os.execvpe(sys.executable, [sys.executable, "-m", "sampan", *command], environment() | {"TERM": "xterm"})
    return process, terminal


@posix
def test_a_stop_at_a_terminal_disturbs_no_line(text):
    """Ctrl-C at a real one, while the line of progress is live."""
    process, terminal = train_at_a_terminal(text)
    output, stopped = b"", False
    with contextlib.suppress(OSError):  # that is how its end reads
        while piece := os.read(terminal, 1 << 16):
            output += piece
            if not stopped and b"step 100:" in output:
                os.write(terminal, b"\x03")
                stopped = True
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGINT
    os.close(terminal)
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output).decode()
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert lines.count("Stopping after this step. Press Ctrl-C again to quit now.") == 1
    assert lines[-1] == "stopped; continue with: sampan train --resume --out_dir out"
    evaluations = [line for line in lines if line.startswith("step ")]
    assert len(evaluations) == len(set(evaluations)) >= 3


@posix
def test_a_closed_terminal_stops_as_ctrl_c_does(text):
    """The terminal hangs up twice, as its shell may do too, and nothing can be written to it any more."""
    process, terminal = train_at_a_terminal(text)
    output = b""
    while b"step 100:" not in output:
        output += os.read(terminal, 1 << 16)
    os.kill(process, signal.SIGHUP)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGHUP
    at = Run("out").load_last(tiny_of("out"))[2].step
    assert at >= 100
    assert [r.step for r in train(resume("out", max_iters=at + 2)) if isinstance(r, Step)] == [at, at + 1]


@posix
def test_a_hangup_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_asked()
    finally:
        signal.signal(signal.SIGHUP, before)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def tiny_of(out):
    return load_model(Path(out) / "last")[0]


# ---- a run that replaces another ----


class Death(BaseException):
    pass


@contextlib.contextmanager
def death_after(monkeypatch, calls: int):
    """The process dies at one of its system calls, and does nothing after it. Yields whether it has died, in a list."""
    left, died = calls, []

    def dying(function):
        def call(*args, **kwargs):
            nonlocal left
            if left <= 0:
                died.append(True)
                raise Death
            left -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (safetensors.numpy, "save_file"), (os, "fsync"), (os, "replace"), (shutil, "rmtree"), (Path, "unlink"),
            (Path, "rmdir"),
        ):  # fmt: skip
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with contextlib.suppress(Death):
            yield died


def begin(run: Run, seed: int) -> None:
    settings = TrainConfig(out_dir=str(run.folder), seed=seed, **asdict(settings_of(CONFIG)))
    with run.locked(), run.begin(settings, CONFIG, TOKENIZER, {}) as first:
        first.save_best(CONFIG, weights(seed), Progress(step=seed))
        first.save_last(CONFIG, weights(seed), state(seed), Progress(step=seed))


@pytest.mark.slow
def test_death_at_any_point_of_a_replacement_leaves_one_of_the_two_runs(tmp_path, monkeypatch):
    found = []
    for calls in range(200):
        run = WritableRun(tmp_path / f"out{calls}")
        begin(run, 1)
        (run.folder / "metrics.jsonl").write_text("{}\n")
        with death_after(monkeypatch, calls) as died:
            begin(run, 2)
        if died and calls % 3 == 0:  # a second one dies while it mends
            with death_after(monkeypatch, calls % 5), run.locked():
                pass
        with run.locked():
            pass
        found.append(step_of(run))
        run.check_unchanged()
        assert run.settings().seed == read_note(run.folder / "model.safetensors")["step"] == found[-1]
        assert sorted(os.listdir(run.folder)) == sorted(
            [
                "metrics.jsonl",
                ".lock",
                "config.json",
                "last",
                "model.safetensors",
                "run.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        )
        if not died:
            break
    assert found[0] == 1 and found[-1] == 2 and len(found) > 20
    assert found == sorted(found), "first the old run, from some point on the new one"


def test_a_replacement_that_fails_before_its_first_save_changes_nothing(text, monkeypatch):
    list(train(start(text)))
    before = result("out"), Path("out/run.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: float("nan"))
        with pytest.raises(UserError, match="nothing was saved"):
            list(train(start(text, overwrite=True, n_embd=8)))
    assert (result("out"), Path("out/run.json").read_bytes()) == before
    list(train(start(text, overwrite=True, n_embd=8)))
    assert load_model("out")[0].n_embd == 8


# ---- one run at a time ----


def test_a_second_run_is_refused_by_the_name_of_the_first(text):
    first = train(start(text, max_iters=100, lr_decay_iters=100))
    next(first), next(first)
    for second in (lambda: train(start(text, overwrite=True)), lambda: train(resume())):
        with pytest.raises(UserError, match=rf"another run trains here \(process {os.getpid()} on .*, since 20"):
            next(second())
    assert load_model("out")[0].n_embd == 16, "sampling needs no lock"
    first.close()
    list(train(resume(max_iters=5)))


@pytest.mark.slow
@posix
def test_the_lock_of_a_killed_run_is_nobodys(text):
    process = subprocess.Popen(
        [sys.executable, "-m", "sampan", "train", text, *flags_of(RECIPE | dict(max_iters=10**6)), "--out_dir=out"],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    with process:
        while not process.stdout.readline().startswith("iter 3:"):
            pass
        threading.Thread(target=process.stdout.read, daemon=True).start()
        assert f"process {process.pid} on " in refused("train", "--resume", "--out_dir=out")
        assert f"process {process.pid} on " in refused("train", text, *flags_of(RECIPE), "--out_dir=out", "--overwrite")
        assert sampan("sample", "out", "--prompt=the", "--max_new_tokens=3").stdout.startswith("the")
        process.kill()
    step = read_note(Path("out/last/model.safetensors"))["step"]
    assert [r.step for r in train(resume(max_iters=step + 1)) if isinstance(r, Step)] == [step]


def test_who_samples_while_a_run_saves_never_mixes_two_steps(tmp_path):
    run = WritableRun(tmp_path / "out")
    zeros = {name: np.zeros_like(w) for name, w in weights(1).items()}
    begin(run, 1)
    run.save_best(CONFIG, zeros, Progress())
    done = threading.Event()

    def save():
        for step in range(60):
            run.save_best(CONFIG, {name: w + step for name, w in zeros.items()}, Progress(step=step))
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    seen = set()
    while not done.is_set():
        values = {float(v) for w in load_model(run.folder)[1].values() for v in w.ravel()}
        assert len(values) == 1
        seen |= values
    thread.join()
    assert len(seen) > 1


# ---- faults of the disk ----

FAULTS = {
    "a full disk": (errno.ENOSPC, "disk full"),
    "a quota": (errno.EDQUOT, "disk full"),
    "a read-only disk": (errno.EROFS, "Read-only"),
    "a broken disk": (errno.EIO, "put/output error"),
    "a missing right": (errno.EACCES, "ermission denied"),
}
FIRST_FAULTS = [("a full disk", "save_file"), ("a quota", "fsync"), ("a read-only disk", "replace")]


@pytest.mark.parametrize(
    ("fault", "call"),
    [  # one fault of each call is fast; which fault it is only changes the words
        pytest.param(fault, call, marks=[] if (fault, call) in FIRST_FAULTS else pytest.mark.slow)
        for fault in FAULTS
        for call in ("save_file", "fsync", "replace")
    ],
)
def test_a_fault_of_the_disk_leaves_the_save_before_it(tmp_path, monkeypatch, fault, call):
    """At each of the times that a save calls the system; the sentence says what happened."""
    number, words = FAULTS[fault]
    owner = safetensors.numpy if call == "save_file" else os
    run = WritableRun(tmp_path / "out")
    begin(run, 1)
    for save in (
        lambda: run.save_last(CONFIG, weights(2), state(2), Progress(step=2)),
        lambda: run.save_best(CONFIG, weights(2), Progress(step=2)),
        lambda: begin(run, 2),
    ):
        for calls in range(3):
            left, real = calls, getattr(owner, call)

            def failing(*args, real=real, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(number, os.strerror(number))
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(owner, call, failing)
                with contextlib.suppress(OSError) if left else pytest.raises(UserError, match=words):
                    try:
                        save()
                    except UserError as said:
                        assert words in str(said) and "is intact" in str(said) and "\n" not in str(said)
                        if not calls:
                            raise
            with run.locked():
                pass
            assert step_of(run) in (1, 2)
            assert not list(run.folder.rglob("*.partial"))
            run.save_last(CONFIG, weights(1), state(1), Progress(step=1))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 300 KB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_or_becomes_read_only(text, small_disk):
    """A real one. The run ends with a sentence, and goes on when there is room again."""
    out = small_disk / "out"
    records = train(start(text, str(out)))
    seen = [next(records) for _ in range(4)]
    (small_disk / "ballast").write_bytes(bytes((shutil.disk_usage(small_disk).free // 4096) * 4096))
    with pytest.raises(UserError, match=r"disk full.*is intact"):
        list(records)
    assert Run(out).load_last(tiny_of(out))[2].step == 2 == seen[-1].step + 0
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only"):
        list(train(resume(str(out))))
    load_model(out)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    list(train(resume(str(out))))
    list(train(start(text, "whole")))
    assert result(out) == result("whole")


def test_a_folder_that_vanishes_is_named(text):
    records = train(start(text))
    next(records)
    shutil.move("out", "elsewhere")
    with pytest.raises(UserError, match=r"^out.*cannot create the folder"):
        list(records)
    shutil.move("elsewhere", "out")
    list(train(resume()))


# ---- what a resume relies on ----


def edit(path, *keys, value):
    about = json.loads(Path(path).read_text(encoding="utf-8"))
    inner = about
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != value
    inner[keys[-1]] = value
    Path(path).write_text(json.dumps(about), encoding="utf-8")


EDITS = {
    "a setting": (lambda: edit("out/run.json", "settings", "seed", value=7), r"run.json has been edited"),
    "the data's name": (lambda: edit("out/run.json", "data", "sha256", value="0"), r"run.json has been edited"),
    "the model": (lambda: edit("out/last/config.json", "n_head", value=4), r"config.json has been edited: n_head is 4"),
    "the run's tokenizer": (
        lambda: edit("out/last/tokenizer.json", "model", "vocab", "e", value=0),
        "tokenizer.json.* differ|tokenizer",
    ),
    "the data's tokenizer": (lambda: swap("data/river/tokenizer.json", '"e"', '"ß"'), "tokenizer.json.* differ"),
}  # fmt: skip


def swap(path, old, new):
    whole = Path(path).read_text(encoding="utf-8")
    assert old in whole
    Path(path).write_text(whole.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_by_hand_is_named_at_a_resume(text, what):
    list(train(start(text)))
    resume(max_iters=9)
    harm, words = EDITS[what]
    harm()
    with pytest.raises(UserError, match=words):
        resume(max_iters=9)


# ---- numbers that go wrong ----


def engine_of(name: str, optimizer: str, family: str = "gpt2", **settings):
    model = tiny_config(family, tie_word_embeddings=False)
    config = TrainConfig(
        engine=name, device="cpu", threads=1, dtype=settings.pop("dtype", "float32"), optimizer=optimizer, batch_size=2,
        gradient_accumulation_steps=1, dropout=0.0, **settings,
    )  # fmt: skip
    engine = open_engine(model, config, config)
    engine.load(initialize(model, 1))
    return engine, model


def batch(model, seed=0):
    ids = np.random.default_rng(seed).integers(0, model.vocab_size, (2, model.block_size + 1), dtype=np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


POISONS = {
    "an infinite weight": (np.inf, "the weights of h.1.mlp.c_fc.weight are not finite"),
    "a weight that is no number": (np.nan, "the weights of h.1.mlp.c_fc.weight are not finite"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("poison", POISONS)
def test_a_step_that_is_not_finite_leaves_no_trace(engine_name, optimizer, poison):
    """Beside an engine that never met one: the same weights and moments, bit by bit; only the step counts."""
    value, words = POISONS[poison]
    (engine, model), (other, _) = engine_of(engine_name, optimizer), engine_of(engine_name, optimizer)
    for e in (engine, other):
        e.accumulate(*batch(model))
        assert e.update(1e-2).refused == ""
    clean, before = engine.params(), engine.state()
    engine.load(clean | {"h.1.mlp.c_fc.weight": np.full_like(clean["h.1.mlp.c_fc.weight"], value)})
    engine.accumulate(*batch(model))
    update = engine.update(1e-2)
    assert update.refused == words and not np.isfinite(update.loss)
    engine.load(clean)
    after = engine.state()
    assert same({**before, "step": 0}, {**after, "step": 0}) and after["step"] == before["step"] + 1
    for seed in (1, 2):
        for e in (engine, other):
            e.accumulate(*batch(model, seed))
            assert e.update(1e-2).refused == ""
    assert same(engine.params(), other.params())
    third, _ = engine_of(engine_name, optimizer)
    third.load(engine.params())
    third.load_state(engine.state())
    for e in (engine, third):
        e.accumulate(*batch(model, 3))
        e.update(1e-2)
    assert same(engine.params(), third.params()) and same(engine.state(), third.state())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_too_large_for_its_norm_is_refused(engine_name, optimizer):
    """The loss is finite, and so is each gradient; the sum of their squares is not."""
    engine, model = engine_of(engine_name, optimizer, "llama")
    clean = engine.params()
    huge = clean | {"lm_head.weight": clean["lm_head.weight"] * np.float32(1e25)}
    engine.load(huge)
    engine.accumulate(*batch(model))
    update = engine.update(1e-2)
    assert np.isfinite(update.loss) and not np.isfinite(update.grad_norm)
    assert update.refused == "the norm of the gradient is not finite"
    assert same(engine.params(), huge)


def test_the_tensor_whose_gradient_is_not_finite_is_named():
    torch = pytest.importorskip("torch")
    engine, model = engine_of("torch", "muon")
    clean = engine.params()
    engine.accumulate(*batch(model))
    engine.weights[engine.names.index("h.0.attn.c_proj.weight")].grad[0, 0] = torch.nan
    assert engine.update(1e-2).refused == "the gradient of h.0.attn.c_proj.weight is not finite"
    assert same(engine.params(), clean)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float16_overflows_are_the_scalers(optimizer):
    """A scale that is too high is lowered, without a refusal, until a step is applied; its state is saved."""
    pytest.importorskip("torch")
    engine, model = engine_of("torch", optimizer, dtype="float16")
    engine.load_state(engine.state() | {"loss_scale": np.array(2.0**120)})
    clean, scales, applied = engine.params(), [], []
    for _ in range(200):
        engine.accumulate(*batch(model))
        assert engine.update(1e-2).refused == ""
        scales.append(float(engine.state()["loss_scale"]))
        applied.append(int(engine.state()["applied_steps"]))
        if applied[-1]:
            break
        assert same(engine.params(), clean)
    assert scales[1] == scales[0] / 2 and applied[-1] == 1 and len(applied) > 10
    assert not same(engine.params(), clean)
    other, _ = engine_of("torch", optimizer, dtype="float16")
    other.load(engine.params())
    other.load_state(engine.state())
    for e in (engine, other):
        e.accumulate(*batch(model, 1))
        e.update(1e-2)
    assert same(engine.params(), other.params()) and same(engine.state(), other.state())
    engine.load_state(engine.state() | {"loss_scale": np.array(1.0)})
    engine.accumulate(*batch(model))
    engine.weights[0].grad.fill_(float("inf"))
    assert "gradient" in engine.update(1e-2).refused, "at a scale of 1 it is no matter of scale"


class Glitch:
    """An engine whose weights are not finite while it takes some steps, and are restored after."""

    def __init__(self, engine, steps):
        self.engine, self.steps, self.taken = engine, steps, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def accumulate(self, x, y, more=False):
        clean = self.engine.params()
        if self.taken in self.steps:
            self.engine.load(clean | {"wte.weight": clean["wte.weight"] * np.float32(np.inf)})
        self.engine.accumulate(x, y, more)
        self.engine.load(clean)

    def update(self, lr):
        self.taken += 1
        return self.engine.update(lr)


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(text, engine_name):
    plan = start(text, engine=engine_name)
    glitch = Glitch(open_engine(plan.model, plan.config, plan.config), {5})
    with pytest.raises(
        UserError, match=r"step 5: the gradient of wte.weight is not finite .*checkpoint is step 4.*on_nan"
    ):
        list(train(plan, glitch))
    assert_finite("out")
    assert [r.step for r in train(resume()) if isinstance(r, Step)] == [4, 5, 6, 7], "the weights were none the worse"

    plan = start(text, "skips", engine=engine_name, on_nan="skip")
    with pytest.warns(UserWarning, match="skipped step 5: the gradient of wte.weight is not finite"):
        records = list(train(plan, Glitch(open_engine(plan.model, plan.config, plan.config), {5})))
    steps = [r for r in records if isinstance(r, Step)]
    assert [r.step for r in steps] == list(range(8)) and [np.isfinite(r.loss) for r in steps].count(False) == 1
    assert_finite("skips")
    assert Run("skips").load_last(plan.model)[1]["applied_steps"] == 7

    plan = start(text, "always", engine=engine_name, on_nan="skip", max_iters=100)
    with pytest.raises(UserError, match=f"{MOST_REFUSED} bad steps in a row"):
        list(train(plan, Glitch(open_engine(plan.model, plan.config, plan.config), range(3, 100))))


def test_metrics_of_a_skipped_step_are_json(text, tmp_path):
    metrics = Metrics(tmp_path)
    for record in (Step(0, float("nan"), 1e-3, float("inf"), 0.1, 1.0, 0.1), Evaluation(1, 1.0, 1.0, True, 1e-3)):
        metrics(record)
    picture = Picture(metrics)
    picture(Evaluation(1, 1.0, 1.0, True, 1e-3))
    metrics.close()

    def no(word):
        raise AssertionError(f"{word} is no JSON")

    lines = [json.loads(line, parse_constant=no) for line in metrics.path.read_text().splitlines()]
    assert lines[0]["loss"] is None and lines[0]["grad_norm"] is None and lines[1]["val_loss"] == 1.0


SLOW = pytest.mark.slow


@pytest.mark.parametrize("rate", [1e3, pytest.param(1e10, marks=SLOW), pytest.param(1e30, marks=SLOW), 3e38])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.filterwarnings("ignore")
def test_no_learning_rate_brings_what_is_not_finite_into_a_folder(text, engine_name, rate, optimizer, on_nan):
    settings = dict(learning_rate=rate, min_lr=rate, warmup_iters=0, grad_clip=0.0, optimizer=optimizer, max_iters=30)
    with contextlib.suppress(UserError):
        for _ in train(start(text, engine=engine_name, on_nan=on_nan, **settings)):
            pass
    assert_finite("out")
    assert Run("out").load_last(tiny_of("out"))[2].step >= 0


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    run = WritableRun(tmp_path / "out")
    begin(run, 1)
    bad = weights(2)
    bad["h.0.attn.c_attn.weight"][0, 0] = np.inf
    for save in (
        lambda: run.save_last(CONFIG, bad, state(2), Progress(step=2)),
        lambda: run.save_best(CONFIG, bad, Progress(step=2)),
    ):
        with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn\.weight"):
            save()
    assert step_of(run) == 1


# ---- long runs ----

WATCHED = """
import gc, os, sys, json
from sampan.training.loop import train, Step
from sampan.training.plan import make_plan
from sampan.report.consumers import consumers

settings = json.loads(sys.argv[1])
plan = make_plan(sys.argv[2], settings)
with consumers(plan, open(os.devnull, "w")) as show:
    for record in train(plan):
        show(record)
        if isinstance(record, Step) and (record.step + 1) % (settings["max_iters"] // 20) == 0:
            rss = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            print(rss, len(os.listdir("/proc/self/fd")), flush=True)
"""


def watched(text, steps: int, **settings) -> None:
    settings = RECIPE | dict(out_dir="out", max_iters=steps, eval_interval=steps // 10, lr_decay_iters=steps) | settings
    command = [sys.executable, "-c", WATCHED, json.dumps(settings), text]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=3600)
    assert done.returncode == 0, done.stderr
    seen = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(seen) == 20
    rss, handles = [s[0] for s in seen[4:]], {s[1] for s in seen[4:]}
    assert len(handles) == 1, f"file handles: {handles}"
    assert max(rss) < 1.02 * rss[0], f"memory: {[r // 1024 for r in rss]} KiB"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_memory_and_handles_stay(text):
    watched(text, 1000)


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_memory_and_handles_stay_over_20000_steps(text, engine_name):
    watched(text, 20_000, engine=engine_name)


def many_lines(path: Path, count: int) -> None:
    line = json.dumps(asdict(Step(0, 2.5, 1e-3, 1.5, 0.01, 1e4, 0.1)))
    evaluation = json.dumps(asdict(Evaluation(0, 2.5, 2.6, False, 1e-3)))
    with path.open("w") as file:
        for step in range(count):
            if step % 100 == 0:
                file.write(evaluation.replace('"step": 0', f'"step": {step}') + "\n")
            file.write(line.replace('"step": 0', f'"step": {step}') + "\n")


@pytest.mark.parametrize("count", [100_000, pytest.param(2_000_000, marks=pytest.mark.full)])
def test_a_long_metrics_file_costs_little_at_a_resume_and_nothing_after(tmp_path, count):
    many_lines(tmp_path / "metrics.jsonl", count)
    tracemalloc.start()
    begun = time.process_time()
    metrics = Metrics(tmp_path)
    picture = Picture(metrics)
    record = Step(count - 50, 2.0, 1e-3, 1.0, 0.01, 1e4, 0.1)
    for consumer in (metrics, picture):
        consumer(record)
    opened = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, "none of it is kept"
    assert opened < 40e-6 * count, "seconds for a million lines (traced, and with room for a busy machine)"
    begun = time.process_time()
    for step in range(200):
        for consumer in (metrics, picture):
            consumer(replace(record, step=count - 49 + step))
    assert time.process_time() - begun < 0.2, "a millisecond a step would be a slow run"
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("rb") as file:
        steps = [int(re.match(rb'\{"step": (\d+)', line)[1]) for line in file if b'"loss"' in line]
    assert steps == [*range(count - 50), count - 50, *range(count - 49, count + 151)]
    curves = read_curves(metrics.path)
    assert POINTS / 20 < len(curves.steps) < 1100 and POINTS / 2 < len(curves.evaluations) < 1100
    assert len(draw(curves)) < 1e6
