"""Outbound messages: publish an event, schedule a retry, park a message; each within a deadline.

What a retry says about its state is left to `message.py`, what is worth a retry to `handler.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
)

from shared import message as names
from shared.bounded_call import BoundedCalls
from shared.deadline_socket import (
    CallTimeout,
    created_sockets,
    deadline_tls_context,
    seconds_left,
    thread_deadline,
)
from shared.errors import InvoicingFailure, PublishFailed, RetryLater, ServiceBusUnavailable, TokenUnavailable
from shared.settings import ConnectionString
from shared.text import encodable
from shared.tracing import OFF

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from azure.core.credentials import TokenCredential
    from azure.servicebus import ServiceBusSender

    from shared.bounded_call import Call
    from shared.clock import Clock, Deadline
    from shared.invoice_created import InvoiceCreated
    from shared.message import Delivery, Message, RetryState
    from shared.settings import Namespace, ServiceBusSettings
    from shared.tracing import Tracing

_logger = logging.getLogger(__name__)

# One try to send: signing in and opening a connection and a link is part of the first.
_TRY_SECONDS = 15.0
# Of that, for a link that was used before: a broker takes a message in milliseconds.
_OLD_LINK_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
# The pause before the next attempt doubles from one to the other.
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 15.0
# A failed publication is retried by a scheduled retry, so it need not use up the time of the invocation.
_PUBLISH_SECONDS = 40.0

# Service Bus keeps at most 4,096 characters of a description.
_MAX_DESCRIPTION_LENGTH = 4096
_SHORT_DESCRIPTION_LENGTH = 300
_INT_RANGE = range(-(2**31), 2**31)
# The properties that copies write, and copies of copies replace.
_OF_COPIES = names.RETRY_PROPERTIES | names.PARKED_PROPERTIES


@dataclass(frozen=True)
class Outgoing:
    """A message to send. `due`: when it becomes available, aware; None for at once."""

    body: bytes
    message_id: str
    content_type: str | None = None
    correlation_id: str | None = None
    subject: str | None = None
    due: datetime | None = None
    properties: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @classmethod
    def copy_of(
        cls,
        message: Message,
        message_id: str,
        properties: Mapping[str, str | int],
        due: datetime | None = None,
    ) -> Outgoing:
        """Copy a message, with `properties` instead of those of earlier copies."""
        # A receiver that knows the older name alone would continue the trace at the sender of the original.
        stale = {names.DIAGNOSTIC_ID} if names.TRACEPARENT in properties else set()
        return cls(
            body=message.body,
            message_id=message_id,
            content_type=message.content_type,
            correlation_id=message.correlation_id,
            subject=message.subject,
            due=due,
            properties={**encodable_properties(message.properties, _OF_COPIES | stale), **properties},
        )


class TooLarge(Exception):
    """The broker accepts no message of this size."""


class NotSent(Exception):
    """The broker has not confirmed the message in time; whether it has accepted it is not known."""


class Sender(Protocol):
    """Sends messages, each in one attempt; safe under many threads."""

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """Return when the broker has accepted the message; raises TooLarge or NotSent."""

    def warm_up(self, entity: str) -> None:
        """Begin to open the link to an entity, without waiting and without failing."""


class ServiceBus:
    """Publishes, schedules and parks."""

    def __init__(
        self, sender: Sender, settings: ServiceBusSettings, clock: Clock, tracing: Tracing = OFF
    ) -> None:
        self._sender = sender
        self._tracing = tracing
        self._settings = settings
        self._clock = clock

    def prepare_to_publish(self) -> None:
        """Begin to open the link to the topic: the event is published once Dataverse has responded."""
        # Without valid settings there is no topic, and nothing will be published.
        if self._settings.invoice_created_topic:
            self._sender.warm_up(self._settings.invoice_created_topic)

    def publish(self, event: InvoiceCreated, deadline: Deadline) -> None:
        """Send the event to the topic; raises PublishFailed."""
        outgoing = Outgoing(
            body=event.body,
            message_id=event.message_id,
            content_type=event.content_type,
            correlation_id=event.correlation_id,
            subject=event.subject,
            properties=event.application_properties,
        )
        try:
            self._send(self._settings.invoice_created_topic, outgoing, deadline.within(_PUBLISH_SECONDS))
        except (NotSent, TooLarge) as error:
            raise PublishFailed(f"The event of the invoice was not published: {error}") from error

    def schedule(self, delivery: Delivery, retry: RetryState, error: RetryLater, due: datetime) -> None:
        """Send the retry of a delivery to the queue; raises ServiceBusUnavailable."""
        properties = {**retry.properties(error), **delivery.trace_properties}
        copy = Outgoing.copy_of(delivery.message, retry.message_id, properties, due)
        compact = None
        if delivery.compact_body is not None:
            # For a message that fills the broker's limit and has no room for the properties of a retry.
            compact = replace(
                copy, body=delivery.compact_body, content_type="application/json", properties=properties
            )
        self._must_send(self._settings.opportunity_won_queue, copy, compact, delivery.deadline)

    def park(self, delivery: Delivery, error: InvoicingFailure) -> None:
        """Send the message as it came, with the reason, to the failed queue; raises ServiceBusUnavailable."""
        message, state = delivery.message, delivery.state
        properties: dict[str, str | int] = {
            names.DEAD_LETTER_REASON: error.reason,
            names.DEAD_LETTER_DESCRIPTION: _description(error, _MAX_DESCRIPTION_LENGTH),
            names.ORIGINAL_MESSAGE_ID: encodable(message.message_id or ""),
            names.ROOT: state.root,
            names.ATTEMPT: state.attempt,
            names.FIRST_SEEN: state.first_seen.isoformat(),
            **delivery.trace_properties,
        }
        parked = Outgoing.copy_of(message, state.parked_message_id, properties)
        # For a message that fills the broker's limit. If this is too large as well, the broker dead-letters the
        # message whole.
        short = {**properties, names.DEAD_LETTER_DESCRIPTION: _description(error, _SHORT_DESCRIPTION_LENGTH)}
        self._must_send(
            self._settings.failed_queue, parked, replace(parked, properties=short), delivery.deadline
        )

    def _must_send(
        self, entity: str, outgoing: Outgoing, smaller: Outgoing | None, deadline: Deadline
    ) -> None:
        try:
            try:
                self._send(entity, outgoing, deadline)
            except TooLarge:
                if smaller is None:
                    raise
                _logger.warning(
                    "service bus: a message for %s is too large and is sent without its own properties",
                    entity,
                )
                self._send(entity, smaller, deadline)
        except (NotSent, TooLarge) as error:
            raise ServiceBusUnavailable(f"Nothing could be sent to {entity}: {error}") from error

    def _send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """Try until it is sent or the deadline has passed.

        A message whose confirmation was lost is sent again. Duplicate detection drops the second where it is on; the
        failed queue keeps both, so the pauses grow.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                self._try(entity, outgoing, deadline)
            except NotSent as error:
                _logger.warning("service bus: not sent to %s: %s", entity, error)
                if deadline.remaining <= pause:
                    raise
                self._clock.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            else:
                return

    def _try(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        operation = "send" if outgoing.due is None else "schedule"
        with self._tracing.send(entity, outgoing.message_id, operation) as span:
            if span.traceparent is not None:
                # What the message causes becomes a child of this span, also for a receiver that knows the older name
                # alone: a copy may still have it, in a form of its own.
                kept = {
                    key: value for key, value in outgoing.properties.items() if key != names.DIAGNOSTIC_ID
                }
                outgoing = replace(outgoing, properties={**kept, names.TRACEPARENT: span.traceparent})
            self._sender.send(entity, outgoing, deadline)


@dataclass(frozen=True)
class LinkLimits:
    """What bounds the links of a sender.

    `max_idle`: seconds after which a link is replaced; Azure closes a connection that was silent for 4 minutes.
    `warm_up`: seconds to open a link ahead of its use. `opening`, `closing`: the threads that open and close links;
    nothing else bounds name resolution.
    """

    max_idle: float = 3 * 60.0
    warm_up: float = 5.0
    opening: BoundedCalls = field(default_factory=lambda: BoundedCalls("service bus connection", 8))
    closing: BoundedCalls = field(default_factory=lambda: BoundedCalls("service bus closing", 4))


class AmqpSender:
    """Sends with azure-servicebus, in the caller's thread; a link is opened in a thread of its own.

    The SDK's clients are not safe under many threads, so a lock guards each link, and it is waited for no longer than
    the deadline. Each entity has a connection of its own: one that hangs does not keep the others from being sent to.
    `renew_token` is called, with the seconds that are left, where the broker refuses an identity.
    """

    def __init__(
        self,
        connect: Callable[[], ServiceBusClient],
        *,
        renew_token: Callable[[float], None] = lambda _: None,
        limits: LinkLimits | None = None,
    ) -> None:
        self._connect = connect
        self._renew_token = renew_token
        self._limits = limits or LinkLimits()
        self._lock = threading.Lock()
        self._client: ServiceBusClient | None = None
        self._links: dict[str, _Link] = {}

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """See Sender."""
        seconds = min(deadline.remaining, _TRY_SECONDS)
        try:
            with thread_deadline(seconds):
                self._send(entity, outgoing)
        except MessageSizeExceededError as error:
            raise TooLarge("the broker takes no message of this size") from error
        except Exception as error:
            # The SDK raises ValueError, KeyError, AttributeError and others where a connection breaks in between.
            raise NotSent(_why(error)) from error

    def _send(self, entity: str, outgoing: Outgoing) -> None:
        try:
            self._link(entity).send(outgoing)
        except (ServiceBusAuthenticationError, ServiceBusAuthorizationError):
            # The token may have been revoked. The next try takes another one.
            self._renew_token(seconds_left())
            raise

    def warm_up(self, entity: str) -> None:
        """Begin to open the link of an entity if it is not open: that takes half a second. Returns at once."""
        self._link(entity).warm_up()

    def close(self) -> None:
        """Close all links; the sender can be used again."""
        with self._lock:
            links = list(self._links.values())
            self._client = None
        for link in links:
            link.close()

    def _link(self, entity: str) -> _Link:
        with self._lock:
            if entity not in self._links:
                self._links[entity] = _Link(lambda: self._new_sender(entity), self._limits)
            return self._links[entity]

    def _new_sender(self, entity: str) -> ServiceBusSender:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            # Queues and topics are addressed alike by those who send.
            # Keep-alive would be a thread for each link that listens on the connection while others use it.
            return self._client.get_queue_sender(entity, keep_alive=0)


class _Link:
    """The link to one entity, opened when it is needed, and closed by us before the broker closes it for idling."""

    def __init__(self, new_sender: Callable[[], ServiceBusSender], limits: LinkLimits) -> None:
        self._new_sender = new_sender
        self._limits = limits
        self._lock = threading.Lock()
        self._link: _OpenLink | None = None
        self._used_at = 0.0
        self._warm_up: Call[_OpenLink] | None = None
        self._warm_up_until = 0.0

    def send(self, outgoing: Outgoing) -> None:
        """Send within the deadline of the calling thread; raises what the SDK raises, or CallTimeout."""
        if not self._lock.acquire(timeout=seconds_left()):
            raise CallTimeout("The link was in use until the deadline.")
        try:
            if not (self._is_open() and self._sent_on_old_link(outgoing)):
                self._try(outgoing)
        finally:
            self._lock.release()

    def _sent_on_old_link(self, outgoing: Outgoing) -> bool:
        """Send on a link that was opened before; return whether that worked.

        A connection that died while it was idle shows only now, in many ways, or by silence. Sending again on a new
        link is idempotent: the message id is the same.
        """
        try:
            with thread_deadline(min(_OLD_LINK_SECONDS, seconds_left() / 2)):
                self._try(outgoing)
        except MessageSizeExceededError:
            raise
        except Exception as error:  # noqa: BLE001 - not swallowed: sending is tried again, and raises
            _logger.info("service bus: a link broke and is replaced: %s", type(error).__name__)
            return False
        return True

    def warm_up(self) -> None:
        """Begin to open the link unless it is open or in use."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._is_open() and self._warm_up is None:
                # Best effort: where no thread is available, the next send reports what is wrong.
                with suppress(OSError):
                    seconds = self._limits.warm_up
                    self._warm_up = self._limits.opening.start(self._open, seconds, _OpenLink.close)
                    self._warm_up_until = time.monotonic() + seconds
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the link once it is not in use."""
        with self._lock:
            self._drop()

    def _is_open(self) -> bool:
        if self._warm_up is not None and self._warm_up.is_done:
            self._take_warmed_up(0.0)
        if self._link is not None and time.monotonic() - self._used_at > self._limits.max_idle:
            self._drop()
        return self._link is not None

    def _try(self, outgoing: Outgoing) -> None:
        try:
            self._link = self._link or self._opened()
            self._link.sender.send_messages(_amqp(outgoing), timeout=seconds_left())
            self._used_at = time.monotonic()
        except MessageSizeExceededError:
            raise
        except BaseException:
            # What is left of its connection is not known.
            self._drop()
            raise

    def _opened(self) -> _OpenLink:
        """Return an open link: the one that is being warmed up, else a new one."""
        self._take_warmed_up(min(self._warm_up_until - time.monotonic(), seconds_left()))
        return self._link or self._limits.opening.run(self._open, seconds_left(), _OpenLink.close)

    def _take_warmed_up(self, seconds: float) -> None:
        warm_up, self._warm_up = self._warm_up, None
        if warm_up is not None:
            # One that failed or hangs is forgotten: the send opens a link itself, and reports what is wrong.
            with suppress(Exception):
                self._link = warm_up.result(seconds)
                self._used_at = self._warm_up_until

    def _open(self) -> _OpenLink:
        with created_sockets() as sockets, ExitStack() as stack:
            link = _OpenLink(self._new_sender(), sockets)
            stack.callback(link.close)
            stack.enter_context(link.sender)
            # It stays open: only a failure closes it.
            stack.pop_all()
            return link

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            try:
                # In a thread: the SDK waits for a peer that may not be there any more.
                self._limits.closing.start(link.close, _CLOSE_SECONDS)
            except OSError:
                link.close_sockets()


@dataclass(frozen=True)
class _OpenLink:
    """A sender of the SDK with the sockets of its connection."""

    sender: ServiceBusSender
    sockets: Sequence[socket.socket]

    def close(self) -> None:
        try:
            self.sender.close()
        except Exception as error:  # noqa: BLE001 - what cannot be closed in good order is gone all the same
            _logger.info("service bus: a link was not closed in good order: %s", type(error).__name__)
        self.close_sockets()

    def close_sockets(self) -> None:
        # The SDK forgets them where the connection broke.
        for each in self.sockets:
            each.close()


def _why(error: BaseException) -> str:
    """Return what went wrong; of an AMQP error only the kind: its text can hold addresses with signatures."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TokenUnavailable):
            return str(cause)
        if isinstance(cause, CallTimeout | OperationTimeoutError):
            return "the broker did not respond in time"
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "inner_exception", None)
    return type(error).__name__


def connect(
    settings: ServiceBusSettings, credential: Callable[[Namespace], TokenCredential], *, retries: int = 1
) -> ServiceBusClient:
    """Return a client for the namespace of the settings; `credential` is asked only for an identity's.

    `retries`: how often the SDK itself repeats an operation; one recovers from a connection that was closed while idle.
    """
    bounds: dict[str, Any] = {
        "retry_total": retries,
        "retry_backoff_factor": 0.1,
        "try_timeout": _TRY_SECONDS,
        # Otherwise the SDK trusts its own list of authorities and ignores SSL_CERT_FILE.
        "ssl_context": deadline_tls_context(),
    }
    connection = settings.connection
    if isinstance(connection, ConnectionString):
        return ServiceBusClient.from_connection_string(connection.value, **bounds)
    return ServiceBusClient(connection.fully_qualified, credential(connection), **bounds)


def _amqp(outgoing: Outgoing) -> ServiceBusMessage:
    properties: dict[str | bytes, Any] = dict(outgoing.properties.items())
    return ServiceBusMessage(
        outgoing.body,
        application_properties=properties,
        content_type=outgoing.content_type,
        correlation_id=outgoing.correlation_id,
        subject=outgoing.subject,
        message_id=outgoing.message_id,
        scheduled_enqueue_time_utc=outgoing.due,
    )


def _description(error: InvoicingFailure, length: int) -> str:
    """Return what is wrong and what to do; where not everything fits, the advice is kept whole."""
    advice = f" {error.advice}"
    return str(error)[: length - len(advice)] + advice


def encodable_properties(
    properties: Mapping[str, object], left_out: frozenset[str]
) -> dict[str, str | int | float | bool]:
    """Return the properties that can be encoded; a sender's property must never keep a copy from being sent."""
    kept: dict[str, str | int | float | bool] = {}
    for name, value in properties.items():
        if name in left_out:
            continue
        if isinstance(value, str | int | float) and _has_encoding(name) and _has_encoding(value):
            kept[name] = value
        else:
            _logger.warning(
                "service bus: dropped a property of type %s that cannot be sent", type(value).__name__
            )
    return kept


def _has_encoding(value: str | int | float) -> bool:  # noqa: PYI041 - mypy's float does not tell them apart
    if isinstance(value, str):
        # A lone surrogate has no encoding.
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, int) or value in _INT_RANGE
