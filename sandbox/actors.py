"""The two who act around the function: a sales person who wins, and a consumer who hears of invoices.

Both go over the wire, as their real counterparts do.
"""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import requests
from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage, ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusError

from sandbox.cloud import AUDIT_SUBSCRIPTION, CREATED_TOPIC, Cloud
from sandbox.functions_host.configuration import ConnectionString, IdentityConnection
from sandbox.functions_host.connection import Connector
from sandbox.functions_host.trigger import application_properties

_REQUEST_SECONDS = 30.0
_RECEIVE_SECONDS = 0.5


class SalesError(Exception):
    """Dataverse did not let the sales person do it; the text is its answer."""


class SalesPerson:
    """Wins opportunities through the Web API, over HTTPS; for one thread at a time."""

    def __init__(self, cloud: Cloud) -> None:
        self._url = f"{cloud.dataverse_server.url}/api/data/v9.2"
        self._session = requests.Session()
        # Whatever this machine's environment says of proxies and authorities is not meant for the sandbox.
        self._session.trust_env = False
        self._session.verify = str(cloud.certificates.bundle)
        token = cloud.authority.issue(cloud.operator, cloud.dataverse.organization.url)
        self._session.headers.update(
            {
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "OData-MaxVersion": "4.0",
                "OData-Version": "4.0",
            }
        )

    def win(self, opportunity_id: str) -> None:
        """Close an opportunity as won. Raises SalesError, or what requests raises."""
        answer = self._session.post(
            f"{self._url}/WinOpportunity",
            json={
                "OpportunityClose": {
                    "subject": "Won",
                    "opportunityid@odata.bind": f"/opportunities({opportunity_id})",
                },
                "Status": -1,
            },
            timeout=_REQUEST_SECONDS,
        )
        if answer.status_code != HTTPStatus.NO_CONTENT:
            raise SalesError(f"{answer.status_code}: {answer.text}")

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class ReceivedEvent:
    """A message from the topic; `received_at` is of the monotonic clock, in seconds."""

    body: bytes
    application_properties: Mapping[str, object]
    content_type: str | None
    message_id: str | None
    correlation_id: str | None
    received_at: float

    @property
    def content(self) -> dict[str, Any]:
        """The event as JSON."""
        content: dict[str, Any] = json.loads(self.body)
        return content


class Consumer:
    """Receives what is published, from the subscription that gets everything, and completes it."""

    def __init__(self, cloud: Cloud, subscription: str = AUDIT_SUBSCRIPTION) -> None:
        self._connector = Connector(_connection(cloud), str(cloud.certificates.bundle))
        self._subscription = subscription
        self._events: list[ReceivedEvent] = []
        self._arrived = threading.Condition()
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    @property
    def events(self) -> list[ReceivedEvent]:
        """Everything so far, in the order of arrival."""
        with self._arrived:
            return list(self._events)

    def wait_for(self, count: int, timeout: float) -> bool:
        """Wait until `count` events have come, `timeout` seconds at most; tell whether they have."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self._events) >= count, timeout)

    def start(self) -> None:
        """Listen; returns when connected, or after some seconds."""
        self._thread.start()
        self._connected.wait(_REQUEST_SECONDS)

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        self._thread.join(5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connector.connect() as client, self._receiver(client) as receiver:
                    self._connected.set()
                    self._receive(receiver)
            except (ServiceBusError, OSError):
                self._stopping.wait(_RECEIVE_SECONDS)

    def _receiver(self, client: ServiceBusClient) -> ServiceBusReceiver:
        return client.get_subscription_receiver(CREATED_TOPIC, self._subscription)

    def _receive(self, receiver: ServiceBusReceiver) -> None:
        while not self._stopping.is_set():
            for message in receiver.receive_messages(max_message_count=1, max_wait_time=_RECEIVE_SECONDS):
                event = _received(message)
                receiver.complete_message(message)
                with self._arrived:
                    self._events.append(event)
                    self._arrived.notify_all()


def _connection(cloud: Cloud) -> ConnectionString | IdentityConnection:
    if cloud.tls_server is None:
        return ConnectionString(cloud.connection_string)
    server = cloud.identity_server
    return IdentityConnection(cloud.namespace, cloud.operator.client_id, server.endpoint, server.header)


def _received(message: ServiceBusReceivedMessage) -> ReceivedEvent:
    return ReceivedEvent(
        body=b"".join(part if isinstance(part, bytes) else bytes(part) for part in message.body),
        application_properties=application_properties(message),
        content_type=message.content_type,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        received_at=time.monotonic(),
    )
