"""The operator's way into the namespace: look by peeking only, pick single messages, send copies.

A queue cannot be searched, and looking by receiving and abandoning wears messages out until they are dead-lettered.
So looking is peeking; and to pick a message, those before it are deferred once: a deferred message stays in its queue,
keeps its place when others are looked at, and is fetched by its sequence number.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from azure.servicebus import ServiceBusMessage
from azure.servicebus.exceptions import MessageNotFoundError

from operations.login import answer_seconds, service_bus_settings_of
from shared.credential import build_credential
from shared.errors import InvalidEvent, OtherOrganization
from shared.message import DEAD_LETTER_DESCRIPTION, DEAD_LETTER_REASON
from shared.opportunity_won import OpportunityWon, parse_event
from shared.owner import Care, NotAnswered, Owner
from shared.service_bus import connect, encodable_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from azure.servicebus import (
        ServiceBusClient,
        ServiceBusReceivedMessage,
        ServiceBusReceiver,
        ServiceBusSender,
    )

    from shared.settings import ServiceBusSettings

Answer = TypeVar("Answer")

_PAGE = 250
# Seconds to wait for an answer, for more messages to come before a queue counts as empty, and for links to close.
ANSWER = 60.0
_QUIET = 5.0
_CLOSING = 5.0


class Namespace:
    """The entities by their names. Links are opened once: each takes a second.

    A thread of its own owns the client and carries out each call, since the SDK may hang for ever on a peer that takes
    connections and says nothing. Whoever calls waits for `seconds` at most, then ClickException is raised.
    """

    def __init__(
        self, settings: ServiceBusSettings, client: Callable[[], ServiceBusClient], seconds: float
    ) -> None:
        self.settings = settings
        self._seconds = seconds
        self._owner = Owner("service bus", Care(build=lambda: Links(client()), close=Links.close))
        self._is_open = False

    def receiver(self, queue: str) -> Receiver:
        """Return the receiver of a queue, in peek-lock, with its link open."""
        return Receiver(self, queue)

    def sender(self, queue: str) -> Sender:
        """Return the sender of a queue, with its link open."""
        return Sender(self, queue)

    def close(self) -> None:
        """Close the links, and wait for that a little: what was asked for is done by now."""
        if self._is_open:
            with suppress(NotAnswered):
                self._owner.call(Links.close, limit=_CLOSING, timeout=_CLOSING)
        self._owner.close()

    def ask(self, do: Callable[[Links], Answer], *, quiet: float = 0.0) -> Answer:
        """Have something done with the links; raises ClickException where there is no answer in time.

        `quiet`: seconds for which the broker is asked to wait before it answers.
        """
        longest = self._seconds + quiet
        try:
            answer = self._owner.call(do, limit=longest, timeout=longest)
        except NotAnswered as error:
            self._is_open = False
            raise click.ClickException(
                f"Service Bus did not answer within {longest:g} s; what was not finished is still where it was. "
                "Something between here and the namespace may drop connections: operations doctor tells."
            ) from error
        self._is_open = True
        return answer


class Receiver:
    """Looks at, and settles, the messages of one queue."""

    def __init__(self, namespace: Namespace, queue: str) -> None:
        self._namespace = namespace
        self._queue = queue
        self._ask(lambda _: None)

    def _ask(self, do: Callable[[ServiceBusReceiver], Answer], *, quiet: float = 0.0) -> Answer:
        return self._namespace.ask(lambda links: do(links.receiver(self._queue)), quiet=quiet)

    def peek(self, following: int, most: int = _PAGE) -> list[ServiceBusReceivedMessage]:
        """Return a page of messages from this sequence number on; moves nothing."""
        return self._ask(lambda link: link.peek_messages(most, sequence_number=following, timeout=ANSWER))

    def receive(self) -> list[ServiceBusReceivedMessage]:
        """Lock a page of what is active; none come where the queue is quiet for some seconds."""
        return self._ask(lambda link: link.receive_messages(_PAGE, max_wait_time=_QUIET), quiet=_QUIET)

    def deferred(self, number: int) -> ServiceBusReceivedMessage | None:
        """Lock the deferred message with this sequence number; None if there is none."""
        try:
            return next(
                iter(self._ask(lambda link: link.receive_deferred_messages(number, timeout=ANSWER))), None
            )
        except MessageNotFoundError:
            return None

    def defer(self, message: ServiceBusReceivedMessage) -> None:
        """Put a locked message aside: it stays in the queue."""
        self._ask(lambda link: link.defer_message(message))

    def complete(self, message: ServiceBusReceivedMessage) -> None:
        """Let a locked message go."""
        self._ask(lambda link: link.complete_message(message))


class Sender:
    """Sends to one queue."""

    def __init__(self, namespace: Namespace, queue: str) -> None:
        self._namespace = namespace
        self._queue = queue
        self._ask(lambda _: None)

    def _ask(self, do: Callable[[ServiceBusSender], Answer]) -> Answer:
        return self._namespace.ask(lambda links: do(links.sender(self._queue)))

    def send(self, message: ServiceBusMessage) -> None:
        """Return when the broker has taken the message."""
        self._ask(lambda link: link.send_messages(message, timeout=ANSWER))

    def cancel(self, number: int) -> None:
        """Cancel the scheduled message with this sequence number."""
        self._ask(lambda link: link.cancel_scheduled_messages(number, timeout=ANSWER))


class Links:
    """A client with its links, each opened once; for the thread that owns it."""

    def __init__(self, client: ServiceBusClient) -> None:
        self._closing = ExitStack()
        self._client = self._closing.enter_context(client)
        self._receivers: dict[str, ServiceBusReceiver] = {}
        self._senders: dict[str, ServiceBusSender] = {}

    def receiver(self, queue: str) -> ServiceBusReceiver:
        """Return the receiver of a queue."""
        if queue not in self._receivers:
            self._receivers[queue] = self._closing.enter_context(self._client.get_queue_receiver(queue))
        return self._receivers[queue]

    def sender(self, queue: str) -> ServiceBusSender:
        """Return the sender of a queue."""
        if queue not in self._senders:
            self._senders[queue] = self._closing.enter_context(self._client.get_queue_sender(queue))
        return self._senders[queue]

    def close(self) -> None:
        """Close everything."""
        self._closing.close()


def environment_of(settings_file: str | None) -> Mapping[str, str]:
    """Return the environment, with the app settings of a local.settings.json put into it.

    Into the process's own: the SDKs read there where the identity is and which certificates are trusted.
    """
    if settings_file is None:
        return os.environ
    try:
        values = json.loads(Path(settings_file).read_text(encoding="utf-8-sig"))["Values"]
        os.environ.update({str(name): str(value) for name, value in values.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.UsageError(
            f'{settings_file} is no local.settings.json: it should be {{"Values": {{"NAME": "value", …}}}}.'
        ) from error
    return os.environ


@contextmanager
def open_namespace(environment: Mapping[str, str]) -> Iterator[Namespace]:
    """Connect with the app settings; raises InvalidSettings."""
    settings = service_bus_settings_of(environment)
    namespace = Namespace(
        settings,
        lambda: connect(settings, lambda one: build_credential(environment, one.client_id)),
        answer_seconds(environment, ANSWER),
    )
    try:
        yield namespace
    finally:
        namespace.close()


def peek_all(namespace: Namespace, queue: str) -> Iterator[ServiceBusReceivedMessage]:
    """Yield every message of a queue, in the order of sequence numbers; moves nothing."""
    receiver = namespace.receiver(queue)
    following = 1
    while page := receiver.peek(following):
        yield from page
        following = sequence_number(page[-1]) + 1


def peek_one(namespace: Namespace, queue: str, number: int) -> ServiceBusReceivedMessage | None:
    """Return the message with this sequence number, if it is in the queue; moves nothing."""
    page = namespace.receiver(queue).peek(number, most=1)
    return page[0] if page and page[0].sequence_number == number else None


class Picker:
    """Locks single messages of a queue by sequence number and leaves all others where they are."""

    def __init__(self, namespace: Namespace, queue: str) -> None:
        self._receiver = namespace.receiver(queue)

    def pick(self, number: int) -> ServiceBusReceivedMessage | None:
        """Lock the message with this sequence number; None if it has left the queue or somebody else holds it."""
        picked = self._receiver.deferred(number)
        if picked is None:
            self._defer_up_to(number)
            picked = self._receiver.deferred(number)
        return picked

    def complete(self, message: ServiceBusReceivedMessage) -> None:
        """Let a picked message go."""
        self._receiver.complete(message)

    def _defer_up_to(self, number: int) -> None:
        """Defer what is active, in order, until the wanted one is: each message is received for this only once."""
        while page := self._receiver.receive():
            for message in page:
                self._receiver.defer(message)
            if sequence_number(page[-1]) >= number:
                return


def copy_of(message: ServiceBusReceivedMessage, *, without: frozenset[str]) -> ServiceBusMessage:
    """Return a message to send, without the properties of these names.

    Its message id is new: duplicate detection would drop the old one without a word.
    """
    properties: dict[str | bytes, Any] = dict(encodable_properties(text_properties(message), without).items())
    return ServiceBusMessage(
        body_of(message),
        application_properties=properties,
        content_type=message.content_type,
        correlation_id=message.correlation_id,
        subject=message.subject,
        message_id=str(uuid.uuid4()),
    )


def text_properties(message: ServiceBusReceivedMessage) -> dict[str, object]:
    """Return the application properties with their keys as text: the SDK gives bytes."""
    return {
        _text(name): value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in (message.application_properties or {}).items()
    }


def body_of(message: ServiceBusReceivedMessage) -> bytes:
    """Return the body; a message with a value or a sequence instead of data has none that Dataverse would send."""
    body = message.body
    return b"".join(body) if hasattr(body, "__iter__") and not isinstance(body, str | bytes | dict) else b""


def opportunity_of(message: ServiceBusReceivedMessage) -> str | None:
    """Return the id of the opportunity that a message is about, where it can be read."""
    try:
        event = parse_event(body_of(message), text_properties(message), message.content_type)
    except (InvalidEvent, OtherOrganization):
        return None
    return event.opportunity_id if isinstance(event, OpportunityWon) else None


def reason_of(message: ServiceBusReceivedMessage) -> tuple[str, str]:
    """Return the reason and the description of a message that failed.

    A parked message and one that was forwarded from a dead-letter queue carry them as application properties.
    """
    properties = text_properties(message)
    reason = properties.get(DEAD_LETTER_REASON) or message.dead_letter_reason or "unknown"
    description = properties.get(DEAD_LETTER_DESCRIPTION) or message.dead_letter_error_description or ""
    return str(reason), str(description)


def sequence_number(message: ServiceBusReceivedMessage) -> int:
    """Return the number that the broker gave to a message."""
    number = message.sequence_number
    if number is None:
        raise click.ClickException("The broker gave a message without a sequence number.")
    return number


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
