"""Messages from and to AMQP 1.0, section by section.

A Service Bus batch is a body of many data sections, each a whole message, and a message must come out as it went in,
so the sections are taken one by one. Like Azure, this accepts them in any order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sandbox.service_bus.amqp.encoding import (
    Decimal,
    Described,
    Int,
    Malformed,
    Symbol,
    Timestamp,
    UInt,
    ULong,
    decode,
    encode,
    is_encodable,
)
from sandbox.service_bus.errors import InvalidArgument
from sandbox.service_bus.messages import AmqpData, AmqpSequence, AmqpValue, Body, BrokeredMessage, Message

HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, PROPERTIES = 0x70, 0x71, 0x72, 0x73
APPLICATION_PROPERTIES, DATA, SEQUENCE, VALUE, FOOTER = 0x74, 0x75, 0x76, 0x77, 0x78
# The message format of a transfer whose data sections are whole messages.
BATCH_FORMAT = 0x80013700
_MAX_UINT = 2**32 - 1
# A decimal's size, and the bits of its first byte that are set where it is not a plain number.
_DECIMAL128, _SPECIAL = 16, 0x60
_MILLISECOND = timedelta(milliseconds=1)
# Longer lifetimes than this mean "never"; the SDKs write .NET's longest TimeSpan or the largest uint.
_NEVER = timedelta(days=365 * 1000)
_EPOCH = datetime.fromtimestamp(0, UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)

# The properties section's fields in their order; those with a name here are the message's own, the others travel
# in `other` under "properties.<index>".
_NAMED = {
    0: "message_id",
    2: "to",
    3: "subject",
    4: "reply_to",
    5: "correlation_id",
    6: "content_type",
    10: "session_id",
    12: "reply_to_session_id",
}
_PROPERTY_COUNT = 13
_CORRELATION_ID, _CONTENT_TYPE = 5, 6
# What only the broker sets: what a sender wrote there is ignored.
_BROKERS_OWN = {
    "x-opt-sequence-number",
    "x-opt-enqueued-time",
    "x-opt-enqueue-sequence-number",
    "x-opt-locked-until",
    "x-opt-lock-token",
    "x-opt-message-state",
    "x-opt-deadletter-source",
    "x-opt-scheduled-enqueue-time",
    "x-opt-partition-key",
}

# What each section's value may be.
_LIST, _MAP = (list, type(None)), (dict, type(None))
_KINDS: Mapping[int, Any] = {
    HEADER: _LIST,
    DELIVERY_ANNOTATIONS: _MAP,
    MESSAGE_ANNOTATIONS: _MAP,
    PROPERTIES: _LIST,
    APPLICATION_PROPERTIES: _MAP,
    DATA: bytes,
    SEQUENCE: list,
    VALUE: object,
    FOOTER: _MAP,
}

_SECTION_HEADS = {code: b"\x00" + encode(ULong(code)) for code in _KINDS}

Section = tuple[int, Any]


def decode_transfer(encoded: bytes, message_format: int = 0) -> list[Message]:
    """Return the messages of one transfer: one, or those of a batch. Raises InvalidArgument where it is not AMQP."""
    if message_format != BATCH_FORMAT:
        return [decode_message(encoded)]
    return [decode_message(value) for code, value in _sections(encoded) if code == DATA]


def decode_message(encoded: bytes) -> Message:
    """Return the one message of these bytes, as management requests carry them."""
    return _message(_sections(encoded))


def encode_message(brokered: BrokeredMessage, *, with_state: bool = False) -> bytes:
    """Return a message as it is handed out, with the broker's header and annotations."""
    message = brokered.message
    other = message.other
    header = [other.get("durable"), other.get("priority"), None, None, UInt(brokered.delivery_count)]
    if message.time_to_live is not None:
        header[2] = UInt(min(message.time_to_live // _MILLISECOND, _MAX_UINT))
    sections: list[Section] = [
        (HEADER, header),
        (DELIVERY_ANNOTATIONS, _delivery_annotations(brokered)),
        (MESSAGE_ANNOTATIONS, _annotations(brokered, with_state=with_state)),
        (PROPERTIES, _properties(message)),
    ]
    if message.application_properties:
        properties = {key: _encodable(value) for key, value in message.application_properties.items()}
        sections.append((APPLICATION_PROPERTIES, properties))
    sections += _body_sections(message.body)
    if footer := other.get("footer"):
        sections.append((FOOTER, footer))
    return _encode(sections)


def _body_sections(body: Body) -> list[Section]:
    match body:
        case None:
            return []
        case AmqpValue(value):
            return [(VALUE, value)]
        case AmqpSequence(sequences):
            return [(SEQUENCE, list(each)) for each in sequences]
        case AmqpData(parts):
            return [(DATA, part) for part in parts]
    return [(DATA, body)]


def encode_reply(
    body: Any,  # noqa: ANN401 - any AMQP value
    *,
    correlation_id: Any,  # noqa: ANN401 - echoed in the request's own type
    properties: Mapping[str, Any],
) -> bytes:
    """Return a response of a node that takes requests."""
    fields: list[Any] = [None] * _PROPERTY_COUNT
    fields[_CORRELATION_ID] = correlation_id
    return _encode([(PROPERTIES, fields), (APPLICATION_PROPERTIES, dict(properties)), (VALUE, body)])


def to_timestamp(at: datetime) -> Timestamp:
    """Return a time in AMQP's form: milliseconds since 1970."""
    return Timestamp((at - _EPOCH) // _MILLISECOND)


def with_text_keys(names: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Return a map with texts as keys, where some clients write bytes."""
    return {
        key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): value
        for key, value in (names or {}).items()
    }


def _encode(sections: Iterable[Section]) -> bytes:
    return b"".join([_SECTION_HEADS[code] + encode(value) for code, value in sections])


def _sections(encoded: bytes) -> Iterator[Section]:
    """Yield the sections' codes and values; raise InvalidArgument where the bytes are no message."""
    at = 0
    while at < len(encoded):
        try:
            section, at = decode(encoded, at)
        except Malformed as error:
            raise InvalidArgument("the message is not encoded as AMQP 1.0") from error
        code = section.descriptor if isinstance(section, Described) else None
        if not isinstance(code, int) or code not in _KINDS:
            raise InvalidArgument("the message has a section that AMQP 1.0 does not define")
        if not isinstance(section.value, _KINDS[code]):
            raise InvalidArgument(
                f"the message's section {code:#x} is of a type that AMQP 1.0 does not define for it"
            )
        yield code, section.value


def _message(sections: Iterable[Section]) -> Message:
    named: dict[str, Any] = {}
    other: dict[str, Any] = {}
    data: list[bytes] = []
    sequences: list[tuple[Any, ...]] = []
    named["body"] = None
    for code, value in sections:
        if code in _READERS:
            named |= _READERS[code](value, other)
        elif code == DATA:
            data.append(value)
        elif code == SEQUENCE:
            sequences.append(tuple(value))
    if data:
        named["body"] = data[0] if len(data) == 1 else AmqpData(tuple(data))
    elif sequences:
        named["body"] = AmqpSequence(tuple(sequences))
    return Message(**named, other=other)


def _read_header(value: list[Any], other: dict[str, Any]) -> dict[str, Any]:
    fields = [*(value or []), None, None, None]
    other |= {
        name: each for name, each in zip(("durable", "priority"), fields, strict=False) if each is not None
    }
    lifetime = _lifetime(fields[2])
    return {} if lifetime is None else {"time_to_live": lifetime}


def _lifetime(milliseconds: object) -> timedelta | None:
    if not isinstance(milliseconds, int) or milliseconds >= _NEVER // _MILLISECOND:
        return None
    return milliseconds * _MILLISECOND


def _read_annotations(value: dict[Any, Any], other: dict[str, Any]) -> dict[str, Any]:
    annotations = with_text_keys(value)
    named: dict[str, Any] = {}
    if isinstance(due := annotations.get("x-opt-scheduled-enqueue-time"), int):
        named["scheduled_enqueue_time"] = _datetime(due)
    if (key := annotations.get("x-opt-partition-key")) is not None:
        named["partition_key"] = str(key)
    _keep_annotations("annotations", value, other)
    return named


def _keep_annotations(name: str, value: dict[Any, Any], other: dict[str, Any]) -> dict[str, Any]:
    if rest := {key: each for key, each in with_text_keys(value).items() if key not in _BROKERS_OWN}:
        other[name] = rest
    return {}


def _read_properties(value: list[Any], other: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for index, field in enumerate(value or []):
        if field is None:
            continue
        if index in _NAMED:
            named[_NAMED[index]] = str(field) if index == _CONTENT_TYPE else field
        else:
            other[f"properties.{index}"] = field
    # The absolute expiry time and the creation time are how AMQP writes a lifetime beyond the header's 49 days.
    expiry, created = other.get("properties.8"), other.get("properties.9")
    if isinstance(expiry, int) and isinstance(created, int) and expiry > created:
        lifetime = _lifetime(expiry - created)
        if lifetime is not None:
            named["time_to_live"] = lifetime
    return named


def _read_footer(value: object, other: dict[str, Any]) -> dict[str, Any]:
    other["footer"] = value
    return {}


# Each returns the message's fields that the section holds, and puts into `other` what the broker only passes on.
_READERS: Mapping[int, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    HEADER: _read_header,
    DELIVERY_ANNOTATIONS: partial(_keep_annotations, "delivery_annotations"),
    MESSAGE_ANNOTATIONS: _read_annotations,
    PROPERTIES: _read_properties,
    APPLICATION_PROPERTIES: lambda value, _other: {"application_properties": with_text_keys(value)},
    VALUE: lambda value, _other: {"body": AmqpValue(value)},
    FOOTER: _read_footer,
}


def _properties(message: Message) -> list[Any]:
    fields = [
        getattr(message, _NAMED[index]) if index in _NAMED else message.other.get(f"properties.{index}")
        for index in range(_PROPERTY_COUNT)
    ]
    fields = [None if field is None else _encodable(field) for field in fields]
    if fields[_CONTENT_TYPE] is not None:
        fields[_CONTENT_TYPE] = Symbol(fields[_CONTENT_TYPE])
    return fields


def _delivery_annotations(brokered: BrokeredMessage) -> dict[Symbol, Any]:
    """Return the sender's own and the lock token; like Azure, an empty map rather than none."""
    annotations = {
        Symbol(key): each for key, each in brokered.message.other.get("delivery_annotations", {}).items()
    }
    if brokered.lock_token is not None:
        annotations[Symbol("x-opt-lock-token")] = brokered.lock_token
    return annotations


def _annotations(brokered: BrokeredMessage, *, with_state: bool) -> dict[Symbol, Any]:
    message = brokered.message
    annotations: dict[str, Any] = dict(message.other.get("annotations", {}))
    annotations["x-opt-sequence-number"] = brokered.sequence_number
    annotations["x-opt-enqueued-time"] = to_timestamp(brokered.enqueued_at)
    if with_state:
        # 32 bits: the .NET client fails on 64.
        annotations["x-opt-message-state"] = Int(brokered.state)
    if brokered.enqueued_sequence_number != brokered.sequence_number:
        annotations["x-opt-enqueue-sequence-number"] = brokered.enqueued_sequence_number
    if brokered.locked_until is not None:
        annotations["x-opt-locked-until"] = to_timestamp(brokered.locked_until)
    if brokered.dead_letter_source is not None:
        annotations["x-opt-deadletter-source"] = brokered.dead_letter_source
    if message.scheduled_enqueue_time is not None:
        annotations["x-opt-scheduled-enqueue-time"] = to_timestamp(message.scheduled_enqueue_time)
    if message.partition_key is not None:
        annotations["x-opt-partition-key"] = message.partition_key
    return {Symbol(key): value for key, value in annotations.items()}


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any value
    """Return a value that AMQP has: messages that were sent in this process may hold others."""
    if isinstance(value, Decimal):
        return _like_azure(value)
    if is_encodable(value):
        return value
    if isinstance(value, datetime):
        return to_timestamp(value)
    return int(value) if isinstance(value, int) else str(value)


def _like_azure(decimal: Decimal) -> Decimal:
    """Return a decimal of 16 bytes as Azure returns those of application properties.

    Azure reads them as .NET's decimals and writes them again, and its library puts the exponent's high bits two places
    further right than IEEE 754 does. Microsoft's Python library reads them there, so it cannot read what it wrote.
    """
    encoded = decimal.encoded
    if len(encoded) != _DECIMAL128 or encoded[0] & _SPECIAL == _SPECIAL:
        return decimal
    exponent = (encoded[0] & 0x7F) << 7 | encoded[1] >> 1
    return Decimal(bytes((encoded[0] & 0x80 | exponent >> 9, (exponent & 0x7F) << 1)) + encoded[2:])


def _datetime(milliseconds: int) -> datetime:
    """Read an AMQP time; one beyond the calendar is its end."""
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return _LATEST
