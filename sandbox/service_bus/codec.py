"""Messages from and to AMQP 1.0, section by section.

Proton's own `Message` knows one body section and forgets which fields were absent; Service Bus batches are many
data sections, and a message must come out as it went in. So the sections are taken one by one, with Proton's
`Data` doing the encoding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from proton import UNDESCRIBED, Array, Data, Described, ProtonException, symbol, timestamp, uint, ulong

from sandbox.service_bus.errors import InvalidArgument
from sandbox.service_bus.messages import AmqpSequence, AmqpValue, BrokeredMessage, Message

HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, PROPERTIES = 0x70, 0x71, 0x72, 0x73
APPLICATION_PROPERTIES, DATA, SEQUENCE, VALUE, FOOTER = 0x74, 0x75, 0x76, 0x77, 0x78
_MAX_UINT = 2**32 - 1
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
_CONTENT_TYPE = 6
# What the broker sets itself, whatever the sender wrote there.
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

Section = tuple[int, Any]


def decode_transfer(encoded: bytes) -> list[Message]:
    """Return the messages of one transfer: one, or those of a batch.

    A batch's message-format number is not passed on by Proton, so a batch is known by its shape: a body of data
    sections of which each is a whole AMQP message itself. Raises InvalidArgument where it is not AMQP.
    """
    sections = list(_sections(encoded))
    bodies = [value for code, value in sections if code == DATA]
    if bodies and all(body[:2] == b"\x00\x53" for body in bodies):
        try:
            return [_message(_sections(body)) for body in bodies]
        except InvalidArgument:
            # A body of bytes that only began like a message: it is one message after all.
            return [_message(sections)]
    return [_message(sections)]


def decode_message(encoded: bytes) -> Message:
    """Return the one message of these bytes, as management requests carry them."""
    return _message(_sections(encoded))


def encode_message(brokered: BrokeredMessage, *, peeked: bool = False) -> bytes:
    """Return a message as it is handed out, with the broker's header and annotations."""
    message = brokered.message
    other = message.other
    header = [other.get("durable"), other.get("priority"), None, None, uint(brokered.delivery_count)]
    if message.time_to_live is not None:
        header[2] = uint(min(message.time_to_live // _MILLISECOND, _MAX_UINT))
    sections: list[Section] = [
        (HEADER, header),
        (MESSAGE_ANNOTATIONS, _annotations(brokered, peeked=peeked)),
        (PROPERTIES, _properties(message)),
    ]
    if message.application_properties:
        properties = {key: _encodable(value) for key, value in message.application_properties.items()}
        sections.append((APPLICATION_PROPERTIES, properties))
    body = message.body
    if isinstance(body, AmqpValue):
        sections.append((VALUE, body.value))
    elif isinstance(body, AmqpSequence):
        sections.append((SEQUENCE, list(body.items)))
    else:
        sections.append((DATA, body))
    if footer := other.get("footer"):
        sections.append((FOOTER, footer))
    return _encode(sections)


def encode_reply(
    body: Any,  # noqa: ANN401 - any AMQP value
    *,
    correlation_id: Any,  # noqa: ANN401 - echoed in the request's own type
    properties: Mapping[str, Any],
) -> bytes:
    """Return an answer of a request-response node."""
    fields: list[Any] = [None] * _PROPERTY_COUNT
    fields[5] = correlation_id
    return _encode([(PROPERTIES, fields), (APPLICATION_PROPERTIES, dict(properties)), (VALUE, body)])


def to_timestamp(at: datetime) -> timestamp:
    """Return a time as AMQP has it, in milliseconds."""
    return timestamp((at - _EPOCH) // _MILLISECOND)


def owned(value: Any) -> Any:  # noqa: ANN401 - any AMQP value
    """Return a decoded value with bytes of its own: Proton lends views of memory that it uses again."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {owned(key): owned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [owned(each) for each in value]
    if isinstance(value, Array):
        return Array(value.descriptor, value.type, *map(owned, value.elements))
    if isinstance(value, Described):
        return Described(owned(value.descriptor), owned(value.value))
    return value


def array(kind: Any, items: Iterable[Any]) -> Any:  # noqa: ANN401 - Proton's types do not fit its own calls
    """Return an AMQP array of one kind (a constant of Proton's `Data`)."""
    undescribed: Any = UNDESCRIBED
    return Array(undescribed, kind, *items)


def _encode(sections: Iterable[Section]) -> bytes:
    encoded = b""
    for code, value in sections:
        data = Data()
        data.put_object(Described(ulong(code), value))
        encoded += data.encode()
    return encoded


def _sections(encoded: bytes) -> Iterator[Section]:
    """Yield the sections' codes and values; raise InvalidArgument where the bytes are no message."""
    offset, last, data = 0, 0, Data()
    while offset < len(encoded):
        data.clear()
        try:
            size = data.decode(encoded[offset:])
            data.rewind()
            data.next()
            section = owned(data.get_object())
        except (ProtonException, ValueError, TypeError, RecursionError) as error:
            # Broken frames, text and characters, keys that cannot be keys, and nesting beyond all measure.
            raise InvalidArgument("the message is not encoded as AMQP 1.0") from error
        code = section.descriptor if isinstance(section, Described) else None
        if not isinstance(code, int) or code not in _KINDS or code < last or size <= 0:
            raise InvalidArgument("the message has a section that AMQP 1.0 does not have there")
        if not isinstance(section.value, _KINDS[code]):
            raise InvalidArgument(
                f"the message's section {code:#x} is of a type that AMQP 1.0 does not have there"
            )
        yield code, section.value
        offset, last = offset + size, code


def _message(sections: Iterable[Section]) -> Message:
    named: dict[str, Any] = {}
    other: dict[str, Any] = {}
    data: list[bytes] = []
    items: list[Any] = []
    for code, value in sections:
        if code in _READERS:
            named |= _READERS[code](value, other)
        elif code == DATA:
            data.append(value)
        elif code == SEQUENCE:
            items += value
    if data:
        named["body"] = b"".join(data)
    elif items:
        named["body"] = AmqpSequence(tuple(items))
    return replace(Message(), **named, other=other)


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
    annotations = {str(key): each for key, each in (value or {}).items()}
    named: dict[str, Any] = {}
    if isinstance(due := annotations.get("x-opt-scheduled-enqueue-time"), int):
        named["scheduled_enqueue_time"] = _datetime(due)
    if (key := annotations.get("x-opt-partition-key")) is not None:
        named["partition_key"] = str(key)
    rest = {key: each for key, each in annotations.items() if key not in _BROKERS_OWN}
    if rest:
        other["annotations"] = rest
    return named


def _read_properties(value: list[Any], other: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    absolute = {8: "absolute_expiry_time", 9: "creation_time"}
    for index, field in enumerate(value or []):
        if field is None:
            continue
        if index in _NAMED:
            named[_NAMED[index]] = str(field) if index == _CONTENT_TYPE else field
        else:
            other[f"properties.{index}"] = field
    # Both together are how AMQP writes a lifetime beyond the 49 days that the header can hold.
    expiry, created = (other.get(f"properties.{index}") for index in absolute)
    if isinstance(expiry, int) and isinstance(created, int) and expiry > created:
        lifetime = _lifetime(expiry - created)
        if lifetime is not None:
            named["time_to_live"] = lifetime
    return named


def _read_application_properties(value: dict[Any, Any], _other: dict[str, Any]) -> dict[str, Any]:
    return {"application_properties": {_text(key): each for key, each in (value or {}).items()}}


def _read_value(value: object, _other: dict[str, Any]) -> dict[str, Any]:
    return {"body": AmqpValue(value)}


def _read_footer(value: object, other: dict[str, Any]) -> dict[str, Any]:
    other["footer"] = value
    return {}


# Each returns what the section says of the message, and puts into the second what is only carried along.
_READERS: Mapping[int, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    HEADER: _read_header,
    MESSAGE_ANNOTATIONS: _read_annotations,
    PROPERTIES: _read_properties,
    APPLICATION_PROPERTIES: _read_application_properties,
    VALUE: _read_value,
    FOOTER: _read_footer,
}


def _properties(message: Message) -> list[Any]:
    fields = [
        getattr(message, _NAMED[index]) if index in _NAMED else message.other.get(f"properties.{index}")
        for index in range(_PROPERTY_COUNT)
    ]
    if fields[_CONTENT_TYPE] is not None:
        fields[_CONTENT_TYPE] = symbol(fields[_CONTENT_TYPE])
    return fields


def _annotations(brokered: BrokeredMessage, *, peeked: bool) -> dict[symbol, Any]:
    message = brokered.message
    annotations: dict[str, Any] = dict(message.other.get("annotations", {}))
    annotations["x-opt-sequence-number"] = brokered.sequence_number
    annotations["x-opt-enqueued-time"] = to_timestamp(brokered.enqueued_at)
    annotations["x-opt-message-state"] = int(brokered.state)
    if brokered.enqueued_sequence_number != brokered.sequence_number:
        annotations["x-opt-enqueue-sequence-number"] = brokered.enqueued_sequence_number
    if brokered.locked_until is not None and not peeked:
        annotations["x-opt-locked-until"] = to_timestamp(brokered.locked_until)
    if brokered.dead_letter_source is not None:
        annotations["x-opt-deadletter-source"] = brokered.dead_letter_source
    if message.scheduled_enqueue_time is not None:
        annotations["x-opt-scheduled-enqueue-time"] = to_timestamp(message.scheduled_enqueue_time)
    if message.partition_key is not None:
        annotations["x-opt-partition-key"] = message.partition_key
    return {symbol(key): value for key, value in annotations.items()}


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any value
    """Return a value that AMQP has: messages that were sent in this process may hold others."""
    if type(value) in Data.put_mappings:
        return value
    if isinstance(value, datetime):
        return to_timestamp(value)
    return int(value) if isinstance(value, int) else str(value)


def _datetime(milliseconds: int) -> datetime:
    """Read an AMQP time; one beyond the calendar is its end."""
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return _LATEST


def _text(key: object) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
