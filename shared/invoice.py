"""The domain's types: opportunity, invoice, lines, customer, currency; each reads itself from a row of Dataverse.

`invoicing.py` decides with them, `invoice_created.py` writes an invoice as an event.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime

    from shared.columns import ColumnValue
    from shared.record import Record

_MAX_DECIMAL_PLACES: Final = 10
_ARITHMETIC: Final = Context(rounding=ROUND_HALF_UP)
_ZERO: Final = Decimal(0)


class OrderedOpportunity(Enum):
    """What to do with a won opportunity that has a sales order."""

    SKIP = "skip"
    INVOICE = "invoice"


class InvoiceOwner(Enum):
    """Who owns an invoice that the function generates."""

    OPPORTUNITY = "opportunity"
    APPLICATION_USER = "application-user"


class OpportunityState(IntEnum):
    """`statecode` of an opportunity. Never `statuscode`: won reasons can be customised."""

    OPEN = 0
    WON = 1
    LOST = 2


@dataclass(frozen=True)
class Customer:
    """Whom the invoice is for: `kind` is the table's logical name, account or contact; `id` a GUID.

    `number` is an account's; the table of contacts has no number.
    """

    kind: str
    id: str
    number: str | None = None

    @classmethod
    def of(cls, row: Record) -> Customer | None:
        """Read the customer of an opportunity or an invoice."""
        customer_id = row.optional_guid("_customerid_value")
        if customer_id is None:
            return None
        account = row.expanded("customerid_account")
        number = account.text("accountnumber") if account else None
        return cls(row.lookup_table("_customerid_value") or "unknown", customer_id, number)


@dataclass(frozen=True)
class Owner:
    """Who owns a row: `table` is systemuser or team."""

    table: str
    id: str

    @classmethod
    def of(cls, row: Record) -> Owner | None:
        """Read the owner of a row; None where Dataverse does not say of which table it is."""
        owner_id, table = row.optional_guid("_ownerid_value"), row.lookup_table("_ownerid_value")
        return cls(table, owner_id) if owner_id and table in ("systemuser", "team") else None


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

    def rounded(self, amount: Decimal) -> Decimal:
        """Return an amount as it is published: rounded half up to the precision."""
        return amount.quantize(Decimal(1).scaleb(-self.precision), context=_ARITHMETIC)


class LineKind(IntEnum):
    """`producttypecode` of a line."""

    PRODUCT = 1
    BUNDLE = 2
    REQUIRED_PART = 3
    OPTIONAL_PART = 4
    SERVICE = 5

    @classmethod
    def of(cls, code: int | None) -> LineKind | None:
        """Return the kind of a code, None for a code that Microsoft has not documented."""
        return next((kind for kind in cls if kind == code), None)


@dataclass(frozen=True)
class Product:
    """A product that a line is for."""

    id: str
    number: str | None
    name: str | None

    @classmethod
    def of(cls, row: Record) -> Product | None:
        """Read the product of a line; None for a write-in."""
        product_id, product = row.optional_guid("_productid_value"), row.expanded("productid")
        if product_id is None:
            return None
        if product is None:
            # The identity may not read products.
            return cls(product_id, None, row.text("productname"))
        return cls(product_id, product.text("productnumber"), product.text("name") or row.text("productname"))


@dataclass(frozen=True)
class Line:
    """A line of an invoice, as Dataverse stores it.

    `description` is a write-in's, which has no product. `manual_discount` is per line, or per unit where the
    organization calculates so. `amount` includes `tax`. `parent_id` is the line of the bundle that this line is a part
    of.
    """

    id: str
    position: int | None = None
    kind: LineKind | None = LineKind.PRODUCT
    parent_id: str | None = None
    product: Product | None = None
    description: str | None = None
    quantity: Decimal | None = None
    unit: str | None = None
    price_per_unit: Decimal | None = None
    volume_discount_per_unit: Decimal | None = None
    manual_discount: Decimal | None = None
    base_amount: Decimal | None = None
    tax: Decimal | None = None
    amount: Decimal | None = None

    @property
    def is_priced(self) -> bool:
        """Whether the line counts in sums: the price of a required part is in the line of its bundle."""
        return self.kind is not LineKind.REQUIRED_PART

    @classmethod
    def of(cls, row: Record) -> Line:
        """Read a line; raises DataverseUnavailable for a row that is not one."""
        product, unit = Product.of(row), row.expanded("uomid")
        return cls(
            id=row.guid("invoicedetailid"),
            position=row.optional_integer("lineitemnumber"),
            kind=LineKind.of(row.optional_integer("producttypecode")),
            parent_id=row.optional_guid("_parentbundleidref_value"),
            product=product,
            description=None if product else row.text("productdescription") or row.text("productname"),
            quantity=row.amount("quantity"),
            unit=unit.text("name") if unit else None,
            price_per_unit=row.amount("priceperunit"),
            volume_discount_per_unit=row.amount("volumediscountamount"),
            manual_discount=row.amount("manualdiscountamount"),
            base_amount=row.amount("baseamount"),
            tax=row.amount("tax"),
            amount=row.amount("extendedamount"),
        )


@dataclass(frozen=True)
class Amounts:
    """The parts of an invoice's total, as Dataverse stores them.

    `lines_total` contains the discounts on lines and no tax; the discounts on the whole invoice, an amount and a
    percentage, lead from it to `total_before_freight`.
    """

    lines_total: Decimal | None = None
    line_discounts: Decimal | None = None
    discount_amount: Decimal | None = None
    discount_percentage: Decimal | None = None
    total_discounts: Decimal | None = None
    total_before_freight: Decimal | None = None
    freight: Decimal | None = None
    tax: Decimal | None = None

    @classmethod
    def of(cls, row: Record) -> Amounts:
        """Read the amounts of an invoice."""
        return cls(
            lines_total=row.amount("totallineitemamount"),
            line_discounts=row.amount("totallineitemdiscountamount"),
            discount_amount=row.amount("discountamount"),
            discount_percentage=row.amount("discountpercentage"),
            total_discounts=row.amount("totaldiscountamount"),
            total_before_freight=row.amount("totalamountlessfreight"),
            freight=row.amount("freightamount"),
            tax=row.amount("totaltax"),
        )


@dataclass(frozen=True)
class PaymentTerms:
    """When an invoice is to be paid: the value of a choice that organizations can extend, and its label."""

    code: int
    label: str | None

    @classmethod
    def of(cls, row: Record) -> PaymentTerms | None:
        """Read the payment terms of an invoice."""
        code = row.optional_integer("paymenttermscode")
        return None if code is None else cls(code, row.label("paymenttermscode"))


@dataclass(frozen=True)
class Invoice:
    """An invoice with the values that Dataverse stores.

    `pricing_error_code` is None or 0 where there is no pricing error. `columns` are further ones by logical name, None
    where none are configured. Raises ValueError for ids of invoice and opportunity that are not GUIDs in lower case
    with hyphens (other ids would derive from them), for a `created_on` without a zone, and for an amount that is not a
    number.
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
    order_id: str | None = None
    due_date: date | None = None
    payment_terms: PaymentTerms | None = None
    amounts: Amounts = Amounts()
    lines: tuple[Line, ...] = ()
    columns: Mapping[str, ColumnValue] | None = None

    def __post_init__(self) -> None:
        for guid in (self.id, self.opportunity_id):
            if str(uuid.UUID(guid)) != guid:
                raise ValueError("An id is not a GUID in lower case with hyphens.")
        if self.created_on.tzinfo is None:
            raise ValueError("created_on has no zone.")
        if self.total_amount is not None and not self.total_amount.is_finite():
            raise ValueError("total_amount is not a number.")

    @classmethod
    def of(
        cls, row: Record, lines: Iterable[Record] = (), columns: Mapping[str, ColumnValue] | None = None
    ) -> Invoice:
        """Read an invoice that was retrieved by its id; raises DataverseUnavailable for a row that is not one."""
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
            order_id=row.optional_guid("_salesorderid_value"),
            due_date=row.date("duedate"),
            payment_terms=PaymentTerms.of(row),
            amounts=Amounts.of(row),
            lines=tuple(map(Line.of, lines)),
            columns=columns,
        )

    @property
    def totals_agree(self) -> bool:
        """Whether lines, discounts, freight and tax add up to the total, in the amounts that are published.

        The order in which Dataverse rounds a percentage is not documented, so the discount on the whole invoice may
        differ by one smallest unit of the currency.
        """
        if self.total_amount is None:
            return False
        amounts, money = self.amounts, self._money
        priced = sum((money(line.amount) - money(line.tax) for line in self.lines if line.is_priced), _ZERO)
        lines_total, before_freight = money(amounts.lines_total), money(amounts.total_before_freight)
        percentage = money(lines_total * (amounts.discount_percentage or _ZERO) / 100)
        discount = money(amounts.discount_amount) + percentage
        smallest = Decimal(1).scaleb(-self.currency.precision) if self.currency else _ZERO
        return (
            priced == lines_total
            and abs(lines_total - discount - before_freight) <= smallest
            and before_freight + money(amounts.freight) + money(amounts.tax) == money(self.total_amount)
        )

    def _money(self, amount: Decimal | None) -> Decimal:
        amount = amount or _ZERO
        return self.currency.rounded(amount) if self.currency else amount


@dataclass(frozen=True)
class Opportunity:
    """What decides whether an opportunity is invoiced, and whether its invoice is up to date."""

    state: int
    total_amount: Decimal | None
    currency: Currency | None
    customer: Customer | None
    owner: Owner | None

    @classmethod
    def of(cls, row: Record) -> Opportunity:
        """Read an opportunity; raises DataverseUnavailable for a row that is not one."""
        return cls(
            row.integer("statecode"),
            row.amount("totalamount"),
            Currency.of(row),
            Customer.of(row),
            Owner.of(row),
        )

    def differences(self, invoice: Invoice) -> list[str]:
        """Say in what the invoice differs; a value that is missing on either side is not compared."""
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
