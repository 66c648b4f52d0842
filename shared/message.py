"""The message as the Functions host hands it over, and its place in the state of copies that are tried again.

The first message of a state is its root. Every copy carries the root, its own number (attempt) and when the first one
was seen; its message id derives from root and attempt, so that a copy that is sent twice is one message to duplicate
detection. These ids and property names are a contract with messages that are under way when the code changes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shared.errors import RetryLater, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import azure.functions as func

ROOT = "InvoicingRoot"
ATTEMPT = "InvoicingAttempt"
BACKOFF = "InvoicingBackoff"
FIRST_SEEN = "InvoicingFirstSeen"
POLICY = "InvoicingRhythm"
POLICY_SINCE = "InvoicingRhythmSince"
REASON = "InvoicingReason"
RETRY_PROPERTIES = frozenset({ROOT, ATTEMPT, BACKOFF, FIRST_SEEN, POLICY, POLICY_SINCE, REASON})

ORIGINAL_MESSAGE_ID = "InvoicingOriginalMessageId"
DEAD_LETTER_REASON = "DeadLetterReason"
DEAD_LETTER_DESCRIPTION = "DeadLetterErrorDescription"
PARKED_PROPERTIES = frozenset({ORIGINAL_MESSAGE_ID, DEAD_LETTER_REASON, DEAD_LETTER_DESCRIPTION})

# A contract with copies that are waiting: another value would let a copy that is sent twice be handled twice.
_COPIES = uuid.UUID("12cd282c-3602-4e3e-8807-34c9d22e81c2")
_PARKED = uuid.UUID("77329eb2-0826-4b03-a598-60afb751a364")

# The length of a message id in Service Bus, and more copies than any state can have.
_ID_LENGTH = 128
_MOST_COPIES = 1_000_000


@dataclass(frozen=True)
class Message:
    """One delivery of a message from the queue, with what the host shows of it."""

    body: bytes
    message_id: str | None
    sequence_number: int | None
    enqueued_at: datetime
    content_type: str | None
    correlation_id: str | None
    subject: str | None
    properties: Mapping[str, object]

    @classmethod
    def from_trigger(cls, message: func.ServiceBusMessage) -> Message:
        """Return the message of a trigger with `dataType: binary`."""
        return cls(
            body=message.get_body(),
            message_id=message.message_id or None,
            sequence_number=message.sequence_number,
            enqueued_at=_aware(message.enqueued_time_utc),
            content_type=message.content_type or None,
            correlation_id=message.correlation_id or None,
            subject=message.subject or None,
            properties=message.application_properties or {},
        )


@dataclass(frozen=True)
class Ignored:
    """The outcome of a message that calls for no invoice; `reason` is one log line, without personal data."""

    reason: str


@dataclass(frozen=True)
class RetryState:
    """The place of a message among the copies of its root.

    `backoff` counts the delays that grew; `policy_since` is when the present policy began. All times are the
    broker's: the moments at which it made the messages available.
    """

    root: str
    attempt: int
    backoff: int
    first_seen: datetime
    policy: RetryPolicy | None
    policy_since: datetime
    seen: datetime

    @classmethod
    def of(cls, message: Message) -> RetryState:
        """Read the place from the message's own properties; a message without them is a root."""
        properties = message.properties
        # A stranger's clock may be ahead: a time to come would never grow old, and the state never end.
        first_seen = min(_time(properties.get(FIRST_SEEN)) or message.enqueued_at, message.enqueued_at)
        policy_since = min(_time(properties.get(POLICY_SINCE)) or first_seen, message.enqueued_at)
        return cls(
            root=_root(properties.get(ROOT)) or _own_id(message),
            attempt=_count(properties.get(ATTEMPT)),
            backoff=_count(properties.get(BACKOFF)),
            first_seen=first_seen,
            policy=_policy(properties.get(POLICY)),
            policy_since=policy_since,
            seen=message.enqueued_at,
        )

    @property
    def age(self) -> timedelta:
        """How long the root has been under way."""
        return max(self.seen - self.first_seen, timedelta(0))

    def age_in(self, policy: RetryPolicy) -> timedelta:
        """How long the message has been tried under this policy without a break."""
        return max(self.seen - self.policy_since, timedelta(0)) if self.policy is policy else timedelta(0)

    def next(self, error: RetryLater, *, backoff: int) -> RetryState:
        """Return the place of the copy that is tried after `error`."""
        return replace(
            self,
            attempt=self.attempt + 1,
            backoff=backoff,
            policy=error.policy,
            policy_since=self.policy_since if self.policy is error.policy else self.seen,
        )

    @property
    def message_id(self) -> str:
        """The message id of the copy at this place: the same for everybody who makes it."""
        return str(uuid.uuid5(_COPIES, f"{self.root}/{self.attempt}"))

    @property
    def parked_message_id(self) -> str:
        """The message id under which this delivery is parked."""
        return str(uuid.uuid5(_PARKED, f"{self.root}/{self.attempt}"))

    def properties(self, error: RetryLater) -> dict[str, str | int]:
        """Return the application properties that carry this place, and the reason for people who look."""
        return {
            ROOT: self.root,
            ATTEMPT: self.attempt,
            BACKOFF: self.backoff,
            FIRST_SEEN: self.first_seen.isoformat(),
            POLICY: error.policy.value,
            POLICY_SINCE: self.policy_since.isoformat(),
            REASON: error.reason,
        }


def _root(value: object) -> str | None:
    # What no message id can be is not ours, and could keep a copy from being sent.
    return value if isinstance(value, str) and 0 < len(value) <= _ID_LENGTH and value.isprintable() else None


def _own_id(message: Message) -> str:
    # Whether Dataverse sets a message id is not confirmed; the broker's own number and time are unique without one.
    if message.message_id is not None:
        return message.message_id
    return f"{message.sequence_number}@{message.enqueued_at.isoformat()}"


def _aware(time: datetime | None) -> datetime:
    # The host sends times without a zone; they are UTC.
    if time is None:
        return datetime.now(UTC)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _time(value: object) -> datetime | None:
    try:
        return _aware(datetime.fromisoformat(value)) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _count(value: object) -> int:
    # A stranger may have set anything. Not the highest number instead: the copies of a number that stands still
    # would have one message id, and duplicate detection would drop the second.
    return value if isinstance(value, int) and 0 < value <= _MOST_COPIES else 0


def _policy(value: object) -> RetryPolicy | None:
    return next((policy for policy in RetryPolicy if policy.value == value), None)
