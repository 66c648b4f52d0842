"""Ctrl-C and SIGTERM as a wish to stop, which is looked at between two steps and granted in order.

An exception at a random point, which Ctrl-C usually is, would leave processes and folders behind.
"""

import signal
from queue import SimpleQueue


class Stop:
    """Whether somebody asked to stop; `listen` makes signals do so."""

    def __init__(self) -> None:
        self._is_wanted = False
        # A signal's handler may run anywhere in the main thread, also in the middle of its waiting. An Event would lock
        # itself out there; this can be put to from anywhere.
        self._bell: SimpleQueue[None] = SimpleQueue()

    def listen(self) -> None:
        """Take SIGINT and SIGTERM from now on, as often as they come; for the main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._ask())

    def is_wanted(self) -> bool:
        """Tell whether somebody asked."""
        return self._is_wanted

    def wait(self) -> None:
        """Wait until somebody asks."""
        while not self._is_wanted:
            self._bell.get()

    def _ask(self) -> None:
        self._is_wanted = True
        self._bell.put(None)
