"""What invoicing needs of Dynamics 365 Sales: the requests, and the meaning of the rows in their responses.

One definition of each, for the function and for `operations`: which note is the claim, which invoice counts, which
order bills an opportunity, when it was won. `invoicing.py` decides what follows.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from shared.dataverse import Read, Update, Write
from shared.retrieval import Assignment

if TYPE_CHECKING:
    from datetime import datetime

    from shared.invoice import Owner
    from shared.record import Record
    from shared.response import Response

# A contract with the notes in Dataverse: another value would bill every opportunity again.
_CLAIMS: Final = uuid.UUID("79c72b69-1915-4bc2-bd91-3c6b28267760")
CLAIM_SUBJECT: Final = "Invoice generated automatically"

_ORDER_CANCELED: Final = 2
_INVOICE_CANCELED: Final = 3
_CLOSED_AS_WON: Final = 1

_CURRENCY: Final = "&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)"


def claim_of(opportunity_id: str) -> str:
    """Return the id of the note that claims an opportunity. `opportunity_id`: a GUID in lower case."""
    return str(uuid.uuid5(_CLAIMS, opportunity_id))


def claim_note(opportunity_id: str) -> Write:
    """Return the creation of the note that claims an opportunity."""
    return Write(
        "annotations",
        {
            "annotationid": claim_of(opportunity_id),
            "subject": CLAIM_SUBJECT,
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


def assignment_of(invoice: Record, owner: Owner) -> Assignment:
    """Return the write that assigns an invoice: Dataverse assigns a row whose owner is updated.

    It has the etag of the row, so that an invoice that gets another owner at that moment keeps that owner.
    """
    owners = {"systemuser": "systemusers", "team": "teams"}[owner.table]
    update = Update(
        f"invoices({invoice.guid('invoiceid')})",
        {"ownerid@odata.bind": f"/{owners}({owner.id})"},
        if_match=invoice.etag or "*",
    )
    return Assignment(update, invoice.guid("_ownerid_value"), f"the {owner.table} {owner.id}")


def opportunity_read(opportunity_id: str) -> Read:
    """Return the retrieve of an opportunity, its totals included."""
    return Read(
        f"opportunities({opportunity_id})?$select=statecode,totalamount,_customerid_value,_ownerid_value,"
        f"_transactioncurrencyid_value{_CURRENCY}"
    )


def claim_read(opportunity_id: str) -> Read:
    """Return the query for the claim of an opportunity: a query, since "not found" can have other reasons."""
    return Read(
        "annotations?$select=annotationid,subject,_objectid_value,_createdby_value"
        f"&$filter=annotationid eq {claim_of(opportunity_id)}"
    )


def invoices_of(opportunity_id: str) -> Read:
    """Return the query for an opportunity's invoices, the oldest first."""
    # By filter, never by $expand: expanded collections may be cached.
    return Read(
        "invoices?$select=invoiceid,statecode,createdon,_createdby_value,_ownerid_value"
        f"&$filter=_opportunityid_value eq {opportunity_id}&$orderby=createdon,invoiceid"
    )


def orders_of(opportunity_id: str) -> Read:
    """Return the query for a sales order through which an opportunity is billed: one that is not canceled."""
    return Read(
        f"salesorders?$select=salesorderid&$filter=_opportunityid_value eq {opportunity_id} "
        f"and statecode ne {_ORDER_CANCELED}&$top=1"
    )


def wins_of(opportunity_id: str) -> Read:
    """Return the query for the completed closes of an opportunity, the newest first; reopening cancels a close."""
    return Read(
        "opportunitycloses?$select=createdon,opportunitystatecode"
        f"&$filter=_opportunityid_value eq {opportunity_id} and statecode eq 1&$orderby=createdon desc"
    )


# ---------------------------------------------------------------------------------------------- rows


def active(invoices: Response) -> list[Record]:
    """Return the invoices that are not canceled, created by anyone."""
    return [row for row in invoices.records() if row.integer("statecode") != _INVOICE_CANCELED]


def oldest_active(invoices: Response) -> Record | None:
    """Return the first invoice that is not canceled."""
    return next(iter(active(invoices)), None)


def latest_win(closes: Response) -> datetime | None:
    """Return when an opportunity was last closed as won. Dataverse may leave the state of a close empty."""
    won = (None, _CLOSED_AS_WON)
    times = [
        row.time("createdon")
        for row in closes.records()
        if row.optional_integer("opportunitystatecode") in won
    ]
    return max(times, default=None)
