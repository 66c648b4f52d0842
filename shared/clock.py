"""Time as the function uses it, and the one deadline of an invocation that is passed to every call.

Time is injected, so that tests run hours in milliseconds. How long things may take is decided in `settings.py` and next
to each call.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""

    def now(self) -> datetime:
        """Return the date and time in UTC, aware, for what other systems receive."""

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the present in UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock; no call waits beyond it."""

    clock: Clock
    at: float

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """Return the deadline `seconds` from now."""
        return cls(clock, clock.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0.0

    def within(self, seconds: float) -> Deadline:
        """Return the sooner of this deadline and `seconds` from now."""
        return Deadline(self.clock, min(self.at, self.clock.monotonic() + seconds))

    def earlier(self, seconds: float) -> Deadline:
        """Return the deadline `seconds` before this one: what comes after needs that long."""
        return Deadline(self.clock, self.at - seconds)


class BrokerClock:
    """The broker's time, as far as its messages show it: a worker's clock may be slow.

    A message cannot be delivered before the broker made it available, so each delivery shows how late it is at least.
    From there only the monotonic clock counts, so a correction of the worker's clock changes nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # A moment of the broker, and the monotonic clock at or after it.
        self._latest = datetime.min.replace(tzinfo=UTC), clock.monotonic()

    def observe(self, made_available: datetime) -> None:
        """Note that a message was made available at this moment, and has been delivered."""
        with self._lock:
            if made_available > self._at_least():
                self._latest = made_available, self._clock.monotonic()

    def now(self) -> datetime:
        """Return the worker's time, or the broker's where that is known to be later."""
        return max(self._clock.now(), self._at_least())

    def _at_least(self) -> datetime:
        moment, since = self._latest
        return moment + timedelta(seconds=self._clock.monotonic() - since)
