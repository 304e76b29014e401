"""Start and end torchrun's process group, wait for ranks, and name one that died.

    join_processes("cuda", None, 600); ...; leave_processes()

torch.distributed does the work. It averages no gradients (engine.py).
"""

import atexit
import contextlib
import gc
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its default arguments would hold: see leave_processes
from torch.distributed.rendezvous import rendezvous

from sampan.engine.torch.device import pick_device
from sampan.errors import UserError
from sampan.machine import world
from sampan.messages import _

# ---- several processes ----

ANSWER_SECONDS = 10  # within which a live process notices that another is dead
live_store: dist.Store  # the part of torchrun's store that this start uses; set by join_processes


def join_processes(device: str, backend: str | None, timeout: int) -> None:
    """Form torchrun's process group, once. `timeout` is in seconds."""
    global live_store
    if dist.is_initialized():
        return
    backend = backend or ("nccl" if pick_device(device).type == "cuda" else "gloo")
    limit = timedelta(seconds=timeout)
    store, rank, size = next(iter(rendezvous("env://")))
    live_store = agree_on_store(store, rank, size, limit)
    dist.init_process_group(backend, store=live_store, rank=rank, world_size=size, timeout=limit)
    if backend == "gloo":  # NCCL's watchdog ends a process that waits for a dead one, and must not wait itself
        atexit.register(leave_processes)


def agree_on_store(store: dist.Store, rank: int, size: int, limit: timedelta) -> dist.Store:
    """Return a part of the store that only the processes of this start use. Raise UserError if one is missing at the limit.

    torchrun keeps one store over all restarts, with the addresses of dead processes, on which gloo waits forever
    (github.com/pytorch/pytorch/issues/135712). TORCHELASTIC_RESTART_COUNT cannot name a start, since nodes may differ in
    it. So each process stores a random name, rank 0 calls the names that it finds, and a process whose name is called
    answers; rank 0 begins when all have answered.
    """
    own, places = uuid.uuid4().hex, [f"here {r}" for r in range(size)]
    store.set(places[rank], own)
    end = time.monotonic() + limit.total_seconds()
    called: list[str] = []  # a name for this start, and one for each process
    while time.monotonic() < end:
        if rank == 0 and store.check(places):
            names = [store.get(place).decode() for place in places]
            if called[1:] != names:
                called = [uuid.uuid4().hex, *names]
                store.set("called", " ".join(called))
        elif rank > 0 and store.check(["called"]):
            called = store.get("called").decode().split()
        if len(called) == 1 + size and called[1 + rank] == own:
            here = dist.PrefixStore(called[0], store)
            here.set(f"ready {rank}", "yes")
            if rank == 0 and here.check([f"ready {r}" for r in range(size)]):
                here.set("begin", "yes")
            if here.check(["begin"]):
                return here
        time.sleep(0.02)
    message = _("not all of {size} processes have started within --process_timeout {seconds:g} seconds")
    raise UserError(message.format(size=size, seconds=limit.total_seconds()))


holders: list[weakref.WeakMethod] = []  # methods that let go of what holds the group


def before_leaving(release: Callable[[], None]) -> None:
    """Have a method called before the group ends, so that its object no longer holds the group."""
    holders.append(weakref.WeakMethod(release))


def leave_processes() -> None:
    """End the group and its threads; at the latest when the process exits, on whatever path.

    gloo's threads release the tensors that they were given, for which they take Python's lock, and some time after the
    operation has ended. Where the interpreter shuts down in between, Python ends the thread inside of a C++ destructor, and
    the process in SIGABRT: "terminate called without an active exception". So the threads have to be joined before, which
    happens when nothing holds the group any more. `destroy_process_group` drops PyTorch's own references.
    DistributedDataParallel holds one, and imports torch.distributed.nn, which has `group=group.WORLD` as default arguments.
    """
    if not dist.is_initialized():
        return
    for method in holders:
        if (release := method()) is not None:
            release()
    gc.collect()  # DistributedDataParallel is part of a circle
    dist.destroy_process_group()


@contextlib.contextmanager
def naming_dead_processes() -> Iterator[None]:
    """Around an operation of all processes: if one is dead or hangs, raise UserError in the others that names its rank.

    With NCCL, PyTorch's own watchdog ends a process that waits for too long, and names the operation.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        missing, size = missing_processes(), world()[1]
        if len(missing) == 1:
            message = _("rank {ranks} of {size} has died or is hanging (timeout: --process_timeout).")
        else:
            message = _("ranks {ranks} of {size} have died or are hanging (timeout: --process_timeout).")
        advice = _("Continue from the last save with --resume, or automatically with torchrun --max-restarts.")
        found = message.format(ranks=", ".join(map(str, missing)) or "?", size=size)
        raise UserError(f"{found} {advice}") from None


def missing_processes() -> list[int]:
    """Return the ranks that do not report to the store within ANSWER_SECONDS. One missing rank ends the wait."""
    rank, size = world()
    end = time.monotonic() + ANSWER_SECONDS
    missing = [r for r in range(size) if r != rank]
    try:
        live_store.set(f"alive {rank}", "yes")
        while len(missing) > 1 and time.monotonic() < end:
            time.sleep(0.1)
            missing = [r for r in missing if not live_store.check([f"alive {r}"])]
    except RuntimeError:
        return [0]  # it holds the store, where torchrun does not
    return missing


def wait_for_first() -> None:
    """Wait until rank 0 has called `tell_others`; preparing a text may take days."""
    with naming_dead_processes():
        live_store.wait(["prepared"], timedelta(days=30))


def tell_others() -> None:
    live_store.set("prepared", "yes")


def wait_for_all() -> None:
    with naming_dead_processes():
        dist.barrier()


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process of the group."""
    if not dist.is_initialized():
        return flag
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor(float(flag), device=device)
    with naming_dead_processes():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())
