"""What a received message says, and a faithful copy of it.

The SDK returns strings, symbols and binary values alike as bytes, and every kind of number as int or float. A copy is
therefore made only of values that come back the same; anything else raises `NotCopyable`, and the original stays
where it is. A body of text in an AMQP value is sent as data with the same bytes: that is how the function reads it.
"""

from __future__ import annotations

import base64
import math
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from azure.servicebus import ServiceBusMessage, ServiceBusMessageState
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType, AmqpMessageProperties

from shared.errors import InvalidEvent, OtherOrganization
from shared.message import (
    ATTEMPT,
    DEAD_LETTER_DESCRIPTION,
    DEAD_LETTER_REASON,
    DESCRIPTION,
    FIRST_SEEN,
    REASON,
)
from shared.opportunity_won import OpportunityWon, parse_event

if TYPE_CHECKING:
    from azure.servicebus import ServiceBusReceivedMessage

_INT = range(-(2**31), 2**31)
_LONG = range(-(2**63), 2**63)
UNKNOWN = "unknown"
# As shared.response writes it, before the text of Dataverse.
_RESPONDED = re.compile(r"^Dataverse responded \d{3}( 0x[0-9a-fA-F]{8})?: (?=\S)")


class NotCopyable(Exception):
    """The message cannot be copied faithfully; the text says which part of it."""


@dataclass(frozen=True)
class MessageInfo:
    """What a message says about itself, as far as it can be read; nothing in it can be trusted.

    `due`: when it is tried next; None where it is not scheduled.
    """

    reason: str
    description: str
    opportunity_id: str | None
    since: datetime | None
    attempts: int
    enqueued: datetime | None
    due: datetime | None

    @property
    def age(self) -> timedelta | None:
        """How long ago the first try was; None where nothing says so."""
        return None if self.since is None else max(datetime.now(UTC) - self.since, timedelta(0))

    @property
    def retries(self) -> int:
        """How often it was tried again."""
        return max(self.attempts - 1, 0)

    @property
    def summary(self) -> str:
        """The description without its beginning where it is the same for many: a row of a list has little room."""
        return _RESPONDED.sub("", self.description)

    @classmethod
    def of(cls, message: ServiceBusReceivedMessage | None) -> MessageInfo:
        """Read a message that failed, or that waits for its next try; None for one that cannot be decoded."""
        if message is None:
            return cls(UNKNOWN, "The message cannot be decoded.", None, None, 0, None, None)
        properties = text_properties(message)
        # Parked messages and dead letters carry both as application properties. The SDK's own accessors of these raise
        # for bytes that are not text.
        reason = properties.get(DEAD_LETTER_REASON) or properties.get(REASON)
        description = properties.get(DEAD_LETTER_DESCRIPTION) or properties.get(DESCRIPTION)
        attempt = properties.get(ATTEMPT)
        # A retry keeps this time after it has come.
        is_scheduled = message.state == ServiceBusMessageState.SCHEDULED
        return cls(
            reason=str(reason or UNKNOWN),
            description=str(description or ""),
            opportunity_id=_opportunity_of(message),
            since=_time(properties.get(FIRST_SEEN)) or aware(message.enqueued_time_utc),
            # The first try counts. A message that never was rescheduled has the broker's count.
            attempts=attempt + 1 if isinstance(attempt, int) else message.delivery_count or 0,
            enqueued=aware(message.enqueued_time_utc),
            due=aware(message.scheduled_enqueue_time_utc) if is_scheduled else None,
        )


def copy_of(
    message: ServiceBusReceivedMessage, *, without: frozenset[str], drop_unsupported: bool = False
) -> AmqpAnnotatedMessage:
    """Return a message to send: same body, properties and subject, without the properties of these names.

    Its message id is new, since duplicate detection would silently drop the old one. Its time to live is the queue's.
    `drop_unsupported`: leave out properties that cannot be copied. Raises NotCopyable.
    """
    properties: dict[str, Any] = {}
    for key, value in (message.application_properties or {}).items():
        name = _key(key)
        if name in without:
            continue
        try:
            properties[name] = _property(key, value)
        except NotCopyable:
            if not drop_unsupported:
                raise
    original = message.raw_amqp_message.properties
    return AmqpAnnotatedMessage(
        data_body=_data(message),
        properties=AmqpMessageProperties(
            message_id=str(uuid.uuid4()),
            correlation_id=_identifier(original.correlation_id) if original else None,
            subject=message.subject,
            content_type=message.content_type,
            content_encoding=_text_of(original.content_encoding) if original else None,
            to=message.to,
            reply_to=message.reply_to,
            group_id=message.session_id,
            reply_to_group_id=message.reply_to_session_id,
        ),
        application_properties=properties,
    )


def plain_message(body: bytes, *, content_type: str) -> ServiceBusMessage:
    """Return a new message with a body of bytes."""
    return ServiceBusMessage(body, content_type=content_type, message_id=str(uuid.uuid4()))


