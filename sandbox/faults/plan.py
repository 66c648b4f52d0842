"""One plan of faults, for every connection of the function.

A `FaultRule` says where (a connection and an operation on it), what (a `Fault`) and when (the n-th call, for a time, at
random with a seed). Each server asks the plan about every call before it carries it out, and causes the fault that it
gets; the plan keeps a log. `dataverse`, `identity`, `proxy` and `service_bus` cause the faults.
"""

import random
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

from sandbox.clock import Clock, SystemClock


class Dependency(StrEnum):
    """What the function depends on, by a connection that may fail. Its operations: see `OPERATIONS`."""

    IDENTITY = "identity"
    DATAVERSE = "dataverse"
    SERVICE_BUS_IN = "service-bus-in"
    SERVICE_BUS_OUT = "service-bus-out"
    FUNCTIONS_HOST = "functions-host"


# The operations of each connection; `{}` stands for an entity. A rule may name one, or a pattern such as `*`.
OPERATIONS = {
    Dependency.IDENTITY: ("connect", "token"),
    Dependency.DATAVERSE: ("connect", "read", "write", "batch", "change-set", "update"),
    Dependency.SERVICE_BUS_IN: ("connect", "attach:{}", "deliver:{}", "settle:{}"),
    Dependency.SERVICE_BUS_OUT: ("connect", "attach:{}", "send:{}", "schedule:{}"),
    Dependency.FUNCTIONS_HOST: ("invoke",),
}


class FaultKind(StrEnum):
    """A kind of fault; `KINDS` says to which connections each applies."""

    # The connection.
    REFUSE = "refuse"
    RESET = "reset"
    SILENT = "silent"
    CUT = "cut"
    DRIBBLE = "dribble"
    DELAY = "delay"
    SWALLOW = "swallow"
    # The response.
    REDIRECT = "redirect"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    DEADLOCK = "deadlock"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    ERROR = "error"
    SQL_TIMEOUT = "sql-timeout"
    ADMIN_MODE = "admin-mode"
    EMPTY = "empty"
    BATCH_STOPS = "batch-stops"
    HTML = "html"
    TRUNCATED = "truncated"
    # The broker and the host.
    REJECT = "reject"
    LOCK_LOST = "lock-lost"
    DUPLICATE = "duplicate"
    RESTART = "restart"
    KILL = "kill"


@dataclass(frozen=True)
class Description:
    """What a kind does, in a sentence, on which connections, and which fields of `Fault` change it.

    `status` and `code` are those of its response, where the fault has none of its own.
    """

    text: str
    dependencies: frozenset[Dependency]
    fields: tuple[str, ...] = ()
    status: int = 503
    code: str = ""


_HTTP = frozenset({Dependency.IDENTITY, Dependency.DATAVERSE})
_AMQP = frozenset({Dependency.SERVICE_BUS_IN, Dependency.SERVICE_BUS_OUT})
_DATAVERSE = frozenset({Dependency.DATAVERSE})
_OF_A_PART = ("after", "part", "stop")

