"""How an opportunity is billed according to Dataverse's records, for the audit and the history.

What counts as an invoice, an order or a win is defined once, in `shared.sales`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from shared.dataverse import Read
from shared.errors import RecordNotFound
from shared.invoice import Opportunity, OrderedOpportunity
from shared.sales import active, claim_read, latest_win, opportunity_read, orders_of, wins_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from operations.web_api import WebApi
    from shared.record import Record
    from shared.response import Response

# Opportunities in one request: with seven reads for each, well below the 1,000 operations that Dataverse takes.
_AT_ONCE = 100
_INVOICE_COLUMNS = (
    "invoiceid,invoicenumber,name,totalamount,createdon,statecode,pricingerrorcode,_ownerid_value,_createdby_value,"
    "_customerid_value,_opportunityid_value,_transactioncurrencyid_value"
)


class Assessment(Enum):
    """What is the case with an opportunity: a text, and what to do."""

    def __init__(self, text: str, advice: str) -> None:
        self.text = text
        self.advice = advice

    @property
    def code(self) -> str:
        """The stable word for scripts."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Billing:
    """What Dataverse holds of one opportunity that decides how it is billed.

    `orders`: all of its sales orders; `counting_orders`: those through which it is billed. `won_at`: when it was last
    won, None where no completed close says so.
    """

    opportunity_id: str
    opportunity: Opportunity
    row: Record
    claim: Record | None
    invoices: tuple[Record, ...]
    active_invoices: tuple[Record, ...]
    counting_orders: tuple[Record, ...]
    orders: tuple[Record, ...]
    closes: tuple[Record, ...]
    won_at: datetime | None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.row.text("name") or self.opportunity_id

    @property
    def customer(self) -> str | None:
        """The name of the customer, where Dataverse says it."""
        return self.row.label("_customerid_value")

    @property
    def closed_on(self) -> str:
        """The day on which it was closed, as people see it: it can be edited."""
        return self.row.text("actualclosedate") or ""

    @property
    def is_won_again(self) -> bool:
        """Whether we invoiced it before its latest win; then its invoice may be outdated."""
        return (
            self.claim is not None
            and bool(self.active_invoices)
            and self.won_at is not None
            and self.won_at > max(row.time("createdon") for row in self.active_invoices)
        )

    def differences(self, api: WebApi) -> list[str]:
        """Say in what its invoice differs from the opportunity; empty unless it was won again since."""
        if not self.is_won_again:
            return []
        # Its totals are calculated when it is retrieved by itself.
        return self.opportunity.differences(api.invoice(self.active_invoices[0].guid("invoiceid")))

    def is_billed_by_order(self, ordered: OrderedOpportunity) -> bool:
        """Whether it is billed through a sales order, so that it gets no invoice of its own."""
        return bool(self.counting_orders) and ordered is OrderedOpportunity.SKIP


def read_billing(api: WebApi, opportunity_ids: Iterable[str]) -> Iterator[Billing]:
    """Read opportunities with all that decides how they are billed; one that does not exist is left out."""
    ids = list(opportunity_ids)
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        responses = api.batch([read for each in some for read in _reads(each)])
        for index, opportunity_id in enumerate(some):
            billing = _billing(opportunity_id, responses[index * _READS : (index + 1) * _READS])
            if billing is not None:
                yield billing


def order_number(row: Record) -> str:
    """Return the number of a sales order, or its id where it has none."""
    return row.text("ordernumber") or row.guid("salesorderid")


def has_pricing_error(row: Record) -> bool:
    """Whether Dataverse could not calculate the prices of an invoice."""
    return bool(row.optional_integer("pricingerrorcode"))


def invoice_number(row: Record) -> str:
    """Return the number of an invoice, or its id where it has none."""
    return row.text("invoicenumber") or row.guid("invoiceid")


_READS = 7


def _reads(opportunity_id: str) -> list[Read]:
    of_it = f"$filter=_opportunityid_value eq {opportunity_id}"
    return [
        _with_columns(opportunity_read(opportunity_id), "name,actualclosedate,createdon"),
        _with_columns(claim_read(opportunity_id), "createdon"),
        Read(f"invoices?$select={_INVOICE_COLUMNS}&{of_it}&$orderby=createdon,invoiceid"),
        orders_of(opportunity_id),
        Read(f"salesorders?$select=salesorderid,ordernumber,name,statecode,createdon,modifiedon&{of_it}"),
        wins_of(opportunity_id),
        Read(
            "opportunitycloses?$select=createdon,statecode,opportunitystatecode,subject,actualrevenue"
            f"&{of_it}&$orderby=createdon"
        ),
    ]


def _with_columns(read: Read, columns: str) -> Read:
    """Return a read of the function with further columns, for people: its conditions stay the function's."""
    return Read(read.path.replace("$select=", f"$select={columns},", 1))


def _billing(opportunity_id: str, responses: Sequence[Response]) -> Billing | None:
    opportunity, claims, invoices, counting, orders, wins, closes = responses
    try:
        row = opportunity.record()
    except RecordNotFound:
        return None
    return Billing(
        opportunity_id,
        Opportunity.of(row),
        row,
        next(iter(claims.records()), None),
        tuple(invoices.records()),
        tuple(active(invoices)),
        tuple(counting.records()),
        tuple(orders.records()),
        tuple(closes.records()),
        latest_win(wins),
    )
