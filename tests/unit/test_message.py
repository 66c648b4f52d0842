from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from azure.functions.servicebus import ServiceBusMessage
from hypothesis import given
from hypothesis import strategies as st

from shared import message as names
from shared.clock import Deadline, SystemClock
from shared.errors import DataverseThrottled, DataverseUnreachable, OpportunityStillOpen, RetryPolicy
from shared.message import Delivery, Message, RetryState, log_suffix

if TYPE_CHECKING:
    import azure.functions

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UNREACHABLE = DataverseUnreachable("No connection.")
STILL_OPEN = OpportunityStillOpen("It is open.")
DELIVERY = "7@2026-03-01T12:00:00+00:00"


def message(
    enqueued_at: datetime = NOON,
    number: int | None = 7,
    /,
    **properties: Any,  # noqa: ANN401 - a sender may set anything
) -> Message:
    return Message(b"{}", "win-1", number, enqueued_at, None, None, None, properties)


def delivered(
    state: RetryState, error: DataverseUnreachable | OpportunityStillOpen, at: datetime
) -> RetryState:
    """Return the place of the copy that was scheduled and delivered at `at`."""
    return RetryState.of(message(at, **state.next(error, backoff=state.backoff + 1).properties(error)))


# ---------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("attempt", "copy", "parked"),
    [
        (0, "5d950742-e613-5725-a16e-29566c8b18fb", "02a2d61f-4f9d-5aae-85bf-422e650c897a"),
        (1, "36599fbd-ad10-520c-87d4-e2af20b6da12", "b6100226-4729-5226-9642-6034b8df3db9"),
        (57, "620c0a0a-ac60-5db3-9f38-6af70231540e", "ad3573e0-f058-5463-9737-ab96868ae851"),
    ],
)
def test_derived_message_ids_are_golden(attempt: int, copy: str, parked: str) -> None:
    state = RetryState(DELIVERY, "win-1", attempt, 0, NOON, None, NOON, NOON)
    assert (state.message_id, state.parked_message_id) == (copy, parked), (
        "The ids of retries have changed. While the new version is rolled out, a retry that the old one has scheduled "
        "and one that the new one schedules for the same delivery are two messages to duplicate detection: both are "
        "processed. Do not change how they are derived."
    )


def test_a_copy_carries_its_place_in_plain_types() -> None:
    unreachable = DataverseUnreachable(f"No {'x' * 200}")
    state = RetryState(DELIVERY, "win-1", 3, 2, NOON, RetryPolicy.OUTAGE, NOON, NOON)
    written = {
        "InvoicingRoot": "win-1",
        "InvoicingAttempt": 3,
        "InvoicingBackoff": 2,
        "InvoicingFirstSeen": "2026-03-01T12:00:00+00:00",
        "InvoicingRhythm": "long",
        "InvoicingRhythmSince": "2026-03-01T12:00:00+00:00",
        "InvoicingReason": "DataverseUnreachable",
        "InvoicingDescription": f"No {'x' * 197}",
    }
    assert state.properties(unreachable) == written, (
        "Copies that are waiting carry the old names and values: they would be misread, begin a new state, be tried "
        "for ever longer, and get message ids that duplicate detection does not know. Read what was written too."
    )
    assert written.keys() == names.RETRY_PROPERTIES
    parked = {"InvoicingOriginalMessageId", "DeadLetterReason", "DeadLetterErrorDescription"}
    assert parked == names.PARKED_PROPERTIES, "Parked messages carry the old name: read it too."


# ---------------------------------------------------------------------------------------------- the state


def test_a_message_without_properties_is_a_root() -> None:
    assert RetryState.of(message()) == RetryState(DELIVERY, DELIVERY, 0, 0, NOON, None, NOON, NOON)


@pytest.mark.parametrize(
    ("number", "enqueued_at"), [(8, NOON), (7, NOON + timedelta(hours=8))], ids=["number", "time"]
)
def test_messages_with_the_same_id_are_different_roots(number: int, enqueued_at: datetime) -> None:
    """Senders reuse ids, such as an account's: with one id, the retries of two wins would be one to the broker."""
    one, other = (RetryState.of(each) for each in (message(), message(enqueued_at, number)))
    assert one.root != other.root
    ids = [state.next(UNREACHABLE, backoff=0).message_id for state in (one, other)]
    assert ids[0] != ids[1]
    assert one.parked_message_id != other.parked_message_id


def test_a_forged_root_takes_no_id_of_another_messages_retry() -> None:
    """Otherwise a sender could have the retry of another win dropped as a duplicate."""
    victim = RetryState.of(message()).next(UNREACHABLE, backoff=1)
    forged = RetryState.of(message(NOON, 8, **RetryState.of(message()).properties(UNREACHABLE)))
    assert forged.root == victim.root
    assert forged.next(UNREACHABLE, backoff=1).message_id != victim.message_id


