"""How people write a rule: `CONNECTION[/OPERATION] FAULT [NAME=VALUE …]`.

    dataverse/change-set reset after=yes nth=2        the second claim is carried out, and its response lost
    dataverse throttled retry_after=7 for=30s         429 for half a minute
    service-bus-out/send:* reject chance=0.2 seed=7   one send in five is refused
    functions-host kill nth=3                         the worker dies in its third invocation
    dataverse error status=403 text="Not so much."    a plug-in refuses

The names are the fields of `Fault`, and for the time those of `WHEN`.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from sandbox.faults.plan import KINDS, OPERATIONS, Dependency, Fault, FaultKind, FaultRule, When

WHEN = {
    "nth": "of the calls that match, from 1: 3, or 2-4, or 2-",
    "from": "how long after the start it begins: 10s, 2m, 1h",
    "for": "how long it lasts: 10s, 2m, 1h",
    "chance": "the probability for each call: 0.2",
    "seed": "for the chance, so that it comes out the same again: 7",
}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
# How an entity is written in an operation: any text.
_ENTITY = "{}"

Member = TypeVar("Member", bound=StrEnum)


class InvalidRule(ValueError):
    """The text is not a rule; the message lists what is valid."""


def parse_rule(text: str) -> FaultRule:
    """Return the rule; raises InvalidRule."""
    words = _words(text)
    where, kind_name = [*words, "", ""][:2]
    name, _, operation = where.partition("/")
    dependency = _member(Dependency, name, "connection", list(Dependency))
    kind = _member(FaultKind, kind_name, f"fault on the connection {dependency}", kinds_of(dependency))
    values = dict(_pair(word) for word in words[2:])
    fields = KINDS[kind].fields
    unknown = sorted(values.keys() - {*fields, *WHEN})
    if unknown:
        raise InvalidRule(f"{kind} has no {', '.join(unknown)}; it has {', '.join([*fields, *WHEN])}")
    _check_operation(dependency, operation)
    given: dict[str, Any] = {
        name: _read(_FIELDS[name], name, values[name]) for name in fields if name in values
    }
    return FaultRule(dependency, Fault(kind, **given), _when(values), operation or "*")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidRule(f"a quotation mark is missing in {text!r}") from error


def kinds_of(dependency: Dependency) -> list[FaultKind]:
    """Return the faults of a connection."""
    return [kind for kind, description in KINDS.items() if dependency in description.dependencies]


def _member(kind: type[Member], name: str, what: str, members: list[Member]) -> Member:
    if name not in members:
        raise InvalidRule(f"there is no {what} called {name!r}; there is {', '.join(members)}")
    return kind(name)


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise InvalidRule(f"{word!r} is not NAME=VALUE")
    return name.replace("-", "_"), value


def _check_operation(dependency: Dependency, operation: str) -> None:
    """Refuse what can never happen; an entity may have any name."""
    for known in OPERATIONS[dependency]:
        fixed, _, _ = known.partition(_ENTITY)
        if not operation or fnmatchcase(known, operation) or (fixed != known and operation.startswith(fixed)):
            return
    raise InvalidRule(
        f"the connection {dependency} has no operation {operation!r}; it has {', '.join(OPERATIONS[dependency])} "
        "({} stands for a queue or topic; * for anything)"
    )


def _when(values: Mapping[str, str]) -> When:
    first, last = _read(_numbers, "nth", values.get("nth", "1-"))
    duration = values.get("for")
    return When(
        first=first,
        last=last,
        start=_read(_duration, "from", values.get("from", "0s")),
        duration=None if duration is None else _read(_duration, "for", duration),
        chance=_read(_chance, "chance", values.get("chance", "1")),
        seed=_read(int, "seed", values.get("seed", "0")),
    )


Value = TypeVar("Value")


def _read(read: Callable[[str], Value], name: str, text: str) -> Value:
    try:
        return read(text)
    except (ValueError, KeyError) as error:
        looks_like = WHEN.get(name) or "a value such as that of the list of faults"
        raise InvalidRule(f"{name}={text} cannot be read; it is {looks_like}") from error


def _numbers(text: str) -> tuple[int, int | None]:
    first, dash, last = text.partition("-")
    if int(first) < 1 or (last and int(last) < int(first)):
        raise ValueError(text)
    return int(first), (int(last) if last else None) if dash else int(first)


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"([\d.]+)([smh]?)", text)
    if match is None:
        raise ValueError(text)
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def _chance(text: str) -> float:
    chance = float(text)
    if not 0 < chance <= 1:
        raise ValueError(text)
    return chance


def _yes_or_no(text: str) -> bool:
    return {"yes": True, "no": False}[text]


_FIELDS: Mapping[str, Callable[[str], object]] = {
    "after": _yes_or_no,
    "part": int,
    "stop": int,
    "code": str,
    "status": int,
    "text": str,
    "source": str,
    "location": str,
    "retry_after": str,
    "seconds": float,
    "bytes": int,
}
