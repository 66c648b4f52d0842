"""A port that clients connect to: each connection that was accepted is served or closed, also while the port closes.

asyncio's own server makes connections of accepted sockets a moment later, in tasks that cannot be waited for. If it is
closed in that moment, or in the middle of a TLS handshake, the client keeps a socket that no code owns any more.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_LOG = logging.getLogger(__name__)
_BACKLOG = 256
# A machine out of file descriptors has some again when a connection ends.
_ACCEPT_AGAIN_AFTER = 1.0
# How long a client may be connected without sending anything, where its first byte decides what it gets.
_FIRST_BYTE_WITHIN = 240.0
_TLS_HANDSHAKE = b"\x16"

NewConnection = Callable[[], asyncio.Protocol]


def run_listening(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` as asyncio.run does, in the one kind of loop that can watch a listening socket on every system."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main)


@dataclass(frozen=True)
class UnexpectedTls:
    """What a client gets that begins TLS on a plain port: a TLS connection of its own."""

    new_connection: NewConnection
    ssl_context: ssl.SSLContext


class Listener:
    """Accepts connections at one address, from its creation until `close`; lives in the loop of `run_listening`.

    Raises OSError where the address is not free.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        new_connection: NewConnection,
        ssl_context: ssl.SSLContext | None = None,
        unexpected_tls: UnexpectedTls | None = None,
    ) -> None:
        self._loop = loop
        self._new_connection = new_connection
        self._ssl_context = ssl_context
        self._unexpected_tls = unexpected_tls
        self._arriving: dict[asyncio.Task[None], socket.socket] = {}
        self._waiting: asyncio.TimerHandle | None = None
        is_v6 = ipaddress.ip_address(address[0]).version == 6  # noqa: PLR2004 - the version's name
        self._socket = socket.create_server(
            address, family=socket.AF_INET6 if is_v6 else socket.AF_INET, backlog=_BACKLOG
        )
        self.port: int = self._socket.getsockname()[1]
        self._socket.settimeout(0)
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # the client has gone again
        except OSError as error:
            _LOG.warning("a client's connection cannot be accepted, trying again in a moment: %s", error)
            self._loop.remove_reader(self._socket)
            self._waiting = self._loop.call_later(_ACCEPT_AGAIN_AFTER, self._listen)
            return
        task = self._loop.create_task(self._connect(client))
        self._arriving[task] = client
        task.add_done_callback(self._arriving.pop)

    async def _connect(self, client: socket.socket) -> None:
        new_connection, ssl_context = self._new_connection, self._ssl_context
        try:
            if self._unexpected_tls is not None and await self._begins_tls(client):
                new_connection = self._unexpected_tls.new_connection
                ssl_context = self._unexpected_tls.ssl_context
            await self._loop.connect_accepted_socket(new_connection, client, ssl=ssl_context)
        except OSError as error:
            _LOG.info("a client did not connect: %s", error)
            client.close()

    async def _begins_tls(self, client: socket.socket) -> bool:
        """Wait for a client's first byte, which stays to be read; raise TimeoutError."""
        client.setblocking(False)  # noqa: FBT003 - the socket's own
        readable = asyncio.Event()
        self._loop.add_reader(client, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), _FIRST_BYTE_WITHIN)
        finally:
            self._loop.remove_reader(client)
        return client.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE

    async def close(self) -> None:
        """Accept no more, and return when every client that was accepted is connected, or gone."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for client in self._arriving.values():
            # A client that has gone already is not connected any more. To asyncio it looks as if the client had closed
            # its side, which ends a TLS handshake at once, and in order.
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        if self._arriving:
            await asyncio.wait(self._arriving)
