"""The matrix: every boundary in the life of a message with every fault that makes sense there, over real sockets.

A cell is one win (or one message that has to be parked) with one fault in its way, brought to rest and judged: exactly
one invoice, one event with one id, nothing waiting, nothing parked but for a permanent cause. It leaves the sandbox and
how a history comes to rest to `sockets`, and what is right to `checker`.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from proofs.checker import FAILED_QUEUE, QUEUE, TOPIC, Cause, Expectations, judge
from sandbox.faults import Dependency, FaultKind, FaultRule, When
from sandbox.faults.syntax import parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proofs.sockets import Seen, Stage


class Boundary(StrEnum):
    """Where in the life of a message something fails, in the order in which a message comes by."""

    RECEIVE = "receive"
    TOKEN = "token"
    CHECK = "check"
    CLAIM = "claim and generate"
    COMMITTED = "… after the commit"
    ASSIGN = "assign"
    ASSIGNED = "… after the assignment"
    RETRIEVE = "retrieve"
    PUBLISH = "publish"
    ACCEPTED = "… after acceptance"
    SCHEDULE = "schedule"
    SCHEDULED = "… after scheduling"
    PARK = "park"
    PARKED = "… after parking"
    COMPLETE = "complete"


# What waits for somebody who is silent: seconds each.
SLOW = frozenset(
    {
        FaultKind.SILENT,
        FaultKind.SWALLOW,
        FaultKind.KILL,
        FaultKind.RESTART,
        FaultKind.DELAY,
        FaultKind.DRIBBLE,
    }
)


@dataclass(frozen=True)
class Cell:
    """One fault at one boundary.

    `far`: a retry is scheduled far ahead, and a new process handles it. `cut`: connections that are open are cut first,
    so that new ones are made. `anew`: a new process handles the message, so that it needs a token. `reason`: the fault
    is permanent, and the message is parked with this reason; None: it is processed.
    """

    boundary: Boundary
    rule: FaultRule
    far: bool = False
    cut: bool = False
    anew: bool = False
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.boundary}: {self.what}"

    @property
    def what(self) -> str:
        """The fault, as rows of the table name it: with after, where a boundary does not say so by itself."""
        shown = replace(self.rule.fault, after=False) if self.boundary in _AFTER else self.rule.fault
        when = self.rule.when
        if when.last is None:
            return f"{shown}, for good"
        where = (
            f"{self.rule.operation.partition(':')[0]}: "
            if self.rule.operation.startswith(("connect", "attach"))
            else ""
        )
        times = when.last - when.first + 1
        return f"{where}{shown}" + (f", {times} times" if times > 1 else "")


_AFTER = frozenset(
    {Boundary.COMMITTED, Boundary.ASSIGNED, Boundary.ACCEPTED, Boundary.SCHEDULED, Boundary.PARKED}
)


@dataclass(frozen=True)
class Result:
    """What became of a cell. `path`: how the message was processed, in a word or two."""

    cell: Cell
    path: str
    problems: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """Whether the promise was kept, in a word."""
        return "broken" if self.problems else "kept"


# ---------------------------------------------------------------------------------------------- the cells

# Faults are written as in `sandbox.faults.syntax`, with semicolons between them; one that does not say how often
# strikes once. Four times is more than one repeat in place, or one of the SDK's own, gets over.

_RETRY_AFTER_SHORT = ("1", "date+2", "none", "-5", "soon", "0.5")
_RETRY_AFTER_FAR = ("60", "date+120", "99999999")
# Of one fault at a time: each is what a response to the whole request may be.
_RESPONSES = """
    admin-mode; empty; redirect; unauthorized; forbidden; forbidden code=0x80040220; not-found;
    not-found code=0x80040217; conflict; conflict code=0x80060882; deadlock;
    unavailable status=502; unavailable status=503; unavailable status=504; html
"""
# Of one part of a batch. With an error, a plug-in refuses, throttles its record, or reports that its backend fails. A
# batch that stops ends with this part: those behind it are missing.
_PARTS = """
    conflict; conflict code=0x80060892; deadlock; throttled retry_after=1; forbidden code=0x80040220;
    not-found code=0x80040217; unavailable status=503; sql-timeout;
    error; error status=403 code=0x80048d06; error status=429 code=0x80048d04; error status=500 code=0x80048d0a;
    unavailable stop=200; unavailable stop=400
"""
_REFUSALS = "forbidden code=0x80040299; forbidden code=0x80042f09; conflict code=0x80060882;"
_UNAUTHORIZED = "reject code=amqp:unauthorized-access"


def cells() -> list[Cell]:
    """Return all of them, those that move the broker's clock last."""
    every = [*_receive(), *_token(), *_dataverse(), *_service_bus(), *_permanent()]
    return sorted(every, key=lambda cell: (cell.reason is not None, cell.far))


