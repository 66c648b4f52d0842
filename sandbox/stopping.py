"""Ctrl-C and SIGTERM as a wish to stop, which is looked at between two steps and granted in order.

An exception at a random point, which Ctrl-C usually is, would leave processes and folders behind.
"""

import signal
import threading


class Stop:
    """Whether somebody asked to stop; `listen` makes signals do so."""

    def __init__(self) -> None:
        self._wanted = threading.Event()

    def listen(self) -> None:
        """Take SIGINT and SIGTERM from now on, as often as they come; for the main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._wanted.set())

    def is_wanted(self) -> bool:
        """Tell whether somebody asked."""
        return self._wanted.is_set()

    def wait(self) -> None:
        """Wait until somebody asks."""
        self._wanted.wait()
