from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest

from shared.columns import ColumnType, ColumnValue
from shared.invoice import Currency, Invoice, Line, LineKind
from shared.invoice_created import invoice_created
from shared.record import Record
from tests.unit.conftest import INVOICE, OPPORTUNITY, URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BARE = Invoice(INVOICE.id, None, None, OPPORTUNITY, None, None, None, None, INVOICE.created_on)


def event_of(invoice: Invoice, url: str = URL) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(invoice_created(invoice, dataverse_url=url).body))


@pytest.mark.parametrize(
    ("invoice_id", "event_id"),
    [
        ("0f8fad5b-d9cb-469f-a165-70867728950e", "4add2957-951d-534d-880e-d3509b8ad616"),
        ("ffffffff-ffff-4fff-bfff-ffffffffffff", "55a1a2cd-69e7-59e7-9d7f-a188fc07658b"),
    ],
)
def test_the_event_id_of_an_invoice_never_changes(invoice_id: str, event_id: str) -> None:
    """Golden vectors: the id is the message id too, and a contract with messages that are under way."""
    message = invoice_created(replace(INVOICE, id=invoice_id), dataverse_url=URL)
    assert (message.message_id, json.loads(message.body)["id"]) == (event_id, event_id), (
        "The id of an invoice's event has changed. After a deployment, an invoice whose event is on its way (in a "
        "retry, a replay, or the topic's duplicate detection of 7 days) would be published a second time under "
        "another id, and every consumer that deduplicates by id would act twice. Keep the derivation."
    )


def test_the_body_depends_on_the_invoice_alone() -> None:
    """An equal invoice has equal bytes for any win and trace, so that repetitions are recognised."""
    one = invoice_created(INVOICE, dataverse_url=URL, correlation_id="a", traceparent="00-1")
    other = invoice_created(replace(INVOICE), dataverse_url=URL, correlation_id="b", traceparent="00-2")
    assert one.body == other.body
    assert one.message_id == other.message_id


@pytest.mark.parametrize(
    "equal",
    [
        replace(INVOICE, total_amount=Decimal("1250.400")),
        replace(INVOICE, created_on=INVOICE.created_on.astimezone(timezone(timedelta(hours=-7)))),
    ],
    ids=["scale", "zone"],
)
def test_equal_invoices_have_equal_bytes_however_their_values_are_written(equal: Invoice) -> None:
    assert equal == INVOICE
    assert invoice_created(equal, dataverse_url=URL) == invoice_created(INVOICE, dataverse_url=URL)


def test_equal_amounts_without_currency_have_equal_bytes() -> None:
    bare = replace(INVOICE, currency=None, total_amount=Decimal("1E+2"))
    assert event_of(bare) == event_of(replace(bare, total_amount=Decimal("100.00")))


@pytest.mark.parametrize(
    ("amount", "precision", "text"),
    [
        ("1250.4", 2, "1250.40"),
        ("0.125", 2, "0.13"),
        ("-0.125", 2, "-0.13"),
        ("-0.001", 2, "0.00"),
        ("1E+6", 0, "1000000"),
        ("922337203685477.5807", 4, "922337203685477.5807"),
        ("0", 10, "0.0000000000"),
        ("1E-7", 10, "0.0000001000"),
        ("100.00", None, "100"),
        ("0.10", None, "0.1"),
        ("-0.0", None, "0"),
    ],
)
def test_amounts_are_plain_decimals_to_the_currencys_precision(
    amount: str, precision: int | None, text: str
) -> None:
    currency = None if precision is None else Currency(OPPORTUNITY, "XXX", precision)
    event = event_of(replace(INVOICE, total_amount=Decimal(amount), currency=currency))
    assert event["data"]["totalAmount"] == text


def test_what_dataverse_does_not_know_is_null() -> None:
    data = event_of(BARE)["data"]
    unknown = {name for name, value in data.items() if value is None}
    assert unknown == {
        *("invoiceNumber", "name", "customer", "totalAmount", "currency", "pricingErrorCode"),
        *("orderId", "dueDate", "paymentTerms"),
    }
    assert set(data["amounts"].values()) == {None}
    assert (data["lines"], data["lineCount"]) == ([], 0)
    assert (data["totalsAgree"], data["linesOmitted"]) == (False, False)
    assert "columns" not in data


