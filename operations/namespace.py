"""The operator's way into the namespace: look by peeking only, pick single messages, send copies.

A queue cannot be searched, and looking by receiving and abandoning wears messages out until they are dead-lettered.
So looking is peeking; and to pick a message, those before it are deferred once: a deferred message stays in its queue,
keeps its place when others are looked at, and is fetched by its sequence number.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from azure.servicebus.exceptions import MessageNotFoundError

from operations.login import service_bus_settings_of
from shared.credential import build_credential
from shared.errors import InvalidEvent, OtherOrganization
from shared.message import DEAD_LETTER_DESCRIPTION, DEAD_LETTER_REASON
from shared.opportunity_won import OpportunityWon, parse_event
from shared.service_bus import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from azure.servicebus import (
        ServiceBusClient,
        ServiceBusReceivedMessage,
        ServiceBusReceiver,
        ServiceBusSender,
    )

    from shared.settings import ServiceBusSettings

_PAGE = 250
# Seconds to wait for an answer, and for more messages to come before a queue counts as empty.
ANSWER = 60.0
_QUIET = 5.0


class Namespace:
    """A client with the names of the entities; for one thread. Links are opened once: each takes a second."""

    def __init__(self, client: ServiceBusClient, settings: ServiceBusSettings, closing: ExitStack) -> None:
        self.settings = settings
        self._client = client
        self._closing = closing
        self._receivers: dict[str, ServiceBusReceiver] = {}
        self._senders: dict[str, ServiceBusSender] = {}

    def receiver(self, queue: str) -> ServiceBusReceiver:
        """Return the open receiver of a queue, in peek-lock."""
        if queue not in self._receivers:
            self._receivers[queue] = self._closing.enter_context(self._client.get_queue_receiver(queue))
        return self._receivers[queue]

    def sender(self, queue: str) -> ServiceBusSender:
        """Return the open sender of a queue."""
        if queue not in self._senders:
            self._senders[queue] = self._closing.enter_context(self._client.get_queue_sender(queue))
        return self._senders[queue]


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
    with ExitStack() as closing:
        client = connect(settings, lambda namespace: build_credential(environment, namespace.client_id))
        yield Namespace(closing.enter_context(client), settings, closing)


def peek_all(namespace: Namespace, queue: str) -> Iterator[ServiceBusReceivedMessage]:
    """Yield every message of a queue, in the order of sequence numbers; moves nothing."""
    receiver = namespace.receiver(queue)
    following = 1
    while page := receiver.peek_messages(_PAGE, sequence_number=following, timeout=ANSWER):
        yield from page
        following = sequence_number(page[-1]) + 1


class Picker:
    """Locks single messages of a queue by sequence number and leaves all others where they are."""

    def __init__(self, namespace: Namespace, queue: str) -> None:
        self._receiver = namespace.receiver(queue)

    def pick(self, number: int) -> ServiceBusReceivedMessage | None:
        """Lock the message with this sequence number; None if it has left the queue or somebody else holds it."""
        picked = self._deferred(number)
        if picked is None:
            self._defer_up_to(number)
            picked = self._deferred(number)
        return picked

    def complete(self, message: ServiceBusReceivedMessage) -> None:
        """Let a picked message go."""
        self._receiver.complete_message(message)

    def _deferred(self, number: int) -> ServiceBusReceivedMessage | None:
        try:
            return next(iter(self._receiver.receive_deferred_messages(number, timeout=ANSWER)), None)
        except MessageNotFoundError:
            return None

    def _defer_up_to(self, number: int) -> None:
        """Defer what is active, in order, until the wanted one is: each message is received for this only once."""
        while page := self._receiver.receive_messages(_PAGE, max_wait_time=_QUIET):
            for message in page:
                self._receiver.defer_message(message)
            if sequence_number(page[-1]) >= number:
                return


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