def test_without_a_sequence_number_no_two_deliveries_are_taken_for_one() -> None:
    one, other = (RetryState.of(message(NOON, None)) for _ in range(2))
    assert one.message_id != other.message_id
    assert one.root.endswith("@2026-03-01T12:00:00+00:00")


def test_a_retry_has_the_next_attempt() -> None:
    first = RetryState.of(message())
    second = delivered(first, UNREACHABLE, NOON + timedelta(seconds=9))
    third = delivered(second, UNREACHABLE, NOON + timedelta(seconds=30))
    assert [state.attempt for state in (first, second, third)] == [0, 1, 2]
    assert [state.backoff for state in (first, second, third)] == [0, 1, 2]
    assert {state.root for state in (first, second, third)} == {DELIVERY}
    assert [state.age.total_seconds() for state in (first, second, third)] == [0, 9, 30]
    assert len({state.message_id for state in (first, second, third)}) == 3
    assert len({state.parked_message_id for state in (first, second, third)} | {third.message_id}) == 4


def test_every_copy_of_a_retry_has_the_same_id() -> None:
    """It may be sent twice: the first confirmation is lost, or two workers have the same delivery."""
    once, again = (RetryState.of(message()).next(UNREACHABLE, backoff=1) for _ in range(2))
    assert once.message_id == again.message_id


def test_the_age_under_a_policy_begins_when_the_policy_does() -> None:
    first = RetryState.of(message())
    second = delivered(first, UNREACHABLE, NOON + timedelta(hours=2))
    assert second.age_in(RetryPolicy.OUTAGE) == timedelta(hours=2)
    assert second.age_in(RetryPolicy.OPEN) == timedelta(0), (
        "after an outage an open opportunity has all its time"
    )
    third = delivered(second, STILL_OPEN, NOON + timedelta(hours=2, minutes=4))
    assert third.age_in(RetryPolicy.OPEN) == timedelta(minutes=4)
    fourth = delivered(third, STILL_OPEN, NOON + timedelta(hours=2, minutes=7))
    assert fourth.age_in(RetryPolicy.OPEN) == timedelta(minutes=7)
    fifth = delivered(fourth, UNREACHABLE, NOON + timedelta(hours=3))
    assert fifth.age_in(RetryPolicy.OPEN) == timedelta(0)
    assert fifth.age_in(RetryPolicy.OUTAGE) == timedelta(minutes=53)
    assert fifth.age == timedelta(hours=3), "the age of the whole goes on"


def test_throttling_has_the_outage_policy() -> None:
    state = RetryState.of(message()).next(DataverseThrottled("Too many.", retry_after=1), backoff=0)
    assert (state.policy, state.attempt, state.backoff) == (RetryPolicy.OUTAGE, 1, 0)


# ---------------------------------------------------------------------------------------------- foreign properties

ROOTS = ("", None, 7, b"win-0", "half a \ud800", "line\nbreak", "x" * 129, ["win-0"], {"a": "b"})
COUNTS = (None, -1, "3", 3.0, 2**31, 1_000_001, float("nan"), [1])
TIMES = (None, "", "yesterday", 1772366400, "0001-01-01T00:00:00+14:00", b"2026-03-01T11:00:00Z")
# The message would never grow old, and be tried for ever.
TIMES_TO_COME = ("9999-12-31T23:59:59+00:00", "2026-03-01T12:00:01Z")
FOREIGN: dict[str, tuple[object, ...]] = {
    "InvoicingRoot": ROOTS,
    "InvoicingAttempt": COUNTS,
    "InvoicingBackoff": COUNTS,
    "InvoicingFirstSeen": TIMES + TIMES_TO_COME,
    "InvoicingRhythmSince": TIMES + TIMES_TO_COME,
    "InvoicingRhythm": (None, "", "LONG", "ever", 3, ["long"]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FOREIGN.items() for value in values]
)
def test_a_property_that_no_retry_carries_is_not_used(name: str, value: object) -> None:
    assert RetryState.of(message(**{name: value})) == RetryState.of(message())


def test_the_largest_values_that_a_retry_can_carry_are_read() -> None:
    state = RetryState.of(
        message(InvoicingRoot="x" * 128, InvoicingAttempt=1_000_000, InvoicingBackoff=1_000_000)
    )
    assert (state.root, state.attempt, state.backoff) == ("x" * 128, 1_000_000, 1_000_000)


def test_the_last_count_is_followed_by_other_ids() -> None:
    """A number that stood still would give two copies one id: the second would be dropped, and the win lost."""
    state = RetryState.of(message(InvoicingAttempt=1_000_000))
    ids = set()
    for _ in range(5):
        state = delivered(state, UNREACHABLE, NOON)
        ids.add(state.message_id)
    assert len(ids) == 5


@pytest.mark.parametrize("time", ["2026-03-01T11:00:00", "2026-03-01T11:00:00Z", "2026-03-01T12:00:00+01:00"])
def test_a_time_is_read_in_every_zone(time: str) -> None:
    assert RetryState.of(message(InvoicingFirstSeen=time)).age == timedelta(hours=1)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(names.RETRY_PROPERTIES)), ANYTHING))
