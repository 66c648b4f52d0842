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

from proofs.checker import FAILED_QUEUE, QUEUE, TOPIC, Cause, Expectations
from proofs.sockets import Stage, broken
from sandbox.faults import Dependency, Fault, FaultKind, FaultRule, When

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proofs.sockets import Seen


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


# ---------------------------------------------------------------------------------------------- the cells

_ONCE = When.once()
# More than one repeat in place, or one of the SDK's own, gets over.
_FOUR = When(last=4)

_RETRY_AFTER_SHORT = ("1", "date+2", "none", "-5", "soon", "0.5")
_RETRY_AFTER_FAR = ("60", "date+120", "99999999")
# Of one fault at a time: each is what a response to the whole request may be.
_RESPONSES = (
    Fault(FaultKind.ADMIN_MODE),
    Fault(FaultKind.EMPTY),
    Fault(FaultKind.REDIRECT),
    Fault(FaultKind.UNAUTHORIZED),
    Fault(FaultKind.FORBIDDEN),
    Fault(FaultKind.FORBIDDEN, code="0x80040220"),
    Fault(FaultKind.NOT_FOUND),
    Fault(FaultKind.NOT_FOUND, code="0x80040217"),
    Fault(FaultKind.CONFLICT),
    Fault(FaultKind.CONFLICT, code="0x80060882"),
    Fault(FaultKind.DEADLOCK),
    Fault(FaultKind.UNAVAILABLE, status=502),
    Fault(FaultKind.UNAVAILABLE, status=503),
    Fault(FaultKind.UNAVAILABLE, status=504),
    Fault(FaultKind.HTML),
)
# Of one part of a batch.
_PARTS = (
    Fault(FaultKind.CONFLICT),
    Fault(FaultKind.CONFLICT, code="0x80060892"),
    Fault(FaultKind.DEADLOCK),
    Fault(FaultKind.THROTTLED, retry_after="1"),
    Fault(FaultKind.FORBIDDEN, code="0x80040220"),
    Fault(FaultKind.NOT_FOUND, code="0x80040217"),
    Fault(FaultKind.UNAVAILABLE, status=503),
    Fault(FaultKind.SQL_TIMEOUT),
    # A plug-in refuses, throttles its record, or reports that its backend fails.
    Fault(FaultKind.ERROR),
    Fault(FaultKind.ERROR, status=403, code="0x80048d06"),
    Fault(FaultKind.ERROR, status=429, code="0x80048d04"),
    Fault(FaultKind.ERROR, status=500, code="0x80048d0a"),
    # The batch ends with this part: those behind it are missing.
    Fault(FaultKind.UNAVAILABLE, stop=200),
    Fault(FaultKind.UNAVAILABLE, stop=400),
)


def cells() -> list[Cell]:
    """Return all of them, those that move the broker's clock last."""
    every = [*_receive(), *_token(), *_dataverse(), *_publish(), *_copies(), *_complete(), *_permanent()]
    return sorted(every, key=lambda cell: (cell.reason is not None, cell.far))


def _receive() -> Iterator[Cell]:
    def cell(fault: Fault, operation: str, when: When = _ONCE, *, cut: bool = False) -> Cell:
        rule = FaultRule(Dependency.SERVICE_BUS_IN, fault, when, operation)
        return Cell(Boundary.RECEIVE, rule, cut=cut)

    for kind in (FaultKind.REFUSE, FaultKind.RESET):
        yield cell(Fault(kind), "connect", _FOUR, cut=True)
    yield cell(Fault(FaultKind.SILENT, seconds=3), "connect", cut=True)
    yield cell(Fault(FaultKind.CUT, bytes=200), "connect", cut=True)
    yield cell(Fault(FaultKind.DRIBBLE, seconds=2), "connect", cut=True)
    yield cell(Fault(FaultKind.REJECT, code="amqp:unauthorized-access"), f"attach:{QUEUE}", _FOUR, cut=True)
    deliver = f"deliver:{QUEUE}"
    yield cell(Fault(FaultKind.RESET), deliver)
    yield cell(Fault(FaultKind.RESET, after=True), deliver)
    yield cell(Fault(FaultKind.SILENT), deliver)
    yield cell(Fault(FaultKind.SWALLOW), deliver)
    yield cell(Fault(FaultKind.DELAY, seconds=0.5), deliver)
    yield cell(Fault(FaultKind.LOCK_LOST), deliver)
    yield cell(Fault(FaultKind.DUPLICATE), deliver)
    yield cell(Fault(FaultKind.DUPLICATE), deliver, When(last=3))
    yield cell(Fault(FaultKind.RESTART), deliver)
    yield Cell(Boundary.RECEIVE, FaultRule(Dependency.FUNCTIONS_HOST, Fault(FaultKind.KILL), _ONCE, "invoke"))


