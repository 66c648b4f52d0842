"""The entities of a namespace, read from a lenient superset of the official emulator's JSON file.

Lenient: comments, trailing commas, unknown `Logging`, limits as wide as Azure's own (the emulator stops at 10
deliveries and 5 minutes of duplicate detection). Superset: `AuthorizationRules` (shared access keys) and
`RoleAssignments` (identities) on the namespace, a queue or a topic; `Status` and `MaxMessageSizeInKilobytes` in
an entity's properties. Strict where it matters: an unknown property, a wrong type, a filter or a feature that
the broker cannot honour are problems, and all of them are reported at once, each with its path in the file.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Flag, StrEnum, auto
from pathlib import Path
from typing import Any, TypeVar

import isodate
import json5

from sandbox.service_bus.filters import ConstantFilter, CorrelationFilter, Filter, InvalidFilter, SqlFilter

# The entities that Bicep creates in Azure.
DEFAULT_ENTITIES = Path(__file__).resolve().parents[2] / "infrastructure" / "entities.json"
MAX_FORWARD_HOPS = 4

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Q = TypeVar("Q", bound="QueueSettings")


class InvalidConfiguration(ValueError):
    """The file cannot be honoured; `problems` lists every reason, each beginning with its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(
            "the Service Bus configuration has problems:\n" + "\n".join(f"  {p}" for p in problems)
        )
        self.problems = tuple(problems)


class Right(Flag):
    """What a shared access rule or a role permits."""

    LISTEN = auto()
    SEND = auto()
    MANAGE = auto()


ALL_RIGHTS = Right.LISTEN | Right.SEND | Right.MANAGE


class Role(StrEnum):
    """Azure's data roles, by the last word of their names."""

    RECEIVER = "Receiver"
    SENDER = "Sender"
    OWNER = "Owner"

    @property
    def rights(self) -> Right:
        """Return what the role permits."""
        return {Role.RECEIVER: Right.LISTEN, Role.SENDER: Right.SEND, Role.OWNER: ALL_RIGHTS}[self]


class Status(StrEnum):
    """Whether an entity may be sent to and received from."""

    ACTIVE = "Active"
    DISABLED = "Disabled"
    SEND_DISABLED = "SendDisabled"
    RECEIVE_DISABLED = "ReceiveDisabled"


@dataclass(frozen=True)
class SasRule:
    """A shared access rule; either key signs. `scope` is an entity's path, or empty for the namespace."""

    name: str
    keys: tuple[str, ...] = field(repr=False)
    rights: Right
    scope: str = ""


@dataclass(frozen=True)
class RoleAssignment:
    """A data role of one identity (its client id) on `scope`: an entity's path, or empty for the namespace."""

    client_id: str
    role: Role
    scope: str = ""


@dataclass(frozen=True)
class Rule:
    """A subscription rule: a message that its filter matches is taken."""

    name: str
    filter: Filter


@dataclass(frozen=True)
class QueueSettings:
    """What a queue or a subscription does with its messages; the defaults are Azure's."""

    path: str
    lock_duration: timedelta = timedelta(minutes=1)
    max_delivery_count: int = 10
    default_time_to_live: timedelta | None = None
    dead_lettering_on_expiration: bool = False
    duplicate_detection_window: timedelta | None = None
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None
    max_message_size: int = 256 * 1024
    status: Status = Status.ACTIVE


@dataclass(frozen=True)
class SubscriptionSettings:
    """A subscription: a queue behind rules."""

    name: str
    queue: QueueSettings
    rules: tuple[Rule, ...] = (Rule("$Default", ConstantFilter(value=True)),)


@dataclass(frozen=True)
class TopicSettings(QueueSettings):
    """A topic with its subscriptions. Nobody receives from it: locks, counts and forwarding have no meaning."""

    subscriptions: tuple[SubscriptionSettings, ...] = ()


# The emulator's own published key, so that its connection string works with a namespace that names no rules.
EMULATOR_RULE = SasRule("RootManageSharedAccessKey", ("SAS_KEY_VALUE",), ALL_RIGHTS)


