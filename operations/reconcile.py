"""`operations reconcile`: the audit of won opportunities, and an event for each win that has no invoice.

"Nothing is lost" must not begin at our queue: a rotated key, a disabled endpoint or step, or a failed system job loses
a win before it reaches the queue, and wins from before going live never were events.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import click

from operations.billing import Billing, invoice_number, read_billing
from operations.console import Column, Overflow, confirm, count, note, progress, say, say_json, say_table
from operations.messages import plain_message
from operations.namespace import open_namespace
from operations.privileges import PRIVILEGES, lacking, privileges_of
from operations.web_api import WebApi
from shared.errors import DataverseForbidden
from shared.invoice import InvoiceOwner, OrderedOpportunity
from shared.settings import dataverse_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

FOUND = 3
# What is read, in the whole organization.
_PRIVILEGES = {
    name: PRIVILEGES[name]
    for name in (
        "prvReadOpportunity",
        "prvReadInvoice",
        "prvReadSalesOrder",
        "prvReadNote",
        "prvReadActivity",
    )
}


class Problem(Enum):
    """What the audit finds. Each has a code for scripts, a text, and what to do."""

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

    def __init__(self, text: str, advice: str) -> None:
        self.text = text
        self.advice = advice

    @property
    def code(self) -> str:
        """The stable word for scripts."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class AuditFinding:
    """What is wrong with one won opportunity. `detail`: the invoices, orders or amounts that it is about."""

    billing: Billing
    problem: Problem
    detail: str = ""


@dataclass(frozen=True)
class AuditContext:
    """What a check may need besides the opportunity itself."""

    api: WebApi
    ordered: OrderedOpportunity
    owner: InvoiceOwner = InvoiceOwner.OPPORTUNITY


def _no_invoice(billing: Billing, context: AuditContext) -> AuditFinding | None:
    is_billed_by_order = bool(billing.counting_orders) and context.ordered is OrderedOpportunity.SKIP
    if billing.active_invoices or is_billed_by_order:
        return None
    if billing.claim is not None:
        canceled = ", ".join(invoice_number(row) for row in billing.invoices)
        return AuditFinding(
            billing, Problem.INVOICE_GONE, f"canceled: {canceled}" if canceled else "deleted, or moved"
        )
    if billing.orders and context.ordered is OrderedOpportunity.SKIP:
        orders = ", ".join(row.text("ordernumber") or row.guid("salesorderid") for row in billing.orders)
        return AuditFinding(billing, Problem.ORDER_CANCELED, orders)
    return AuditFinding(billing, Problem.NO_INVOICE)


def _two_invoices(billing: Billing, _: AuditContext) -> AuditFinding | None:
    if len(billing.active_invoices) < 2:  # noqa: PLR2004 - two are one too many
        return None
    return AuditFinding(
        billing, Problem.TWO_INVOICES, ", ".join(map(invoice_number, billing.active_invoices))
    )


def _outdated(billing: Billing, context: AuditContext) -> AuditFinding | None:
    if not billing.is_won_again:
        return None
    # Its totals are calculated when it is retrieved by itself.
    invoice = context.api.invoice(billing.active_invoices[0].guid("invoiceid"))
    differences = billing.differences(invoice)
    return AuditFinding(billing, Problem.OUTDATED, "; ".join(differences)) if differences else None


def _pricing_error(billing: Billing, _: AuditContext) -> AuditFinding | None:
    wrong = [row for row in billing.active_invoices if row.optional_integer("pricingerrorcode")]
    return (
        AuditFinding(billing, Problem.PRICING_ERROR, ", ".join(map(invoice_number, wrong))) if wrong else None
    )


def _totals_disagree(billing: Billing, context: AuditContext) -> AuditFinding | None:
    # One request for each invoice: its totals are calculated when it is retrieved by itself.
    wrong = [
        row
        for row in billing.active_invoices
        if not row.optional_integer("pricingerrorcode")
        and not context.api.invoice(row.guid("invoiceid")).totals_agree
    ]
    return (
        AuditFinding(billing, Problem.TOTALS_DISAGREE, ", ".join(map(invoice_number, wrong)))
        if wrong
        else None
    )


def _not_assigned(billing: Billing, context: AuditContext) -> AuditFinding | None:
    owner = billing.opportunity.owner
    if context.owner is not InvoiceOwner.OPPORTUNITY or billing.claim is None or owner is None:
        return None
    function = billing.claim.optional_guid("_createdby_value")
    ours = [
        row
        for row in billing.active_invoices
        if function
        and row.optional_guid("_createdby_value")
        == row.optional_guid("_ownerid_value")
        == function
        != owner.id
    ]
    return AuditFinding(billing, Problem.NOT_ASSIGNED, ", ".join(map(invoice_number, ours))) if ours else None


# What is checked of every won opportunity; each check finds one problem at most.
CHECKS: tuple[Callable[[Billing, AuditContext], AuditFinding | None], ...] = (
    _no_invoice,
    _two_invoices,
    _outdated,
    _pricing_error,
    _totals_disagree,
    _not_assigned,
)


def audit(billings: Iterable[Billing], context: AuditContext) -> Iterator[AuditFinding]:
    """Yield what is wrong with each of the won opportunities."""
    for billing in billings:
        for check in CHECKS:
            finding = check(billing, context)
            if finding is not None:
                yield finding


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
    api = WebApi.of(environment)
    check_that_all_is_seen(api)
    settings = dataverse_settings(environment)
    context = AuditContext(api, settings.ordered_opportunity, settings.invoice_owner)
    ids = list(won_since(api, since))
    findings = list(audit(progress(read_billing(api, ids), "Reading", len(ids)), context))
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
        }
        for each in findings
    ]
    say_table(
        _COLUMNS, [{**row, "problem": each.problem.text} for row, each in zip(rows, findings, strict=True)]
    )
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
