"""Service protection: limits the requests of a user to one web server within five minutes.

There are three limits, each with its own code. A request above a limit is refused before anything is executed. The
refused request counts too: Microsoft documents that further requests prolong the wait, but not by how much.
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
class ServiceProtectionLimits:
    """The limits of one user on one web server: requests and execution seconds per window, concurrent requests."""

    requests: int = 6000
    execution: timedelta = timedelta(seconds=1200)
    concurrent: int = 52
    window: timedelta = timedelta(seconds=300)


@dataclass
class _Usage:
    """What one user has used of one web server."""

    requests: deque[datetime] = field(default_factory=deque)
    executions: deque[tuple[datetime, float]] = field(default_factory=deque)
    # The sum of `executions`, kept because a window can have thousands of them.
    spent: float = 0.0
    under_way: int = 0


class ServiceProtection:
    """Counts requests and refuses with 429. `timer` measures execution in seconds. Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        limits: ServiceProtectionLimits | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or ServiceProtectionLimits()
        self._clock = clock
        self._timer = timer
        self._lock = threading.Lock()
        self._usage: dict[tuple[str, int], _Usage] = {}

    @contextmanager
    def admitted(self, user_id: str, server: int) -> Iterator[dict[str, str]]:
        """Admit a request, or raise RequestRefused (429); yield the headers with what is left of the limits."""
        with self._lock:
            usage = self._usage.setdefault((user_id, server), _Usage())
            headers = self._admit(usage)
        started = self._timer()
        try:
            yield headers
        finally:
            with self._lock:
                usage.under_way -= 1
                seconds = self._timer() - started
                usage.executions.append((self._clock.now(), seconds))
                usage.spent += seconds

    def _admit(self, usage: _Usage) -> dict[str, str]:
        now, limits = self._clock.now(), self.limits
        self._forget(usage, now)
        window, execution = int(limits.window.total_seconds()), limits.execution.total_seconds()
        if len(usage.requests) >= limits.requests:
            free = usage.requests[-limits.requests] + limits.window
            text = f"Number of requests exceeded the limit of {limits.requests} over time window of {window} seconds."
            raise self._refusal(usage, now, free, "0x80072322", text)
        if usage.spent >= execution:
            text = (
                f"Combined execution time of incoming requests exceeded limit of {int(execution * 1000)} milliseconds "
                f"over time window of {window} seconds. Decrease number of concurrent requests or reduce the duration "
                "of requests and try again later."
            )
            raise self._refusal(usage, now, usage.executions[0][0] + limits.window, "0x80072321", text)
        if usage.under_way >= limits.concurrent:
            text = f"Number of concurrent requests exceeded the limit of {limits.concurrent}."
            raise self._refusal(usage, now, now + timedelta(seconds=1), "0x80072326", text)
        usage.requests.append(now)
        usage.under_way += 1
        return {
            "x-ms-ratelimit-burst-remaining-xrm-requests": str(limits.requests - len(usage.requests)),
            "x-ms-ratelimit-time-remaining-xrm-requests": f"{execution - usage.spent:.2f}",
        }

    def _refusal(self, usage: _Usage, now: datetime, free: datetime, code: str, text: str) -> RequestRefused:
        # Requests that are refused at the same moment count once: their clients had seen no refusal.
        if usage.requests and usage.requests[-1] != now:
            usage.requests.append(now)
        seconds = max(math.ceil((free - now).total_seconds()), 1)
        return RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, code, text, {"Retry-After": str(seconds)})

    def _forget(self, usage: _Usage, now: datetime) -> None:
        start = now - self.limits.window
        while usage.requests and usage.requests[0] <= start:
            usage.requests.popleft()
        while usage.executions and usage.executions[0][0] <= start:
            usage.spent -= usage.executions.popleft()[1]
