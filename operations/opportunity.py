"""`operations opportunity`: the history of one opportunity as a timeline, one verdict, and what to do.

The sources are Dataverse (closes, orders, invoices, the claim, system jobs) and Service Bus (the queue, scheduled
retries, the failed queue, published events). A source that the login may not read is named, and nothing is concluded
from its absence.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click
from azure.core.exceptions import AzureError

from operations.billing import (
    Assessment,
    Billing,
    has_pricing_error,
    invoice_number,
    order_number,
    read_billing,
)
from operations.console import Column, Overflow, confirm, note, printable, say, say_json, say_table
from operations.failed import FailedMessage, failed_messages
from operations.following import PublishedEvent, published_event
from operations.messages import MessageInfo
from operations.namespace import AUDIT, ServiceBusTimeout, Source, open_namespace, sequence_number
from operations.privileges import privilege_in
from operations.reconcile import send_wins
from operations.system_jobs import job_message
from operations.trouble import explain
from operations.waiting import QueuedMessage
from operations.web_api import WebApi, quoted
from shared.errors import DataverseForbidden, InvoiceOutdated, InvoicingFailure, PublishFailed
from shared.invoice import OpportunityState, OrderedOpportunity
from shared.settings import dataverse_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from operations.web_api import Row

Item = TypeVar("Item")

_MAX_MATCHES = 20
_JOB_STATES = {10: "is retried", 20: "runs", 21: "pauses", 30: "succeeded", 31: "failed", 32: "was canceled"}
_JOB_FAILED = 31
_JOB_WAITS = (0, 10, 20)
_CANCELED_INVOICE, _CANCELED_ORDER, _CANCELED_CLOSE = 3, 2, 2
_FORMATTED = "@OData.Community.Display.V1.FormattedValue"


class Verdict(Assessment):
    """What the history of an opportunity says about it."""

    INVOICED_ONCE = "invoiced once", "Nothing."
    INVOICED_TWICE = "invoiced twice", "Compare the invoices in Dynamics, and cancel the one that is wrong."
    OUTDATED = (
        "the invoice is outdated: the opportunity was changed and won again since",
        "Correct the invoice, or cancel it, delete the note on the timeline, then operations opportunity ID --send.",
    )
    RETRIED = (
        "is being retried",
        "Fix the cause that is named; then wait, or operations waiting retry-now NUMBER.",
    )
    IN_QUEUE = (
        "waits in the queue, or is being processed",
        "Wait a minute and ask again; if it stays: operations doctor.",
    )
    PARKED = "is parked", "operations failed show ID says what to fix; then operations failed replay ID."
    ORDERED = "is billed through its sales order", "Nothing: invoice the order in Dynamics."
    INVOICE_GONE = (
        "was invoiced, and the invoice was deleted or canceled since",
        "Not to be billed: nothing. To be billed: delete the note on its timeline; operations opportunity ID --send.",
    )
    JOB_FAILED = (
        "Dataverse could not post the win to the queue",
        "Fix what the system job says (operations doctor), then operations opportunity ID --send.",
    )
    NEVER_ARRIVED = (
        "the win never reached the queue",
        "operations doctor shows which connection is broken; operations opportunity ID --send makes up for the win.",
    )
    NOT_WON = "is not won", "Nothing: only a won opportunity is invoiced."
    NOT_INVOICED = (
        "has no invoice, and not all queues can be read from here",
        "Ask with a login that may read what is named, before you send an event.",
    )


@dataclass(frozen=True)
class TimelineEntry:
    """One line of the timeline. `time` is None where the source does not say when."""

    time: datetime | None
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Messages:
    """What Service Bus holds about an opportunity. `not_seen`: what could not be read, a sentence for each.

    A message of `queued` that is not due later is available now.
    """

    queued: tuple[QueuedMessage, ...] = ()
    failed: tuple[FailedMessage, ...] = ()
    published: tuple[PublishedEvent, ...] = ()
    not_seen: tuple[str, ...] = ()
    queues_are_seen: bool = True


@dataclass(frozen=True)
class History:
    """All that is known about one opportunity, and the verdict. `because` completes the verdict's text."""

    billing: Billing
    link: str
    timeline: tuple[TimelineEntry, ...]
    verdict: Verdict
    because: str
    remarks: tuple[str, ...]
    not_seen: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict as one sentence."""
        return f"{self.verdict.text}{': ' + self.because if self.because else ''}"

    @property
    def advice(self) -> str:
        """What to do, with the opportunity's own id."""
        return self.verdict.advice.replace("opportunity ID", f"opportunity {self.billing.opportunity_id}")


@dataclass(frozen=True)
class Match:
    """An opportunity that a search found."""

    opportunity_id: str
    name: str
    customer: str | None
    state: str


