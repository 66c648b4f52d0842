"""An invoice as Dataverse's rows describe it, and whether its amounts add up.

What each column of a row becomes in the event is in test_invoice_created.py.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from shared.columns import ColumnType, ColumnValue
from shared.errors import DataverseUnavailable
from shared.invoice import (
    Amounts,
    Currency,
    Customer,
    Invoice,
    InvoiceOwner,
    Line,
    LineKind,
    OpportunityState,
    OrderedOpportunity,
    Owner,
    Product,
)
from shared.record import Record

GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
FORMATTED = "@OData.Community.Display.V1.FormattedValue"
TABLE = "@Microsoft.Dynamics.CRM.lookuplogicalname"
EURO = Currency(OTHER, "EUR", 2)
HEADER: dict[str, Any] = {
    "invoiceid": GUID,
    "_opportunityid_value": OTHER,
    "createdon": "2026-03-01T11:59:00Z",
}
BARE = Invoice(GUID, None, None, OTHER, None, None, None, None, datetime(2026, 3, 1, 11, 59, tzinfo=UTC))


def record(**columns: Any) -> Record:  # noqa: ANN401 - any column
    return Record(columns, "r-1")


def currency(places: int = 2) -> dict[str, object]:
    return {
        "_transactioncurrencyid_value": GUID,
        "transactioncurrencyid": {"isocurrencycode": "EUR", "currencyprecision": places},
    }


# ---------------------------------------------------------------------------------------------- the header


def test_what_the_opportunity_does_not_have_is_null_on_a_new_invoice() -> None:
    assert Invoice.of(record(**HEADER)) == BARE


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("invoiceid", "x"),
        ("invoiceid", None),
        ("_opportunityid_value", None),
        ("invoicenumber", 7),
        ("name", ["x"]),
        ("totalamount", "1250.4"),
        ("totalamount", float("nan")),
        ("createdon", None),
        ("duedate", "soon"),
        ("pricingerrorcode", "0"),
        ("_customerid_value", "x"),
        ("_transactioncurrencyid_value", None),
        ("transactioncurrencyid", {"isocurrencycode": "EUR"}),
        ("transactioncurrencyid", {"isocurrencycode": None, "currencyprecision": 2}),
        ("transactioncurrencyid", {"isocurrencycode": "", "currencyprecision": 2}),
        ("transactioncurrencyid", {"isocurrencycode": "EUR", "currencyprecision": -1}),
        ("transactioncurrencyid", {"isocurrencycode": "EUR", "currencyprecision": 11}),
    ],
)
def test_an_invoice_that_makes_no_sense_comes_from_another_server(column: str, value: object) -> None:
    row = {**HEADER, **currency(), column: value}
    with pytest.raises(
        DataverseUnavailable, match=rf"no usable ({column}|currencyprecision): another"
    ) as raised:
        Invoice.of(record(**row))
    assert raised.value.request_id == "r-1"


@pytest.mark.parametrize("places", [0, 10])
def test_a_currency_has_up_to_ten_decimal_places(places: int) -> None:
    assert Currency.of(record(**currency(places))) == Currency(GUID, "EUR", places)


@pytest.mark.parametrize(
    ("table", "account", "customer"),
    [
        ("account", {"accountnumber": "A-00042"}, Customer("account", GUID, "A-00042")),
        ("account", {"accountnumber": None}, Customer("account", GUID)),
        ("account", {}, Customer("account", GUID)),
        ("contact", None, Customer("contact", GUID)),
        (None, None, Customer("unknown", GUID)),
    ],
)
def test_the_customers_number_is_the_accounts(table: str | None, account: object, customer: Customer) -> None:
    row = record(_customerid_value=GUID, customerid_account=account, **{f"_customerid_value{TABLE}": table})
    assert Customer.of(row) == customer


@pytest.mark.parametrize(
    ("table", "owner"),
    [("systemuser", Owner("systemuser", GUID)), ("team", Owner("team", GUID)), ("queue", None), (None, None)],
)
def test_an_owner_is_a_user_or_a_team(table: str | None, owner: Owner | None) -> None:
    assert Owner.of(record(_ownerid_value=GUID, **{f"_ownerid_value{TABLE}": table})) == owner
    assert Owner.of(record(**{f"_ownerid_value{TABLE}": table})) is None


# ---------------------------------------------------------------------------------------------- lines

LINE: dict[str, Any] = {"invoicedetailid": GUID}


@pytest.mark.parametrize(
    ("columns", "description"),
    [
        ({"productdescription": "Installation", "productname": "x"}, "Installation"),
        ({"productdescription": "", "productname": "Installation"}, "Installation"),
        ({"productname": "Installation"}, "Installation"),
        ({}, None),
    ],
)
def test_a_write_in_has_a_description(columns: dict[str, Any], description: str | None) -> None:
    line = Line.of(record(**LINE, **columns))
    assert (line.product, line.description) == (None, description)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (None, Product(OTHER, None, "Coffee machine")),
        ({}, Product(OTHER, None, "Coffee machine")),
        ({"name": None, "productnumber": "CM"}, Product(OTHER, "CM", "Coffee machine")),
        ({"name": "Machine", "productnumber": None}, Product(OTHER, None, "Machine")),
    ],
)
def test_a_product_that_cannot_be_read_keeps_its_id(product: object, expected: Product) -> None:
    row = record(**LINE, _productid_value=OTHER, productid=product, productname="Coffee machine")
    assert Line.of(row).product == expected


def test_a_line_without_anything() -> None:
    assert Line.of(record(**LINE)) == Line(GUID, kind=None)


@pytest.mark.parametrize(
    ("code", "kind"), [(1, LineKind.PRODUCT), (5, LineKind.SERVICE), (6, None), (None, None)]
)
def test_the_kind_of_a_line(code: int | None, kind: LineKind | None) -> None:
    assert Line.of(record(**LINE, producttypecode=code)).kind is kind


def test_only_a_required_part_is_not_priced() -> None:
    assert [kind for kind in (*LineKind, None) if not Line(GUID, kind=kind).is_priced] == [
        LineKind.REQUIRED_PART
    ]


@pytest.mark.parametrize(
    "columns", [{}, {"invoicedetailid": "x"}, {**LINE, "quantity": "2"}, {**LINE, "tax": True}]
)
def test_a_line_that_makes_no_sense_comes_from_another_server(columns: dict[str, Any]) -> None:
    with pytest.raises(DataverseUnavailable, match="another server"):
        Line.of(record(**columns))


# ---------------------------------------------------------------------------------------------- do the amounts add up?


def line(amount: str | None, tax: str | None = None, kind: LineKind = LineKind.PRODUCT) -> Line:
    return Line(
        GUID, kind=kind, amount=Decimal(amount) if amount else None, tax=Decimal(tax) if tax else None
    )


def invoice_of(total: str | None, *lines: Line, currency: Currency | None = EURO, **amounts: str) -> Invoice:
    parts = Amounts(**{name: Decimal(amount) for name, amount in amounts.items()})
    amount = None if total is None else Decimal(total)
    return replace(BARE, total_amount=amount, currency=currency, amounts=parts, lines=lines)


LINES = (line("1130.50", "180.50"), line("143.03", "22.84"))
AMOUNTS: dict[str, Any] = {
    "lines_total": "1070.19",
    "discount_amount": "20.19",
    "total_before_freight": "1050.00",
    "freight": "15.00",
    "tax": "203.34",
}


def with_amounts(**changes: str) -> Invoice:
    return invoice_of("1268.34", *LINES, **{**AMOUNTS, **changes})


AGREE: dict[str, Invoice] = {
    "everything": with_amounts(),
    "without lines and amounts": invoice_of("0"),
    "a credit": invoice_of("-5", line("-5"), lines_total="-5", total_before_freight="-5"),
    "tax on the header only": invoice_of(
        "119", line("100"), lines_total="100", total_before_freight="100", tax="19"
    ),
    "a bundle whose required part has a price": invoice_of(
        "340",
        line("300", kind=LineKind.BUNDLE),
        line("180", kind=LineKind.REQUIRED_PART),
        line("40", kind=LineKind.OPTIONAL_PART),
        lines_total="340",
        total_before_freight="340",
    ),
    "half of a large amount": invoice_of(
        "5000", line("10000"), lines_total="10000", discount_percentage="50", total_before_freight="5000"
    ),
    "a percentage that is rounded up": invoice_of(
        "9.52", line("10.02"), lines_total="10.02", discount_percentage="5", total_before_freight="9.52"
    ),
    "a percentage that Dataverse rounds in another way": invoice_of(
        "9.53",
        line("10.03"),
        lines_total="10.03",
        discount_percentage="5",
        discount_amount="0.005",
        total_before_freight="9.53",
    ),
    "amounts that agree as they are published": invoice_of(
        "1.00", line("0.996"), lines_total="1.004", total_before_freight="1.001"
    ),
    "without a currency": invoice_of(
        "1.001", line("1.001"), currency=None, lines_total="1.001", total_before_freight="1.001"
    ),
}


@pytest.mark.parametrize("invoice", AGREE.values(), ids=AGREE.keys())
def test_totals_agree(invoice: Invoice) -> None:
    assert invoice.totals_agree


DISAGREE: dict[str, Invoice] = {
    "no total": invoice_of(None, *LINES, **AMOUNTS),
    "another total": invoice_of("1268.35", *LINES, **AMOUNTS),
    "a line missing": invoice_of("1268.34", LINES[0], **AMOUNTS),
    "another amount of a line": invoice_of("1268.34", line("1130.51", "180.50"), LINES[1], **AMOUNTS),
    "another tax of a line": invoice_of("1268.34", line("1130.50", "180.51"), LINES[1], **AMOUNTS),
    "another discount": with_amounts(discount_amount="20.21"),
    "no discount": with_amounts(discount_amount="0"),
    "another percentage": with_amounts(discount_percentage="1"),
    "no freight": with_amounts(freight="0"),
    "another tax": with_amounts(tax="203.33"),
    "nothing before freight": with_amounts(total_before_freight="0"),
    "a percentage without currency": invoice_of(
        "9.53",
        line("10.03"),
        currency=None,
        lines_total="10.03",
        discount_percentage="5",
        total_before_freight="9.53",
    ),
}


@pytest.mark.parametrize("invoice", DISAGREE.values(), ids=DISAGREE.keys())
def test_totals_disagree(invoice: Invoice) -> None:
    assert not invoice.totals_agree


def test_the_values_of_choices_are_golden() -> None:
    assert {each.name: each.value for each in OrderedOpportunity} == {"SKIP": "skip", "INVOICE": "invoice"}
    owners = {each.name: each.value for each in InvoiceOwner}
    assert owners == {"OPPORTUNITY": "opportunity", "APPLICATION_USER": "application-user"}
    states = {each.name: each.value for each in OpportunityState}
    assert states == {"OPEN": 0, "WON": 1, "LOST": 2}, "as in Dataverse"


def test_further_columns_belong_to_the_invoice() -> None:
    columns = {"new_fee": ColumnValue(ColumnType.TEXT, "x")}
    assert Invoice.of(record(**HEADER), columns=columns).columns == columns
