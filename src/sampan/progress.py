"""How far a long piece of work is: the work tells, and who asked for it shows it, or nobody does.

    with progress("reading", total=2000) as tick:
        tick(100)                                 # so much more is done

`silent` shows nothing and is the default everywhere; report/terminal.py has a bar.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None