def test_no_property_makes_retries_fail_stop_or_never_end(properties: dict[str, object]) -> None:
    state = RetryState.of(message(NOON, **properties))
    assert timedelta(0) <= state.age_in(RetryPolicy.OUTAGE) <= state.seen - state.policy_since
    copy = delivered(state, UNREACHABLE, NOON + timedelta(days=4))
    assert copy.root == state.root
    assert copy.root.isprintable()
    assert copy.message_id not in {state.message_id, state.parked_message_id}
    assert copy.age_in(RetryPolicy.OUTAGE) >= timedelta(days=4)
    assert copy.root.encode()


# ---------------------------------------------------------------------------------------------- the host's message


def trigger(**changes: object) -> azure.functions.ServiceBusMessage:
    values: dict[str, object] = {
        "body": b"body",
        "message_id": "win-1",
        "sequence_number": 7,
        "enqueued_time_utc": NOON.replace(tzinfo=None),
        "content_type": "application/json",
        "correlation_id": "correlation-1",
        "subject": "won",
        "application_properties": {"a": 1},
        "user_properties": {"a": 1},
    }
    return ServiceBusMessage(**{**values, **changes})  # type: ignore[arg-type] # what the host really sends


def test_the_hosts_message_is_read_as_it_is() -> None:
    assert Message.from_trigger(trigger()) == Message(
        b"body", "win-1", 7, NOON, "application/json", "correlation-1", "won", {"a": 1}
    )


def test_what_the_host_leaves_out_or_empty_is_missing() -> None:
    empty = {"message_id": "", "content_type": "", "correlation_id": "", "subject": ""}
    read = Message.from_trigger(trigger(**empty, sequence_number=None, application_properties=None))
    assert (read.message_id, read.content_type, read.correlation_id, read.subject) == (None,) * 4
    assert (read.sequence_number, read.properties) == (None, {})


def test_times_without_a_zone_are_utc_and_others_become_it() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=-7)))
    for time in (NOON, NOON.replace(tzinfo=None), elsewhere):
        read = Message.from_trigger(trigger(enqueued_time_utc=time))
        assert read.enqueued_at.isoformat() == NOON.isoformat()


def test_without_a_time_the_message_came_now() -> None:
    read = Message.from_trigger(trigger(enqueued_time_utc=None))
    assert abs(read.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)


# ---------------------------------------------------------------------------------------------- log lines


def delivery_of(message: Message) -> Delivery:
    return Delivery(message, RetryState.of(message), Deadline.after(SystemClock(), 60))


def test_a_delivery_says_where_it_stands() -> None:
    delivery = delivery_of(message(NOON - timedelta(seconds=90)))
    assert str(delivery) == "opportunity=unknown attempt=0 age=0s root=7@2026-03-01T11:58:30+00:00"
    retry = message(NOON, 8, **delivery.state.next(UNREACHABLE, backoff=1).properties(UNREACHABLE))
    delivery = replace(delivery, state=RetryState.of(retry), opportunity_id="o-1")
    assert str(delivery) == "opportunity=o-1 attempt=1 age=90s root=7@2026-03-01T11:58:30+00:00"


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("properties", "traceparent"),
    [
        ({}, None),
        ({"traceparent": TRACE}, TRACE),
        ({"Diagnostic-Id": TRACE}, TRACE),
        ({"traceparent": TRACE, "Diagnostic-Id": TRACE.replace("a", "b")}, TRACE),
        ({"traceparent": "nonsense", "Diagnostic-Id": TRACE}, TRACE),
        ({"traceparent": f"{TRACE}\n"}, None),
        ({"traceparent": TRACE.upper()}, None),
        ({"traceparent": TRACE.encode()}, None),
        ({"traceparent": f"00-{32 * '0'}-b7ad6b7169203331-01"}, None),
        ({"traceparent": f"00-0af7651916cd43dd8448eb211c80319c-{16 * '0'}-01"}, None),
        ({"Diagnostic-Id": "|0af7651916cd43dd.b7ad6b71."}, None),
    ],
)
def test_the_trace_context_of_a_message_is_the_senders_if_it_is_valid(
    properties: dict[str, object], traceparent: str | None
) -> None:
    assert replace(message(), properties=properties).traceparent == traceparent


def test_log_lines_about_other_systems_name_the_delivery_of_their_thread() -> None:
    delivery = delivery_of(message())
    of_other_threads: list[str] = []
    with replace(delivery, opportunity_id="o-1").named_in_log_lines():
        assert log_suffix() == f" opportunity=o-1 root={delivery.state.root}"
        with delivery.named_in_log_lines():
            assert log_suffix() == f" opportunity=unknown root={delivery.state.root}"
        other = threading.Thread(target=lambda: of_other_threads.append(log_suffix()))
        other.start()
        other.join()
        assert log_suffix().startswith(" opportunity=o-1 ")
    assert log_suffix() == ""
    assert of_other_threads == [""]
