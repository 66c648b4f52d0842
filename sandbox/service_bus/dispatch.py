"""Which client gets the next message: links with credit, in turns, woken when there is something for them.

One dispatcher per server. It sleeps until the broker says that a message became available, or until the broker
has something due, and lives in the server's thread.
"""

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sandbox.service_bus.broker import Broker, ReceiveMode
from sandbox.service_bus.codec import encode_message
from sandbox.service_bus.errors import BrokerError
from sandbox.service_bus.messages import BrokeredMessage

if TYPE_CHECKING:
    from sandbox.service_bus.connection import ClientConnection

# The broker's clock may be moved by hand, which nobody tells the event loop.
_LOOK_AT_CLOCK = 0.25


class Dispatcher:
    """Hands the broker's messages to the links that have credit, in turns; lives in the server's thread."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.loop = loop
        self.connections: set[ClientConnection] = set()
        self._outlets: dict[str, deque[Outlet]] = {}
        self._woken: set[str] = set()
        self._woken_lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone = asyncio.Event()
        self._no_more_wakes = broker.on_available(self._note)
        self.arm()

    def _note(self, path: str) -> None:
        """Take note, in any thread, that there may be something to hand out."""
        with self._woken_lock:
            if not self._woken:
                self.loop.call_soon_threadsafe(self._hand_out_woken)
            self._woken.add(path)

    def _hand_out_woken(self) -> None:
        with self._woken_lock:
            paths, self._woken = self._woken, set()
        for path in paths:
            self.hand_out(path)
        self.arm()

    def gone(self, connection: "ClientConnection") -> None:
        """Forget a connection that ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._all_gone.set()

    def add(self, outlet: "Outlet") -> None:
        """Take a link into its entity's turns."""
        self._outlets.setdefault(outlet.path, deque()).append(outlet)

    def remove(self, outlet: "Outlet") -> None:
        """Take a link out of the turns."""
        ring = self._outlets.get(outlet.path)
        if ring and outlet in ring:
            ring.remove(outlet)

    def waiting(self, path: str) -> int:
        """Return how many links would take a message of this entity."""
        return sum(outlet.wants() for outlet in self._outlets.get(path, ()))

    def hand_out(self, path: str) -> None:
        """Give messages to the entity's links, one each in turn, until credit or messages end."""
        ring = self._outlets.get(path)
        touched: set[ClientConnection] = set()
        without = 0
        while ring and without < len(ring):
            outlet = ring[0]
            ring.rotate(-1)
            if not outlet.wants():
                without += 1
                continue
            try:
                received = self.broker.receive(path, 1, outlet.mode)
            except BrokerError as error:
                outlet.connection.refuse(outlet.link, error)
                ring.remove(outlet)
                touched.add(outlet.connection)
                continue
            if not received:
                break
            outlet.deliver(received[0])
            touched.add(outlet.connection)
            without = 0
        for connection in touched:
            connection.flush()

    def tick(self) -> None:
        """Let the broker do what is due, and wake again for the next."""
        self.broker.catch_up()
        self.arm()

    def arm(self) -> None:
        """Wake when the broker has something due next; before, in case its clock is moved."""
        if self._closed:
            return
        due = self.broker.next_event()
        wait = _LOOK_AT_CLOCK
        if due is not None:
            wait = min(wait, max(0.0, (due - self.broker.clock.now()).total_seconds()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(wait, self.tick)

    def drop(self) -> None:
        """Cut every connection without a word."""
        for connection in list(self.connections):
            connection.abort()

    def close(self) -> None:
        """Stop handing out, and end every connection politely."""
        self._closed = True
        self._all_gone.clear()
        self._no_more_wakes()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self.connections):
            connection.close("amqp:connection:forced", "The sandbox's Service Bus is shutting down.")

    async def all_gone(self, within: float) -> None:
        """Wait until every connection has ended; cut those that do not."""
        if not self.connections:
            return
        self.loop.call_later(within, self.drop)
        await self._all_gone.wait()


class Outlet:
    """A link on which a client receives from an entity."""

    def __init__(self, connection: "ClientConnection", link: Any, path: str, mode: ReceiveMode) -> None:  # noqa: ANN401
        self.connection = connection
        self.link = link
        self.path = path
        self.mode = mode

    def wants(self) -> bool:
        """Return whether the client can take a message now."""
        return self.link.credit > 0 and not self.connection.is_congested

    def deliver(self, brokered: BrokeredMessage) -> None:
        """Send a message; its delivery tag is the lock token, as the SDKs expect."""
        token = brokered.lock_token
        delivery = self.link.delivery((token or UUID(int=0)).bytes_le)
        delivery.lock_token = token
        self.link.stream(encode_message(brokered))
        self.link.advance()
        if token is None:
            delivery.settle()
