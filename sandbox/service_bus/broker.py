"""The rules of Service Bus as a plain library: no sockets, no threads, time from an injected clock.

What happens by itself in Azure (a lock expires, a message grows too old, a schedule falls due) happens here when the
broker is next asked for anything, dated with the moment at which it was due; `next_event` returns when that will be, so
that sleeping receivers can be woken. Safe to use from several threads.

The rules themselves are in `lifecycle`, what each entity permits in `entities`, the messages in `store`. Rights are
left to `authorization`, AMQP to `server`.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sandbox.clock import Clock, SystemClock
from sandbox.service_bus.configuration import Configuration, Rule, Status
from sandbox.service_bus.entities import Entities
from sandbox.service_bus.errors import InvalidArgument, MessageLockLost, MessageNotFound, NotAllowed
from sandbox.service_bus.lifecycle import Lifecycle, Observer
from sandbox.service_bus.messages import (
    BrokeredMessage,
    Counts,
    EventKind,
    Message,
    MessageState,
    ReceiveMode,
)
from sandbox.service_bus.store import Store, StoredMessage

MAX_REASON = 4096


class Broker:
    """One namespace: its entities, their messages, and what may be done with them.

    Entities are addressed by path, in any case: `queue`, `topic`, `topic/Subscriptions/name`, each with
    `/$DeadLetterQueue` behind it for its dead letters. Every refusal is a `Refusal`.
    """

    def __init__(
        self,
        configuration: Configuration,
        clock: Clock | None = None,
        *,
        new_lock_token: Callable[[], UUID] = uuid4,
        new_message_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self.configuration = configuration
        self.clock: Clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._entities = Entities(configuration, self.clock.now())
        self._lifecycle = Lifecycle(self._entities, new_lock_token, new_message_id)

    def __repr__(self) -> str:
        return f"<Broker {self.configuration.name!r} with {len(self.entities)} entities>"

    # Entities

    @property
    def entities(self) -> tuple[str, ...]:
        """Return the paths of all entities, dead-letter queues included."""
        return self._entities.paths

    def path_of(self, entity: str) -> str:
        """Return an entity's path as configured; raise EntityNotFound."""
        return self._entities.find(entity).path

    def max_message_size(self, entity: str) -> int:
        """Return how many bytes a message (or batch) may have here."""
        return self._entities.find(entity).max_message_size

    def set_status(self, entity: str, status: Status) -> None:
        """Disable or enable an entity, as the portal does; messages stay where they are."""
        with self._lock:
            store = self._entities.find(entity)
            store.status = status
            self._lifecycle.wake(store)

    def counts(self, entity: str) -> Counts:
        """Return how many messages are in which state."""
        with self._lock:
            self._catch_up()
            store = self._entities.find(entity)
            states = [stored.state for stored in store.messages.values()]
            dead = len(store.dead_letters.messages) if store.dead_letters else 0
            return Counts(
                active=states.count(MessageState.ACTIVE),
                locked=len(store.locked),
                deferred=states.count(MessageState.DEFERRED),
                scheduled=states.count(MessageState.SCHEDULED),
                dead_letter=dead,
            )

    def rules(self, subscription: str) -> list[tuple[Rule, datetime]]:
        """Return a subscription's rules, each with the time at which it was created."""
        with self._lock:
            return list(self._entities.subscription(subscription).rules.values())

    def add_rule(self, subscription: str, rule: Rule) -> None:
        """Add a rule to a subscription: it applies to the messages that are sent from now on."""
        with self._lock:
            self._entities.add_rule(subscription, rule, self._catch_up())

    def remove_rule(self, subscription: str, name: str) -> None:
        """Remove a rule of a subscription."""
        with self._lock:
            self._catch_up()
            self._entities.remove_rule(subscription, name)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` for everything that happens, in order, under the broker's lock; return an undo."""
        return _register(self._lifecycle.observers, observer)

    def on_available(self, wake: Callable[[str], None]) -> Callable[[], None]:
        """Call `wake` with a path whenever a message may have become receivable there; return an undo.

        It is called under the broker's lock and must only take note.
        """
        return _register(self._lifecycle.wakers, wake)

    # Time

    def next_event(self) -> datetime | None:
        """Return when something is due next: a lock, an age or a schedule. None: nothing ever, as it stands."""
        with self._lock:
            return self._lifecycle.agenda.next_time()

    def catch_up(self) -> None:
        """Let everything happen that is due by now, as any other call would."""
        with self._lock:
            self._catch_up()

    # Sending

    def send(self, entity: str, *messages: Message, size: int | None = None) -> tuple[int, ...]:
        """Accept all of the messages or none; return their sequence numbers.

        A message with a `scheduled_enqueue_time` in the future is scheduled. A duplicate counts as accepted and
        is dropped. `size` is the encoded size of the transfer in bytes; without it, it is estimated.
        """
        with self._lock:
            now = self._catch_up()
            store = self._entities.sendable(entity, messages, size)
            return tuple([self._lifecycle.accept(store, message, now) for message in messages])

    def schedule(self, entity: str, *messages: Message, size: int | None = None) -> tuple[int, ...]:
        """Accept messages for their `scheduled_enqueue_time`; return the numbers by which to cancel them."""
        for message in messages:
            if message.scheduled_enqueue_time is None:
                raise InvalidArgument("a message to be scheduled has no scheduled enqueue time")
        return self.send(entity, *messages, size=size)

    def cancel_scheduled(self, entity: str, sequence_numbers: Iterable[int]) -> None:
        """Take scheduled messages back, all or none; raise MessageNotFound if one is not waiting any more."""
        with self._lock:
            now = self._catch_up()
            store = self._entities.find(entity)
            waiting = [_in_state(store, number, MessageState.SCHEDULED) for number in sequence_numbers]
            for stored in waiting:
                store.remove(stored)
                self._lifecycle.observe(EventKind.SCHEDULE_CANCELLED, store, stored, now)

    # Receiving

    def receive(
        self, entity: str, max_messages: int = 1, mode: ReceiveMode = ReceiveMode.PEEK_LOCK
    ) -> list[BrokeredMessage]:
        """Hand out up to so many available messages, the lowest sequence numbers first; never waits."""
        with self._lock:
            now = self._catch_up()
            store = self._entities.receivable(entity)
            received: list[BrokeredMessage] = []
            while len(received) < max_messages and (stored := store.next_available()) is not None:
                received.append(self._lifecycle.hand_out(store, stored, mode, now))
            return received

    def receive_deferred(
        self, entity: str, sequence_numbers: Iterable[int], mode: ReceiveMode = ReceiveMode.PEEK_LOCK
    ) -> list[BrokeredMessage]:
        """Hand out deferred messages by number, all or none; raise MessageNotFound where one is missing."""
        with self._lock:
            now = self._catch_up()
            store = self._entities.receivable(entity)
            wanted = [_in_state(store, number, MessageState.DEFERRED) for number in sequence_numbers]
            for stored in wanted:
                # A deferred message that grew too old stays until somebody asks for it, and is removed then.
                if stored.is_expired(now):
                    self._lifecycle.expire(store, stored, now)
            if any(stored.sequence_number not in store.messages for stored in wanted):
                raise MessageNotFound(f"{store.path}: a deferred message has expired")
            return [self._lifecycle.hand_out(store, stored, mode, now) for stored in wanted]

    def peek(
        self, entity: str, from_sequence_number: int = 0, max_messages: int = 1
    ) -> list[BrokeredMessage]:
        """Show messages from that number on, in order and in any state, without changing them."""
        with self._lock:
            self._catch_up()
            store = self._entities.find(entity)
            return [
                stored.brokered(store.path)
                for stored in itertools.islice(store.from_number(from_sequence_number), max_messages)
            ]

    # Settling

    def renew_lock(self, entity: str, lock_token: UUID) -> datetime:
        """Lock for another lock duration from now; return until when."""
        with self._locked(entity, lock_token) as (store, stored, now):
            until = self._lifecycle.lock(store, stored, now)
            self._lifecycle.observe(EventKind.LOCK_RENEWED, store, stored, now)
            return until

    def complete(self, entity: str, lock_token: UUID) -> None:
        """Remove the message: it is processed."""
        with self._locked(entity, lock_token) as (store, stored, now):
            self._lifecycle.observe(EventKind.COMPLETED, store, stored, now)
            store.remove(stored)

    def abandon(
        self, entity: str, lock_token: UUID, properties_to_modify: Mapping[str, Any] | None = None
    ) -> None:
        """Give the message back at once, as a failed delivery, with application properties changed."""
        with self._locked(entity, lock_token) as (store, stored, now):
            stored.modify(properties_to_modify)
            self._lifecycle.observe(EventKind.ABANDONED, store, stored, now)
            self._lifecycle.fail_delivery(store, stored, now)

    def release(self, entity: str, lock_token: UUID) -> None:
        """Give the message back unchanged, as a client does with what it prefetched and did not use."""
        with self._locked(entity, lock_token) as (store, stored, now):
            self._lifecycle.observe(EventKind.RELEASED, store, stored, now)
            self._lifecycle.give_back(store, stored, now)

    def defer(
        self, entity: str, lock_token: UUID, properties_to_modify: Mapping[str, Any] | None = None
    ) -> None:
        """Defer the message: from now on it is received by its sequence number only."""
        with self._locked(entity, lock_token) as (store, stored, now):
            stored.modify(properties_to_modify)
            store.unlock(stored)
            stored.state = MessageState.DEFERRED
            self._lifecycle.observe(EventKind.DEFERRED, store, stored, now)

    def dead_letter(
        self,
        entity: str,
        lock_token: UUID,
        reason: str | None = None,
        description: str | None = None,
        properties_to_modify: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the message to the dead-letter queue, or where that forwards to."""
        with self._locked(entity, lock_token) as (store, stored, now):
            if store.dead_letters is None:
                raise NotAllowed(f"{store.path} has no dead-letter queue behind it")
            if max(len(reason or ""), len(description or "")) > MAX_REASON:
                raise InvalidArgument(f"a dead-letter reason or description has over {MAX_REASON} characters")
            stored.modify(properties_to_modify)
            self._lifecycle.dead_letter(store, stored, reason, description, now)

    # Faults: what happens to a message when something breaks, on purpose.

    def lose_lock(self, entity: str, lock_token: UUID) -> None:
        """End a lock before its time, as the service does when it moves an entity to another node."""
        with self._locked(entity, lock_token) as (store, stored, now):
            self._lifecycle.observe(EventKind.LOCK_EXPIRED, store, stored, now)
            self._lifecycle.fail_delivery(store, stored, now)

    def duplicate(self, entity: str, lock_token: UUID) -> None:
        """Enqueue a locked message once more, past duplicate detection: delivery is at least once."""
        with self._locked(entity, lock_token) as (store, stored, now):
            self._lifecycle.enqueue(store, stored.copied(store.next_number(), now), now)

    # Inside

    def _catch_up(self) -> datetime:
        """Let what is due happen; return now."""
        now = self.clock.now()
        self._lifecycle.catch_up(now)
        return now

    @contextmanager
    def _locked(self, entity: str, lock_token: UUID) -> Iterator[tuple[Store, StoredMessage, datetime]]:
        """Find a message by its lock, under the broker's lock; raise MessageLockLost."""
        with self._lock:
            now = self._catch_up()
            store = self._entities.find(entity)
            stored = store.locked.get(lock_token)
            if stored is None:
                raise MessageLockLost(
                    f"The lock supplied is invalid. Either the lock expired, or the message has already been "
                    f"removed from {store.path}."
                )
            yield store, stored, now


def _in_state(store: Store, number: int, state: MessageState) -> StoredMessage:
    stored = store.messages.get(number)
    if stored is None or stored.state is not state or stored.lock_token is not None:
        raise MessageNotFound(f"{store.path}: there is no {state.name.lower()} message {number}")
    return stored


def _register(listeners: list[Any], listener: object) -> Callable[[], None]:
    listeners.append(listener)

    def undo() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return undo
