"""The judge of a history, from outside: what Dataverse holds, what came to the topic, what is left in the queues.

It uses nothing of the deployed code and believes nothing that this says of itself; it only knows the promise. The same
judge serves histories in one process and over sockets. The maker of a history says what it did on purpose, and what may
be left behind because of that.

    watch = Watch(broker, validate_event)                   # before anything is sent
    …                                                       # the history, then enough time
    evidence = watch.evidence(app.database.commits, function_user, read_opportunities(app.database, function_user))
    violations = judge(evidence, Expectations(invoiced=…))
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sandbox.service_bus import Broker, BrokeredMessage, EventKind, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from proofs.sales_state import OpportunityState
    from sandbox.dataverse import Change, Commit

    Contract = Callable[[bytes, Mapping[str, object], str], None]

QUEUE = "opportunity-won"
FAILED_QUEUE = "opportunity-won-failed"
TOPIC = "invoice-created"
SUBSCRIPTION = "invoice-created/Subscriptions/audit"

_CANCELED = 3
# Of retries, which the function sends.
_ROOT = "InvoicingRoot"
_WON = 1
# A message that is parked after a retry policy's time was delivered for the last time at most so much later: the
# longest delay between two retries, and some more.
_MAX_LATER = timedelta(minutes=20)
_PROMPT = timedelta(seconds=10)
_PAGE = 10_000


@dataclass(frozen=True)
class Event:
    """An event that came to the topic, whether or not duplicate detection let it through to subscribers."""

    at: datetime
    message_id: str
    body: bytes


@dataclass(frozen=True)
class Evidence:
    """What there is to see from outside once a history is at rest.

    `function_user`: the id of the user as which the function works; the invoices that it creates are the generated
    ones. `sent`: every event that reached the topic; `published`: those that subscribers got. `waiting`: what is left
    in the queue or scheduled for it, `parked`: in the failed queue, `dead`: in dead-letter queues. `broken`: what of
    the sent events is not as consumers were promised. `opportunities`: what Dataverse holds of each by its id; without
    it, the rules about them are not checked. `retries`: the bodies of all scheduled retries; `originals`: the bodies of
    all messages that somebody else than the function sent to the queue.
    """

    commits: Sequence[Commit]
    function_user: str
    sent: Sequence[Event]
    published: Sequence[Event]
    waiting: Sequence[BrokeredMessage]
    parked: Sequence[BrokeredMessage]
    dead: Sequence[BrokeredMessage] = ()
    broken: Sequence[str] = ()
    opportunities: Mapping[str, OpportunityState] = field(default_factory=dict)
    retries: Sequence[bytes] = ()
    originals: Collection[bytes] = ()

    def about(self, opportunity_id: str) -> list[BrokeredMessage]:
        """Return what waits or is parked and mentions an opportunity."""
        return [each for each in (*self.waiting, *self.parked, *self.dead) if mentions(each, opportunity_id)]


@dataclass(frozen=True)
class Cause:
    """Why a message may be parked: its body holds `mark`, an opportunity's id say, and its reason is among these."""

    mark: bytes
    reasons: frozenset[str]

    def covers(self, message: BrokeredMessage) -> bool:
        """Whether this explains a parked message."""
        return self.mark in body_of(message).lower() and reason_of(message) in self.reasons


@dataclass(frozen=True)
class Refusal:
    """An error that never passes: messages that mention the opportunity are parked with this reason and text.

    `after`: the time of the retry policy; a message is parked no sooner, and not much later.
    """

    opportunity_id: str
    reason: str
    text: str
    after: timedelta


