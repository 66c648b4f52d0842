"""The deployed code on real connections: the whole sandbox with a fault plan, and the means to bring it to rest.

One `Stage` is used for many wins, one after the other, since starting a sandbox takes seconds. It wins, shortens long
waits (locks of dead workers, far schedules), and collects the evidence for the checker. What goes wrong and what is
right is left to others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from published_event import validate_event

from proofs import ROOT
from proofs.checker import FAILED_QUEUE, QUEUE, SUBSCRIPTION, Evidence, Watch
from proofs.sales_state import read_opportunities
from proofs.users import win
from sandbox.cloud import Cloud, CloudOptions, Mode
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Dependency, FaultPlan
from sandbox.service_bus import EventKind, Message, Observation
from sandbox.service_bus.errors import MessageLockLost

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

SETTINGS = {
    # Long enough for every step, short enough to wait for what is silent.
    "INVOCATION_DEADLINE_SECONDS": "6",
    "RETRY_FIRST_DELAY_SECONDS": "0.1",
    "RETRY_MAX_DELAY_SECONDS": "0.4",
    "AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls": "4",
}
# How long a message may be locked and in nobody's hands: on its way to the host, or being settled.
_ORPHANED_AFTER = 1.0
_POLL = 0.01
# The longest retry policy has three days.
_BEYOND = timedelta(days=4)
# What is due sooner is waited for, so that the broker's clock stays with that of the function.
_FAR = timedelta(seconds=15)


@dataclass
class Seen:
    """What happened to the messages of the queues, since the counting began."""

    counts: Counter[tuple[str, EventKind]] = field(default_factory=Counter)

    @property
    def deliveries(self) -> int:
        """How often a message was handed to the host."""
        return self.counts[QUEUE, EventKind.LOCKED]

    @property
    def retries(self) -> int:
        """How many retries were scheduled, or further messages sent, besides one message of a win."""
        return self.counts[QUEUE, EventKind.SCHEDULED] + max(0, self.counts[QUEUE, EventKind.ACCEPTED] - 1)

    @property
    def parked(self) -> int:
        """How many messages came to the failed queue."""
        return self.counts[FAILED_QUEUE, EventKind.ENQUEUED]

    @property
    def published(self) -> int:
        """How many events came to the subscribers."""
        return self.counts[SUBSCRIPTION, EventKind.ENQUEUED]


class Stage:
    """A running sandbox with faults; a context manager. `settings` are added to the function's."""

    def __init__(
        self,
        opportunities: int,
        mode: Mode = Mode.CONNECTION_STRING,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.plan = FaultPlan()
        self.cloud = Cloud(
            CloudOptions(
                ROOT,
                opportunities=opportunities,
                mode=mode,
                settings={**SETTINGS, **(settings or {})},
                faults=self.plan,
                token_lifetime=timedelta(minutes=4),
            )
        )
        self.watch = Watch(self.cloud.broker, validate_event)
        self.seen = Seen()
        self._locks: dict[int, tuple[UUID, float]] = {}
        self._lock = threading.Lock()
        self.cloud.broker.observe(self._observe)

    def __enter__(self) -> Self:
        self.cloud.start()
        self._fresh = iter(self.cloud.demo.opportunities)
        self.function_user = function_user(self.cloud)
        return self

    def __exit__(self, *_: object) -> None:
        self.plan.clear()
        self.cloud.stop()

    # --- what happens ---

    def fresh(self) -> str:
        """Return an opportunity that is still open."""
        return next(self._fresh)

    def win(self, opportunity_id: str) -> None:
        """Win it; Dataverse posts the event by itself."""
        win(self.cloud.dataverse, opportunity_id)

    def send(self, body: bytes, message_id: str | None = None) -> None:
        """Put a message into the queue, past Dataverse."""
        self.cloud.broker.send(
            QUEUE, Message(body=body, message_id=message_id, content_type="application/json")
        )

    def count_anew(self) -> Seen:
        """Count from here on."""
        self.seen = Seen()
        return self.seen

    def cut(self, dependency: Dependency) -> None:
        """Cut connections; with an identity, the host and the function share those to Service Bus."""
        proxies = self.cloud.proxies
        proxies[dependency if dependency in proxies else Dependency.SERVICE_BUS_OUT].cut()

    def kill_workers(self) -> None:
        """End the function's processes, with all that they remember."""
        assert self.cloud.host is not None
        self.cloud.host.kill_workers()

    def pass_the_retry_policies(self) -> None:
        """Let more time pass, by the broker's clock, than anything is tried again for."""
        self.cloud.move_broker_clock(_BEYOND)

    # --- to rest ---

    def to_rest(self, messages: int, *, patience: float = 60.0) -> bool:
        """Wait until so many messages have come to the queue and none is left; return whether that came about.

        The lock of a message ends when its worker has died or its delivery was lost, and the broker's clock is moved to
        a schedule that is far away.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end:
            counts = self.cloud.broker.counts(QUEUE)
            come = self.seen.counts[QUEUE, EventKind.ACCEPTED] + self.seen.counts[QUEUE, EventKind.SCHEDULED]
            if come >= messages and not counts.active + counts.locked + counts.scheduled + counts.deferred:
                return True
            if counts.locked:
                self._end_locks_of_the_dead()
            elif counts.scheduled and not counts.active:
                self._hurry()
            time.sleep(_POLL)
        return False

    def _end_locks_of_the_dead(self) -> None:
        host = self.cloud.host
        assert host is not None
        in_hand = host.in_hand
        long_ago = time.monotonic() - _ORPHANED_AFTER
        with self._lock:
            orphans = [
                token
                for number, (token, since) in self._locks.items()
                if number not in in_hand and since < long_ago
            ]
        for token in orphans:
            try:
                self.cloud.broker.lose_lock(QUEUE, token)
            except MessageLockLost:
                # It was settled in this very moment.
                continue

    def _hurry(self) -> None:
        due = self.cloud.broker.next_event()
        left = due - self.cloud.broker_clock.now() if due else timedelta()
        if left > _FAR:
            self.cloud.move_broker_clock(left)

    # --- what is seen ---

    def evidence(self) -> Evidence:
        """Return what there is to see from outside."""
        database = self.cloud.dataverse.database
        opportunities = read_opportunities(database, self.function_user)
        return self.watch.evidence(database.commits, self.function_user, opportunities)

    def _observe(self, observation: Observation) -> None:
        seen = self.seen
        seen.counts[observation.entity, observation.kind] += 1
        if observation.entity != QUEUE:
            return
        number, token = observation.message.sequence_number, observation.message.lock_token
        with self._lock:
            if observation.kind is EventKind.LOCKED and token is not None:
                self._locks[number] = token, time.monotonic()
            elif observation.kind in _UNLOCKED:
                self._locks.pop(number, None)


_UNLOCKED = frozenset(
    {
        EventKind.LOCK_EXPIRED,
        EventKind.COMPLETED,
        EventKind.ABANDONED,
        EventKind.RELEASED,
        EventKind.DEAD_LETTERED,
    }
)


def function_user(cloud: Cloud) -> str:
    """Return the id of the user as which the function works."""
    with cloud.dataverse.database.reading() as transaction:
        client_id = (cloud.function_identity.client_id,)
        return str(transaction.rows(TABLES["systemuser"], "applicationid = ?", client_id)[0]["systemuserid"])
