"""Time several ways to do the same work, alternately in one run, and print medians and ratios.

    contest({"ours": step, "theirs": other_step}, rounds=20)

The machine may be shared with other programs. Alternating exposes every contestant to the same load, the median drops
outliers, and the ratio of two medians of one run says more than either time. This is no test: nothing passes or fails.
"""

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REST = 0.03  # seconds; by then, the previous contestant's spinning threads have gone to sleep


def contest(
    contestants: dict[str, Callable[[], object]], rounds: int, unit: str = "ms", work: float = 1.0
) -> dict[str, float]:
    """Return the median seconds per call of each contestant, and print them in `unit`: "ms", or a rate of `work` per call."""
    times = {name: [] for name in contestants}
    for call in contestants.values():
        call()
        call()  # warm up allocators and caches
    for _ in range(rounds):
        for name, call in contestants.items():
            time.sleep(REST)
            awake = time.perf_counter() + REST
            while time.perf_counter() < awake:
                call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) for name, t in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        shown = f"{median * 1e3:10.2f} ms" if unit == "ms" else f"{work / median:10.1f} {unit}"
        low, high = min(times[name]) * 1e3, max(times[name]) * 1e3
        print(f"  {name:<28} {shown}   {median / first:6.2f} x the first   ({low:.2f} to {high:.2f} ms)", flush=True)
    return medians


def machine() -> str:
    """Return one line for a benchmark's header: processor, load, system, commit."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), name
        )
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} processors{load}, {platform.system()}, commit {git.stdout.strip() or 'unknown'}"


def random_batch(vocab_size: int, batch_size: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random inputs and targets: int32 (batch_size, block_size) each."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (batch_size, block_size + 1), dtype=np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def load_nanogpt(folder: Path):
    """Import model.py from a clone of nanoGPT."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # the dataclass decorator looks its module up here
    spec.loader.exec_module(module)
    return module