KINDS = {
    FaultKind.REFUSE: Description(
        "the connection is refused: it is reset as soon as it is made", _HTTP | _AMQP
    ),
    FaultKind.RESET: Description(
        "the connection is reset: before the call is carried out or, with after, without its response",
        _HTTP | _AMQP,
        ("after", "bytes"),
    ),
    FaultKind.SILENT: Description(
        "the peer accepts and stays silent for so many seconds; with after, once the call is carried out",
        _HTTP | _AMQP,
        ("after", "seconds"),
    ),
    FaultKind.CUT: Description(
        "the connection closes in the middle of the response", _HTTP | _AMQP, ("bytes",)
    ),
    FaultKind.DRIBBLE: Description(
        "the response arrives in small pieces, over so many seconds", _HTTP | _AMQP, ("seconds",)
    ),
    FaultKind.DELAY: Description("everything takes so many seconds longer", _HTTP | _AMQP, ("seconds",)),
    FaultKind.SWALLOW: Description(
        "packets are dropped: nothing passes in either direction, the connection stays open",
        _HTTP | _AMQP,
        ("seconds",),
    ),
    FaultKind.REDIRECT: Description(
        "302 to a sign-in page, or to another location", _HTTP, ("location", "after")
    ),
    FaultKind.UNAUTHORIZED: Description("401", _HTTP, ("after",), 401),
    FaultKind.FORBIDDEN: Description(
        "403: no application user, or another code", _HTTP, ("code", *_OF_A_PART), 403, "0x80072560"
    ),
    FaultKind.NOT_FOUND: Description(
        "404: of a gateway or, with code=0x80040217, of Dataverse itself", _HTTP, ("code", *_OF_A_PART), 404
    ),
    FaultKind.CONFLICT: Description(
        "412: a duplicate key (code=0x80040237) or a row version (code=0x80060882)",
        _DATAVERSE,
        ("code", *_OF_A_PART),
        412,
        "0x80040237",
    ),
    FaultKind.DEADLOCK: Description("500 with SQL's number 1205", _DATAVERSE, _OF_A_PART, 500, "0x80044150"),
    FaultKind.THROTTLED: Description(
        "429; retry_after is the value of the header, date+7 for a date, none for no header",
        _HTTP,
        ("retry_after", "code", *_OF_A_PART),
        429,
        "0x80072322",
    ),
    FaultKind.UNAVAILABLE: Description(
        "503, or another status from 500", _HTTP, ("status", *_OF_A_PART), 503
    ),
    FaultKind.ERROR: Description(
        "Dataverse's error as a plug-in or the platform raises it: 400 and 0x80040265, or any status, code (code= for "
        "none), text and name of the plug-in (source)",
        _DATAVERSE,
        ("code", "status", "text", "source", "retry_after", *_OF_A_PART),
        400,
        "0x80040265",
    ),
    FaultKind.SQL_TIMEOUT: Description(
        "500 with 0x80044151, SQL's timeout", _DATAVERSE, _OF_A_PART, 500, "0x80044151"
    ),
    # Several codes may mean it; which one an environment in this mode has is not confirmed.
    FaultKind.ADMIN_MODE: Description(
        "403: the environment is in administration mode", _DATAVERSE, (), 403, "0x8004A113"
    ),
    FaultKind.EMPTY: Description(
        "403, or another status, without a body: an IP firewall's", _HTTP, ("status",), 403
    ),
    FaultKind.BATCH_STOPS: Description(
        "a change set that fails ends its batch, against the preference of the request: with 400, or with status=200",
        _DATAVERSE,
        ("status",),
        400,
    ),
    FaultKind.HTML: Description("200 with a page instead of JSON", _HTTP, ("after",)),
    FaultKind.TRUNCATED: Description("a well-formed HTTP response whose body ends too early", _HTTP),
    FaultKind.REJECT: Description(
        "the broker refuses, with an AMQP condition such as com.microsoft:server-busy",
        _AMQP,
        ("code",),
        code="com.microsoft:server-busy",
    ),
    FaultKind.LOCK_LOST: Description(
        "the message's lock expires at once", frozenset({Dependency.SERVICE_BUS_IN})
    ),
    FaultKind.DUPLICATE: Description("the message is there twice", frozenset({Dependency.SERVICE_BUS_IN})),
    FaultKind.RESTART: Description("the broker restarts; its messages stay", _AMQP, ("after",)),
    FaultKind.KILL: Description(
        "the function's worker process is killed: before the call is carried out or, with after, afterwards",
        frozenset(Dependency),
        ("after",),
    ),
}

# What a proxy can cause, which knows only the connection. A kind of all four dependencies must be one of these.
_OF_CONNECTIONS = frozenset(
    kind for kind, description in KINDS.items() if description.dependencies >= _HTTP | _AMQP
)
# What only a proxy does to AMQP, where one connection carries everything.
_OF_AMQP_CONNECTIONS = frozenset({FaultKind.REFUSE, FaultKind.CUT, FaultKind.DRIBBLE})
# What is done to a message that a client has.
_OF_LOCKED_MESSAGES = frozenset({FaultKind.LOCK_LOST, FaultKind.DUPLICATE})


