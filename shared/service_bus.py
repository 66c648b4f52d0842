"""Outbound messages: publish an event, schedule a retry, park a message; each within a deadline.

What a retry says about its state is left to `message.py`, what is worth a retry to `handler.py`.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.exceptions import MessageSizeExceededError, ServiceBusError

from shared import message as names
from shared.errors import InvoicingFailure, PublishFailed, RetryLater, ServiceBusUnavailable
from shared.owner import Care, NotAnswered, Owner
from shared.settings import ConnectionString
from shared.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from azure.core.credentials import TokenCredential
    from azure.servicebus import ServiceBusSender

    from shared.clock import Clock, Deadline
    from shared.invoice_created import InvoiceCreated
    from shared.message import Delivery, Message, RetryState
    from shared.settings import Namespace, ServiceBusSettings

_logger = logging.getLogger(__name__)

# When the owner of a send counts as stuck: a first send signs in and opens a connection and a link. Well before the SDK
# itself gives up: on a connection that is dead without a word it would try again and again, and so would every other
# send; a stuck owner is replaced together with its connection.
_STUCK_AFTER = 15.0
_TRY_SECONDS = 30.0
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
        return cls(
            body=message.body,
            message_id=message_id,
            content_type=message.content_type,
            correlation_id=message.correlation_id,
            subject=message.subject,
            due=due,
            properties={**encodable_properties(message.properties, _OF_COPIES), **properties},
        )


class TooLarge(Exception):
    """The broker accepts no message of this size."""


class NotSent(Exception):
    """The broker has not confirmed the message in time; whether it has accepted it is not known."""


class Sender(Protocol):
    """One attempt to send; safe under many threads."""

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """Return when the broker has accepted the message; raises TooLarge or NotSent."""


class ServiceBus:
    """Publishes, schedules and parks."""

    def __init__(self, sender: Sender, settings: ServiceBusSettings, clock: Clock) -> None:
        self._sender = sender
        self._settings = settings
        self._clock = clock

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
        properties = retry.properties(error)
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
                self._sender.send(entity, outgoing, deadline)
            except NotSent as error:
                _logger.warning("service bus: not sent to %s: %s", entity, error)
                if deadline.remaining <= pause:
                    raise
                self._clock.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            else:
                return


class AmqpSender:
    """Sends with azure-servicebus, whose client only one thread may use and which may block for ever."""

    def __init__(self, connect: Callable[[], ServiceBusClient]) -> None:
        self._owner: Owner[_Senders] = Owner(
            "service bus", Care(build=lambda: _Senders(connect()), close=_Senders.close, idle=5 * 60.0)
        )

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        """See Sender."""
        try:
            self._owner.call(
                lambda senders: senders.send(entity, outgoing),
                limit=_STUCK_AFTER,
                timeout=min(deadline.remaining, _STUCK_AFTER),
            )
        except MessageSizeExceededError as error:
            raise TooLarge("the broker takes no message of this size") from error
        except NotAnswered as error:
            raise NotSent("the broker did not answer in time") from error
        except (ServiceBusError, ClientAuthenticationError, OSError) as error:
            # Only the kind: the text of an AMQP error can hold addresses with signatures.
            raise NotSent(type(error).__name__) from error


class _Senders:
    """A client and its open senders; for the owner's thread only."""

    def __init__(self, client: ServiceBusClient) -> None:
        self._client = client
        self._by_entity: dict[str, ServiceBusSender] = {}

    def send(self, entity: str, outgoing: Outgoing) -> None:
        sender = self._by_entity.get(entity)
        if sender is None:
            # Queues and topics are addressed alike by those who send.
            sender = self._by_entity[entity] = self._client.get_queue_sender(entity)
        sender.send_messages(_amqp(outgoing), timeout=_TRY_SECONDS)

    def close(self) -> None:
        for sender in self._by_entity.values():
            sender.close()
        self._client.close()


def connect(
    settings: ServiceBusSettings, credential: Callable[[Namespace], TokenCredential]
) -> ServiceBusClient:
    """Return a client for the namespace of the settings; `credential` is asked only for an identity's."""
    bounds: dict[str, Any] = {
        # One repeat recovers from a connection that the peer closed while it was idle.
        "retry_total": 1,
        "retry_backoff_factor": 0.1,
        "logging_enable": False,
        # The SDK trusts its own list of authorities otherwise, whatever SSL_CERT_FILE says.
        "ssl_context": ssl.create_default_context(),
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
    return str(error)[: max(length - len(advice), 0)] + advice[:length]


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
