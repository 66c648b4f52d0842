"""The values that go into the broker and come out of it.

They know nothing of sockets or encodings: a fake at the product's Service Bus boundary uses them directly,
`codec` translates them from and to AMQP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

# What a property weighs beside its own characters, roughly as AMQP encodes it: constructors, lengths, numbers.
_OVERHEAD = 16


class ReceiveMode(Enum):
    """How a message is handed out."""

    PEEK_LOCK = "peek-lock"
    RECEIVE_AND_DELETE = "receive-and-delete"


class MessageState(IntEnum):
    """A stored message's state, with the numbers of `x-opt-message-state`."""

    ACTIVE = 0
    DEFERRED = 1
    SCHEDULED = 2


@dataclass(frozen=True, slots=True)
class AmqpValue:
    """A body that is one AMQP value instead of bytes."""

    value: Any


@dataclass(frozen=True, slots=True)
class AmqpSequence:
    """A body that is one or several lists of AMQP values instead of bytes."""

    sections: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class AmqpData:
    """A body of several data sections; a body of one is bytes."""

    sections: tuple[bytes, ...]


# None is a message without a body, which is not the same as a body of no bytes.
Body = bytes | AmqpData | AmqpValue | AmqpSequence | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as its sender wrote it.

    `other` keeps what the broker passes on without interpreting it (creation time, user id, priority, further
    annotations), under names of the codec's own.
    """

    body: Body = b""
    message_id: Any = None
    correlation_id: Any = None
    subject: str | None = None
    to: str | None = None
    reply_to: str | None = None
    reply_to_session_id: str | None = None
    session_id: str | None = None
    content_type: str | None = None
    partition_key: str | None = None
    time_to_live: timedelta | None = None
    scheduled_enqueue_time: datetime | None = None
    application_properties: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    def estimated_size(self) -> int:
        """Return about how many bytes this takes when it is encoded, for callers who have not encoded it."""
        body = len(self.body) if isinstance(self.body, bytes) else len(repr(self.body))
        texts = (
            self.message_id,
            self.correlation_id,
            self.subject,
            self.to,
            self.reply_to,
            self.content_type,
        )
        return (
            body
            + sum(len(str(text)) for text in texts if text is not None)
            + sum(
                _OVERHEAD + len(key) + len(str(value)) for key, value in self.application_properties.items()
            )
        )


@dataclass(frozen=True, slots=True)
class BrokeredMessage:
    """A message as the broker hands it out: received, peeked, or in an observation.

    `delivery_count` counts failed deliveries *before* this one (0 on the first), as the AMQP header does; the
    .NET library, and so the Functions host, shows it one higher. `lock_token` and `locked_until` are set only
    under a lock.
    """

    message: Message
    entity: str
    sequence_number: int
    enqueued_sequence_number: int
    enqueued_at: datetime
    delivery_count: int
    state: MessageState = MessageState.ACTIVE
    expires_at: datetime | None = None
    lock_token: UUID | None = None
    locked_until: datetime | None = None
    dead_letter_source: str | None = None


class EventKind(IntEnum):
    """What happened to a message."""

    ACCEPTED = 1
    DUPLICATE_DROPPED = 2
    SCHEDULED = 3
    SCHEDULE_CANCELLED = 4
    ENQUEUED = 5
    FILTERED_OUT = 6
    LOCKED = 7
    LOCK_RENEWED = 8
    LOCK_EXPIRED = 9
    COMPLETED = 10
    ABANDONED = 11
    RELEASED = 12
    DEFERRED = 13
    DEAD_LETTERED = 14
    EXPIRED = 15
    FORWARDED = 16
    RECEIVED_AND_DELETED = 17


@dataclass(frozen=True, slots=True)
class Observation:
    """One event in the life of a message, for tests and displays.

    `entity` is where it happened; `detail` is the reason of a dead-lettering, the destination of a forwarding.
    `message` is the message as it was afterwards, lock token included.
    """

    kind: EventKind
    entity: str
    at: datetime
    message: BrokeredMessage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages an entity holds. `active` includes the locked ones, as the portal's figure does."""

    active: int = 0
    locked: int = 0
    deferred: int = 0
    scheduled: int = 0
    dead_letter: int = 0
