"""The rules of Service Bus as a plain library: no sockets, no threads, time from an injected clock.

What happens by itself in Azure (a lock expires, a message grows too old, a schedule falls due) happens here
when the broker is next asked for anything, dated with the moment at which it was due; `next_event` tells
whoever has to wake sleeping receivers when that will be. Safe to use from several threads. It leaves rights to
`authorization` and the wire to `amqp`.

Where Microsoft documents nothing, the harder behaviour for the product was chosen, and a comment says so.
"""

import heapq
import itertools
import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID, uuid4

from sandbox.clock import Clock, SystemClock
from sandbox.service_bus.configuration import (
    Configuration,
    QueueSettings,
    Status,
    SubscriptionSettings,
    TopicSettings,
)
from sandbox.service_bus.errors import (
    EntityDisabled,
    EntityNotFound,
    InvalidArgument,
    MessageLockLost,
    MessageNotFound,
    MessageTooLarge,
    NotAllowed,
)
from sandbox.service_bus.messages import (
    BrokeredMessage,
    Counts,
    Happened,
    Message,
    MessageState,
    Observation,
)

DEAD_LETTER_SUFFIX = "/$DeadLetterQueue"
MAX_DELIVERY_COUNT_EXCEEDED = "MaxDeliveryCountExceeded"
TTL_EXPIRED = "TTLExpiredException"
MAX_MESSAGE_ID = 128
MAX_REASON = 4096

Observer = Callable[[Observation], None]


class ReceiveMode(Enum):
    """How a message is handed out."""

    PEEK_LOCK = "peek-lock"
    RECEIVE_AND_DELETE = "receive-and-delete"


