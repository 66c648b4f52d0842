"""One client's socket: moves bytes between asyncio and the AMQP engine.

A client that reads slowly is not read from either until it has caught up, so what is kept for it stays bounded and
no other client waits for it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandbox.service_bus.amqp import Connection, Limits

if TYPE_CHECKING:
    from sandbox.service_bus.client import Client

_LOG = logging.getLogger(__name__)
# A client that is refused gets this long to read why: closing at once could destroy what it has not read yet.
_LINGER_SECONDS = 0.25


class ClientSocket(asyncio.Protocol):
    """One client's connection. `new_client` makes what handles its events; it is in `clients` while connected."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        new_client: Callable[["ClientSocket"], "Client"],
        clients: "ConnectedClients",
    ) -> None:
        self.amqp = Connection(limits, loop.time())
        self.is_congested = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_silent = False
        self._is_ending = False
        self._client = new_client(self)
        self._clients = clients

    # For the owner

    @property
    def peer(self) -> tuple[str, int] | None:
        """Return the client's address; None once it is gone."""
        if self._transport is None:
            return None
        host, port = self._transport.get_extra_info("peername")[:2]
        return host, port

    def flush(self) -> None:
        """Send the engine's output; close the socket after its last frame."""
        if self._transport is None or self.is_congested or self._is_silent:
            return
        data = self.amqp.take_output(self._loop.time())
        if data and not self._transport.is_closing():
            self._transport.write(data)
        if self.amqp.is_closed and not self._is_ending:
            self._is_ending = True
            if self.amqp.is_closed_by_peer:
                self._hang_up()
            else:
                self._set_timer(self._loop.time() + _LINGER_SECONDS, self._hang_up)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def go_silent(self) -> None:
        """Read and write nothing any more, but keep the connection open."""
        self._is_silent = True

    def call_later(self, seconds: float, act: Callable[[], None]) -> None:
        """Act after some time, unless the connection has ended by then."""
        self._loop.call_later(seconds, self._act_late, act)

    def shut_down(self) -> None:
        """End the connection with an AMQP close, as the service does when a node of it restarts."""
        if self._transport is None:
            return
        text = "The sandbox's Service Bus is shutting down."
        self.amqp.close(self.amqp.error("amqp:connection:forced", text))
        self.flush()
        self._hang_up()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport
        self._clients.add(self)
        self._beat()

    def data_received(self, data: bytes) -> None:
        """Handle what the client sends."""
        if self._is_silent or self.amqp.is_closed:
            return
        with self._aborting_on_exception():
            heartbeat = self.amqp.heartbeat_seconds
            for event in self.amqp.receive(data, self._loop.time()):
                self._client.handle(event)
            self.flush()
            self._client.input_done()
            if self.amqp.heartbeat_seconds != heartbeat:
                self._beat()

    def pause_writing(self) -> None:
        """Stop while the client does not read."""
        self.is_congested = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue when it does."""
        self.is_congested = False
        with self._aborting_on_exception():
            self.flush()
            self._client.output_possible()
            # It may have become congested again.
            if self._transport is not None and not self._transport.is_closing() and not self.is_congested:
                self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Forget the client."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._client.disconnected()
        self._clients.remove(self)

    # Inside

    def _beat(self) -> None:
        due = self.amqp.tick(self._loop.time())
        self.flush()
        if not self._is_ending:
            self._set_timer(due, self._beat)

    def _set_timer(self, when: float, act: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, act)

    def _hang_up(self) -> None:
        # Never twice: a TLS transport that is closed twice forgets its protocol, and cannot be aborted any more.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def _act_late(self, act: Callable[[], None]) -> None:
        if self._transport is None:
            return
        with self._aborting_on_exception():
            act()
            self.flush()

    @contextmanager
    def _aborting_on_exception(self) -> Iterator[None]:
        """Let an unexpected exception end this connection and no other, with a line in the log."""
        try:
            yield
        except Exception:  # noqa: BLE001 - logged with its trace, and the client sees the connection break
            _LOG.exception("the Service Bus emulator failed on a connection")
            self.abort()


class ConnectedClients:
    """The clients of a server that are connected."""

    def __init__(self) -> None:
        self._sockets: set[ClientSocket] = set()
        self._all_gone = asyncio.Event()

    def add(self, socket: ClientSocket) -> None:
        """Take note of a client that connected."""
        self._sockets.add(socket)

    def remove(self, socket: ClientSocket) -> None:
        """Forget a client that has gone."""
        self._sockets.discard(socket)
        if not self._sockets:
            self._all_gone.set()

    def abort(self) -> None:
        """Cut every connection."""
        for socket in list(self._sockets):
            socket.abort()

    async def close(self, within: float) -> None:
        """End every connection with an AMQP close, and cut those that have not ended in time."""
        self._all_gone.clear()
        for socket in list(self._sockets):
            socket.shut_down()
        if self._sockets:
            cut = asyncio.get_running_loop().call_later(within, self.abort)
            await self._all_gone.wait()
            cut.cancel()
