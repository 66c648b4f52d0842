from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from azure.functions.servicebus import ServiceBusMessage
from hypothesis import given
from hypothesis import strategies as st

from shared import message as names
from shared.errors import DataverseThrottled, DataverseUnreachable, OpportunityStillOpen, Rhythm
from shared.message import Chain, Message

if TYPE_CHECKING:
    import azure.functions

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UNREACHABLE = DataverseUnreachable("No connection.")
STILL_OPEN = OpportunityStillOpen("It is open.")


def message(enqueued_at: datetime = NOON, **properties: object) -> Message:
    return Message(b"{}", "win-1", 7, enqueued_at, None, None, None, properties)


def delivered(chain: Chain, error: DataverseUnreachable | OpportunityStillOpen, at: datetime) -> Chain:
    """Return the place of the copy that was scheduled and delivered at `at`."""
    return Chain.of(message(at, **chain.next(error, backoff=chain.backoff + 1).properties(error)))


# ---------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("attempt", "copy", "parked"),
    [
        (0, "151dc9b9-edfd-52dd-a10b-c387f3d0441e", "42524a2f-ba14-544b-92bc-5a80661e396b"),
        (1, "76c1f23a-dd01-5c94-8e24-496ef7a4b087", "4eb13fc6-e2e7-5530-b680-7cfa073016f9"),
        (57, "32156373-ac6b-568b-b3a8-928a4b743bfa", "587f9f99-bdc3-52ac-b213-a04114756322"),
    ],
)
def test_derived_message_ids_are_golden(attempt: int, copy: str, parked: str) -> None:
    chain = Chain("win-1", attempt, 0, NOON, None, NOON, NOON)
    assert (chain.message_id, chain.parked_message_id) == (copy, parked), (
        "The ids of copies have changed. While the new version is rolled out, a copy that the old one has scheduled "
        "and one that the new one schedules for the same delivery are two messages to duplicate detection: both are "
        "handled. Do not change how they are derived."
    )


def test_property_names_are_golden() -> None:
    assert {
        "InvoicingRoot",
        "InvoicingAttempt",
        "InvoicingBackoff",
        "InvoicingFirstSeen",
        "InvoicingRhythm",
        "InvoicingRhythmSince",
        "InvoicingReason",
        "InvoicingOriginalMessageId",
        "DeadLetterReason",
        "DeadLetterErrorDescription",
    } == names.CHAIN_PROPERTIES | names.PARKED_PROPERTIES, (
        "A property has another name. Copies that are waiting carry the old one: they would begin a new chain, be "
        "tried for ever longer, and get message ids that duplicate detection does not know. Read the old name too."
    )


def test_a_copy_carries_its_place_in_plain_types() -> None:
    chain = Chain("win-1", 3, 2, NOON, Rhythm.LONG, NOON, NOON)
    assert chain.properties(UNREACHABLE) == {
        "InvoicingRoot": "win-1",
        "InvoicingAttempt": 3,
        "InvoicingBackoff": 2,
        "InvoicingFirstSeen": "2026-03-01T12:00:00+00:00",
        "InvoicingRhythm": "long",
        "InvoicingRhythmSince": "2026-03-01T12:00:00+00:00",
        "InvoicingReason": "DataverseUnreachable",
    }, "Copies that are waiting would be misread: keep what was written readable."


# ---------------------------------------------------------------------------------------------- the chain


def test_a_message_without_properties_is_a_root() -> None:
    assert Chain.of(message()) == Chain("win-1", 0, 0, NOON, None, NOON, NOON)


def test_a_root_without_message_id_is_known_by_the_brokers_own_number_and_time() -> None:
    anonymous = Message(b"{}", None, 7, NOON, None, None, None, {})
    assert Chain.of(anonymous).root == "7@2026-03-01T12:00:00+00:00"


def test_a_copy_is_the_next_of_its_chain() -> None:
    first = Chain.of(message())
    second = delivered(first, UNREACHABLE, NOON + timedelta(seconds=9))
    third = delivered(second, UNREACHABLE, NOON + timedelta(seconds=30))
    assert [chain.attempt for chain in (first, second, third)] == [0, 1, 2]
    assert [chain.backoff for chain in (first, second, third)] == [0, 1, 2]
    assert {chain.root for chain in (first, second, third)} == {"win-1"}
    assert [chain.age.total_seconds() for chain in (first, second, third)] == [0, 9, 30]
    assert len({chain.message_id for chain in (first, second, third)}) == 3
    assert len({chain.parked_message_id for chain in (first, second, third)} | {third.message_id}) == 4


def test_whoever_makes_a_copy_gives_it_the_same_id() -> None:
    """It may be sent twice: when the answer to the first send is lost, or by two who handle the same delivery."""
    once, again = (Chain.of(message()).next(UNREACHABLE, backoff=1) for _ in range(2))
    assert once.message_id == again.message_id


