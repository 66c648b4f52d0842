from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest

from shared.invoice import Currency, Customer, Invoice
from shared.invoice_created import invoice_created

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

URL = "https://contoso.crm4.dynamics.com"
INVOICE = Invoice(
    id="0f8fad5b-d9cb-469f-a165-70867728950e",
    number="INV-01042-X7C3K1",
    name="Coffee machines for Contoso Zürich",
    opportunity_id="5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c",
    customer=Customer("account", "83883308-7ad5-ea11-a813-000d3a33f3b4"),
    total_amount=Decimal("1250.4"),
    currency=Currency("7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40", "EUR", 2),
    pricing_error_code=0,
    created_on=datetime(2026, 2, 3, 14, 45, 12, tzinfo=UTC),
)


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
    """Equal invoice, equal bytes, whoever won and whatever the trace: so that repetitions are no news."""
    one = invoice_created(INVOICE, dataverse_url=URL, correlation_id="a", traceparent="00-1")
    other = invoice_created(replace(INVOICE), dataverse_url=URL + "/", correlation_id="b", traceparent="00-2")
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
    currency = (
        None if precision is None else Currency("7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40", "XXX", precision)
    )
    event = event_of(replace(INVOICE, total_amount=Decimal(amount), currency=currency))
    assert event["data"]["totalAmount"] == text


def test_what_dataverse_does_not_know_is_null() -> None:
    bare = Invoice(INVOICE.id, None, None, INVOICE.opportunity_id, None, None, None, None, INVOICE.created_on)
    data = event_of(bare)["data"]
    unknown = {name for name, value in data.items() if value is None}
    assert unknown == {"invoiceNumber", "name", "customer", "totalAmount", "currency", "pricingErrorCode"}


def test_a_pricing_error_is_told() -> None:
    assert event_of(replace(INVOICE, pricing_error_code=6))["data"]["pricingErrorCode"] == 6
    assert event_of(INVOICE)["data"]["pricingErrorCode"] is None


def test_fractions_of_a_second_are_kept() -> None:
    late = replace(INVOICE, created_on=INVOICE.created_on.replace(microsecond=70_000))
    assert event_of(late)["time"] == "2026-02-03T14:45:12.070000Z"


def test_half_a_character_in_a_name_does_not_stop_the_event() -> None:
    assert (
        event_of(replace(INVOICE, name="half \ud83d, whole \U0001f600"))["data"]["name"] == "half �, whole 😀"
    )


def test_the_message_carries_what_filters_and_traces_need() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    message = invoice_created(INVOICE, dataverse_url=URL, correlation_id="crm-77", traceparent=trace)
    assert message.content_type == "application/cloudevents+json; charset=utf-8"
    assert message.correlation_id == "crm-77"
    assert message.subject == f"opportunities/{INVOICE.opportunity_id}/invoices/{INVOICE.id}"
    assert message.application_properties["traceparent"] == trace
    assert "traceparent" not in invoice_created(INVOICE, dataverse_url=URL).application_properties
    assert b"4bf92f3577b34da6a3ce929d0e0e4736" not in message.body


def test_the_link_opens_the_record() -> None:
    assert event_of(INVOICE)["data"]["link"] == (
        f"{URL}/main.aspx?pagetype=entityrecord&etn=invoice&id={INVOICE.id}"
    )


@pytest.mark.parametrize(
    "invoice",
    [
        INVOICE,
        Invoice(INVOICE.id, None, None, INVOICE.opportunity_id, None, None, None, None, INVOICE.created_on),
        replace(INVOICE, customer=Customer("contact", str(uuid.UUID(int=7))), pricing_error_code=1),
    ],
    ids=["full", "bare", "pricing error"],
)
def test_every_event_keeps_the_contract(
    invoice: Invoice, published_event_checker: Callable[[bytes, Mapping[str, object], str], None]
) -> None:
    message = invoice_created(invoice, dataverse_url=URL, traceparent="00-1")
    published_event_checker(message.body, message.application_properties, message.content_type)


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
