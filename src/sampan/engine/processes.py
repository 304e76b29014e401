"""Do things together with the other processes of a torchrun job, without PyTorch where there is one process.

    with first_process_first(settings): ...      # the body runs in rank 0 before it runs in the others

How processes meet and notice a dead one is engine/torch/processes.py's.
"""

import contextlib
from collections.abc import Iterator

from sampan.config import TrainConfig
from sampan.engine.open import engines_here
from sampan.errors import UserError, install
from sampan.machine import world
from sampan.messages import _


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process of the job. All of them call this together."""
    if world()[1] == 1:
        return flag
    from sampan.engine.torch.processes import any_process

    return any_process(flag)


def leave_processes() -> None:
    """End the process group: the processes do nothing together after this."""
    if world()[1] > 1:
        from sampan.engine.torch.processes import leave_processes

        leave_processes()


@contextlib.contextmanager
def first_process_first(settings: TrainConfig) -> Iterator[None]:
    """Run the body in rank 0, then in the other ranks. Raise UserError without PyTorch."""
    rank, processes = world()
    if processes == 1:
        yield
        return
    if "torch" not in engines_here():
        raise UserError(_("several processes need PyTorch: {command}", command=install("torch")))
    from sampan.engine.torch.processes import join_processes, tell_others, wait_for_all, wait_for_first

    join_processes(settings.device, settings.backend, settings.process_timeout)
    if rank > 0:
        wait_for_first()
    yield
    if rank == 0:
        tell_others()
    wait_for_all()
