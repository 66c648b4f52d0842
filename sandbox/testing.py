"""A function app under test: send it a message, let it run in its worker, receive what it sends.

    with FunctionApp(Path("app"), Path("entities.json")) as app:
        app.send("orders", {"number": 7})
        assert app.receive("confirmations", "all").json() == {"number": 7, "state": "confirmed"}

The function runs in a process of its own, through Microsoft's library, and its client libraries use real connections.
`sandbox.pytest_plugin` offers it as a fixture. `FunctionApp.cloud` has the parts, for everything else.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sandbox.cloud import Cloud, CloudOptions, Mode
from sandbox.service_bus import BrokeredMessage, Message, ReceiveMode
from sandbox.start_stop import StartStop

_POLL_SECONDS = 0.01
_MANY = 1_000


class NothingReceived(AssertionError):
    """No message came within the time; the text says where, and how many were dead-lettered there and elsewhere."""


@dataclass(frozen=True)
class ReceivedMessage:
    """A message that the function sent."""

    body: bytes
    message_id: str | None
    correlation_id: str | None
    subject: str | None
    content_type: str | None
    application_properties: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """Return the body as JSON."""
        return json.loads(self.body)


class FunctionApp(StartStop):
    """A function app in a sandbox of its own, from `start` to `stop`; a context manager.

    `folder` has host.json and function_app.py, or the functions' folders; `entities` describes the queues, topics and
    subscriptions in the official emulator's format. `settings` are further app settings. A connection that a trigger
    names, such as `Bus`, is set by the sandbox. In the identity mode the function may receive where its triggers do and
    send where a setting names a queue or topic.
    """

    def __init__(
        self,
        folder: Path,
        entities: Path,
        settings: Mapping[str, str] | None = None,
        *,
        mode: Mode = Mode.CONNECTION_STRING,
    ) -> None:
        """Read the entities; raises CannotStart."""
        self.cloud = Cloud(
            CloudOptions(folder, mode=mode, settings=settings or {}, entities=entities, dataverse=False)
        )

    def start(self) -> None:
        """Start it. Raises CannotStart, InvalidAppConfiguration, or WorkerDied for an app that cannot be loaded."""
        self.cloud.start()

    def stop(self) -> None:
        """Stop it; nothing is left behind."""
        self.cloud.stop()

    @property
    def settings(self) -> Mapping[str, str]:
        """The app settings, as the function sees them."""
        return self.cloud.app_settings

    def send(
        self,
        entity: str,
        body: object,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        subject: str | None = None,
        content_type: str | None = None,
        application_properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Send to a queue or topic: bytes and text as they are, anything else as JSON."""
        content, kind = _encoded(body)
        self.cloud.broker.send(
            entity,
            Message(
                body=content,
                message_id=message_id,
                correlation_id=correlation_id,
                subject=subject,
                content_type=content_type or kind,
                application_properties=application_properties or {},
            ),
        )

    def receive(
        self, entity: str, subscription: str | None = None, *, timeout: float = 30.0
    ) -> ReceivedMessage:
        """Take the next message of a queue, or of a topic's subscription. Raises NothingReceived."""
        path = _path(entity, subscription)
        deadline = time.monotonic() + timeout
        while True:
            for received in self.cloud.broker.receive(path, 1, ReceiveMode.RECEIVE_AND_DELETE):
                return _received(received)
            if time.monotonic() > deadline:
                raise NothingReceived(f"no message came to {path} within {timeout:g} s{self._dead_letters()}")
            time.sleep(_POLL_SECONDS)

    def dead_letters(
        self, entity: str, subscription: str | None = None, *, count: int = 1, timeout: float = 30.0
    ) -> Sequence[ReceivedMessage]:
        """Wait until so many messages are dead-lettered, and return them; they stay. Raises NothingReceived."""
        path = f"{_path(entity, subscription)}/$DeadLetterQueue"
        deadline = time.monotonic() + timeout
        while True:
            dead = self.cloud.broker.peek(path, 0, _MANY)
            if len(dead) >= count:
                return [_received(each) for each in dead]
            if time.monotonic() > deadline:
                raise NothingReceived(f"{len(dead)} messages are in {path} after {timeout:g} s, not {count}")
            time.sleep(_POLL_SECONDS)

    def pass_time(self, by: timedelta) -> None:
        """Let time pass for Service Bus: scheduled messages become due, locks and messages expire."""
        self.cloud.move_broker_clock(by)

    def clear(self) -> None:
        """Drop every message that is not being processed, dead letters included."""
        for path in self._paths():
            for each in (path, f"{path}/$DeadLetterQueue"):
                while self.cloud.broker.receive(each, _MANY, ReceiveMode.RECEIVE_AND_DELETE):
                    pass

    def _paths(self) -> list[str]:
        configuration = self.cloud.configuration
        subscriptions = [each.queue.path for topic in configuration.topics for each in topic.subscriptions]
        return [queue.path for queue in configuration.queues] + subscriptions

    def _dead_letters(self) -> str:
        """Say where messages were dead-lettered, because then the function has failed: its error is in the log."""
        counts = {path: self.cloud.broker.counts(path).dead_letter for path in self._paths()}
        found = [f"{count} in {path}" for path, count in counts.items() if count]
        return f"; dead-lettered: {', '.join(found)}" if found else ""


def _path(entity: str, subscription: str | None) -> str:
    return f"{entity}/Subscriptions/{subscription}" if subscription else entity


def _encoded(body: object) -> tuple[bytes, str | None]:
    if isinstance(body, bytes):
        return body, None
    if isinstance(body, str):
        return body.encode(), "text/plain"
    return json.dumps(body).encode(), "application/json"


def _received(received: BrokeredMessage) -> ReceivedMessage:
    message = received.message
    return ReceivedMessage(
        body=message.body if isinstance(message.body, bytes) else str(message.body).encode(),
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        subject=message.subject,
        content_type=message.content_type,
        application_properties=dict(message.application_properties),
    )