def _token() -> Iterator[Cell]:
    def cell(fault: Fault, operation: str = "token", when: When = _ONCE) -> Cell:
        rule = FaultRule(Dependency.IDENTITY, fault, when, operation)
        return Cell(Boundary.TOKEN, rule, cut=operation == "connect", anew=True)

    yield cell(Fault(FaultKind.REFUSE), "connect", _FOUR)
    yield cell(Fault(FaultKind.RESET), "connect", _FOUR)
    for fault in (
        Fault(FaultKind.REFUSE),
        Fault(FaultKind.RESET),
        Fault(FaultKind.RESET, after=True),
        Fault(FaultKind.CUT),
        Fault(FaultKind.TRUNCATED),
        Fault(FaultKind.REDIRECT),
        Fault(FaultKind.UNAUTHORIZED),
        Fault(FaultKind.FORBIDDEN),
        Fault(FaultKind.NOT_FOUND),
        Fault(FaultKind.THROTTLED, retry_after="1"),
        Fault(FaultKind.UNAVAILABLE, status=500),
        Fault(FaultKind.UNAVAILABLE),
        Fault(FaultKind.HTML),
    ):
        yield cell(fault, when=_FOUR)
    yield cell(Fault(FaultKind.SILENT))
    yield cell(Fault(FaultKind.DRIBBLE, seconds=1))
    yield cell(Fault(FaultKind.DELAY, seconds=1))
    yield cell(Fault(FaultKind.KILL))


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
    for fault in (Fault(FaultKind.CUT), Fault(FaultKind.TRUNCATED), Fault(FaultKind.DRIBBLE, seconds=1)):
        yield _of_dataverse(Boundary.COMMITTED, "change-set", fault)
    yield from _assignments()
    yield from _connections()


def _parts(boundary: Boundary, operation: str, parts: range, *, after: bool) -> Iterator[Cell]:
    for part, fault in itertools.product(parts, _PARTS):
        yield _of_dataverse(boundary, operation, replace(fault, part=part, after=after))


def _assignments() -> Iterator[Cell]:
    """Let the assignment fail, alone or with its batch: the event is published in spite of it."""
    refusals = (
        Fault(FaultKind.FORBIDDEN, code="0x80040299"),
        Fault(FaultKind.FORBIDDEN, code="0x80042f09"),
        Fault(FaultKind.CONFLICT, code="0x80060882"),
        *_PARTS,
    )
    for after, boundary in ((False, Boundary.ASSIGN), (True, Boundary.ASSIGNED)):
        for fault in refusals:
            yield _of_dataverse(boundary, "update", replace(fault, part=0, after=after))
    yield from _calls(Boundary.ASSIGNED, "update", after=True)


def _calls(boundary: Boundary, operation: str, *, after: bool) -> Iterator[Cell]:
    def cell(fault: Fault, when: When = _ONCE) -> Cell:
        return _of_dataverse(boundary, operation, replace(fault, after=after), when)

    if not after:
        yield cell(Fault(FaultKind.REFUSE), _FOUR)
        yield cell(Fault(FaultKind.DELAY, seconds=1))
        if boundary is not Boundary.CLAIM:
            # Of the claim these are after the commit.
            yield cell(Fault(FaultKind.CUT), _FOUR)
            yield cell(Fault(FaultKind.TRUNCATED))
            yield cell(Fault(FaultKind.DRIBBLE, seconds=1))
    yield cell(Fault(FaultKind.RESET))
    yield cell(Fault(FaultKind.RESET), _FOUR)
    yield cell(Fault(FaultKind.SILENT))
    yield cell(Fault(FaultKind.KILL))
    for fault in _RESPONSES:
        yield cell(fault)
    # Every form where something is carried out or nothing is; one where that is no different.
    every_form = boundary in (Boundary.CHECK, Boundary.COMMITTED)
    for form in _RETRY_AFTER_SHORT if every_form else _RETRY_AFTER_SHORT[:1]:
        yield cell(Fault(FaultKind.THROTTLED, retry_after=form))
    for form in _RETRY_AFTER_FAR if every_form else _RETRY_AFTER_FAR[:1]:
        yield replace(cell(Fault(FaultKind.THROTTLED, retry_after=form)), far=True)


