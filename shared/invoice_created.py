"""The outbound event: an `Invoice` becomes one CloudEvent, "invoice created".

The ids derive from the invoice's id and the body depends on the invoice alone, so every attempt publishes the same
message: the topic's duplicate detection and the consumers rely on it. docs/invoice-created.md and shared/contracts/
describe the event for consumers. An event that would be too large
for the broker is written without lines. Sending it is left to `service_bus.py`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from shared.columns import ColumnType, ColumnValue
from shared.invoice import LineKind
from shared.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shared.invoice import Amounts, Currency, Invoice, Line

# A type begins with a name that its author owns. This project owns no host name, and a prefix that does not begin
# with a top-level domain cannot be mistaken for another owner's.
EVENT_TYPE: Final = "invoice-from-opportunity.sales.invoice.created.v1"
# The $id of shared/contracts/invoice-created.v1.schema.json. A URN for the same reason: it has no host name
# and does not look like a link.
DATA_SCHEMA: Final = "urn:uuid:a0a5b840-4b19-42fa-9995-0b6e42b15e0a"
CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
# Part of every event's id: never to be changed.
_EVENT_IDS: Final = uuid.UUID("c80e62f4-00f5-4915-96a2-3cd55e09bb08")
# Bytes. A message on the Standard tier has at most 256 KB, properties and framing included.
MAX_BODY: Final = 240 * 1024


@dataclass(frozen=True)
class InvoiceCreated:
    """A message for the topic: a CloudEvent in structured JSON, its attributes copied for filters."""

    body: bytes
    content_type: str
    message_id: str
    correlation_id: str | None
    subject: str
    application_properties: dict[str, str]


def invoice_created(
    invoice: Invoice,
    *,
    dataverse_url: str,
    correlation_id: str | None = None,
    traceparent: str | None = None,
) -> InvoiceCreated:
    """Write the event of an invoice.

    `dataverse_url` is the environment's, `https://<org>.crm.dynamics.com`. `correlation_id`, the win's, and
    `traceparent` (W3C) travel beside the body, which depends on invoice and environment alone.
    """
    event_id = str(uuid.uuid5(_EVENT_IDS, f"invoice-created:{invoice.id}"))
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": dataverse_url,
        "type": EVENT_TYPE,
        "subject": f"opportunities/{invoice.opportunity_id}/invoices/{invoice.id}",
        "time": _timestamp(invoice.created_on),
        "dataschema": DATA_SCHEMA,
    }
    envelope = {**attributes, "datacontenttype": "application/json"}
    # datacontenttype has no copy: in CloudEvents' AMQP mapping it is the content type, which is the envelope's here.
    application_properties = {f"cloudEvents_{name}": value for name, value in attributes.items()}
    if traceparent is not None:
        application_properties["traceparent"] = traceparent
    return InvoiceCreated(
        body=_fitting(envelope, _data(invoice, dataverse_url)),
        content_type=CONTENT_TYPE,
        message_id=event_id,
        correlation_id=correlation_id,
        subject=attributes["subject"],
        application_properties=application_properties,
    )


def _fitting(envelope: Mapping[str, object], data: dict[str, Any]) -> bytes:
    """Return the body, without lines if it would be too large, and without the longest further columns if need be."""
    body = _encoded(envelope, data)
    if len(body) > MAX_BODY:
        data |= {"lines": None, "linesOmitted": True}
        body = _encoded(envelope, data)
    columns = data.get("columns", {})
    for name in sorted(columns, key=lambda name: len(json.dumps(columns[name])), reverse=True):
        if len(body) > MAX_BODY:
            columns[name] = _column(ColumnValue.unknown("The value is too long for the event."), None)
            body = _encoded(envelope, data)
    return body


def _encoded(envelope: Mapping[str, object], data: Mapping[str, object]) -> bytes:
    return encodable(
        json.dumps({**envelope, "data": data}, ensure_ascii=False, separators=(",", ":"))
    ).encode()


def _data(invoice: Invoice, dataverse_url: str) -> dict[str, Any]:
    currency = invoice.currency
    data = {
        "invoiceId": invoice.id,
        "invoiceNumber": invoice.number,
        "name": invoice.name,
        "opportunityId": invoice.opportunity_id,
        "customer": None if invoice.customer is None else asdict(invoice.customer),
        "totalAmount": _amount(invoice.total_amount, currency),
        "currency": None if currency is None else {"id": currency.id, "isoCode": currency.iso_code},
        "pricingErrorCode": invoice.pricing_error_code or None,
        "createdOn": _timestamp(invoice.created_on),
        "link": f"{dataverse_url}/main.aspx?pagetype=entityrecord&etn=invoice&id={invoice.id}",
        "orderId": invoice.order_id,
        "dueDate": None if invoice.due_date is None else invoice.due_date.isoformat(),
        "paymentTerms": None if invoice.payment_terms is None else asdict(invoice.payment_terms),
        "amounts": _amounts(invoice.amounts, currency),
        "totalsAgree": invoice.totals_agree,
        "lineCount": len(invoice.lines),
        "linesOmitted": False,
        "lines": _lines(invoice.lines, currency),
    }
    if invoice.columns is not None:
        data["columns"] = {name: _column(value, currency) for name, value in invoice.columns.items()}
    return data


def _amounts(amounts: Amounts, currency: Currency | None) -> dict[str, str | None]:
    return {
        "linesTotal": _amount(amounts.lines_total, currency),
        "lineDiscounts": _amount(amounts.line_discounts, currency),
        "discountAmount": _amount(amounts.discount_amount, currency),
        "discountPercentage": _decimal(amounts.discount_percentage),
        "totalDiscounts": _amount(amounts.total_discounts, currency),
        "totalBeforeFreight": _amount(amounts.total_before_freight, currency),
        "freight": _amount(amounts.freight, currency),
        "tax": _amount(amounts.tax, currency),
    }


_KINDS: Final = {
    LineKind.PRODUCT: "product",
    LineKind.BUNDLE: "bundle",
    LineKind.REQUIRED_PART: "requiredPart",
    LineKind.OPTIONAL_PART: "optionalPart",
    LineKind.SERVICE: "service",
}


def _lines(lines: Sequence[Line], currency: Currency | None) -> list[dict[str, object]]:
    ids = {line.id for line in lines}
    return [
        {
            "id": line.id,
            "position": line.position,
            "kind": None if line.kind is None else _KINDS[line.kind],
            "isPriced": line.is_priced,
            # Whether a generated line refers to the invoice's bundle or to the opportunity's is not confirmed.
            "bundleLineId": line.parent_id if line.parent_id in ids else None,
            "product": None if line.product is None else asdict(line.product),
            "description": line.description,
            "quantity": _decimal(line.quantity),
            "unit": line.unit,
            "pricePerUnit": _decimal(line.price_per_unit),
            "volumeDiscountPerUnit": _decimal(line.volume_discount_per_unit),
            "manualDiscount": _amount(line.manual_discount, currency),
            "baseAmount": _amount(line.base_amount, currency),
            "tax": _amount(line.tax, currency),
            "amount": _amount(line.amount, currency),
        }
        for line in lines
    ]


def _column(column: ColumnValue, currency: Currency | None) -> dict[str, object]:
    written: dict[str, object] = {"type": column.type.value, "value": _column_value(column, currency)}
    match column.type:
        case ColumnType.CHOICE | ColumnType.CHOICES | ColumnType.BOOLEAN:
            written["label"] = column.label
        case ColumnType.LOOKUP:
            written |= {"table": column.table, "name": column.name}
        case ColumnType.UNKNOWN:
            written["error"] = column.error
    return written


def _column_value(column: ColumnValue, currency: Currency | None) -> object:
    value = column.value
    if isinstance(value, Decimal):
        return _amount(value, currency) if column.type is ColumnType.MONEY else _decimal(value)
    return _timestamp(value) if isinstance(value, datetime) else value


def _amount(amount: Decimal | None, currency: Currency | None) -> str | None:
    """Write an amount of money to the currency's precision; without a currency as short as it is."""
    return _decimal(amount) if amount is None or currency is None else _plain(currency.rounded(amount))


def _decimal(number: Decimal | None) -> str | None:
    """Write a number as short as it is."""
    return None if number is None else _plain(number.normalize())


def _plain(number: Decimal) -> str:
    return f"{+number:f}"  # plus: -0 is 0


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
