"""Processes and processors: torchrun's ranks, and the cores that this process may use.

rank, processes = world()
"""

import os
from pathlib import Path

# ---- processes and processors ----


def world() -> tuple[int, int]:
    """(rank, number of processes), as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def physical_cores() -> int:
    """Processors that this process may use, counting the two threads of one core once (Linux; else all)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_restarted() -> bool:
    """Return whether torchrun has started this job again, after one of its processes died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def torchrun_job() -> str | None:
    """Return torchrun's name of this job, the same for all its starts; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")
