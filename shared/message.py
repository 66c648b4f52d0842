"""A message as the Functions host delivers it, and the state of its retries.

A retry is a scheduled copy of the message. It carries its root (the first message), its number (the attempt) and when
the root was first seen. Its message id derives from the delivery that it follows, so that a retry that is sent twice is
one message to duplicate detection. Ids and property names are a contract with messages in flight.
"""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shared.errors import RetryLater, RetryPolicy
from shared.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import azure.functions as func

    from shared.clock import Deadline

ROOT = "InvoicingRoot"
ATTEMPT = "InvoicingAttempt"
BACKOFF = "InvoicingBackoff"
FIRST_SEEN = "InvoicingFirstSeen"
POLICY = "InvoicingRhythm"
POLICY_SINCE = "InvoicingRhythmSince"
REASON = "InvoicingReason"
DESCRIPTION = "InvoicingDescription"
RETRY_PROPERTIES = frozenset({ROOT, ATTEMPT, BACKOFF, FIRST_SEEN, POLICY, POLICY_SINCE, REASON, DESCRIPTION})

ORIGINAL_MESSAGE_ID = "InvoicingOriginalMessageId"
DEAD_LETTER_REASON = "DeadLetterReason"
DEAD_LETTER_DESCRIPTION = "DeadLetterErrorDescription"
PARKED_PROPERTIES = frozenset({ORIGINAL_MESSAGE_ID, DEAD_LETTER_REASON, DEAD_LETTER_DESCRIPTION})

# The trace context of a message, as W3C and as Service Bus's own client name it; the Functions host reads the first.
TRACEPARENT = "traceparent"
DIAGNOSTIC_ID = "Diagnostic-Id"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# A contract with scheduled retries: another value would let a retry that is sent twice be processed twice.
_RETRIES = uuid.UUID("12cd282c-3602-4e3e-8807-34c9d22e81c2")
_PARKED = uuid.UUID("77329eb2-0826-4b03-a598-60afb751a364")

_MAX_ROOT_LENGTH = 128
# A retry should not be larger than the message by much.
_MAX_DESCRIPTION_LENGTH = 200
# More retries than any message can have.
_MAX_COUNT = 1_000_000


@dataclass(frozen=True)
class Message:
    """A message from the queue, with the metadata that the host passes on."""

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

    @property
    def traceparent(self) -> str | None:
        """The sender's trace context, None where there is no valid one."""
        for name in (TRACEPARENT, DIAGNOSTIC_ID):
            value = self.properties.get(name)
            if isinstance(value, str) and _TRACEPARENT.fullmatch(value):
                return value
        return None


@dataclass(frozen=True)
class Ignored:
    """The outcome of a message that calls for no invoice; `reason` is one log line, without personal data."""

    reason: str


