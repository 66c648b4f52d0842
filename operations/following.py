"""What became of replayed messages, as the queues and the audit subscription show it.

A replay starts a new root, so it is recognised by its message id while it is in the queue or parked at once, and by
its opportunity in a retry, in a parked message of a later try, and in the published event.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from azure.servicebus.exceptions import ServiceBusError

from operations.messages import MessageInfo, aware, body_of, text_properties
from operations.namespace import AUDIT, Source, sequence_number
from shared.message import ORIGINAL_MESSAGE_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from azure.servicebus import ServiceBusReceivedMessage

    from operations.namespace import NamespaceClient

_PAUSE = 1.0


class FateState(Enum):
    """What a replayed message became."""

    PUBLISHED = "published"
    RETRY = "is retried"
    PARKED = "failed again"
    WAITING = "waits in the queue"
    LEFT = "processed"


@dataclass(frozen=True)
class Fate:
    """What became of one message, and the details in a short text."""

    state: FateState
    text: str = ""


@dataclass(frozen=True)
class ReplayTracker:
    """Where each queue stood before the replay: only what came later can have become of it."""

    namespace: NamespaceClient
    first: Mapping[Source, int]

    @classmethod
    def of(cls, namespace: NamespaceClient) -> ReplayTracker:
        """Note the newest message of each queue. Without the right to read the events, those are not seen."""
        settings = namespace.settings
        first: dict[Source, int] = {}
        for source in (Source(settings.opportunity_won_queue), Source(settings.failed_queue)):
            first[source] = max(map(sequence_number, namespace.peek_all(source)), default=0) + 1
        events = Source(settings.invoice_created_topic, AUDIT)
        with suppress(ServiceBusError):
            first[events] = max(map(sequence_number, namespace.peek_all(events)), default=0) + 1
        return cls(namespace, first)

    def follow(self, copies: Mapping[str, str | None], seconds: float) -> dict[str, Fate]:
        """Return what became of each copy, by message id, as soon as all is known or the time is over.

        `copies`: the opportunity of each message id, None where it cannot be read.
        """
        end = time.monotonic() + seconds
        while True:
            fates = self._fates(copies)
            is_known = all(fate.state is not FateState.WAITING for fate in fates.values())
            if is_known or time.monotonic() >= end:
                return fates
            time.sleep(min(_PAUSE, max(end - time.monotonic(), 0.0)))

    def _fates(self, copies: Mapping[str, str | None]) -> dict[str, Fate]:
        # The queue first: a message that leaves it in between is then found where it went, or counts as processed.
        by_id, by_opportunity = self._in_the_queue()
        events = self._events()
        parked_by_id, parked_by_opportunity = self._parked()
        can_see = Source(self.namespace.settings.invoice_created_topic, AUDIT) in self.first
        processed = Fate(
            FateState.LEFT,
            "no event: there was nothing to invoice" if can_see else "your login may not read the events",
        )
        fates: dict[str, Fate] = {}
        for message_id, opportunity in copies.items():
            fates[message_id] = (
                parked_by_id.get(message_id)
                or events.get(opportunity)
                or by_id.get(message_id)
                or by_opportunity.get(opportunity)
                or parked_by_opportunity.get(opportunity)
                or processed
            )
        return fates

    def _new(self, source: Source) -> Iterator[ServiceBusReceivedMessage]:
        return self.namespace.peek_all(source, self.first[source])

    def _in_the_queue(self) -> tuple[dict[str, Fate], dict[str | None, Fate]]:
        def fate(seen: MessageInfo) -> Fate:
            if seen.due is None:
                return Fate(FateState.WAITING)
            return Fate(FateState.RETRY, f"{seen.reason}, next try at {seen.due:%H:%M:%S}")

        queue = Source(self.namespace.settings.opportunity_won_queue)
        return self._of_new(queue, lambda message: message.message_id, fate)

    def _parked(self) -> tuple[dict[str, Fate], dict[str | None, Fate]]:
        return self._of_new(
            Source(self.namespace.settings.failed_queue),
            lambda message: text_properties(message).get(ORIGINAL_MESSAGE_ID) or message.message_id,
            lambda seen: Fate(FateState.PARKED, f"{seen.reason}: {seen.description}"),
        )

    def _of_new(
        self,
        source: Source,
        message_id: Callable[[ServiceBusReceivedMessage], object],
        fate: Callable[[MessageInfo], Fate],
    ) -> tuple[dict[str, Fate], dict[str | None, Fate]]:
        """Return the fates that the new messages of a queue show, by message id and by opportunity."""
        by_id: dict[str, Fate] = {}
        by_opportunity: dict[str | None, Fate] = {}
        for message in self._new(source):
            seen = MessageInfo.of(message)
            by_id[str(message_id(message))] = by_opportunity[seen.opportunity_id] = fate(seen)
        by_opportunity.pop(None, None)
        return by_id, by_opportunity

    def _events(self) -> dict[str | None, Fate]:
        events = Source(self.namespace.settings.invoice_created_topic, AUDIT)
        if events not in self.first:
            return {}
        found: dict[str | None, Fate] = {}
        for message in self._new(events):
            event = published_event(message)
            if event is not None:
                found[event.opportunity_id] = Fate(
                    FateState.PUBLISHED, event.invoice_number or event.invoice_id
                )
        return found


@dataclass(frozen=True)
class PublishedEvent:
    """What a published "invoice created" says, and when Service Bus took it."""

    event_id: str
    opportunity_id: str
    invoice_id: str
    invoice_number: str | None
    published_at: datetime | None


def published_event(message: ServiceBusReceivedMessage) -> PublishedEvent | None:
    """Return what an event of the topic says, or None for a message that is none."""
    try:
        document = json.loads(body_of(message))
        data = document["data"]
        number = data.get("invoiceNumber")
        return PublishedEvent(
            str(document["id"]),
            str(data["opportunityId"]),
            str(data["invoiceId"]),
            None if number is None else str(number),
            aware(message.enqueued_time_utc),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
