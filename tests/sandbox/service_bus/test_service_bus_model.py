"""Random histories of one queue, against a model so simple that it is plainly right.

The model keeps a list of messages and looks at all of them after every step; the broker keeps heaps, timers and
indexes. After any operations in any order, both must show the same.
"""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.clock import MovableClock
from sandbox.service_bus import Broker, Configuration, EventKind, Message, Observation
from sandbox.service_bus.configuration import QueueSettings
from sandbox.service_bus.errors import MessageLockLost, MessageNotFound

START = datetime(2026, 1, 1, tzinfo=UTC)
LOCK, WINDOW, DELIVERIES = timedelta(seconds=30), timedelta(minutes=2), 3
QUEUE = QueueSettings(
    path="q",
    lock_duration=LOCK,
    max_delivery_count=DELIVERIES,
    dead_lettering_on_expiration=True,
    duplicate_detection_window=WINDOW,
)


@dataclass
class Modelled:
    """One message, as the model knows it."""

    number: int
    body: bytes
    lifetime: timedelta | None
    state: str  # active, deferred, scheduled, dead, gone
    since: datetime
    due: datetime | None = None
    locked_until: datetime | None = None
    token: UUID | None = None
    failed: int = 0

    @property
    def expires_at(self) -> datetime | None:
        return None if self.lifetime is None else self.since + self.lifetime


