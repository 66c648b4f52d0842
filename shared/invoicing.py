"""Exactly one invoice per won opportunity.

The action has no idempotency key and the caller cannot choose the invoice's id, so asking twice bills twice; and a look
before the call does not help against two at once. What does: a change set is one transaction, and a note's primary key
can be chosen. The note that goes with the call, its id derived from the opportunity's, is the claim: whoever comes
second changes nothing. What happened is read afterwards, never inferred from a status or a code, so every step may be
repeated after any doubtful answer.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from shared.dataverse import ChangeSet, Read, Write
from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseUnavailable,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
)
from shared.invoice_created import Currency, Customer, Invoice
from shared.settings import OrderedOpportunity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.clock import Deadline
    from shared.dataverse import Answer, Dataverse

_logger = logging.getLogger(__name__)

# A contract with the notes that are already in Dataverse: another value would bill every opportunity again.
_CLAIMS = uuid.UUID("79c72b69-1915-4bc2-bd91-3c6b28267760")

_INVOICE_COLUMNS = (
    "invoiceid,invoicenumber,name,totalamount,createdon,statecode,pricingerrorcode,"
    "_customerid_value,_opportunityid_value,_transactioncurrencyid_value"
)
_LOOKUP_TABLE = "@Microsoft.Dynamics.CRM.lookuplogicalname"


class OpportunityState(IntEnum):
    """`statecode` of an opportunity. Never `statuscode`: won reasons can be customised."""

    OPEN = 0
    WON = 1
    LOST = 2


_INVOICE_CANCELED = 3
_MONEY_BOUND = 10**15
_MOST_DECIMAL_PLACES = 10


@dataclass(frozen=True)
class NotOurs:
    """There is nothing to invoice, and why: one sentence for the log."""

    why: str


class Invoicing:
    """Finds or generates the one invoice of an opportunity."""

    def __init__(self, dataverse: Dataverse, ordered_opportunity: OrderedOpportunity) -> None:
        self._dataverse = dataverse
        self._ordered_opportunity = ordered_opportunity

    def ensure_invoice(self, opportunity_id: str, deadline: Deadline) -> Invoice | NotOurs:
        """Return the invoice of a won opportunity, or why there is none to make.

        `opportunity_id`: a GUID in lower case. May be called again after whatever it raised, anywhere, at any time.
        """
        found = self._look(opportunity_id, deadline)
        if isinstance(found, NotOurs):
            return found
        invoice_id = found or self._claim_and_call(opportunity_id, deadline)
        return retrieve_invoice(self._dataverse, invoice_id, deadline)

    def _look(self, opportunity_id: str, deadline: Deadline) -> str | NotOurs | None:
        """Return the id of an invoice that is there, or why none is to be made, or None: it is to be made."""
        opportunity, invoices, orders = self._dataverse.batch(
            [
                Read(f"opportunities({opportunity_id})?$select=statecode"),
                invoices_of(opportunity_id),
                orders_of(opportunity_id),
            ],
            deadline,
        )
        state = _integer(_opportunity(opportunity), "statecode", opportunity)
        if state == OpportunityState.OPEN:
            raise OpportunityStillOpen("The opportunity is open: not won yet, or reopened.")
        if state != OpportunityState.WON:
            return NotOurs("the opportunity is not won")
        invoice_id = oldest_active(invoices)
        if invoice_id is not None:
            return invoice_id
        if rows_of(orders) and self._ordered_opportunity is OrderedOpportunity.SKIP:
            return NotOurs("the opportunity has a sales order and is billed through it")
        return None

    def _claim_and_call(self, opportunity_id: str, deadline: Deadline) -> str:
        """Return the id of the opportunity's invoice, whoever made it."""
        claim_id = claim_of(opportunity_id)
        change_set, invoices, claims = self._dataverse.batch(
            [
                ChangeSet((_claim(claim_id, opportunity_id), _generate_invoice(opportunity_id))),
                invoices_of(opportunity_id),
                claim_read(opportunity_id),
            ],
            deadline,
        )
        invoice_id, claimed = oldest_active(invoices), bool(rows_of(claims))
        if invoice_id is not None:
            return invoice_id
        if claimed:
            raise ClaimedWithoutInvoice(
                "The opportunity was invoiced before, and that invoice is not there any more or is canceled.",
                request_id=invoices.request_id,
            )
        # Nothing was changed: the change set's own error tells why.
        change_set.value()
        raise DataverseUnavailable(
            "Dataverse reported an invoice that it does not show.", request_id=change_set.request_id
        )


def retrieve_invoice(dataverse: Dataverse, invoice_id: str, deadline: Deadline) -> Invoice:
    """Read an invoice by itself: its totals are calculated when it is retrieved, not before.

    Raises RecordNotFound if it is not there; whoever had found it has to look again.
    """
    answer = dataverse.read(
        Read(
            f"invoices({invoice_id})?$select={_INVOICE_COLUMNS}"
            "&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)"
        ),
        deadline,
    )
    return _invoice(answer.value(), answer)


def claim_of(opportunity_id: str) -> str:
    """Return the id of the note that claims an opportunity. `opportunity_id`: a GUID in lower case."""
    return str(uuid.uuid5(_CLAIMS, opportunity_id))