def test_a_pricing_error_is_published() -> None:
    assert event_of(replace(INVOICE, pricing_error_code=6))["data"]["pricingErrorCode"] == 6
    assert event_of(INVOICE)["data"]["pricingErrorCode"] is None


def test_fractions_of_a_second_are_kept() -> None:
    late = replace(INVOICE, created_on=INVOICE.created_on.replace(microsecond=70_000))
    assert event_of(late)["time"] == "2026-03-01T11:59:00.070000Z"


def test_half_a_character_in_a_name_does_not_stop_the_event() -> None:
    event = event_of(replace(INVOICE, name="half \ud83d, whole \U0001f600"))
    assert event["data"]["name"] == "half �, whole 😀"


def test_the_message_carries_what_filters_and_traces_need() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    message = invoice_created(INVOICE, dataverse_url=URL, correlation_id="crm-77", traceparent=trace)
    assert message.content_type == "application/cloudevents+json; charset=utf-8"
    assert message.correlation_id == "crm-77"
    assert message.subject == f"opportunities/{OPPORTUNITY}/invoices/{INVOICE.id}"
    assert message.application_properties["traceparent"] == trace
    assert "traceparent" not in invoice_created(INVOICE, dataverse_url=URL).application_properties
    assert b"4bf92f3577b34da6a3ce929d0e0e4736" not in message.body


def test_the_link_opens_the_record() -> None:
    assert event_of(INVOICE)["data"]["link"] == (
        f"{URL}/main.aspx?pagetype=entityrecord&etn=invoice&id={INVOICE.id}"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": INVOICE.id.upper()},
        {"id": "{" + INVOICE.id + "}"},
        {"opportunity_id": "1"},
        {"created_on": INVOICE.created_on.replace(tzinfo=None)},
        {"total_amount": Decimal("NaN")},
        {"total_amount": Decimal("Infinity")},
    ],
)
def test_an_invoice_is_built_valid_or_not_at_all(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"GUID|UUID|zone|number"):
        replace(INVOICE, **wrong)


# ---------------------------------------------------------------------------------------------- what a ledger needs

LINE = "bda74fb2-197f-54b5-b528-3dfe6d7eeebf"
PART = "d43524e7-a81c-59ed-8fac-3c0de9d991d3"


def test_the_header_has_what_a_ledger_needs() -> None:
    row = {
        "invoiceid": INVOICE.id,
        "_opportunityid_value": OPPORTUNITY,
        "createdon": "2026-03-01T11:59:00Z",
        "_transactioncurrencyid_value": PART,
        "transactioncurrencyid": {"isocurrencycode": "EUR", "currencyprecision": 2},
        "_customerid_value": LINE.upper(),
        "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "account",
        "customerid_account": {"accountnumber": "A-00042"},
        "_salesorderid_value": PART.upper(),
        "duedate": "2026-03-31",
        "paymenttermscode": 2,
        "paymenttermscode@OData.Community.Display.V1.FormattedValue": "2% 10, Net 30",
        "totallineitemamount": Decimal("100.5"),
        "totallineitemdiscountamount": Decimal("1.505"),
        "discountamount": 2,
        "discountpercentage": Decimal("2.50"),
        "totaldiscountamount": Decimal("3.5"),
        "totalamountlessfreight": Decimal(96),
        "freightamount": 7,
        "totaltax": Decimal("19.1"),
    }
    data = event_of(Invoice.of(Record(row, "r-1")))["data"]
    assert data["customer"] == {"kind": "account", "id": LINE, "number": "A-00042"}
    assert (data["orderId"], data["dueDate"]) == (PART, "2026-03-31")
    assert data["paymentTerms"] == {"code": 2, "label": "2% 10, Net 30"}
    assert data["amounts"] == {
        "linesTotal": "100.50",
        "lineDiscounts": "1.51",
        "discountAmount": "2.00",
        "discountPercentage": "2.5",
        "totalDiscounts": "3.50",
        "totalBeforeFreight": "96.00",
        "freight": "7.00",
        "tax": "19.10",
    }


