"""Processes and processors: torchrun's ranks, and the threads and cores that this process may use.

    rank, processes = world()
    threads = count_threads()     # of an engine, where --threads is auto

csrc/platform/cores.c counts by the same rules.
"""

import os
from pathlib import Path


def world() -> tuple[int, int]:
    """Return (rank, number of processes), as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


MOST_THREADS = 1024  # that an engine can have


def count_threads() -> int:
    """Return the default number of an engine's threads: OMP_NUM_THREADS, else this process's share of the cores.

    torchrun sets OMP_NUM_THREADS=1 in every process where the user did not set it. So under torchrun 1 means nothing,
    and the processes of one machine share its cores.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "8", or a list with a number for each level
    asked = int(first) if first.isdecimal() else 0
    if asked > 1 or (asked == 1 and processes == 1):
        return min(asked, MOST_THREADS)
    return max(1, count_cores() // processes)


def count_cores() -> int:
    """Return the cores that this process may use, at least 1: the physical ones of its CPUs, within its quota of time."""
    return max(1, min(count_physical(), count_quota()))


def count_physical() -> int:
    """Return the cores that this process may run on, counting the two threads of one once (Linux; else all CPUs)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


NO_QUOTA = 1 << 20


def count_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the whole cores that the smallest quota of this process's control group, or of one around it, gives.

    That is a container's quota, a service's or a batch job's; NO_QUOTA where there is none, and outside of Linux.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return NO_QUOTA
    least = NO_QUOTA
    for line in lines:  # "4:cpu,cpuacct:/docker/1f2e", or "0::/" in version 2
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        folder = top / group.lstrip("/")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for place in (folder, *folder.parents):
            least = min(least, quota_of([place / name for name in files]))
            if place == top:
                break
    return least


def quota_of(files: list[Path]) -> int:
    """Return the cores of "QUOTA PERIOD" in microseconds; version 1 has the two numbers in two files."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # "max" is no number
        return NO_QUOTA
    return max(1, quota // period) if quota > 0 and period > 0 else NO_QUOTA


def is_restarted() -> bool:
    """Return whether torchrun has started this job again, after one of its processes died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def torchrun_job() -> str | None:
    """Return torchrun's name of this job, the same for all its starts; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")
