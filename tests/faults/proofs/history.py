"""A history under way: a world, the opportunities in it, what users do to them, and how it comes to rest.

What is drawn for it is left to `situations`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from azure.servicebus import ServiceBusMessage

from operations.failed import replay_copy
from proofs.checker import FAILED_QUEUE, QUEUE, Cause, Expectations, Refusal, mentions
from proofs.rig import STEPS, Shape, World, organization
from proofs.scenario import Scenario, expected_of
from proofs.users import Users, draw_behaviour
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Fault, FaultKind
from sandbox.faults.syntax import parse_rule
from sandbox.service_bus import Message as BrokerMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random
    from uuid import UUID

    from azure.servicebus import ServiceBusReceivedMessage

    from proofs.sales_state import OpportunityState
    from sandbox.dataverse.service import Session

OPPORTUNITIES = 6
# Faults end here, and users rest: what has not come to its end then must come there by itself.
LAST_FAULT = 20 * 60.0
# More than the longest retry policy, and crashes on top.
ENOUGH = 5 * 24 * 3600.0
# Several times what the longest history takes.
_MAX_TURNS = 8_000
COLUMNS = "new_costcenter,new_nosuchcolumn"
_HOUR = timedelta(hours=1)
# What may keep the function from assigning invoices, in the words of the counts.
IMPEDIMENTS = (
    "the owner is disabled",
    "the owner has no role",
    "the owner may not read invoices",
    "the function may not assign",
    "a plug-in refuses",
    "a plug-in takes too long",
)
_ASSIGN_PRIVILEGE = "prvAssignInvoice"


@dataclass
class Act:
    """Something that a user does: tried from a turn on until it applies, for the last time when all is quiet.

    `to`: the opportunity to which it is done.
    """

    name: str
    turn: int
    do: Callable[[], bool]
    to: str = ""


class History:
    """One history. `settings`: of the function; `name`: what it is about."""

    def __init__(
        self, random: Random, name: str, settings: Mapping[str, str], *, lesser_depth: bool = False
    ) -> None:
        self.random = random
        self.organization = organization(OPPORTUNITIES, lesser_depth=lesser_depth)
        self.settings = {**settings, **self._draw_settings()}
        behind = _HOUR if random.random() < 0.15 else timedelta()
        shape = Shape(
            self.organization,
            workers=random.choice((1, 1, 2)),
            settings=self.settings,
            clock_behind=behind,
            token_lifetime=timedelta(hours=random.choice((1, 24, 24))),
        )
        self.world = World(random, shape)
        self.users = Users(self.world.app, self.organization.demo, random, self.world.checks.may_call)
        self.scenarios: dict[str, Scenario] = {}
        self.acts: list[Act] = []
        self.log: list[str] = []
        self.causes: list[Cause] = []
        self.refusals: list[Refusal] = []
        self.prompt: set[str] = set()
        self.max_retries: dict[str, int] = {}
        self.faults_end = True
        self._impediment: str | None = None
        self._turns = 0
        counts = self.world.counts
        counts[f"history: {name}"] += 1
        counts["clock: a worker's is an hour slow"] += bool(behind)
        counts["columns: one is unknown"] += "INVOICE_COLUMNS" in self.settings
        counts["owner: application user by setting"] += "INVOICE_OWNER" in self.settings
        self._draw_environment()

    def _draw_settings(self) -> dict[str, str]:
        random = self.random
        settings = {"INVOICE_COLUMNS": COLUMNS} if random.random() < 0.15 else {}
        return settings | ({"INVOICE_OWNER": "application-user"} if random.random() < 0.1 else {})

    def _draw_environment(self) -> None:
        """Draw where sources differ on what Dataverse does, and which steps are registered."""
        random, world = self.random, self.world
        draw_behaviour(random, world.app, world.counts)
        if random.random() < 0.3:
            world.message_id = lambda: None
        names = [f"{message}/{table}" for message, table in STEPS]
        # Several steps report the same win, each in its own form.
        chosen = random.sample(names, random.choice((1, 1, 2, 3)))
        with world.app.session() as session:
            for name in chosen:
                step = self.organization.steps[name]
                session.transaction.update(TABLES["sdkmessageprocessingstep"], step, {"statecode": 0})

    def opportunities(self, count: int) -> list[Scenario]:
        """Draw opportunities for the history."""
        ids = self.random.sample(self.organization.demo.opportunities, count)
        self.scenarios = {id_: Scenario(id_) for id_ in ids}
        self.world.marks = [id_.encode() for id_ in ids]
        return list(self.scenarios.values())

    def impede_assignments(self) -> None:
        """Let something keep the function from assigning invoices; before the opportunities are drawn by id."""
        self._impediment = impediment = self.random.choice(IMPEDIMENTS)
        self.world.counts[f"owner: {impediment}"] += 1
        with self.world.app.session() as session:
            transaction = session.transaction
            owners = {row["ownerid"] for row in transaction.rows(TABLES["opportunity"])}
            if impediment == "the function may not assign":
                self._revoke(session, _ASSIGN_PRIVILEGE, self.organization.function_user)
            elif impediment == "a plug-in refuses":
                text = "Invoices of this business unit are not assigned."
                self.world.add_assign_plug_in(Fault(FaultKind.ERROR, part=0, text=text))
            elif impediment == "a plug-in takes too long":
                self.world.add_assign_plug_in(Fault(FaultKind.SILENT, seconds=600))
            for owner in sorted(owners):
                team = transaction.get(TABLES["team"], owner) is not None
                if impediment == "the owner is disabled" and not team:
                    transaction.update(TABLES["systemuser"], owner, {"isdisabled": True})
                elif impediment in ("the owner is disabled", "the owner has no role"):
                    kind = "team" if team else "systemuser"
                    for row in transaction.rows(TABLES[f"{kind}roles"], f"{kind}id = ?", (owner,)):
                        transaction.delete(TABLES[f"{kind}roles"], row)
                elif impediment == "the owner may not read invoices":
                    self._revoke(session, "prvReadInvoice", owner)

    def _revoke(self, session: Session, privilege: str, owner: str) -> None:
        """Take a privilege out of the roles of a user or a team."""
        transaction = session.transaction
        kind = "systemuser" if transaction.get(TABLES["systemuser"], owner) else "team"
        ids = [row["privilegeid"] for row in transaction.rows(TABLES["privilege"], "name = ?", (privilege,))]
        for assigned in transaction.rows(TABLES[f"{kind}roles"], f"{kind}id = ?", (owner,)):
            rows = transaction.rows(TABLES["roleprivileges"], "roleid = ?", (assigned["roleid"],))
            for row in rows:
                if row["privilegeid"] in ids:
                    transaction.delete(TABLES["roleprivileges"], row)

    # --- to rest ---

    def to_rest(self) -> None:
        """Let everything happen; raises NoRest."""
        world = self.world
        while not (world.run(self._between, until=ENOUGH, turns=_MAX_TURNS) and not self._last_acts()):
            if world.simulation.monotonic() >= ENOUGH:
                return

    def _between(self) -> None:
        self._turns += 1
        if self.world.idle:
            # Nothing is awaited: the next act happens now, and not when the faults have ended.
            self._turns = min((act.turn for act in self.acts if act.turn > self._turns), default=self._turns)
        for act in [each for each in self.acts if each.turn <= self._turns]:
            if act.do():
                self.acts.remove(act)
                self._done(act)

    def _last_acts(self) -> bool:
        """Do what is left to do when all is quiet; return whether something was done."""
        due, self.acts = self.acts, []
        done = [act for act in due if act.do()]
        for act in done:
            self._done(act)
        return bool(done)

    def _done(self, act: Act) -> None:
        self.world.counts[f"user: {act.name}"] += 1
        self.log.append(f"{self.world.simulation.now().isoformat()} user: {act.name} {act.to}".rstrip())
        if act.to:
            self.world.checks.changed_by_user(act.to, act.name)

    def expectations(self, opportunities: Mapping[str, OpportunityState]) -> Expectations:
        """Return what must have become of everything."""
        expected = expected_of(self.scenarios.values(), self.causes)
        return replace(
            expected,
            refusals=self.refusals,
            prompt=self.prompt,
            max_retries=self.max_retries,
            owners=self._owners(opportunities),
            columns=frozenset(COLUMNS.split(",")) if "INVOICE_COLUMNS" in self.settings else frozenset(),
        )

    def _owners(self, opportunities: Mapping[str, OpportunityState]) -> dict[str, str]:
        """Return who must own the generated invoice, where no fault and no user had a part in it."""
        user = self.organization.function_user
        keeps = self._impediment is not None or "INVOICE_OWNER" in self.settings
        owners = {}
        for scenario in self.scenarios.values():
            state = opportunities[scenario.id]
            ids = {scenario.id, *(invoice.id for invoice in state.invoices)}
            is_published = self.world.watch.has_published(scenario.id)
            is_plain = scenario.must_be_invoiced and scenario.is_owner_fixed and not scenario.concurrent
            if is_plain and is_published and (keeps or not ids & self.world.disturbed):
                owners[scenario.id] = user if keeps else state.owner
        self.world.counts["owner: the invoice's owner is checked"] += len(owners)
        return owners

    # --- what users do: each returns whether it could be done ---

    def act(self, name: str, turn: int, do: Callable[[], bool], to: str = "") -> None:
        """Let a user do something from a turn on."""
        self.acts.append(Act(name, turn, do, to))

    def win(self, scenario: Scenario) -> bool:
        """Win an open opportunity; the response to its post may be lost."""
        if not self.users.win(scenario):
            return False
        if self.world.simulation.monotonic() >= LAST_FAULT and self.faults_end:
            self.world.counts["wins when the faults had ended"] += 1
        if self.random.random() < 0.1:
            self.world.lost_posts = 1
        self.world.deliver_posts()
        return True

    def lose(self, scenario: Scenario) -> bool:
        """Lose an open opportunity."""
        self.users.lose(scenario)
        self.world.deliver_posts()
        return True

    def reopen(self, scenario: Scenario) -> bool:
        """Reopen a won opportunity."""
        if not self.users.reopen(scenario):
            return False
        self.world.deliver_posts()
        return True

    def report_win(self, opportunity_id: str) -> bool:
        """Report a win as a flow does, in one of the forms that the function accepts."""
        form = self.random.choice(
            (
                '{{"opportunityId": "{}"}}',
                '{{"OpportunityId": " {} ", "by": "a flow"}}',
                '\ufeff{{"opportunityid": "{{{}}}"}}',
            )
        )
        id_ = self.random.choice((opportunity_id, opportunity_id.upper()))
        return self.send(form.format(id_).encode())

    def send(self, body: bytes) -> bool:
        """Send a message to the queue, past Dataverse."""
        self.world.broker.send(
            QUEUE,
            BrokerMessage(body=body, message_id=self.world.message_id(), content_type="application/json"),
        )
        self.world.counts["messages posted"] += 1
        return True

    def crash(self) -> bool:
        """End the host and its workers."""
        self.world.host.crash()
        return True

    # --- parked messages ---

    def all_parked(self, scenario: Scenario) -> bool:
        """Whether no message of an opportunity is under way any more, and one is in the failed queue."""
        broker = self.world.broker
        return any(mentions(each, scenario.id) for each in broker.peek(FAILED_QUEUE, 0, 10_000)) and not any(
            mentions(each, scenario.id) for each in broker.peek(QUEUE, 0, 10_000)
        )

    def replay_into_a_fault(self, scenario: Scenario) -> bool:
        """Replay, and let something fail meanwhile, so that the retry of a replayed message is tested, too."""
        last = self.random.choice((1, 3))
        self.world.plan.add(parse_rule(f"dataverse unavailable nth=1-{last}"))
        return bool(self.replay(scenario.id))

    def replay(self, opportunity_id: str) -> int:
        """Send the parked messages of an opportunity again, as `operations failed replay` does."""
        broker = self.world.broker
        count = 0
        for message in broker.receive(FAILED_QUEUE, 10_000):
            token = message.lock_token
            assert token is not None
            if not mentions(message, opportunity_id):
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
            count += 1
        self.world.counts["messages replayed"] += count
        return count


def _text(value: str | bytes | UUID | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def _received(message: Any) -> ServiceBusReceivedMessage:  # noqa: ANN401 - the broker's message
    """Show a message of the broker like the SDK, as far as a replay reads it."""
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
