"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP): finish the current step at the first, quit at the second.

with StopSignal() as stop: ...        # stop.received is the signal's number, None before one came
"""

import contextlib
import queue
import signal
import sys
import threading
from types import FrameType
from typing import Any

from sampan.messages import _

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopSignal:
    """Note a first signal in `received`; raise KeyboardInterrupt at a second SIGINT or SIGTERM.

    A terminal that closes may send SIGHUP twice, by itself and through its shell. Under nohup it stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}
        # Its `put` may be called in a signal handler. A thread prints: the main one may be printing already, and the
        # live display counts its lines.
        self.asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self.answer, daemon=True).start()

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            if number is not None and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                self.previous[number] = signal.signal(number, self.handle)
        return self

    def is_asked(self) -> bool:
        """Return whether a signal has come."""
        return self.received is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self.asked.put(None)
        elif number != HANGUP:
            raise KeyboardInterrupt

    def answer(self) -> None:
        self.asked.get()
        with contextlib.suppress(OSError):  # the terminal is gone
            sys.stderr.write(_("Stopping after this step. Press Ctrl-C again to quit now.") + "\n")

    def __exit__(self, *exception: object) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)