class QueueHistory(RuleBasedStateMachine):
    """Everything that one can do to a queue."""

    @initialize()
    def begin(self) -> None:
        self.clock = MovableClock(START)
        tokens = (UUID(int=number) for number in itertools.count(1))
        self.broker = Broker(Configuration("n", (QUEUE,)), self.clock, new_lock_token=tokens.__next__)
        self.log: list[Observation] = []
        self.broker.observe(self.log.append)
        self.messages: list[Modelled] = []
        self.ids: dict[str, datetime] = {}
        self.locks: dict[UUID, Modelled] = {}
        self.numbers = 0
        self.sent = 0

    # The model's own rules

    def fail(self, message: Modelled, at: datetime) -> None:
        message.failed += 1
        if message.failed >= DELIVERIES:
            self.end_lock(message)
            message.state = "dead"
        else:
            self.give_back(message, at)

    def give_back(self, message: Modelled, at: datetime) -> None:
        self.end_lock(message)
        if message.state == "active" and message.expires_at is not None and message.expires_at <= at:
            message.state = "dead"

    @staticmethod
    def end_lock(message: Modelled) -> None:
        message.locked_until = message.token = None

    def let_time_pass(self, until: datetime) -> None:
        """Find the earliest thing that is due, again and again."""
        while True:
            due: list[tuple[datetime, int, str, Modelled]] = []
            for each in self.messages:
                if each.locked_until is not None:
                    due.append((each.locked_until, each.number, "lock", each))
                elif each.state == "active" and each.expires_at is not None:
                    due.append((each.expires_at, each.number, "age", each))
                elif each.state == "scheduled" and each.due is not None:
                    due.append((each.due, each.number, "schedule", each))
            due = [each for each in due if each[0] <= until]
            if not due:
                return
            at, _, what, message = min(due, key=lambda each: each[:2])
            if what == "lock":
                self.fail(message, at)
            elif what == "age":
                message.state = "dead"
            else:
                self.numbers += 1
                message.number, message.state, message.since = self.numbers, "active", at

    def in_state(self, *states: str) -> list[Modelled]:
        return sorted((each for each in self.messages if each.state in states), key=lambda each: each.number)

    def held(self, token: UUID) -> Modelled | None:
        """Return the message under this lock, if it still is."""
        message = self.locks[token]
        return message if message.token == token else None

    # What one can do

    @rule(
        message_id=st.sampled_from(["a", "b", "c", None]),
        lifetime=st.sampled_from([None, 20, 45, 200]),
        delay=st.sampled_from([None, -5, 25, 100]),
    )
    def send(self, message_id: str | None, lifetime: int | None, delay: int | None) -> None:
        now = self.clock.now()
        self.sent += 1
        body = b"%d" % self.sent
        lives = None if lifetime is None else timedelta(seconds=lifetime)
        due = None if delay is None else now + timedelta(seconds=delay)
        self.broker.send(
            "q", Message(body, message_id=message_id, time_to_live=lives, scheduled_enqueue_time=due)
        )
        self.numbers += 1
        if message_id is not None:
            if message_id in self.ids and self.ids[message_id] > now - WINDOW:
                return
            self.ids[message_id] = now
        later = due is not None and due > now
        self.messages.append(
            Modelled(
                self.numbers, body, lives, "scheduled" if later else "active", now, due if later else None
            )
        )

    @rule(count=st.integers(1, 3))
    def receive(self, count: int) -> None:
        available = [each for each in self.in_state("active") if each.locked_until is None]
        received = self.broker.receive("q", count)
        assert [each.message.body for each in received] == [each.body for each in available[:count]]
        for brokered, message in zip(received, available, strict=False):
            assert brokered.delivery_count == message.failed
            self.lock(brokered.lock_token, message)

    @precondition(lambda self: self.in_state("deferred"))
    @rule(data=st.data())
    def receive_deferred(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.in_state("deferred")))
        expired = message.expires_at is not None and message.expires_at <= self.clock.now()
        if message.locked_until is not None or expired:
            with pytest.raises(MessageNotFound):
                self.broker.receive_deferred("q", [message.number])
            if message.locked_until is None:
                message.state = "dead"
        else:
            [brokered] = self.broker.receive_deferred("q", [message.number])
            self.lock(brokered.lock_token, message)

    def lock(self, token: UUID | None, message: Modelled) -> None:
        assert token is not None
        message.locked_until = self.clock.now() + LOCK
        message.token = token
        self.locks[token] = message

    @precondition(lambda self: self.locks)
    @rule(
        data=st.data(),
        what=st.sampled_from(["complete", "abandon", "release", "defer", "dead_letter", "renew_lock"]),
    )
    def settle(self, data: st.DataObject, what: str) -> None:
        """Settle or renew under any lock that there ever was."""
        token = data.draw(st.sampled_from(list(self.locks)))
        message = self.held(token)
        if message is None:
            with pytest.raises(MessageLockLost):
                getattr(self.broker, what)("q", token)
            return
        getattr(self.broker, what)("q", token)
        now = self.clock.now()
        if what == "renew_lock":
            self.lock(token, message)
        elif what == "abandon":
            self.fail(message, now)
        elif what == "release":
            self.give_back(message, now)
        else:
            self.end_lock(message)
            message.state = {"complete": "gone", "defer": "deferred", "dead_letter": "dead"}[what]

    @precondition(lambda self: self.in_state("scheduled"))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.in_state("scheduled")))
        self.broker.cancel_scheduled("q", [message.number])
        message.state = "gone"

    @rule(seconds=st.sampled_from([1, 10, 29, 30, 31, 60, 300]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(timedelta(seconds=seconds))
        self.let_time_pass(self.clock.now())

    # What must be true

    @invariant()
    def both_show_the_same(self) -> None:
        if not hasattr(self, "broker"):
            return
        peeked = self.broker.peek("q", 0, 1000)
        expected = self.in_state("active", "deferred", "scheduled")
        assert [(each.sequence_number, each.message.body, each.delivery_count) for each in peeked] == [
            (each.number, each.body, each.failed) for each in expected
        ]
        assert [each.state.name.lower() for each in peeked] == [each.state for each in expected]
        dead = {each.message.body for each in self.broker.peek("q/$DeadLetterQueue", 0, 1000)}
        assert dead == {each.body for each in self.in_state("dead")}
        assert self.broker.counts("q").locked == sum(each.locked_until is not None for each in self.messages)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Check the log: a message that is gone was completed or canceled, once."""
        if not hasattr(self, "broker"):
            return
        ended = [
            each.message.message.body
            for each in self.log
            if each.kind in (EventKind.COMPLETED, EventKind.SCHEDULE_CANCELLED)
        ]
        assert len(ended) == len(set(map(str, ended)))
        assert set(map(str, ended)) == {str(each.body) for each in self.messages if each.state == "gone"}


TestQueueHistories = QueueHistory.TestCase
TestQueueHistories.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
