"""Random histories: wins, faults, crashes and people, all drawn from one seed; each brought to rest and judged.

A seed is a whole history: the same one happens again, turn for turn, so a failure can be replayed alone. What the
worlds are made of is in `rig`, what is right in `checker`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any, cast

from azure.servicebus import ServiceBusMessage
from checker import FAILED_QUEUE, QUEUE, Cause, Expectations, Violation, body_of, judge, judge_requests
from rig import STEPS, Shape, World, organization, quiet
from simulation import NoRest
from story import Story, expected_of

from operations.failed import replay_copy
from sandbox.dataverse import DuplicateResponse
from sandbox.dataverse.actions import lose_opportunity, win_opportunity
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Fault, Kind, Rule, When, Wire
from sandbox.service_bus import Message as BrokerMessage

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from uuid import UUID

    from azure.servicebus import ServiceBusReceivedMessage

    from sandbox.dataverse.service import Session

_OPPORTUNITIES = 6
_OPEN, _WON = 0, 1
# Faults end here, and people rest: what is not at its end then has to come there by itself.
_LAST_FAULT = 20 * 60.0
# More than the longest retry policy, and crashes on top.
_ENOUGH = 5 * 24 * 3600.0
# What may happen between look and call, and how often it is made to.
_AT_THE_WORST_MOMENT = frozenset(
    {"manual invoice", "delete note", "reopen", "reopen and win again", "reopen and lose", "order"}
)
_WORST_SHARE = 0.4
# Each may cost a delivery, and a message has ten.
_MOST_LOST_DELIVERIES = 5


@dataclass(frozen=True)
class Outcome:
    """How a history went. `digest` is the same for the same seed; `counts` tell what happened in it, `told` when."""

    seed: int
    violations: tuple[Violation, ...]
    counts: Counter[str]
    digest: str
    told: tuple[str, ...]


def run_history(seed_of_history: int, *, lesser_depth: bool = False) -> Outcome:
    """Let one history happen, to its rest, and judge it."""
    with quiet():
        history = _History(seed_of_history, lesser_depth=lesser_depth)
        try:
            return history.run()
        finally:
            history.world.close()


@dataclass
class _Act:
    """Something that a person does: tried from a turn on until it applies, for the last time when all is quiet.

    `to`: the opportunity to which it is done.
    """

    name: str
    turn: int
    do: Callable[[], bool]
    to: str = ""


class _History:
    def __init__(self, seed_of_history: int, *, lesser_depth: bool) -> None:
        self.seed = seed_of_history
        self.random = Random(seed_of_history)  # noqa: S311 - to be repeatable, not secret
        random = self.random
        self.organization = organization(_OPPORTUNITIES, lesser_depth=lesser_depth)
        # Short bounds make what fails for good come back while the broker still knows the first message's id.
        self.locked_out = random.random() < 0.04
        self.brief = random.random() < 0.3
        settings = {"RETRY_RECORD_SECONDS": "90"} if self.brief else {}
        if self.locked_out:
            settings["RETRY_OUTAGE_SECONDS"] = "600"
        self.world = World(
            random, Shape(self.organization, workers=random.choice((1, 1, 2)), settings=settings)
        )
        self.world.app.organization.duplicate_response = random.choice(list(DuplicateResponse))
        self.world.message_ids = random.random() < 0.7
        ids = random.sample(self.organization.demo.opportunities, random.choice((1, 1, 1, 2)))
        self.stories = {id_: Story(id_) for id_ in ids}
        self.world.marks = [id_.encode() for id_ in ids]
        self.acts: list[_Act] = []
        self.told: list[str] = []
        self.causes: list[Cause] = []
        self.turns = 0

    def run(self) -> Outcome:
        self._steps()
        world = self.world
        if self.locked_out:
            self._locked_out()
        else:
            for story in self.stories.values():
                self._plot(story)
            self._strangers()
            self._faults()
            world.simulation.at(_LAST_FAULT, world.plan.clear)
        violations: list[Violation] = []
        try:
            self._to_rest()
        except NoRest as error:
            violations.append(Violation("a history comes to rest", str(error)))
        evidence = world.watch.evidence(world.app.store.commits, self.organization.function_user)
        violations += judge(evidence, self._expectations())
        violations += judge_requests(world.requests)
        violations += [Violation("nothing unforeseen is raised", bug) for bug in world.bugs]
        if world.host.timeouts:
            violations.append(
                Violation("an invocation ends within its deadline", f"{world.host.timeouts} did not.")
            )
        told = sorted([*self.told, *map(str, world.plan.log)])
        return Outcome(self.seed, tuple(violations), self._counts(), self._digest(), tuple(told))

    def _to_rest(self) -> None:
        world = self.world
        while not (world.run(self._between, until=_ENOUGH, turns=20_000) and not self._last_acts()):
            if world.simulation.monotonic() >= _ENOUGH:
                return

    def _between(self) -> None:
        self.turns += 1
        if self.world.idle:
            # Nobody is waited for: who is to act next does so now, and not when the faults have come to their end.
            self.turns = min((act.turn for act in self.acts if act.turn > self.turns), default=self.turns)
        for act in [each for each in self.acts if each.turn <= self.turns]:
            if act.do():
                self.acts.remove(act)
                self._done(act)

    def _last_acts(self) -> bool:
        """Do what is left to do when all is quiet; return whether something was done."""
        due, self.acts = self.acts, []
        done = 0
        for act in due:
            if act.do():
                self._done(act)
                done += 1
        return bool(done)

    def _done(self, act: _Act) -> None:
        self.world.counts[f"people: {act.name}"] += 1
        self.told.append(f"{self.world.simulation.now().isoformat()} people: {act.name} {act.to}".rstrip())
        if act.to:
            self.world.looks.meddled(act.to, act.name)

    def _expectations(self) -> Expectations:
        return expected_of(self.stories.values(), self.causes)

    def _counts(self) -> Counter[str]:
        world = self.world
        counts = world.counts
        counts.update(f"fault: {struck.wire} {struck.fault.kind}" for struck in world.plan.log)
        user = self.organization.function_user
        counts["opportunities won"] = sum(story.won for story in self.stories.values())
        counts["opportunities won and not meddled with"] = len(self._expectations().invoiced)
        counts["invoices generated"] = sum(
            change.table == "invoice" and change.kind == "create"
            for commit in world.app.store.commits
            if commit.user_id == user
            for change in commit.changes
        )
        counts["events published"] = len(world.watch.published)
        counts["messages parked for a cause"] = world.broker.counts(FAILED_QUEUE).active
        counts["claims deleted under way"] = sum(
            story.claim_deleted_under_way for story in self.stories.values()
        )
        return counts

    def _digest(self) -> str:
        world = self.world
        told = [world.simulation.trace, [str(struck) for struck in world.plan.log]]
        told.append([(c.at, [(x.kind, x.table, x.id) for x in c.changes]) for c in world.app.store.commits])
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    # --- what is set up ---

    def _steps(self) -> None:
        """Register some of the steps: several say the same win in words of their own."""
        names = [f"{message}/{table}" for message, table in STEPS]
        chosen = self.random.sample(names, self.random.choice((1, 1, 2, 3)))
        with self.world.app.session() as session:
            for name in chosen:
                session.transaction.update(
                    TABLES["sdkmessageprocessingstep"], self.organization.steps[name], {"statecode": 0}
                )

    def _plot(self, story: Story) -> None:
        """Draw what happens to one opportunity."""
        random = self.random
        kind = random.random()
        if kind < 0.60:
            self._act("win", random.randint(0, 8), lambda: self._win(story))
            self._bystanders(story)
        elif kind < 0.85:
            self._act("win", random.randint(0, 8), lambda: self._win(story))
            for _ in range(random.choice((1, 1, 2, 3))):
                self._meddle(story)
        elif kind < 0.90:
            self._act("post before the win is committed", 0, lambda: self._say(story.id))
            self.world.simulation.at(random.randint(5, 60), lambda: self._told_win(story))
        elif kind < 0.93:
            story.never = True
            self._act("post of a win that is rolled back", 0, lambda: self._say(story.id))
        elif kind < 0.96:
            self._invoiced_or_ordered_before(story)
        else:
            self._not_billable_at_first(story)

    def _bystanders(self, story: Story) -> None:
        """People who do no harm."""
        random = self.random
        if random.random() < 0.25:
            self._act(
                "reassign opportunity", random.randint(0, 40), lambda: self._reassign("opportunity", story.id)
            )
        if random.random() < 0.25:
            self._act("reassign invoice", random.randint(0, 40), lambda: self._reassign_invoice(story))
        if random.random() < 0.1:
            self._act("disable the owner", random.randint(0, 20), lambda: self._disable_owner(story))
        if random.random() < 0.15:
            self._act("a flow tells the win again", random.randint(0, 60), lambda: self._say(story.id))

    def _invoiced_or_ordered_before(self, story: Story) -> None:
        story.never = True
        if self.random.random() < 0.5:
            # The event tells of the invoice that is there, whoever made it.
            self._act("manual invoice before the win", 0, lambda: self._create("invoice", story))
        else:
            self._act("order before the win", 0, lambda: self._order(story))
        self._act("win", 1, lambda: self._win(story))

    def _not_billable_at_first(self, story: Story) -> None:
        """Refused until it is parked; mended or not; replayed, with the next fault waiting."""
        with self.world.app.session() as session:
            prices = session.find(TABLES["opportunity"], story.id)["pricelevelid"]
            session.transaction.update(TABLES["opportunity"], story.id, {"pricelevelid": None})
        self._act("win", 0, lambda: self._win(story))
        if self.random.random() < 0.3:
            story.reasons.add("InvoiceRefused")
            story.meddled = True
            return

        def mend() -> bool:
            if not self._all_parked(story):
                return False
            self._change("opportunity", story.id, {"pricelevelid": prices})
            return self._replay_into_a_fault(story)

        self._act("mend and replay", 0, mend)

    def _locked_out(self) -> None:
        """Nobody has made the application user: everything is parked; then it is made, and everything replayed."""
        plan = self.world.plan
        plan.add(Rule(Wire.DATAVERSE, Fault(Kind.FORBIDDEN)))

        def mend() -> bool:
            stories = self.stories.values()
            if not all(self._all_parked(story) for story in stories):
                return False
            plan.clear()
            return sum(self._replay_into_a_fault(story) for story in stories) > 0

        for story in self.stories.values():
            self._act("win", 0, functools.partial(self._win, story))
        self._act("make the application user and replay", 0, mend)

    def _all_parked(self, story: Story) -> bool:
        """Whether nothing of an opportunity is under way any more, and something is in the failed queue."""
        mark = story.id.encode()
        broker = self.world.broker
        return any(mark in body_of(each) for each in broker.peek(FAILED_QUEUE, 0, 10_000)) and not any(
            mark in body_of(each) for each in broker.peek(QUEUE, 0, 10_000)
        )

    def _replay_into_a_fault(self, story: Story) -> bool:
        """Replay, and let something fail on the way, so that the copy of a replay is put to the test as well."""
        self.world.plan.add(
            Rule(Wire.DATAVERSE, Fault(Kind.UNAVAILABLE), When(last=self.random.choice((1, 3))))
        )
        return bool(self._replay(story.id))

    def _strangers(self) -> None:
        """Messages that cannot be handled, each with its own reason."""
        random = self.random
        if random.random() < 0.05:
            mark = f"not JSON {random.getrandbits(32)}".encode()
            self.causes.append(Cause(mark, frozenset({"InvalidEvent"})))
            self._act("unreadable message", random.randint(0, 10), lambda: self._send(mark))
        if random.random() < 0.05:
            nobody = self.world.new_id()
            self.causes.append(Cause(nobody.encode(), frozenset({"OpportunityNotFound"})))
            self._act("win of no opportunity", random.randint(0, 10), lambda: self._say(nobody))
        if random.random() < 0.05:
            id_ = next(iter(self.stories))
            other = self.world.new_id()
            self.causes.append(Cause(other.encode(), frozenset({"OtherOrganization"})))
            body = f'{{"opportunityId": "{id_}", "organizationId": "{other}"}}'.encode()
            self._act("win of another organization", random.randint(0, 10), lambda: self._send(body))

    # --- what people do: each returns whether it could be done ---

    def _act(self, name: str, turn: int, do: Callable[[], bool], to: str = "") -> None:
        self.acts.append(_Act(name, turn, do, to))

    def _meddle(self, story: Story) -> None:
        random = self.random
        turn = random.randint(0, 50)
        acts: dict[str, Callable[[], bool]] = {
            "manual invoice": lambda: self._manual_invoice(story),
            "delete invoice": lambda: self._delete_invoice(story),
            "cancel invoice": lambda: self._cancel_invoice(story),
            "delete note": lambda: self._delete_note(story),
            "reopen": lambda: self._reopen(story),
            "reopen and win again": lambda: self._reopen(story) and self._win(story),
            "reopen and lose": lambda: self._reopen(story) and self._lose(story),
            "order": lambda: self._order(story),
            "reassign invoice": lambda: self._reassign_invoice(story),
        }
        name = random.choice(list(acts))
        do = acts[name]
        if name in _AT_THE_WORST_MOMENT and random.random() < _WORST_SHARE:
            # Once somebody has looked, and before they call; at the latest when all is quiet.
            looked, late = self.world.looks.looked, self.world.simulation.monotonic

            def at_the_worst_moment() -> bool:
                return (looked(story.id) or late() >= _LAST_FAULT) and do()

            self._act(name, 0, at_the_worst_moment, story.id)
        else:
            self._act(name, turn, do, story.id)

    def _win(self, story: Story) -> bool:
        if self._state(story.id) != _OPEN:
            return False
        self._session(lambda session: win_opportunity(session, _closing(story.id)))
        story.won = True
        if self.world.simulation.monotonic() >= _LAST_FAULT:
            self.world.counts["wins when the faults had ended"] += 1
        if self.random.random() < 0.1:
            self.world.lost_posts = 1
        self.world.deliver_posts()
        return True

    def _told_win(self, story: Story) -> None:
        """Commit the win that a synchronous step has told already; the steps that are registered say nothing more."""
        self._session(
            lambda session: session.transaction.update(
                TABLES["opportunity"], story.id, {"statecode": _WON, "statuscode": 3}
            )
        )
        story.won = True

    def _lose(self, story: Story) -> bool:
        self._session(lambda session: lose_opportunity(session, _closing(story.id)))
        self.world.deliver_posts()
        return True

    def _reopen(self, story: Story) -> bool:
        if self._state(story.id) != _WON:
            return False
        # Until it is won again: then it must have its invoice like any other.
        story.won = False
        self._change("opportunity", story.id, {"statecode": _OPEN})
        self.world.deliver_posts()
        return True

    def _manual_invoice(self, story: Story) -> bool:
        story.crowded = True
        return self._create("invoice", story)

    def _order(self, story: Story) -> bool:
        story.meddled = True
        return self._create("salesorder", story)

    def _create(self, table: str, story: Story) -> bool:
        values = {"name": "by hand", "opportunityid": story.id}
        self._session(lambda session: session.create(TABLES[table], values))
        return True

    def _delete_invoice(self, story: Story) -> bool:
        invoices = self._rows("invoice", "opportunityid", story.id)
        if not invoices:
            return False
        self._invoice_goes(story)
        # Deleted just before it is read, and that again when a replay or a deleted note has made another.
        story.reasons.add("RecordNotFound")
        self._session(lambda session: session.delete(TABLES["invoice"], invoices[0]["invoiceid"]))
        return True

    def _cancel_invoice(self, story: Story) -> bool:
        invoices = [row for row in self._rows("invoice", "opportunityid", story.id) if row["statecode"] != 3]
        if not invoices:
            return False
        self._invoice_goes(story)
        self._change("invoice", invoices[0]["invoiceid"], {"statecode": 3, "statuscode": 100003})
        return True

    def _invoice_goes(self, story: Story) -> None:
        story.meddled = True
        story.reasons.add("ClaimedWithoutInvoice")

    def _delete_note(self, story: Story) -> bool:
        notes = self._rows("annotation", "objectid", story.id)
        if not notes:
            return False
        story.crowded = True
        if self.world.looks.may_call(story.id):
            story.claim_deleted_under_way = True
        self._session(lambda session: session.delete(TABLES["annotation"], notes[0]["annotationid"]))
        return True

    def _reassign_invoice(self, story: Story) -> bool:
        invoices = self._rows("invoice", "opportunityid", story.id)
        return bool(invoices) and self._reassign("invoice", invoices[0]["invoiceid"])

    def _reassign(self, table: str, id_: str) -> bool:
        self._change(table, id_, {"ownerid": self.random.choice(self.organization.demo.sellers)})
        return True

    def _disable_owner(self, story: Story) -> bool:
        """Let the assignment of the invoice be refused."""
        (opportunity,) = self._rows("opportunity", "opportunityid", story.id)
        users = self._rows("systemuser", "systemuserid", str(opportunity["ownerid"]))
        if users:
            self._change("systemuser", users[0]["systemuserid"], {"isdisabled": True})
        return bool(users)

    def _say(self, opportunity_id: str) -> bool:
        """Tell a win in the plain form, as a flow does."""
        return self._send(f'{{"opportunityId": "{opportunity_id}"}}'.encode())

    def _send(self, body: bytes) -> bool:
        message_id = self.world.new_id() if self.world.message_ids else None
        self.world.broker.send(
            QUEUE, BrokerMessage(body=body, message_id=message_id, content_type="application/json")
        )
        self.world.counts["messages posted"] += 1
        return True

    def _replay(self, opportunity_id: str) -> int:
        """Send the parked messages of an opportunity round again, as `operations failed replay` does."""
        broker = self.world.broker
        mine = 0
        for message in broker.receive(FAILED_QUEUE, 10_000):
            token = message.lock_token
            assert token is not None
            if opportunity_id.encode() not in body_of(message):
                broker.release(FAILED_QUEUE, token)
                continue
            copy = replay_copy(_received(message))
            assert copy.properties is not None
            properties = {str(name): value for name, value in (copy.application_properties or {}).items()}
            broker.send(
                QUEUE,
                BrokerMessage(
                    body=b"".join(cast("list[bytes]", copy.body)),
                    message_id=_text(copy.properties.message_id),
                    content_type=_text(copy.properties.content_type),
                    correlation_id=_text(copy.properties.correlation_id),
                    subject=_text(copy.properties.subject),
                    application_properties=properties,
                ),
            )
            broker.complete(FAILED_QUEUE, token)
            mine += 1
        self.world.counts["messages replayed"] += mine
        return mine

    # --- rows ---

    def _session(self, do: Callable[[Session], object]) -> None:
        with self.world.app.session() as session:
            do(session)

    def _change(self, table: str, id_: str, values: dict[str, object]) -> None:
        self._session(lambda session: session.update(TABLES[table], id_, values))

    def _rows(self, table: str, column: str, value: str) -> list[dict[str, Any]]:
        with self.world.app.store.reading() as transaction:
            return transaction.rows(
                TABLES[table], f't."{column}" = ?', (value,), f"ORDER BY {TABLES[table].key}"
            )

    def _state(self, opportunity_id: str) -> int:
        return int(self._rows("opportunity", "opportunityid", opportunity_id)[0]["statecode"])

    # --- faults ---

    def _faults(self) -> None:
        random = self.random
        budget = _MOST_LOST_DELIVERIES
        for _ in range(random.choice((0, 1, 1, 2, 3, 4))):
            rule, deliveries = _draw(random)
            # With a short bound, a missing opportunity soon is a permanent cause.
            lasts = self.brief and rule.fault.error_code == "0x80040217"
            if deliveries <= budget and not lasts:
                budget -= deliveries
                self.world.plan.add(rule)
        if random.random() < 0.1 and budget:
            self._act("host crash", random.randint(3, 40), self._crash)

    def _crash(self) -> bool:
        self.world.host.crash()
        return True


def _closing(opportunity_id: str) -> dict[str, object]:
    return {
        "OpportunityClose": {"opportunityid@odata.bind": f"/opportunities({opportunity_id})"},
        "Status": -1,
    }


def _text(value: str | bytes | UUID | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def _received(message: Any) -> ServiceBusReceivedMessage:  # noqa: ANN401 - the broker's message
    """Show a message of the broker as the SDK does, as far as a replay reads it."""
    inner = message.message
    shown = ServiceBusMessage(
        inner.body,
        application_properties=dict(inner.application_properties),
        message_id=inner.message_id,
        content_type=inner.content_type,
        correlation_id=inner.correlation_id,
        subject=inner.subject,
    )
    return cast("ServiceBusReceivedMessage", shown)


# Beside each fault: its operation, and how many deliveries it may cost at most.
def _draw(random: Random) -> tuple[Rule, int]:
    """Draw a fault, where it strikes and when."""
    kind = random.random()
    if kind < 0.65:
        return _dataverse_rule(random)
    if kind < 0.80:
        return _service_bus_out_rule(random)
    if kind < 0.93:
        return _service_bus_in_rule(random)
    fault = Fault(random.choice((Kind.UNAVAILABLE, Kind.SILENT)), seconds=30)
    return Rule(Wire.IDENTITY, fault, _when(random)), 0


_RETRY_AFTER = ("1", "4", "7", "60", "600", "date+20", "none", "-5", "99999999", "soon")
_SERVER_ERRORS = (500, 502, 503, 504)


def _dataverse_rule(random: Random) -> tuple[Rule, int]:
    operation = random.choice(("*", "batch", "change-set", "change-set", "change-set", "update"))
    after = random.random() < 0.6
    part = random.choice((None, None, 0, 1, 2)) if operation != "*" else None
    faults = (
        Fault(Kind.REFUSE),
        Fault(Kind.RESET, after=after),
        Fault(Kind.RESET, after=True),
        Fault(Kind.SILENT, after=after, seconds=random.choice((30.0, 600.0))),
        Fault(Kind.CUT),
        Fault(Kind.TRUNCATED),
        Fault(Kind.DELAY, seconds=random.choice((5.0, 60.0))),
        Fault(Kind.REDIRECT, after=after),
        Fault(Kind.UNAUTHORIZED, after=after),
        Fault(Kind.FORBIDDEN, after=after, part=part),
        Fault(Kind.NOT_FOUND, after=after, code="", part=part),
        Fault(Kind.NOT_FOUND, after=after, code="0x80040217", part=part),
        Fault(Kind.CONFLICT, after=after, part=part, code=random.choice(("0x80040237", "0x80060892"))),
        Fault(Kind.DEADLOCK, after=after, part=part),
        Fault(Kind.THROTTLED, after=after, part=part, retry_after=random.choice(_RETRY_AFTER)),
        Fault(Kind.UNAVAILABLE, after=after, part=part, status=random.choice(_SERVER_ERRORS)),
        Fault(Kind.HTML, after=after),
        Fault(Kind.KILL, after=after),
    )
    if random.random() < 0.15:
        # What a loser is told, and there is no winner.
        kind = random.choice((Kind.CONFLICT, Kind.DEADLOCK, Kind.THROTTLED))
        return Rule(Wire.DATAVERSE, Fault(kind, part=0), _when(random), "change-set"), 0
    fault = random.choice(faults)
    if fault.kind is Kind.KILL:
        return Rule(Wire.DATAVERSE, fault, When.nth(random.randint(1, 6)), operation), 1
    return Rule(Wire.DATAVERSE, fault, _when(random), operation), 0


def _service_bus_out_rule(random: Random) -> tuple[Rule, int]:
    after = random.random() < 0.5
    fault = random.choice(
        (
            Fault(Kind.RESET, after=after),
            Fault(Kind.SILENT, after=after),
            Fault(Kind.REJECT),
            Fault(Kind.DELAY, seconds=5.0),
            Fault(Kind.KILL, after=after),
        )
    )
    operation = random.choice(("*", "send:*", "schedule:*"))
    if fault.kind is Kind.KILL:
        return Rule(Wire.SERVICE_BUS_OUT, fault, When.nth(random.randint(1, 3)), operation), 1
    if random.random() < 0.3:
        # For longer than an invocation tries.
        minutes = random.choice((5, 10))
        return Rule(Wire.SERVICE_BUS_OUT, fault, When.during(timedelta(minutes=minutes)), operation), 3
    return Rule(Wire.SERVICE_BUS_OUT, fault, When(last=random.randint(1, 4)), operation), 0


def _service_bus_in_rule(random: Random) -> tuple[Rule, int]:
    when = When.nth(random.randint(1, 3))
    kind = random.choice((Kind.LOCK_LOST, Kind.LOCK_LOST, Kind.DUPLICATE, Kind.RESET))
    if kind is Kind.RESET:
        # The answer to a settlement that is lost, or the settlement itself.
        fault = Fault(kind, after=random.random() < 0.3)
        return Rule(Wire.SERVICE_BUS_IN, fault, when, "settle:*"), 1
    return Rule(Wire.SERVICE_BUS_IN, Fault(kind), when, "deliver:*"), int(kind is Kind.LOCK_LOST)


def _when(random: Random) -> When:
    kind = random.random()
    if kind < 0.5:
        return When.nth(random.randint(1, 6))
    if kind < 0.7:
        return When(last=random.randint(1, 5))
    if kind < 0.85:
        return When.at_random(0.3, random.getrandbits(32), last=20)
    return When.during(timedelta(seconds=random.choice((20, 120, 600))))
