"""Which client gets the next message: links with credit, in turns.

One dispatcher per server. It sleeps until the broker reports that a message became available, or until the broker
has something due.
"""

import asyncio
import threading
from collections import deque

from sandbox.service_bus.broker import Broker
from sandbox.service_bus.errors import Refusal
from sandbox.service_bus.links import EntitySender

# The broker's clock may be moved by hand, which the event loop does not notice.
_CHECK_CLOCK_EVERY = 0.25


class Dispatcher:
    """Hands the broker's messages to the links that have credit, in turns; lives in the server's thread."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.loop = loop
        self._links: dict[str, deque[EntitySender]] = {}
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

    def add(self, link: EntitySender) -> None:
        """Take a link into its entity's turns."""
        self._links.setdefault(link.path, deque()).append(link)

    def remove(self, link: EntitySender) -> None:
        """Take a link out of the turns."""
        ring = self._links.get(link.path)
        if ring and link in ring:
            ring.remove(link)

    def waiting(self, path: str) -> int:
        """Return how many links would take a message of this entity."""
        return sum(link.wants() for link in self._links.get(path, ()))

    def hand_out(self, path: str) -> None:
        """Give messages to the entity's links, one each in turn, until credit or messages end."""
        ring = self._links.get(path)
        touched: set[EntitySender] = set()
        without = 0
        while ring and without < len(ring):
            link = ring[0]
            ring.rotate(-1)
            if not link.wants():
                without += 1
                continue
            try:
                received = self.broker.receive(path, 1, link.mode)
            except Refusal as error:
                link.fail(error)
                ring.remove(link)
                touched.add(link)
                continue
            if not received:
                break
            link.deliver(received[0])
            touched.add(link)
            without = 0
        for link in touched:
            link.flush()

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
