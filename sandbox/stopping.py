"""Ctrl-C and SIGTERM as a wish to stop, which is looked at between two steps and granted in order.

An exception at a random point, which Ctrl-C usually is, would leave processes and folders behind.
"""

import signal
import time

_LOOK_SECONDS = 0.1


class Stop:
    """Whether somebody asked to stop; `listen` makes signals do so."""

    def __init__(self) -> None:
        self._is_wanted = False

    def listen(self) -> None:
        """Take SIGINT and SIGTERM from now on, as often as they come; for the main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._ask())

    def is_wanted(self) -> bool:
        """Tell whether somebody asked."""
        return self._is_wanted

    def wait(self) -> None:
        """Wait until somebody asks."""
        # With nothing that locks: the handler runs in the thread that waits, perhaps just as it takes the lock. And
        # never for long: a signal that comes just before a thread lies down to wait does not wake it.
        while not self._is_wanted:
            time.sleep(_LOOK_SECONDS)

    def _ask(self) -> None:
        self._is_wanted = True