def test_money_has_the_currencys_precision_and_prices_their_own() -> None:
    row = {
        "invoicedetailid": LINE.upper(),
        "lineitemnumber": 3,
        "producttypecode": 4,
        "_parentbundleidref_value": INVOICE.id.upper(),
        "_productid_value": PART,
        "productid": {"productnumber": "CM-200", "name": "Coffee machine"},
        "productname": "Coffee machine CM-200",
        "productdescription": "not a write-in's",
        "quantity": Decimal("1.50000"),
        "uomid": {"name": "Piece"},
        "priceperunit": Decimal("80.1250"),
        "volumediscountamount": Decimal("0.0010"),
        "manualdiscountamount": Decimal("0.005"),
        "baseamount": 120,
        "tax": Decimal("22.8"),
        "extendedamount": Decimal("142.79"),
    }
    bundle = Line(INVOICE.id, kind=LineKind.BUNDLE)
    _, written = event_of(replace(INVOICE, lines=(bundle, Line.of(Record(row, "r-1")))))["data"]["lines"]
    assert written == {
        "id": LINE,
        "position": 3,
        "kind": "optionalPart",
        "isPriced": True,
        "bundleLineId": INVOICE.id,
        "product": {"id": PART, "number": "CM-200", "name": "Coffee machine"},
        "description": None,
        "quantity": "1.5",
        "unit": "Piece",
        "pricePerUnit": "80.125",
        "volumeDiscountPerUnit": "0.001",
        "manualDiscount": "0.01",
        "baseAmount": "120.00",
        "tax": "22.80",
        "amount": "142.79",
    }


def test_a_part_names_the_line_of_its_bundle_and_only_that() -> None:
    lines = (
        Line(LINE, kind=LineKind.BUNDLE),
        Line(PART, kind=LineKind.REQUIRED_PART, parent_id=LINE),
        Line(str(uuid.UUID(int=1)), kind=LineKind.OPTIONAL_PART, parent_id=LINE),
        Line(str(uuid.UUID(int=2)), kind=LineKind.SERVICE),
        Line(str(uuid.UUID(int=3)), kind=LineKind.PRODUCT),
        Line(INVOICE.id, kind=None, parent_id=OPPORTUNITY, description="a bundle elsewhere"),
    )
    written = event_of(replace(INVOICE, lines=lines))["data"]["lines"]
    assert [(line["kind"], line["isPriced"], line["bundleLineId"]) for line in written] == [
        ("bundle", True, None),
        ("requiredPart", False, LINE),
        ("optionalPart", True, LINE),
        ("service", True, None),
        ("product", True, None),
        (None, True, None),
    ]


# ---------------------------------------------------------------------------------------------- further columns


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (ColumnValue(ColumnType.TEXT, "x"), {"type": "text", "value": "x"}),
        (ColumnValue(ColumnType.NUMBER, Decimal("12.50")), {"type": "number", "value": "12.5"}),
        (ColumnValue(ColumnType.NUMBER, Decimal(3)), {"type": "number", "value": "3"}),
        (ColumnValue(ColumnType.MONEY, Decimal("12.5")), {"type": "money", "value": "12.50"}),
        (ColumnValue(ColumnType.MONEY, None), {"type": "money", "value": None}),
        (
            ColumnValue(ColumnType.BOOLEAN, value=False, label="No"),
            {"type": "boolean", "value": False, "label": "No"},
        ),
        (ColumnValue(ColumnType.CHOICE, 3, label="Web"), {"type": "choice", "value": 3, "label": "Web"}),
        (
            ColumnValue(ColumnType.CHOICES, (3, 1), label="C; A"),
            {"type": "choices", "value": [3, 1], "label": "C; A"},
        ),
        (ColumnValue(ColumnType.DATE, "2026-03-01"), {"type": "date", "value": "2026-03-01"}),
        (
            ColumnValue(ColumnType.DATE_TIME, datetime(2026, 3, 1, 11, tzinfo=UTC)),
            {"type": "dateTime", "value": "2026-03-01T11:00:00Z"},
        ),
        (
            ColumnValue(ColumnType.LOOKUP, LINE, table="new_project", name="Bridge"),
            {"type": "lookup", "value": LINE, "table": "new_project", "name": "Bridge"},
        ),
        (ColumnValue(ColumnType.ID, LINE), {"type": "id", "value": LINE}),
        (ColumnValue.unknown("Why."), {"type": "unknown", "value": None, "error": "Why."}),
    ],
)
def test_further_columns_are_typed(value: ColumnValue, written: dict[str, Any]) -> None:
    assert event_of(replace(INVOICE, columns={"new_a": value}))["data"]["columns"] == {"new_a": written}


