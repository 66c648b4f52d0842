"""The operator's access to the namespace: peek, lock single messages, send.

A queue cannot be searched, and a message that is received and abandoned too often is dead-lettered. So reading is
peeking. To lock one message, those before it are deferred once: a deferred message stays in its queue, keeps its
number, and is fetched by it.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from azure.servicebus import ServiceBusSubQueue
from azure.servicebus.exceptions import MessageLockLostError, MessageNotFoundError, ServiceBusError

from operations.environment import response_seconds, service_bus_settings_of
from shared.bounded_call import BoundedCalls
from shared.credential import build_credential
from shared.deadline_socket import CallTimeout
from shared.service_bus import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from azure.servicebus import (
        ServiceBusClient,
        ServiceBusMessage,
        ServiceBusReceivedMessage,
        ServiceBusReceiver,
        ServiceBusSender,
    )
    from azure.servicebus.amqp import AmqpAnnotatedMessage

    from shared.settings import ServiceBusSettings

Result = TypeVar("Result")

# The SDK can block without end over plain AMQP, and while it resolves a name.
_calls = BoundedCalls("service bus", 32)
_PAGE = 250
# Seconds to wait for a response, and for more messages before a queue counts as empty.
RESPONSE = 60.0
_QUIET = 5.0
# How often a message that is there is asked for: a broker under load may send nothing for a while.
_LOCK_TRIES = 2
# Nothing depends on it: what is received and not used is locked for a minute at most.
_CLOSING = 2.0
# The SDK's keep-alive is a thread that reads from the link's own connection, without a lock: two messages that arrive
# together can be confused, and the one that stays is locked for a minute. Each call here reads for itself.
_NO_KEEP_ALIVE = 0
# A receiver that prefetches nothing ignores that option. And nothing is prefetched before the first receive, so a
# receiver that only peeks locks nothing.
_PEEKS_ONLY = 1
_DECODER_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
# Numbers that are tried one by one before the steps double: in larger steps, a message between two of the kind could be
# passed over.
_NEAR = 8
# How many messages side by side are passed at most when one behind them is locked.
_MAX_UNDECODABLE = 100
_LAST_NUMBER = 2**63 - 1
# The subscription that keeps every published event.
AUDIT = "audit"


@dataclass(frozen=True)
class Source:
    """A queue, or a subscription of a topic, or the dead-letter queue of one."""

    entity: str
    subscription: str | None = None
    dead_letters: bool = False


class Place(Enum):
    """Where messages that failed can be. The value is the prefix of their ids on the command line."""

    FAILED = ""
    FAILED_DEAD_LETTERS = "failed-dlq:"
    WON_DEAD_LETTERS = "won-dlq:"

    def source(self, settings: ServiceBusSettings) -> Source:
        """Return the entity of this place."""
        queue = settings.opportunity_won_queue if self is Place.WON_DEAD_LETTERS else settings.failed_queue
        return Source(queue, dead_letters=self is not Place.FAILED)


@dataclass(frozen=True)
class MessageId:
    """How an operator names a message that failed: 12, failed-dlq:12, won-dlq:12."""

    place: Place
    number: int

    def __str__(self) -> str:
        return f"{self.place.value}{self.number}"


@dataclass(frozen=True)
class Peeked:
    """A message in a queue. `message` is None where the SDK cannot decode it.

    Then `number` is its own, and there may be more of the kind from `first` on.
    """

    number: int
    message: ServiceBusReceivedMessage | None
    first: int


class _Undecodable(Exception):
    """A message holds an AMQP type that the SDK cannot decode."""


class ServiceBusTimeout(Exception):
    """Service Bus has not responded in time."""


class NamespaceClient:
    """The entities by their names; each link is opened once, at its first use.

    Each call returns within `seconds`, or raises ServiceBusTimeout: the SDK can block without end on a peer that
    accepts connections and stays silent.
    """

    def __init__(
        self, settings: ServiceBusSettings, client: Callable[[], ServiceBusClient], seconds: float
    ) -> None:
        self.settings = settings
        self._new_client = client
        self._seconds = seconds
        self._client: ServiceBusClient | None = None
        self._receivers: dict[Source, ServiceBusReceiver] = {}
        self._locking_receivers: dict[Source, ServiceBusReceiver] = {}
        self._senders: dict[str, ServiceBusSender] = {}
        self._undecodable_in: dict[Source, int] = {}
        self._hangs = False

    def peek_all(self, source: Source, first: int = 1) -> Iterator[ServiceBusReceivedMessage]:
        """Yield every message that the SDK can decode, by sequence number, from `first` on; moves nothing."""
        return (each.message for each in self.peek_every(source, first) if each.message is not None)

    def peek_every(self, source: Source, first: int = 1) -> Iterator[Peeked]:
        """Yield every message, also those that the SDK cannot decode, by sequence number; moves nothing."""
        most = _PAGE
        while True:
            try:
                page = self._peek(source, first, most)
            except _Undecodable:
                if most > 1:
                    # One of them: approach it.
                    most //= 2
                    continue
                undecodable = self._undecodable(source, first)
                yield undecodable
                first, most = undecodable.number + 1, _PAGE
                continue
            if not page:
                return
            yield from page
            first = page[-1].number + 1

    def peek_one(self, source: Source, number: int) -> Peeked | None:
        """Return the message with this sequence number, if it is there; moves nothing."""
        try:
            page = self._peek(source, number, 1)
        except _Undecodable:
            return Peeked(number, None, number)
        return page[0] if page and page[0].number == number else None

    def _peek(self, source: Source, first: int, most: int) -> list[Peeked]:
        """Return a page of messages; raises _Undecodable if the SDK cannot decode one of them."""
        try:
            page = self._sdk_peek(source, first, most)
        except ServiceBusError as error:
            # The SDK has no class for it: what happened is the error that its decoder raised.
            if type(error) is not ServiceBusError or not isinstance(error.inner_exception, _DECODER_ERRORS):
                raise
            # A peer that does not speak AMQP ends like this too, for any peek. No message has the last number.
            self._sdk_peek(source, _LAST_NUMBER, 1)
            raise _Undecodable(f"A message of {source.entity} cannot be decoded.") from error
        return [Peeked(sequence_number(each), each, sequence_number(each)) for each in page]

    def _sdk_peek(self, source: Source, first: int, most: int) -> list[ServiceBusReceivedMessage]:
        return self._bounded(
            lambda: self._receiver(source).peek_messages(most, sequence_number=first, timeout=self._seconds)
        )

    def _undecodable(self, source: Source, first: int) -> Peeked:
        """Return what stands at `first`, where a peek fails: as far as the next number from which one does not.

        A peek that fails says no number. So this goes from number to number, and after `_NEAR` of them in steps that
        double: a queue that has been used for long has gaps of any size.
        """
        fails, step = first, 1
        while self._peek_fails(source, fails + step):
            fails += step
            step = 1 if fails < first + _NEAR else 2 * step
        works = fails + step
        while works - fails > 1:
            middle = (fails + works) // 2
            if self._peek_fails(source, middle):
                fails = middle
            else:
                works = middle
        return Peeked(fails, None, first)

    def _peek_fails(self, source: Source, first: int) -> bool:
        try:
            self._peek(source, min(first, _LAST_NUMBER), 1)
        except _Undecodable:
            return True
        return False

    def lock(self, source: Source, number: int) -> ServiceBusReceivedMessage | None:
        """Lock the message with this sequence number; None if it has left, or somebody else holds it."""
        for _ in range(_LOCK_TRIES):
            locked = self._deferred(source, number)
            if locked is not None or self.peek_one(source, number) is None:
                return locked
            self._defer_up_to(source, number)
        return self._deferred(source, number)

    def complete(self, source: Source, message: ServiceBusReceivedMessage) -> None:
        """Remove a locked message from its queue."""
        self._bounded(lambda: self._receiver(source).complete_message(message))

    def send(self, entity: str, message: ServiceBusMessage | AmqpAnnotatedMessage) -> None:
        """Return when the broker has accepted the message."""
        self._bounded(lambda: self._sender(entity).send_messages(message, timeout=self._seconds))

    def cancel(self, entity: str, number: int) -> bool:
        """Cancel a scheduled message; False if it was due in this moment and is not scheduled any more."""
        try:
            self._bounded(
                lambda: self._sender(entity).cancel_scheduled_messages(number, timeout=self._seconds)
            )
        except MessageNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Close the links; the broker gets back what was received on them and not used."""
        if self._hangs:
            return
        with suppress(CallTimeout):
            _calls.run(self._close_links, _CLOSING)

    def _close_links(self) -> None:
        for link in (*self._locking_receivers.values(), *self._receivers.values(), *self._senders.values()):
            # A connection that is broken by now has nothing left to close.
            with suppress(ServiceBusError, OSError):
                link.close()

    def _deferred(self, source: Source, number: int) -> ServiceBusReceivedMessage | None:
        try:
            found = self._bounded(
                lambda: self._receiver(source).receive_deferred_messages(number, timeout=self._seconds)
            )
        except MessageNotFoundError:
            return None
        return next(iter(found), None)

    def _defer_up_to(self, source: Source, number: int) -> None:
        """Defer what is active, in order, until the wanted one is: each message is received for this only once."""
        # A message that the SDK cannot decode ends the link, with all that came with it: then one comes at a time.
        undecodable = self._count_undecodable(source)
        most = 1 if undecodable else _PAGE
        while True:
            try:
                page = self._bounded(
                    lambda: self._locking_receiver(source, most).receive_messages(most, max_wait_time=_QUIET),
                    quiet=_QUIET,
                )
            except ServiceBusError as error:
                if not (undecodable and isinstance(error.__context__, _DECODER_ERRORS)):
                    raise
                # It stays locked for a minute, and does not come again meanwhile.
                undecodable -= 1
                self._bounded(self._locking_receivers.pop(source).close)
                continue
            if not page:
                return
            receiver = self._locking_receiver(source, most)
            is_deferred = {sequence_number(message): self._defer(receiver, message) for message in page}
            # Where it is not in the page, a later message shows that it has left, or that somebody else holds it.
            if is_deferred.get(number, max(is_deferred) > number):
                return

    def _defer(self, receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> bool:
        """Defer a received message; False if it waited on the link for longer than its lock: it comes again."""
        try:
            self._bounded(lambda: receiver.defer_message(message))
        except MessageLockLostError:
            return False
        return True

    def _count_undecodable(self, source: Source) -> int:
        if source not in self._undecodable_in:
            self._undecodable_in[source] = sum(
                min(each.number - each.first + 1, _MAX_UNDECODABLE)
                for each in self.peek_every(source)
                if each.message is None
            )
        return self._undecodable_in[source]

    def _receiver(self, source: Source) -> ServiceBusReceiver:
        """Return a receiver that peeks, and fetches deferred messages."""
        if source not in self._receivers:
            self._receivers[source] = self._open_receiver(source, _PEEKS_ONLY)
        return self._receivers[source]

    def _locking_receiver(self, source: Source, most: int) -> ServiceBusReceiver:
        """Return a receiver for so many messages at a time: the SDK asks for one more than are to be prefetched."""
        if source not in self._locking_receivers:
            self._locking_receivers[source] = self._open_receiver(source, most - 1)
        return self._locking_receivers[source]

    def _open_receiver(self, source: Source, prefetch: int) -> ServiceBusReceiver:
        client = self._opened()
        options: dict[str, Any] = {
            "sub_queue": ServiceBusSubQueue.DEAD_LETTER if source.dead_letters else None,
            "prefetch_count": prefetch,
            "keep_alive": _NO_KEEP_ALIVE,
        }
        if source.subscription is None:
            return client.get_queue_receiver(source.entity, **options)
        return client.get_subscription_receiver(source.entity, source.subscription, **options)

    def _sender(self, entity: str) -> ServiceBusSender:
        if entity not in self._senders:
            # Queues and topics have the same address for a sender.
            self._senders[entity] = self._opened().get_queue_sender(entity, keep_alive=_NO_KEEP_ALIVE)
        return self._senders[entity]

    def _opened(self) -> ServiceBusClient:
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def _bounded(self, call: Callable[[], Result], *, quiet: float = 0.0) -> Result:
        """Return what the call returns. `quiet`: seconds for which the broker itself is asked to wait."""
        try:
            return _calls.run(call, self._seconds + quiet)
        except CallTimeout as error:
            self._hangs = True
            raise ServiceBusTimeout(
                f"Service Bus did not respond within {self._seconds + quiet:g} s; what was not finished is "
                "unchanged. Something between here and the namespace may drop connections."
            ) from error


@contextmanager
def open_namespace(environment: Mapping[str, str]) -> Iterator[NamespaceClient]:
    """Connect with the app settings; raises InvalidSettings."""
    settings = service_bus_settings_of(environment)
    namespace = NamespaceClient(
        settings,
        lambda: connect(settings, lambda one: build_credential(environment, one.client_id)),
        response_seconds(environment, RESPONSE),
    )
    try:
        yield namespace
    finally:
        namespace.close()


def sequence_number(message: ServiceBusReceivedMessage) -> int:
    """Return the number that the broker gave to a message."""
    number = message.sequence_number
    if number is None:
        raise ServiceBusError("The broker returned a message without a sequence number.")
    return number