@dataclass(frozen=True)
class RetryState:
    """Where a message stands in its retries.

    `delivery` identifies the delivered message, `root` the first one. `backoff` counts the delays that grew;
    `policy_since` is when the present policy began. All times are the broker's: the moments at which it made the
    messages available.
    """

    delivery: str
    root: str
    attempt: int
    backoff: int
    first_seen: datetime
    policy: RetryPolicy | None
    policy_since: datetime
    seen: datetime

    @classmethod
    def of(cls, message: Message) -> RetryState:
        """Read the state from the message's own properties; a message without them is a root."""
        properties = message.properties
        # The sender's clock may be fast: a message from the future would never age, and its retries never end.
        first_seen = min(_time(properties.get(FIRST_SEEN)) or message.enqueued_at, message.enqueued_at)
        policy_since = min(_time(properties.get(POLICY_SINCE)) or first_seen, message.enqueued_at)
        delivery = _identity(message)
        return cls(
            delivery=delivery,
            root=_root(properties.get(ROOT)) or delivery,
            attempt=_count(properties.get(ATTEMPT)),
            backoff=_count(properties.get(BACKOFF)),
            first_seen=first_seen,
            policy=_policy(properties.get(POLICY)),
            policy_since=policy_since,
            seen=message.enqueued_at,
        )

    def __str__(self) -> str:
        """Return what log lines say of the state."""
        return f"attempt={self.attempt} age={self.age.total_seconds():.0f}s root={self.root}"

    @property
    def age(self) -> timedelta:
        """How long ago the root was first seen."""
        return max(self.seen - self.first_seen, timedelta(0))

    def age_in(self, policy: RetryPolicy) -> timedelta:
        """How long the message has been retried under this policy without a break."""
        return max(self.seen - self.policy_since, timedelta(0)) if self.policy is policy else timedelta(0)

    def next(self, error: RetryLater, *, backoff: int) -> RetryState:
        """Return the state of the retry that follows `error`."""
        return replace(
            self,
            attempt=self.attempt + 1,
            backoff=backoff,
            policy=error.policy,
            policy_since=self.policy_since if self.policy is error.policy else self.seen,
        )

    @property
    def message_id(self) -> str:
        """The message id of the retry with this state: the same for every worker that sends it."""
        # The number and time of the delivery come from the broker. So no sender can make up a message whose
        # retry has the id of another message's retry, which duplicate detection would then drop.
        return str(uuid.uuid5(_RETRIES, f"{self.delivery}/{self.attempt}"))

    @property
    def parked_message_id(self) -> str:
        """The message id under which this delivery is parked."""
        return str(uuid.uuid5(_PARKED, f"{self.delivery}/{self.attempt}"))

    def properties(self, error: RetryLater) -> dict[str, str | int]:
        """Return the application properties that carry this state, and the reason as text."""
        return {
            ROOT: self.root,
            ATTEMPT: self.attempt,
            BACKOFF: self.backoff,
            FIRST_SEEN: self.first_seen.isoformat(),
            POLICY: error.policy.value,
            POLICY_SINCE: self.policy_since.isoformat(),
            REASON: error.reason,
            DESCRIPTION: one_line(str(error), _MAX_DESCRIPTION_LENGTH),
        }


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message, the state of its retries, and the deadline of its invocation.

    `opportunity_id` and `compact_body` (the event in its plain form) are known once the event has been read.
    `traceparent` is the trace context (W3C) of the invocation, None where there is none.
    """

    message: Message
    state: RetryState
    deadline: Deadline
    opportunity_id: str | None = None
    compact_body: bytes | None = None
    traceparent: str | None = None

    def __str__(self) -> str:
        """Return what log lines say of a delivery."""
        return f"opportunity={self._opportunity} {self.state}"

    @property
    def trace_properties(self) -> dict[str, str]:
        """The application properties that continue the trace."""
        return {} if self.traceparent is None else {TRACEPARENT: self.traceparent}

    @contextmanager
    def named_in_log_lines(self) -> Iterator[None]:
        """Let lines that are logged in the block, and in its thread, name this delivery: see `log_suffix`."""
        token = _log_suffix.set(f" opportunity={self._opportunity} root={self.state.root}")
        try:
            yield
        finally:
            _log_suffix.reset(token)

    @property
    def _opportunity(self) -> str:
        return self.opportunity_id or "unknown"


_log_suffix: ContextVar[str] = ContextVar("log_suffix", default="")


def log_suffix() -> str:
    """Return the end of a log line about another system: the delivery for which it is called, "" outside of one."""
    return _log_suffix.get()


def _root(value: object) -> str | None:
    # Only what the function's own retries can carry: the root reaches log lines.
    if isinstance(value, str) and len(value) <= _MAX_ROOT_LENGTH and value.isprintable():
        return value
    return None


def _identity(message: Message) -> str:
    # Never the sender's message id: senders reuse ids after hours, and the retries of two wins would share an id. A
    # host without the number leaves nothing to detect duplicates by, and a retry too many is better than a lost one.
    number = uuid.uuid4() if message.sequence_number is None else message.sequence_number
    return f"{number}@{message.enqueued_at.isoformat()}"


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
    # A sender may have set anything. Not the highest count instead: it would no longer grow, nor would the delays.
    return value if isinstance(value, int) and value in range(_MAX_COUNT + 1) else 0


def _policy(value: object) -> RetryPolicy | None:
    return next((policy for policy in RetryPolicy if policy.value == value), None)