def _of_dataverse(boundary: Boundary, operation: str, fault: Fault, when: When = _ONCE) -> Cell:
    return Cell(boundary, FaultRule(Dependency.DATAVERSE, fault, when, operation))


def _connections() -> Iterator[Cell]:
    """Faults of Dataverse's connections, which the check meets first."""
    for fault, when in (
        (Fault(FaultKind.REFUSE), _FOUR),
        (Fault(FaultKind.RESET), _FOUR),
        (Fault(FaultKind.RESET, bytes=6000), _FOUR),
        (Fault(FaultKind.CUT, bytes=2000), _FOUR),
        (Fault(FaultKind.SILENT), _ONCE),
        (Fault(FaultKind.SILENT, after=True), _ONCE),
        (Fault(FaultKind.SWALLOW), _ONCE),
        (Fault(FaultKind.DRIBBLE, seconds=1), _ONCE),
        (Fault(FaultKind.DELAY, seconds=0.3), _ONCE),
    ):
        yield replace(_of_dataverse(Boundary.CHECK, "connect", fault, when), cut=True)


def _publish() -> Iterator[Cell]:
    yield from _sends(Boundary.PUBLISH, f"send:{TOPIC}", after=False)
    yield from _sends(Boundary.ACCEPTED, f"send:{TOPIC}", after=True)
    out = Dependency.SERVICE_BUS_OUT
    for fault, when in (
        (Fault(FaultKind.REFUSE), _FOUR),
        (Fault(FaultKind.RESET), _FOUR),
        (Fault(FaultKind.SILENT), _ONCE),
        (Fault(FaultKind.SWALLOW), _ONCE),
        (Fault(FaultKind.CUT, bytes=200), _FOUR),
        (Fault(FaultKind.DRIBBLE, seconds=1), _ONCE),
    ):
        yield Cell(Boundary.PUBLISH, FaultRule(out, fault, when, "connect"), cut=True)
    unauthorized = Fault(FaultKind.REJECT, code="amqp:unauthorized-access")
    yield Cell(Boundary.PUBLISH, FaultRule(out, unauthorized, When(last=2), f"attach:{TOPIC}"), cut=True)


def _copies() -> Iterator[Cell]:
    """Schedule a retry, after one failed check; park a message that cannot be read."""
    for boundary, operation, after in (
        (Boundary.SCHEDULE, f"schedule:{QUEUE}", False),
        (Boundary.SCHEDULED, f"schedule:{QUEUE}", True),
        (Boundary.PARK, f"send:{FAILED_QUEUE}", False),
        (Boundary.PARKED, f"send:{FAILED_QUEUE}", True),
    ):
        for cell in _sends(boundary, operation, after=after):
            yield replace(cell, reason="InvalidEvent") if "park" in boundary else cell


def _sends(boundary: Boundary, operation: str, *, after: bool) -> Iterator[Cell]:
    def cell(fault: Fault, when: When = _ONCE) -> Cell:
        return Cell(
            boundary,
            FaultRule(Dependency.SERVICE_BUS_OUT, replace(fault, after=after), when, operation),
        )

    yield cell(Fault(FaultKind.RESET))
    yield cell(Fault(FaultKind.RESET), _FOUR)
    yield cell(Fault(FaultKind.SILENT))
    yield cell(Fault(FaultKind.KILL))
    yield cell(Fault(FaultKind.RESTART))
    if not after:
        yield cell(Fault(FaultKind.REJECT), _FOUR)
        yield cell(Fault(FaultKind.REJECT, code="amqp:unauthorized-access"), _FOUR)
        yield cell(Fault(FaultKind.REJECT, code="amqp:internal-error"))
        yield cell(Fault(FaultKind.DELAY, seconds=1))
        yield cell(Fault(FaultKind.SWALLOW))


def _complete() -> Iterator[Cell]:
    def cell(fault: Fault) -> Cell:
        return Cell(Boundary.COMPLETE, FaultRule(Dependency.SERVICE_BUS_IN, fault, _ONCE, f"settle:{QUEUE}"))

    yield cell(Fault(FaultKind.RESET))
    yield cell(Fault(FaultKind.RESET, after=True))
    yield cell(Fault(FaultKind.SILENT))
    yield cell(Fault(FaultKind.SILENT, after=True))
    yield cell(Fault(FaultKind.SWALLOW))
    yield cell(Fault(FaultKind.LOCK_LOST))
    yield cell(Fault(FaultKind.REJECT, code="com.microsoft:message-lock-lost"))
    yield cell(Fault(FaultKind.DELAY, seconds=0.5))
    yield cell(Fault(FaultKind.RESTART))
    yield cell(Fault(FaultKind.RESTART, after=True))
    yield cell(Fault(FaultKind.KILL))


