"""A thread that owns what may hang, so that nobody else does.

Clients of the SDKs are not safe under many threads, and some of their calls block for minutes, or for ever, whatever
time-outs they are given. So one thread owns such a client and carries out the calls in turn; callers wait for an
answer no longer than they can afford, and an owner that is stuck in a call is replaced together with its client.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger(__name__)

Client = TypeVar("Client")
Answer = TypeVar("Answer")


class NotAnswered(Exception):
    """The call has no answer in time; whether it was carried out is not known."""


@dataclass(frozen=True)
class Care(Generic[Client]):
    """How an owner treats its client.

    `build` makes it, in the owner's thread, at the first call and again for every replacement. `close` ends it, in
    the same thread. `abandon` is called from a caller's thread when the owner is stuck: it may cut sockets.
    An owner without calls for `idle` seconds closes its client and ends: connections that lay idle for long may be
    dead without a word. At most `most_stuck` threads are left behind at once; then callers wait for one to come back.
    """

    build: Callable[[], Client]
    close: Callable[[Client], None]
    abandon: Callable[[Client], None] = lambda _: None
    idle: float = 60.0
    most_stuck: int = 8


class Owner(Generic[Client]):
    """Carries out calls on a client that only its own thread ever touches."""

    def __init__(self, name: str, care: Care[Client]) -> None:
        self._name = name
        self._care = care
        self._calls: queue.SimpleQueue[_Call[Client] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: _OwnerThread[Client] | None = None
        self._stuck: list[_OwnerThread[Client]] = []

    def __repr__(self) -> str:
        return f"<Owner {self._name!r}: {len(self._stuck)} stuck>"

    def call(self, do: Callable[[Client], Answer], *, limit: float, timeout: float) -> Answer:
        """Have `do(client)` carried out and return its answer, or raise what it raises.

        `limit`: seconds after which the call counts as stuck and its owner is replaced. `timeout`: seconds that this
        caller waits in all, waiting for its turn included. Raises NotAnswered.
        """
        end = time.monotonic() + timeout
        call: _Call[Client] = _Call(do, limit)
        self._calls.put(call)
        while not call.answer.done():
            patience = self._ensure_thread()
            remaining = end - time.monotonic()
            if remaining <= 0:
                # A call that has not begun never will; one that has may go on for as long as its limit allows.
                call.answer.cancel()
                raise NotAnswered(f"No answer within {timeout:.1f} s.")
            wait([call.answer], timeout=min(remaining, patience))
        answer: Answer = call.answer.result()
        return answer

    def close(self) -> None:
        """Let the thread end after the calls that are waiting; an owner can be called again afterwards."""
        with self._lock:
            # Without a thread there is nothing to end, and the next one would end before its first call.
            if self._thread is not None:
                self._calls.put(None)

    def _ensure_thread(self) -> float:
        """Start or replace the thread where that is due; return seconds until it is worth another look."""
        with self._lock:
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            stuck = self._thread is not None and self._thread.until_overdue() <= 0
            if self._thread is not None and stuck and len(self._stuck) < self._care.most_stuck:
                _logger.warning("owner: %s is stuck in a call and is replaced", self._name)
                self._stuck.append(self._thread)
                self._thread.retire()
                self._thread = None
            if self._thread is None:
                self._thread = _OwnerThread(self._name, self._care, self._calls, self._let_go)
                self._thread.start()
            return max(self._thread.until_overdue(), 0.05)

    def _let_go(self, thread: _OwnerThread[Client], *, idle: bool) -> bool:
        """Whether `thread` may end: an idle one only if no call came in this very moment."""
        with self._lock:
            if idle and not self._calls.empty():
                return False
            if self._thread is thread:
                self._thread = None
            return True


@dataclass(frozen=True)
class _Call(Generic[Client]):
    do: Callable[[Client], Any]
    limit: float
    answer: Future[Any] = field(default_factory=Future)


class _OwnerThread(threading.Thread, Generic[Client]):
    def __init__(
        self,
        name: str,
        care: Care[Client],
        calls: queue.SimpleQueue[_Call[Client] | None],
        let_go: Callable[..., bool],
    ) -> None:
        # A daemon: a stuck call must not keep the process from ending.
        super().__init__(name=name, daemon=True)
        self._care = care
        self._calls = calls
        self._let_go = let_go
        self._client: Client | None = None
        self._retired = False
        self._overdue_at: float | None = None

    def until_overdue(self) -> float:
        overdue_at = self._overdue_at
        return 1.0 if overdue_at is None else overdue_at - time.monotonic()

    def retire(self) -> None:
        """End after the present call, should it ever end."""
        self._retired = True
        if self._client is not None:
            self._care.abandon(self._client)

    def run(self) -> None:
        while not self._retired:
            try:
                call = self._calls.get(timeout=self._care.idle)
            except queue.Empty:
                if self._let_go(self, idle=True):
                    break
                continue
            if call is None:
                self._let_go(self, idle=False)
                break
            if call.answer.set_running_or_notify_cancel():
                self._overdue_at = time.monotonic() + call.limit
                self._carry_out(call)
                self._overdue_at = None
        self._close()

    def _close(self) -> None:
        try:
            if self._client is not None:
                self._care.close(self._client)
        except Exception as error:  # noqa: BLE001 - what cannot be closed in good order is gone all the same
            _logger.warning("owner: %s could not close its client: %s", self.name, type(error).__name__)

    def _carry_out(self, call: _Call[Client]) -> None:
        try:
            if self._client is None:
                self._client = self._care.build()
            call.answer.set_result(call.do(self._client))
        except BaseException as error:  # noqa: BLE001 - not swallowed: it is raised in the caller's thread
            call.answer.set_exception(error)