@dataclass(frozen=True)
class Expectations:
    """What the maker of a history knows of it.

    `invoiced`: the opportunities that were won and that no user changed: each must have its invoice and event.
    `concurrent`: those that were won, and where a user created an invoice by hand or deleted the claim: at least one,
    and its event. `never`: those that must get no generated invoice: never won, or invoiced by hand before the win.
    `causes`: what was made to fail for good. `claim_deleted_under_way`: where somebody deleted the claim while a
    message of the same win was between check and call; there, and only there, a second invoice is beyond the promise.
    `won_again`: reopened and won again, and nothing else was done to them: parked as outdated exactly if they are.
    `ordered`: had a sales order at some time, so that no message of them may be left. `owners`: the user or team that
    must own the generated invoice. `columns`: the further columns that every event has. `prompt`: published within
    seconds of the win, without a retry. `max_retries`: how many retries there may be of one opportunity's messages.
    """

    invoiced: Collection[str] = ()
    concurrent: Collection[str] = ()
    never: Collection[str] = ()
    causes: Sequence[Cause] = ()
    claim_deleted_under_way: Collection[str] = ()
    won_again: Collection[str] = ()
    ordered: Collection[str] = ()
    refusals: Sequence[Refusal] = ()
    owners: Mapping[str, str] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    prompt: Collection[str] = ()
    max_retries: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Violation:
    """A rule that was broken, and how."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


class Watch:
    """Collects what comes to the topic, from now on; the rest is read at the end.

    `contract` raises AssertionError for an event that is not as promised: its body, application properties, and content
    type.
    """

    def __init__(self, broker: Broker, contract: Contract) -> None:
        self._broker = broker
        self._contract = contract
        self._broken: list[str] = []
        self._sent: list[Event] = []
        self._published: list[Event] = []
        self._retries: list[bytes] = []
        self._originals: set[bytes] = set()
        broker.observe(self._observe)

    @property
    def published(self) -> Sequence[Event]:
        """What subscribers got so far."""
        return self._published

    def has_published(self, opportunity_id: str) -> bool:
        """Whether subscribers got an event of an opportunity."""
        return any(opportunity_id.encode() in event.body for event in self._published)

    @property
    def originals(self) -> Collection[bytes]:
        """The bodies of the messages that somebody else than the function has sent to the queue so far."""
        return frozenset(self._originals)

    def evidence(
        self,
        commits: Sequence[Commit],
        function_user: str,
        opportunities: Mapping[str, OpportunityState] | None = None,
    ) -> Evidence:
        """Add what is left in the queues, by peeking."""
        every = self._broker.entities
        dead = [path for path in every if path.endswith("/$DeadLetterQueue")]
        return Evidence(
            commits=commits,
            function_user=function_user,
            sent=tuple(self._sent),
            published=tuple(self._published),
            waiting=self._broker.peek(QUEUE, 0, _PAGE),
            parked=self._broker.peek(FAILED_QUEUE, 0, _PAGE),
            dead=[message for path in dead for message in self._broker.peek(path, 0, _PAGE)],
            broken=tuple(self._broken),
            opportunities=opportunities or {},
            retries=tuple(self._retries),
            originals=frozenset(self._originals),
        )

    def _observe(self, seen: Observation) -> None:
        entity = seen.entity.lower()
        if entity == TOPIC and seen.kind in (EventKind.ACCEPTED, EventKind.DUPLICATE_DROPPED):
            self._sent.append(_event(seen))
            self._check(seen.message)
        elif entity == SUBSCRIPTION.lower() and seen.kind is EventKind.ENQUEUED:
            self._published.append(_event(seen))
        elif entity == QUEUE and seen.kind in (EventKind.ACCEPTED, EventKind.SCHEDULED):
            if _ROOT in seen.message.message.application_properties:
                self._retries.append(body_of(seen.message).lower())
            else:
                self._originals.add(body_of(seen.message))

    def _check(self, message: BrokeredMessage) -> None:
        content_type = message.message.content_type or ""
        try:
            self._contract(body_of(message), message.message.application_properties, content_type)
        except AssertionError as error:
            self._broken.append(f"{message.message.message_id}: {error}")


def judge(evidence: Evidence, expectations: Expectations) -> list[Violation]:
    """Return what is wrong with a history that is at rest; nothing is the promise kept."""
    invoices = _Invoices(evidence.commits, evidence.function_user, expectations.claim_deleted_under_way)
    return [
        *invoices.violations,
        *_events(evidence, invoices),
        *_all_invoiced(evidence, expectations, invoices),
        *_none_lost(evidence, expectations),
        *_outdated(evidence, expectations),
        *_refused(evidence, expectations),
        *_owned(evidence, expectations),
        *_prompt(evidence, expectations),
        *_faithful(evidence),
        *_nothing_left(evidence, expectations),
    ]


@dataclass
class _Opportunity:
    """What the log of commits shows of one opportunity; ids of invoices in the order of their creation."""

    generated: list[str] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    claim_deleted: bool = False


class _Invoices:
    """Goes through the committed transactions in order, and checks the state after each."""

    def __init__(
        self, commits: Iterable[Commit], function_user: str, claim_deleted_under_way: Collection[str]
    ) -> None:
        self.opportunities: dict[str, _Opportunity] = defaultdict(_Opportunity)
        # Every invoice that ever was: the opportunity that it is for, and when it was made.
        self.made: dict[str, tuple[str, datetime]] = {}
        self.owners: dict[str, str] = {}
        self.violations: list[Violation] = []
        self._function_user = function_user
        self._excused = claim_deleted_under_way
        self._notes: dict[str, str] = {}
        for commit in commits:
            for change in commit.changes:
                if change.table == "annotation":
                    self._note(change)
            for change in commit.changes:
                if change.table == "invoice":
                    self._invoice(change, commit)

    def _note(self, change: Change) -> None:
        """Follow the function's own notes: each that it writes on an opportunity is the claim."""
        if change.kind == "create" and change.values.get("createdby") == self._function_user:
            self._notes[change.id] = str(change.values.get("objectid"))
        elif change.kind == "delete" and change.id in self._notes:
            self.opportunities[self._notes.pop(change.id)].claim_deleted = True

    def _invoice(self, change: Change, commit: Commit) -> None:
        if change.kind == "create":
            self._created(change, commit)
        elif change.id in self.made:
            self._assigned(change, commit)
            opportunity = self.opportunities[self.made[change.id][0]]
            if change.kind == "delete" or change.values.get("statecode") == _CANCELED:
                opportunity.active.discard(change.id)

    def _assigned(self, change: Change, commit: Commit) -> None:
        """Follow an invoice's owner: the function may give away what it owns, and take nothing from anybody."""
        if "ownerid" not in change.values:
            return
        owner = self.owners[change.id]
        if commit.user_id == self._function_user != owner:
            self.violations.append(
                Violation(
                    "an invoice that somebody has taken stays theirs",
                    f"{change.id} was taken from {owner} at {commit.at.isoformat()}.",
                )
            )
        self.owners[change.id] = str(change.values["ownerid"])

    def _created(self, change: Change, commit: Commit) -> None:
        opportunity_id = str(change.values.get("opportunityid"))
        opportunity = self.opportunities[opportunity_id]
        self.made[change.id] = opportunity_id, commit.at
        self.owners[change.id] = str(change.values.get("ownerid"))
        if commit.user_id == self._function_user:
            still_active = [id_ for id_ in opportunity.generated if id_ in opportunity.active]
            # Once the claim *and* the invoice are gone, a replay bills anew: that is what deleting both asks for.
            asked_for = opportunity.claim_deleted and not still_active
            if opportunity.generated and not asked_for and opportunity_id not in self._excused:
                self.violations.append(
                    Violation(
                        "one generated invoice per opportunity",
                        f"{opportunity_id} got a second one, {change.id}, at {commit.at.isoformat()} "
                        f"(after {', '.join(opportunity.generated)}).",
                    )
                )
            opportunity.generated.append(change.id)
            opportunity.claim_deleted = False
        opportunity.active.add(change.id)


