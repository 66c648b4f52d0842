"""Messages from and to their bytes."""

import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import proton
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.service_bus import BrokeredMessage, Message, MessageState
from sandbox.service_bus.codec import decode_message, decode_transfer, encode_message
from sandbox.service_bus.errors import InvalidArgument
from sandbox.service_bus.messages import AmqpSequence, AmqpValue

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
        Message(AmqpSequence((1, "two"))),
        Message(
            b"x", message_id=uuid.UUID(int=5), correlation_id="c", subject="s", to="t", content_type="c/t"
        ),
        Message(b"x", reply_to="r", reply_to_session_id="rs", session_id="s", partition_key="p"),
        Message(b"x", time_to_live=timedelta(days=30), scheduled_enqueue_time=NOW),
        Message(
            b"x",
            application_properties={"text": "ü", "none": None, "uuid": uuid.UUID(int=1), "bytes": b"\xff"},
        ),
        Message(b"x", other={"priority": proton.ubyte(7), "annotations": {"x-opt-mine": "kept"}}),
    ],
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    [decoded] = decode_transfer(encode_message(brokered(message)))
    assert decoded == message


def test_numbers_keep_their_types() -> None:
    properties = {"int": proton.int32(1), "long": 1, "double": 0.5, "time": proton.timestamp(5)}
    [decoded] = decode_transfer(encode_message(brokered(Message(application_properties=properties))))
    types = {name: type(value) for name, value in decoded.application_properties.items()}
    assert types == {"int": proton.int32, "long": int, "double": float, "time": proton.timestamp}


def test_the_broker_says_what_it_knows() -> None:
    """Read by Proton's own message class, which is not ours."""
    message = proton.Message()
    message.decode(
        encode_message(
            brokered(
                Message(b"x"),
                state=MessageState.DEFERRED,
                lock_token=uuid.UUID(int=1),
                locked_until=NOW + timedelta(minutes=1),
                dead_letter_source="source",
            )
        )
    )
    assert message.delivery_count == 2
    assert message.annotations == {
        "x-opt-sequence-number": 7,
        "x-opt-enqueued-time": NOW.timestamp() * 1000,
        "x-opt-message-state": 1,
        "x-opt-locked-until": (NOW + timedelta(minutes=1)).timestamp() * 1000,
        "x-opt-deadletter-source": "source",
    }


def test_what_was_sent_in_process_can_be_sent_on() -> None:
    """A message that never was on a wire may hold what AMQP does not have."""
    message = Message(
        b"x", application_properties={"when": NOW, "state": MessageState.ACTIVE, "path": Path("a")}
    )
    [decoded] = decode_transfer(encode_message(brokered(message)))
    assert decoded.application_properties == {"when": NOW.timestamp() * 1000, "state": 0, "path": "a"}


def test_a_sender_cannot_say_what_is_the_brokers() -> None:
    claimed = proton.Message(body=b"x", inferred=True)
    claimed.annotations = {"x-opt-sequence-number": 99, "x-opt-lock-token": "mine", "x-opt-mine": 1}
    message = decode_message(claimed.encode())
    assert message.other["annotations"] == {"x-opt-mine": 1}


@pytest.mark.parametrize("lifetime", [2**32 - 1, 1000])
def test_lifetimes_come_from_the_header(lifetime: int) -> None:
    sent = proton.Message(body=b"x", inferred=True)
    sent.ttl = lifetime / 1000
    assert decode_message(sent.encode()).time_to_live == timedelta(milliseconds=lifetime)


def test_a_lifetime_beyond_the_header_comes_from_the_properties() -> None:
    sent = proton.Message(body=b"x", inferred=True)
    sent.creation_time = NOW.timestamp()
    sent.expiry_time = (NOW + timedelta(days=100)).timestamp()
    assert decode_message(sent.encode()).time_to_live == timedelta(days=100)


def test_a_batch_is_told_from_a_body_of_bytes() -> None:
    parts = [encode_message(brokered(Message(b"%d" % number, message_id=f"{number}"))) for number in range(3)]
    assert [each.message_id for each in decode_transfer(b"".join(map(data, parts)))] == ["0", "1", "2"]
    assert [each.message_id for each in decode_transfer(data(parts[0]))] == ["0"]
    assert decode_message(data(b"\x00\x53\x75\xa0\x05x")).body == b"\x00\x53\x75\xa0\x05x"
    [split] = decode_transfer(data(b"first ") + data(b"second"))
    assert split.body == b"first second"


def data(content: bytes) -> bytes:
    """Return a data section."""
    return b"\x00\x53\x75\xb0" + len(content).to_bytes(4, "big") + content


@example(b"s\x00\x11\x00\x00")  # a character beyond Unicode
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x00\x53" + tail))
def test_no_bytes_break_the_decoder(noise: bytes) -> None:
    """Whatever comes is messages or a refusal, never another error."""
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
        decode_transfer(
            b"".join(encoded(proton.Described(proton.ulong(code), value)) for code, value in sections)
        )


def test_nesting_beyond_all_measure_is_refused() -> None:
    nested = b"\x45"
    for _ in range(30_000):
        nested = b"\xd0" + (len(nested) + 4).to_bytes(4, "big") + b"\0\0\0\1" + nested
        if len(nested) > 200_000:
            break
    with pytest.raises(InvalidArgument):
        decode_transfer(b"\x00\x53\x77" + nested)


def encoded(value: Any) -> bytes:  # noqa: ANN401 - Proton's types do not fit its own calls
    data = proton.Data()
    data.put_object(value)
    return bytes(data.encode())
