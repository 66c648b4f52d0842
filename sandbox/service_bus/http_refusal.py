"""Refuses HTTP: management (ServiceBusAdministrationClient) and AMQP over WebSockets are not supported."""

import asyncio

_METHODS = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"PATC", b"OPTI")
_MESSAGE = (
    b"The Service Bus emulator does not support HTTP: neither management (ServiceBusAdministrationClient) nor AMQP "
    b"over WebSockets. Define queues, topics and subscriptions in the entities file; connect with AMQP over TCP.\n"
)
RESPONSE = (
    b"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_MESSAGE), _MESSAGE)
)
# How long a client may take to send its request and to read the response.
_PATIENCE_SECONDS = 5.0
_MAX_REQUEST = 64 * 1024


def is_http(start: bytes) -> bool:
    """Return whether bytes begin an HTTP request."""
    return start.startswith(_METHODS)


class HttpRefusal(asyncio.Protocol):
    """One client that came with TLS to a port for plain AMQP: an HTTPS request, or a mistake."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport
        self._loop.call_later(_PATIENCE_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Respond once the request's head is complete; anything but HTTP ends the connection."""
        self._request += data
        assert self._transport is not None  # noqa: S101 - for the type checker
        if not is_http(self._request[:4]) or len(self._request) > _MAX_REQUEST:
            self._transport.abort()
        elif b"\r\n\r\n" in self._request and not self._transport.is_closing():
            self._transport.write(RESPONSE)
            self._transport.close()
