"""Ctrl-C and SIGTERM as a request to stop, which is checked between two steps.

An exception at a random point, which Ctrl-C usually is, would leave processes and folders behind.
"""

import signal
import time

_POLL_SECONDS = 0.1


class Stop:
    """Whether a stop is requested; `listen` lets signals request it."""

    def __init__(self) -> None:
        self._is_wanted = False

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM from now on, however many come; for the main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._ask())

    def is_wanted(self) -> bool:
        """Return whether a stop is requested."""
        return self._is_wanted

    def wait(self) -> None:
        """Wait until a stop is requested."""
        # Without a lock: the handler runs in the thread that waits, perhaps just as it acquires the lock. And never for
        # long: a signal that comes just before the thread begins to sleep does not wake it.
        while not self._is_wanted:
            time.sleep(_POLL_SECONDS)

    def _ask(self) -> None:
        self._is_wanted = True
