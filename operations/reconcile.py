"""`operations reconcile`: the audit of won opportunities, and an event for each win that has no invoice.

"Nothing is lost" must not begin at our queue: a rotated key, a disabled endpoint or step, or a failed system job loses
a win before it reaches the queue, and wins from before going live never were events.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from operations.billing import (
    Assessment,
    Billing,
    has_pricing_error,
    invoice_number,
    order_number,
    read_billing,
)
from operations.console import Column, Overflow, confirm, count, note, progress, say, say_json, say_table
from operations.messages import plain_message
from operations.namespace import open_namespace
from operations.privileges import PRIVILEGES, lacking, privileges_of
from operations.web_api import WebApi
from shared.errors import DataverseForbidden
from shared.invoice import InvoiceOwner, OrderedOpportunity
from shared.settings import dataverse_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from shared.record import Record

FOUND = 3
# What is read, in the whole organization.
_READS = ("prvReadOpportunity", "prvReadInvoice", "prvReadSalesOrder", "prvReadNote", "prvReadActivity")
_PRIVILEGES = {name: PRIVILEGES[name] for name in _READS}


class Problem(Assessment):
    """What the audit finds."""

    NO_INVOICE = "no invoice", "operations reconcile --send puts an event for it on the queue."
    INVOICE_GONE = (
        "its invoice was deleted or canceled",
        "Not to be billed: nothing. To be billed: delete the note on its timeline, then operations reconcile --send.",
    )
    ORDER_CANCELED = (
        "billed through an order that was canceled since",
        "Not to be billed: nothing. To be billed: operations opportunity ID --send.",
    )
    TWO_INVOICES = "two active invoices", "Compare them in Dynamics, and cancel the one that is wrong."
    OUTDATED = (
        "outdated invoice: changed and won again since",
        "Decide which one is right: correct the invoice, or cancel it, delete the note, then reconcile --send.",
    )
    PRICING_ERROR = (
        "invoice with a pricing error",
        "Correct the invoice in Dynamics: its totals are not reliable.",
    )
    TOTALS_DISAGREE = (
        "lines, discounts, freight and tax do not add up",
        "Check the invoice in Dynamics, and what calculates its prices; its event says totalsAgree: false.",
    )
    NOT_ASSIGNED = (
        "invoice not assigned to the opportunity's owner",
        "The function's log says why (was not assigned). Correct it, and assign the invoice in Dynamics.",
    )


@dataclass(frozen=True)
class AuditFinding:
    """What is wrong with one won opportunity. `detail`: the invoices, orders or amounts that it is about."""

    billing: Billing
    problem: Problem
    detail: str


@dataclass(frozen=True)
class AuditContext:
    """What a check may need besides the opportunity itself."""

    api: WebApi
    ordered: OrderedOpportunity
    owner: InvoiceOwner

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> AuditContext:
        """Return what the settings say; raises InvalidSettings."""
        api, settings = WebApi.of(environment), dataverse_settings(environment)
        return cls(api, settings.ordered_opportunity, settings.invoice_owner)


def audit(billings: Iterable[Billing], context: AuditContext) -> Iterator[AuditFinding]:
    """Yield what is wrong with each of the won opportunities."""
    for billing in billings:
        for problem, detail in _problems(billing, context):
            yield AuditFinding(billing, problem, detail)


def _problems(billing: Billing, context: AuditContext) -> Iterator[tuple[Problem, str]]:
    """Yield each problem of a won opportunity, with its detail."""
    invoices = billing.active_invoices
    if not invoices and not billing.is_billed_by_order(context.ordered):
        yield _without_invoice(billing, context)
    if len(invoices) > 1:
        yield Problem.TWO_INVOICES, ", ".join(map(invoice_number, invoices))
    differences = billing.differences(context.api)
    if differences:
        yield Problem.OUTDATED, "; ".join(differences)
    wrong = {
        Problem.PRICING_ERROR: filter(has_pricing_error, invoices),
        # One request for each invoice: its totals are calculated when it is retrieved by itself.
        Problem.TOTALS_DISAGREE: (
            row
            for row in invoices
            if not has_pricing_error(row) and not context.api.invoice(row.guid("invoiceid")).totals_agree
        ),
        Problem.NOT_ASSIGNED: _not_assigned(billing, context),
    }
    for problem, rows in wrong.items():
        numbers = ", ".join(map(invoice_number, rows))
        if numbers:
            yield problem, numbers


def _without_invoice(billing: Billing, context: AuditContext) -> tuple[Problem, str]:
    if billing.claim is not None:
        canceled = ", ".join(map(invoice_number, billing.invoices))
        return Problem.INVOICE_GONE, f"canceled: {canceled}" if canceled else "deleted, or moved"
    if billing.orders and context.ordered is OrderedOpportunity.SKIP:
        return Problem.ORDER_CANCELED, ", ".join(map(order_number, billing.orders))
    return Problem.NO_INVOICE, ""


def _not_assigned(billing: Billing, context: AuditContext) -> Iterator[Record]:
    """Yield the invoices that the function generated for another owner, and that are still its own."""
    owner = billing.opportunity.owner
    if context.owner is not InvoiceOwner.OPPORTUNITY or billing.claim is None or owner is None:
        return
    function = billing.claim.optional_guid("_createdby_value")
    for row in billing.active_invoices:
        creator, owned_by = row.optional_guid("_createdby_value"), row.optional_guid("_ownerid_value")
        if function and creator == owned_by == function != owner.id:
            yield row


def won_since(api: WebApi, since: datetime) -> Iterator[str]:
    """Yield the ids of the opportunities that were won on this day or later."""
    # By the date of the business, not of the row's last change: an old win that somebody edits is no new win.
    for row in api.rows(
        "opportunities?$select=opportunityid"
        f"&$filter=statecode eq 1 and actualclosedate ge {since:%Y-%m-%d}&$orderby=actualclosedate,opportunityid"
    ):
        yield str(row["opportunityid"])


def send_wins(environment: Mapping[str, str], opportunity_ids: Iterable[str]) -> int:
    """Put an event for each opportunity on the queue; return how many. Idempotent: none is invoiced twice."""
    sent = 0
    with open_namespace(environment) as namespace:
        for opportunity_id in opportunity_ids:
            body = json.dumps({"opportunityId": opportunity_id}).encode()
            namespace.send(
                namespace.settings.opportunity_won_queue, plain_message(body, content_type="application/json")
            )
            sent += 1
    return sent


@click.command()
@click.option("--since", required=True, type=click.DateTime(["%Y-%m-%d"]), help="Won on this day or later.")
@click.option(
    "--send", is_flag=True, help="Put an event on the queue for each win that never had an invoice."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def reconcile(
    environment: Mapping[str, str], since: datetime, *, send: bool, yes: bool, as_json: bool
) -> None:
    """Check every won opportunity: is it invoiced once, up to date, with prices; exit code 3 for any problem.

    Opportunities with a sales order that is not canceled are billed through it, unless ORDERED_OPPORTUNITY=invoice.
    Sending is idempotent; wins that are sent count as no problem any more.
    """
    context = AuditContext.of(environment)
    check_that_all_is_seen(context.api)
    ids = list(won_since(context.api, since))
    findings = list(audit(progress(read_billing(context.api, ids), "Reading", len(ids)), context))
    if as_json:
        say_json([_row(each) for each in findings])
    else:
        _say(findings, len(ids))
    missing = [each.billing.opportunity_id for each in findings if each.problem is Problem.NO_INVOICE]
    left = len(findings)
    if send and missing:
        confirm(f"Send an event for {count(len(missing), 'opportunity', 'opportunities')}?", yes=yes)
        note(f"{send_wins(environment, progress(missing, 'Sending', len(missing)))} sent.")
        left -= len(missing)
    if left:
        raise click.exceptions.Exit(FOUND)


def check_that_all_is_seen(api: WebApi) -> None:
    """Raise ClickException for a login that does not read other people's rows: they are missing without an error."""
    try:
        granted = privileges_of(api, str(api.row("WhoAmI")["UserId"]), sorted(_PRIVILEGES))
    except DataverseForbidden:
        note(
            "Dataverse does not say how far your login reads (prvReadUser): wins of other people may be missing."
        )
        return
    shallow = lacking(_PRIVILEGES, granted)
    if shallow:
        raise click.ClickException(
            f"Your login does not have {', '.join(sorted(shallow))} for the whole organization: wins or invoices of "
            "other people would be missing from the result without an error. Use one that has."
        )


_COLUMNS = [
    Column("Won", "won"),
    Column("Opportunity", "about", overflow=Overflow.CUT),
    Column("Problem", "problem"),
    Column("Detail", "detail", overflow=Overflow.CUT),
]


def _say(findings: list[AuditFinding], checked: int) -> None:
    wins = count(checked, "win") + " checked"
    if not findings:
        say(f"{wins}, none missing.")
        return
    rows = [
        {
            **_row(each),
            "about": f"{each.billing.name} ({each.billing.customer or each.billing.opportunity_id})",
            "problem": each.problem.text,
        }
        for each in findings
    ]
    say_table(_COLUMNS, rows)
    say()
    counts = Counter(each.problem for each in findings)
    say(f"{wins}: {', '.join(f'{counts[each]} {each.text}' for each in Problem if each in counts)}.")
    for problem in counts:
        say(f"{problem.text}: {problem.advice}")


def _row(finding: AuditFinding) -> dict[str, object]:
    billing = finding.billing
    return {
        "opportunity": billing.opportunity_id,
        "name": billing.name,
        "customer": billing.customer,
        "won": billing.closed_on,
        "problem": finding.problem.code,
        "state": finding.problem.text,
        "detail": finding.detail,
        "advice": finding.problem.advice,
    }