def _cells(
    boundary: Boundary, where: str, faults: str, *, after: bool | None = None, part: int | None = None
) -> Iterator[Cell]:
    """Yield a cell for each of the faults, on a connection or one of its operations.

    `after`, if given, and `part` hold for all of them.
    """
    for text in filter(None, map(str.strip, faults.split(";"))):
        rule = parse_rule(f"{where} {text}" if "nth=" in text else f"{where} {text} nth=1")
        fault = rule.fault if part is None else replace(rule.fault, part=part)
        yield Cell(boundary, replace(rule, fault=fault if after is None else replace(fault, after=after)))


def _receive() -> Iterator[Cell]:
    connect = "refuse nth=1-4; reset nth=1-4; silent seconds=3; cut bytes=200; dribble seconds=2"
    for operation, faults in (("connect", connect), (f"attach:{QUEUE}", f"{_UNAUTHORIZED} nth=1-4")):
        for cell in _cells(Boundary.RECEIVE, f"service-bus-in/{operation}", faults):
            yield replace(cell, cut=True)
    yield from _cells(
        Boundary.RECEIVE,
        f"service-bus-in/deliver:{QUEUE}",
        "reset; reset after=yes; silent; swallow; delay seconds=0.5; lock-lost; duplicate; duplicate nth=1-3; restart",
    )
    yield from _cells(Boundary.RECEIVE, "functions-host/invoke", "kill")
    yield from _cells(
        Boundary.COMPLETE,
        f"service-bus-in/settle:{QUEUE}",
        "reset; reset after=yes; silent; silent after=yes; swallow; lock-lost;"
        "reject code=com.microsoft:message-lock-lost; delay seconds=0.5; restart; restart after=yes; kill",
    )


def _token() -> Iterator[Cell]:
    for cell in _cells(Boundary.TOKEN, "identity/connect", "refuse nth=1-4; reset nth=1-4"):
        yield replace(cell, cut=True, anew=True)
    four_times = (
        "refuse; reset; reset after=yes; cut; truncated; redirect; unauthorized; forbidden; not-found;"
        "throttled retry_after=1; unavailable status=500; unavailable; html;"
    ).replace(";", " nth=1-4;")
    once = "silent; dribble seconds=1; delay seconds=1; kill"
    for cell in _cells(Boundary.TOKEN, "identity/token", four_times + once):
        yield replace(cell, anew=True)


def _dataverse() -> Iterator[Cell]:
    for boundary, operation, parts in (
        (Boundary.CHECK, "batch", range(5)),
        (Boundary.CLAIM, "change-set", range(1)),
        # The batch that assigns the invoice, and then retrieves it and its lines.
        (Boundary.RETRIEVE, "update", range(1, 3)),
    ):
        yield from _calls(boundary, operation, after=False)
        yield from _parts(boundary, operation, parts, after=False)
    yield from _calls(Boundary.COMMITTED, "change-set", after=True)
    # The error of the change set's own part is false; with the others, its reads fail.
    yield from _parts(Boundary.COMMITTED, "change-set", range(3), after=True)
    yield from _cells(Boundary.COMMITTED, "dataverse/change-set", "cut; truncated; dribble seconds=1")
    # The assignment fails, alone or with its batch: the event is published in spite of it.
    for after, boundary in ((False, Boundary.ASSIGN), (True, Boundary.ASSIGNED)):
        yield from _cells(boundary, "dataverse/update", _REFUSALS + _PARTS, part=0, after=after)
    yield from _calls(Boundary.ASSIGNED, "update", after=True)
    # Faults of connections, which the check meets first.
    connect = """
        refuse nth=1-4; reset nth=1-4; reset bytes=6000 nth=1-4; cut bytes=2000 nth=1-4; silent; silent after=yes;
        swallow; dribble seconds=1; delay seconds=0.3
    """
    for cell in _cells(Boundary.CHECK, "dataverse/connect", connect):
        yield replace(cell, cut=True)


def _parts(boundary: Boundary, operation: str, parts: range, *, after: bool) -> Iterator[Cell]:
    for part in parts:
        yield from _cells(boundary, f"dataverse/{operation}", _PARTS, part=part, after=after)


