"""Compare how fast the default recipe learns with nanoGPT's recipe for a CPU, run by the torch engine.

    python bench/learn.py time  --text tinyshakespeare.txt            # time of the whole process, and val loss
    python bench/learn.py equal --minutes 1 --text a.txt b.txt ...    # val loss after equal time, in bits per character
    python bench/learn.py alone --minutes 1 10 --text a.txt           # val loss of the default recipe alone

Every run is a separate process that starts from the text: it prepares, plans and trains. Val losses are those of the
best weights over the whole val split. `time` alternates the two recipes, once per seed, and prints medians. nanoGPT's
own code is not run here; bench/step.py times it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import machine

import sampan

NANOGPT = dict(
    tokenizer="char", family="gpt2", engine="torch", device="cpu", compile="False", n_layer=4, n_head=4, n_embd=128,
    block_size=64,
    batch_size=12, gradient_accumulation_steps=1, dropout=0.0, optimizer="adamw", learning_rate=1e-3, min_lr=1e-4,
    beta2=0.99, warmup_iters=100, weight_decay=0.1, norm_eps=1e-5, patience="none",
)  # fmt: skip
NANOGPT_STEPS = 2000


def flags(settings: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def run(text: Path, settings: dict) -> tuple[float, float, float]:
    """Train in a new process. Return (seconds from its start to the end of training, best val loss, bits per character)."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
        command = [
            sys.executable,
            "-m",
            "sampan",
            "--lang=en",
            "train",
            str(text),
            "--log_interval=1000000",
            *flags(settings),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        seconds = loss = bits = float("nan")
        for line in process.stdout:
            if re.match(r"step \d+: train loss", line):
                seconds = time.perf_counter() - start
            if line.startswith("val loss "):
                loss, bits = map(float, line.split()[2:4])
        if process.wait():
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        return seconds, loss, bits


def nanogpt(steps: int, **settings) -> dict:
    return NANOGPT | dict(max_iters=steps, lr_decay_iters=steps, eval_interval=250, eval_iters=20) | settings


def compare_time(text: Path, seeds: list[int], minutes: float) -> None:
    times = {"default recipe": [], "nanoGPT's": []}
    for seed in seeds:
        both = dict(minutes=minutes, seed=seed), nanogpt(NANOGPT_STEPS, seed=seed)
        for name, settings in zip(times, both, strict=True):
            seconds, loss, _ = run(text, settings)
            times[name].append(seconds)
            print(f"  seed {seed}  {name:16} val loss {loss:.4f} after {seconds:6.1f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"  {name:16} median {median:6.1f} s")
    ours, theirs = medians.values()
    print(f"  ratio {theirs / ours:.1f}")


def compare_equal(texts: list[Path], minutes: float) -> None:
    for text in texts:
        steps = nanogpt_steps(text, minutes)
        ours = run(text, dict(minutes=minutes))
        theirs = run(text, nanogpt(steps, eval_interval=max(1, steps // 10)))
        for name, (seconds, _, bits) in (("default recipe", ours), (f"nanoGPT's, {steps} steps", theirs)):
            print(f"  {text.name:24} {name:26} {bits:.4f} bits per character after {seconds:5.0f} s", flush=True)


def nanogpt_steps(text: Path, minutes: float) -> int:
    """Return how many steps of nanoGPT's recipe fit into the minutes, as `sampan plan` measures a step here."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
        command = [sys.executable, "-m", "sampan", "--lang=en", "plan", str(text), *flags(nanogpt(100))]
        said = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
    return int(60 * minutes / (float(re.search(r"([\d.,]+) ms", re.sub(r"\s+", " ", said))[1].replace(",", "")) / 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("time", "equal", "alone"))
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.05])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    args = parser.parse_args()
    texts = [path.resolve() for path in args.text]
    print(machine())
    if args.what == "time":
        compare_time(texts[0], args.seeds, args.minutes[0])
    elif args.what == "equal":
        compare_equal(texts, args.minutes[0])
    else:
        for text in texts:
            for minutes in args.minutes:
                seconds, loss, bits = run(text, dict(minutes=minutes))
                result = f"val loss {loss:.4f}, {bits:.4f} bits per character, {seconds:.0f} s"
                print(f"  {text.name:24} {minutes:g} min: {result}", flush=True)


if __name__ == "__main__":
    main()
