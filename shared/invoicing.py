"""Exactly one invoice per won opportunity.

The action has no idempotency key and the caller cannot choose the invoice's id, so asking twice bills twice; and a look
before the call does not help against two at once. What does: a change set is one transaction, and a note's primary key
can be chosen. The note that goes with the call, its id derived from the opportunity's, is the claim: whoever comes
second changes nothing. What happened is read afterwards, never inferred from a status or a code, so every step may be
repeated after any doubtful answer.
"""

from __future__ import annotations

import uuid
from enum import IntEnum
from typing import TYPE_CHECKING

from shared.dataverse import ChangeSet, Read, Write
from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseUnavailable,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
)
from shared.invoice import Currency, Customer, Invoice, OrderedOpportunity
from shared.message import Ignored

if TYPE_CHECKING:
    from shared.clock import Deadline
    from shared.dataverse import Dataverse, Response
    from shared.record import Record

# A contract with the notes that are already in Dataverse: another value would bill every opportunity again.
_CLAIMS = uuid.UUID("79c72b69-1915-4bc2-bd91-3c6b28267760")

_INVOICE_COLUMNS = (
    "invoiceid,invoicenumber,name,totalamount,createdon,statecode,pricingerrorcode,"
    "_customerid_value,_opportunityid_value,_transactioncurrencyid_value"
)


class OpportunityState(IntEnum):
    """`statecode` of an opportunity. Never `statuscode`: won reasons can be customised."""

    OPEN = 0
    WON = 1
    LOST = 2


_INVOICE_CANCELED = 3
_MAX_DECIMAL_PLACES = 10


class Invoicing:
    """Finds or generates the one invoice of an opportunity."""

    def __init__(self, dataverse: Dataverse, ordered_opportunity: OrderedOpportunity) -> None:
        self._dataverse = dataverse
        self._ordered_opportunity = ordered_opportunity

    def ensure_invoice(self, opportunity_id: str, deadline: Deadline) -> Invoice | Ignored:
        """Return the invoice of a won opportunity, or why there is none to make.

        `opportunity_id`: a GUID in lower case. May be called again after whatever it raised, anywhere, at any time.
        """
        found = self._look(opportunity_id, deadline)
        if isinstance(found, Ignored):
            return found
        invoice_id = found or self._claim_and_call(opportunity_id, deadline)
        return retrieve_invoice(self._dataverse, invoice_id, deadline)

    def _look(self, opportunity_id: str, deadline: Deadline) -> str | Ignored | None:
        """Return the id of an invoice that is there, or why none is to be made, or None: it is to be made."""
        opportunity, invoices, orders = self._dataverse.batch(
            [
                Read(f"opportunities({opportunity_id})?$select=statecode"),
                invoices_of(opportunity_id),
                orders_of(opportunity_id),
            ],
            deadline,
        )
        state = _opportunity(opportunity).integer("statecode")
        if state == OpportunityState.OPEN:
            raise OpportunityStillOpen("The opportunity is open: not won yet, or reopened.")
        if state != OpportunityState.WON:
            return Ignored("the opportunity is not won")
        invoice_id = oldest_active(invoices)
        if invoice_id is not None:
            return invoice_id
        if orders.records() and self._ordered_opportunity is OrderedOpportunity.SKIP:
            return Ignored("the opportunity has a sales order and is billed through it")
        return None

    def _claim_and_call(self, opportunity_id: str, deadline: Deadline) -> str:
        """Return the id of the opportunity's invoice, whoever made it."""
        change_set, invoices, claims = self._dataverse.batch(
            [
                ChangeSet((claim_note(opportunity_id), generate_invoice(opportunity_id))),
                invoices_of(opportunity_id),
                claim_read(opportunity_id),
            ],
            deadline,
        )
        invoice_id, claimed = oldest_active(invoices), bool(claims.records())
        if invoice_id is not None:
            return invoice_id
        if claimed:
            raise ClaimedWithoutInvoice(
                "The opportunity was invoiced before, and that invoice is not there any more or is canceled.",
                request_id=invoices.request_id,
            )
        # Nothing was changed: the change set's own error tells why.
        change_set.raise_for_status()
        raise DataverseUnavailable(
            "Dataverse reported an invoice that it does not show.", request_id=change_set.request_id
        )


def retrieve_invoice(dataverse: Dataverse, invoice_id: str, deadline: Deadline) -> Invoice:
    """Read an invoice by itself: its totals are calculated when it is retrieved, not before.

    Raises RecordNotFound if it is not there; whoever had found it has to look again.
    """
    response = dataverse.read(
        Read(
            f"invoices({invoice_id})?$select={_INVOICE_COLUMNS}"
            "&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)"
        ),
        deadline,
    )
    return _invoice(response.record())


def claim_of(opportunity_id: str) -> str:
    """Return the id of the note that claims an opportunity. `opportunity_id`: a GUID in lower case."""
    return str(uuid.uuid5(_CLAIMS, opportunity_id))


def claim_note(opportunity_id: str) -> Write:
    """Return the creation of the note that claims an opportunity."""
    return Write(
        "annotations",
        {
            "annotationid": claim_of(opportunity_id),
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


def generate_invoice(opportunity_id: str) -> Write:
    """Return the call of the action that generates the invoice."""
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


def oldest_active(invoices: Response) -> str | None:
    """Return the id of the first invoice that is not canceled, made by anyone."""
    return next(
        (
            row.guid("invoiceid")
            for row in invoices.records()
            if row.integer("statecode") != _INVOICE_CANCELED
        ),
        None,
    )


def _opportunity(response: Response) -> Record:
    try:
        return response.record()
    except RecordNotFound as error:
        raise OpportunityNotFound(error.description, request_id=error.request_id) from error


def _invoice(row: Record) -> Invoice:
    customer_id = row.optional_guid("_customerid_value")
    return Invoice(
        id=row.guid("invoiceid"),
        number=row.text("invoicenumber"),
        name=row.text("name"),
        opportunity_id=row.guid("_opportunityid_value"),
        customer=Customer(row.lookup_table("_customerid_value") or "unknown", customer_id)
        if customer_id
        else None,
        total_amount=row.amount("totalamount"),
        currency=_currency(row),
        pricing_error_code=row.optional_integer("pricingerrorcode"),
        created_on=row.time("createdon"),
    )


def _currency(row: Record) -> Currency | None:
    currency = row.expanded("transactioncurrencyid")
    if currency is None:
        return None
    iso_code, precision = currency.text("isocurrencycode"), currency.integer("currencyprecision")
    # Without them an amount has no meaning.
    if not iso_code or not 0 <= precision <= _MAX_DECIMAL_PLACES:
        raise row.unexpected("transactioncurrencyid")
    return Currency(row.guid("_transactioncurrencyid_value"), iso_code, precision)
