"""What happens to messages: accepted, enqueued, handed out, given back, expired, forwarded, dead-lettered.

These are the rules of Service Bus, without locks and without arguments to check: `broker` calls them under its lock,
after everything that was due has happened. Where Microsoft documents nothing, the rules have the behaviour that is
harder for a function, and a comment says so.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sandbox.service_bus.agenda import Agenda, DueKind
from sandbox.service_bus.entities import Entities
from sandbox.service_bus.messages import (
    BrokeredMessage,
    EventKind,
    Message,
    MessageState,
    Observation,
    ReceiveMode,
)
from sandbox.service_bus.store import Store, StoredMessage

MAX_DELIVERY_COUNT_EXCEEDED = "MaxDeliveryCountExceeded"
TTL_EXPIRED = "TTLExpiredException"

Observer = Callable[[Observation], None]


class Lifecycle:
    """Moves messages through a namespace, and reports it to observers and to those who wait for messages."""

    def __init__(
        self, entities: Entities, new_lock_token: Callable[[], UUID], new_message_id: Callable[[], str]
    ) -> None:
        self.agenda = Agenda()
        self.observers: list[Observer] = []
        self.wakers: list[Callable[[str], None]] = []
        self._entities = entities
        self._new_lock_token = new_lock_token
        self._new_message_id = new_message_id

    def catch_up(self, now: datetime) -> None:
        """Let what is due happen, in its order and at its own time."""
        for when, _, kind, store, stored, _ in self.agenda.take_due(now):
            if kind is DueKind.LOCK:
                self.observe(EventKind.LOCK_EXPIRED, store, stored, when)
                self.fail_delivery(store, stored, when)
            elif kind is DueKind.AGE:
                self.expire(store, stored, when)
            else:
                store.remove(stored)
                # Azure numbers a scheduled message anew when it becomes active.
                self.enqueue(store, stored.copied(store.next_number(), when), when)

    def accept(self, store: Store, message: Message, now: datetime) -> int:
        """Take a message from outside: drop a duplicate, keep a scheduled one until it is due."""
        if message.message_id is None:
            message = replace(message, message_id=self._new_message_id())
        stored = StoredMessage(message, store.next_number(), now)
        if store.is_duplicate(message, now):
            self.observe(EventKind.DUPLICATE_DROPPED, store, stored, now)
            return stored.sequence_number
        due = message.scheduled_enqueue_time
        if due is not None and due > now:
            stored.state = MessageState.SCHEDULED
            store.add(stored)
            self.agenda.add(due, DueKind.SCHEDULE, store, stored)
            self.observe(EventKind.SCHEDULED, store, stored, now)
        else:
            self.observe(EventKind.ACCEPTED, store, stored, now)
            self.enqueue(store, stored, now)
        return stored.sequence_number

    def enqueue(self, store: Store, stored: StoredMessage, now: datetime) -> None:
        """Bring an accepted message to where it can be received: here, the subscriptions, or further on."""
        if store.subscriptions is not None:
            for subscription in store.subscriptions:
                self._offer(subscription, store, stored, now)
        elif store.settings.forward_to is not None:
            self._forward(store, stored, store.settings.forward_to, now)
        else:
            stored.state = MessageState.ACTIVE
            stored.expires_at = _later(now, _shorter(stored.lifetime, store.settings.default_time_to_live))
            store.add(stored)
            if stored.expires_at is not None:
                self.agenda.add(stored.expires_at, DueKind.AGE, store, stored)
            store.make_available(stored)
            self.observe(EventKind.ENQUEUED, store, stored, now)
            self.wake(store)

    def hand_out(
        self, store: Store, stored: StoredMessage, mode: ReceiveMode, now: datetime
    ) -> BrokeredMessage:
        """Give a message to a receiver."""
        if mode is ReceiveMode.RECEIVE_AND_DELETE:
            store.remove(stored)
            self.observe(EventKind.RECEIVED_AND_DELETED, store, stored, now)
        else:
            stored.lock_token = self._new_lock_token()
            store.locked[stored.lock_token] = stored
            self.lock(store, stored, now)
            self.observe(EventKind.LOCKED, store, stored, now)
        return stored.brokered(store.path)

    def lock(self, store: Store, stored: StoredMessage, now: datetime) -> datetime:
        """Lock a message for the lock duration from now; return until when."""
        stored.locked_until = now + store.settings.lock_duration
        self.agenda.add(stored.locked_until, DueKind.LOCK, store, stored)
        return stored.locked_until

    def fail_delivery(self, store: Store, stored: StoredMessage, now: datetime) -> None:
        """Count a failed delivery, and give the message back or dead-letter it."""
        stored.delivery_count += 1
        limit = store.settings.max_delivery_count
        # The messages of a dead-letter queue stay there however often they are delivered.
        if stored.delivery_count >= limit and store.dead_letters is not None:
            description = f"Message could not be consumed after {stored.delivery_count} delivery attempts."
            self.dead_letter(store, stored, MAX_DELIVERY_COUNT_EXCEEDED, description, now)
        else:
            self.give_back(store, stored, now)

    def give_back(self, store: Store, stored: StoredMessage, now: datetime) -> None:
        """End a lock: a deferred message stays deferred, one that grew too old meanwhile expires."""
        store.unlock(stored)
        if stored.state is MessageState.DEFERRED:
            return
        if stored.is_expired(now):
            self.expire(store, stored, now)
        else:
            store.make_available(stored)
            self.wake(store)

    def expire(self, store: Store, stored: StoredMessage, now: datetime) -> None:
        """Remove or dead-letter a message that is too old."""
        self.observe(EventKind.EXPIRED, store, stored, now)
        if store.settings.dead_lettering_on_expiration and store.dead_letters is not None:
            description = "The message expired and was dead lettered."
            self.dead_letter(store, stored, TTL_EXPIRED, description, now)
        else:
            store.remove(stored)

    def dead_letter(
        self, store: Store, stored: StoredMessage, reason: str | None, description: str | None, now: datetime
    ) -> None:
        """Move a message to the dead-letter queue, or where that forwards to."""
        store.remove(stored)
        details = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        stored.modify({name: text for name, text in details.items() if text is not None})
        stored.dead_letter_source = store.path
        self.observe(EventKind.DEAD_LETTERED, store, stored, now, reason or "")
        if store.settings.forward_dead_letters_to is not None:
            self._forward(store, stored, store.settings.forward_dead_letters_to, now)
        elif store.dead_letters is not None:
            # In the dead-letter queue itself a message keeps its number and count, and does not age.
            stored.state = MessageState.ACTIVE
            stored.expires_at = None
            store.dead_letters.add(stored)
            store.dead_letters.make_available(stored)
            self.wake(store.dead_letters)

    def observe(
        self, kind: EventKind, store: Store, stored: StoredMessage, at: datetime, detail: str = ""
    ) -> None:
        """Report what happened to a message."""
        for observer in self.observers:
            observer(Observation(kind, store.path, at, stored.brokered(store.path), detail))

    def wake(self, store: Store) -> None:
        """Report that there may be something to receive."""
        for waker in self.wakers:
            waker(store.path)

    def _offer(self, subscription: Store, topic: Store, stored: StoredMessage, now: datetime) -> None:
        """Put a topic's message into a subscription if one of its rules matches."""
        copy = stored.copied(subscription.next_number(), now)
        copy.lifetime = _shorter(stored.lifetime, topic.settings.default_time_to_live)
        if any(rule.filter.matches(stored.message) for rule, _ in subscription.rules.values()):
            self.enqueue(subscription, copy, now)
        else:
            self.observe(EventKind.FILTERED_OUT, subscription, copy, now)

    def _forward(self, store: Store, stored: StoredMessage, target: str, now: datetime) -> None:
        """Send a message on as a new one, keeping its properties and its first sequence number.

        Its age is counted anew there, and its delivery count begins at 0: not confirmed for Azure.
        """
        destination = self._entities.find(target)
        self.observe(EventKind.FORWARDED, store, stored, now, destination.path)
        copy = stored.copied(destination.next_number(), now)
        if destination.is_duplicate(stored.message, now):
            self.observe(EventKind.DUPLICATE_DROPPED, destination, copy, now)
            return
        self.observe(EventKind.ACCEPTED, destination, copy, now)
        self.enqueue(destination, copy, now)


def _shorter(one: timedelta | None, other: timedelta | None) -> timedelta | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _later(now: datetime, lifetime: timedelta | None) -> datetime | None:
    if lifetime is None or lifetime > datetime.max.replace(tzinfo=UTC) - now:
        return None
    return now + lifetime
