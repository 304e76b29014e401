"""Run a plan in every process of a torchrun job, in order; without torchrun there is one process.

    plan = make_plan_first(lambda: make_plan("my-novel.txt", {}), settings)
    for record in train_until(plan, engine, stopped=lambda: False): ...

How processes meet and notice a dead one is engine/processes.py's.
"""

import contextlib
from collections.abc import Callable

from sampan.config import TrainConfig
from sampan.engine.processes import any_process, first_process_first, leave_processes
from sampan.engine.protocol import Engine
from sampan.training.loop import Records, train
from sampan.training.plan import Plan


def make_plan_first(make: Callable[[], Plan], settings: TrainConfig) -> Plan:
    """Return `make()`, called in rank 0 before the other ranks, which find the data prepared."""
    with first_process_first(settings):
        return make()


def train_until(plan: Plan, engine: Engine, stopped: Callable[[], bool]) -> Records:
    """Yield the records of `train`; end, saved, after the record at which `stopped()` is true in any process."""
    with contextlib.closing(train(plan, engine)) as records:
        for record in records:
            yield record
            if any_process(stopped()):
                break
    leave_processes()
