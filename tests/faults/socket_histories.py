"""Random histories on real sockets: wins, faults and people, drawn from a seed; each brought to rest and judged.

The draw is the same for the same seed; what overlaps with what is up to the machine, as it is in Azure. The judge is
the one of the histories in the product's own process. The sandbox and how it comes to rest are `sockets`' affair.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from checker import QUEUE, Expectations, body_of, judge
from matrix import cells
from story import Story, expected_of

from sandbox.dataverse import DuplicateResponse
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Fault, Kind, Rule, When, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sockets import Stage

    from sandbox.faults import Struck

# Several of them per history, and some to spare.
OPPORTUNITIES_EACH = 3
_OPEN, _WON, _CANCELED = 0, 1, 3
# The retry policies of what people may change: longer than any of the faults, and short enough to wait for their end.
SETTINGS = {"RETRY_OPEN_SECONDS": "15", "RETRY_RECORD_SECONDS": "20"}
_PATIENCE = 60.0
_FAULTS_LAST = 10.0
_POLL = 0.02
# What takes long: a few of them, or nothing else would happen in a minute.
_SLOW = frozenset({Kind.SILENT, Kind.SWALLOW, Kind.KILL, Kind.RESTART, Kind.DELAY, Kind.DRIBBLE})
_SLOW_SHARE = 0.12


@dataclass(frozen=True)
class Outcome:
    """How a history went; `told` is what struck and who interfered, for whoever looks into it."""

    seed: int
    violations: tuple[str, ...]
    counts: Counter[str]
    told: tuple[str, ...]
    seconds: float


class Histories:
    """Lets histories happen on one stage, one after the other.

    Each is judged with all before it: what is late of one must keep the promise as well.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._past: list[_History] = []
        self._known: set[str] = set()

    def run(self, seed: int) -> Outcome:
        """Let one history happen, and judge it; a violation is told once."""
        history = _History(self._stage, seed)
        self._past.append(history)
        started = time.monotonic()
        rests = history.happen()
        found = [str(violation) for violation in judge(self._stage.evidence(), self._expectations())]
        if not rests:
            found.append("it did not come to rest")
        violations = [violation for violation in found if violation not in self._known]
        self._known |= set(found)
        return Outcome(seed, tuple(violations), history.counts(), history.told(), time.monotonic() - started)

    def _expectations(self) -> Expectations:
        stories = [story for history in self._past for story in history.stories]
        return expected_of(stories)


@functools.lru_cache(maxsize=1)
def _rules() -> tuple[Sequence[Rule], Sequence[Rule]]:
    """Return the faults of the matrix that pass, quick ones and slow ones."""
    passing = [cell.rule for cell in cells() if cell.reason is None and not cell.far]
    return (
        [rule for rule in passing if rule.fault.kind not in _SLOW],
        [rule for rule in passing if rule.fault.kind in _SLOW],
    )


