"""The plan: which call is struck, by what, and what the log says."""

from datetime import UTC, datetime, timedelta

import pytest

from sandbox.clock import MovableClock
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.plan import KINDS, OPERATIONS

RESET = Fault(FaultKind.RESET)
READ = (Dependency.DATAVERSE, "read")


def struck(
    plan: FaultPlan, calls: int, dependency: Dependency = Dependency.DATAVERSE, operation: str = "read"
) -> list[int]:
    """Which of so many calls are struck, from 1."""
    return [n for n in range(1, calls + 1) if plan.strike(dependency, operation) is not None]


def plan_of(*rules: FaultRule, clock: MovableClock | None = None) -> FaultPlan:
    return FaultPlan(rules, clock or MovableClock(datetime(2026, 1, 1, tzinfo=UTC)))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (When(), [1, 2, 3, 4, 5]),
        (When.once(), [1]),
        (When.nth(3), [3]),
        (When(first=2, last=4), [2, 3, 4]),
        (When(first=4), [4, 5]),
    ],
)
def test_calls_are_struck_by_their_number(when: When, expected: list[int]) -> None:
    assert struck(plan_of(FaultRule(Dependency.DATAVERSE, RESET, when)), 5) == expected


def test_only_matching_calls_are_counted_and_struck() -> None:
    plan = plan_of(FaultRule(Dependency.DATAVERSE, RESET, When.nth(2), "read"))
    assert struck(plan, 1) == []
    assert struck(plan, 5, operation="batch") == []
    assert struck(plan, 5, dependency=Dependency.IDENTITY) == []
    assert struck(plan, 2) == [1]


def test_a_window_of_time_opens_and_closes_by_the_plan_s_clock() -> None:
    clock = MovableClock(datetime(2026, 1, 1, tzinfo=UTC))
    plan = plan_of(
        FaultRule(
            Dependency.DATAVERSE, RESET, When.during(timedelta(seconds=10), start=timedelta(seconds=5))
        ),
        clock=clock,
    )
    seen = []
    for _ in range(4):
        seen.append(plan.strike(*READ) is not None)
        clock.advance(timedelta(seconds=5))
    assert seen == [False, True, True, False]


def test_chance_is_the_same_for_the_same_seed_and_near_its_probability() -> None:
    rule = FaultRule(Dependency.DATAVERSE, RESET, When.at_random(0.3, seed=7))
    one, other = struck(plan_of(rule), 1000), struck(plan_of(rule), 1000)
    assert one == other
    assert 250 < len(one) < 350
    assert one != struck(plan_of(FaultRule(Dependency.DATAVERSE, RESET, When.at_random(0.3, seed=8))), 1000)


def test_every_rule_counts_a_call_that_another_one_strikes() -> None:
    delay = Fault(FaultKind.DELAY)
    plan = plan_of(
        FaultRule(Dependency.DATAVERSE, RESET, When.nth(1)),
        FaultRule(Dependency.DATAVERSE, delay, When.nth(2)),
    )
    assert [plan.strike(*READ), plan.strike(*READ), plan.strike(*READ)] == [RESET, delay, None]


def test_what_struck_is_logged_and_stays_logged_when_the_rules_are_gone() -> None:
    plan = plan_of(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.UNAVAILABLE, status=502, after=True)))
    plan.strike(Dependency.DATAVERSE, "read", "GET /invoices")
    plan.clear()
    assert plan.strike(*READ) is None
    (entry,) = plan.log
    assert (
        str(entry)
        == "2026-01-01T00:00:00+00:00 dataverse/read: unavailable status=502 after=yes GET /invoices"
    )


def test_a_pause_ends_when_the_plan_is_cleared() -> None:
    plan = plan_of()
    cleared = plan.cleared
    plan.clear()
    assert cleared()
    assert not plan.cleared()


def test_what_a_connection_cannot_do_is_provided_by_its_owner() -> None:
    plan, killed = plan_of(), []
    with pytest.raises(LookupError, match="kill"):
        plan.carry_out(FaultKind.KILL)
    plan.provide(FaultKind.KILL, lambda: killed.append("worker"))
    plan.carry_out(FaultKind.KILL)
    assert killed == ["worker"]


def test_a_fault_that_a_connection_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no deadlock on the connection identity"):
        FaultRule(Dependency.IDENTITY, Fault(FaultKind.DEADLOCK))


def test_every_kind_and_dependency_is_described() -> None:
    assert set(KINDS) == set(FaultKind)
    assert set(OPERATIONS) == set(Dependency)
    assert all(hasattr(RESET, name) for description in KINDS.values() for name in description.fields)


@pytest.mark.parametrize(
    ("rule", "operation", "strikes"),
    [
        (FaultRule(Dependency.DATAVERSE, RESET), "connect", False),
        (FaultRule(Dependency.DATAVERSE, RESET, operation="connect"), "connect", True),
        (FaultRule(Dependency.DATAVERSE, Fault(FaultKind.THROTTLED), operation="connect"), "connect", False),
        (FaultRule(Dependency.SERVICE_BUS_OUT, RESET, operation="send:*"), "send:queue", True),
        (FaultRule(Dependency.SERVICE_BUS_OUT, RESET, operation="send:*"), "schedule:queue", False),
        (FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.REFUSE)), "connect", True),
        (FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.REFUSE)), "deliver:queue", False),
        (FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.LOCK_LOST)), "deliver:queue", True),
        (FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.LOCK_LOST)), "attach:queue", False),
    ],
    ids=str,
)
def test_a_pattern_means_what_can_be_struck(rule: FaultRule, operation: str, strikes: bool) -> None:  # noqa: FBT001 - pytest's
    """A connection is struck where it is named, or where nothing but a connection can be."""
    assert (plan_of(rule).strike(rule.dependency, operation) is not None) is strikes


def test_a_suspended_plan_strikes_nothing_and_counts_nothing() -> None:
    clock = MovableClock(datetime(2026, 1, 1, tzinfo=UTC))
    nth = FaultRule(Dependency.DATAVERSE, RESET, When.nth(2))
    timed = FaultRule(Dependency.IDENTITY, RESET, When.during(timedelta(seconds=10)))
    plan = plan_of(nth, timed, clock=clock)
    with plan.suspended():
        assert struck(plan, 5) == []
        assert struck(plan, 1, Dependency.IDENTITY, "token") == []
        clock.advance(timedelta(minutes=1))
    assert struck(plan, 3) == [2]
    # Its time begins when the plan goes on.
    assert struck(plan, 1, Dependency.IDENTITY, "token") == [1]


def test_active_rules_are_those_that_may_still_strike() -> None:
    clock = MovableClock(datetime(2026, 1, 1, tzinfo=UTC))
    once, timed, always = (
        FaultRule(Dependency.DATAVERSE, RESET, When.once()),
        FaultRule(Dependency.DATAVERSE, RESET, When.during(timedelta(seconds=10), timedelta(seconds=5))),
        FaultRule(Dependency.IDENTITY, RESET),
    )
    plan = plan_of(once, timed, always, clock=clock)
    assert [(each.rule, each.until) for each in plan.active] == [
        (once, None),
        (timed, clock.now() + timedelta(seconds=15)),
        (always, None),
    ]
    struck(plan, 1)
    clock.advance(timedelta(seconds=15))
    assert [each.rule for each in plan.active] == [always]
    plan.clear()
    assert plan.active == ()
