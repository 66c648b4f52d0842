"""The checks of `operations doctor`: what a check is, what it returns, and how all of them are run.

A check is a function that returns what it saw. It names the checks whose results it needs, as objects; where one of
those failed, it is not run. Checks that do not need one another run at the same time, since most of the time is spent
waiting for a response.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from operations.background import in_background, interruptible_result
from shared.clock import Deadline, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from uuid import UUID

    from operations.diagnosis.findings import Finding

Value = TypeVar("Value")

# Azure Resource Manager of the public cloud.
PUBLIC_ARM_ENDPOINT = "https://management.azure.com"


class State(Enum):
    """The result of a check."""

    OK = "ok"
    # Nothing is broken, and there is something that one should know.
    REMARK = "remark"
    # The flow is in order, and something that went through it waits for a person.
    ATTENTION = "attention"
    PROBLEM = "problem"
    CANNOT_SEE = "cannot see"
    # A check that it needs failed: its result would be that failure again.
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Result:
    """One line of a check's result. `right`: what the login would need, where it cannot be seen."""

    state: State
    seen: str
    finding: Finding | None = None
    right: str = ""

    @classmethod
    def of(cls, finding: Finding, seen: str) -> Result:
        """Return a finding; one line, of a length that can be read."""
        return cls(finding.state, " ".join(seen.split())[:500], finding)


@dataclass(frozen=True)
class Checked(Generic[Value]):
    """What a check returns: the value for the checks that need it, and the lines for people."""

    value: Value
    results: tuple[Result, ...]


class Inconclusive(Exception):
    """A check ends without a value; `results` say why."""

    def __init__(self, *results: Result) -> None:
        super().__init__(*results)
        self.results = results


Outcome = Checked[Any] | Inconclusive


class RightMissing(Inconclusive):
    """The login lacks a right."""

    def __init__(self, seen: str, right: str) -> None:
        super().__init__(Result(State.CANNOT_SEE, seen, right=right))


class CheckFailed(Inconclusive):
    """A finding that keeps the check, and those that need it, from going on; `seen` may be several lines."""

    def __init__(self, finding: Finding, *seen: str) -> None:
        super().__init__(*(Result.of(finding, each) for each in seen))


@dataclass(frozen=True)
class Inputs:
    """What the command was called with. `namespace_id` None: not given."""

    environment: Mapping[str, str]
    namespace_id: str | None = None
    arm_endpoint: str = PUBLIC_ARM_ENDPOINT
    opportunity: UUID | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Check(Generic[Value]):
    """One check. `beside`: checks that it does not wait for, and whose failure makes its result worthless."""

    name: str
    run: Callable[[Run], Checked[Value]]
    needs: tuple[Check[Any], ...]
    beside: tuple[Check[Any], ...]


def check(
    name: str, *needs: Check[Any], beside: tuple[Check[Any], ...] = ()
) -> Callable[[Callable[[Run], Checked[Value]]], Check[Value]]:
    """Make a function a check, with the checks whose results it needs."""
    return lambda run: Check(name, run, needs, beside)


@dataclass(frozen=True)
class Run:
    """What a check gets: the inputs, its deadline, and what the checks that it needs returned or raised."""

    inputs: Inputs
    deadline: Deadline
    _outcomes: Mapping[Check[Any], Outcome]

    def __getitem__(self, needed: Check[Value]) -> Value:
        """Return the value of a check; raises what it ended with, where it has none."""
        outcome = self._outcomes[needed]
        if isinstance(outcome, Inconclusive):
            raise outcome
        return cast("Value", outcome.value)


def run_checks(
    checks: Sequence[Check[Any]], inputs: Inputs, seconds: float
) -> Iterator[tuple[Check[Any], tuple[Result, ...]]]:
    """Yield the results of each check, in order; those that they need are run too. `seconds`: for each check."""
    running: dict[Check[Any], Future[Outcome]] = {}

    def start(each: Check[Any]) -> None:
        if each not in running:
            for needed in (*each.needs, *each.beside):
                start(needed)
            running[each] = in_background("doctor", partial(_run, each, inputs, dict(running), seconds))

    for each in checks:
        start(each)
    for each in checks:
        yield each, interruptible_result(running[each]).results


def ok(seen: str, value: Value = None) -> Checked[Value]:  # type: ignore[assignment]
    """Return that a check is in order."""
    return Checked(value, (Result(State.OK, seen),))


def found(finding: Finding, seen: str) -> Checked[None]:
    """Return one finding."""
    return Checked(None, (Result.of(finding, seen),))


def judged(findings: Iterable[tuple[Finding, str]], otherwise: str, value: Value = None) -> Checked[Value]:  # type: ignore[assignment]
    """Return the findings of which something was seen, or that the check is in order."""
    results = tuple(Result.of(finding, seen) for finding, seen in findings if seen)
    return Checked(value, results) if results else ok(otherwise, value)


def _run(
    each: Check[Any], inputs: Inputs, running: Mapping[Check[Any], Future[Outcome]], seconds: float
) -> Outcome:
    outcomes = {needed: running[needed].result() for needed in each.needs}
    try:
        _refuse_broken(outcomes)
        try:
            return each.run(Run(inputs, Deadline.after(SystemClock(), seconds), outcomes))
        finally:
            _refuse_broken({other: running[other].result() for other in each.beside})
    except Inconclusive as ended:
        return ended


def _refuse_broken(outcomes: Mapping[Check[Any], Outcome]) -> None:
    names = [
        each.name
        for each, outcome in outcomes.items()
        if any(result.state in (State.PROBLEM, State.NOT_CHECKED) for result in outcome.results)
    ]
    if names:
        raise Inconclusive(Result(State.NOT_CHECKED, f"because of: {', '.join(names)}"))