@dataclass(frozen=True)
class Configuration:
    """One namespace."""

    name: str
    queues: tuple[QueueSettings, ...] = ()
    topics: tuple[TopicSettings, ...] = ()
    sas_rules: tuple[SasRule, ...] = (EMULATOR_RULE,)
    role_assignments: tuple[RoleAssignment, ...] = ()

    @classmethod
    def load(cls, path: Path = DEFAULT_ENTITIES) -> "Configuration":
        """Read a file; raise InvalidConfiguration, or OSError where it cannot be read."""
        return cls.parse(path.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, text: str) -> "Configuration":
        """Read the text of a file; raise InvalidConfiguration with every problem in it."""
        try:
            document = json5.loads(text, allow_duplicate_keys=False)
        except ValueError as error:
            raise InvalidConfiguration([f"not readable as JSON: {error}"]) from error
        problems: list[str] = []
        configuration = _configuration(_Node(document, "", problems))
        if not problems:
            problems += _forwarding_problems(configuration)
        if problems:
            raise InvalidConfiguration(problems)
        return configuration


class _Node:
    """A JSON object being read: each member is taken once, and what was not taken is a problem."""

    def __init__(self, value: Any, path: str, problems: list[str]) -> None:  # noqa: ANN401 - any JSON
        self.path = path
        self.problems = problems
        self._rest: dict[str, Any] = {}
        if isinstance(value, dict):
            self._rest = dict(value)
        else:
            self.problem("", f"must be an object, not {_kind(value)}")

    def problem(self, name: str, what: str) -> None:
        place = f"{self.path}.{name}" if name and self.path else self.path or name or "the file"
        self.problems.append(f"{place}: {what}")

    def take(self, name: str, kind: type[T], default: T) -> T:
        """Return a member; report one of another type. Booleans are no numbers here."""
        value = self._rest.pop(name, None)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.problem(name, f"must be {_kind(default)}, not {_kind(value)}")
            return default
        return value

    def required(self, name: str) -> str:
        value = self.take(name, str, "")
        if not value:
            self.problem(name, "is missing")
        return value

    def number(self, name: str, default: int, least: int, most: int) -> int:
        value = self.take(name, int, default)
        if not least <= value <= most:
            self.problem(name, f"must be from {least} to {most}, not {value}")
        return value

    def duration(
        self, name: str, default: timedelta | None, least: timedelta, most: timedelta
    ) -> timedelta | None:
        text = self.take(name, str, "")
        if not text:
            return default
        try:
            value = isodate.parse_duration(text)
        except isodate.ISO8601Error:
            value = None
        if not isinstance(value, timedelta):
            self.problem(name, f"must be an ISO 8601 duration such as PT1M or P7D, not {text!r}")
            return default
        if not least <= value <= most:
            limits = f"{isodate.duration_isoformat(least)} to {isodate.duration_isoformat(most)}"
            self.problem(name, f"must be from {limits}, not {text}")
        return value

    def choice(self, name: str, kinds: type[E], default: E) -> E:
        text = self.take(name, str, default.value)
        for kind in kinds:
            if kind.value.lower() == text.lower():
                return kind
        self.problem(name, f"must be one of {', '.join(kinds)}, not {text!r}")
        return default

    def child(self, name: str) -> "_Node":
        return _Node(self.take(name, dict, {}), f"{self.path}.{name}".lstrip("."), self.problems)

    def children(self, name: str) -> Iterator["_Node"]:
        """Yield the objects of a list, each known by its Name where it has one."""
        for index, item in enumerate(self.take(name, list, [])):
            label = item.get("Name", index) if isinstance(item, dict) else index
            yield _Node(item, f"{self.path}.{name}[{label}]".lstrip("."), self.problems)

    def texts(self) -> Mapping[str, Any]:
        """Take all that is left, as the free part of a correlation filter."""
        rest, self._rest = self._rest, {}
        return rest

    def end(self) -> None:
        for name in self._rest:
            self.problem(name, "is not a property that the emulator supports")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number"}
    return kinds.get(type(value), "null" if value is None else type(value).__name__)


