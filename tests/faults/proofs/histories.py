"""Random histories: wins, faults, crashes and users, all drawn from one seed; each brought to rest and judged.

A seed is a whole history: the same one happens again, turn for turn, so a failure can be replayed alone. What a history
is about is in `situations`, what a world is made of in `rig`, what is right in `checker`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from proofs.checker import FAILED_QUEUE, Violation, judge, judge_requests
from proofs.history import LAST_FAULT, History
from proofs.rig import quiet
from proofs.sales_state import read_opportunities
from proofs.simulation import NoRest
from proofs.situations import draw_situation

if TYPE_CHECKING:
    from collections import Counter


@dataclass(frozen=True)
class Outcome:
    """How a history went. `digest` is the same for the same seed; `counts`: what happened in it, `log`: and when."""

    seed: int
    violations: tuple[Violation, ...]
    counts: Counter[str]
    digest: str
    log: tuple[str, ...]


def run_history(seed: int, *, lesser_depth: bool = False) -> Outcome:
    """Run one history until nothing happens any more, and judge it."""
    with quiet():
        random = Random(seed)  # noqa: S311 - to be repeatable, not secret
        situation = draw_situation(random)
        history = History(random, situation.name, situation.settings(random), lesser_depth=lesser_depth)
        try:
            situation.begin(history)
            return _outcome(seed, history)
        finally:
            history.world.close()


def _outcome(seed: int, history: History) -> Outcome:
    world = history.world
    violations: list[Violation] = []
    if history.faults_end:
        world.simulation.at(LAST_FAULT, world.plan.clear)
    try:
        history.to_rest()
    except NoRest as error:
        violations.append(Violation("a history comes to rest", str(error)))
    user = history.organization.function_user
    opportunities = read_opportunities(world.app.database, user)
    evidence = world.watch.evidence(world.app.database.commits, user, opportunities)
    violations += judge(evidence, history.expectations(opportunities))
    violations += judge_requests(world.requests)
    violations += world.violations
    if world.host.timeouts:
        violations.append(
            Violation("an invocation ends within its deadline", f"{world.host.timeouts} did not.")
        )
    log = sorted([*history.log, *map(str, world.plan.log)])
    return Outcome(seed, tuple(violations), _counts(history), _digest(history), tuple(log))


def _counts(history: History) -> Counter[str]:
    world, scenarios = history.world, history.scenarios.values()
    counts = world.counts
    counts.update(f"fault: {struck.dependency} {struck.fault.kind}" for struck in world.plan.log)
    counts["opportunities won"] = sum(scenario.won for scenario in scenarios)
    counts["opportunities that must be invoiced"] = sum(
        scenario.must_be_invoiced and not scenario.concurrent for scenario in scenarios
    )
    counts["invoices generated"] = sum(
        change.table == "invoice" and change.kind == "create"
        for commit in world.app.database.commits
        if commit.user_id == history.organization.function_user
        for change in commit.changes
    )
    counts["events published"] = len(world.watch.published)
    counts["messages parked for a cause"] = world.broker.counts(FAILED_QUEUE).active
    counts["claims deleted while a message is handled"] = sum(
        scenario.claim_deleted_under_way for scenario in scenarios
    )
    return counts


def _digest(history: History) -> str:
    world = history.world
    happened = [world.simulation.trace, [str(struck) for struck in world.plan.log]]
    happened.append(
        [(c.at, [(x.kind, x.table, x.id) for x in c.changes]) for c in world.app.database.commits]
    )
    return hashlib.blake2b(repr(happened).encode(), digest_size=8).hexdigest()
