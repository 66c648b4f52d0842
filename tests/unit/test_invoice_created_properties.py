"""The event of any invoice that Dataverse returns keeps the contract; other rows are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.columns import Columns
from shared.errors import DataverseUnavailable
from shared.invoice import Invoice
from shared.invoice_created import MAX_BODY, InvoiceCreated, invoice_created
from shared.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

guids = st.uuids().map(str)
texts = st.none() | st.text(st.characters(), max_size=40)
amounts = st.none() | st.decimals(
    min_value=-(10**12), max_value=10**12, places=4, allow_nan=False, allow_infinity=False
)
small = st.none() | st.integers(0, 10**6)
currencies = st.none() | st.fixed_dictionaries(
    {"isocurrencycode": st.sampled_from(["EUR", "JPY", "KWD"]), "currencyprecision": st.integers(0, 4)}
)
headers = st.fixed_dictionaries(
    {
        "invoiceid": guids,
        "_opportunityid_value": guids,
        "createdon": st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
        "_transactioncurrencyid_value": guids,
        "transactioncurrencyid": currencies,
    },
    optional={
        "invoicenumber": texts,
        "name": texts,
        "pricingerrorcode": small,
        "duedate": st.none() | st.dates().map(str),
        "paymenttermscode": small,
        "paymenttermscode@OData.Community.Display.V1.FormattedValue": texts,
        "_customerid_value": st.none() | guids,
        "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": st.sampled_from(["account", "contact"]),
        "customerid_account": st.none() | st.fixed_dictionaries({"accountnumber": texts}),
        "_salesorderid_value": st.none() | guids,
        **dict.fromkeys(
            [
                *("totalamount", "totallineitemamount", "totallineitemdiscountamount", "discountamount"),
                *("discountpercentage", "totaldiscountamount", "totalamountlessfreight", "freightamount"),
                "totaltax",
            ],
            amounts,
        ),
    },
)
lines = st.fixed_dictionaries(
    {"invoicedetailid": guids},
    optional={
        "lineitemnumber": small,
        "producttypecode": st.none() | st.integers(0, 7),
        "_parentbundleidref_value": st.none() | guids,
        "_productid_value": st.none() | guids,
        "productid": st.none() | st.fixed_dictionaries({"productnumber": texts, "name": texts}),
        "uomid": st.none() | st.fixed_dictionaries({"name": texts}),
        "productname": texts,
        "productdescription": texts,
        **dict.fromkeys(
            [
                *("quantity", "priceperunit", "volumediscountamount", "manualdiscountamount"),
                *("baseamount", "tax", "extendedamount"),
            ],
            amounts,
        ),
    },
)
types = st.sampled_from(
    ["Money", "Decimal", "Integer", "Boolean", "Picklist", "Lookup", "DateTime", "String", "Virtual"]
)
# As the JSON parser returns numbers: what no column can hold is NaN, a float.
numbers = st.integers() | st.decimals(allow_nan=False) | st.just(float("nan"))
values = st.none() | st.booleans() | numbers | st.text(max_size=20) | guids
columns = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.tuples(types, values, texts), max_size=5
)


def invoice_of(
    header: dict[str, Any], some: list[dict[str, Any]], further: dict[str, tuple[str, Any, Any]]
) -> Invoice:
    described = Columns.of(
        further,
        [Record({"LogicalName": name, "AttributeType": kind}, "r") for name, (kind, *_) in further.items()],
    )
    row: dict[str, Any] = {}
    for name, (_, value, label) in further.items():
        row |= {name: value, f"_{name}_value": value}
        row |= {f"{name}@OData.Community.Display.V1.FormattedValue": label}
    return Invoice.of(
        Record(header, "r"), [Record(line, "r") for line in some], described.values(Record(row, "r"))
    )


Published = Callable[[Invoice], InvoiceCreated]


@pytest.fixture(scope="session")
def published(published_event_checker: Callable[[bytes, Mapping[str, object], str], None]) -> Published:
    """Return a function that makes the event of an invoice, and checks that it keeps the contract."""

    def publish(invoice: Invoice) -> InvoiceCreated:
        message = invoice_created(invoice, dataverse_url="https://contoso.crm4.dynamics.com")
        published_event_checker(message.body, message.application_properties, message.content_type)
        return message

    return publish


@given(headers, st.lists(lines, max_size=4), columns)
def test_every_event_keeps_the_contract(
    published: Published,
    header: dict[str, Any],
    some: list[dict[str, Any]],
    further: dict[str, tuple[str, Any, Any]],
) -> None:
    assert len(published(invoice_of(header, some, further)).body) <= MAX_BODY


@given(headers, st.lists(lines, max_size=4))
def test_totals_agree_exactly_if_the_published_amounts_add_up(
    published: Published, header: dict[str, Any], some: list[dict[str, Any]]
) -> None:
    """A consumer that adds up the amounts gets the same result, with the tolerance for a percentage."""
    data = json.loads(published(invoice_of(header, some, {})).body)["data"]

    def number(text: str | None) -> Decimal:
        return Decimal(text or 0)

    total, parts = data["totalAmount"], data["amounts"]
    priced = sum(number(line["amount"]) - number(line["tax"]) for line in data["lines"] if line["isPriced"])
    before_freight = number(parts["totalBeforeFreight"])
    exact = priced == number(parts["linesTotal"])
    exact &= before_freight + number(parts["freight"]) + number(parts["tax"]) == number(total)
    if data["totalsAgree"]:
        assert total is not None
        assert exact
    elif exact and total is not None:
        discount = number(parts["linesTotal"]) - before_freight
        entered = (
            number(parts["discountAmount"])
            + number(parts["linesTotal"]) * number(parts["discountPercentage"]) / 100
        )
        assert discount != entered


ANYTHING = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=10) | guids,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(headers, lines, st.data())
def test_a_row_with_anything_in_a_column_is_published_or_refused(
    published: Published, header: dict[str, Any], line: dict[str, Any], data: st.DataObject
) -> None:
    for row in (header, line):
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(ANYTHING)
    try:
        invoice = invoice_of(header, [line], {})
    except DataverseUnavailable:
        return
    published(invoice)