def _configuration(root: _Node) -> Configuration:
    user = root.child("UserConfig")
    namespaces = list(user.children("Namespaces"))
    user.child("Logging").texts()  # the emulator's log settings mean nothing here
    user.end()
    root.end()
    if len(namespaces) != 1:
        user.problem("Namespaces", f"must hold exactly one namespace, not {len(namespaces)}")
    for namespace in namespaces[:1]:
        return _namespace(namespace)
    return Configuration("")


def _namespace(node: _Node) -> Configuration:
    name = node.required("Name")
    rules = list(_sas_rules(node, ""))
    roles = list(_role_assignments(node, ""))
    seen: set[str] = set()

    def entities(kind: str, read: Callable[[_Node, str], Q]) -> Iterator[Q]:
        for child in node.children(kind):
            path = child.required("Name")
            if path.lower() in seen:
                node.problem("", f"{path} is there twice (names differ by more than case)")
            seen.add(path.lower())
            rules.extend(_sas_rules(child, path))
            roles.extend(_role_assignments(child, path))
            yield read(child, path)
            child.end()

    queues, topics = tuple(entities("Queues", _queue)), tuple(entities("Topics", _topic))
    node.end()
    if all(rule.scope for rule in rules):
        rules.append(EMULATOR_RULE)
    return Configuration(name, queues, topics, tuple(rules), tuple(roles))


_FOREVER = timedelta(days=3653059)
_WEEK = timedelta(days=7)


def _queue(node: _Node, path: str) -> QueueSettings:
    """Read the `Properties` of a queue or of a subscription."""
    properties = node.child("Properties")
    minute = timedelta(minutes=1)
    settings = QueueSettings(
        path=path,
        lock_duration=properties.duration("LockDuration", minute, timedelta(seconds=5), 5 * minute) or minute,
        max_delivery_count=properties.number("MaxDeliveryCount", 10, 1, 2000),
        default_time_to_live=_time_to_live(properties),
        dead_lettering_on_expiration=properties.take("DeadLetteringOnMessageExpiration", bool, default=False),
        duplicate_detection_window=_duplicate_detection(properties),
        forward_to=properties.take("ForwardTo", str, "") or None,
        forward_dead_letters_to=properties.take("ForwardDeadLetteredMessagesTo", str, "") or None,
        max_message_size=_max_message_size(properties),
        status=properties.choice("Status", Status, Status.ACTIVE),
    )
    if properties.take("RequiresSession", bool, default=False):
        properties.problem("RequiresSession", "the emulator does not support sessions")
    properties.end()
    return settings


def _max_message_size(properties: _Node) -> int:
    return properties.number("MaxMessageSizeInKilobytes", 256, 1, 102400) * 1024


def _time_to_live(properties: _Node) -> timedelta | None:
    value = properties.duration("DefaultMessageTimeToLive", None, timedelta(seconds=1), timedelta.max)
    # Azure writes "never" as the longest TimeSpan, P10675199DT2H48M5.4775807S.
    return None if value is None or value > _FOREVER else value


def _duplicate_detection(properties: _Node) -> timedelta | None:
    window = properties.duration(
        "DuplicateDetectionHistoryTimeWindow", timedelta(minutes=10), timedelta(seconds=20), _WEEK
    )
    return window if properties.take("RequiresDuplicateDetection", bool, default=False) else None


def _topic(node: _Node, path: str) -> TopicSettings:
    properties = node.child("Properties")
    topic = TopicSettings(
        path=path,
        default_time_to_live=_time_to_live(properties),
        duplicate_detection_window=_duplicate_detection(properties),
        max_message_size=_max_message_size(properties),
        status=properties.choice("Status", Status, Status.ACTIVE),
        subscriptions=tuple(_subscription(child, path) for child in node.children("Subscriptions")),
    )
    properties.end()
    return topic