def _calls(boundary: Boundary, operation: str, *, after: bool) -> Iterator[Cell]:
    where = f"dataverse/{operation}"
    if not after:
        yield from _cells(boundary, where, "refuse nth=1-4; delay seconds=1")
        if boundary is not Boundary.CLAIM:
            # Of the claim these are after the commit.
            yield from _cells(boundary, where, "cut nth=1-4; truncated; dribble seconds=1")
    yield from _cells(boundary, where, f"reset; reset nth=1-4; silent; kill; {_RESPONSES}", after=after)
    # Every form where something is carried out or nothing is; one where that is no different.
    forms = None if boundary in (Boundary.CHECK, Boundary.COMMITTED) else 1
    for form in _RETRY_AFTER_SHORT[:forms]:
        yield from _cells(boundary, where, f"throttled retry_after={form}", after=after)
    for form in _RETRY_AFTER_FAR[:forms]:
        for cell in _cells(boundary, where, f"throttled retry_after={form}", after=after):
            yield replace(cell, far=True)


def _service_bus() -> Iterator[Cell]:
    """Publish; schedule a retry, after one failed check; park a message that cannot be read."""
    connect = "refuse nth=1-4; reset nth=1-4; silent; swallow; cut bytes=200 nth=1-4; dribble seconds=1"
    for boundary, operation, after in (
        (Boundary.PUBLISH, f"send:{TOPIC}", False),
        (Boundary.ACCEPTED, f"send:{TOPIC}", True),
        (Boundary.SCHEDULE, f"schedule:{QUEUE}", False),
        (Boundary.SCHEDULED, f"schedule:{QUEUE}", True),
        (Boundary.PARK, f"send:{FAILED_QUEUE}", False),
        (Boundary.PARKED, f"send:{FAILED_QUEUE}", True),
    ):
        faults = "reset; reset nth=1-4; silent; kill; restart"
        if not after:
            faults += f"; reject nth=1-4; {_UNAUTHORIZED} nth=1-4; reject code=amqp:internal-error"
            faults += "; delay seconds=1; swallow"
        for cell in _cells(boundary, f"service-bus-out/{operation}", faults, after=after):
            yield replace(cell, reason="InvalidEvent") if "park" in boundary else cell
    for operation, faults in (("connect", connect), (f"attach:{TOPIC}", f"{_UNAUTHORIZED} nth=1-2")):
        for cell in _cells(Boundary.PUBLISH, f"service-bus-out/{operation}", faults):
            yield replace(cell, cut=True)


def _permanent() -> Iterator[Cell]:
    """Let what never passes be parked with its reason, once the time of the retry policy is over."""
    for boundary, where, fault, reason in (
        (Boundary.CHECK, "dataverse", "refuse", "DataverseUnreachable"),
        (Boundary.CHECK, "dataverse", "unavailable", "DataverseUnavailable"),
        (Boundary.CHECK, "dataverse", "html", "DataverseUnavailable"),
        (Boundary.CHECK, "dataverse", "unauthorized", "DataverseUnauthorized"),
        (Boundary.CHECK, "dataverse", "forbidden", "DataverseForbidden"),
        (Boundary.CHECK, "dataverse", "not-found", "DataverseNotFound"),
        (Boundary.CHECK, "dataverse/batch", "not-found code=0x80040217 part=0", "OpportunityNotFound"),
        (Boundary.CLAIM, "dataverse/change-set", "forbidden code=0x80040220 part=0", "DataverseForbidden"),
        (Boundary.CLAIM, "dataverse/change-set", "error part=0", "InvoiceRefused"),
        (Boundary.CLAIM, "dataverse/change-set", "error status=404 code=0x80048d02", "InvoiceRefused"),
        (Boundary.CLAIM, "dataverse/change-set", "error code= part=0 stop=400", "InvoiceRefused"),
        (Boundary.CLAIM, "dataverse/change-set", "sql-timeout part=0", "DataverseUnavailable"),
        (Boundary.TOKEN, "identity/token", "unavailable", "TokenUnavailable"),
        (Boundary.PUBLISH, f"service-bus-out/send:{TOPIC}", _UNAUTHORIZED, "PublishFailed"),
    ):
        yield Cell(boundary, parse_rule(f"{where} {fault}"), anew=boundary is Boundary.TOKEN, reason=reason)


def short() -> list[Cell]:
    """Return a few cells of each boundary, and none that has to wait for what is silent: for every day."""
    chosen = []
    for boundary, group in itertools.groupby(
        sorted(cells(), key=lambda cell: list(Boundary).index(cell.boundary)), key=lambda cell: cell.boundary
    ):
        quick = [cell for cell in group if cell.rule.fault.kind not in SLOW and not cell.cut and not cell.far]
        kinds = {cell.rule.fault.kind: cell for cell in reversed(quick)}
        chosen += list(kinds.values())[-_EACH_DAY[boundary] :]
    return chosen


_EACH_DAY = dict.fromkeys(Boundary, 2) | {Boundary.CLAIM: 3, Boundary.COMMITTED: 5}