def _permanent() -> Iterator[Cell]:
    """Let what never passes be parked with its reason, once the time of the retry policy is over."""
    for boundary, operation, fault, reason in (
        (Boundary.CHECK, "*", Fault(FaultKind.REFUSE), "DataverseUnreachable"),
        (Boundary.CHECK, "*", Fault(FaultKind.UNAVAILABLE), "DataverseUnavailable"),
        (Boundary.CHECK, "*", Fault(FaultKind.HTML), "DataverseUnavailable"),
        (Boundary.CHECK, "*", Fault(FaultKind.UNAUTHORIZED), "DataverseUnauthorized"),
        (Boundary.CHECK, "*", Fault(FaultKind.FORBIDDEN), "DataverseForbidden"),
        (Boundary.CHECK, "*", Fault(FaultKind.NOT_FOUND), "DataverseNotFound"),
        (
            Boundary.CHECK,
            "batch",
            Fault(FaultKind.NOT_FOUND, code="0x80040217", part=0),
            "OpportunityNotFound",
        ),
        (
            Boundary.CLAIM,
            "change-set",
            Fault(FaultKind.FORBIDDEN, code="0x80040220", part=0),
            "DataverseForbidden",
        ),
        (Boundary.CLAIM, "change-set", Fault(FaultKind.ERROR, part=0), "InvoiceRefused"),
        (
            Boundary.CLAIM,
            "change-set",
            Fault(FaultKind.ERROR, status=404, code="0x80048d02"),
            "InvoiceRefused",
        ),
        (Boundary.CLAIM, "change-set", Fault(FaultKind.ERROR, code="", part=0, stop=400), "InvoiceRefused"),
        (Boundary.CLAIM, "change-set", Fault(FaultKind.SQL_TIMEOUT, part=0), "DataverseUnavailable"),
    ):
        yield Cell(boundary, FaultRule(Dependency.DATAVERSE, fault, When(), operation), reason=reason)
    refused = Fault(FaultKind.UNAVAILABLE)
    token = FaultRule(Dependency.IDENTITY, refused, When(), "token")
    yield Cell(Boundary.TOKEN, token, anew=True, reason="TokenUnavailable")
    rejected = Fault(FaultKind.REJECT, code="amqp:unauthorized-access")
    yield Cell(
        Boundary.PUBLISH,
        FaultRule(Dependency.SERVICE_BUS_OUT, rejected, When(), f"send:{TOPIC}"),
        reason="PublishFailed",
    )


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
            stage.plan.add(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.UNAVAILABLE), _ONCE, "batch"))
        mark = self._unreadable(cell) if unread else self._won(cell)
        rests = self._to_rest(cell, seen, mark)
        stage.plan.clear()
        if cell.rule.fault.kind in _DEAD:
            # A connection that is dead takes messages to nowhere, until its peers notice; that was this cell's.
            for dependency in (Dependency.SERVICE_BUS_IN, Dependency.SERVICE_BUS_OUT):
                stage.cut(dependency)
        problems = self._unassigned(cell, mark)
        problems += broken(
            stage,
            Expectations(invoiced=self._invoiced, causes=self._causes),
            len(self._invoiced),
        )
        if not rests:
            problems.append("it did not come to rest")
        if len(stage.plan.log) == struck:
            problems.append("the fault did not strike")
        if cell.reason and not seen.parked:
            problems.append("it was not parked")
        return Result(cell, _path(seen, cell), tuple(problems), time.monotonic() - started)

    def _unassigned(self, cell: Cell, opportunity: str) -> list[str]:
        """Say which invoices do not belong to the opportunity's owner; where the assignment fails, they may not."""
        fails_often = cell.boundary is Boundary.RETRIEVE and cell.rule.when == _FOUR
        if cell.reason is not None or cell.boundary is Boundary.ASSIGN or fails_often:
            return []
        return self._stage.unassigned(opportunity)

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


# ---------------------------------------------------------------------------------------------- the table


def rows(results: Sequence[Result]) -> list[tuple[str, str, str, str, float]]:
    """Return a row for each cell: boundary, fault, how the message was processed, verdict, seconds."""
    order = {boundary: number for number, boundary in enumerate(Boundary)}
    return [
        (
            result.cell.boundary.value,
            result.cell.what,
            result.path,
            "broken" if result.problems else "kept",
            result.seconds,
        )
        for result in sorted(results, key=lambda result: order[result.cell.boundary])
    ]
