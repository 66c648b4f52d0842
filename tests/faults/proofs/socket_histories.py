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
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

from proofs.checker import QUEUE, Expectations, body_of, judge
from proofs.matrix import SLOW, cells
from proofs.scenario import Scenario, expected_of
from sandbox.cloud import Mode
from sandbox.dataverse import DuplicateResponse, FailedChangeSet
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Dependency, Fault, FaultKind, FaultRule, When

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proofs.sockets import Stage
    from sandbox.faults import Struck

# Several of them per history, and some to spare.
OPPORTUNITIES_EACH = 3
_OPEN, _WON, _CANCELED = 0, 1, 3
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
    seconds: float


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
        started = time.monotonic()
        rests = history.happen()
        found = [str(violation) for violation in judge(self._stage.evidence(), self._expectations())]
        if not rests:
            found.append("it did not come to rest")
        violations = [violation for violation in found if violation not in self._known]
        self._known |= set(found)
        counts = history.counts()
        counts["clock: the workers' is an hour slow"] += self._slow_workers
        counts[f"mode: {self._stage.cloud.options.mode}"] += 1
        return Outcome(seed, tuple(violations), counts, history.log(), time.monotonic() - started)

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
        self._seed = seed
        self._random = Random(seed)  # noqa: S311 - to be repeatable, not secret
        self.scenarios = [Scenario(stage.fresh()) for _ in range(self._random.choice((1, 1, 2, 3)))]
        self._acts: list[str] = []
        self._draws: Counter[str] = Counter()
        self._message_id: str | None = None
        self._wins: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._published_before = len(stage.watch.published)
        self._struck_before = len(stage.plan.log)

    def happen(self) -> bool:
        """Play it, and bring it to rest; return whether that came about."""
        stage, random = self._stage, self._random
        organization = stage.cloud.dataverse.organization
        organization.duplicate_response = random.choice(list(DuplicateResponse))
        modes = list(FailedChangeSet)
        organization.failed_change_set = random.choice((modes[0], *modes))
        self._draws[f"batch after a failed change set: {organization.failed_change_set.value}"] += 1
        if random.random() < 0.25:
            # A sender with one id for all that it sends.
            self._message_id = "an account"
            self._draws["sender: reuses a message id after 11 minutes"] += 1
            stage.cloud.move_broker_clock(_LATER)
        stage.count_anew()
        stage.plan.add(*self._faults())
        scripts = [threading.Thread(target=script, daemon=True) for script in self._scripts()]
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
            dependency = random.choice((Dependency.DATAVERSE, Dependency.SERVICE_BUS_OUT))
            away = Fault(FaultKind.UNAVAILABLE if dependency is Dependency.DATAVERSE else FaultKind.REJECT)
            drawn.append(
                FaultRule(dependency, away, When.during(timedelta(seconds=random.choice((1, 2, 4)))))
            )
        if random.random() < 0.1:
            # Who has a valid token does not notice.
            self._draws["identity: away all the time"] += 1
            drawn.append(
                FaultRule(
                    Dependency.IDENTITY,
                    random.choice((Fault(FaultKind.SILENT), Fault(FaultKind.UNAVAILABLE))),
                )
            )
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
        fault = random.choice(
            (Fault(FaultKind.SILENT), Fault(FaultKind.SWALLOW), Fault(FaultKind.SILENT, after=True))
        )
        return [FaultRule(dependency, fault, When(last=count), "connect")]

    def _scripts(self) -> list[Callable[[], None]]:
        """Return what happens at the same time: one script for each opportunity."""
        return [
            functools.partial(self._play, scenario, self._draw_scenario(scenario))
            for scenario in self.scenarios
        ]

    def _draw_scenario(self, scenario: Scenario) -> list[tuple[float, str, Callable[[], bool]]]:
        random = self._random
        kind = random.random()
        acts: list[tuple[float, str, Callable[[], bool]]] = [
            (random.uniform(0, 0.1), "win", lambda: self._win(scenario))
        ]
        acts += [
            (random.uniform(0, 0.5), "report the win again", lambda: self._report(scenario))
            for _ in range(random.choice((0, 0, 1, 2)))
        ]
        if kind < 0.3:
            acts.append(self._draw_change(scenario))
        elif kind < 0.45:
            what = random.choice(_CHANGES)
            acts.append(
                (0.2, f"reopen, change the {what}, win again", lambda: self._win_again(scenario, what))
            )
        elif kind < 0.52:
            acts.insert(
                0, (-0.1, "order and cancel it before the win", lambda: self._order_canceled(scenario))
            )
        elif kind < 0.56:
            acts.insert(0, (-0.1, "remove the price list for good", lambda: self._refuse(scenario)))
        elif kind < 0.66:
            acts.insert(0, (-0.1, "disable the owner before the win", lambda: self._disable_owner(scenario)))
        return sorted(acts, key=lambda act: act[0])

    def _draw_change(self, scenario: Scenario) -> tuple[float, str, Callable[[], bool]]:
        random = self._random
        changes: dict[str, Callable[[], bool]] = {
            "create invoice": lambda: self._create_invoice(scenario),
            "order": lambda: self._order(scenario),
            "delete invoice": lambda: self._delete_invoice(scenario),
            "cancel invoice": lambda: self._cancel_invoice(scenario),
            "delete note": lambda: self._delete_note(scenario),
            "reopen": lambda: self._reopen(scenario),
            "reopen and win again": lambda: self._reopen(scenario) and self._win(scenario),
            "reassign invoice": functools.partial(
                self._reassign, scenario, random.choice(self._stage.cloud.demo.sellers)
            ),
        }
        name = random.choice(list(changes))
        return random.uniform(0.05, 0.8), name, changes[name]

    def _play(self, scenario: Scenario, acts: Sequence[tuple[float, str, Callable[[], bool]]]) -> None:
        begun = time.monotonic()
        for at, name, act in acts:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            if act():
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
        return all(self._is_published(each) for each in self.scenarios if each.must_be_invoiced)

    def _all_posted(self) -> bool:
        """Whether Dataverse has posted every win: it does so on its own time."""
        posted = [body for body in self._stage.watch.originals if b"MessageName" in body]
        return all(sum(id_.encode() in body for body in posted) >= wins for id_, wins in self._wins.items())

    def _is_published(self, scenario: Scenario) -> bool:
        published = self._stage.watch.published[self._published_before :]
        return any(scenario.id.encode() in event.body for event in published)

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

    # --- what people do: each returns whether it could be done ---

    def _win(self, scenario: Scenario) -> bool:
        if self._row("opportunity", "opportunityid", scenario)["statecode"] != _OPEN:
            return False
        self._stage.win(scenario.id)
        self._wins[scenario.id] += 1
        scenario.won = True
        return True

    def _report(self, scenario: Scenario) -> bool:
        self._stage.send(f'{{"opportunityId": "{scenario.id}"}}'.encode(), self._message_id)
        return True

    def _reopen(self, scenario: Scenario) -> bool:
        if self._row("opportunity", "opportunityid", scenario)["statecode"] != _WON:
            return False
        # Until it is won again: then it must have its invoice like any other.
        scenario.won = False
        with self._stage.cloud.dataverse.session() as session:
            session.update(TABLES["opportunity"], scenario.id, {"statecode": _OPEN})
        return True

    def _win_again(self, scenario: Scenario, what: str) -> bool:
        """Reopen once it is published, change something, and win again in another second: times have no fractions."""
        end = time.monotonic() + _FAULTS_LAST
        while not self._is_published(scenario) and time.monotonic() < end:
            time.sleep(_POLL)
        scenario.won_again = True
        scenario.reasons.add("InvoiceOutdated")
        time.sleep(1.1)
        if not self._reopen(scenario):
            return False
        demo = self._stage.cloud.demo
        row = self._row("opportunity", "opportunityid", scenario)
        currency = next(id_ for id_ in demo.currencies.values() if id_ != row["transactioncurrencyid"])
        customer = next(id_ for id_ in (*demo.accounts, *demo.contacts) if id_ != row["customerid"])
        changes: dict[str, dict[str, object]] = {
            "amount": {"freightamount": Decimal(123)},
            "currency": {"transactioncurrencyid": currency},
            "customer": {"customerid": customer},
            "name": {"name": "Renamed"},
            "nothing": {},
        }
        with self._stage.cloud.dataverse.session() as session:
            if changes[what]:
                session.update(TABLES["opportunity"], scenario.id, changes[what])
        time.sleep(1.1)
        return self._win(scenario)

    def _order_canceled(self, scenario: Scenario) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            values = {"name": "by hand", "opportunityid": scenario.id}
            order = session.create(TABLES["salesorder"], values)["salesorderid"]
            session.update(TABLES["salesorder"], order, {"statecode": 2, "statuscode": 4})
        return True

    def _refuse(self, scenario: Scenario) -> bool:
        scenario.changed_by_user = True
        scenario.reasons.add("InvoiceRefused")
        with self._stage.cloud.dataverse.session() as session:
            session.transaction.update(TABLES["opportunity"], scenario.id, {"pricelevelid": None})
        return True

    def _disable_owner(self, scenario: Scenario) -> bool:
        """Disable the salesperson to whom the invoice would be assigned, until the history ends."""
        owner = self._row("opportunity", "opportunityid", scenario)["ownerid"]
        if owner not in self._stage.cloud.demo.sellers:
            return False
        with self._stage.cloud.dataverse.session() as session:
            session.transaction.update(TABLES["systemuser"], owner, {"isdisabled": True})
        return True

    def _restore_owners(self) -> None:
        with self._stage.cloud.dataverse.session() as session:
            for seller in self._stage.cloud.demo.sellers:
                session.transaction.update(TABLES["systemuser"], seller, {"isdisabled": False})

    def _create_invoice(self, scenario: Scenario) -> bool:
        scenario.concurrent = True
        return self._create("invoice", scenario)

    def _order(self, scenario: Scenario) -> bool:
        scenario.changed_by_user = scenario.ordered = True
        return self._create("salesorder", scenario)

    def _create(self, table: str, scenario: Scenario) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            session.create(TABLES[table], {"name": "by hand", "opportunityid": scenario.id})
        return True

    def _delete_invoice(self, scenario: Scenario) -> bool:
        return self._to_invoice(
            scenario, lambda session, id_: session.delete(TABLES["invoice"], id_), goes=True
        )

    def _cancel_invoice(self, scenario: Scenario) -> bool:
        values = {"statecode": _CANCELED, "statuscode": 100003}
        return self._to_invoice(
            scenario, lambda session, id_: session.update(TABLES["invoice"], id_, values), goes=True
        )

    def _reassign(self, scenario: Scenario, seller: str) -> bool:
        return self._to_invoice(
            scenario,
            lambda session, id_: session.update(TABLES["invoice"], id_, {"ownerid": seller}),
            goes=False,
        )

    def _to_invoice(self, scenario: Scenario, do: Callable[[Any, str], object], *, goes: bool) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            invoices = session.transaction.rows(TABLES["invoice"], "t.opportunityid = ?", (scenario.id,))
            if not invoices:
                return False
            if goes:
                scenario.changed_by_user = True
                # The second: deleted just before it is read, and again where a deleted note has let another be made.
                scenario.reasons |= {"ClaimedWithoutInvoice", "RecordNotFound"}
            do(session, invoices[0]["invoiceid"])
        return True

    def _delete_note(self, scenario: Scenario) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            notes = session.transaction.rows(TABLES["annotation"], "t.objectid = ?", (scenario.id,))
            if not notes:
                return False
            scenario.concurrent = True
            if self._under_way(scenario):
                scenario.claim_deleted_under_way = True
            session.delete(TABLES["annotation"], notes[0]["annotationid"])
        return True

    def _under_way(self, scenario: Scenario) -> bool:
        waiting = self._stage.cloud.broker.peek(QUEUE, 0, 1_000)
        return any(scenario.id.encode() in body_of(message) for message in waiting)

    def _row(self, table: str, column: str, scenario: Scenario) -> dict[str, Any]:
        with self._stage.cloud.dataverse.database.reading() as transaction:
            return transaction.rows(TABLES[table], f't."{column}" = ?', (scenario.id,))[0]
