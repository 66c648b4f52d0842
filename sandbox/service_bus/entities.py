"""The entities of a namespace: queues, topics, subscriptions and dead-letter queues, and what each permits."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sandbox.service_bus.configuration import (
    Configuration,
    QueueSettings,
    Rule,
    Status,
    TopicSettings,
)
from sandbox.service_bus.errors import (
    EntityDisabled,
    EntityExists,
    EntityNotFound,
    InvalidArgument,
    MessageTooLarge,
    NotAllowed,
)
from sandbox.service_bus.messages import Message
from sandbox.service_bus.store import Store

DEAD_LETTER_SUFFIX = "/$DeadLetterQueue"
MAX_MESSAGE_ID = 128
MAX_RULE_NAME = 50


class Entities:
    """The stores of a namespace by path, in any case. Every refusal is a `Refusal`."""

    def __init__(self, configuration: Configuration, now: datetime) -> None:
        self._namespace = configuration.name
        self._stores: dict[str, Store] = {}
        for queue in configuration.queues:
            self._add_queue(queue)
        for topic in configuration.topics:
            self._add_topic(topic, now)

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths of all entities, dead-letter queues included."""
        return tuple(store.path for store in self._stores.values())

    def _add_queue(self, settings: QueueSettings) -> Store:
        """Add a queue or a subscription, and its dead-letter queue."""
        dead_letters = Store(replace(settings, path=settings.path + DEAD_LETTER_SUFFIX))
        store = Store(settings, dead_letters=dead_letters)
        for each in (store, dead_letters):
            self._stores[each.path.lower()] = each
        return store

    def _add_topic(self, settings: TopicSettings, now: datetime) -> None:
        """Add a topic and its subscriptions."""
        subscriptions: list[Store] = []
        self._stores[settings.path.lower()] = Store(settings, subscriptions=subscriptions)
        for subscription in settings.subscriptions:
            store = self._add_queue(subscription.queue)
            store.rules = {rule.name.lower(): (rule, now) for rule in subscription.rules}
            subscriptions.append(store)

    def find(self, entity: str) -> Store:
        """Return an entity's store; raise EntityNotFound."""
        store = self._stores.get(entity.strip("/").lower())
        if store is None:
            raise EntityNotFound(f"The messaging entity '{self._namespace}/{entity}' could not be found.")
        return store

    def receivable(self, entity: str) -> Store:
        """Return the store of an entity from which messages can be received now; raise what forbids it."""
        store = self.find(entity)
        if store.subscriptions is not None:
            raise NotAllowed(f"{store.path} is a topic: receive from one of its subscriptions")
        if store.settings.forward_to is not None and store.dead_letters is not None:
            raise NotAllowed(f"{store.path} forwards to {store.settings.forward_to}: receive there")
        if store.status in (Status.DISABLED, Status.RECEIVE_DISABLED):
            raise EntityDisabled(f"{store.path} is disabled for receiving")
        return store

    def sendable(self, entity: str, messages: Sequence[Message], size: int | None) -> Store:
        """Return the store of an entity that accepts these messages now; raise what forbids it."""
        store = self.find(entity)
        if store.subscriptions is None and (store.dead_letters is None or _is_subscription(store)):
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
            _check_ids(message)
        return store

    def subscription(self, entity: str) -> Store:
        """Return the store of a subscription; raise what forbids it."""
        store = self.find(entity)
        if not _is_subscription(store) or store.dead_letters is None:
            raise NotAllowed(f"{store.path} is not a subscription: only subscriptions have rules")
        return store

    def add_rule(self, entity: str, rule: Rule, now: datetime) -> None:
        """Add a rule to a subscription."""
        store = self.subscription(entity)
        if not 0 < len(rule.name) <= MAX_RULE_NAME:
            raise InvalidArgument(f"a rule's name has 1 to {MAX_RULE_NAME} characters")
        if rule.name.lower() in store.rules:
            raise EntityExists(f"The messaging entity '{store.path}/Rules/{rule.name}' already exists.")
        store.rules[rule.name.lower()] = (rule, now)

    def remove_rule(self, entity: str, name: str) -> None:
        """Remove a rule of a subscription."""
        store = self.subscription(entity)
        if store.rules.pop(name.lower(), None) is None:
            raise EntityNotFound(
                f"The messaging entity '{self._namespace}/{store.path}/Rules/{name}' could not be found."
            )


def _is_subscription(store: Store) -> bool:
    return "/subscriptions/" in store.path.lower()


def _check_ids(message: Message) -> None:
    for kind, value in (("session", message.session_id), ("message", message.message_id)):
        if value is not None and len(str(value)) > MAX_MESSAGE_ID:
            raise InvalidArgument(f"a {kind} id has over {MAX_MESSAGE_ID} characters")