class _History:
    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._seed = seed
        self._random = Random(seed)  # noqa: S311 - to be repeatable, not secret
        self.stories = [Story(stage.fresh()) for _ in range(self._random.choice((1, 1, 2, 3)))]
        self._told: list[str] = []
        self._lock = threading.Lock()
        self._published_before = len(stage.watch.published)
        self._struck_before = len(stage.plan.log)

    def happen(self) -> bool:
        """Play it, and bring it to rest; return whether that came about."""
        stage, random = self._stage, self._random
        stage.cloud.dataverse.organization.duplicate_response = random.choice(list(DuplicateResponse))
        stage.look_anew()
        stage.plan.add(*self._faults())
        scripts = [threading.Thread(target=script, daemon=True) for script in self._scripts()]
        for script in scripts:
            script.start()
        for script in scripts:
            script.join()
        return self._to_rest()

    def told(self) -> tuple[str, ...]:
        """Return who interfered and what struck."""
        return (*self._told, *map(str, self._struck))

    @property
    def _struck(self) -> Sequence[Struck]:
        return self._stage.plan.log[self._struck_before :]

    # --- what is drawn ---

    def _faults(self) -> list[Rule]:
        random = self._random
        quick, slow = _rules()
        drawn = []
        for _ in range(random.choice((0, 1, 2, 2, 3, 4))):
            rule = random.choice(slow if random.random() < _SLOW_SHARE else quick)
            first = random.choice((1, 1, 1, 2, 3))
            last = first + random.choice((0, 0, 1, 3)) if rule.fault.kind not in _SLOW else first
            drawn.append(replace(rule, when=replace(rule.when, first=first, last=last)))
        if random.random() < 0.1:
            # Everything is away for a moment.
            wire = random.choice((Wire.DATAVERSE, Wire.SERVICE_BUS_OUT))
            away = Fault(Kind.UNAVAILABLE if wire is Wire.DATAVERSE else Kind.REJECT)
            drawn.append(Rule(wire, away, When.during(timedelta(seconds=random.choice((1, 2, 4))))))
        return drawn

    def _scripts(self) -> list[Callable[[], None]]:
        """Return what happens at the same time: one script for each opportunity."""
        return [functools.partial(self._play, story, self._plot(story)) for story in self.stories]

    def _plot(self, story: Story) -> list[tuple[float, str, Callable[[], bool]]]:
        random = self._random
        acts: list[tuple[float, str, Callable[[], bool]]] = [
            (random.uniform(0, 0.1), "win", lambda: self._win(story))
        ]
        acts += [
            (random.uniform(0, 0.5), "a flow tells the win again", lambda: self._say(story))
            for _ in range(random.choice((0, 0, 1, 2)))
        ]
        meddling: dict[str, Callable[[], bool]] = {
            "manual invoice": lambda: self._manual_invoice(story),
            "order": lambda: self._order(story),
            "delete invoice": lambda: self._delete_invoice(story),
            "cancel invoice": lambda: self._cancel_invoice(story),
            "delete note": lambda: self._delete_note(story),
            "reopen": lambda: self._reopen(story),
            "reopen and win again": lambda: self._reopen(story) and self._win(story),
            "reassign invoice": functools.partial(
                self._reassign, story, random.choice(self._stage.cloud.demo.sellers)
            ),
        }
        if random.random() < 0.35:
            name = random.choice(list(meddling))
            acts.append((random.uniform(0.05, 0.8), name, meddling[name]))
        return sorted(acts, key=lambda act: act[0])

    def _play(self, story: Story, acts: Sequence[tuple[float, str, Callable[[], bool]]]) -> None:
        begun = time.monotonic()
        for at, name, act in acts:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            if act():
                with self._lock:
                    self._told.append(f"{name}: {story.id}")

    # --- to rest ---

    def _to_rest(self) -> bool:
        """Let the faults come to their end by themselves, then end them; then let what is hopeless be parked."""
        stage, end = self._stage, time.monotonic() + _PATIENCE
        begun = time.monotonic()
        while not stage.to_rest(1, patience=0.2):
            waited = time.monotonic() - begun
            # Who is not served by now is held up by a fault; who only goes round is none of its victims.
            if waited > _FAULTS_LAST or (waited > _FAULTS_LAST / 5 and self._served()):
                break
        stage.plan.clear()
        for wire in (Wire.SERVICE_BUS_IN, Wire.SERVICE_BUS_OUT):
            # A connection that is dead takes messages to nowhere; the next history shall begin at rest.
            stage.cut(wire)
        while time.monotonic() < end and not self._served():
            stage.to_rest(1, patience=0.1)
        # The rest is retried until its policy ends: the invoice is gone, or the win was withdrawn.
        return stage.to_rest(1, patience=_PATIENCE)

    def _served(self) -> bool:
        published = self._stage.watch.published[self._published_before :]
        return all(
            any(story.id.encode() in event.body for event in published)
            for story in self.stories
            if story.serves
        )

    def counts(self) -> Counter[str]:
        """Return what happened, and how often."""
        seen = self._stage.seen
        counts = Counter(f"fault: {entry.wire} {entry.fault.kind}" for entry in self._struck)
        counts.update(f"people: {told.partition(':')[0]}" for told in self._told)
        counts["deliveries"] = seen.deliveries
        counts["copies scheduled"] = seen.copies
        counts["messages parked for a cause"] = seen.parked
        counts["events published"] = seen.published
        counts["opportunities won"] = sum(story.won for story in self.stories)
        counts["opportunities won and not meddled with"] = sum(
            story.serves and not story.crowded for story in self.stories
        )
        return counts

    # --- what people do: each returns whether it could be done ---

    def _win(self, story: Story) -> bool:
        if self._row("opportunity", "opportunityid", story)["statecode"] != _OPEN:
            return False
        self._stage.win(story.id)
        story.won = True
        return True

    def _say(self, story: Story) -> bool:
        self._stage.send(f'{{"opportunityId": "{story.id}"}}'.encode())
        return True

    def _reopen(self, story: Story) -> bool:
        if self._row("opportunity", "opportunityid", story)["statecode"] != _WON:
            return False
        # Until it is won again: then it must have its invoice like any other.
        story.won = False
        with self._stage.cloud.dataverse.session() as session:
            session.update(TABLES["opportunity"], story.id, {"statecode": _OPEN})
        return True

    def _manual_invoice(self, story: Story) -> bool:
        story.crowded = True
        return self._create("invoice", story)

    def _order(self, story: Story) -> bool:
        story.meddled = True
        return self._create("salesorder", story)

    def _create(self, table: str, story: Story) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            session.create(TABLES[table], {"name": "by hand", "opportunityid": story.id})
        return True

    def _delete_invoice(self, story: Story) -> bool:
        return self._to_invoice(story, lambda session, id_: session.delete(TABLES["invoice"], id_), goes=True)

    def _cancel_invoice(self, story: Story) -> bool:
        values = {"statecode": _CANCELED, "statuscode": 100003}
        return self._to_invoice(
            story, lambda session, id_: session.update(TABLES["invoice"], id_, values), goes=True
        )

    def _reassign(self, story: Story, seller: str) -> bool:
        return self._to_invoice(
            story,
            lambda session, id_: session.update(TABLES["invoice"], id_, {"ownerid": seller}),
            goes=False,
        )

    def _to_invoice(self, story: Story, do: Callable[[Any, str], object], *, goes: bool) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            invoices = session.transaction.rows(TABLES["invoice"], "t.opportunityid = ?", (story.id,))
            if not invoices:
                return False
            if goes:
                story.meddled = True
                # The second: deleted just before it is read, and again where a deleted note has let another be made.
                story.reasons |= {"ClaimedWithoutInvoice", "RecordNotFound"}
            do(session, invoices[0]["invoiceid"])
        return True

    def _delete_note(self, story: Story) -> bool:
        with self._stage.cloud.dataverse.session() as session:
            notes = session.transaction.rows(TABLES["annotation"], "t.objectid = ?", (story.id,))
            if not notes:
                return False
            story.crowded = True
            if self._under_way(story):
                story.claim_deleted_under_way = True
            session.delete(TABLES["annotation"], notes[0]["annotationid"])
        return True

    def _under_way(self, story: Story) -> bool:
        waiting = self._stage.cloud.broker.peek(QUEUE, 0, 1_000)
        return any(story.id.encode() in body_of(message) for message in waiting)

    def _row(self, table: str, column: str, story: Story) -> dict[str, Any]:
        with self._stage.cloud.dataverse.store.reading() as transaction:
            return transaction.rows(TABLES[table], f't."{column}" = ?', (story.id,))[0]
