"""What Dataverse holds of an opportunity once a history is at rest: its state, amounts, owner, orders and invoices.

Read from the database, past privileges and past the deployed code. What it should be is left to `checker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from sandbox.dataverse import Database

_WON, _CANCELED_ORDER, _CANCELED_INVOICE, _COMPLETED = 1, 2, 3, 1


@dataclass(frozen=True)
class Terms:
    """What is billed to whom: ids of customer and currency, and the total."""

    total: Decimal | None
    currency: str | None
    customer: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Terms:
        """Read the terms of an opportunity or an invoice."""
        return cls(row["totalamount"], row["transactioncurrencyid"], row["customerid"])

    def differ(self, other: Terms) -> bool:
        """Whether any of them differs; what one side does not have proves nothing."""
        pairs = ((self.total, other.total), (self.currency, other.currency), (self.customer, other.customer))
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)


@dataclass(frozen=True)
class InvoiceState:
    """An invoice that is not canceled; `created_on` is the text of the column, to the second."""

    id: str
    terms: Terms
    owner: str
    created_on: str
    created_by: str


@dataclass(frozen=True)
class OpportunityState:
    """An opportunity. `won_on`: when its latest completed close was created; `invoices`: the oldest first."""

    is_won: bool
    is_ordered: bool
    is_claimed: bool
    terms: Terms
    owner: str
    won_on: str | None
    invoices: tuple[InvoiceState, ...]

    @property
    def is_outdated(self) -> bool | None:
        """Whether we invoiced it before its latest win, and the terms differ; None if the two were in one second."""
        if not (self.is_won and self.is_claimed and self.invoices and self.won_on):
            return False
        newest = max(invoice.created_on for invoice in self.invoices)
        if not self.invoices[0].terms.differ(self.terms) or self.won_on < newest:
            return False
        return None if self.won_on == newest else True


def read_opportunities(database: Database, function_user: str) -> dict[str, OpportunityState]:
    """Return every opportunity by its id."""
    with database.reading() as transaction:
        rows = transaction.rows(TABLES["opportunity"])
        tables = {
            name: _by(transaction.rows(TABLES[name]), column)
            for name, column in (
                ("invoice", "opportunityid"),
                ("salesorder", "opportunityid"),
                ("opportunityclose", "opportunityid"),
                ("annotation", "objectid"),
            )
        }
    return {row["opportunityid"]: _state(row, tables, function_user) for row in rows}


def _by(rows: list[dict[str, Any]], column: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row[column]), []).append(row)
    return found


def _state(
    row: dict[str, Any], tables: Mapping[str, Mapping[str, list[dict[str, Any]]]], function_user: str
) -> OpportunityState:
    of = {name: rows.get(row["opportunityid"], []) for name, rows in tables.items()}
    closes = [close["createdon"] for close in of["opportunityclose"] if close["statecode"] == _COMPLETED]
    invoices = [
        InvoiceState(each["invoiceid"], Terms.of(each), each["ownerid"], each["createdon"], each["createdby"])
        for each in sorted(of["invoice"], key=lambda each: (each["createdon"], each["invoiceid"]))
        if each["statecode"] != _CANCELED_INVOICE
    ]
    return OpportunityState(
        row["statecode"] == _WON,
        any(order["statecode"] != _CANCELED_ORDER for order in of["salesorder"]),
        any(note["createdby"] == function_user for note in of["annotation"]),
        Terms.of(row),
        row["ownerid"],
        max(closes, default=None),
        tuple(invoices),
    )