def test_the_age_in_a_rhythm_begins_when_the_rhythm_does() -> None:
    first = Chain.of(message())
    second = delivered(first, UNREACHABLE, NOON + timedelta(hours=2))
    assert second.age_in(Rhythm.LONG) == timedelta(hours=2)
    assert second.age_in(Rhythm.OPEN) == timedelta(0), "after an outage an open opportunity has all its time"
    third = delivered(second, STILL_OPEN, NOON + timedelta(hours=2, minutes=4))
    assert third.age_in(Rhythm.OPEN) == timedelta(minutes=4)
    fourth = delivered(third, STILL_OPEN, NOON + timedelta(hours=2, minutes=7))
    assert fourth.age_in(Rhythm.OPEN) == timedelta(minutes=7)
    fifth = delivered(fourth, UNREACHABLE, NOON + timedelta(hours=3))
    assert fifth.age_in(Rhythm.OPEN) == timedelta(0)
    assert fifth.age_in(Rhythm.LONG) == timedelta(minutes=53)
    assert fifth.age == timedelta(hours=3), "the age of the whole goes on"


def test_throttling_is_of_the_long_rhythm() -> None:
    chain = Chain.of(message()).next(DataverseThrottled("Too many.", retry_after=1), backoff=0)
    assert (chain.rhythm, chain.attempt, chain.backoff) == (Rhythm.LONG, 1, 0)


# ---------------------------------------------------------------------------------------------- strangers' properties


@pytest.mark.parametrize(
    "root", ["", None, 7, b"win-0", "half a \ud800", "line\nbreak", "x" * 129, ["win-0"], {"a": "b"}]
)
def test_a_root_that_no_message_id_could_be_is_not_taken(root: object) -> None:
    chain = Chain.of(message(InvoicingRoot=root))
    assert chain.root == "win-1"
    assert chain.message_id


@pytest.mark.parametrize("count", [None, -1, "3", 3.0, 2**31, 1_000_001, float("nan"), [1]])
def test_a_count_that_no_chain_could_have_is_not_taken(count: object) -> None:
    chain = Chain.of(message(InvoicingAttempt=count, InvoicingBackoff=count))
    assert (chain.attempt, chain.backoff) == (0, 0)


def test_the_last_count_is_followed_by_other_ids() -> None:
    """A number that stood still would give two copies one id: the second would be dropped, and the win lost."""
    chain = Chain.of(message(InvoicingAttempt=1_000_000))
    ids = set()
    for _ in range(5):
        chain = delivered(chain, UNREACHABLE, NOON)
        ids.add(chain.message_id)
    assert len(ids) == 5


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59+00:00", "2026-03-01T12:00:01Z"])
def test_a_time_to_come_is_now(time: str) -> None:
    """Otherwise the message would never grow old, and be tried for ever."""
    chain = Chain.of(message(InvoicingFirstSeen=time, InvoicingRhythmSince=time, InvoicingRhythm="long"))
    assert (chain.first_seen, chain.rhythm_since) == (NOON, NOON)


@pytest.mark.parametrize(
    "time", [None, "", "yesterday", 1772366400, "0001-01-01T00:00:00+14:00", b"2026-03-01T11:00:00Z"]
)
def test_what_is_no_time_is_not_taken(time: object) -> None:
    chain = Chain.of(message(InvoicingFirstSeen=time, InvoicingRhythmSince=time))
    assert (chain.first_seen, chain.rhythm_since) == (NOON, NOON)


@pytest.mark.parametrize("time", ["2026-03-01T11:00:00", "2026-03-01T11:00:00Z", "2026-03-01T12:00:00+01:00"])
def test_a_time_is_read_in_every_zone(time: str) -> None:
    assert Chain.of(message(InvoicingFirstSeen=time)).age == timedelta(hours=1)


@pytest.mark.parametrize("rhythm", [None, "", "LONG", "ever", 3, ["long"]])
def test_what_is_no_rhythm_is_not_taken(rhythm: object) -> None:
    assert Chain.of(message(InvoicingRhythm=rhythm)).rhythm is None


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


@given(st.dictionaries(st.sampled_from(sorted(names.CHAIN_PROPERTIES)), ANYTHING))
def test_no_property_makes_a_chain_fail_stand_still_or_live_for_ever(properties: dict[str, object]) -> None:
    chain = Chain.of(message(NOON, **properties))
    assert timedelta(0) <= chain.age_in(Rhythm.LONG) <= chain.seen - chain.rhythm_since
    copy = delivered(chain, UNREACHABLE, NOON + timedelta(days=4))
    assert copy.root == chain.root
    assert copy.message_id not in {chain.message_id, chain.parked_message_id}
    assert copy.age_in(Rhythm.LONG) >= timedelta(days=4)
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
        assert (
            Message.from_trigger(trigger(enqueued_time_utc=time)).enqueued_at.isoformat() == NOON.isoformat()
        )


def test_without_a_time_the_message_came_now() -> None:
    read = Message.from_trigger(trigger(enqueued_time_utc=None))
    assert abs(read.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)
