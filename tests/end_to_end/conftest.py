"""Fixtures of the end-to-end tests: a namespace as an operator sees it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from click.testing import CliRunner

from operations.__main__ import operations
from sandbox.clock import SystemClock
from sandbox.cloud.settings import entity_settings
from sandbox.service_bus import Authenticator, Broker, Configuration, ServiceBusServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result


PATIENCE = 80.0


def wait_until(condition: Callable[[], object], what: str | Callable[[], object]) -> None:
    """Wait for a condition. `what`: what has not happened, if it fails; a function if it changes meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)


@dataclass
class Namespace:
    """A broker, a client, and the command line pointed at it."""

    broker: Broker
    client: ServiceBusClient
    environment: dict[str, str]

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(operations, arguments, env=self.environment)

    def listed(self, *arguments: str) -> list[dict[str, object]]:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        rows: list[dict[str, object]] = json.loads(result.stdout)
        return rows

    def send(self, entity: str, messages: list[ServiceBusMessage]) -> None:
        with self.client.get_queue_sender(entity) as sender:
            for start in range(0, len(messages), 250):
                sender.send_messages(messages[start : start + 250])

    def receive(self, entity: str, count: int) -> list[ServiceBusMessage]:
        received: list[ServiceBusMessage] = []
        with self.client.get_queue_receiver(entity) as receiver:
            while len(received) < count:
                batch = receiver.receive_messages(count - len(received), max_wait_time=10)
                assert batch, f"only {len(received)} of {count} messages came"
                for message in batch:
                    receiver.complete_message(message)
                received.extend(batch)
        return received

    @staticmethod
    def opportunity(number: int) -> str:
        return str(UUID(int=number))

    @staticmethod
    def parked(number: int, reason: str = "InvoiceRefused") -> ServiceBusMessage:
        """Return a message as the function parks it."""
        return ServiceBusMessage(
            json.dumps({"opportunityId": Namespace.opportunity(number)}),
            message_id=f"parked-{number}",
            content_type="application/json",
            correlation_id="correlation",
            application_properties={
                "http://schemas.microsoft.com/xrm/2011/Claims/Organization": "contoso",
                "DeadLetterReason": reason,
                "DeadLetterErrorDescription": "What was wrong. What to do.",
                "InvoicingRoot": "root",
                "InvoicingAttempt": 3,
                "InvoicingFirstSeen": "2026-11-01T12:00:00+00:00",
                "InvoicingOriginalMessageId": "original",
            },
        )

    @staticmethod
    def waiting(number: int, reason: str = "DataverseUnreachable") -> ServiceBusMessage:
        """Return a message as the function schedules it."""
        now = datetime.now(UTC)
        return ServiceBusMessage(
            json.dumps({"opportunityId": Namespace.opportunity(number)}),
            message_id=f"copy-{number}",
            scheduled_enqueue_time_utc=now + timedelta(minutes=10),
            application_properties={
                "InvoicingRoot": "root",
                "InvoicingAttempt": 2,
                "InvoicingFirstSeen": (now - timedelta(hours=2)).isoformat(),
                "InvoicingReason": reason,
                "InvoicingDescription": "What was wrong.",
            },
        )


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    configuration = Configuration.load()
    broker = Broker(configuration, SystemClock())
    with ExitStack() as stack:
        server = stack.enter_context(ServiceBusServer(broker, authenticator=Authenticator(configuration)))
        connection_string = (
            f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )
        client = stack.enter_context(ServiceBusClient.from_connection_string(connection_string))
        yield Namespace(
            broker,
            client,
            {
                "ServiceBusConnection": connection_string,
                **entity_settings(configuration),
            },
        )
