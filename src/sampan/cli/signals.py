"""Ctrl-C and SIGTERM: finish the current step at the first, quit at the second.

with StopSignal() as stop: ...        # stop.received is the signal's number, None before one came
"""

import queue
import signal
import sys
import threading
from types import FrameType
from typing import Any

from sampan.messages import _


class StopSignal:
    """Note a first SIGINT or SIGTERM in `received`; raise KeyboardInterrupt at the second."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}
        # Its `put` may be called in a signal handler. A thread prints: the main one may be printing already, and the
        # live display counts its lines.
        self.asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self.answer, daemon=True).start()

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.handle)
        return self

    def is_asked(self) -> bool:
        """Return whether a signal has come."""
        return self.received is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        self.asked.put(None)

    def answer(self) -> None:
        self.asked.get()
        sys.stderr.write(_("Stopping after this step. Press Ctrl-C again to quit now.") + "\n")

    def __exit__(self, *exception: object) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)