def find(api: WebApi, text: str) -> list[Match]:
    """Return the opportunities that a text means: an id, a name or a part of it, or the number of an invoice.

    A whole name means only its own opportunities, also where it is a part of other names.
    """
    try:
        guid = str(uuid.UUID(text))
    except ValueError:
        of_invoices = {
            f"opportunityid eq {row['_opportunityid_value']}": None
            for row in api.rows(
                f"invoices?$select=_opportunityid_value&$filter=invoicenumber eq {quoted(text)}&$top={_MAX_MATCHES}"
            )
            if row.get("_opportunityid_value")
        }
        condition = " or ".join((f"contains(name,{quoted(text)})", *of_invoices))
    else:
        condition = f"opportunityid eq {guid}"
    matches = [
        Match(
            str(row["opportunityid"]),
            str(row.get("name") or ""),
            row.get(f"_customerid_value{_FORMATTED}"),
            OpportunityState(row["statecode"]).name.lower(),
        )
        for row in api.rows(
            f"opportunities?$select=name,_customerid_value,statecode&$filter={condition}"
            f"&$orderby=createdon desc&$top={_MAX_MATCHES}"
        )
    ]
    return [each for each in matches if each.name.casefold() == text.casefold()] or matches


def history(environment: Mapping[str, str], api: WebApi, opportunity_id: str) -> History:
    """Return the history of an opportunity, as the records and messages show it."""
    (billing,) = read_billing(api, [opportunity_id])
    messages = messages_about(environment, opportunity_id)
    ordered = dataverse_settings(environment).ordered_opportunity
    jobs, not_seen = _jobs(api, opportunity_id)
    timeline = sorted(
        [*_from_dataverse(billing), *map(_job_entry, jobs), *_from_messages(messages)],
        key=lambda entry: entry.time or datetime.max.replace(tzinfo=UTC),
    )
    verdict, because = next(_Facts(api, billing, messages, ordered, tuple(jobs)).verdicts())
    return History(
        billing,
        f"{api.url}/main.aspx?pagetype=entityrecord&etn=opportunity&id={billing.opportunity_id}",
        tuple(timeline),
        verdict,
        because,
        tuple(_remarks(billing, messages, verdict)),
        (*not_seen, *messages.not_seen),
    )


def messages_about(environment: Mapping[str, str], opportunity_id: str) -> Messages:
    """Read all messages about an opportunity; what cannot be read is named in the result."""
    not_seen: list[str] = []

    def read(what: str, found: Iterable[Item]) -> tuple[Item, ...] | None:
        try:
            return tuple(found)
        except AzureError as error:
            not_seen.append(f"{what}: {_reason(error)}")
            return None

    try:
        with open_namespace(environment) as namespace:
            names = namespace.settings
            queued = read(
                "the queue of wins",
                (
                    QueuedMessage(sequence_number(message), seen, message)
                    for message in namespace.peek_all(Source(names.opportunity_won_queue))
                    if (seen := MessageInfo.of(message)).opportunity_id == opportunity_id
                ),
            )
            failures = read(
                "the failed queue",
                (
                    each
                    for each in failed_messages(namespace, not_seen.append)
                    if each.seen.opportunity_id == opportunity_id
                ),
            )
            published = read(
                "the published events",
                (
                    event
                    for event in map(
                        published_event, namespace.peek_all(Source(names.invoice_created_topic, AUDIT))
                    )
                    if event is not None and event.opportunity_id == opportunity_id
                ),
            )
    except (InvoicingFailure, AzureError, ServiceBusTimeout, OSError) as error:
        return Messages(not_seen=(f"Service Bus: {_reason(error)}",), queues_are_seen=False)
    return Messages(
        queued or (),
        failures or (),
        published or (),
        tuple(not_seen),
        queues_are_seen=queued is not None and failures is not None,
    )


# ---------------------------------------------------------------------------------------------- the verdict


