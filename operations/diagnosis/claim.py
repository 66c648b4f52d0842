"""The proof, on a real record, of the assumption on which "exactly one invoice" rests: a change set is one transaction.

The change set makes a note, has the invoice generated and makes the same note again, which must fail. If Dataverse
is what the design takes it for, neither note nor invoice is there afterwards.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from operations.diagnosis.findings import CannotSee, Finding, Found, ok
from shared.dataverse import ChangeSet, Read
from shared.errors import DataverseForbidden, InvoicingFailure
from shared.invoicing import claim_note, generate_invoice, invoices_of

if TYPE_CHECKING:
    from operations.diagnosis.findings import Result
    from operations.web_api import WebApi
    from shared.response import Response

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
    except InvoicingFailure as error:
        raise Found(Finding.CHANGE_SET_REFUSED_OTHERWISE, str(error)) from error


def _try(api: WebApi, opportunity: str, note: str) -> list[Result]:
    before = _there(api, opportunity, note)
    # The requests of the function itself, so that the test proves what the function does.
    claim = claim_note(opportunity)
    create = replace(
        claim,
        body={
            **claim.body,
            "annotationid": note,
            "subject": "Test of operations doctor",
            "notetext": "This note should not exist. It can be deleted.",
        },
    )
    generate = generate_invoice(opportunity)
    failure: InvoicingFailure | None = None
    status, code = 0, ""
    try:
        (changed,) = api.batch([ChangeSet((create, generate, create))])
        status, code = changed.status, _code(changed)
        changed.raise_for_status()
    except InvoicingFailure as error:
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
    return {f"invoice {row.guid('invoiceid')}" for row in invoices.records()} | {
        f"note {row.guid('annotationid')}" for row in notes.records()
    }


def _code(answer: Response) -> str:
    try:
        return str(json.loads(answer.body)["error"]["code"]).lower()
    except (ValueError, KeyError, TypeError):
        return ""
