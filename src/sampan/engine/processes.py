"""What torchrun's processes do together, in words that need no PyTorch where there is one process.

    with first_process_first(settings): ...      # the body runs in process 0 before it runs in the others

How they meet and notice a dead one is engine/torch/processes.py's.
"""

import contextlib
from collections.abc import Iterator

from sampan.config import MachineConfig
from sampan.engine.open import engines_here
from sampan.errors import UserError, install
from sampan.machine import world


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any of torchrun's processes; they all call this together."""
    if world()[1] == 1:
        return flag
    from sampan.engine.torch.processes import any_process

    return any_process(flag)


def leave_processes() -> None:
    """The job is done: nothing that processes do together comes after."""
    if world()[1] > 1:
        from sampan.engine.torch.processes import leave_processes

        leave_processes()


@contextlib.contextmanager
def first_process_first(settings: MachineConfig) -> Iterator[None]:
    """Under torchrun, the body runs in process 0 before it runs in the others: what it prepares is there for them."""
    rank, processes = world()
    if processes == 1:
        yield
        return
    if "torch" not in engines_here():
        raise UserError(f"several processes need PyTorch: {install('torch')}")
    from sampan.engine.torch.processes import join_processes, tell_others, wait_for_all, wait_for_first

    join_processes(settings)
    if rank > 0:
        wait_for_first()
    yield
    if rank == 0:
        tell_others()
    wait_for_all()
