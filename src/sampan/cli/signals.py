"""Ctrl-C and SIGTERM let the running step finish; a second one stops at once.

with StopSignal() as stop: ...
"""

import signal
import sys
import threading

# ---- signals ----


class StopSignal:
    """SIGINT and SIGTERM let the running step finish; a second one stops at once."""

    def __init__(self):
        self.received: int | None = None
        self.previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        # in a thread of its own: this one may be in the midst of printing, and the live display counts its lines
        words = "stopping after this step; once more stops at once\n"
        threading.Thread(target=sys.stderr.write, args=(words,)).start()

    def __exit__(self, *exception) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)