class Broker:
    """One namespace: its entities, their messages, and what may be done with them.

    Entities are addressed by path, in any case: `queue`, `topic`, `topic/Subscriptions/name`, each with
    `/$DeadLetterQueue` behind it for its dead letters. Every refusal is a `BrokerError`.
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
        self._new_lock_token = new_lock_token
        self._new_message_id = new_message_id
        self._lock = threading.RLock()
        self._due: list[tuple[datetime, int, _Due, _Store, _Stored, object]] = []
        self._ties = itertools.count()
        self._observers: list[Observer] = []
        self._wakers: list[Callable[[str], None]] = []
        self._entities: dict[str, _Store] = {}
        for queue in configuration.queues:
            self._add_queue(queue)
        for topic in configuration.topics:
            self._add_topic(topic)

    def __repr__(self) -> str:
        return f"<Broker {self.configuration.name!r} with {len(self._entities)} entities>"

    # Entities

    @property
    def entities(self) -> tuple[str, ...]:
        """Return the paths of all entities, dead-letter queues included."""
        return tuple(store.path for store in self._entities.values())

    def path_of(self, entity: str) -> str:
        """Return an entity's path as configured; raise EntityNotFound."""
        return self._store(entity).path

    def max_message_size(self, entity: str) -> int:
        """Return how many bytes a message (or batch) may have here."""
        return self._store(entity).max_message_size

    def set_status(self, entity: str, status: Status) -> None:
        """Disable or enable an entity, as the portal does; messages stay where they are."""
        with self._lock:
            store = self._store(entity)
            store.status = status
            self._wake(store)

    def counts(self, entity: str) -> Counts:
        """Return how many messages are in which state."""
        with self._lock:
            self._catch_up()
            store = self._store(entity)
            states = [stored.state for stored in store.messages.values()]
            dead = len(store.dead_letters.messages) if store.dead_letters else 0
            return Counts(
                active=states.count(MessageState.ACTIVE),
                locked=len(store.locked),
                deferred=states.count(MessageState.DEFERRED),
                scheduled=states.count(MessageState.SCHEDULED),
                dead_letter=dead,
            )

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` for everything that happens, in order, under the broker's lock; return an undo."""
        return _register(self._observers, observer)

    def on_available(self, wake: Callable[[str], None]) -> Callable[[], None]:
        """Call `wake` with a path whenever a message may have become receivable there; return an undo.

        It is called under the broker's lock and must only take note.
        """
        return _register(self._wakers, wake)

    # Time

    def next_event(self) -> datetime | None:
        """Return when something is due next: a lock, an age or a schedule. None: nothing ever, as it stands."""
        with self._lock:
            while self._due:
                when, _, kind, store, stored, stamp = self._due[0]
                if _still_due(kind, store, stored, stamp):
                    return when
                heapq.heappop(self._due)
            return None

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
            store = self._store(entity)
            self._check_sendable(store, messages, size)
            return tuple([self._accept(store, message, now) for message in messages])

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
            store = self._store(entity)
            waiting = [self._in_state(store, number, MessageState.SCHEDULED) for number in sequence_numbers]
            for stored in waiting:
                store.remove(stored)
                self._observe(Happened.SCHEDULE_CANCELLED, store, stored, now)

    # Receiving

    def receive(
        self, entity: str, max_messages: int = 1, mode: ReceiveMode = ReceiveMode.PEEK_LOCK
    ) -> list[BrokeredMessage]:
        """Hand out up to so many available messages, the lowest sequence numbers first; never waits."""
        with self._lock:
            now = self._catch_up()
            store = self._receivable(entity)
            received: list[BrokeredMessage] = []
            while len(received) < max_messages and (stored := store.next_available()) is not None:
                received.append(self._hand_out(store, stored, mode, now))
            return received

    def receive_deferred(
        self, entity: str, sequence_numbers: Iterable[int], mode: ReceiveMode = ReceiveMode.PEEK_LOCK
    ) -> list[BrokeredMessage]:
        """Hand out deferred messages by number, all or none; raise MessageNotFound where one is not there."""
        with self._lock:
            now = self._catch_up()
            store = self._receivable(entity)
            wanted = [self._in_state(store, number, MessageState.DEFERRED) for number in sequence_numbers]
            for stored in wanted:
                # A deferred message that grew too old stays until somebody asks for it, and is gone then.
                if stored.is_expired(now):
                    self._expire(store, stored, now)
            if any(stored.sequence_number not in store.messages for stored in wanted):
                raise MessageNotFound(f"{store.path}: a deferred message has expired")
            return [self._hand_out(store, stored, mode, now) for stored in wanted]

    def peek(
        self, entity: str, from_sequence_number: int = 0, max_messages: int = 1
    ) -> list[BrokeredMessage]:
        """Show messages from that number on, in order, whatever their state, without touching them."""
        with self._lock:
            self._catch_up()
            store = self._store(entity)
            return [
                stored.brokered(store.path)
                for stored in itertools.islice(store.from_number(from_sequence_number), max_messages)
            ]

    # Settling

    def renew_lock(self, entity: str, lock_token: UUID) -> datetime:
        """Lock for another lock duration from now; return until when."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            stored.locked_until = now + store.settings.lock_duration
            self._when(stored.locked_until, _Due.LOCK, store, stored, stored.locked_until)
            self._observe(Happened.LOCK_RENEWED, store, stored, now)
            return stored.locked_until

    def complete(self, entity: str, lock_token: UUID) -> None:
        """Be done with the message."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            self._observe(Happened.COMPLETED, store, stored, now)
            store.remove(stored)

    def abandon(
        self, entity: str, lock_token: UUID, properties_to_modify: Mapping[str, Any] | None = None
    ) -> None:
        """Give the message back at once, as a failed delivery, with application properties changed."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            stored.modify(properties_to_modify)
            self._observe(Happened.ABANDONED, store, stored, now)
            self._delivery_failed(store, stored, now)

    def release(self, entity: str, lock_token: UUID) -> None:
        """Give the message back untouched, as a client does with what it fetched and nobody asked for."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            self._observe(Happened.RELEASED, store, stored, now)
            self._make_available(store, stored, now)

    def defer(
        self, entity: str, lock_token: UUID, properties_to_modify: Mapping[str, Any] | None = None
    ) -> None:
        """Set the message aside: from now on it is received by its sequence number only."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            stored.modify(properties_to_modify)
            store.unlock(stored)
            stored.state = MessageState.DEFERRED
            self._observe(Happened.DEFERRED, store, stored, now)

    def dead_letter(
        self,
        entity: str,
        lock_token: UUID,
        reason: str | None = None,
        description: str | None = None,
        properties_to_modify: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the message to the dead-letter queue, or where that forwards to."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            if store.dead_letters is None:
                raise NotAllowed(f"{store.path} has no dead-letter queue behind it")
            if max(len(reason or ""), len(description or "")) > MAX_REASON:
                raise InvalidArgument(f"a dead-letter reason or description has over {MAX_REASON} characters")
            stored.modify(properties_to_modify)
            self._dead_letter(store, stored, reason, description, now)

    # Faults: what happens to a message when something breaks, on purpose.

    def lose_lock(self, entity: str, lock_token: UUID) -> None:
        """End a lock before its time, as the service does when it moves an entity to another node."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            stored = self._locked(store, lock_token)
            self._observe(Happened.LOCK_EXPIRED, store, stored, now)
            self._delivery_failed(store, stored, now)

    def duplicate(self, entity: str, lock_token: UUID) -> None:
        """Enqueue a locked message once more, past duplicate detection: delivery is at least once."""
        with self._lock:
            now = self._catch_up()
            store = self._store(entity)
            self._enqueue(store, self._locked(store, lock_token).copied(store.next_number(), now), now)

    # Inside: everything below is called under the lock, after `_catch_up`.

    def _add_queue(self, settings: QueueSettings) -> "_Store":
        dead_letters = _Store(replace(settings, path=settings.path + DEAD_LETTER_SUFFIX))
        store = _Store(settings, dead_letters=dead_letters)
        for each in (store, dead_letters):
            self._entities[each.path.lower()] = each
        return store

    def _add_topic(self, settings: TopicSettings) -> None:
        store = _Store(
            QueueSettings(
                path=settings.path,
                default_time_to_live=settings.default_time_to_live,
                duplicate_detection_window=settings.duplicate_detection_window,
                max_message_size=settings.max_message_size,
                status=settings.status,
            ),
            topic=[(each, self._add_queue(each.queue)) for each in settings.subscriptions],
        )
        self._entities[store.path.lower()] = store

    def _store(self, entity: str) -> "_Store":
        store = self._entities.get(entity.strip("/").lower())
        if store is None:
            raise EntityNotFound(
                f"The messaging entity '{self.configuration.name}/{entity}' could not be found."
            )
        return store

    def _receivable(self, entity: str) -> "_Store":
        store = self._store(entity)
        if store.topic is not None:
            raise NotAllowed(f"{store.path} is a topic: receive from one of its subscriptions")
        if store.settings.forward_to is not None and store.dead_letters is not None:
            raise NotAllowed(f"{store.path} forwards to {store.settings.forward_to}: receive there")
        if store.status in (Status.DISABLED, Status.RECEIVE_DISABLED):
            raise EntityDisabled(f"{store.path} is disabled for receiving")
        return store

    def _check_sendable(self, store: "_Store", messages: Sequence[Message], size: int | None) -> None:
        if store.topic is None and (store.dead_letters is None or "/subscriptions/" in store.path.lower()):
            raise NotAllowed(
                f"{store.path}: messages cannot be sent to a dead-letter queue or a subscription"
            )
        if store.status in (Status.DISABLED, Status.SEND_DISABLED):
            raise EntityDisabled(f"{store.path} is disabled for sending")
        total = size if size is not None else sum(message.estimated_size() for message in messages)
        if total > store.max_message_size:
            limit = store.max_message_size
            raise MessageTooLarge(
                f"The message of {total} bytes exceeds the limit of {limit} of {store.path}."
            )
        for message in messages:
            if message.session_id is not None and len(message.session_id) > MAX_MESSAGE_ID:
                raise InvalidArgument(f"a session id has over {MAX_MESSAGE_ID} characters")
            if message.message_id is not None and len(str(message.message_id)) > MAX_MESSAGE_ID:
                raise InvalidArgument(f"a message id has over {MAX_MESSAGE_ID} characters")

    def _accept(self, store: "_Store", message: Message, now: datetime) -> int:
        """Take a message in from outside: drop a duplicate, keep a scheduled one until it is due."""
        if message.message_id is None:
            message = replace(message, message_id=self._new_message_id())
        stored = _Stored(message, store.next_number(), now)
        if store.is_duplicate(message, now):
            self._observe(Happened.DUPLICATE_DROPPED, store, stored, now)
            return stored.sequence_number
        due = message.scheduled_enqueue_time
        if due is not None and due > now:
            stored.state = MessageState.SCHEDULED
            store.add(stored)
            self._when(due, _Due.SCHEDULE, store, stored, None)
            self._observe(Happened.SCHEDULED, store, stored, now)
        else:
            self._observe(Happened.ACCEPTED, store, stored, now)
            self._enqueue(store, stored, now)
        return stored.sequence_number

    def _enqueue(self, store: "_Store", stored: "_Stored", now: datetime) -> None:
        """Bring an accepted message to where it can be received: here, the subscriptions, or further on."""
        if store.topic is not None:
            for subscription, queue in store.topic:
                copy = stored.copied(queue.next_number(), now)
                copy.lifetime = _shorter(stored.lifetime, store.settings.default_time_to_live)
                if any(rule.filter.matches(stored.message) for rule in subscription.rules):
                    self._enqueue(queue, copy, now)
                else:
                    self._observe(Happened.FILTERED_OUT, queue, copy, now)
        elif store.settings.forward_to is not None:
            self._forward(store, stored, store.settings.forward_to, now)
        else:
            stored.state = MessageState.ACTIVE
            lifetime = _shorter(stored.lifetime, store.settings.default_time_to_live)
            stored.expires_at = _later(now, lifetime)
            store.add(stored)
            if stored.expires_at is not None:
                self._when(stored.expires_at, _Due.AGE, store, stored, None)
            store.make_available(stored)
            self._observe(Happened.ENQUEUED, store, stored, now)
            self._wake(store)

    def _forward(self, store: "_Store", stored: "_Stored", target: str, now: datetime) -> None:
        """Send a message on as a new one, keeping its properties and its first sequence number.

        Its age is counted anew there, and its delivery count begins at 0: not confirmed for Azure.
        """
        destination = self._store(target)
        self._observe(Happened.FORWARDED, store, stored, now, destination.path)
        copy = stored.copied(destination.next_number(), now)
        if destination.is_duplicate(stored.message, now):
            self._observe(Happened.DUPLICATE_DROPPED, destination, copy, now)
            return
        self._observe(Happened.ACCEPTED, destination, copy, now)
        self._enqueue(destination, copy, now)

    def _hand_out(
        self, store: "_Store", stored: "_Stored", mode: ReceiveMode, now: datetime
    ) -> BrokeredMessage:
        if mode is ReceiveMode.RECEIVE_AND_DELETE:
            store.remove(stored)
            self._observe(Happened.RECEIVED_AND_DELETED, store, stored, now)
            return stored.brokered(store.path)
        stored.lock_token = self._new_lock_token()
        stored.locked_until = now + store.settings.lock_duration
        store.locked[stored.lock_token] = stored
        self._when(stored.locked_until, _Due.LOCK, store, stored, stored.locked_until)
        return self._observe(Happened.LOCKED, store, stored, now)

    def _delivery_failed(self, store: "_Store", stored: "_Stored", now: datetime) -> None:
        stored.delivery_count += 1
        limit = store.settings.max_delivery_count
        # The messages of a dead-letter queue stay there however often they are tried.
        if stored.delivery_count >= limit and store.dead_letters is not None:
            description = f"Message could not be consumed after {stored.delivery_count} delivery attempts."
            self._dead_letter(store, stored, MAX_DELIVERY_COUNT_EXCEEDED, description, now)
        else:
            self._make_available(store, stored, now)

    def _make_available(self, store: "_Store", stored: "_Stored", now: datetime) -> None:
        """End a lock: a deferred message stays deferred, one that grew too old meanwhile goes."""
        store.unlock(stored)
        if stored.state is MessageState.DEFERRED:
            return
        if stored.is_expired(now):
            self._expire(store, stored, now)
        else:
            store.make_available(stored)
            self._wake(store)

    def _expire(self, store: "_Store", stored: "_Stored", now: datetime) -> None:
        self._observe(Happened.EXPIRED, store, stored, now)
        if store.settings.dead_lettering_on_expiration and store.dead_letters is not None:
            description = "The message expired and was dead lettered."
            self._dead_letter(store, stored, TTL_EXPIRED, description, now)
        else:
            store.remove(stored)

    def _dead_letter(
        self, store: "_Store", stored: "_Stored", reason: str | None, description: str | None, now: datetime
    ) -> None:
        store.remove(stored)
        told = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        stored.modify({name: text for name, text in told.items() if text is not None})
        stored.dead_letter_source = store.path
        self._observe(Happened.DEAD_LETTERED, store, stored, now, reason or "")
        onward = store.settings.forward_dead_letters_to
        if onward is not None:
            self._forward(store, stored, onward, now)
        elif store.dead_letters is not None:
            # In the dead-letter queue itself a message keeps its number and count, and does not age.
            stored.state = MessageState.ACTIVE
            stored.expires_at = None
            store.dead_letters.add(stored)
            store.dead_letters.make_available(stored)
            self._wake(store.dead_letters)

    def _in_state(self, store: "_Store", number: int, state: MessageState) -> "_Stored":
        stored = store.messages.get(number)
        if stored is None or stored.state is not state or stored.lock_token is not None:
            raise MessageNotFound(f"{store.path}: there is no {state.name.lower()} message {number}")
        return stored

    def _locked(self, store: "_Store", lock_token: UUID) -> "_Stored":
        stored = store.locked.get(lock_token)
        if stored is None:
            raise MessageLockLost(
                f"The lock supplied is invalid. Either the lock expired, or the message has already been "
                f"removed from {store.path}."
            )
        return stored

    def _when(self, when: datetime, kind: "_Due", store: "_Store", stored: "_Stored", stamp: object) -> None:
        heapq.heappush(self._due, (when, next(self._ties), kind, store, stored, stamp))

    def _catch_up(self) -> datetime:
        """Let what is due happen, in its order and at its own time; return now."""
        now = self.clock.now()
        while self._due and self._due[0][0] <= now:
            when, _, kind, store, stored, stamp = heapq.heappop(self._due)
            if not _still_due(kind, store, stored, stamp):
                continue
            if kind is _Due.LOCK:
                self._observe(Happened.LOCK_EXPIRED, store, stored, when)
                self._delivery_failed(store, stored, when)
            elif kind is _Due.AGE:
                self._expire(store, stored, when)
            else:
                store.remove(stored)
                # Azure numbers a scheduled message anew when it becomes active.
                self._enqueue(store, stored.copied(store.next_number(), when), when)
        return now

    def _observe(
        self, happened: Happened, store: "_Store", stored: "_Stored", at: datetime, detail: str = ""
    ) -> BrokeredMessage:
        message = stored.brokered(store.path)
        for observer in self._observers:
            observer(Observation(happened, store.path, at, message, detail))
        return message

    def _wake(self, store: "_Store") -> None:
        for wake in self._wakers:
            wake(store.path)


class _Due(IntEnum):
    """What a moment in the broker's agenda is for."""

    LOCK = 1
    AGE = 2
    SCHEDULE = 3


class _Stored:
    """A message with what the broker keeps about it."""

    __slots__ = (
        "available",
        "dead_letter_source",
        "delivery_count",
        "enqueued_at",
        "enqueued_sequence_number",
        "expires_at",
        "lifetime",
        "lock_token",
        "locked_until",
        "message",
        "sequence_number",
        "state",
    )

    def __init__(self, message: Message, sequence_number: int, now: datetime) -> None:
        self.message = message
        self.sequence_number = sequence_number
        self.enqueued_sequence_number = sequence_number
        self.enqueued_at = now
        self.lifetime = message.time_to_live
        self.expires_at: datetime | None = None
        self.state = MessageState.ACTIVE
        self.available = False
        self.delivery_count = 0
        self.lock_token: UUID | None = None
        self.locked_until: datetime | None = None
        self.dead_letter_source: str | None = None

    def copied(self, sequence_number: int, now: datetime) -> "_Stored":
        """Return the message as it is stored anew, in another entity or after its schedule."""
        copy = _Stored(self.message, sequence_number, now)
        copy.enqueued_sequence_number = self.enqueued_sequence_number
        copy.dead_letter_source = self.dead_letter_source
        return copy

    def is_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def modify(self, properties: Mapping[str, Any] | None) -> None:
        if properties:
            merged = {**self.message.application_properties, **properties}
            self.message = replace(self.message, application_properties=merged)

    def brokered(self, path: str) -> BrokeredMessage:
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


class _Store:
    """The messages of one entity, in order of their sequence numbers."""

    def __init__(
        self,
        settings: QueueSettings,
        *,
        dead_letters: "_Store | None" = None,
        topic: "list[tuple[SubscriptionSettings, _Store]] | None" = None,
    ) -> None:
        self.settings = settings
        self.path = settings.path
        self.status = settings.status
        self.max_message_size = settings.max_message_size
        self.dead_letters = dead_letters
        self.topic = topic
        self.messages: dict[int, _Stored] = {}
        self.locked: dict[UUID, _Stored] = {}
        self._numbers = itertools.count(1)
        self._order: list[int] = []
        self._available: list[int] = []
        self._seen: OrderedDict[str, datetime] = OrderedDict()

    def next_number(self) -> int:
        return next(self._numbers)

    def add(self, stored: _Stored) -> None:
        self.messages[stored.sequence_number] = stored
        insort(self._order, stored.sequence_number)

    def remove(self, stored: _Stored) -> None:
        self.unlock(stored)
        stored.available = False
        if self.messages.pop(stored.sequence_number, None) is not None:
            del self._order[bisect_left(self._order, stored.sequence_number)]

    def unlock(self, stored: _Stored) -> None:
        if stored.lock_token is not None:
            self.locked.pop(stored.lock_token, None)
        stored.lock_token = stored.locked_until = None

    def make_available(self, stored: _Stored) -> None:
        if not stored.available:
            stored.available = True
            heapq.heappush(self._available, stored.sequence_number)

    def next_available(self) -> _Stored | None:
        while self._available:
            stored = self.messages.get(heapq.heappop(self._available))
            if stored is not None and stored.available:
                stored.available = False
                return stored
        return None

    def from_number(self, number: int) -> Iterator[_Stored]:
        for position in range(bisect_left(self._order, number), len(self._order)):
            yield self.messages[self._order[position]]

    def is_duplicate(self, message: Message, now: datetime) -> bool:
        """Tell whether this id was accepted within the window, and remember it if not."""
        window = self.settings.duplicate_detection_window
        if window is None or message.message_id is None:
            return False
        while self._seen and next(iter(self._seen.values())) <= now - window:
            self._seen.popitem(last=False)
        if (key := str(message.message_id)) in self._seen:
            return True
        self._seen[key] = now
        return False


def _still_due(kind: _Due, store: _Store, stored: _Stored, stamp: object) -> bool:
    """Tell whether an entry of the agenda still means something: it is not taken out when it stops to."""
    if store.messages.get(stored.sequence_number) is not stored:
        return False
    if kind is _Due.LOCK:
        return stored.locked_until is not None and stored.locked_until == stamp
    if kind is _Due.AGE:
        # Under a lock, and while it is deferred, a message does not expire by itself.
        return stored.lock_token is None and stored.state is MessageState.ACTIVE
    return stored.state is MessageState.SCHEDULED


def _shorter(one: timedelta | None, other: timedelta | None) -> timedelta | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _later(now: datetime, lifetime: timedelta | None) -> datetime | None:
    if lifetime is None or lifetime > datetime.max.replace(tzinfo=UTC) - now:
        return None
    return now + lifetime


def _register(listeners: list[Any], listener: object) -> Callable[[], None]:
    listeners.append(listener)

    def undo() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return undo
