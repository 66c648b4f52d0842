"""Numbered entries that clients read from where they last stopped, and wait for."""

import threading
from collections import deque
from collections.abc import Mapping

_MAX_ENTRIES = 10_000

Entry = Mapping[str, object]


class Journal:
    """The newest entries, each with its number from 1; safe under many threads. Old ones are dropped."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, Entry]] = deque(maxlen=_MAX_ENTRIES)
        self._last = 0
        self._changed = threading.Condition()

    @property
    def last(self) -> int:
        """The number of the newest entry, which counts those that were dropped as well."""
        return self._last

    def append(self, entry: Entry) -> None:
        """Add an entry; never waits for a reader."""
        with self._changed:
            self._last += 1
            self._entries.append((self._last, entry))
            self._changed.notify_all()

    def after(self, number: int, wait: float = 0.0) -> list[dict[str, object]]:
        """Return the entries after `number`, once there is one or `wait` seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._last > number, wait)
            return [{"number": each, **entry} for each, entry in self._entries if each > number]
