"""The operators' access to the namespace, with messages and locks that are out of the ordinary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
from azure.servicebus.exceptions import MessageLockLostError, MessageNotFoundError, ServiceBusError
from hypothesis import given
from hypothesis import strategies as st

from operations.namespace import NamespaceClient, Source

if TYPE_CHECKING:
    from collections.abc import Collection

    from azure.servicebus import ServiceBusClient

    from shared.settings import ServiceBusSettings


@dataclass(frozen=True)
class FakeMessage:
    sequence_number: int
    is_decodable: bool = True


class FakeQueue:
    """A client, and the receiver that it opens."""

    def __init__(self, *messages: FakeMessage) -> None:
        self._messages = messages
        self._deferred: list[FakeMessage] = []
        self.peeks = 0
        self.lost: list[int] = []
        self.silent: Collection[int] = ()
        self.receives = 0

    def get_queue_receiver(self, *_: object, **__: object) -> FakeQueue:
        return self

    def peek_messages(self, most: int, *, sequence_number: int, **_: Any) -> list[FakeMessage]:  # noqa: ANN401
        self.peeks += 1
        page = [each for each in self._messages if each.sequence_number >= sequence_number][:most]
        if all(each.is_decodable for each in page):
            return page
        raise ServiceBusError("Handler failed.", error=TypeError("'NoneType' object is not callable"))

    def receive_messages(self, *_: object, **__: object) -> list[FakeMessage]:
        self.receives += 1
        if self.receives in self.silent:
            return []
        return [each for each in self._messages if each not in self._deferred]

    def defer_message(self, message: FakeMessage) -> None:
        if message.sequence_number in self.lost:
            self.lost.remove(message.sequence_number)
            raise MessageLockLostError(message="expired")
        self._deferred.append(message)

    def receive_deferred_messages(self, number: int, **_: object) -> list[FakeMessage]:
        found = [each for each in self._deferred if each.sequence_number == number]
        if not found:
            raise MessageNotFoundError(message="not deferred")
        return found


def peeked(queue: FakeQueue) -> list[tuple[int, bool]]:
    return [(each.number, each.message is not None) for each in opened(queue).peek_every(Source("queue"))]


def locked_number(queue: FakeQueue, number: int) -> int | None:
    locked = opened(queue).lock(Source("queue"), number)
    return None if locked is None else locked.sequence_number


def opened(queue: FakeQueue) -> NamespaceClient:
    client = cast("ServiceBusClient", queue)
    return NamespaceClient(cast("ServiceBusSettings", None), lambda: client, seconds=10)


@pytest.mark.parametrize("gap", [0, 1, 20, 999, 1000, 10**6, 2**48])
def test_a_gap_in_the_numbers_before_an_odd_message_breaks_nothing(gap: int) -> None:
    """The numbers of messages that left the queue are not used again; partitions have high ones."""
    queue = FakeQueue(
        FakeMessage(1),
        FakeMessage(2 + gap, is_decodable=False),
        FakeMessage(3 + gap),
        FakeMessage(9 + 2 * gap),
    )
    assert peeked(queue) == [(1, True), (2 + gap, False), (3 + gap, True), (9 + 2 * gap, True)]
    assert queue.peeks < 250


def test_the_last_message_of_a_queue_may_be_the_odd_one() -> None:
    assert peeked(FakeQueue(FakeMessage(5000, is_decodable=False))) == [(5000, False)]


def test_odd_messages_side_by_side_are_one_row_and_hide_no_other_message() -> None:
    numbers = [FakeMessage(number, is_decodable=number not in (2, 3, 5)) for number in range(1, 7)]
    assert peeked(FakeQueue(*numbers)) == [(1, True), (3, False), (4, True), (5, False), (6, True)]


def test_a_peer_that_does_not_speak_amqp_is_no_odd_message() -> None:
    class Broken(FakeQueue):
        def peek_messages(self, *_: object, **__: object) -> list[FakeMessage]:
            raise ServiceBusError("Handler failed.", error=ValueError("not AMQP"))

    with pytest.raises(ServiceBusError):
        peeked(Broken())


def test_a_message_whose_lock_expired_before_it_was_deferred_is_received_again() -> None:
    """The SDK keeps what came after a page on the link, where the locks expire."""
    queue = FakeQueue(FakeMessage(1), FakeMessage(2))
    queue.lost = [2]
    assert locked_number(queue, 2) == 2


def test_of_a_page_the_wanted_message_alone_may_have_lost_its_lock() -> None:
    queue = FakeQueue(FakeMessage(1), FakeMessage(2), FakeMessage(3))
    queue.lost = [2]
    assert locked_number(queue, 2) == 2


def test_a_broker_that_sends_nothing_for_a_while_is_asked_again_for_a_message_that_is_there() -> None:
    queue = FakeQueue(FakeMessage(1))
    queue.silent = [1]
    assert locked_number(queue, 1) == 1
    assert queue.receives == 2


def test_a_message_that_somebody_else_holds_is_waited_for_with_a_bound() -> None:
    queue = FakeQueue(FakeMessage(1))
    queue.silent = range(1, 1000)
    assert locked_number(queue, 1) is None
    assert queue.receives == 2


def test_a_message_that_has_left_costs_the_others_nothing() -> None:
    queue = FakeQueue(FakeMessage(1), FakeMessage(3))
    assert locked_number(queue, 2) is None
    assert queue.receives == 0


@given(
    numbers=st.sets(st.integers(1, 20), min_size=1),
    wanted=st.integers(1, 20),
    lost=st.lists(st.integers(1, 20), max_size=10),
    silent=st.integers(0, 5),
)
def test_a_message_is_locked_exactly_if_it_is_there(
    numbers: set[int], wanted: int, lost: list[int], silent: int
) -> None:
    """Whichever locks expire how often, and whenever the broker sends nothing for a while."""
    queue = FakeQueue(*map(FakeMessage, sorted(numbers)))
    queue.lost = [number for number in lost if number in numbers]
    queue.silent = [silent]
    assert locked_number(queue, wanted) == (wanted if wanted in numbers else None)
