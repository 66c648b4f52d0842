"""The event that goes out: an `Invoice` written as one CloudEvent, "invoice created".

The ids derive from the invoice's id and the body depends on the invoice alone, so whoever publishes it, and
however often, publishes the same message: the topic's duplicate detection and the consumers rely on it. What the
event promises to consumers stands in docs/invoice-created.md and shared/contracts/. Sending it is left to
`service_bus.py`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from shared.invoice import Currency, Invoice

# A type begins with a name that its author owns. This project owns no host name, and a prefix that does not begin
# with a top-level domain cannot be taken for somebody's.
EVENT_TYPE: Final = "invoice-from-opportunity.sales.invoice.created.v1"
# The $id of shared/contracts/invoice-created.v1.schema.json. A URN for the same reason: nobody else's host, and
# nothing that seems to be a link.
DATA_SCHEMA: Final = "urn:uuid:a0a5b840-4b19-42fa-9995-0b6e42b15e0a"
CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
# Part of every event's id: never to be changed.
_EVENT_IDS: Final = uuid.UUID("c80e62f4-00f5-4915-96a2-3cd55e09bb08")
_ARITHMETIC: Final = Context(prec=64, rounding=ROUND_HALF_UP)


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
    source = dataverse_url.rstrip("/")
    event_id = str(uuid.uuid5(_EVENT_IDS, f"invoice-created:{invoice.id}"))
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": EVENT_TYPE,
        "subject": f"opportunities/{invoice.opportunity_id}/invoices/{invoice.id}",
        "time": _timestamp(invoice.created_on),
        "dataschema": DATA_SCHEMA,
    }
    event = {**attributes, "datacontenttype": "application/json", "data": _data(invoice, source)}
    # datacontenttype has no copy: in CloudEvents' AMQP mapping it is the content type, which is the envelope's here.
    application_properties = {f"cloudEvents_{name}": value for name, value in attributes.items()}
    if traceparent is not None:
        application_properties["traceparent"] = traceparent
    return InvoiceCreated(
        body=json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(),
        content_type=CONTENT_TYPE,
        message_id=event_id,
        correlation_id=correlation_id,
        subject=attributes["subject"],
        application_properties=application_properties,
    )


def _data(invoice: Invoice, source: str) -> dict[str, object]:
    customer, currency = invoice.customer, invoice.currency
    return {
        "invoiceId": invoice.id,
        "invoiceNumber": _encodable(invoice.number),
        "name": _encodable(invoice.name),
        "opportunityId": invoice.opportunity_id,
        "customer": None if customer is None else {"kind": customer.kind, "id": customer.id},
        "totalAmount": _amount(invoice.total_amount, currency),
        "currency": None if currency is None else {"id": currency.id, "isoCode": currency.iso_code},
        "pricingErrorCode": invoice.pricing_error_code or None,
        "createdOn": _timestamp(invoice.created_on),
        "link": f"{source}/main.aspx?pagetype=entityrecord&etn=invoice&id={invoice.id}",
    }


def _amount(amount: Decimal | None, currency: Currency | None) -> str | None:
    """Write an amount in plain decimals, to the currency's precision; without a currency as short as it is."""
    if amount is None:
        return None
    if currency is None:
        shortest = amount.normalize(_ARITHMETIC)
    else:
        shortest = amount.quantize(Decimal(1).scaleb(-currency.precision), context=_ARITHMETIC)
    return f"{_ARITHMETIC.plus(shortest):f}"  # plus: -0 is 0


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def _encodable(text: str | None) -> str | None:
    """Replace surrogates that stand alone, which JSON can hold and UTF-8 cannot."""
    return None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
