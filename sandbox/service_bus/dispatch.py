"""Which client gets the next message: links with credit, in turns.

One dispatcher per server. It sleeps until the broker reports that a message became available, or until the broker
has something due, and lives in the server's thread. It knows recipients, not connections.
"""

import asyncio
import threading
from collections import deque
from typing import Protocol

from sandbox.service_bus.broker import Broker
from sandbox.service_bus.errors import Refusal
from sandbox.service_bus.messages import BrokeredMessage, ReceiveMode

# The broker's clock may be moved by hand, which the event loop does not notice.
_CHECK_CLOCK_EVERY = 0.25


class Recipient(Protocol):
    """A receiver of an entity's messages, which takes them while it has credit."""

    path: str
    mode: ReceiveMode

    def wants(self) -> bool:
        """Return whether a message can be taken now."""
        ...

    def deliver(self, brokered: BrokeredMessage) -> None:
        """Take a message."""
        ...

    def fail(self, error: Refusal) -> None:
        """Receive the reason why no more messages come."""
        ...

    def flush(self) -> None:
        """Send what was delivered."""
        ...


class Dispatcher:
    """Hands the broker's messages to the links that have credit, in turns; lives in the server's thread."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.loop = loop
        self._recipients: dict[str, deque[Recipient]] = {}
        self._woken: set[str] = set()
        self._woken_lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
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

    def add(self, recipient: Recipient) -> None:
        """Take a link into its entity's turns."""
        self._recipients.setdefault(recipient.path, deque()).append(recipient)

    def remove(self, recipient: Recipient) -> None:
        """Take a link out of the turns."""
        ring = self._recipients.get(recipient.path)
        if ring and recipient in ring:
            ring.remove(recipient)

    def waiting(self, path: str) -> int:
        """Return how many links would take a message of this entity."""
        return sum(recipient.wants() for recipient in self._recipients.get(path, ()))

    def hand_out(self, path: str) -> None:
        """Give messages to the entity's links, one each in turn, until credit or messages end."""
        ring = self._recipients.get(path)
        touched: set[Recipient] = set()
        without = 0
        while ring and without < len(ring):
            recipient = ring[0]
            ring.rotate(-1)
            if not recipient.wants():
                without += 1
                continue
            try:
                received = self.broker.receive(path, 1, recipient.mode)
            except Refusal as error:
                recipient.fail(error)
                ring.remove(recipient)
                touched.add(recipient)
                continue
            if not received:
                break
            recipient.deliver(received[0])
            touched.add(recipient)
            without = 0
        for recipient in touched:
            recipient.flush()

    def tick(self) -> None:
        """Let the broker do what is due, and wake again for the next."""
        self.broker.catch_up()
        self.arm()

    def arm(self) -> None:
        """Wake when the broker has something due next; before, in case its clock is moved."""
        if self._closed:
            return
        due = self.broker.next_event()
        wait = _CHECK_CLOCK_EVERY
        if due is not None:
            wait = min(wait, max(0.0, (due - self.broker.clock.now()).total_seconds()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(wait, self.tick)

    def close(self) -> None:
        """Stop handing out."""
        self._closed = True
        self._no_more_wakes()
        if self._timer is not None:
            self._timer.cancel()
