"""One connection's bytes: between asyncio's sockets and Proton's protocol engine.

Proton's engine is fed what arrives and asked what to send; its events go to the methods `on_…` of the subclass,
which knows what they mean. All of it happens in the event loop's thread, and everything of Proton's is let go
there too: its objects are not safe to be freed by a garbage collection elsewhere.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proton import Collector, Condition, Connection, ProtonException, Transport, symbol

from sandbox.service_bus.sasl import NotAmqp, Prelude

PRODUCT = "Service Bus stand-in"
_LOG = logging.getLogger(__name__)
# As Azure has them.
_MAX_FRAME = 64 * 1024
_IDLE_SECONDS = 240.0


class Engine(asyncio.Protocol):
    """The protocol engine of one connection; subclasses add `on_…` methods for Proton's events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._prelude = Prelude(self.check_plain)
        self._wire: asyncio.Transport | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self.is_congested = False
        # Proton's types promise less than its objects do.
        self._collector: Any = Collector()
        self._transport: Any = Transport(Transport.SERVER)
        self._transport.idle_timeout = _IDLE_SECONDS
        self._transport.max_frame_size = _MAX_FRAME
        self._connection: Any = Connection()
        self._connection.collect(self._collector)
        self._transport.bind(self._connection)

    # For subclasses

    def check_plain(self, user: str, password: str) -> None:
        """Check a user name and password; raise Unauthorized if they are wrong."""
        raise NotImplementedError

    def input_done(self) -> None:
        """Do what is to be done after input was worked off."""

    def decongested(self) -> None:
        """Go on after the peer was slow in reading."""

    # For the subclass's owner

    def flush(self) -> None:
        """Write what the engine has to say."""
        if self._transport is None or self._wire is None:
            return
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        deadline = self._transport.tick(self._loop.time())
        try:
            while not self.is_congested and (pending := self._transport.pending()) > 0:
                self._write(bytes(self._transport.peek(pending)))
                self._transport.pop(pending)
            ended = not self.is_congested and pending < 0
        except ProtonException:
            ended = True
        if ended:
            self._hang_up()
        elif deadline:
            self._heartbeat = self._loop.call_at(deadline, self._beat)

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._wire is not None:
            self._wire.abort()

    def close(self, condition: str, description: str) -> None:
        """End the connection with an AMQP close, as the service does when a node of it restarts."""
        if self._connection is None or self._wire is None or not self._prelude.done:
            self.abort()
            return
        # The Python SDK reads the third field of an error without looking whether it is there.
        self._connection.condition = Condition(condition, description, {symbol("product"): PRODUCT})
        self._connection.close()
        self.flush()
        self._hang_up()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._wire = transport

    def data_received(self, data: bytes) -> None:
        """Feed what arrived, first to the prelude, then to Proton."""
        with self._aborting_on_error():
            if not self._prelude.done:
                try:
                    answer, data = self._prelude.feed(data)
                except NotAmqp as error:
                    self._write(error.answer)
                    self._hang_up()
                    return
                self._write(answer)
            self._push(data)
            self.input_done()

    def pause_writing(self) -> None:
        """Hold back while the peer does not read."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """Go on when it does."""
        self.is_congested = False
        with self._aborting_on_error():
            self.flush()
            self.decongested()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Let everything of Proton's go."""
        self._wire = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._transport is not None:
            self._transport.unbind()
            self._collector.release()
            self._connection.free()
        self._transport = self._connection = self._collector = None

    # Inside

    def _push(self, data: bytes) -> None:
        try:
            while data and (capacity := self._transport.capacity()) > 0:
                self._transport.push(data[:capacity])
                data = data[capacity:]
                self._dispatch_events()
        except ProtonException as error:
            _LOG.warning("a client broke the protocol: %s", error)
        self._dispatch_events()
        self.flush()

    def _dispatch_events(self) -> None:
        while (event := self._collector.peek()) is not None:
            event.dispatch(self)
            self._collector.pop()

    def _beat(self) -> None:
        with self._aborting_on_error():
            self.flush()
            self._dispatch_events()

    def _hang_up(self) -> None:
        # Never twice: a TLS transport that is closed twice forgets its protocol, and cannot be aborted any more.
        if self._wire is not None and not self._wire.is_closing():
            self._wire.close()

    def _write(self, data: bytes) -> None:
        if data and self._wire is not None and not self._wire.is_closing():
            self._wire.write(data)

    @contextmanager
    def _aborting_on_error(self) -> Iterator[None]:
        """Let a mistake of ours end this connection, visibly, and no other."""
        try:
            yield
        except Exception:  # noqa: BLE001 - logged with its trace, and the client sees the connection break
            _LOG.exception("the Service Bus stand-in failed on a connection")
            self.abort()
