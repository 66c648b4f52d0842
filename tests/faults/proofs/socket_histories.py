"""Random histories on real sockets: wins, faults and users, drawn from a seed; each brought to rest and judged.

The draw is the same for the same seed; what overlaps with what is up to the machine, as in Azure. The checker is the
same as for the histories in one process. The sandbox and how it comes to rest are left to `sockets`.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

from proofs.checker import QUEUE, Expectations, body_of, judge
from proofs.matrix import SLOW, cells
from proofs.scenario import Scenario, expected_of
from proofs.users import Users, draw_behaviour
from sandbox.cloud import Mode
from sandbox.faults import Dependency
from sandbox.faults.syntax import parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proofs.sockets import Stage
    from sandbox.faults import FaultRule, Struck

    # Seconds from the beginning of the history, a name, and what is done.
    _Act = tuple[float, str, Callable[[Scenario], bool]]

# Several of them per history, and some to spare.
OPPORTUNITIES_EACH = 3
# The retry policies of what people may change: longer than any of the faults, and short enough to wait for their end.
COLUMNS = "new_costcenter,new_nosuchcolumn"
SETTINGS = {"RETRY_OPEN_SECONDS": "15", "RETRY_RECORD_SECONDS": "20", "INVOICE_COLUMNS": COLUMNS}
_PATIENCE = 60.0
_FAULTS_LAST = 10.0
# Beyond duplicate detection, and what the workers' clocks are slow by.
_LATER = timedelta(minutes=11)
_HOUR = timedelta(hours=1)
_CHANGES = ("amount", "currency", "customer", "name", "nothing")
_POLL = 0.02
# How many of the faults are slow: with more of them, nothing else would happen in a minute.
_SLOW_SHARE = 0.12


@dataclass(frozen=True)
class Outcome:
    """How a history went; `log`: which faults struck and what users did."""

    seed: int
    violations: tuple[str, ...]
    counts: Counter[str]
    log: tuple[str, ...]


class Histories:
    """Lets histories happen on one stage, one after the other.

    Each is judged with all before it: what is late of one must keep the promise as well.
    """

    def __init__(self, stage: Stage, *, slow_workers: bool = False) -> None:
        self._stage = stage
        self._past: list[_History] = []
        self._known: set[str] = set()
        self._slow_workers = slow_workers
        if slow_workers:
            # The broker's clock is ahead of those of the workers.
            stage.cloud.move_broker_clock(_HOUR)

    def run(self, seed: int) -> Outcome:
        """Run one history, and judge it; a violation is reported once."""
        history = _History(self._stage, seed)
        self._past.append(history)
        rests = history.happen()
        found = [str(violation) for violation in judge(self._stage.evidence(), self._expectations())]
        if not rests:
            found.append("it did not come to rest")
        violations = [violation for violation in found if violation not in self._known]
        self._known |= set(found)
        counts = history.counts()
        counts["clock: the workers' is an hour slow"] += self._slow_workers
        counts[f"mode: {self._stage.cloud.options.mode}"] += 1
        return Outcome(seed, tuple(violations), counts, history.log())

    def _expectations(self) -> Expectations:
        scenarios = [scenario for history in self._past for scenario in history.scenarios]
        return replace(expected_of(scenarios), columns=frozenset(COLUMNS.split(",")))


@functools.lru_cache(maxsize=1)
def _rules() -> tuple[Sequence[FaultRule], Sequence[FaultRule]]:
    """Return the faults of the matrix that pass, quick ones and slow ones."""
    passing = [cell.rule for cell in cells() if cell.reason is None and not cell.far]
    return (
        [rule for rule in passing if rule.fault.kind not in SLOW],
        [rule for rule in passing if rule.fault.kind in SLOW],
    )


class _History:
    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._random = Random(seed)  # noqa: S311 - to be repeatable, not secret
        self._users = Users(stage.cloud.dataverse, stage.cloud.demo, self._random, self._is_under_way)
        self.scenarios = [Scenario(stage.fresh()) for _ in range(self._random.choice((1, 1, 2, 3)))]
        self._acts: list[str] = []
        self._draws: Counter[str] = Counter()
        self._message_id: str | None = None
        self._wins: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._struck_before = len(stage.plan.log)

    def happen(self) -> bool:
        """Play it, and bring it to rest; return whether that came about."""
        stage, random = self._stage, self._random
        draw_behaviour(random, stage.cloud.dataverse, self._draws)
        if random.random() < 0.25:
            # A sender with one id for all that it sends.
            self._message_id = "an account"
            self._draws["sender: reuses a message id after 11 minutes"] += 1
            stage.cloud.move_broker_clock(_LATER)
        stage.count_anew()
        stage.plan.add(*self._faults())
        # What happens at the same time: one script for each opportunity.
        scripts = [
            threading.Thread(target=self._play, args=(each, self._draw_scenario()), daemon=True)
            for each in self.scenarios
        ]
        for script in scripts:
            script.start()
        for script in scripts:
            script.join()
        rests = self._to_rest()
        self._restore_owners()
        return rests

    def log(self) -> tuple[str, ...]:
        """Return what users did and which faults struck."""
        return (*self._acts, *map(str, self._struck))

    @property
    def _struck(self) -> Sequence[Struck]:
        return self._stage.plan.log[self._struck_before :]

    # --- what is drawn ---

    def _faults(self) -> list[FaultRule]:
        random = self._random
        quick, slow = _rules()
        drawn = []
        for _ in range(random.choice((0, 1, 2, 2, 3, 4))):
            rule = random.choice(slow if random.random() < _SLOW_SHARE else quick)
            first = random.choice((1, 1, 1, 2, 3))
            last = first + random.choice((0, 0, 1, 3)) if rule.fault.kind not in SLOW else first
            drawn.append(replace(rule, when=replace(rule.when, first=first, last=last)))
        if random.random() < 0.1:
            # Everything is away for a moment.
            away = random.choice(("dataverse unavailable", "service-bus-out reject"))
            drawn.append(parse_rule(f"{away} for={random.choice((1, 2, 4))}s"))
        if random.random() < 0.1:
            # Who has a valid token does not notice.
            self._draws["identity: away all the time"] += 1
            drawn.append(parse_rule(random.choice(("identity silent", "identity unavailable"))))
        if random.random() < 0.1:
            drawn += self._hung_connections()
        return drawn

    def _hung_connections(self) -> list[FaultRule]:
        """Let many connections in a row hang, at one stage or another; then the peer is healthy."""
        random, stage = self._random, self._stage
        dependency = Dependency.DATAVERSE
        if stage.cloud.options.mode is Mode.IDENTITY and random.random() < 0.7:
            # Plain AMQP has no bound, and production never uses it.
            dependency = Dependency.SERVICE_BUS_OUT
        count = random.randint(4, 12)
        self._draws[f"hung connections: {dependency}"] += count
        stage.cut(dependency)
        fault = random.choice(("silent", "swallow", "silent after=yes"))
        return [parse_rule(f"{dependency}/connect {fault} nth=1-{count}")]

    def _draw_scenario(self) -> list[_Act]:
        random = self._random
        kind = random.random()
        acts: list[_Act] = [(random.uniform(0, 0.1), "win", self._win)]
        acts += [
            (random.uniform(0, 0.5), "report the win again", self._report)
            for _ in range(random.choice((0, 0, 1, 2)))
        ]
        if kind < 0.3:
            acts.append(self._draw_change())
        elif kind < 0.45:
            what = random.choice(_CHANGES)
            act = functools.partial(self._win_again, what=what)
            acts.append((0.2, f"reopen, change the {what}, win again", act))
        elif kind < 0.52:
            acts.append((-0.1, "order and cancel it before the win", self._users.order_and_cancel))
        elif kind < 0.56:
            acts.append((-0.1, "remove the price list for good", self._refuse))
        elif kind < 0.66:
            acts.append((-0.1, "disable the owner before the win", self._disable_owner))
        return sorted(acts, key=lambda act: act[0])

    def _draw_change(self) -> _Act:
        random, users = self._random, self._users
        changes: dict[str, Callable[[Scenario], bool]] = {
            "create invoice": users.create_invoice,
            "order": users.order,
            "delete invoice": users.delete_invoice,
            "cancel invoice": users.cancel_invoice,
            "delete note": users.delete_note,
            "reopen": users.reopen,
            "reopen and win again": lambda scenario: users.reopen(scenario) and self._win(scenario),
            "reassign invoice": users.reassign_invoice,
        }
        name = random.choice(list(changes))
        return random.uniform(0.05, 0.8), name, changes[name]

    def _play(self, scenario: Scenario, acts: Sequence[_Act]) -> None:
        begun = time.monotonic()
        for at, name, act in acts:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            if act(scenario):
                with self._lock:
                    self._acts.append(f"{name}: {scenario.id}")

    # --- to rest ---

    def _to_rest(self) -> bool:
        """Let the faults come to their end by themselves, then end them; then let what is hopeless be parked."""
        stage, end = self._stage, time.monotonic() + _PATIENCE
        begun = time.monotonic()
        while not stage.to_rest(1, patience=0.2):
            waited = time.monotonic() - begun
            # What is not published by now is kept back by a fault; what is retried after that is not.
            if waited > _FAULTS_LAST or (waited > _FAULTS_LAST / 5 and self._all_published()):
                break
        stage.plan.clear()
        for dependency in (Dependency.SERVICE_BUS_IN, Dependency.SERVICE_BUS_OUT):
            # A dead connection loses messages until its peers notice; the next history begins at rest.
            stage.cut(dependency)
        while time.monotonic() < end and not (self._all_published() and self._all_posted()):
            stage.to_rest(1, patience=0.1)
        # The rest is retried until its policy ends: the invoice is gone, or the win was withdrawn.
        return stage.to_rest(1, patience=_PATIENCE)

    def _all_published(self) -> bool:
        published = self._stage.watch.has_published
        return all(published(each.id) for each in self.scenarios if each.must_be_invoiced)

    def _all_posted(self) -> bool:
        """Whether Dataverse has posted every win: it does so on its own time."""
        posted = [body for body in self._stage.watch.originals if b"MessageName" in body]
        return all(sum(id_.encode() in body for body in posted) >= wins for id_, wins in self._wins.items())

    def counts(self) -> Counter[str]:
        """Return what happened, and how often."""
        seen = self._stage.seen
        counts = Counter(f"fault: {entry.dependency} {entry.fault.kind}" for entry in self._struck)
        counts.update(f"user: {act.partition(':')[0]}" for act in self._acts)
        counts.update(self._draws)
        counts["deliveries"] = seen.deliveries
        counts["retries scheduled"] = seen.retries
        counts["messages parked for a cause"] = seen.parked
        counts["events published"] = seen.published
        counts["opportunities won"] = sum(scenario.won for scenario in self.scenarios)
        counts["opportunities that must be invoiced"] = sum(
            scenario.must_be_invoiced and not scenario.concurrent for scenario in self.scenarios
        )
        return counts

    # --- what users do: each returns whether it could be done ---

    def _win(self, scenario: Scenario) -> bool:
        is_done = self._users.win(scenario)
        self._wins[scenario.id] += is_done
        return is_done

    def _report(self, scenario: Scenario) -> bool:
        self._stage.send(f'{{"opportunityId": "{scenario.id}"}}'.encode(), self._message_id)
        return True

    def _win_again(self, scenario: Scenario, what: str) -> bool:
        """Reopen once it is published, change something, and win again in another second: times have no fractions."""
        end = time.monotonic() + _FAULTS_LAST
        while not self._stage.watch.has_published(scenario.id) and time.monotonic() < end:
            time.sleep(_POLL)
        scenario.won_again = True
        scenario.reasons.add("InvoiceOutdated")
        time.sleep(1.1)
        if not self._users.reopen(scenario):
            return False
        self._users.change_terms(scenario, what)
        time.sleep(1.1)
        return self._win(scenario)

    def _refuse(self, scenario: Scenario) -> bool:
        scenario.changed_by_user = True
        scenario.reasons.add("InvoiceRefused")
        self._users.write("opportunity", scenario.id, {"pricelevelid": None})
        return True

    def _disable_owner(self, scenario: Scenario) -> bool:
        """Disable the salesperson to whom the invoice would be assigned, until the history ends."""
        owner = self._users.opportunity(scenario)["ownerid"]
        if owner not in self._stage.cloud.demo.sellers:
            return False
        self._users.write("systemuser", owner, {"isdisabled": True})
        return True

    def _restore_owners(self) -> None:
        for seller in self._stage.cloud.demo.sellers:
            self._users.write("systemuser", seller, {"isdisabled": False})

    def _is_under_way(self, opportunity_id: str) -> bool:
        waiting = self._stage.cloud.broker.peek(QUEUE, 0, 1_000)
        return any(opportunity_id.encode() in body_of(message) for message in waiting)