def _events(evidence: Evidence, invoices: _Invoices) -> Iterator[Violation]:
    for broken in evidence.broken:
        yield Violation("every event keeps the contract", broken)
    ids: dict[str, set[str]] = defaultdict(set)
    for event in evidence.sent:
        read = _read(event)
        if read is None:
            yield Violation("an event can be read", f"the body of {event.message_id} is not a CloudEvent.")
            continue
        event_id, opportunity_id, invoice_id = read
        ids[invoice_id] |= {event_id, event.message_id}
        made = invoices.made.get(invoice_id)
        if made is None or made[0] != opportunity_id or made[1] > event.at:
            yield Violation(
                "no event without its invoice",
                f"{event_id} is about invoice {invoice_id} of {opportunity_id}, which did not exist.",
            )
    for invoice_id, known in ids.items():
        if len(known) > 1:
            yield Violation("all events of an invoice have one id", f"{invoice_id}: {sorted(known)}.")


def _all_invoiced(evidence: Evidence, expectations: Expectations, invoices: _Invoices) -> Iterator[Violation]:
    published = {found[2] for event in evidence.published if (found := _read(event))}
    for opportunity_id in sorted({*expectations.invoiced, *expectations.concurrent}):
        opportunity = invoices.opportunities.get(opportunity_id, _Opportunity())
        several = opportunity.active and opportunity_id in expectations.concurrent
        if len(opportunity.active) != 1 and not several:
            yield Violation(
                "every won opportunity has its invoice",
                f"{opportunity_id} has {len(opportunity.active)}.",
            )
        elif not opportunity.active & published and not _parked_as_outdated(evidence, opportunity_id):
            yield Violation("every won opportunity has its event", f"{opportunity_id} has none.")
    for opportunity_id in sorted(expectations.never):
        if invoices.opportunities.get(opportunity_id, _Opportunity()).generated:
            yield Violation("nothing is invoiced that should not be", f"{opportunity_id} is.")


