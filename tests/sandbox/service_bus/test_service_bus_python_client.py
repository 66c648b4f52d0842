"""Microsoft's azure-servicebus against the server: what its user meets first, plain and TLS, with key and token."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from azure.servicebus import (
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
)
from azure.servicebus.amqp import AmqpAnnotatedMessage
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    ServiceBusError,
)

from sandbox.service_bus import Message
from sandbox.service_bus.configuration import Status
from sandbox.service_bus.messages import Counts

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access


class Queue:
    """The queue `plain`, with a sender and a receiver; both are opened at once, which takes the SDK half a second."""

    def __init__(self, access: "Access") -> None:
        self.advance = access.advance
        self._access = access
        assert access.one_client is not None
        with ThreadPoolExecutor(2) as pool:
            sender, receiver = pool.submit(access.sender), pool.submit(access.receiver)
        self.sender, self.receiver = sender.result(), receiver.result()

    @property
    def counts(self) -> Counts:
        """How many messages it has, in each state."""
        return self._access.broker.counts("plain")

    def receive(self, count: int = 1) -> list[ServiceBusReceivedMessage]:
        """Receive so many messages."""
        return self._access.receive(self.receiver, count)


@pytest.fixture
def queue(access: "Access") -> Queue:
    return Queue(access)


def test_a_message_arrives_as_it_was_sent(queue: Queue) -> None:
    sent_at = datetime.now(UTC)
    queue.sender.send_messages(
        ServiceBusMessage(
            b"\x00\xff body",
            message_id="id-1",
            correlation_id="correlation",
            subject="subject",
            to="somebody",
            reply_to="responses",
            content_type="application/json",
            partition_key="key",
            time_to_live=timedelta(days=40),
            application_properties={
                "text": "ü",
                "number": 5,
                "long": 2**31 - 1,
                "truth": True,
                "ratio": 0.5,
                "when": sent_at,  # type: ignore[dict-item]  # the SDK takes what it does not promise
                "nothing": None,  # type: ignore[dict-item]
            },
        )
    )
    [message] = queue.receive()
    assert b"".join(message.body) == b"\x00\xff body"
    assert (message.message_id, message.correlation_id, message.subject) == ("id-1", "correlation", "subject")
    assert (message.to, message.reply_to) == ("somebody", "responses")
    assert message.content_type == "application/json"
    assert (message.partition_key, message.time_to_live) == ("key", timedelta(days=40))
    assert message.application_properties == {
        b"text": "ü".encode(),
        b"number": 5,
        b"long": 2**31 - 1,
        b"truth": True,
        b"ratio": 0.5,
        b"when": int(sent_at.timestamp() * 1000),
        b"nothing": None,
    }
    assert message.delivery_count == 0
    assert message.sequence_number == 1
    assert message.enqueued_time_utc is not None
    assert abs(message.enqueued_time_utc - sent_at) < timedelta(seconds=10)
    assert message.locked_until_utc is not None
    assert timedelta(seconds=20) < message.locked_until_utc - sent_at < timedelta(seconds=40)
    queue.receiver.complete_message(message)
    assert queue.counts.active == 0


def test_a_batch_arrives_whole_and_in_order(queue: Queue) -> None:
    batch = queue.sender.create_message_batch()
    for number in range(20):
        batch.add_message(ServiceBusMessage(f"{number}", message_id=f"m{number}"))
    queue.sender.send_messages(batch)
    queue.sender.send_messages([ServiceBusMessage("one"), ServiceBusMessage("two")])
    received = queue.receive(22)
    assert [str(message) for message in received] == [*map(str, range(20)), "one", "two"]
    assert received[7].message_id == "m7"


def test_each_kind_of_body_is_kept(queue: Queue) -> None:
    queue.sender.send_messages(AmqpAnnotatedMessage(value_body={"a": [1, "b"]}))
    queue.sender.send_messages(AmqpAnnotatedMessage(sequence_body=[[1, 2], [3]]))
    queue.sender.send_messages(AmqpAnnotatedMessage(data_body=[b"one", b"", b"two"]))
    value, sequences, data = queue.receive(3)
    assert value.body == {b"a": [1, b"b"]}
    assert list(sequences.body) == [[1, 2], [3]]
    assert list(data.body) == [b"one", b"", b"two"]


def test_a_message_delivered_too_often_is_dead_lettered(access: "Access", queue: Queue) -> None:
    queue.sender.send_messages(ServiceBusMessage("poison", application_properties={"kept": "yes"}))
    for count in range(3):
        [message] = queue.receive()
        assert message.delivery_count == count
        queue.receiver.abandon_message(message)
    dead_letters = access.receiver(sub_queue=ServiceBusSubQueue.DEAD_LETTER)
    [message] = access.receive(dead_letters)
    assert message.dead_letter_reason == "MaxDeliveryCountExceeded"
    assert message.dead_letter_source == "plain"
    assert message.delivery_count == 3
    assert (message.application_properties or {})[b"kept"] == b"yes"
    dead_letters.complete_message(message)
    assert queue.counts.dead_letter == 0


def test_dead_letters_are_forwarded_with_their_properties(access: "Access") -> None:
    sender = access.sender("forwarding")
    receiver = access.receiver("forwarding")
    parked = access.receiver("parked")
    sender.send_messages(ServiceBusMessage("bad", message_id="m", application_properties={"mine": "x"}))
    receiver.dead_letter_message(access.receive(receiver)[0], reason="Bad", error_description="really")
    [message] = access.receive(parked)
    assert message.message_id == "m"
    assert message.delivery_count == 0
    assert (message.dead_letter_source, message.dead_letter_reason) == ("forwarding", "Bad")
    assert message.dead_letter_error_description == "really"
    assert message.application_properties == {
        b"mine": b"x",
        b"DeadLetterReason": b"Bad",
        b"DeadLetterErrorDescription": b"really",
    }
    parked.complete_message(message)


def test_an_expired_lock_brings_the_message_back_to_a_waiting_receiver(queue: Queue) -> None:
    queue.sender.send_messages(ServiceBusMessage("slow"))
    [first] = queue.receive()
    queue.advance(seconds=31)
    [second] = queue.receive()
    assert second.sequence_number == first.sequence_number
    assert second.delivery_count == 1
    assert second.lock_token != first.lock_token
    for use_lost_lock in (queue.receiver.complete_message, queue.receiver.renew_message_lock):
        with pytest.raises(MessageLockLostError):
            use_lost_lock(first)
    queue.receiver.complete_message(second)


def test_a_renewed_lock_holds(queue: Queue) -> None:
    queue.sender.send_messages(ServiceBusMessage("slow"))
    [message] = queue.receive()
    before = message.locked_until_utc
    queue.advance(seconds=20)
    renewed = queue.receiver.renew_message_lock(message)
    assert before is not None
    assert renewed - before > timedelta(seconds=19)
    queue.advance(seconds=20)
    assert queue.counts.locked == 1
    queue.receiver.complete_message(message)
    assert queue.counts.active == 0


def test_a_deferred_message_comes_by_its_number_only(queue: Queue) -> None:
    queue.sender.send_messages([ServiceBusMessage("later"), ServiceBusMessage("now")])
    later, now = queue.receive(2)
    queue.receiver.defer_message(later)
    queue.receiver.complete_message(now)
    [peeked] = queue.receiver.peek_messages(1, sequence_number=1)
    assert peeked.state is ServiceBusMessageState.DEFERRED
    assert later.sequence_number is not None
    [again] = queue.receiver.receive_deferred_messages([later.sequence_number])
    assert str(again) == "later"
    queue.receiver.complete_message(again)
    assert queue.counts.deferred == 0
    with pytest.raises(MessageNotFoundError):
        queue.receiver.receive_deferred_messages([later.sequence_number])


def test_a_deferred_message_can_be_dead_lettered_and_abandoned(queue: Queue) -> None:
    queue.sender.send_messages(ServiceBusMessage("later"))
    [message] = queue.receive()
    queue.receiver.defer_message(message)
    number = message.sequence_number
    assert number is not None
    queue.receiver.abandon_message(queue.receiver.receive_deferred_messages(number)[0])
    assert queue.counts.deferred == 1
    queue.receiver.dead_letter_message(queue.receiver.receive_deferred_messages(number)[0], reason="Old")
    assert queue.counts.dead_letter == 1


def test_a_scheduled_message_appears_when_it_is_due(queue: Queue) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    queue.sender.schedule_messages(ServiceBusMessage("by schedule_messages"), due)
    queue.sender.send_messages(
        ServiceBusMessage("by property", scheduled_enqueue_time_utc=due + timedelta(minutes=1))
    )
    states = [message.state for message in queue.receiver.peek_messages(5)]
    assert states == [ServiceBusMessageState.SCHEDULED] * 2
    queue.advance(minutes=60, seconds=1)
    [first] = queue.receive()
    assert str(first) == "by schedule_messages"
    queue.receiver.complete_message(first)
    queue.advance(minutes=1)
    [message] = queue.receive()
    assert str(message) == "by property"
    assert message.scheduled_enqueue_time_utc is not None


def test_a_scheduled_message_can_be_cancelled(queue: Queue) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    numbers = queue.sender.schedule_messages([ServiceBusMessage("a"), ServiceBusMessage("b")], due)
    queue.sender.cancel_scheduled_messages(numbers[0])
    queue.advance(hours=2)
    assert str(queue.receive()[0]) == "b"
    with pytest.raises(MessageNotFoundError):
        queue.sender.cancel_scheduled_messages(numbers[1])


def test_peeking_shows_all_and_changes_nothing(queue: Queue) -> None:
    queue.sender.send_messages([ServiceBusMessage(f"{number}") for number in range(5)])
    [locked] = queue.receive()
    peeked = queue.receiver.peek_messages(3, sequence_number=1)
    assert [str(message) for message in peeked] == ["0", "1", "2"]
    assert [str(message) for message in queue.receiver.peek_messages(10)] == ["3", "4"]
    assert peeked[0].state is ServiceBusMessageState.ACTIVE
    assert queue.receiver.peek_messages(1, sequence_number=100) == []
    queue.receiver.complete_message(locked)
    assert [message.delivery_count for message in queue.receiver.peek_messages(1, sequence_number=1)] == [0]


def test_receive_and_delete_takes_it_for_good(access: "Access") -> None:
    access.broker.send("plain", Message(b"once"))
    receiver = access.receiver(receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE)
    assert str(access.receive(receiver)[0]) == "once"
    assert access.broker.counts("plain").active == 0


def test_subscriptions_take_what_their_rules_say(access: "Access") -> None:
    red, blue = (
        ServiceBusMessage(colour, subject="news", application_properties={"colour": colour})
        for colour in ("red", "blue")
    )
    sender = access.sender("news")
    sender.send_messages([red, blue])
    sender.schedule_messages(red, datetime.now(UTC) + timedelta(minutes=1))
    access.advance(minutes=2)
    receiver = access.receiver("news", "red")
    received = access.receive(receiver, 2)
    assert [str(message) for message in received] == ["red", "red"]
    receiver.dead_letter_message(received[0], reason="Why not")
    dead_letters = access.receiver("news", "red", sub_queue="deadletter")
    assert access.receive(dead_letters)[0].dead_letter_source == "news/Subscriptions/red"


def test_a_message_that_is_too_large_is_refused(access: "Access", queue: Queue) -> None:
    with pytest.raises(MessageSizeExceededError):
        queue.sender.send_messages(ServiceBusMessage(b"x" * (257 * 1024)))
    with pytest.raises(MessageSizeExceededError):
        access.sender("small").send_messages(ServiceBusMessage(b"x" * 2000))
    largest = b"x" * (255 * 1024)
    queue.sender.send_messages(ServiceBusMessage(largest))
    assert b"".join(queue.receive()[0].body) == largest


@pytest.mark.parametrize(
    ("attach", "error", "text"),
    [
        (lambda access: access.sender("plain/$DeadLetterQueue"), ServiceBusError, "dead-letter"),
        (lambda access: access.sender("other"), MessagingEntityDisabledError, "disabled"),
        (lambda access: access.receiver("other"), MessagingEntityDisabledError, "disabled"),
    ],
    ids=["sender to dead letters", "sender to a disabled queue", "receiver of a disabled queue"],
)
def test_a_link_that_is_not_permitted_is_refused_with_the_reason(
    access: "Access", attach: Callable[["Access"], object], error: type[ServiceBusError], text: str
) -> None:
    access.broker.set_status("other", Status.DISABLED)
    with pytest.raises(error, match=text):
        attach(access)


def test_a_receiver_waits_until_there_is_a_message(access: "Access") -> None:
    """A receiver that is attached and has credit gets what comes later, from wherever."""
    receiver = access.receiver()
    received: list[str] = []
    thread = Thread(target=lambda: received.extend(map(str, receiver.receive_messages(1, max_wait_time=20))))
    thread.start()
    access.eventually(lambda: access.server.waiting_receivers("plain") == 1)
    access.broker.send("plain", Message(b"at last"))
    thread.join(20)
    assert received == ["at last"]
