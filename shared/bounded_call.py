"""Calls that may block without any timeout: each runs in a thread of its own, and their number is limited.

Examples are establishing a connection (name resolution has no timeout) and fetching a token. A caller waits for a
limited time. A call that takes longer is abandoned: its thread ends when the call does, and its result is
discarded. Everything else runs in the caller's own thread.
"""

from __future__ import annotations

import contextvars
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from shared.deadline_socket import CallTimeout, thread_deadline

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class BoundedCalls:
    """Starts calls, at most `limit` at once: blocked ones do not pile up.

    `start_thread` starts a thread with a target; it raises RuntimeError where the system has none left.
    """

    def __init__(
        self, name: str, limit: int, *, start_thread: Callable[[str, Callable[[], None]], None] | None = None
    ) -> None:
        self._name = name
        self._free = threading.BoundedSemaphore(limit)
        self._start_thread = start_thread or _start_daemon

    def run(
        self, call: Callable[[], Result], seconds: float, discard: Callable[[Result], None] | None = None
    ) -> Result:
        """Return the call's result or raise what it raises; raises CallTimeout after `seconds`.

        `discard` disposes of a result that comes too late.
        """
        end = time.monotonic() + seconds
        started = self.start(call, seconds, discard, wait=seconds)
        return started.result(end - time.monotonic())

    def start(
        self,
        call: Callable[[], Result],
        seconds: float,
        discard: Callable[[Result], None] | None = None,
        *,
        wait: float = 0.0,
    ) -> Call[Result]:
        """Start a call whose socket operations have to end within `seconds`.

        Raises CallTimeout if no thread becomes free within `wait` seconds, OSError if the system has none.
        """
        if not self._free.acquire(timeout=max(wait, 0.0)):
            raise CallTimeout(f"All threads for {self._name} are blocked.")
        started: Call[Result] = Call(discard)
        context = contextvars.copy_context()

        def work() -> None:
            try:
                with thread_deadline(seconds):
                    started.carry_out(call)
            finally:
                self._free.release()

        try:
            self._start_thread(self._name, lambda: context.run(work))
        except RuntimeError as error:
            self._free.release()
            raise OSError(f"No thread could be started for {self._name}.") from error
        return started


class Call(Generic[Result]):
    """A call in progress."""

    def __init__(self, discard: Callable[[Result], None] | None = None) -> None:
        self._discard = discard
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._abandoned = False
        self._results: list[Result] = []
        self._error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether the call has ended."""
        return self._done.is_set()

    def result(self, seconds: float) -> Result:
        """Wait for the result or the exception; raises CallTimeout and abandons the call after `seconds`."""
        if not self._done.wait(max(seconds, 0.0)) and self._abandon():
            raise CallTimeout("The call did not end in time.")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def carry_out(self, call: Callable[[], Result]) -> None:
        """Make the call; for the thread that was started for it."""
        try:
            self._results.append(call())
        except BaseException as error:  # noqa: BLE001 - not swallowed: it is raised in the caller's thread
            self._error = error
        with self._lock:
            self._done.set()
            late = self._results if self._abandoned else []
        for result in late:
            if self._discard is not None:
                self._discard(result)

    def _abandon(self) -> bool:
        """Return whether the call is abandoned; it is not if it has just ended."""
        with self._lock:
            self._abandoned = not self._done.is_set()
            return self._abandoned


def _start_daemon(name: str, target: Callable[[], None]) -> None:
    # A daemon: a blocked call must not keep the process from ending.
    threading.Thread(target=target, name=name, daemon=True).start()
