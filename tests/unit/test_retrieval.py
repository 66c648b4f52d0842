"""Reading an invoice with its lines and further columns, and assigning it in the same batch."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest

from shared.clock import Deadline
from shared.columns import ColumnType, ColumnValue
from shared.dataverse import ChangeSet, Read, Update
from shared.errors import (
    DataverseForbidden,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoicingFailure,
    RecordNotFound,
)
from shared.message import Delivery, RetryState
from shared.response import Response
from shared.retrieval import Assignment, InvoiceReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.dataverse import Dataverse
    from shared.invoice import Invoice
    from shared.message import Message
    from tests.unit.conftest import FakeClock

INVOICE = "0f8fad5b-d9cb-469f-a165-70867728950e"
OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
SELLER = "83883308-7ad5-ea11-a813-000d3a33f3b4"
US = "465b158c-5fe4-ea11-a813-000d3a33f47e"
WRITE = Update(f"invoices({INVOICE})", {"ownerid@odata.bind": f"/systemusers({SELLER})"}, 'W/"1"')
ASSIGNMENT = Assignment(WRITE, US, f"the systemuser {SELLER}")

Outcome = list[Response] | Response | InvoicingFailure


def ok(document: object, status: int = 200) -> Response:
    return Response(status, {}, json.dumps(document).encode(), "r-1", datetime(2026, 3, 1, tzinfo=UTC))


def error(status: int, code: str = "") -> Response:
    return ok({"error": {"code": code, "message": "Why."}}, status)


def line(number: int) -> dict[str, object]:
    return {"invoicedetailid": f"{number:08d}-d9cb-469f-a165-70867728950e", "lineitemnumber": number}


def lines(*found: object, **more: object) -> Response:
    return ok({"value": list(found), **more})


HEADER = ok(
    {"invoiceid": INVOICE, "_opportunityid_value": OPPORTUNITY, "createdon": "2026-03-01T11:59:00Z", "totalamount": 0}
)  # fmt: skip
DONE = Response(204, {}, b"", "r-1", datetime(2026, 3, 1, tzinfo=UTC))


class Reading:
    """A reader, and its Dataverse: it returns the given outcomes in order, and keeps the requests."""

    def __init__(self, deadline: Deadline, caplog: pytest.LogCaptureFixture) -> None:
        self.deadline = deadline
        self.log = caplog
        self.asked: list[Any] = []
        self.left: list[float] = []
        self._outcomes: list[Outcome] = []
        self.with_columns()

    def with_columns(self, *names: str) -> None:
        self._reader = InvoiceReader(cast("Dataverse", self), names)

    def __call__(self, *outcomes: Outcome, assignment: Assignment | None = None) -> Invoice:
        self._outcomes = list(outcomes)
        try:
            return self._reader.retrieve(INVOICE, self.deadline, assignment)
        finally:
            assert not self._outcomes, "every expected request was made"

    def batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        self.left.append(deadline.remaining)
        outcomes = self._next(list(operations), deadline)
        assert isinstance(outcomes, list)
        assert len(outcomes) == len(operations)
        return outcomes

    def read(self, read: Read, deadline: Deadline) -> Response:
        outcome = self._next(read, deadline)
        assert isinstance(outcome, Response)
        return outcome

    def _next(self, asked: Any, deadline: Deadline) -> list[Response] | Response:  # noqa: ANN401 - of either kind
        assert not deadline.passed
        self.asked.append(asked)
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, InvoicingFailure):
            raise outcome
        return outcome


@pytest.fixture
def reading(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Reading:
    return Reading(Deadline.after(clock, 180), caplog)


# ---------------------------------------------------------------------------------------------- lines


def test_the_lines_are_read_after_the_invoice_in_one_batch(reading: Reading) -> None:
    invoice = reading([HEADER, lines(line(1), line(2))])
    assert (invoice.id, [each.position for each in invoice.lines]) == (INVOICE, [1, 2])
    assert invoice.columns is None
    ((header, detail),) = reading.asked
    assert header.path.startswith(f"invoices({INVOICE})?$select=invoiceid,")
    assert header.path.endswith(
        "&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision),"
        "customerid_account($select=accountnumber)"
    )
    assert detail.path.startswith("invoicedetails?$select=invoicedetailid,")
    for read in (header, detail):
        columns = read.path.partition("$select=")[2].partition("&")[0].split(",")
        assert all(re.fullmatch("[a-z_]+", column) for column in columns), "logical names"
        assert len(set(columns)) == len(columns)
    assert detail.path.endswith(
        f"&$filter=_invoiceid_value eq {INVOICE}&$orderby=lineitemnumber,invoicedetailid"
        "&$expand=productid($select=productnumber,name),uomid($select=name)"
    )


def test_more_lines_than_dataverse_returns_at_once_are_read_to_the_end(reading: Reading) -> None:
    pages = [
        lines(line(1), **{"@odata.nextLink": "https://x.crm.dynamics.com/api/data/v9.2/invoicedetails?a=b%20c&$skiptoken=2"}),
        lines(line(2), **{"@odata.nextLink": "https://x.crm.dynamics.com/api/data/v9.2/invoicedetails?$skiptoken=3"}),
        lines(line(3)),
    ]  # fmt: skip
    invoice = reading([HEADER, pages[0]], *pages[1:])
    assert [each.position for each in invoice.lines] == [1, 2, 3]
    assert reading.asked[1:] == [
        Read("invoicedetails?a=b%20c&$skiptoken=2"),
        Read("invoicedetails?$skiptoken=3"),
    ]


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([error(404, "0x80040217"), lines()], RecordNotFound),
        ([error(503), lines()], DataverseUnavailable),
        ([HEADER, error(503)], DataverseUnavailable),
        ([HEADER, ok({})], DataverseUnavailable),
        ([HEADER, lines({"invoicedetailid": 7})], DataverseUnavailable),
    ],
)
def test_an_invoice_without_its_lines_is_not_published(
    responses: list[Response], expected: type[InvoicingFailure], reading: Reading
) -> None:
    with pytest.raises(expected):
        reading(responses)


@pytest.mark.parametrize(
    "refused", [[error(403, "0x80040220"), lines()], [HEADER, error(403, "0x80040220")]], ids=["header", "lines"]
)  # fmt: skip
def test_without_the_right_to_read_accounts_and_products_names_and_numbers_are_missing(
    refused: list[Response], reading: Reading
) -> None:
    invoice = reading(refused, [HEADER, lines(line(1))])
    assert len(invoice.lines) == 1
    header, detail = reading.asked[1]
    assert header.path.endswith("&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)")
    assert "$expand" not in detail.path
    assert "is read without names and numbers of customer, products and units: " in reading.log.text
    assert "0x80040220" in reading.log.text


def test_without_the_right_to_read_the_invoice_nothing_is_read(reading: Reading) -> None:
    refused = [error(403, "0x80040220"), error(403, "0x80040220")]
    with pytest.raises(DataverseForbidden):
        reading(refused, refused)


def test_amounts_that_do_not_add_up_are_logged(reading: Reading) -> None:
    document = {**HEADER.json(), "totalamount": 7}
    invoice = reading([ok(document), lines()])
    assert not invoice.totals_agree
    assert [record.message for record in reading.log.records] == [
        f"dataverse: the lines, discounts, freight and tax of the invoice {INVOICE} do not add up to its total"
    ]
    assert reading.log.records[0].levelno == logging.WARNING


def test_lines_within_a_delivery_name_it(reading: Reading, make_message: Callable[..., Message]) -> None:
    message = make_message()
    delivery = Delivery(message, RetryState.of(message), reading.deadline, opportunity_id="o-1")
    without_names = [error(403, "0x80040220"), error(403, "0x80040220"), error(403, "0x80040220")]
    with delivery.named_in_log_lines():
        reading(without_names, [ok({**HEADER.json(), "totalamount": 7}), lines()], assignment=ASSIGNMENT)
    assert len(reading.log.messages) == 3
    assert all(
        line.endswith(f" opportunity=o-1 root={delivery.state.root}") for line in reading.log.messages
    ), reading.log.messages


# ---------------------------------------------------------------------------------------------- the owner


def test_the_assignment_travels_in_the_same_batch_before_the_reads(reading: Reading) -> None:
    invoice = reading([DONE, HEADER, lines()], assignment=ASSIGNMENT)
    ((assigned, header, _),) = reading.asked
    assert assigned == ChangeSet((WRITE,))
    assert header.path.startswith("invoices(")
    assert invoice.totals_agree
    assert not reading.log.records


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "0x80040299"),  # The new owner may not read invoices.
        (403, "0x80040220"),  # The function may not assign.
        (400, "0x80042f09"),  # The new owner has no role.
        (400, "0x80040265"),  # A plug-in refuses.
        (404, "0x80040217"),  # The owner, or the invoice, was deleted.
        (429, ""),
        (500, ""),
    ],
)
def test_a_failed_assignment_does_not_stop_the_event(status: int, code: str, reading: Reading) -> None:
    invoice = reading([error(status, code), HEADER, lines(line(1))], assignment=ASSIGNMENT)
    assert len(invoice.lines) == 1
    (logged,) = reading.log.records
    assert logged.message.startswith(
        f"dataverse: the invoice {INVOICE} was not assigned to the systemuser {SELLER}: "
    )
    assert "Why." in logged.message or "429" in logged.message
    assert logged.levelno == logging.WARNING


def changed(owner: str, etag: object = 'W/"2"') -> Response:
    """Return the invoice as it is after somebody has changed it."""
    return ok({**HEADER.json(), "_ownerid_value": owner, "@odata.etag": etag})


CHANGED_MEANWHILE = error(412, "0x80060882")


SILENT = DataverseUnreachable("POST $batch timed out.")


@pytest.mark.parametrize(
    "outcomes",
    [([CHANGED_MEANWHILE, changed(SELLER), lines()],), (SILENT, [changed(SELLER), lines()])],
    ids=["changed", "no response"],
)
def test_an_invoice_with_another_owner_by_then_is_not_assigned_again(
    outcomes: Sequence[Outcome], reading: Reading
) -> None:
    """Somebody took it, or the assignment was carried out."""
    reading(*outcomes, assignment=ASSIGNMENT)
    assert len(reading.asked) == len(outcomes)
    assert not reading.log.records


@pytest.mark.parametrize(
    ("outcomes", "condition"),
    [
        (([CHANGED_MEANWHILE, changed(US), lines()],), 'W/"2"'),
        (([CHANGED_MEANWHILE, changed(US, None), lines()],), "*"),
        ((SILENT, [changed(US), lines()]), 'W/"2"'),
    ],
    ids=["changed", "without an etag", "no response"],
)
def test_an_invoice_with_the_same_owner_is_assigned_in_its_present_version(
    outcomes: Sequence[Outcome], condition: str, reading: Reading
) -> None:
    reading(*outcomes, [DONE], assignment=ASSIGNMENT)
    assert reading.asked[-1] == [ChangeSet((replace(WRITE, if_match=condition),))]
    assert not reading.log.records


@pytest.mark.parametrize("again", [[CHANGED_MEANWHILE], [error(403)], DataverseUnreachable("It broke off.")])
def test_an_assignment_is_repeated_once(again: Outcome, reading: Reading) -> None:
    invoice = reading([CHANGED_MEANWHILE, changed(US), lines(line(1))], again, assignment=ASSIGNMENT)
    assert len(invoice.lines) == 1
    assert len(reading.asked) == 2
    assert "was not assigned to" in reading.log.text


def test_an_assignment_that_takes_too_long_does_not_stop_the_event(reading: Reading) -> None:
    """The reads are repeated without it; then it is tried once more, with the time that publishing leaves."""
    invoice = reading(SILENT, [changed(US), lines(line(1))], SILENT, assignment=ASSIGNMENT)
    assert len(invoice.lines) == 1
    assert [len(asked) for asked in reading.asked] == [3, 2, 1]
    assert reading.left[2] == reading.left[1] / 2
    assert "was not assigned to" in reading.log.text


@pytest.mark.parametrize(
    "outage", [DataverseUnavailable("It is down."), DataverseThrottled("Slow down.", retry_after=7.0)]
)
def test_an_outage_is_an_outage_with_an_assignment_too(outage: InvoicingFailure, reading: Reading) -> None:
    with pytest.raises(type(outage)):
        reading(outage, assignment=ASSIGNMENT)


# ---------------------------------------------------------------------------------------------- further columns


def attributes(**types: str) -> Response:
    return lines(
        *({"LogicalName": name, "AttributeType": attribute_type} for name, attribute_type in types.items())
    )


def test_further_columns_are_described_once_and_read_in_the_batch(reading: Reading) -> None:
    reading.with_columns("new_fee", "new_typo")
    first = reading(attributes(new_fee="Money"), [HEADER, lines(), ok({"new_fee": 12.5})])
    second = reading([HEADER, lines(), ok({"new_fee": None})])
    unknown = ColumnValue.unknown("The table invoice has no column of this name.")
    assert first.columns == {
        "new_fee": ColumnValue(ColumnType.MONEY, Decimal("12.5")),
        "new_typo": unknown,
    }
    assert second.columns == {"new_fee": ColumnValue(ColumnType.MONEY, None), "new_typo": unknown}
    assert [len(asked) for asked in (reading.asked[1], reading.asked[2])] == [3, 3]
    assert reading.asked[1][2] == Read(f"invoices({INVOICE})?$select=new_fee")
    assert reading.log.messages == [
        "settings: INVOICE_COLUMNS names new_typo: The table invoice has no column of this name."
    ]


@pytest.mark.parametrize(
    ("status", "code"), [(400, "0x80060888"), (400, "0x80048d19"), (400, "0x80040265"), (404, "")]
)
def test_a_column_that_was_removed_stops_nothing_and_is_described_anew(
    status: int, code: str, reading: Reading
) -> None:
    reading.with_columns("new_fee")
    invoice = reading(attributes(new_fee="Money"), [HEADER, lines(line(1)), error(status, code)])
    assert len(invoice.lines) == 1
    assert invoice.columns == {
        "new_fee": ColumnValue.unknown("The column was not read: the log of the function says why.")
    }
    (logged,) = reading.log.messages
    assert logged.startswith(
        f"settings: the columns of INVOICE_COLUMNS were not read: Dataverse responded {status}"
    )
    assert logged.endswith("(request r-1)")
    assert reading(attributes(), [HEADER, lines()]).columns is not None


def test_columns_that_cannot_be_read_for_now_are_read_later(reading: Reading) -> None:
    """The event is a snapshot: what it lacks because of an outage would never come."""
    reading.with_columns("new_fee")
    with pytest.raises(DataverseUnavailable):
        reading(attributes(new_fee="Money"), [HEADER, lines(), error(503)])
    with pytest.raises(DataverseForbidden):
        reading([HEADER, lines(), error(403, "0x80040220")])


def test_metadata_that_cannot_be_read_is_read_later(reading: Reading) -> None:
    reading.with_columns("new_fee")
    with pytest.raises(DataverseForbidden):
        reading(error(403, "0x80040220"))
    assert reading(attributes(new_fee="Money"), [HEADER, lines(), ok({})]).columns is not None


def test_further_columns_after_an_assignment(reading: Reading) -> None:
    reading.with_columns("new_fee")
    invoice = reading(
        attributes(new_fee="Money"), [DONE, HEADER, lines(), ok({"new_fee": 1})], assignment=ASSIGNMENT
    )
    assert invoice.columns == {"new_fee": ColumnValue(ColumnType.MONEY, Decimal(1))}
