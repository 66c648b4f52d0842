from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import pytest

from shared.bounded_call import BoundedCalls, Call
from shared.deadline_socket import CallTimeout, seconds_left

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 20.0


class Blocked:
    """A call that does not return before it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.released.wait(BOUND)
        return "late"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()


@pytest.mark.parametrize("error", [LookupError("inside"), SystemExit("inside")])
def test_a_result_or_an_exception_reaches_the_caller(error: BaseException) -> None:
    """Also one that would end the interpreter."""
    calls = BoundedCalls("test", 1)
    assert calls.run(lambda: 7, BOUND) == 7

    def fail() -> None:
        raise error

    with pytest.raises(type(error), match="inside"):
        calls.run(fail, BOUND)
    assert calls.run(lambda: 8, BOUND) == 8


def test_the_caller_waits_for_the_result() -> None:
    with Blocked() as blocked, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(BoundedCalls("test", 1).run, blocked, BOUND)
        assert blocked.begun.wait(BOUND)
        assert not wait([waiting], 0.1).done
        blocked.released.set()
        assert waiting.result(BOUND) == "late"


def test_the_call_runs_in_a_daemon_thread_with_the_callers_context_and_a_deadline() -> None:
    """Tracing keeps the current span in the context; a blocked call must not keep the process from ending."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")
    span.set("caller's")
    thread, value, seconds = BoundedCalls("test", 1).run(
        lambda: (threading.current_thread(), span.get(), seconds_left()), BOUND
    )
    assert value == "caller's"
    assert 0 < seconds <= BOUND
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == "test"


def test_a_caller_waits_no_longer_than_agreed_and_a_late_result_is_discarded() -> None:
    discarded: list[str] = []
    calls = BoundedCalls("test", 1)
    with Blocked() as blocked:
        with pytest.raises(CallTimeout, match="did not end in time"):
            calls.run(blocked, 0.05, discarded.append)
        assert discarded == []
    # The only thread is free again after the result has been discarded.
    assert calls.run(lambda: "next", BOUND) == "next"
    assert discarded == ["late"]


def test_a_late_result_may_need_no_discarding() -> None:
    calls = BoundedCalls("test", 1)
    with Blocked() as blocked, pytest.raises(CallTimeout):
        calls.run(blocked, 0.05)
    assert calls.run(lambda: "next", BOUND) == "next"


def test_a_call_that_ends_at_the_moment_of_the_timeout_is_not_abandoned() -> None:
    discarded: list[str] = []
    call: Call[str] = Call(discarded.append)

    class EndsWhenWaitedFor(threading.Event):
        """Reports a timeout once, although the call has just ended."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 0.0
            call.carry_out(lambda: "just in time")
            return False

    call._done = EndsWhenWaitedFor()
    assert call.result(-1.0) == "just in time"
    assert discarded == []


def test_blocked_calls_do_not_pile_up() -> None:
    """Hanging name resolution blocks only so many threads; the next caller waits for one as long as it can."""
    calls, blocked = BoundedCalls("test", 3), [Blocked() for _ in range(3)]
    before = threading.active_count()
    with ExitStack() as stack:
        for each in blocked:
            stack.enter_context(each)
            with pytest.raises(CallTimeout):
                calls.run(each, 0.01)
        for _ in range(20):
            with pytest.raises(CallTimeout, match="All threads for test are blocked"):
                calls.run(lambda: "never", 0.001)
        assert threading.active_count() <= before + 3
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(calls.run, lambda: "served", BOUND)
            blocked[0].released.set()
            assert waiting.result(BOUND) == "served"


def test_a_call_that_is_started_is_waited_for_later() -> None:
    calls = BoundedCalls("test", 1)
    with Blocked() as blocked:
        call = calls.start(blocked, BOUND)
        assert not call.is_done
        with pytest.raises(CallTimeout):
            calls.start(blocked, BOUND)
    assert call.result(BOUND) == "late"
    assert call.is_done


def test_a_thread_that_cannot_be_started_does_no_lasting_harm() -> None:
    failures = [RuntimeError("can't start new thread")]

    def start(name: str, target: Callable[[], None]) -> None:
        assert name == "test"
        if failures:
            raise failures.pop()
        target()

    calls = BoundedCalls("test", 1, start_thread=start)
    with pytest.raises(OSError, match="No thread could be started for test"):
        calls.run(lambda: 7, BOUND)
    assert calls.run(lambda: 7, BOUND) == 7