@dataclass(frozen=True)
class _Facts:
    api: WebApi
    billing: Billing
    messages: Messages
    ordered: OrderedOpportunity
    jobs: tuple[Row, ...]

    @property
    def failure(self) -> FailedMessage | None:
        """The newest failure that nothing else made good since."""
        failures = [each for each in self.messages.failed if not self._is_made_good(each)]
        return max(failures, key=lambda each: each.id.number, default=None)

    def _is_made_good(self, failure: FailedMessage) -> bool:
        # An invoice makes every failure before it good, but for those that are about the invoice itself.
        about_invoice = failure.seen.reason in (PublishFailed.reason, InvoiceOutdated.reason)
        return bool(self.billing.active_invoices) and not about_invoice

    def verdicts(self) -> Iterator[tuple[Verdict, str]]:
        """Yield verdicts with their reasons. Only the first counts: each assumes that none before it applies."""
        state, invoices = self.billing.opportunity.state, self.billing.active_invoices
        if state != OpportunityState.WON:
            yield Verdict.NOT_WON, "it is open" if state == OpportunityState.OPEN else "it is lost"
        if len(invoices) > 1:
            yield Verdict.INVOICED_TWICE, ", ".join(map(invoice_number, invoices))
        yield from self._of_differences()
        yield from self._of_messages()
        if invoices:
            yield Verdict.INVOICED_ONCE, invoice_number(invoices[0])
        # Not where there is an invoice: a repeated win changes nothing then.
        if self.messages.queued:
            yield Verdict.IN_QUEUE, ""
        yield from self._without_invoice()

    def _of_differences(self) -> Iterator[tuple[Verdict, str]]:
        differences, failure = self.billing.differences(self.api), self.failure
        if differences:
            yield Verdict.OUTDATED, "; ".join(differences)
        if failure is not None and failure.seen.reason == InvoiceOutdated.reason:
            yield Verdict.OUTDATED, failure.seen.description

    def _of_messages(self) -> Iterator[tuple[Verdict, str]]:
        due = [(each.seen.due, each) for each in self.messages.queued if each.seen.due is not None]
        if due:
            time, first = min(due, key=lambda each: each[0])
            because = f" because {first.seen.reason}" if first.seen.reason else ""
            said = f"next try at {time:%Y-%m-%d %H:%M:%S} UTC{because} (message {first.number})."
            yield Verdict.RETRIED, f"{said} {first.seen.description}".strip()
        failure = self.failure
        if failure is not None:
            said = f"{failure.seen.reason} (message {failure.id})."
            yield Verdict.PARKED, f"{said} {failure.seen.description}".strip()

    def _without_invoice(self) -> Iterator[tuple[Verdict, str]]:
        if self.billing.is_billed_by_order(self.ordered):
            active = (
                row for row in self.billing.orders if row.optional_integer("statecode") != _CANCELED_ORDER
            )
            yield Verdict.ORDERED, ", ".join(map(order_number, active))
        if self.billing.claim is not None:
            yield Verdict.INVOICE_GONE, ""
        failed = [job for job in self.jobs if job["statuscode"] == _JOB_FAILED]
        if failed:
            yield Verdict.JOB_FAILED, job_message(failed[-1])
        if not self.messages.queues_are_seen:
            yield Verdict.NOT_INVOICED, ""
        waiting = [job for job in self.jobs if job["statuscode"] in _JOB_WAITS]
        yield Verdict.NEVER_ARRIVED, f"Dataverse still tries: {job_message(waiting[-1])}" if waiting else ""


def _remarks(billing: Billing, messages: Messages, verdict: Verdict) -> Iterator[str]:
    if verdict is Verdict.INVOICED_ONCE and messages.failed:
        ids = ", ".join(str(each.id) for each in messages.failed)
        yield f"A message about it is still among the failed ones and can be discarded: {ids}."
    if verdict is Verdict.INVOICED_ONCE and messages.queues_are_seen and not messages.published:
        yield "No event about it is in the audit subscription: it keeps 14 days."
    for row in filter(has_pricing_error, billing.active_invoices):
        yield f"The invoice {invoice_number(row)} has a pricing error."


# ---------------------------------------------------------------------------------------------- the timeline


def _from_dataverse(billing: Billing) -> Iterator[TimelineEntry]:
    yield TimelineEntry(billing.row.time("createdon"), "opportunity created", billing.name)
    for close in billing.closes:
        how = {1: "won", 2: "lost"}.get(close.optional_integer("opportunitystatecode") or 0, "closed")
        canceled = " (reopened since)" if close.optional_integer("statecode") == _CANCELED_CLOSE else ""
        yield TimelineEntry(close.time("createdon"), how + canceled, close.text("subject") or "")
    for order in billing.orders:
        number = order_number(order)
        yield TimelineEntry(order.time("createdon"), "order created", number)
        if order.optional_integer("statecode") == _CANCELED_ORDER:
            yield TimelineEntry(order.time("modifiedon"), "order canceled", number)
    if billing.claim is not None:
        yield TimelineEntry(billing.claim.time("createdon"), "claimed", "note on the timeline")
    for invoice in billing.invoices:
        canceled = ", canceled since" if invoice.optional_integer("statecode") == _CANCELED_INVOICE else ""
        amount = invoice.label("totalamount") or ""
        owner = invoice.label("_ownerid_value")
        detail = ", ".join(filter(None, (invoice_number(invoice), amount, owner and f"owner {owner}")))
        yield TimelineEntry(invoice.time("createdon"), "invoiced", detail + canceled)