def _nothing_left(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    for message in evidence.waiting:
        yield Violation("nothing waits", f"{message.state.name.lower()}: {_about(message)}.")
    for message in evidence.dead:
        yield Violation("nothing lies in a dead-letter queue", f"{message.entity}: {_about(message)}.")
    for message in evidence.parked:
        if not any(cause.covers(message) for cause in expectations.causes):
            yield Violation(
                "parked is only what has a permanent cause", f"{reason_of(message)}: {_about(message)}."
            )


def _none_lost(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    """Find wins of which nothing is left, from what Dataverse holds: the form of their messages does not matter."""
    published = {found[1] for event in evidence.published if (found := _read(event))}
    for opportunity_id, state in evidence.opportunities.items():
        is_billed_otherwise = state.is_ordered or opportunity_id in expectations.ordered
        is_missing = state.is_won and not is_billed_otherwise and opportunity_id not in published
        if is_missing and not evidence.about(opportunity_id):
            yield Violation(
                "no win is lost", f"{opportunity_id} has no event, and no message waits or is parked."
            )


def _outdated(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    for opportunity_id in sorted(expectations.won_again):
        is_outdated = evidence.opportunities[opportunity_id].is_outdated
        is_parked = _parked_as_outdated(evidence, opportunity_id)
        if is_outdated is not None and is_outdated != is_parked:
            yield Violation(
                "an outdated invoice is parked, and no other",
                f"{opportunity_id} is {'' if is_outdated else 'not '}outdated and {'' if is_parked else 'not '}parked.",
            )


def _parked_as_outdated(evidence: Evidence, opportunity_id: str) -> bool:
    return any(
        reason_of(each) == "InvoiceOutdated" and mentions(each, opportunity_id) for each in evidence.parked
    )


def _refused(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    for refusal in expectations.refusals:
        parked = [each for each in evidence.parked if mentions(each, refusal.opportunity_id)]
        if not parked:
            yield Violation("a refusal is parked with its text", f"{refusal} has left nothing.")
        for message in parked:
            properties = message.message.application_properties
            took = message.enqueued_at - datetime.fromisoformat(str(properties["InvoicingFirstSeen"]))
            is_in_time = refusal.after <= took <= refusal.after + _MAX_LATER if refusal.after else not took
            has_text = refusal.text in str(properties["DeadLetterErrorDescription"])
            if reason_of(message) != refusal.reason or not has_text or not is_in_time:
                yield Violation(
                    "a refusal is parked with its text", f"{refusal}, parked after {took}: {_about(message)}."
                )


def _owned(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    for opportunity_id, owner in expectations.owners.items():
        for invoice in evidence.opportunities[opportunity_id].invoices:
            if invoice.created_by == evidence.function_user and invoice.owner != owner:
                yield Violation(
                    "the right one owns the invoice", f"{invoice.owner} owns {invoice.id}, not {owner}."
                )


def _prompt(evidence: Evidence, expectations: Expectations) -> Iterator[Violation]:
    won = {
        change.id: commit.at
        for commit in evidence.commits
        for change in commit.changes
        if change.table == "opportunity" and change.values.get("statecode") == _WON
    }
    published = {found[1]: event.at for event in evidence.published if (found := _read(event))}
    for opportunity_id in sorted(expectations.prompt):
        took = published[opportunity_id] - won[opportunity_id] if opportunity_id in published else None
        if took is None or took > _PROMPT:
            yield Violation(
                "the troubles of others delay nothing", f"{opportunity_id} was published after {took}."
            )
    for opportunity_id, limit in expectations.max_retries.items():
        count = sum(opportunity_id.encode() in body for body in evidence.retries)
        if count > limit:
            yield Violation("the delays of retries grow", f"{opportunity_id} was retried {count} times.")
    for event in evidence.published if expectations.columns else ():
        columns = json.loads(event.body)["data"].get("columns", {})
        if columns.keys() != expectations.columns:
            yield Violation(
                "every event has the configured columns", f"{event.message_id}: {sorted(columns)}."
            )


def _faithful(evidence: Evidence) -> Iterator[Violation]:
    for message in (*evidence.waiting, *evidence.parked):
        properties = message.message.application_properties
        if _ROOT in properties and body_of(message) not in evidence.originals:
            yield Violation("a copy has the body of its original", _about(message))


@dataclass(frozen=True)
class Request:
    """A request to Dataverse as the connection saw it; `order` and `responded` are the turns of request and response.

    `process`: which one sent it. `throttled_until`: what a 429 in the response asked for, None without one.
    """

    process: str
    order: int
    at: datetime
    responded: int
    throttled_until: datetime | None = None


def judge_requests(requests: Sequence[Request]) -> list[Violation]:
    """Return the requests that a process sent before the time that a response had asked it to wait for."""
    violations = []
    happened = sorted(
        [(request.order, "sent", request) for request in requests]
        + [(request.responded, "responded", request) for request in requests if request.throttled_until],
        key=lambda each: each[0],
    )
    until: dict[str, datetime] = {}
    for _, what, request in happened:
        waits = until.get(request.process)
        if what == "responded" and request.throttled_until is not None:
            until[request.process] = max(waits or request.throttled_until, request.throttled_until)
        elif what == "sent" and waits is not None and request.at < waits:
            early = (waits - request.at).total_seconds()
            violations.append(
                Violation("no request before its time", f"{request.process} asked {early:g} s too early.")
            )
    return violations


def body_of(message: BrokeredMessage) -> bytes:
    """Return the bytes of a message; empty for an AMQP value."""
    body = message.message.body
    return body if isinstance(body, bytes) else b""


def mentions(message: BrokeredMessage, opportunity_id: str) -> bool:
    """Return whether a message has an opportunity's id in its body, in one of the forms that senders use."""
    body = message.message.body
    raw = body if isinstance(body, bytes) else repr(body).encode()
    id_ = opportunity_id.encode()
    return any(
        form in raw.lower() for form in (id_, opportunity_id.encode("utf-16-le"), id_.replace(b"-", b""))
    )


def reason_of(message: BrokeredMessage) -> str:
    """Return why a message was parked or dead-lettered."""
    return str(message.message.application_properties.get("DeadLetterReason", "unknown"))


def _about(message: BrokeredMessage) -> str:
    properties: Mapping[str, object] = message.message.application_properties
    shown = {
        name: properties[name] for name in sorted(properties) if name.startswith(("Invoicing", "DeadLetter"))
    }
    return f"message {message.message.message_id} #{message.sequence_number} {shown}"


def _event(seen: Observation) -> Event:
    return Event(seen.at, str(seen.message.message.message_id), body_of(seen.message))


def _read(event: Event) -> tuple[str, str, str] | None:
    """Return the ids of event, opportunity and invoice."""
    try:
        document = json.loads(event.body)
        return str(document["id"]), str(document["data"]["opportunityId"]), str(document["data"]["invoiceId"])
    except (ValueError, KeyError, TypeError):
        return None
