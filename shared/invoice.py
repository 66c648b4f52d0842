"""The domain's types: opportunity, invoice, customer, currency; each reads itself from a row of Dataverse.

`invoicing.py` decides with them, `invoice_created.py` writes an invoice as an event.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from shared.record import Record

_MAX_DECIMAL_PLACES: Final = 10


class OrderedOpportunity(Enum):
    """What to do with a won opportunity that has a sales order."""

    SKIP = "skip"
    INVOICE = "invoice"


class OpportunityState(IntEnum):
    """`statecode` of an opportunity. Never `statuscode`: won reasons can be customised."""

    OPEN = 0
    WON = 1
    LOST = 2


@dataclass(frozen=True)
class Customer:
    """Whom the invoice is for: `kind` is the table's logical name, account or contact; `id` a GUID."""

    kind: str
    id: str

    @classmethod
    def of(cls, row: Record) -> Customer | None:
        """Read the customer of an opportunity or an invoice."""
        customer_id = row.optional_guid("_customerid_value")
        return cls(row.lookup_table("_customerid_value") or "unknown", customer_id) if customer_id else None


@dataclass(frozen=True)
class Currency:
    """A currency: `iso_code` of ISO 4217, `precision` its decimal places in Dataverse."""

    id: str
    iso_code: str
    precision: int

    @classmethod
    def of(cls, row: Record) -> Currency | None:
        """Read the currency that a row was expanded with."""
        currency = row.expanded("transactioncurrencyid")
        if currency is None:
            return None
        iso_code, precision = currency.text("isocurrencycode"), currency.integer("currencyprecision")
        # Without them an amount has no meaning.
        if not iso_code or not 0 <= precision <= _MAX_DECIMAL_PLACES:
            raise row.unexpected("transactioncurrencyid")
        return cls(row.guid("_transactioncurrencyid_value"), iso_code, precision)


@dataclass(frozen=True)
class Invoice:
    """An invoice as Dataverse has it.

    `pricing_error_code` is None or 0 where there is no pricing error. Raises ValueError for ids of invoice and
    opportunity that are not GUIDs in lower case with hyphens (other ids would derive from them), for a
    `created_on` without a zone, and for an amount that is not a number.
    """

    id: str
    number: str | None
    name: str | None
    opportunity_id: str
    customer: Customer | None
    total_amount: Decimal | None
    currency: Currency | None
    pricing_error_code: int | None
    created_on: datetime

    def __post_init__(self) -> None:
        for guid in (self.id, self.opportunity_id):
            if str(uuid.UUID(guid)) != guid:
                raise ValueError("An id is not a GUID in lower case with hyphens.")
        if self.created_on.tzinfo is None:
            raise ValueError("created_on has no zone.")
        if self.total_amount is not None and not self.total_amount.is_finite():
            raise ValueError("total_amount is not a number.")

    @classmethod
    def of(cls, row: Record) -> Invoice:
        """Read an invoice that was retrieved by itself; raises DataverseUnavailable for a row that is not one."""
        return cls(
            id=row.guid("invoiceid"),
            number=row.text("invoicenumber"),
            name=row.text("name"),
            opportunity_id=row.guid("_opportunityid_value"),
            customer=Customer.of(row),
            total_amount=row.amount("totalamount"),
            currency=Currency.of(row),
            pricing_error_code=row.optional_integer("pricingerrorcode"),
            created_on=row.time("createdon"),
        )


@dataclass(frozen=True)
class Opportunity:
    """What decides whether an opportunity is invoiced, and whether its invoice is up to date."""

    state: int
    total_amount: Decimal | None
    currency: Currency | None
    customer: Customer | None

    @classmethod
    def of(cls, row: Record) -> Opportunity:
        """Read an opportunity; raises DataverseUnavailable for a row that is not one."""
        return cls(row.integer("statecode"), row.amount("totalamount"), Currency.of(row), Customer.of(row))

    def differences(self, invoice: Invoice) -> list[str]:
        """Say in what the invoice differs; a value that is missing on either side proves nothing."""
        found = []
        if self.total_amount is not None and invoice.total_amount is not None:
            # To the currency's precision; without a currency on one side, only the numbers can be compared.
            currency = self.currency if invoice.currency else None
            mine = _money(self.total_amount, currency)
            its = _money(invoice.total_amount, invoice.currency if currency else None)
            if mine != its:
                found.append(f"the invoice amounts to {its}, the opportunity to {mine}")
        elif self.currency and invoice.currency and self.currency.id != invoice.currency.id:
            found.append("the currency is another one")
        if self.customer and invoice.customer and self.customer.id != invoice.customer.id:
            found.append("the customer is another one")
        return found


def _money(amount: Decimal, currency: Currency | None) -> str:
    return f"{amount:.{currency.precision}f} {currency.iso_code}" if currency else f"{amount.normalize():f}"
