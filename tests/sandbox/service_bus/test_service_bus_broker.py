"""The broker's rules in virtual time and without a socket, beside the random histories of test_service_bus_model.py."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.clock import MovableClock
from sandbox.service_bus import (
    Broker,
    BrokeredMessage,
    Configuration,
    EventKind,
    Message,
    MessageState,
    Observation,
    ReceiveMode,
)
from sandbox.service_bus.configuration import Status
from sandbox.service_bus.errors import (
    EntityDisabled,
    EntityNotFound,
    InvalidArgument,
    MessageLockLost,
    MessageNotFound,
    MessageTooLarge,
    NotAllowed,
    Refusal,
)
from sandbox.service_bus.messages import Counts

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def clock() -> MovableClock:
    """Time that stands still until a test moves it."""
    return MovableClock(START)


@pytest.fixture
def log(broker: Broker) -> list[Observation]:
    observations: list[Observation] = []
    broker.observe(observations.append)
    return observations


def one(broker: Broker, entity: str = "plain") -> BrokeredMessage:
    [message] = broker.receive(entity)
    return message


def token(message: BrokeredMessage) -> uuid.UUID:
    assert message.lock_token is not None
    return message.lock_token


# Sending and receiving


def test_names_of_entities_have_no_case(broker: Broker) -> None:
    broker.send("PLAIN", Message(b"x"))
    assert one(broker, "Plain").entity == "plain"
    assert broker.path_of("plain/$deadletterqueue") == "plain/$DeadLetterQueue"
    assert broker.path_of("/news/subscriptions/ALL/") == "news/Subscriptions/all"


def test_a_batch_is_accepted_whole_or_not_at_all(broker: Broker) -> None:
    with pytest.raises(InvalidArgument):
        broker.send("plain", Message(b"good"), Message(b"bad", message_id="x" * 129))
    with pytest.raises(MessageTooLarge):
        broker.send("small", *[Message(b"x" * 400)] * 3)
    assert broker.counts("plain") == broker.counts("small") == Counts()


@pytest.mark.parametrize(
    ("act", "entity", "error"),
    [
        (Broker.send, "missing", EntityNotFound),
        (Broker.send, "news/Subscriptions/all", NotAllowed),
        (Broker.send, "plain/$DeadLetterQueue", NotAllowed),
        (Broker.send, "news/Subscriptions/all/$DeadLetterQueue", NotAllowed),
        (Broker.receive, "missing", EntityNotFound),
        (Broker.receive, "news", NotAllowed),
        (Broker.receive, "onward", NotAllowed),
    ],
)
def test_where_nothing_can_be_sent_or_received(
    broker: Broker, act: Callable[[Broker, str], object], entity: str, error: type[Refusal]
) -> None:
    with pytest.raises(error):
        act(broker, entity)


@pytest.mark.parametrize(
    ("status", "forbidden"),
    [
        (Status.ACTIVE, ""),
        (Status.SEND_DISABLED, "send"),
        (Status.RECEIVE_DISABLED, "receive"),
        (Status.DISABLED, "send receive"),
    ],
)
def test_a_status_disables_sending_or_receiving(broker: Broker, status: Status, forbidden: str) -> None:
    broker.set_status("plain", status)
    for act in (broker.send, broker.receive):
        if act.__name__ in forbidden:
            with pytest.raises(EntityDisabled):
                act("plain")
        else:
            act("plain")


def test_receive_and_delete_leaves_nothing(broker: Broker, log: list[Observation]) -> None:
    broker.send("plain", Message(b"x"))
    [message] = broker.receive("plain", mode=ReceiveMode.RECEIVE_AND_DELETE)
    assert message.lock_token is None
    assert broker.counts("plain") == Counts()
    assert log[-1].kind is EventKind.RECEIVED_AND_DELETED


# Locks


def test_a_lock_ends_after_its_duration_and_counts_as_a_delivery(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", Message(b"x"))
    first = one(broker)
    assert first.locked_until == START + 30 * SECOND
    clock.advance(29 * SECOND)
    assert broker.receive("plain") == []
    clock.advance(SECOND)
    second = one(broker)
    assert second.delivery_count == 1
    for act in (
        broker.complete,
        broker.abandon,
        broker.release,
        broker.defer,
        broker.dead_letter,
        broker.renew_lock,
    ):
        with pytest.raises(MessageLockLost):
            act("plain", token(first))
    broker.complete("plain", token(second))
    assert broker.counts("plain") == Counts()


def test_a_renewed_lock_lasts_from_the_renewal(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", Message(b"x"))
    message = one(broker)
    clock.advance(20 * SECOND)
    assert broker.renew_lock("plain", token(message)) == START + 50 * SECOND
    clock.advance(29 * SECOND)
    assert broker.counts("plain").locked == 1
    clock.advance(SECOND)
    assert broker.counts("plain") == Counts(active=1)


def test_a_lock_belongs_to_its_entity(broker: Broker) -> None:
    broker.send("plain", Message(b"x"))
    with pytest.raises(MessageLockLost):
        broker.complete("other", token(one(broker)))


def test_abandoning_changes_properties(broker: Broker) -> None:
    broker.send("plain", Message(b"x", application_properties={"a": 1, "b": 1}))
    broker.abandon("plain", token(one(broker)), {"b": 2, "c": 3})
    assert one(broker).message.application_properties == {"a": 1, "b": 2, "c": 3}


# Dead letters


@pytest.mark.parametrize("fail", ["abandon", "lock"])
def test_after_max_delivery_count_deliveries_it_is_dead_lettered(
    broker: Broker, clock: MovableClock, fail: str
) -> None:
    [number] = broker.send("plain", Message(b"poison"))
    for count in range(3):
        message = one(broker)
        assert message.delivery_count == count
        if fail == "abandon":
            broker.abandon("plain", token(message))
        else:
            clock.advance(30 * SECOND)
    assert broker.receive("plain") == []
    dead = one(broker, "plain/$DeadLetterQueue")
    assert dead.message.application_properties["DeadLetterReason"] == "MaxDeliveryCountExceeded"
    assert (dead.sequence_number, dead.delivery_count, dead.dead_letter_source) == (number, 3, "plain")


def test_a_dead_letter_keeps_what_it_had_and_says_why(broker: Broker) -> None:
    broker.send("plain", Message(b"bad", message_id="m", application_properties={"mine": 1}))
    broker.dead_letter("plain", token(one(broker)), "Bad", "really", {"more": 2})
    message = one(broker, "plain/$DeadLetterQueue").message
    assert (message.body, message.message_id) == (b"bad", "m")
    assert message.application_properties == {
        "mine": 1,
        "more": 2,
        "DeadLetterReason": "Bad",
        "DeadLetterErrorDescription": "really",
    }


def test_a_dead_letter_stays_however_often_it_is_tried(broker: Broker, clock: MovableClock) -> None:
    broker.send("aging", Message(b"bad", time_to_live=MINUTE))
    broker.dead_letter("aging", token(one(broker, "aging")))
    for _ in range(20):
        broker.abandon("aging/$DeadLetterQueue", token(one(broker, "aging/$DeadLetterQueue")))
    clock.advance(100 * HOUR)
    dead = one(broker, "aging/$DeadLetterQueue")
    with pytest.raises(NotAllowed):
        broker.dead_letter("aging/$DeadLetterQueue", token(dead))


def test_dead_letters_are_forwarded_as_new_messages(
    broker: Broker, clock: MovableClock, log: list[Observation]
) -> None:
    broker.send("parked", Message(b"before"))
    [number] = broker.send("forwarding", Message(b"bad", message_id="m", application_properties={"mine": 1}))
    clock.advance(HOUR)
    broker.dead_letter("forwarding", token(one(broker, "forwarding")), "Bad")
    assert broker.counts("forwarding") == Counts()
    _, parked = broker.receive("parked", 2)
    assert (parked.sequence_number, parked.enqueued_sequence_number) == (2, number)
    assert (parked.delivery_count, parked.dead_letter_source) == (0, "forwarding")
    assert parked.enqueued_at == START + HOUR
    assert parked.message.application_properties == {"mine": 1, "DeadLetterReason": "Bad"}
    assert [(each.kind, each.detail) for each in log[-6:-2]] == [
        (EventKind.DEAD_LETTERED, "Bad"),
        (EventKind.FORWARDED, "parked"),
        (EventKind.ACCEPTED, ""),
        (EventKind.ENQUEUED, ""),
    ]


def test_a_reason_has_its_limit(broker: Broker) -> None:
    broker.send("plain", Message(b"bad"))
    message = one(broker)
    with pytest.raises(InvalidArgument):
        broker.dead_letter("plain", token(message), "x", "y" * 4097)
    broker.dead_letter("plain", token(message), "x", "y" * 4096)


# Deferring


def test_a_deferred_message_comes_by_number_only(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", Message(b"later"), Message(b"now"))
    later = one(broker)
    broker.defer("plain", token(later), {"why": "busy"})
    clock.advance(HOUR)
    assert [each.message.body for each in broker.receive("plain", 5)] == [b"now"]
    [again] = broker.receive_deferred("plain", [later.sequence_number])
    assert again.message.application_properties == {"why": "busy"}
    with pytest.raises(MessageNotFound):
        broker.receive_deferred("plain", [later.sequence_number])
    broker.complete("plain", token(again))
    assert broker.counts("plain").deferred == 0


def test_deferred_messages_are_received_all_or_none(broker: Broker) -> None:
    numbers = broker.send("plain", Message(b"a"), Message(b"b"))
    broker.defer("plain", token(one(broker)))
    with pytest.raises(MessageNotFound):
        broker.receive_deferred("plain", numbers)
    assert broker.counts("plain") == Counts(active=1, deferred=1)


def test_an_old_deferred_message_goes_when_it_is_asked_for(broker: Broker, clock: MovableClock) -> None:
    [number] = broker.send("aging", Message(b"later"))
    broker.defer("aging", token(one(broker, "aging")))
    clock.advance(HOUR)
    assert broker.counts("aging") == Counts(deferred=1)
    with pytest.raises(MessageNotFound):
        broker.receive_deferred("aging", [number])
    assert broker.counts("aging") == Counts(dead_letter=1)


# Schedules


def test_a_scheduled_message_is_enqueued_anew_when_due(broker: Broker, clock: MovableClock) -> None:
    [scheduled] = broker.send("plain", Message(b"later", scheduled_enqueue_time=START + HOUR))
    broker.send("plain", Message(b"now"))
    assert broker.counts("plain") == Counts(active=1, scheduled=1)
    clock.advance(3 * HOUR)
    now, later = broker.receive("plain", 2)
    assert (now.message.body, later.message.body) == (b"now", b"later")
    assert later.sequence_number > now.sequence_number > scheduled
    assert later.enqueued_at == START + HOUR


def test_what_is_scheduled_can_be_taken_back_all_or_none(broker: Broker, clock: MovableClock) -> None:
    due = START + HOUR
    numbers = broker.schedule("plain", *(Message(body, scheduled_enqueue_time=due) for body in (b"a", b"b")))
    with pytest.raises(MessageNotFound):
        broker.cancel_scheduled("plain", [*numbers, 99])
    broker.cancel_scheduled("plain", numbers[:1])
    clock.advance(HOUR)
    assert [each.message.body for each in broker.receive("plain", 5)] == [b"b"]
    with pytest.raises(MessageNotFound):
        broker.cancel_scheduled("plain", numbers[1:])


def test_scheduling_needs_a_time(broker: Broker) -> None:
    with pytest.raises(InvalidArgument):
        broker.schedule("plain", Message(b"when?"))


def test_a_topic_distributes_when_the_schedule_is_due(broker: Broker, clock: MovableClock) -> None:
    broker.send("news", Message(b"later", scheduled_enqueue_time=START + HOUR))
    assert broker.counts("news") == Counts(scheduled=1)
    assert broker.receive("news/Subscriptions/all") == []
    clock.advance(HOUR)
    assert one(broker, "news/Subscriptions/all").message.body == b"later"


# Duplicates


def test_a_duplicate_is_accepted_and_dropped_within_the_window(
    broker: Broker, clock: MovableClock, log: list[Observation]
) -> None:
    for body in (b"first", b"second"):
        broker.send("deduplicated", Message(body, message_id="m"))
        clock.advance(9 * MINUTE)
    broker.complete("deduplicated", token(one(broker, "deduplicated")))
    broker.send("deduplicated", Message(b"third", message_id="m"))
    assert one(broker, "deduplicated").message.body == b"third"
    assert Counter(each.kind for each in log)[EventKind.DUPLICATE_DROPPED] == 1


def test_a_batch_may_hold_a_duplicate_of_itself(broker: Broker) -> None:
    broker.send("deduplicated", Message(b"a", message_id="m"), Message(b"b", message_id="m"))
    assert broker.counts("deduplicated").active == 1


# Age


@pytest.mark.parametrize(
    ("entity", "lifetime", "gone_after"),
    [
        ("plain", MINUTE, MINUTE),
        ("aging", None, 5 * MINUTE),
        ("aging", MINUTE, MINUTE),
        ("aging", HOUR, 5 * MINUTE),
        ("dropping", None, 5 * MINUTE),
    ],
)
def test_a_message_goes_at_the_shorter_of_both_ages(
    broker: Broker, clock: MovableClock, entity: str, lifetime: timedelta | None, gone_after: timedelta
) -> None:
    broker.send(entity, Message(b"x", time_to_live=lifetime))
    clock.advance(gone_after - SECOND)
    assert broker.counts(entity).active == 1
    clock.advance(SECOND)
    counts = broker.counts(entity)
    assert (counts.active, counts.dead_letter) == (0, 1 if entity == "aging" else 0)


def test_what_grew_too_old_is_dead_lettered_with_its_reason(broker: Broker, clock: MovableClock) -> None:
    broker.send("aging", Message(b"x"))
    clock.advance(HOUR)
    dead = one(broker, "aging/$DeadLetterQueue")
    assert dead.message.application_properties["DeadLetterReason"] == "TTLExpiredException"


def test_age_is_counted_from_when_a_schedule_was_due(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", Message(b"x", time_to_live=MINUTE, scheduled_enqueue_time=START + HOUR))
    clock.advance(HOUR + 30 * SECOND)
    assert broker.counts("plain").active == 1
    clock.advance(MINUTE)
    assert broker.counts("plain") == Counts()


def test_what_lives_longer_than_the_calendar_lives_for_ever(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", Message(b"x", time_to_live=timedelta.max))
    clock.advance(timedelta(days=365 * 1000))
    assert one(broker).expires_at is None


# Topics and forwarding


def test_subscriptions_get_copies_of_their_own(broker: Broker) -> None:
    for body, subject in ((b"red", "news"), (b"blue", "news"), (b"red", "other")):
        broker.send("news", Message(body, subject=subject, application_properties={"colour": body.decode()}))
    broker.complete("news/Subscriptions/all", token(one(broker, "news/Subscriptions/all")))
    left = {name: broker.receive(f"news/Subscriptions/{name}", 5) for name in ("all", "red", "about")}
    assert {name: [each.message.body for each in messages] for name, messages in left.items()} == {
        "all": [b"blue", b"red"],
        "red": [b"red"],
        "about": [b"blue"],
    }


def test_a_forwarding_queue_forwards_at_once(broker: Broker) -> None:
    broker.send("onward", Message(b"x", message_id="m"))
    assert one(broker, "plain").message.message_id == "m"


# Peeking


def test_peeking_shows_every_state_in_order_and_touches_nothing(broker: Broker, clock: MovableClock) -> None:
    broker.send("plain", *(Message(b"%d" % number) for number in range(3)))
    broker.schedule("plain", Message(b"3", scheduled_enqueue_time=START + HOUR))
    first, second = broker.receive("plain", 2)
    broker.defer("plain", token(second))
    peeked = broker.peek("plain", 0, 10)
    assert [(each.sequence_number, each.state) for each in peeked] == [
        (1, MessageState.ACTIVE),
        (2, MessageState.DEFERRED),
        (3, MessageState.ACTIVE),
        (4, MessageState.SCHEDULED),
    ]
    assert [each.sequence_number for each in broker.peek("plain", 3, 1)] == [3]
    assert broker.peek("plain", 5, 10) == []
    broker.complete("plain", token(first))
    assert clock.now() == START


def test_dead_letters_are_peeked_in_order_of_their_numbers(broker: Broker) -> None:
    broker.send("plain", Message(b"a"), Message(b"b"), Message(b"c"))
    for message in reversed(broker.receive("plain", 3)):
        broker.dead_letter("plain", token(message))
    assert [each.sequence_number for each in broker.peek("plain/$DeadLetterQueue", 0, 9)] == [1, 2, 3]


# Time, observation, threads


def test_the_next_event_is_known(broker: Broker, clock: MovableClock) -> None:
    assert broker.next_event() is None
    broker.send("plain", Message(b"x", time_to_live=HOUR))
    assert broker.next_event() == START + HOUR
    broker.schedule("plain", Message(b"y", scheduled_enqueue_time=START + MINUTE))
    message = one(broker)
    assert broker.next_event() == START + 30 * SECOND
    broker.complete("plain", token(message))
    assert broker.next_event() == START + MINUTE
    clock.advance(MINUTE)
    broker.catch_up()
    assert broker.next_event() is None


def test_a_jump_in_time_lets_things_happen_in_their_order(
    broker: Broker, clock: MovableClock, log: list[Observation]
) -> None:
    broker.send("aging", Message(b"locked"))
    one(broker, "aging")
    broker.schedule("aging", Message(b"later", scheduled_enqueue_time=START + 30 * SECOND))
    log.clear()
    clock.advance(HOUR)
    broker.catch_up()
    assert [(each.kind, each.at - START) for each in log] == [
        (EventKind.ENQUEUED, 30 * SECOND),
        (EventKind.LOCK_EXPIRED, MINUTE),
        (EventKind.EXPIRED, 5 * MINUTE),
        (EventKind.DEAD_LETTERED, 5 * MINUTE),
        (EventKind.EXPIRED, 5 * MINUTE + 30 * SECOND),
        (EventKind.DEAD_LETTERED, 5 * MINUTE + 30 * SECOND),
    ]


def test_everything_that_happens_is_observed(broker: Broker, log: list[Observation]) -> None:
    broker.send("plain", Message(b"x"))
    for decide in (broker.abandon, broker.release, broker.complete):
        decide("plain", token(one(broker)))
    assert [each.kind for each in log] == [
        EventKind.ACCEPTED,
        EventKind.ENQUEUED,
        EventKind.LOCKED,
        EventKind.ABANDONED,
        EventKind.LOCKED,
        EventKind.RELEASED,
        EventKind.LOCKED,
        EventKind.COMPLETED,
    ]
    assert {each.entity for each in log} == {"plain"}


def test_observing_can_be_ended(broker: Broker) -> None:
    seen: list[Observation] = []
    woken: list[str] = []
    ends = [broker.observe(seen.append), broker.on_available(woken.append)]
    broker.send("plain", Message(b"x"))
    for end in ends:
        end()
        end()
    broker.send("plain", Message(b"y"))
    assert (len(seen), woken) == (2, ["plain"])


def test_a_message_that_becomes_available_wakes(broker: Broker, clock: MovableClock) -> None:
    woken: list[str] = []
    broker.on_available(woken.append)
    broker.send("plain", Message(b"x"))
    broker.abandon("plain", token(one(broker)))
    one(broker)
    clock.advance(HOUR)
    broker.catch_up()
    broker.dead_letter("plain", token(one(broker)))
    assert woken == ["plain", "plain", "plain", "plain/$DeadLetterQueue"]


def test_many_threads_share_a_broker(configuration: Configuration) -> None:
    """Each message is completed exactly once, however many receive."""
    broker = Broker(configuration)
    completed: Counter[bytes] = Counter()
    lock = threading.Lock()

    def work() -> None:
        while messages := broker.receive("other", 3):
            for message in messages:
                broker.complete("other", token(message))
                with lock:
                    completed[message.message.body] += 1  # type: ignore[index]

    broker.send("other", *(Message(b"%d" % number) for number in range(2000)))
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(work) for _ in range(8)]:
            each.result(30)
    assert len(completed) == 2000
    assert set(completed.values()) == {1}