def _claim(claim_id: str, opportunity_id: str) -> Write:
    return Write(
        "annotations",
        {
            "annotationid": claim_id,
            "subject": "Invoice generated automatically",
            "notetext": (
                "This opportunity was won, and its invoice was generated automatically. "
                "Please keep this note: it makes sure that the opportunity is not invoiced twice. "
                "If the invoice was deleted or canceled and a new one is wanted, create it by hand, "
                "or delete this note and have the event sent again."
            ),
            "objectid_opportunity@odata.bind": f"/opportunities({opportunity_id})",
        },
    )


def _generate_invoice(opportunity_id: str) -> Write:
    # The ColumnSet may be left out according to the Web API's reference, but not according to the SDK's.
    return Write(
        "GenerateInvoiceFromOpportunity",
        {"OpportunityId": opportunity_id, "ColumnSet": {"AllColumns": False, "Columns": ["invoiceid"]}},
    )


def invoices_of(opportunity_id: str) -> Read:
    """Return the read of an opportunity's invoices, the oldest first."""
    # By filter, never by $expand: expanded collections may be cached.
    return Read(
        f"invoices?$select=invoiceid,statecode,createdon&$filter=_opportunityid_value eq {opportunity_id}"
        "&$orderby=createdon,invoiceid"
    )


def orders_of(opportunity_id: str) -> Read:
    """Return the read that tells whether an opportunity has a sales order."""
    return Read(f"salesorders?$select=salesorderid&$filter=_opportunityid_value eq {opportunity_id}&$top=1")


def claim_read(opportunity_id: str) -> Read:
    """Return the read that tells whether an opportunity is claimed: a query, since "not found" can mean more."""
    return Read(f"annotations?$select=annotationid&$filter=annotationid eq {claim_of(opportunity_id)}")


def oldest_active(invoices: Answer) -> str | None:
    """Return the id of the first invoice that is not canceled, made by anyone."""
    return next(
        (
            _guid(row, "invoiceid", invoices)
            for row in rows_of(invoices)
            if _integer(row, "statecode", invoices) != _INVOICE_CANCELED
        ),
        None,
    )


def _opportunity(answer: Answer) -> Mapping[str, Any]:
    try:
        return answer.value()
    except RecordNotFound as error:
        raise OpportunityNotFound(error.description, request_id=error.request_id) from error


def _invoice(row: Mapping[str, Any], answer: Answer) -> Invoice:
    customer_id, kind = row.get("_customerid_value"), row.get(f"_customerid_value{_LOOKUP_TABLE}")
    return Invoice(
        id=_guid(row, "invoiceid", answer),
        number=_text(row, "invoicenumber", answer),
        name=_text(row, "name", answer),
        opportunity_id=_guid(row, "_opportunityid_value", answer),
        customer=Customer(str(kind or "unknown"), _guid(row, "_customerid_value", answer))
        if customer_id
        else None,
        total_amount=_amount(row, "totalamount", answer),
        currency=_currency(row, answer),
        pricing_error_code=(
            None if row.get("pricingerrorcode") is None else _integer(row, "pricingerrorcode", answer)
        ),
        created_on=_time(row, "createdon", answer),
    )


def _currency(row: Mapping[str, Any], answer: Answer) -> Currency | None:
    currency = row.get("transactioncurrencyid")
    if not isinstance(currency, dict):
        return None
    iso_code = _text(currency, "isocurrencycode", answer)
    precision = _integer(currency, "currencyprecision", answer)
    # An amount is worth nothing without them.
    if not iso_code or not 0 <= precision <= _MOST_DECIMAL_PLACES:
        raise _unexpected("transactioncurrencyid", answer)
    return Currency(_guid(row, "_transactioncurrencyid_value", answer), iso_code, precision)


def rows_of(answer: Answer) -> list[Mapping[str, Any]]:
    """Return the records of a query's answer; raises its error's decision."""
    rows = answer.value().get("value")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _unexpected("value", answer)
    return rows


def _integer(row: Mapping[str, Any], column: str, answer: Answer) -> int:
    value = row.get(column)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unexpected(column, answer)
    return value


def _amount(row: Mapping[str, Any], column: str, answer: Answer) -> Decimal | None:
    value = row.get(column)
    if value is None:
        return None
    # Money in Dataverse stays below a quadrillion; far beyond that, exact arithmetic would run out of digits.
    if isinstance(value, int | Decimal) and -_MONEY_BOUND < value < _MONEY_BOUND:
        return Decimal(value)
    raise _unexpected(column, answer)


def _text(row: Mapping[str, Any], column: str, answer: Answer) -> str | None:
    value = row.get(column)
    if value is None or isinstance(value, str):
        return value
    raise _unexpected(column, answer)


def _guid(row: Mapping[str, Any], column: str, answer: Answer) -> str:
    try:
        return str(uuid.UUID(row.get(column)))
    except (ValueError, TypeError, AttributeError) as error:
        raise _unexpected(column, answer) from error


def _time(row: Mapping[str, Any], column: str, answer: Answer) -> datetime:
    try:
        time = datetime.fromisoformat(str(row.get(column)))
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _unexpected(column, answer) from error


def _unexpected(column: str, answer: Answer) -> DataverseUnavailable:
    return DataverseUnavailable(
        f"Dataverse's answer has no usable {column}: something else may have answered.",
        request_id=answer.request_id,
    )
