"""What the broker stores: messages with their state, in the order of their sequence numbers.

`lifecycle` has the rules of delivery and of time.
"""

import heapq
import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sandbox.service_bus.configuration import QueueSettings, Rule
from sandbox.service_bus.messages import BrokeredMessage, Message, MessageState


@dataclass(slots=True, eq=False)
class StoredMessage:
    """A message with its state in the broker."""

    message: Message
    sequence_number: int
    enqueued_at: datetime
    enqueued_sequence_number: int = field(init=False)
    lifetime: timedelta | None = field(init=False)
    expires_at: datetime | None = None
    state: MessageState = MessageState.ACTIVE
    available: bool = False
    delivery_count: int = 0
    lock_token: UUID | None = None
    locked_until: datetime | None = None
    dead_letter_source: str | None = None

    def __post_init__(self) -> None:
        self.enqueued_sequence_number = self.sequence_number
        self.lifetime = self.message.time_to_live

    def copied(self, sequence_number: int, now: datetime) -> "StoredMessage":
        """Return a copy with a new sequence number: for another entity, or for when its scheduled time comes."""
        copy = StoredMessage(self.message, sequence_number, now)
        copy.enqueued_sequence_number = self.enqueued_sequence_number
        copy.dead_letter_source = self.dead_letter_source
        return copy

    def is_expired(self, now: datetime) -> bool:
        """Return whether the message has outlived its time to live."""
        return self.expires_at is not None and self.expires_at <= now

    def modify(self, properties: Mapping[str, Any] | None) -> None:
        """Set some application properties; keep the others."""
        if properties:
            merged = {**self.message.application_properties, **properties}
            self.message = replace(self.message, application_properties=merged)

    def brokered(self, path: str) -> BrokeredMessage:
        """Return the message as a receiver gets it."""
        return BrokeredMessage(
            message=self.message,
            entity=path,
            sequence_number=self.sequence_number,
            enqueued_sequence_number=self.enqueued_sequence_number,
            enqueued_at=self.enqueued_at,
            delivery_count=self.delivery_count,
            state=self.state,
            expires_at=self.expires_at,
            lock_token=self.lock_token,
            locked_until=self.locked_until,
            dead_letter_source=self.dead_letter_source,
        )


class Store:
    """The messages of one entity, in order of their sequence numbers."""

    def __init__(
        self,
        settings: QueueSettings,
        *,
        dead_letters: "Store | None" = None,
        subscriptions: "list[Store] | None" = None,
    ) -> None:
        self.settings = settings
        self.path = settings.path
        self.status = settings.status
        self.max_message_size = settings.max_message_size
        self.dead_letters = dead_letters
        # The stores of a topic's subscriptions; None for an entity that messages are received from.
        self.subscriptions = subscriptions
        # The rules of a subscription, by name in lower case, with the time at which each was created.
        self.rules: dict[str, tuple[Rule, datetime]] = {}
        self.messages: dict[int, StoredMessage] = {}
        self.locked: dict[UUID, StoredMessage] = {}
        self._numbers = itertools.count(1)
        self._order: list[int] = []
        self._available: list[int] = []
        self._seen: OrderedDict[str, datetime] = OrderedDict()

    def next_number(self) -> int:
        """Return the next sequence number."""
        return next(self._numbers)

    def add(self, stored: StoredMessage) -> None:
        """Store a message."""
        self.messages[stored.sequence_number] = stored
        insort(self._order, stored.sequence_number)

    def remove(self, stored: StoredMessage) -> None:
        """Remove a message and its lock."""
        self.unlock(stored)
        stored.available = False
        if self.messages.pop(stored.sequence_number, None) is not None:
            del self._order[bisect_left(self._order, stored.sequence_number)]

    def unlock(self, stored: StoredMessage) -> None:
        """Remove a message's lock."""
        if stored.lock_token is not None:
            self.locked.pop(stored.lock_token, None)
        stored.lock_token = stored.locked_until = None

    def make_available(self, stored: StoredMessage) -> None:
        """Make a message available for delivery."""
        if not stored.available:
            stored.available = True
            heapq.heappush(self._available, stored.sequence_number)

    def next_available(self) -> StoredMessage | None:
        """Take the available message with the lowest sequence number; None if there is none."""
        while self._available:
            stored = self.messages.get(heapq.heappop(self._available))
            if stored is not None and stored.available:
                stored.available = False
                return stored
        return None

    def from_number(self, number: int) -> Iterator[StoredMessage]:
        """Yield the messages from a sequence number on."""
        for position in range(bisect_left(self._order, number), len(self._order)):
            yield self.messages[self._order[position]]

    def is_duplicate(self, message: Message, now: datetime) -> bool:
        """Return whether this id was accepted within the window; remember it if not."""
        window = self.settings.duplicate_detection_window
        if window is None or message.message_id is None:
            return False
        while self._seen and next(iter(self._seen.values())) <= now - window:
            self._seen.popitem(last=False)
        if (key := str(message.message_id)) in self._seen:
            return True
        self._seen[key] = now
        return False
