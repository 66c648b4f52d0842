"""The time of the sandbox.

Every part that measures locks, windows, schedules or token lifetimes reads an injected `Clock`, so that a test can move
time instead of waiting for it.
"""

import threading
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A source of the time."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        ...


class SystemClock:
    """The time of this machine."""

    def now(self) -> datetime:
        """Return the machine's time, aware, in UTC."""
        return datetime.now(UTC)


class MovableClock:
    """A clock that can be moved forward, from any thread.

    Without `start` it runs along with the machine's time plus everything it was advanced by; with `start` it
    stands still at that (aware) time until it is advanced.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start
        self._offset = timedelta()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the moved time, aware, in UTC."""
        with self._lock:
            offset = self._offset
        return (self._start or datetime.now(UTC)) + offset

    def advance(self, by: timedelta) -> None:
        """Move the clock forward; time never goes back, so a negative step is refused with ValueError."""
        if by < timedelta():
            raise ValueError(f"a clock moves forward only, not by {by}")
        with self._lock:
            self._offset += by
