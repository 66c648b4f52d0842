"""The proof, on a real record, of the assumption on which "exactly one invoice" rests: a change set is one transaction.

The change set creates a note, generates the invoice and creates the same note again, which must fail. If Dataverse
works as documented, neither note nor invoice exists afterwards. A read behind the change set shows whether the
environment goes on after a failed one, as the function prefers, or stops there.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from operations.diagnosis.check import CheckFailed, RightMissing, check, found, ok
from operations.diagnosis.connections import settings
from operations.diagnosis.dataverse import dataverse, environment, error_code, sales
from operations.diagnosis.findings import Finding
from shared.dataverse import ChangeSet, Read
from shared.errors import DataverseForbidden, InvoicingFailure
from shared.sales import claim_note, generate_invoice, invoices_of

if TYPE_CHECKING:
    from operations.diagnosis.check import Checked, Run
    from operations.web_api import WebApi
    from shared.dataverse import Write
    from shared.response import Response

WARNING = (
    "One change set that must fail is tried on opportunity {opportunity}: a note, GenerateInvoiceFromOpportunity, the "
    "same note again. Plug-ins and workflows run, and an invoice number may be used up. Nothing should be left."
)
# Creating a record whose key exists ends with one of these; the first is what is documented.
_DUPLICATE = frozenset({"0x80040237", "0x80060892"})


@check("change sets", settings, dataverse, environment, sales)
def change_sets(run: Run) -> Checked[None]:
    """Try the change set that must fail."""
    api = run[settings].api.until(run.deadline)
    try:
        return _try(api, str(run.inputs.opportunity), str(uuid.uuid4()))
    except DataverseForbidden as error:
        raise RightMissing(str(error), "the privileges of the function's role") from error
    except InvoicingFailure as error:
        raise CheckFailed(Finding.CHANGE_SET_REFUSED_OTHERWISE, str(error)) from error


def _try(api: WebApi, opportunity: str, note: str) -> Checked[None]:
    before = _existing(api, opportunity, note)
    create = _test_note(opportunity, note)
    failure: InvoicingFailure | None = None
    responses: list[Response] = []
    try:
        responses = api.one_batch(
            [ChangeSet((create, generate_invoice(opportunity), create)), _note_read(note)]
        )
        responses[0].raise_for_status()
    except InvoicingFailure as error:
        failure = error
    # The rows that exist count, not the response.
    left = ", ".join(sorted(_existing(api, opportunity, note) - before))
    if failure is None:
        seen = f"status {responses[0].status}; left behind: {left or 'nothing'}"
        raise CheckFailed(Finding.CHANGE_SET_SUCCEEDED, seen)
    if left:
        raise CheckFailed(Finding.CHANGE_SET_LEFT_SOMETHING_BEHIND, left)
    if not responses or error_code(failure) not in _DUPLICATE:
        raise failure
    if len(responses) == 1:
        seen = "the change set failed whole, and the read behind it was not processed"
        return found(Finding.BATCH_STOPS_AT_FAILURE, seen)
    return ok(
        "the change set failed whole, neither note nor invoice exists; the read behind it was processed"
    )


def _test_note(opportunity: str, note: str) -> Write:
    # The function's own request, so that the test proves what the function does.
    claim = claim_note(opportunity)
    return replace(
        claim,
        body={
            **claim.body,
            "annotationid": note,
            "subject": "Test of operations doctor",
            "notetext": "This note should not exist. It can be deleted.",
        },
    )


def _note_read(note: str) -> Read:
    return Read(f"annotations?$select=annotationid&$filter=annotationid eq {note}")


def _existing(api: WebApi, opportunity: str, note: str) -> set[str]:
    """Return the opportunity's invoices, and the note if it exists."""
    invoices, notes = api.batch([invoices_of(opportunity), _note_read(note)])
    return {f"invoice {row.guid('invoiceid')}" for row in invoices.records()} | {
        f"note {row.guid('annotationid')}" for row in notes.records()
    }