# ---------------------------------------------------------------------------------------------- running one


class Matrix:
    """Runs cells on one stage, one after the other, and remembers what they leave behind on purpose."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._invoiced: list[str] = []
        self._causes: list[Cause] = []
        self._number = itertools.count(1)

    def run(self, cell: Cell) -> Result:
        """Run a cell to its rest and judge it."""
        stage = self._stage
        started = time.monotonic()
        struck = len(stage.plan.log)
        if cell.anew:
            stage.kill_workers()
        if cell.cut:
            stage.cut(cell.rule.dependency)
        seen = stage.count_anew()
        unread = "park" in cell.boundary
        stage.plan.add(cell.rule)
        if "schedul" in cell.boundary:
            stage.plan.add(parse_rule("dataverse/batch unavailable nth=1"))
        mark = self._unreadable(cell) if unread else self._won(cell)
        rests = self._to_rest(cell, seen, mark)
        stage.plan.clear()
        if cell.rule.fault.kind in _DEAD:
            # A connection that is dead takes messages to nowhere, until its peers notice; that was this cell's.
            for dependency in (Dependency.SERVICE_BUS_IN, Dependency.SERVICE_BUS_OUT):
                stage.cut(dependency)
        evidence = stage.evidence()
        owners = {mark: evidence.opportunities[mark].owner} if _is_assigned(cell) else {}
        expectations = Expectations(invoiced=self._invoiced, causes=self._causes, owners=owners)
        problems = [str(violation) for violation in judge(evidence, expectations)]
        published, invoices = len(stage.watch.published), len(self._invoiced)
        if published > invoices:
            problems.append(f"subscribers got {published} events of {invoices} invoices")
        if not rests:
            problems.append("it did not come to rest")
        if len(stage.plan.log) == struck:
            problems.append("the fault did not strike")
        if cell.reason and not seen.parked:
            problems.append("it was not parked")
        return Result(cell, _path(seen, cell), tuple(problems), time.monotonic() - started)

    def _won(self, cell: Cell) -> str:
        opportunity = self._stage.fresh()
        if cell.reason is None:
            self._invoiced.append(opportunity)
        else:
            self._causes.append(Cause(opportunity.encode(), frozenset({cell.reason})))
        self._stage.win(opportunity)
        return opportunity

    def _unreadable(self, cell: Cell) -> str:
        mark = f"no event {next(self._number)}"
        self._causes.append(Cause(mark.encode(), frozenset({cell.reason or ""})))
        self._stage.send(mark.encode(), message_id=mark)
        return mark

    def _to_rest(self, cell: Cell, seen: Seen, mark: str) -> bool:
        stage = self._stage
        if cell.reason is None or mark.startswith("no event"):
            if cell.far:
                # The process is throttled for as long as it was asked to; another one was not asked.
                self._wait_for_retries(seen, 1)
                stage.kill_workers()
            return stage.to_rest(1)
        # Some tries, and then the longest retry policy is over at once.
        self._wait_for_retries(seen, _TRIES)
        stage.pass_the_retry_policies()
        return stage.to_rest(1)

    def _wait_for_retries(self, seen: Seen, count: int) -> None:
        end = time.monotonic() + _PATIENCE
        while seen.retries < count and time.monotonic() < end:
            time.sleep(0.01)


_TRIES = 3
_PATIENCE = 30.0
_DEAD = frozenset({FaultKind.SILENT, FaultKind.SWALLOW, FaultKind.DRIBBLE})


def _is_assigned(cell: Cell) -> bool:
    """Whether the invoice must belong to the owner of the opportunity; where the assignment fails, it may not."""
    fails_often = cell.boundary is Boundary.RETRIEVE and cell.rule.when == When(last=4)
    return cell.reason is None and cell.boundary is not Boundary.ASSIGN and not fails_often


def _path(seen: Seen, cell: Cell) -> str:
    """Say how the message was processed."""
    retries, again = seen.retries, seen.deliveries - seen.retries - 1
    if cell.reason:
        # The failed queue detects no duplicates; where time is moved, a lock may end under way and add one.
        often = seen.parked > 1 and "park" in cell.boundary
        return "parked" + (f", {seen.parked} times" if often else "")
    words = [f"{retries} retr{'y' if retries == 1 else 'ies'}"] if retries else []
    words += [f"{again} redeliver{'y' if again == 1 else 'ies'}"] if again > 0 else []
    return ", ".join(words) or "in place"


def in_order(results: Sequence[Result]) -> list[Result]:
    """Return the results in the order in which a message comes by."""
    return sorted(results, key=lambda result: list(Boundary).index(result.cell.boundary))