@dataclass(frozen=True)
class Fault:
    """A fault. Which fields apply depends on the kind.

    `after`: the call is carried out first. `part`: in a batch, only the response to this operation, from 0, changes,
    and without `after` only this operation is not carried out. `stop`: the batch ends with this part, and this is its
    status. `code`: Dataverse's or AMQP's own; "" for a gateway's response, or no code. `text`, `source`:
    the error's message, and the plug-in that it names. `location`: where a redirect leads. `retry_after`: the header's
    value, `date+N` for the date in N seconds, "none" for no header.
    `seconds`: how long a silence, a delay or a dribble lasts. `bytes`: how many of a peer's bytes pass
    before its connection is reset or cut.
    """

    kind: FaultKind
    after: bool = False
    part: int | None = None
    stop: int | None = None
    code: str | None = None
    status: int | None = None
    text: str = ""
    source: str = ""
    location: str = ""
    retry_after: str | None = None
    seconds: float = 30.0
    bytes: int = 0

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        usual = {"status": kind.status}
        shown = [
            f"{name}={_shown(getattr(self, name))}"
            for name in kind.fields
            if getattr(self, name) not in (getattr(_DEFAULT, name), usual.get(name))
        ]
        return " ".join([self.kind.value, *shown])

    @property
    def http_status(self) -> int:
        """The status of the response."""
        return KINDS[self.kind].status if self.status is None else self.status

    @property
    def error_code(self) -> str:
        """The code in the response."""
        return KINDS[self.kind].code if self.code is None else self.code


def _shown(value: object) -> str:
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


_DEFAULT = Fault(FaultKind.RESET)


@dataclass(frozen=True)
class When:
    """Which of the calls that a rule matches are struck; all conditions must hold.

    `first` and `last`: of the n-th matching calls, from 1. `start` and `duration`: counted from when the rule was
    added, by the plan's clock. `chance`: of each such call, drawn with `seed`.
    """

    first: int = 1
    last: int | None = None
    start: timedelta = timedelta()
    duration: timedelta | None = None
    chance: float = 1.0
    seed: int = 0

    @classmethod
    def nth(cls, number: int) -> "When":
        """Strike the n-th matching call only."""
        return cls(first=number, last=number)

    @classmethod
    def once(cls) -> "When":
        """Strike the first matching call only."""
        return cls.nth(1)

    @classmethod
    def during(cls, duration: timedelta, start: timedelta = timedelta()) -> "When":
        """Strike within a window of time."""
        return cls(start=start, duration=duration)

    @classmethod
    def at_random(cls, chance: float, seed: int, last: int | None = None) -> "When":
        """Strike each call with this probability."""
        return cls(last=last, chance=chance, seed=seed)

    def __str__(self) -> str:
        if self.last == self.first:
            shown = [f"nth={self.first}"]
        elif self.first > 1 or self.last is not None:
            shown = [f"nth={self.first}-{self.last or ''}"]
        else:
            shown = []
        if self.start:
            shown.append(f"from={self.start.total_seconds():g}s")
        if self.duration is not None:
            shown.append(f"for={self.duration.total_seconds():g}s")
        if self.chance < 1:
            shown.append(f"chance={self.chance:g} seed={self.seed}")
        return " ".join(shown)


ALWAYS = When()


@dataclass(frozen=True)
class FaultRule:
    """A fault, where it strikes and when.

    `operation`: one of `OPERATIONS`, or a pattern of them as file names have. A pattern means those to which the fault
    applies, and connections only if nothing else.
    """

    dependency: Dependency
    fault: Fault
    when: When = ALWAYS
    operation: str = "*"

    def __post_init__(self) -> None:
        """Refuse a rule that can never apply."""
        if self.dependency not in KINDS[self.fault.kind].dependencies:
            raise ValueError(f"there is no {self.fault.kind} on the connection {self.dependency}")

    def __str__(self) -> str:
        where = self.dependency.value if self.operation == "*" else f"{self.dependency}/{self.operation}"
        return f"{where} {self.fault} {self.when}".rstrip()


@dataclass(frozen=True)
class Struck:
    """An entry of the log: a fault struck a call. `about`: a description of the call, without secrets."""

    at: datetime
    dependency: Dependency
    operation: str
    fault: Fault
    about: str = ""

    def __str__(self) -> str:
        return f"{self.at.isoformat()} {self.dependency}/{self.operation}: {self.fault} {self.about}".rstrip()


@dataclass(frozen=True)
class ActiveRule:
    """A rule that is active now; `until` None: until the plan is cleared."""

    rule: FaultRule
    until: datetime | None


@dataclass
class _Standing:
    """A rule with its counters."""

    rule: FaultRule
    since: datetime
    random: random.Random
    matched: int = 0


