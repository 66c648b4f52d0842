"""How the sandbox's Dataverse posts an event: to the queue of the service endpoint, with its key, over AMQP."""

import ssl
import threading
import uuid
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSender

from sandbox.dataverse import ServiceEndpoint

_TIMEOUT_SECONDS = 10.0
_Properties = dict[str | bytes, int | float | bytes | bool | str | uuid.UUID]


class ServiceEndpointPoster:
    """A `Post` for Dataverse: raises what the client library raises, and Dataverse tries again later.

    A namespace address with a port (`sb://127.0.0.1:5672/`) is the sandbox's plain one, without a port one over TLS.
    There is one post at a time, since senders are not thread-safe.
    """

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        self._lock = threading.Lock()
        self._open: tuple[ServiceEndpoint, ServiceBusClient, ServiceBusSender] | None = None

    def __call__(
        self, endpoint: ServiceEndpoint, body: bytes, properties: Mapping[str, str], content_type: str
    ) -> None:
        """Send one message."""
        message = ServiceBusMessage(
            body,
            # The library's type says any primitive, and dictionaries do not vary in what they hold.
            application_properties=cast("_Properties", {**properties}),
            content_type=content_type,
            # Whether Dataverse repeats a post with the id of the first is not confirmed; here each has its own.
            message_id=uuid.uuid4().hex,
        )
        with self._lock:
            try:
                self._sender(endpoint).send_messages(message, timeout=_TIMEOUT_SECONDS)
            except Exception:
                self._close()
                raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            self._close()

    def _sender(self, endpoint: ServiceEndpoint) -> ServiceBusSender:
        if self._open is not None and self._open[0] != endpoint:
            # Its address or its key was changed.
            self._close()
        if self._open is None:
            client = ServiceBusClient.from_connection_string(
                _connection_string(endpoint),
                retry_total=1,
                retry_backoff_factor=0.1,
                ssl_context=self._trust,
            )
            self._open = (endpoint, client, client.get_queue_sender(endpoint.path))
        return self._open[2]

    def _close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            _, client, sender = opened
            sender.close()
            client.close()


def _connection_string(endpoint: ServiceEndpoint) -> str:
    address = endpoint.namespace_address.rstrip("/")
    is_plain = urlsplit(address).port is not None
    return (
        f"Endpoint={address}/;SharedAccessKeyName={endpoint.sas_key_name};SharedAccessKey={endpoint.sas_key}"
        + (";UseDevelopmentEmulator=true" if is_plain else "")
    )
