"""Service protection: how much a user may ask of one web server within five minutes.

Three limits, each with its own code; a request over one of them is refused before anything is executed, and
further requests during the wait prolong it.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus

from sandbox.clock import Clock
from sandbox.dataverse.errors import RequestRefused


@dataclass(frozen=True)
class Limits:
    """What one user may ask of one web server: requests and seconds of execution per window, and at once."""

    requests: int = 6000
    execution: timedelta = timedelta(seconds=1200)
    concurrent: int = 52
    window: timedelta = timedelta(seconds=300)


@dataclass
class _Usage:
    """What one user has asked of one web server."""

    requests: deque[datetime] = field(default_factory=deque)
    executions: deque[tuple[datetime, float]] = field(default_factory=deque)
    under_way: int = 0
    blocked_until: datetime | None = None
    penalty: timedelta = timedelta()
    reason: tuple[str, str] = ("", "")


class ServiceProtection:
    """Counts, and refuses with 429. `timer` measures execution in seconds; thread-safe."""

    def __init__(
        self, clock: Clock, limits: Limits | None = None, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._timer = timer
        self._lock = threading.Lock()
        self._usage: dict[tuple[str, int], _Usage] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.limits}>"

    @contextmanager
    def admitted(self, user_id: str, server: int) -> Iterator[dict[str, str]]:
        """Admit a request, or raise RequestRefused (429); gives the headers that say what is left."""
        with self._lock:
            usage = self._usage.setdefault((user_id, server), _Usage())
            headers = self._admit(usage)
        started = self._timer()
        try:
            yield headers
        finally:
            with self._lock:
                usage.under_way -= 1
                usage.executions.append((self._clock.now(), self._timer() - started))

    def _admit(self, usage: _Usage) -> dict[str, str]:
        now = self._clock.now()
        self._forget(usage, now)
        if usage.blocked_until and now < usage.blocked_until:
            # Requests that were refused at one moment count once; a later one begins a new wait.
            usage.blocked_until = max(usage.blocked_until, now + usage.penalty)
            raise self._refusal(usage, now)
        spent = sum(seconds for _, seconds in usage.executions)
        if len(usage.requests) >= self.limits.requests:
            self._block(usage, now, usage.requests[0] + self.limits.window)
        elif spent >= self.limits.execution.total_seconds():
            self._block(usage, now, usage.executions[0][0] + self.limits.window)
        elif usage.under_way >= self.limits.concurrent:
            self._block(usage, now, now + timedelta(seconds=1))
        else:
            usage.requests.append(now)
            usage.under_way += 1
            left = self.limits.execution.total_seconds() - spent
            return {
                "x-ms-ratelimit-burst-remaining-xrm-requests": str(
                    self.limits.requests - len(usage.requests)
                ),
                "x-ms-ratelimit-time-remaining-xrm-requests": f"{left:.2f}",
            }
        raise self._refusal(usage, now)

    def _block(self, usage: _Usage, now: datetime, until: datetime) -> None:
        usage.blocked_until = until
        usage.penalty = until - now
        usage.reason = self._reason(usage)

    def _refusal(self, usage: _Usage, now: datetime) -> RequestRefused:
        code, message = usage.reason
        seconds = math.ceil(((usage.blocked_until or now) - now).total_seconds())
        return RequestRefused(
            HTTPStatus.TOO_MANY_REQUESTS, code, message, {"Retry-After": str(max(seconds, 1))}
        )

    def _reason(self, usage: _Usage) -> tuple[str, str]:
        window = int(self.limits.window.total_seconds())
        if len(usage.requests) >= self.limits.requests:
            return "0x80072322", (
                f"Number of requests exceeded the limit of {self.limits.requests} over time window of "
                f"{window} seconds."
            )
        if usage.under_way >= self.limits.concurrent:
            return (
                "0x80072326",
                f"Number of concurrent requests exceeded the limit of {self.limits.concurrent}.",
            )
        return "0x80072321", (
            "Combined execution time of incoming requests exceeded limit of "
            f"{int(self.limits.execution.total_seconds() * 1000)} milliseconds over time window of {window} "
            "seconds. Decrease number of concurrent requests or reduce the duration of requests and try again later."
        )

    def _forget(self, usage: _Usage, now: datetime) -> None:
        start = now - self.limits.window
        while usage.requests and usage.requests[0] <= start:
            usage.requests.popleft()
        while usage.executions and usage.executions[0][0] <= start:
            usage.executions.popleft()
