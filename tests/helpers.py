"""What several test files need: the program as a call or a process, and what a run left behind."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

from safetensors.numpy import load_file

import sampan as package
from sampan.checkpoint.run import read_note
from sampan.cli.main import main

RECIPE = dict(
    engine="torch", device="cpu", n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=3, gradient_accumulation_steps=2,
    max_iters=8, warmup_iters=2, lr_decay_iters=8, learning_rate=2e-2, min_lr=2e-3, eval_interval=4, eval_iters=2, threads=1,
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return the variables with which a process finds the package that is tested, installed or not."""
    return os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}


def sampan(*words: str, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess:
    """Run a command in this process, as in one of its own: its output, and the exit status that is expected."""
    out, err, typed = (io.TextIOWrapper(io.BytesIO(b), encoding="utf-8") for b in (b"", b"", stdin.encode()))
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")  # as in a process, which does not show what libraries say of themselves
        warnings.simplefilter("default", UserWarning)
        keyboard, sys.stdin = sys.stdin, typed
        try:
            code = main(list(words))
        finally:
            sys.stdin = keyboard
    shown = []
    for stream in (out, err):
        stream.flush()
        shown.append(stream.buffer.getvalue().decode())
    assert code == status, "".join(shown)
    return subprocess.CompletedProcess(words, code, *shown)


def sampan_process(*words: str, status: int = 0) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "sampan", *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done


def refused(*words: str) -> str:
    """Return the one sentence with which a command is refused."""
    done = sampan(*words, status=2)
    sentences = done.stderr.splitlines()
    assert len(sentences) == 1 and sentences[0].startswith("sampan: "), done.stderr
    return sentences[0]


def result(out) -> dict:
    """The bits of everything that training computed. (Whole files differ: the library orders its metadata by chance.)"""
    kept = {}
    for name in ("model.safetensors", "last/model.safetensors", "last/optimizer.safetensors"):
        path = Path(out) / name
        kept[name] = read_note(path)
        kept |= {(name, key): tensor.tobytes() for key, tensor in load_file(path).items()}
    return kept


def losses(out) -> list:
    """What metrics.jsonl says of the training itself, in order."""
    lines = Path(out, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in LOSSES} for line in lines]


LOSSES = ("step", "loss", "grad_norm", "train_loss", "val_loss", "best", "lr")