def _subscription(node: _Node, topic: str) -> SubscriptionSettings:
    name = node.required("Name")
    queue = _queue(node, f"{topic}/Subscriptions/{name}")
    rules: dict[str, Rule] = {}
    for child in node.children("Rules"):
        rule = _rule(child)
        if rules.setdefault(rule.name.lower(), rule) is not rule:
            child.problem("Name", f"{rule.name} is there twice (names differ by more than case)")
    node.end()
    if not rules:
        return SubscriptionSettings(name, queue)
    return SubscriptionSettings(name, queue, tuple(rules.values()))


def _rule(node: _Node) -> Rule:
    name = node.required("Name")
    properties = node.child("Properties")
    node.end()
    if properties.take("Action", dict, {}):
        properties.problem("Action", "the emulator does not support actions of rules")
    kind = properties.required("FilterType")
    readers: dict[str, Callable[[_Node], Filter]] = {"sql": _sql_filter, "correlation": _correlation_filter}
    reader = readers.get(kind.lower())
    rule = Rule(name, ConstantFilter(value=True))
    if reader is None:
        properties.problem("FilterType", f"must be Sql or Correlation, not {kind!r}")
    else:
        try:
            rule = Rule(name, reader(properties))
        except InvalidFilter as error:
            properties.problem("", str(error))
    properties.end()
    return rule


def _sql_filter(properties: _Node) -> Filter:
    node = properties.child("SqlFilter")
    expression = node.required("SqlExpression")
    node.end()
    return SqlFilter(expression) if expression else ConstantFilter(value=True)


def _correlation_filter(properties: _Node) -> Filter:
    node = properties.child("CorrelationFilter")
    application_properties = node.child("Properties").texts()
    return CorrelationFilter(dict(node.texts()), dict(application_properties))


def _sas_rules(node: _Node, scope: str) -> Iterator[SasRule]:
    for rule in node.children("AuthorizationRules"):
        rights = Right(0)
        for text in rule.take("Rights", list, []):
            if str(text).upper() not in Right.__members__:
                rule.problem("Rights", f"knows Listen, Send and Manage, not {text!r}")
                continue
            rights |= Right[str(text).upper()]
        if not rights:
            rule.problem("Rights", "must name at least one of Listen, Send, Manage")
        # A rule without a key gets a random one, as in Azure.
        name, primary = rule.required("Name"), rule.take("PrimaryKey", str, "") or secrets.token_urlsafe(32)
        secondary = rule.take("SecondaryKey", str, "")
        rule.end()
        # Manage includes the others, as in Azure.
        rights = ALL_RIGHTS if Right.MANAGE in rights else rights
        yield SasRule(name, tuple(key for key in (primary, secondary) if key), rights, scope)


def _role_assignments(node: _Node, scope: str) -> Iterator[RoleAssignment]:
    for assignment in node.children("RoleAssignments"):
        client_id = assignment.required("ClientId")
        role = assignment.choice("Role", Role, Role.RECEIVER)
        assignment.end()
        yield RoleAssignment(client_id.lower(), role, scope)


def _forwarding_problems(configuration: Configuration) -> Iterator[str]:
    """Find destinations that are not there, and chains that end nowhere or are longer than Azure's 4 hops."""
    queues = [*configuration.queues]
    queues += [each.queue for topic in configuration.topics for each in topic.subscriptions]
    onward = {queue.path.lower(): queue.forward_to for queue in configuration.queues}
    known = onward.keys() | {topic.path.lower() for topic in configuration.topics}
    for queue in queues:
        for name, target in (
            ("ForwardTo", queue.forward_to),
            ("ForwardDeadLetteredMessagesTo", queue.forward_dead_letters_to),
        ):
            hops, at = 0, target
            while at is not None and at.lower() in known and hops <= MAX_FORWARD_HOPS:
                hops, at = hops + 1, onward.get(at.lower())
            if at is not None and at.lower() not in known:
                yield f"{queue.path}.{name}: there is no queue or topic {at}"
            elif hops > MAX_FORWARD_HOPS:
                yield f"{queue.path}.{name}: forwards more than {MAX_FORWARD_HOPS} times, or in a circle"
            if target is not None and target.lower() == queue.path.lower():
                yield f"{queue.path}.{name}: forwards to itself"
