"""The proof, on a real record, of the assumption on which "exactly one invoice" rests: a change set is one transaction.

The change set makes a note, has the invoice generated and makes the same note again, which must fail. If Dataverse
is what the design takes it for, neither note nor invoice is there afterwards.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from operations.diagnosis.findings import CannotSee, Finding, Found, ok
from shared.dataverse import ChangeSet, Read, Write
from shared.errors import DataverseForbidden, InvoicingError
from shared.invoicing import invoices_of, rows_of

if TYPE_CHECKING:
    from operations.diagnosis.findings import Result
    from operations.web_api import WebApi
    from shared.dataverse import Answer

WARNING = (
    "One change set that must fail is tried on opportunity {opportunity}: a note, GenerateInvoiceFromOpportunity, the "
    "same note again. Plug-ins and workflows run, and an invoice number may be used up. Nothing should be left."
)
# Whoever creates a record whose key is there already is told one of these; the first is what is documented.
_DUPLICATE = frozenset({"0x80040237", "0x80060892"})


def try_claim(api: WebApi, opportunity: str, note: str) -> list[Result]:
    """Try the change set that must fail, with a note of this id; raises Found, CannotSee."""
    try:
        return _try(api, opportunity, note)
    except DataverseForbidden as error:
        raise CannotSee(str(error), "the privileges of the function's role") from error
    except InvoicingError as error:
        raise Found(Finding.CHANGE_SET_REFUSED_OTHERWISE, str(error)) from error


def _try(api: WebApi, opportunity: str, note: str) -> list[Result]:
    before = _there(api, opportunity, note)
    create = Write(
        "annotations",
        {
            "annotationid": note,
            "subject": "Test of operations doctor",
            "notetext": "This note should not exist. It can be deleted.",
            "objectid_opportunity@odata.bind": f"/opportunities({opportunity})",
        },
    )
    generate = Write(
        "GenerateInvoiceFromOpportunity",
        {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": False, "Columns": ["invoiceid"]}},
    )
    failure: InvoicingError | None = None
    status, code = 0, ""
    try:
        (changed,) = api.batch([ChangeSet((create, generate, create))])
        status, code = changed.status, _code(changed)
        changed.value()
    except InvoicingError as error:
        failure = error
    # Whatever was answered, what counts is what is there.
    left = ", ".join(sorted(_there(api, opportunity, note) - before)) or "nothing"
    if failure is None:
        raise Found(Finding.CHANGE_SET_SUCCEEDED, f"answered {status}; there is now: {left}")
    if left != "nothing":
        raise Found(Finding.CHANGE_SET_LEFT_SOMETHING_BEHIND, left)
    if code not in _DUPLICATE:
        raise failure
    return ok("the change set failed whole: neither note nor invoice is there")


def _there(api: WebApi, opportunity: str, note: str) -> set[str]:
    """Return the opportunity's invoices, and the note if it is there."""
    read_note = Read(f"annotations?$select=annotationid&$filter=annotationid eq {note}")
    invoices, notes = api.batch([invoices_of(opportunity), read_note])
    return {f"invoice {row['invoiceid']}" for row in rows_of(invoices)} | {
        f"note {row['annotationid']}" for row in rows_of(notes)
    }


def _code(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"]["code"]).lower()
    except (ValueError, KeyError, TypeError):
        return ""