def _from_messages(messages: Messages) -> Iterator[TimelineEntry]:
    for queued in messages.queued:
        seen = queued.seen
        if seen.due is None:
            yield TimelineEntry(seen.enqueued, "in the queue", f"message {queued.number}")
        else:
            yield TimelineEntry(seen.due, "next try", f"{seen.reason}, attempt {seen.attempts}")
    for failure in messages.failed:
        detail = f"{failure.seen.reason} (message {failure.id}): {failure.seen.description}"
        yield TimelineEntry(failure.seen.enqueued, "failed", detail)
    for event in messages.published:
        detail = f"{event.event_id}, invoice {event.invoice_number or event.invoice_id}"
        yield TimelineEntry(event.published_at, "event published", detail)


def _jobs(api: WebApi, opportunity_id: str) -> tuple[list[Row], list[str]]:
    try:
        return list(
            api.rows(
                "asyncoperations?$select=name,statuscode,createdon,message,friendlymessage,retrycount,postponeuntil"
                f"&$filter=_regardingobjectid_value eq {opportunity_id}&$orderby=createdon"
            )
        ), []
    except InvoicingFailure as error:
        return [], [f"the system jobs: {_reason(error)}"]


def _job_entry(job: Row) -> TimelineEntry:
    state = _JOB_STATES.get(job["statuscode"], "waits")
    return TimelineEntry(datetime.fromisoformat(str(job["createdon"])), f"post {state}", job_message(job))


def _reason(error: BaseException) -> str:
    if isinstance(error, DataverseForbidden) and (privilege := privilege_in(str(error))):
        return f"Dataverse refuses to say (needed: {privilege})"
    trouble = explain(error)
    return type(error).__name__ if trouble is None else trouble.sentence


@click.command()
@click.argument("text", metavar="ID|NAME|INVOICE-NUMBER")
@click.option("--send", is_flag=True, help="Put an event for it on the queue, as if it was won just now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def opportunity(environment: Mapping[str, str], text: str, *, send: bool, yes: bool, as_json: bool) -> None:
    """Show the history of one opportunity: what happened when, what is the case now, and what to do.

    Sending an event is idempotent: an opportunity is never invoiced twice.
    """
    api = WebApi.of(environment)
    match = _the_one(find(api, text), text)
    found = history(environment, api, match.opportunity_id)
    if as_json:
        say_json(_document(found))
    else:
        _say(found)
    if send:
        if found.verdict is Verdict.NOT_WON:
            raise click.ClickException("The opportunity is not won: the function would ignore an event.")
        confirm(f"Send an event for {found.billing.name}?", yes=yes)
        note(f"{send_wins(environment, [match.opportunity_id])} sent.")


def _the_one(matches: Sequence[Match], text: str) -> Match:
    """Return the one opportunity that is meant; raises ClickException for none or several."""
    if not matches:
        raise click.ClickException(
            f"No opportunity has {printable(text)} as its id, in its name, or as the number of its invoice, as far as "
            "your login reads."
        )
    if len(matches) > 1:
        lines = [
            f"{each.opportunity_id}  {printable(each.name)} ({printable(each.customer or 'no customer')}, {each.state})"
            for each in matches
        ]
        several = "\n".join(lines)
        most = f"; these are the newest {_MAX_MATCHES}" if len(matches) == _MAX_MATCHES else ""
        raise click.ClickException(
            f"Several opportunities match{most}; repeat the command with an id:\n{several}"
        )
    return matches[0]


_COLUMNS = [
    Column("Time (UTC)", "moment"),
    Column("What", "what"),
    Column("Detail", "detail", overflow=Overflow.WRAP),
]


def _say(found: History) -> None:
    billing = found.billing
    say(f"{billing.name} ({billing.customer or 'no customer'})")
    say(found.link)
    say()
    rows = [
        {
            "moment": f"{each.time:%Y-%m-%d %H:%M:%S}" if each.time else "",
            "what": each.what,
            "detail": each.detail,
        }
        for each in found.timeline
    ]
    say_table(_COLUMNS, rows)
    say()
    say(f"Verdict: {found.sentence}")
    say(f"To do:   {found.advice}")
    for remark in found.remarks:
        say(f"Note:    {remark}")
    for unseen in found.not_seen:
        say(f"Not seen: {unseen}")


def _document(found: History) -> dict[str, object]:
    billing = found.billing
    return {
        "opportunity": billing.opportunity_id,
        "name": billing.name,
        "customer": billing.customer,
        "link": found.link,
        "timeline": [
            {"time": each.time, "what": each.what, "detail": each.detail} for each in found.timeline
        ],
        "verdict": found.verdict.code,
        "because": found.because,
        "advice": found.advice,
        "remarks": list(found.remarks),
        "notSeen": list(found.not_seen),
    }
