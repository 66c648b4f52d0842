"""Reads Service Bus, Dataverse and the checks of `doctor` in the background, and keeps the newest snapshot.

Each source is read by a thread of its own, at its own pace: a source that is silent leaves its part of the snapshot as
it was, with a sentence about the trouble, and delays no other part.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from azure.servicebus import ServiceBusMessageState

from operations.billing import read_billing
from operations.dashboard.connections import check_connections
from operations.dashboard.snapshot import Figures, MessageRow, Snapshot
from operations.failed import failed_messages
from operations.following import published_event
from operations.messages import MessageInfo
from operations.names import Names
from operations.namespace import AUDIT, Source, open_namespace, sequence_number
from operations.trouble import explain
from operations.web_api import WebApi
from shared.errors import InvoicingFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from operations.names import OpportunityName
    from operations.namespace import NamespaceClient

# The sources, as the page names them in a trouble.
_QUEUES, _DEAD_LETTERS, _CHECKS = "Service Bus", "dead letters", "checks"
# Seconds between two reads of a source, and how many times longer the pause is than the read: a queue of 10,000
# messages takes seconds to read, and must not be read all the time.
_SERVICE_BUS_SECONDS = 2.0
_CHECK_SECONDS = 10.0
_PAUSE_FACTOR = 2.0
# Events of which the seconds since the win are known.
_MAX_EVENTS = 20
_RATE_WINDOW = timedelta(minutes=5)


class Collector:
    """Keeps a snapshot from `start` to `stop`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._won_at: dict[str, datetime] = {}
        self._names: dict[str, OpportunityName] = {}
        self._unavailable_until = 0.0
        self._snapshot = Snapshot()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake = {name: threading.Event() for name in (_QUEUES, _CHECKS)}

    def start(self) -> None:
        """Begin to read."""
        for loop in (
            (_QUEUES, self._read_queues, _SERVICE_BUS_SECONDS),
            (_CHECKS, self._read_connections, _CHECK_SECONDS),
        ):
            threading.Thread(target=self._loop, args=loop, name=loop[0], daemon=True).start()

    def stop(self) -> None:
        """End; a read that is under way ends by its own timeout."""
        self._stopping.set()
        for event in self._wake.values():
            event.set()

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot."""
        return self._snapshot

    def refresh(self) -> None:
        """Read the queues now, after something was done to them."""
        self._wake[_QUEUES].set()

    def _loop(self, source: str, read: Callable[[], Generator[None]], pause: float) -> None:
        """Read again and again. Each step of `read` reads once; after an error it begins anew."""
        reading = read()
        while not self._stopping.is_set():
            began = time.monotonic()
            sentence = ""
            try:
                next(reading)
            except Exception as error:  # noqa: BLE001 - not swallowed: the page shows it, and the next read may succeed
                sentence = str(explain(error) or f"{source}: {type(error).__name__}: {error}")
                reading = read()
            self._update(source, sentence)
            took = time.monotonic() - began
            self._wake[source].wait(max(pause, _PAUSE_FACTOR * took))
            self._wake[source].clear()
        reading.close()

    def _update(self, source: str, trouble: str, **parts: Any) -> None:  # noqa: ANN401 - parts of a Snapshot
        """Change what is wrong with a source, "" for nothing, and other parts of the snapshot."""
        with self._lock:
            troubles = {**self._snapshot.troubles, source: trouble}
            troubles = {name: text for name, text in troubles.items() if text}
            self._snapshot = replace(self._snapshot, troubles=troubles, **parts)

    # --- Service Bus ---

    def _read_queues(self) -> Generator[None]:
        with open_namespace(self._environment) as namespace:
            while True:
                self._read_once(namespace)
                yield

    def _read_once(self, namespace: NamespaceClient) -> None:
        notes: list[str] = []
        failed = [(str(each.id), each.seen) for each in failed_messages(namespace, notes.append)]
        active, scheduled = 0, []
        for message in namespace.peek_all(Source(namespace.settings.opportunity_won_queue)):
            if message.state == ServiceBusMessageState.SCHEDULED:
                scheduled.append((str(sequence_number(message)), MessageInfo.of(message)))
            else:
                active += 1
        scheduled.sort(key=lambda each: (each[1].due is None, each[1].due))
        per_minute, seconds = self._events(namespace)
        self._learn_names(seen for _, seen in [*failed, *scheduled])
        self._update(
            _DEAD_LETTERS,
            " ".join(notes),
            figures=Figures(active, len(scheduled), len(failed), per_minute, seconds),
            failures=self._rows(failed),
            retries=self._rows(scheduled),
        )

    def _events(self, namespace: NamespaceClient) -> tuple[float | None, float | None]:
        """Return events per minute and the median of seconds from win to event, of the last minutes."""
        since = datetime.now(UTC) - _RATE_WINDOW
        published: dict[str, datetime] = {}
        count = 0
        for message in namespace.peek_all(Source(namespace.settings.invoice_created_topic, AUDIT)):
            event = published_event(message)
            if event is not None and event.published_at is not None and event.published_at >= since:
                count += 1
                published[event.opportunity_id] = event.published_at
        seconds = self._seconds_to_event(published)
        return count / (_RATE_WINDOW.total_seconds() / 60), median(seconds) if seconds else None

    def _seconds_to_event(self, published: Mapping[str, datetime]) -> list[float]:
        """Return the seconds from the newest win to the event of each opportunity, as far as Dataverse can be read."""
        newest = sorted(published, key=lambda each: published[each])[-_MAX_EVENTS:]
        unknown = [each for each in newest if each not in self._won_at]
        if unknown:
            try:
                for billing in read_billing(WebApi.of(self._environment), unknown):
                    if billing.won_at is not None:
                        self._won_at[billing.opportunity_id] = billing.won_at
            except InvoicingFailure:
                # A figure, and no part of the flow: the check of Dataverse says what is wrong.
                return []
        seconds = [
            (published[each] - self._won_at[each]).total_seconds() for each in newest if each in self._won_at
        ]
        return [each for each in seconds if each >= 0]

    def _learn_names(self, seen: Iterable[MessageInfo]) -> None:
        unknown = {each.opportunity_id for each in seen if each.opportunity_id} - self._names.keys()
        if unknown and time.monotonic() >= self._unavailable_until:
            names = Names.of(self._environment, unknown)
            self._names.update(names.by_id)
            # An opportunity without a name now may be unreadable: it is not requested with every read.
            self._unavailable_until = time.monotonic() + (30.0 if unknown - names.by_id.keys() else 0.0)

    def _rows(self, messages: Iterable[tuple[str, MessageInfo]]) -> list[MessageRow]:
        return [
            MessageRow(message_id, seen, self._names.get(seen.opportunity_id or ""))
            for message_id, seen in messages
        ]

    # --- the checks ---

    def _read_connections(self) -> Generator[None]:
        while True:
            self._update(
                _CHECKS, "", connections={each.name: each for each in check_connections(self._environment)}
            )
            yield