def body_of(message: ServiceBusReceivedMessage) -> bytes:
    """Return the body as the function would read it; empty where the message has no bytes or text."""
    try:
        return b"".join(_data(message))
    except NotCopyable:
        return b""


def body_as_text(message: ServiceBusReceivedMessage) -> str:
    """Return the body for people, in any format."""
    try:
        return b"".join(_data(message)).decode("utf-8", errors="backslashreplace")
    except NotCopyable as error:
        return f"({error}) {_shown(message)!r}"


def document_of(message: ServiceBusReceivedMessage) -> dict[str, object]:
    """Return everything of a message for a file: an export must keep what nobody else keeps any more."""
    properties = {_key(key): _json(value) for key, value in (message.application_properties or {}).items()}
    document: dict[str, object] = {
        "sequenceNumber": message.sequence_number,
        "messageId": _json(message.message_id),
        "correlationId": _json(message.correlation_id),
        "subject": _json(message.subject),
        "contentType": _json(message.content_type),
        "enqueued": aware(message.enqueued_time_utc),
        "deadLetterReason": properties.get(DEAD_LETTER_REASON),
        "deadLetterDescription": properties.get(DEAD_LETTER_DESCRIPTION),
        "deadLetterSource": _json(message.dead_letter_source),
        "properties": properties,
        "bodyType": message.body_type.value if message.body_type else None,
    }
    try:
        sections = _data(message)
        document["bodyBase64"] = [base64.b64encode(section).decode() for section in sections]
        document["body"] = b"".join(sections).decode("utf-8")
    except NotCopyable:
        document["body"] = _json(_shown(message))
    except UnicodeDecodeError:
        document["body"] = None
    return document


def text_properties(message: ServiceBusReceivedMessage) -> dict[str, object]:
    """Return the application properties with names and strings as text: the SDK returns bytes."""
    return {
        _key(name): value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        for name, value in (message.application_properties or {}).items()
    }


def _opportunity_of(message: ServiceBusReceivedMessage) -> str | None:
    try:
        event = parse_event(body_of(message), text_properties(message), message.content_type)
    except (InvalidEvent, OtherOrganization):
        return None
    return event.opportunity_id if isinstance(event, OpportunityWon) else None


def _data(message: ServiceBusReceivedMessage) -> list[bytes]:
    """Return the data sections; raises NotCopyable for a body that is not bytes or text."""
    if message.body_type is AmqpMessageBodyType.DATA:
        return [bytes(section) for section in message.body]
    value = _shown(message)
    if message.body_type is AmqpMessageBodyType.VALUE and isinstance(value, str | bytes):
        return [value.encode() if isinstance(value, str) else value]
    if value is None:
        raise NotCopyable("The message has no body.")
    kind = (
        "sequence" if message.body_type is AmqpMessageBodyType.SEQUENCE else f"value ({type(value).__name__})"
    )
    raise NotCopyable(
        f"The body is an AMQP {kind}, not data: the function cannot read it, and it is not copied."
    )


def _shown(message: ServiceBusReceivedMessage) -> Any:  # noqa: ANN401 - any AMQP value
    return list(message.body) if message.body_type is AmqpMessageBodyType.SEQUENCE else message.body


def _property(key: object, value: object) -> object:
    """Return a value in the form in which the SDK sends it unchanged; raises NotCopyable."""
    name = _text_of(key)
    if name is None:
        raise NotCopyable(f"The property {_key(key)} has a name that is not text.")
    if isinstance(value, bytes):
        # Bytes that are no text must be named, or the SDK takes them for text.
        return {"TYPE": "BINARY", "VALUE": value} if (text := _text_of(value)) is None else text
    if value is None or isinstance(value, bool | str | uuid.UUID):
        return value
    if isinstance(value, int) and value in _LONG:
        # The SDK encodes every int in 32 bits unless it is named otherwise.
        return value if value in _INT else {"TYPE": "LONG", "VALUE": value}
    if isinstance(value, float) and not math.isnan(value):
        return value
    raise NotCopyable(
        f"The property {name} has a value of the type {type(value).__name__}, which is not copied."
    )


def _identifier(value: object) -> Any:  # noqa: ANN401 - text, bytes, a UUID or a number
    # A correlation id may be text, bytes, a UUID or a number; the SDK's own accessor returns only text.
    return _text_of(value) if isinstance(value, bytes) and _text_of(value) is not None else value


def _text_of(value: object) -> str | None:
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _key(name: object) -> str:
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _json(value: object) -> object:
    if isinstance(value, bytes):
        text = _text_of(value)
        return {"base64": base64.b64encode(value).decode()} if text is None else text
    if isinstance(value, dict):
        return {_key(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def aware(time: datetime | None) -> datetime | None:
    """Return a time of the SDK, which is in UTC, with its time zone."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _time(value: object) -> datetime | None:
    try:
        time = aware(datetime.fromisoformat(value)) if isinstance(value, str) else None
        # A time in the year 1 or 9999 may not exist in UTC.
        return None if time is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
