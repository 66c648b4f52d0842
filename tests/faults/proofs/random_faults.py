"""Faults of the histories in one process, drawn at random: what goes wrong, where and when."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sandbox.faults import Dependency, Fault, FaultKind, FaultRule, When

if TYPE_CHECKING:
    from random import Random


def draw_rule(random: Random) -> tuple[FaultRule, int]:
    """Return a fault, where it strikes and when, and how many deliveries it may cost at most."""
    kind = random.random()
    if kind < 0.65:
        return _dataverse_rule(random)
    if kind < 0.80:
        return _service_bus_out_rule(random)
    if kind < 0.93:
        return _service_bus_in_rule(random)
    fault = Fault(random.choice((FaultKind.UNAVAILABLE, FaultKind.SILENT)), seconds=30)
    return FaultRule(Dependency.IDENTITY, fault, _when(random)), 0


_RETRY_AFTER = ("1", "4", "7", "60", "600", "date+20", "none", "-5", "99999999", "soon")
_SERVER_ERRORS = (500, 502, 503, 504)


def _dataverse_rule(random: Random) -> tuple[FaultRule, int]:
    operation = random.choice(("*", "batch", "change-set", "change-set", "change-set", "update"))
    after = random.random() < 0.6
    part = random.choice((None, None, 0, 1, 2)) if operation != "*" else None
    faults = (
        Fault(FaultKind.REFUSE),
        Fault(FaultKind.RESET, after=after),
        Fault(FaultKind.RESET, after=True),
        Fault(FaultKind.SILENT, after=after, seconds=random.choice((30.0, 600.0))),
        Fault(FaultKind.CUT),
        Fault(FaultKind.TRUNCATED),
        Fault(FaultKind.DELAY, seconds=random.choice((5.0, 60.0))),
        Fault(FaultKind.REDIRECT, after=after),
        Fault(FaultKind.UNAUTHORIZED, after=after),
        Fault(FaultKind.FORBIDDEN, after=after, part=part),
        Fault(FaultKind.NOT_FOUND, after=after, code="", part=part),
        Fault(FaultKind.NOT_FOUND, after=after, code="0x80040217", part=part),
        Fault(FaultKind.CONFLICT, after=after, part=part, code=random.choice(("0x80040237", "0x80060892"))),
        Fault(FaultKind.DEADLOCK, after=after, part=part),
        Fault(FaultKind.THROTTLED, after=after, part=part, retry_after=random.choice(_RETRY_AFTER)),
        Fault(FaultKind.UNAVAILABLE, after=after, part=part, status=random.choice(_SERVER_ERRORS)),
        Fault(FaultKind.UNAVAILABLE, after=after, part=part, stop=random.choice((200, 400))),
        Fault(FaultKind.SQL_TIMEOUT, after=after, part=part),
        Fault(FaultKind.ERROR, after=after, part=part, status=500, code="0x80048d0a"),
        Fault(FaultKind.ERROR, after=after, part=part or 0, status=429, code="0x80048d04"),
        Fault(FaultKind.ADMIN_MODE),
        Fault(FaultKind.EMPTY),
        Fault(FaultKind.HTML, after=after),
        Fault(FaultKind.KILL, after=after),
    )
    if random.random() < 0.15:
        # The response to the loser of a race, and there is no winner.
        kind = random.choice((FaultKind.CONFLICT, FaultKind.DEADLOCK, FaultKind.THROTTLED))
        return FaultRule(Dependency.DATAVERSE, Fault(kind, part=0), _when(random), "change-set"), 0
    fault = random.choice(faults)
    if fault.kind is FaultKind.KILL:
        return FaultRule(Dependency.DATAVERSE, fault, When.nth(random.randint(1, 6)), operation), 1
    return FaultRule(Dependency.DATAVERSE, fault, _when(random), operation), 0


def _service_bus_out_rule(random: Random) -> tuple[FaultRule, int]:
    after = random.random() < 0.5
    fault = random.choice(
        (
            Fault(FaultKind.RESET, after=after),
            Fault(FaultKind.SILENT, after=after),
            Fault(FaultKind.REJECT),
            Fault(FaultKind.DELAY, seconds=5.0),
            Fault(FaultKind.KILL, after=after),
        )
    )
    operation = random.choice(("*", "send:*", "schedule:*"))
    if fault.kind is FaultKind.KILL:
        return FaultRule(Dependency.SERVICE_BUS_OUT, fault, When.nth(random.randint(1, 3)), operation), 1
    if random.random() < 0.3:
        # For longer than an invocation lasts.
        minutes = random.choice((5, 10))
        return FaultRule(
            Dependency.SERVICE_BUS_OUT, fault, When.during(timedelta(minutes=minutes)), operation
        ), 3
    return FaultRule(Dependency.SERVICE_BUS_OUT, fault, When(last=random.randint(1, 4)), operation), 0


def _service_bus_in_rule(random: Random) -> tuple[FaultRule, int]:
    when = When.nth(random.randint(1, 3))
    kind = random.choice((FaultKind.LOCK_LOST, FaultKind.LOCK_LOST, FaultKind.DUPLICATE, FaultKind.RESET))
    if kind is FaultKind.RESET:
        # The response to a settlement is lost, or the settlement itself.
        fault = Fault(kind, after=random.random() < 0.3)
        return FaultRule(Dependency.SERVICE_BUS_IN, fault, when, "settle:*"), 1
    return FaultRule(Dependency.SERVICE_BUS_IN, Fault(kind), when, "deliver:*"), int(
        kind is FaultKind.LOCK_LOST
    )


def _when(random: Random) -> When:
    kind = random.random()
    if kind < 0.5:
        return When.nth(random.randint(1, 6))
    if kind < 0.7:
        return When(last=random.randint(1, 5))
    if kind < 0.85:
        return When.at_random(0.3, random.getrandbits(32), last=20)
    return When.during(timedelta(seconds=random.choice((20, 120, 600))))