@dataclass
class FaultPlan:
    """The rules, in their order, and the log. Safe under many threads; rules can be added and removed at any time."""

    rules: Iterable[FaultRule] = ()
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        """Begin with the rules given."""
        self._lock = threading.Lock()
        self._standing: list[_Standing] = []
        self._log: list[Struck] = []
        self._actions: dict[FaultKind, Callable[[], None]] = {}
        self._released = threading.Event()
        self._is_suspended = False
        for rule in self.rules:
            self.add(rule)

    @property
    def log(self) -> tuple[Struck, ...]:
        """Everything that struck, in order."""
        with self._lock:
            return tuple(self._log)

    @property
    def active(self) -> tuple[ActiveRule, ...]:
        """The rules that may still strike, in order; those of the future included."""
        with self._lock:
            now = self.clock.now()
            active = [
                ActiveRule(standing.rule, _end(standing))
                for standing in self._standing
                if not _is_spent(standing)
            ]
        return tuple(each for each in active if each.until is None or now < each.until)

    def add(self, *rules: FaultRule) -> None:
        """Add rules; the first that applies to a call strikes it."""
        with self._lock:
            now = self.clock.now()
            self._standing += [
                _Standing(rule, now, random.Random(rule.when.seed))  # noqa: S311 - to be repeatable, not secret
                for rule in rules
            ]

    def clear(self) -> None:
        """Let nothing strike any more, and end the silences and delays that last; the log stays."""
        with self._lock:
            self._standing.clear()
            released, self._released = self._released, threading.Event()
        released.set()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let nothing strike and count no call in the block; the rules' time begins after it."""
        with self._lock:
            self._is_suspended = True
        try:
            yield
        finally:
            with self._lock:
                self._is_suspended = False
                now = self.clock.now()
                for standing in self._standing:
                    standing.since = now

    def provide(self, kind: FaultKind, action: Callable[[], None]) -> None:
        """Call `action` for each fault of this kind: for what a server cannot do by itself.

        The owner of the worker processes provides KILL, the owner of the broker's servers RESTART.
        """
        with self._lock:
            self._actions[kind] = action

    def carry_out(self, kind: FaultKind) -> None:
        """Do what was provided for this kind; raises LookupError where nothing was."""
        with self._lock:
            action = self._actions.get(kind)
        if action is None:
            raise LookupError(f"nothing here can {kind}")
        action()

    def strike(self, dependency: Dependency, operation: str, about: str = "") -> Fault | None:
        """Return the fault for this call, and log it; None: no fault.

        Every rule that matches counts the call, no matter which one strikes it.
        """
        with self._lock:
            if self._is_suspended:
                return None
            now = self.clock.now()
            # A list, not a generator: each must count.
            hits = [standing for standing in self._standing if _hits(standing, dependency, operation, now)]
            if not hits:
                return None
            struck = Struck(now, dependency, operation, hits[0].rule.fault, about)
            self._log.append(struck)
        return struck.fault

    @property
    def cleared(self) -> Callable[[], bool]:
        """Return a function that returns whether the plan was cleared since now, for callers that cannot block."""
        return self._released.is_set

    def pause(self, seconds: float) -> None:
        """Wait in real time, until `clear` at most: for silences and delays."""
        self._released.wait(seconds)


def _end(standing: _Standing) -> datetime | None:
    when = standing.rule.when
    return None if when.duration is None else standing.since + when.start + when.duration


def _is_spent(standing: _Standing) -> bool:
    """Return whether the last call that could be struck has been made."""
    last = standing.rule.when.last
    return last is not None and standing.matched >= last


def _hits(standing: _Standing, dependency: Dependency, operation: str, now: datetime) -> bool:
    rule = standing.rule
    if (
        rule.dependency is not dependency
        or not fnmatchcase(operation, rule.operation)
        or not _can_strike(rule, operation)
    ):
        return False
    when = rule.when
    elapsed = now - standing.since
    if elapsed < when.start or (when.duration is not None and elapsed >= when.start + when.duration):
        return False
    standing.matched += 1
    # Drawn for every call, so that the n-th draw does not depend on the others.
    lot = standing.random.random()
    in_turn = when.first <= standing.matched and (when.last is None or standing.matched <= when.last)
    return in_turn and lot < when.chance


def _can_strike(rule: FaultRule, operation: str) -> bool:
    kind = rule.fault.kind
    proxied_only = rule.dependency in _AMQP and kind in _OF_AMQP_CONNECTIONS
    if operation == "connect":
        return kind in _OF_CONNECTIONS and (rule.operation == "connect" or proxied_only)
    if kind is FaultKind.BATCH_STOPS:
        return operation in ("change-set", "update")
    if kind in _OF_LOCKED_MESSAGES:
        return operation.startswith(("deliver:", "settle:"))
    return not proxied_only
