"""What several test files need: the program as a call or a process, what a run left behind, and small random models."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import sampan as package
from sampan.checkpoint.run import Run, read_note
from sampan.cli.main import main
from sampan.config import ACTIVATIONS, ModelSettings
from sampan.exchange.check import all_logits
from sampan.exchange.llmc.state import State
from sampan.model.family import find_family
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import ModelShape, resolve
from sampan.tokens.characters import characters

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


# ---- a tiny run ----

TOKENIZER = characters("abcdefgh\n")
CONFIG = resolve(ModelSettings(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=TOKENIZER.vocab_size))


def weights(seed: int) -> dict[str, np.ndarray]:
    return initialize(CONFIG, seed)


def state(step: int) -> dict[str, np.ndarray]:
    moments = {
        f"{key}.{p.name}": np.full(p.shape, step, np.float32)
        for p in parameters(CONFIG)
        for key in ("exp_avg", "exp_avg_sq")
    }
    return moments | {"step": np.array(step)}


def step_of(run: Run) -> int:
    """The step of what a resume would load, checked to belong together."""
    loaded, optimizer, progress = run.load_last(CONFIG)
    for name, value in weights(progress.step).items():
        assert np.array_equal(loaded[name], value)
    for name, value in state(progress.step).items():
        assert np.array_equal(optimizer[name], value)
    return progress.step


def engine_state(engine, x: np.ndarray, y: np.ndarray) -> State:
    """One forward and backward pass of a new engine, as a debug state of llm.c has it."""
    loss = engine.loss(x, y)
    engine.accumulate(x, y)
    return State(x, y, all_logits(engine, x), loss, engine.gradients())


# ---- models of odd sizes ----

TOLERANCE = 1e-5  # float32, relative to the norm of the reference


def random_config(seed: int) -> ModelShape:
    """Return a small configuration of odd sizes: each family in turn, and each activation in each family."""
    draw = np.random.default_rng(seed)
    family = ("gpt2", "llama", "qwen3", "qwen2", "mistral")[seed % 5]
    n_kv_head = int(draw.integers(1, 3))
    n_head = n_kv_head * int(draw.integers(1, 4)) if family != "gpt2" else int(draw.integers(1, 5))
    head_dim = 2 * int(draw.integers(2, 9))
    free_width = family != "gpt2" and draw.random() < 0.5  # the others may have heads of another width
    return resolve(
        ModelSettings(
            family=family,
            n_layer=int(draw.integers(1, 4)),
            n_head=n_head,
            n_kv_head=n_kv_head if family != "gpt2" else None,
            head_dim=head_dim if free_width else None,
            n_embd=int(draw.integers(3, 20)) * n_head if free_width else n_head * head_dim,
            activation=ACTIVATIONS[seed // 5 % 3],  # each in each family
            n_inner=int(draw.integers(5, 70)) if draw.random() < 0.5 else None,
            block_size=int(draw.integers(9, 33)),
            vocab_size=int(draw.integers(10, 90)),
            bias=None if len(find_family(family).bias) == 1 else bool(draw.random() < 0.5),
            tie_word_embeddings=bool(draw.random() < 0.5),
            norm_eps=float(10 ** draw.uniform(-6, -4)),
            rope_theta=float(10 ** draw.uniform(3, 6)),
        )
    )


def random_weights(config: ModelShape, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([seed, 1])
    return {p.name: draw.normal(p.mean, 0.2, p.shape).astype(np.float32) for p in parameters(config)}


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    size = float(np.linalg.norm(reference))
    assert size > 0, "a reference of zeros proves nothing"
    return float(np.linalg.norm(np.asarray(ours, dtype=np.float64) - reference)) / size
