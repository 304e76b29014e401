"""Several processes: one is killed and the job comes back, one hangs and is named, their number changes.

Two processes on a CPU, over gloo; some seconds each, most of it PyTorch's start.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import readable
from helpers import RECIPE, environment, losses, result

from sampan.checkpoint.run import Run
from sampan.engine.torch.processes import agree_on_store
from sampan.errors import UserError
from sampan.training.loop import Step, train
from sampan.training.plan import make_plan

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in Linux's /proc")
SETTINGS = RECIPE | dict(max_iters=12, lr_decay_iters=12, eval_interval=2, log_interval=1, engine="torch")


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "river.txt").write_text(readable(3000), encoding="utf-8")
    return "river.txt"


# `python -m sampan`, which in the end names those of gloo's threads that still run: a thread that outlives the process group
# may need Python's lock while the interpreter shuts down, which ends the process in SIGABRT.
REPORTING = """
import atexit, sys
from pathlib import Path
def threads():
    return [name for f in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := f.read_text())]
atexit.register(lambda: print(f"threads of the group: {len(threads())}"))  # the first to be registered runs last
from sampan.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
# The same, where gloo's threads get the processor only when nobody else wants it, so that they come late for everything.
STARVING = """
import os, threading, time
from pathlib import Path
def starve():
    while True:
        for task in Path("/proc/self/task").iterdir():
            try:
                if (task / "comm").read_text().startswith("pt_gloo"):
                    os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
            except OSError:
                pass
        time.sleep(0.05)
threading.Thread(target=starve, daemon=True).start()
""" + REPORTING  # fmt: skip


def words(text, out, **settings) -> list[str]:
    flags = [f"--{name}={value}" for name, value in (SETTINGS | settings).items()]
    return ["-m", "sampan", "train", text, *flags, f"--out_dir={out}"]


def torchrun(arguments: list[str], restarts: int = 0) -> subprocess.Popen:
    options = ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def by_hand(arguments: list[str], processes: int = 2) -> list[subprocess.Popen]:
    """As a cluster's own launcher does it: nobody looks after the processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        env = environment() | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            )
        )
    return started


def children(parent: int) -> dict[int, int]:
    """{rank: process id} of torchrun's processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                values = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
                if "RANK" in values:
                    found[int(values["RANK"])] = int(folder.name)
        except (OSError, IndexError):
            continue
    return found


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.full)])
def test_a_killed_process_brings_the_job_back_by_itself(text, rank):
    """Under torchrun --max-restarts; the bits are those of a job that nobody killed. --overwrite does not start over."""
    whole = torchrun(words(text, "whole", optimizer="muon"))
    assert whole.wait(timeout=120) == 0, whole.stderr.read()
    process = torchrun([*words(text, "killed", optimizer="muon"), "--overwrite"], restarts=2)
    wait_for(process, "iter 5:")
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert re.search(r"from step ([4-9]|1\d)\b", " ".join(output.split())) and "iter 0:" not in output, output
    assert result("killed") == result("whole") and losses("killed") == losses("whole")


def test_processes_of_one_start_meet_each_other_and_no_dead_ones():
    """torchrun's store outlives a restart: what dead processes left there is not taken for the living."""
    store, limit = torch.distributed.HashStore(), timedelta(seconds=20)

    def start(pauses):
        with ThreadPoolExecutor(len(pauses)) as pool:

            def one(rank):
                time.sleep(pauses[rank])
                place = agree_on_store(store, rank, len(pauses), limit)
                place.set(f"met {rank}", "yes")
                place.wait([f"met {r}" for r in range(len(pauses))], limit)
                return place.get("begin")

            list(pool.map(one, range(len(pauses))))
        return store.get("called").split()[0]

    names = [start(pauses) for pauses in ((0, 0), (0, 0.3), (0.3, 0), (0.2, 0, 0.3), (0, 0))]
    assert len({*names}) == 5
    with pytest.raises(UserError, match="not all of 2 processes have started"):
        agree_on_store(store, 0, 2, timedelta(seconds=0.2))


@pytest.mark.full
def test_jobs_killed_at_any_moment_leave_no_trace(text):
    """Both processes are killed, one some moments after the other, also while the first saves; ten times."""
    settings = dict(optimizer="muon", dropout=0.1, gradient_accumulation_steps=4, max_iters=80, lr_decay_iters=80)
    settings |= dict(batch_size=2, eval_interval=3)

    def job(out):
        resumed = ["-m", "sampan", "train", "--resume", f"--out_dir={out}"]
        return by_hand(resumed if Run(out).can_resume() else words(text, out, **settings))

    def finish(out):
        for process in job(out):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors

    finish("whole")
    rng, kills = random.Random(4), 0
    while kills < 10:
        pair = job("killed")
        wanted = rng.randint(1, 9)
        for line in pair[0].stdout:
            wanted -= line.startswith(("iter", "step"))
            if wanted <= 0:
                break
        time.sleep(rng.random() * 0.03)
        assert pair[0].poll() is None, pair[0].stderr.read()
        for process in rng.sample(pair, 2):
            process.kill()
            time.sleep(rng.random() * 0.05)
        for process in pair:
            process.communicate()
        kills += 1
    finish("killed")
    assert result("killed") == result("whole") and losses("killed") == losses("whole")


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_named(text):
    for harm in (signal.SIGSTOP, signal.SIGKILL):
        arguments = words(text, f"out{harm}", process_timeout=5, max_iters=100_000)
        first, second = by_hand(["-c", REPORTING, *arguments[2:]])
        try:
            wait_for(first, "iter 3:")
            second.send_signal(harm)
            begun = time.monotonic()
            output, errors = first.communicate(timeout=60)
            assert "threads of the group: 0" in output
            assert first.returncode == 2 and time.monotonic() - begun < 30
            assert "sampan: rank 1 of 2 has died or is hanging" in errors and "Traceback" not in errors, errors
        finally:
            for process in (first, second):
                process.kill()
                process.communicate()


@pytest.mark.slow
def test_the_number_of_processes_may_change_at_a_resume(text):
    """One, two, one: the same global batch, the same losses within rounding."""

    def one(plan):
        return [r.loss for r in train(plan) if isinstance(r, Step)]

    expected = one(make_plan(text, SETTINGS | {"out_dir": "whole"}))
    found = one(make_plan(text, SETTINGS | {"out_dir": "out", "max_iters": 4}))
    pair = by_hand(["-c", REPORTING, "train", "--resume", "--out_dir=out", "--max_iters=8"])
    for process in pair:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "threads of the group: 0" in output
    records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    found += [r["loss"] for r in records if "loss" in r]
    found += one(make_plan(None, {"init_from": "resume", "out_dir": "out", "max_iters": 12}))
    assert len(found) == 12 and found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_job_on_a_busy_machine_does_not_end_in_sigabrt(text):
    """Where the group's threads outlived it, one such job of four ended in "terminate called without an active exception"."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        for number in range(6):
            arguments = words(text, f"out{number}", max_iters=2, eval_iters=1)
            for process in by_hand(["-c", STARVING, *arguments[2:]]):
                output, errors = process.communicate(timeout=300)
                assert process.returncode == 0 and "threads of the group: 0" in output, errors
    finally:
        for process in busy:
            process.kill()
            process.wait()
