from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from shared.owner import Care, NotAnswered, Owner, _OwnerThread

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND = 20.0


class Client:
    """What an owner looks after: knows who touched it."""

    def __init__(self) -> None:
        self.threads: set[int] = {threading.get_ident()}
        self.closed = threading.Event()
        self.abandoned = threading.Event()
        self.at_once = 0
        self.most_at_once = 0

    def touch(self) -> Client:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.threads.add(threading.get_ident())
        time.sleep(0.0001)
        self.at_once -= 1
        return self

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed.set()


class Clients:
    def __init__(self) -> None:
        self.built: list[Client] = []

    def build(self) -> Client:
        self.built.append(Client())
        return self.built[-1]


def owner_of(clients: Clients, **care: Any) -> Owner[Client]:  # noqa: ANN401 - as the dataclass has them
    treatment = {"build": clients.build, "close": Client.close, "abandon": lambda c: c.abandoned.set()}
    return Owner("test", Care(**{**treatment, **care}))


def test_one_thread_at_a_time_touches_the_client_however_many_call() -> None:
    clients = Clients()
    owner = owner_of(clients)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: owner.call(Client.touch, limit=BOUND, timeout=BOUND), range(320)))
    owner.close()
    assert clients.built == [answers[0]]
    assert clients.built[0].closed.wait(BOUND)
    assert len(clients.built[0].threads) == 1
    assert threading.get_ident() not in clients.built[0].threads
    assert clients.built[0].most_at_once == 1


def test_what_a_call_raises_is_raised_in_the_caller_and_the_client_stays() -> None:
    clients = Clients()
    owner = owner_of(clients)

    def fail(client: Client) -> None:
        raise LookupError(id(client))

    with pytest.raises(LookupError, match=r"[0-9]+"):
        owner.call(fail, limit=BOUND, timeout=BOUND)
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is clients.built[0]
    owner.close()


def test_a_client_that_cannot_be_built_is_built_again_at_the_next_call() -> None:
    clients = Clients()
    failures = [ConnectionRefusedError("not yet")]

    def build() -> Client:
        if failures:
            raise failures.pop()
        return clients.build()

    owner = owner_of(clients, build=build)
    with pytest.raises(ConnectionRefusedError):
        owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is clients.built[0]
    owner.close()


