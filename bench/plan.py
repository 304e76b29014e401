"""Compare the time and memory that a plan predicts with those measured, over a dozen runs.

    python bench/plan.py [--text FILE] [--engine c] [--only 3]

Each run is a separate process, and its peak resident memory is the system's count. Without --text, a text of random
words is generated. Losses are not looked at.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import machine

import sampan

RUNS = (
    [],
    ["--minutes", "0.1"],
    ["--size", "tiny", "--max_iters", "1500"],
    ["--size", "medium", "--max_iters", "40"],
    ["--size", "large", "--max_iters", "20", "--batch_size", "8"],
    ["--family", "gpt2", "--optimizer", "adamw", "--n_layer", "4", "--n_embd", "128", "--n_head", "4", "--max_iters", "400"],
    ["--family", "llama", "--n_kv_head", "2", "--size", "small", "--max_iters", "200", "--dropout", "0.1"],
    ["--size", "small", "--block_size", "512", "--batch_size", "4", "--max_iters", "100"],
    ["--size", "small", "--gradient_accumulation_steps", "4", "--max_iters", "60"],
    ["--size", "medium", "--gradient_checkpointing", "--max_iters", "30"],
    ["--size", "medium", "--max_iters", "30", "--fit", "TIGHT"],
    ["--tokenizer", "bpe:4096", "--size", "small", "--max_iters", "100"],
    ["--dtype", "float32", "--size", "small", "--max_iters", "200"],
    ["--threads", "1", "--size", "mini", "--max_iters", "200"],
)  # fmt: skip
TIGHT = {"c": "200MB", "torch": "450MB"}  # less than the medium model takes with its usual batch
UNITS = {"s": 1, "min": 60, "h": 3600, "MB": 1e6, "GB": 1e9}


def promised(plan: str) -> tuple[float, float]:
    """Return the (seconds, bytes) that the printed plan predicts."""
    words = re.sub(r"\s+", " ", plan)
    seconds = re.search(r"\ntime +about ((?:[\d.]+ \w+ ?)+)", plan)[1]
    time = sum(float(n) * UNITS[unit] for n, unit in re.findall(r"([\d.]+) (s|min|h)\b", seconds))
    size, unit = re.search(r"memory about ([\d.]+) (MB|GB)", words).groups()
    return time, float(size) * UNITS[unit]


def measured(command: list[str], env: dict, folder: Path) -> tuple[float, float, str]:
    """Run a command. Return (seconds from the plan to the last evaluation, peak bytes, output)."""
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True)
    start = end = None
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("folder"):
            start = time.perf_counter()
        if line.startswith("step ") and ": train loss" in line:
            end = time.perf_counter()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    return end - start, usage.ru_maxrss * 1024, "".join(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--engine", default="c", choices=("c", "torch"))
    parser.add_argument("--only", type=int, help="run only the one with this number, from 0")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        if args.text:
            text.write_bytes(args.text.read_bytes())
        else:
            draw = random.Random(0)
            words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(2000)]
            text.write_text(" ".join(draw.choices(words, k=200_000)))
        env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
        times, sizes = [], []
        print(f"{'time promised':>14} {'took':>9} {'ratio':>6} {'memory promised':>16} {'peak':>9} {'ratio':>6}")
        for number, flags in enumerate(RUNS):
            if args.only not in (None, number):
                continue
            flags = [TIGHT[args.engine] if flag == "TIGHT" else flag for flag in flags]
            words = [sys.executable, "-m", "sampan", "--lang=en", "train", str(text), "--engine", args.engine]
            words += ["--overwrite", *flags, "--log_interval", "1000000"]
            seconds, peak, output = measured(words, env, folder)
            time_promised, size_promised = promised(output)
            times.append(seconds / time_promised)
            sizes.append(peak / size_promised)
            print(f"{time_promised:12.0f} s {seconds:7.1f} s {times[-1]:6.2f} {size_promised / 1e6:13.0f} MB "
                  f"{peak / 1e6:6.0f} MB {sizes[-1]:6.2f}  {' '.join(flags)}", flush=True)  # fmt: skip
        print(f"median ratios: time {statistics.median(times):.2f}, memory {statistics.median(sizes):.2f}")


if __name__ == "__main__":
    main()
