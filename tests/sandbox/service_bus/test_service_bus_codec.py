"""Messages from and to their bytes."""

import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from amqp_client import section
from azure.servicebus._pyamqp._decode import decode_payload
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.service_bus import BrokeredMessage, Message, MessageState
from sandbox.service_bus.amqp.encoding import Int, Symbol, Timestamp, UByte, UInt
from sandbox.service_bus.codec import BATCH_FORMAT, decode_message, decode_transfer, encode_message
from sandbox.service_bus.errors import InvalidArgument
from sandbox.service_bus.messages import AmqpData, AmqpSequence, AmqpValue

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def brokered(message: Message, **more: object) -> BrokeredMessage:
    return BrokeredMessage(message, "q", 7, 7, NOW, 2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [
        Message(),
        Message(b"\x00\x53\x75 not quite a message"),
        Message(b"x" * 250_000),
        Message(AmqpValue({"a": [1, None]})),
        Message(AmqpSequence(((1, "two"),))),
        Message(AmqpSequence(((1, 2), (3,)))),
        Message(AmqpData((b"first", b"", b"third"))),
        Message(None),
        Message(
            b"x", message_id=uuid.UUID(int=5), correlation_id="c", subject="s", to="t", content_type="c/t"
        ),
        Message(b"x", reply_to="r", reply_to_session_id="rs", session_id="s", partition_key="p"),
        Message(b"x", time_to_live=timedelta(days=30), scheduled_enqueue_time=NOW),
        Message(
            b"x",
            application_properties={"text": "ü", "none": None, "uuid": uuid.UUID(int=1), "bytes": b"\xff"},
        ),
        Message(b"x", other={"priority": UByte(7), "annotations": {"x-opt-mine": "kept"}}),
        Message(b"x", other={"delivery_annotations": {"mine": "kept"}}),
    ],
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    [decoded] = decode_transfer(encode_message(brokered(message)))
    assert decoded == message


def test_what_was_sent_in_this_process_may_have_names_of_an_enumeration() -> None:
    class Name(StrEnum):
        OURS = "ours"

    message = Message(
        b"x",
        message_id=Name.OURS,
        subject=Name.OURS,
        content_type=Name.OURS,
        application_properties={"a": Name.OURS},
    )
    [decoded] = decode_transfer(encode_message(brokered(message)))
    assert decoded == message


def test_numbers_keep_their_types() -> None:
    properties = {"int": Int(1), "long": 1, "double": 0.5, "time": Timestamp(5)}
    [decoded] = decode_transfer(encode_message(brokered(Message(application_properties=properties))))
    types = {name: type(value) for name, value in decoded.application_properties.items()}
    assert types == {"int": Int, "long": int, "double": float, "time": Timestamp}


LOCKED = brokered(
    Message(b"x"),
    state=MessageState.DEFERRED,
    lock_token=uuid.UUID(int=1),
    locked_until=NOW + timedelta(minutes=1),
    dead_letter_source="source",
)


def test_the_broker_sets_its_own_annotations() -> None:
    """Read by the decoder of Microsoft's Python library, an independent one."""
    message = decode_payload(memoryview(encode_message(LOCKED)))
    assert message.header is not None
    assert message.header.delivery_count == 2
    assert message.delivery_annotations == {b"x-opt-lock-token": uuid.UUID(int=1)}
    assert message.message_annotations == {
        b"x-opt-sequence-number": 7,
        b"x-opt-enqueued-time": NOW.timestamp() * 1000,
        b"x-opt-locked-until": (NOW + timedelta(minutes=1)).timestamp() * 1000,
        b"x-opt-deadletter-source": b"source",
    }


def test_a_state_has_32_bits_and_is_only_stated_where_it_is_asked_for() -> None:
    """The .NET client fails on 64 bits."""
    assert b"\x12x-opt-message-state" not in encode_message(LOCKED)
    assert b"\xa3\x13x-opt-message-state\x54\x01" in encode_message(LOCKED, with_state=True)


def test_without_a_lock_the_delivery_annotations_are_an_empty_map() -> None:
    message = decode_payload(memoryview(encode_message(brokered(Message(b"x")))))
    assert message.delivery_annotations == {}


def test_sections_are_accepted_in_any_order() -> None:
    """Microsoft's Python library writes delivery annotations behind the body."""
    message = decode_message(
        section(0x75, b"body")
        + section(0x73, ["id"])
        + section(0x71, {Symbol("mine"): 1})
        + section(0x70, [True])
    )
    assert (message.body, message.message_id) == (b"body", "id")
    assert message.other == {"durable": True, "delivery_annotations": {"mine": 1}}


def test_maps_may_have_binary_keys() -> None:
    message = decode_message(
        section(0x72, {b"x-opt-mine": 1}) + section(0x74, {b"key": 2}) + section(0x77, {b"k": 3})
    )
    assert message.other["annotations"] == {"x-opt-mine": 1}
    assert message.application_properties == {"key": 2}
    assert message.body == AmqpValue({b"k": 3})


def test_what_was_sent_in_process_can_be_sent_on() -> None:
    """A message that was never encoded may hold what AMQP does not have."""
    message = Message(
        b"x", application_properties={"when": NOW, "state": MessageState.ACTIVE, "path": Path("a")}
    )
    [decoded] = decode_transfer(encode_message(brokered(message)))
    assert decoded.application_properties == {"when": NOW.timestamp() * 1000, "state": 0, "path": "a"}


def test_a_sender_cannot_state_what_is_the_brokers() -> None:
    claimed = {"x-opt-sequence-number": 99, "x-opt-lock-token": "mine", "x-opt-mine": 1}
    message = decode_message(section(0x71, claimed) + section(0x72, claimed))
    assert message.other == {"annotations": {"x-opt-mine": 1}, "delivery_annotations": {"x-opt-mine": 1}}


@pytest.mark.parametrize("lifetime", [2**32 - 1, 1000])
def test_lifetimes_come_from_the_header(lifetime: int) -> None:
    message = decode_message(section(0x70, [None, None, UInt(lifetime)]))
    assert message.time_to_live == timedelta(milliseconds=lifetime)


def test_a_lifetime_beyond_the_header_comes_from_the_properties() -> None:
    created, expires = (Timestamp(int(each.timestamp() * 1000)) for each in (NOW, NOW + timedelta(days=100)))
    properties = [*[None] * 8, expires, created]
    assert decode_message(section(0x73, properties)).time_to_live == timedelta(days=100)


def test_a_batch_is_known_by_its_message_format() -> None:
    parts = [encode_message(brokered(Message(b"%d" % number, message_id=f"{number}"))) for number in range(3)]
    batch = b"".join(section(0x75, part) for part in parts)
    assert [each.message_id for each in decode_transfer(batch, BATCH_FORMAT)] == ["0", "1", "2"]
    assert [each.body for each in decode_transfer(batch)] == [AmqpData(tuple(parts))]


@example(b"s\x00\x11\x00\x00")  # a character beyond Unicode
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x00\x53" + tail))
def test_no_bytes_break_the_decoder(noise: bytes) -> None:
    """Any bytes are messages or a refusal, never another error."""
    with suppress(InvalidArgument):
        decode_transfer(noise)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=15,
)


@given(st.lists(st.tuples(st.integers(0x6F, 0x79), VALUES), max_size=4))
def test_no_values_break_the_decoder(sections: list[tuple[int, Any]]) -> None:
    """The same where the encoding is right and the contents are not."""
    with suppress(InvalidArgument):
        decode_transfer(b"".join(section(code, value) for code, value in sections))