class Hang:
    """A call that begins and does not end before it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self, _: object = None) -> None:
        self.begun.set()
        self.released.wait(BOUND)

    @contextmanager
    def going_on_in(self, owner: Owner[Any], limit: float) -> Iterator[None]:
        """Have a thread wait for this call until it is released at the latest."""
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(owner.call, self, limit=limit, timeout=BOUND)
            assert self.begun.wait(BOUND)
            yield
            self.released.set()
            waiting.result(BOUND)


def test_a_stuck_owner_is_replaced_with_its_client_and_the_next_caller_is_answered() -> None:
    clients, hang = Clients(), Hang()
    owner = owner_of(clients)
    with hang.going_on_in(owner, limit=0.05):
        second = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
        stuck = clients.built[0]
        assert second is clients.built[1]
        assert stuck.abandoned.is_set()
        assert not stuck.closed.is_set()
        assert repr(owner) == "<Owner 'test': 1 stuck>"
    assert stuck.closed.wait(BOUND), "a thread that comes back closes what it had"
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is second
    assert not second.abandoned.is_set()
    owner.close()


def test_nobody_waits_longer_than_he_can_afford() -> None:
    hang = Hang()
    owner = owner_of(Clients())
    with pytest.raises(NotAnswered, match=r"No answer within 0\.1 s"):
        owner.call(hang, limit=BOUND, timeout=0.1)
    hang.released.set()
    owner.close()


def test_an_owner_that_hangs_while_it_builds_its_client_is_replaced_too() -> None:
    clients, hang = Clients(), Hang()

    def build() -> Client:
        if not hang.begun.is_set():
            hang()
        return clients.build()

    owner = owner_of(clients, build=build)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(owner.call, Client.touch, limit=0.05, timeout=BOUND)
        assert hang.begun.wait(BOUND)
        answer = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
        hang.released.set()
        late = waiting.result(BOUND)
    assert clients.built == [answer, late]
    assert late.closed.wait(BOUND)
    assert not answer.abandoned.is_set()
    owner.close()


def test_a_call_that_was_given_up_before_its_turn_is_never_carried_out() -> None:
    hang = Hang()
    done: list[str] = []
    owner = owner_of(Clients())
    with hang.going_on_in(owner, limit=BOUND), pytest.raises(NotAnswered):
        owner.call(lambda _: done.append("given up"), limit=BOUND, timeout=0.02)
    owner.call(lambda _: done.append("later"), limit=BOUND, timeout=BOUND)
    assert done == ["later"]
    owner.close()


def test_no_more_threads_are_left_behind_than_agreed() -> None:
    """Then callers wait for one to come back, as long as they can."""
    clients, hangs = Clients(), [Hang(), Hang(), Hang()]
    owner = owner_of(clients, most_stuck=2)
    with ExitStack() as stack:
        for hang in hangs:
            stack.enter_context(hang.going_on_in(owner, limit=0.01))
        with pytest.raises(NotAnswered):
            owner.call(Client.touch, limit=BOUND, timeout=0.2)
        assert len(clients.built) == 3
        hangs[0].released.set()
        assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is clients.built[3]
    owner.close()
    assert all(client.closed.wait(BOUND) for client in clients.built)


def test_an_idle_owner_closes_its_client_and_begins_anew() -> None:
    clients = Clients()
    owner = owner_of(clients, idle=0.02)
    first = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    assert first.closed.wait(BOUND)
    assert len(first.threads) == 1, "the thread that made the client closes it"
    second = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    assert second is not first
    assert second.closed.wait(BOUND)


def test_a_call_that_comes_at_the_moment_of_idling_keeps_the_client() -> None:
    class TooLate(queue.SimpleQueue[Any]):
        """Says once that nothing came in time, although something just has."""

        armed = False

        def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ANN401, FBT001, FBT002 - the library's
            call = super().get(block, timeout)
            if self.armed:
                self.armed = False
                self.put(call)
                raise queue.Empty
            return call

    owner = owner_of(Clients())
    owner._calls = calls = TooLate()
    first = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    calls.armed = True
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is first
    owner.close()


def test_a_replaced_thread_that_ends_does_not_take_its_successors_place() -> None:
    clients = Clients()
    owner = owner_of(clients)
    first = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    replaced: _OwnerThread[Client] = _OwnerThread("old", owner._care, owner._calls, owner._let_go)
    assert owner._let_go(replaced, idle=False)
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is first
    owner.close()


def test_an_owner_can_be_called_again_after_it_was_closed() -> None:
    clients = Clients()
    owner = owner_of(clients)
    owner.close()
    assert owner._calls.empty(), "without a thread there is nothing to end"
    first = owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    owner.close()
    assert first.closed.wait(BOUND)
    assert owner.call(Client.touch, limit=BOUND, timeout=BOUND) is not first
    owner.close()


def test_a_client_that_cannot_be_closed_ends_no_thread_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def close(_: Client) -> None:
        raise OSError("secret of the connection")

    owner = owner_of(Clients(), close=close)
    owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    thread = owner._thread
    assert thread is not None
    owner.close()
    thread.join(BOUND)
    assert caplog.messages == ["owner: test could not close its client: OSError"]


def test_what_stops_the_interpreter_reaches_the_caller() -> None:
    """Nothing that a call raises is lost in the owner's thread, not even an exit."""

    def leave(_: Client) -> None:
        raise SystemExit(3)

    owner = owner_of(Clients())
    with pytest.raises(SystemExit):
        owner.call(leave, limit=BOUND, timeout=BOUND)
    owner.close()


def test_a_client_may_need_no_abandoning() -> None:
    hang = Hang()
    owner: Owner[object] = Owner("plain", Care(build=object, close=lambda _: None))
    with hang.going_on_in(owner, limit=0.02):
        assert owner.call(lambda _: 1, limit=BOUND, timeout=BOUND) == 1
    owner.close()


def test_an_owner_that_never_had_a_client_has_none_to_close() -> None:
    def build() -> Client:
        raise ConnectionRefusedError

    owner = owner_of(Clients(), build=build)
    with pytest.raises(ConnectionRefusedError):
        owner.call(Client.touch, limit=BOUND, timeout=BOUND)
    thread = owner._thread
    assert thread is not None
    owner.close()
    thread.join(BOUND)
    assert not thread.is_alive()
