"""The port at which clients come: each connection that was accepted is served, or closed, also while it stops.

asyncio's own server makes connections of accepted sockets a moment later, in tasks that nobody can wait for. Where it
is closed in that moment, or in the middle of a TLS handshake, the client hangs on a socket that nobody owns.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

_LOG = logging.getLogger(__name__)
_BACKLOG = 256
# A machine out of file descriptors has some again when a connection ends.
_ACCEPT_AGAIN_AFTER = 1.0


def run_listening(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` as asyncio.run does, in the one kind of loop that can watch a listening socket on every system."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main)


class Listener:
    """Accepts connections at one address, from its making until `close`; lives in the loop of `run_listening`.

    Raises OSError where the address is not free.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        new_connection: Callable[[], asyncio.Protocol],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._new_connection = new_connection
        self._ssl_context = ssl_context
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
            return  # the client has thought better of it
        except OSError as error:
            _LOG.warning("a client cannot be let in, trying again in a moment: %s", error)
            self._loop.remove_reader(self._socket)
            self._waiting = self._loop.call_later(_ACCEPT_AGAIN_AFTER, self._listen)
            return
        task = self._loop.create_task(self._let_in(client))
        self._arriving[task] = client
        task.add_done_callback(self._arriving.pop)

    async def _let_in(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._new_connection, client, ssl=self._ssl_context)
        except OSError as error:
            _LOG.info("a client did not get in: %s", error)

    async def close(self) -> None:
        """Accept no more, and return when everyone who is between the door and a connection is through, or gone."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for client in self._arriving.values():
            # Whoever is gone already is not connected any more. To asyncio it looks as if the client had hung up, which
            # ends a TLS handshake at once, and in order.
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        if self._arriving:
            await asyncio.wait(self._arriving)
