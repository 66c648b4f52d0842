"""What Service Bus has: the entities file, with keys that nobody can guess, and the roles of the function."""

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sandbox.cloud.options import WON_QUEUE, CannotStart
from sandbox.functions_host.configuration import InvalidAppConfiguration, Settings
from sandbox.functions_host.functions import Declaration, sources
from sandbox.service_bus import Configuration, Role, RoleAssignment
from sandbox.service_bus.configuration import (
    ALL_RIGHTS,
    EMULATOR_RULE,
    QueueSettings,
    Right,
    SasRule,
    SubscriptionSettings,
)

# What an entities file calls the function's identity, whose client id is made up at each start.
FUNCTION = "function"


def load_entities(path: Path, *, published_keys: bool) -> Configuration:
    """Read what Service Bus has; raises CannotStart.

    Without `published_keys`, the official emulator's key, which everybody knows, becomes a random one. There is always
    a key of the namespace with all rights.
    """
    try:
        configuration = Configuration.load(path)
    except (OSError, ValueError) as error:
        raise CannotStart(f"{path}: {error}") from error
    rules = configuration.sas_rules
    if not any(map(_may_do_all, rules)):
        rules = (*rules, EMULATOR_RULE)
    if not published_keys:
        rules = tuple(map(_with_random_keys, rules))
    return replace(configuration, sas_rules=rules)


def with_subscriptions(configuration: Configuration, added: Iterable[tuple[str, str]]) -> Configuration:
    """Return the entities with more subscriptions that get everything. Raises CannotStart for an unknown topic."""
    topics = {topic.path: topic for topic in configuration.topics}
    for path, name in added:
        if path not in topics:
            raise CannotStart(f"there is no topic {path} for the subscription {name}")
        topic = topics[path]
        if name not in {subscription.name for subscription in topic.subscriptions}:
            queue = QueueSettings(f"{path}/Subscriptions/{name}")
            subscriptions = (*topic.subscriptions, SubscriptionSettings(name, queue))
            topics[path] = replace(topic, subscriptions=subscriptions)
    return replace(configuration, topics=tuple(topics.values()))


def entity_names(configuration: Configuration) -> frozenset[str]:
    """Return the names of all queues and topics, in lower case."""
    queues = {queue.path.lower() for queue in configuration.queues}
    return frozenset(queues | {topic.path.lower() for topic in configuration.topics})


def namespace_rule(configuration: Configuration) -> SasRule:
    """Return a key of the namespace with all rights."""
    return next(filter(_may_do_all, configuration.sas_rules))


def posting_rule(configuration: Configuration) -> SasRule:
    """Return what Dataverse posts with: a key of the queue's own, or of the namespace where the queue has none."""
    rules = (rule for rule in configuration.sas_rules if rule.scope == WON_QUEUE)
    return next((rule for rule in rules if rule.rights & Right.SEND), namespace_rule(configuration))


def function_roles(
    configuration: Configuration,
    declared: Sequence[Declaration],
    settings: Mapping[str, str],
    client_id: str,
) -> list[RoleAssignment]:
    """Return the roles of the function's identity.

    Those that the entities file gives to "function"; where it gives none, Receiver for each source of a trigger and
    Sender for each queue or topic that an app setting or an output binding names.
    """
    written = [role for role in configuration.role_assignments if role.client_id == FUNCTION]
    if written:
        return [replace(role, client_id=client_id) for role in written]
    known = entity_names(configuration)
    targets = {value.lower() for value in settings.values()} | set(_outputs(declared, Settings(settings)))
    return [
        *(
            RoleAssignment(client_id, Role.RECEIVER, source.path)
            for source in sources(declared, Settings(settings))
        ),
        *(RoleAssignment(client_id, Role.SENDER, name) for name in sorted(targets & known)),
    ]


def _outputs(declared: Iterable[Declaration], settings: Settings) -> Iterator[str]:
    for declaration in declared:
        for binding in declaration.bindings:
            if str(binding.get("type")).lower() != "servicebus":
                continue
            for name in ("queueName", "topicName"):
                try:
                    yield settings.resolve(str(binding.get(name) or "")).lower()
                except InvalidAppConfiguration:
                    # The host does not run this function, or reports the missing setting itself.
                    continue


def _may_do_all(rule: SasRule) -> bool:
    return not rule.scope and rule.rights == ALL_RIGHTS


def _with_random_keys(rule: SasRule) -> SasRule:
    # Like Azure's: 32 bytes in base64.
    keys = (
        base64.b64encode(secrets.token_bytes(32)).decode() if key in EMULATOR_RULE.keys else key
        for key in rule.keys
    )
    return replace(rule, keys=tuple(keys))
