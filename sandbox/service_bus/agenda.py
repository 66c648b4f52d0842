"""What is due when: locks that expire, messages that grow too old, schedules."""

import heapq
import itertools
from collections.abc import Iterator
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from sandbox.service_bus.messages import MessageState
from sandbox.service_bus.store import Store, StoredMessage


class DueKind(IntEnum):
    """What happens to a message at a time."""

    LOCK = 1
    AGE = 2
    SCHEDULE = 3


class Due(NamedTuple):
    """One thing that is due. Entries are not removed when they no longer apply, but skipped when their time comes."""

    when: datetime
    tie: int
    kind: DueKind
    store: Store
    stored: StoredMessage
    locked_until: datetime | None

    def applies(self) -> bool:
        """Return whether this is still to happen."""
        if self.store.messages.get(self.stored.sequence_number) is not self.stored:
            return False
        if self.kind is DueKind.LOCK:
            return self.stored.locked_until is not None and self.stored.locked_until == self.locked_until
        if self.kind is DueKind.AGE:
            # Under a lock, and while it is deferred, a message does not expire by itself.
            return self.stored.lock_token is None and self.stored.state is MessageState.ACTIVE
        return self.stored.state is MessageState.SCHEDULED


class Agenda:
    """What is due, in the order of time."""

    def __init__(self) -> None:
        self._due: list[Due] = []
        self._ties = itertools.count()

    def add(self, when: datetime, kind: DueKind, store: Store, stored: StoredMessage) -> None:
        """Note what happens to a message and when."""
        heapq.heappush(self._due, Due(when, next(self._ties), kind, store, stored, stored.locked_until))

    def next_time(self) -> datetime | None:
        """Return when something is due next; None if nothing is."""
        while self._due:
            if self._due[0].applies():
                return self._due[0].when
            heapq.heappop(self._due)
        return None

    def take_due(self, now: datetime) -> Iterator[Due]:
        """Take out what is due by now, one by one: handling one may add others."""
        while self._due and self._due[0].when <= now:
            due = heapq.heappop(self._due)
            if due.applies():
                yield due