def test_money_without_a_currency_is_as_short_as_it_is() -> None:
    bare = replace(INVOICE, currency=None, columns={"new_a": ColumnValue(ColumnType.MONEY, Decimal("12.50"))})
    assert event_of(bare)["data"]["columns"]["new_a"]["value"] == "12.5"


# ---------------------------------------------------------------------------------------------- too large


# A message of the Standard tier, less what properties and framing may take.
LARGEST = (256 - 16) * 1024


def with_lines(count: int) -> Invoice:
    lines = tuple(
        Line(f"{number:08x}-197f-54b5-b528-3dfe6d7eeebf", position=number, description="Ä" * 100)
        for number in range(count)
    )
    return replace(INVOICE, lines=lines)


def filled(invoice: Invoice) -> Invoice:
    """Return the invoice with a name so long that the event has exactly the largest size."""
    room = LARGEST - len(invoice_created(invoice, dataverse_url=URL).body)
    exact = replace(invoice, name=f"{invoice.name}{'x' * room}")
    assert len(invoice_created(exact, dataverse_url=URL).body) == LARGEST
    return exact


def test_an_event_that_is_too_large_has_no_lines_and_says_so(
    published_event_checker: Callable[[bytes, Mapping[str, object], str], None],
) -> None:
    message = invoice_created(with_lines(2000), dataverse_url=URL)
    published_event_checker(message.body, message.application_properties, message.content_type)
    data = json.loads(message.body)["data"]
    assert (data["lines"], data["linesOmitted"], data["lineCount"]) == (None, True, 2000)
    assert data["totalAmount"] == "1250.40"
    assert len(message.body) < 10_000


def test_the_bound_is_one_of_bytes_and_inclusive() -> None:
    """As many lines as fit without any white space, to the byte: one more byte, and they are left out."""
    fewest = next(count for count in range(400, 800) if event_of(with_lines(count))["data"]["linesOmitted"])
    most = with_lines(fewest - 1)
    exact = filled(most)
    body = invoice_created(exact, dataverse_url=URL).body
    assert body.decode() == json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":"))
    assert not event_of(exact)["data"]["linesOmitted"]
    assert event_of(replace(exact, name=f"{exact.name}x"))["data"]["linesOmitted"]
    with_column = filled(replace(INVOICE, columns={"new_a": ColumnValue(ColumnType.TEXT, "a")}))
    assert event_of(with_column)["data"]["columns"]["new_a"]["value"] == "a"


def test_columns_that_are_too_long_are_left_out_after_the_lines_the_longest_first() -> None:
    long = {
        "new_a": ColumnValue(ColumnType.TEXT, "a" * (LARGEST // 2)),
        "new_b": ColumnValue(ColumnType.TEXT, "b" * LARGEST),
        "new_c": ColumnValue(ColumnType.TEXT, "c"),
    }
    message = invoice_created(replace(with_lines(3), columns=long), dataverse_url=URL)
    data = json.loads(message.body)["data"]
    assert data["linesOmitted"]
    too_long = {"type": "unknown", "value": None, "error": "The value is too long for the event."}
    assert data["columns"]["new_b"] == too_long
    assert [data["columns"][name]["type"] for name in ("new_a", "new_c")] == ["text", "text"]
    assert len(message.body) <= LARGEST
