from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest

from shared.clock import Deadline
from shared.dataverse import ChangeSet, Read, Response
from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoiceRefused,
    InvoicingFailure,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
)
from shared.invoice import Currency, Customer, Invoice, OrderedOpportunity
from shared.invoicing import Invoicing, claim_of
from shared.message import Ignored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.dataverse import Dataverse
    from tests.unit.conftest import FakeClock

OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
CLAIM = "claim"
INVOICE = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER_INVOICE = "1f8fad5b-d9cb-469f-a165-70867728950e"
ACCOUNT = "83883308-7ad5-ea11-a813-000d3a33f3b4"
EURO = "7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40"


def error(status: int, code: str = "", **headers: str) -> Response:
    body = json.dumps({"error": {"code": code, "message": "Why."}}).encode()
    return Response(status, headers, body, "r-1", datetime(2026, 3, 1, tzinfo=UTC))


def ok(document: object, status: int = 200) -> Response:
    return Response(status, {}, json.dumps(document).encode(), "r-1", datetime(2026, 3, 1, tzinfo=UTC))


def rows(*found: object) -> Response:
    return ok({"value": list(found)})


def invoice_row(invoice_id: str = INVOICE, statecode: int = 0) -> dict[str, object]:
    return {"invoiceid": invoice_id, "statecode": statecode, "createdon": "2026-03-01T11:59:00Z"}


OPEN, WON, LOST = (ok({"statecode": state}) for state in (0, 1, 2))
NONE = rows()
DONE = ok({"invoiceid": INVOICE})
CLAIMED = rows({"annotationid": CLAIM})
FULL = {
    "invoiceid": INVOICE.upper(),
    "invoicenumber": "INV-01042",
    "name": "Coffee machines",
    "totalamount": 1250.4,
    "createdon": "2026-03-01T11:59:00Z",
    "statecode": 0,
    "pricingerrorcode": 0,
    "_customerid_value": ACCOUNT,
    "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "account",
    "_opportunityid_value": OPPORTUNITY,
    "_transactioncurrencyid_value": EURO,
    "transactioncurrencyid": {"isocurrencycode": "EUR", "currencyprecision": 2},
}


@dataclass
class FakeDataverse:
    """Answers as told, in order, and keeps what it was asked."""

    answers: list[list[Response] | Response | InvoicingFailure]
    asked: list[object] = field(default_factory=list)
    deadlines: set[Deadline] = field(default_factory=set)

    def batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        self.asked.append(list(operations))
        self.deadlines.add(deadline)
        answers = self.answers.pop(0)
        if isinstance(answers, InvoicingFailure):
            raise answers
        assert isinstance(answers, list)
        assert len(answers) == len(operations)
        return answers

    def read(self, read: Read, deadline: Deadline) -> Response:
        self.asked.append(read)
        self.deadlines.add(deadline)
        answer = self.answers.pop(0)
        assert isinstance(answer, Response)
        return answer


@pytest.fixture
def deadline(clock: FakeClock) -> Deadline:
    return Deadline.after(clock, 180)


@dataclass
class Outcome:
    value: Invoice | Ignored
    asked: list[Any]


class Ensure:
    """Asks for the invoice of an opportunity at a Dataverse that answers as told."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(
        self,
        *answers: list[Response] | Response | InvoicingFailure,
        ordered: OrderedOpportunity = OrderedOpportunity.SKIP,
    ) -> Outcome:
        fake = FakeDataverse(list(answers))
        invoicing = Invoicing(cast("Dataverse", fake), ordered)
        try:
            value = invoicing.ensure_invoice(OPPORTUNITY, self._deadline)
        finally:
            assert not fake.answers, "all that was expected was asked, and nothing more"
            assert fake.deadlines == {self._deadline}
        return Outcome(value, fake.asked)

    def fails(
        self, expected: type[InvoicingFailure], *answers: list[Response] | Response | InvoicingFailure
    ) -> InvoicingFailure:
        with pytest.raises(expected) as raised:
            self(*answers)
        assert type(raised.value) is expected
        return raised.value


@pytest.fixture
def ensure(deadline: Deadline) -> Ensure:
    return Ensure(deadline)


def invoice_of(outcome: Outcome) -> Invoice:
    assert isinstance(outcome.value, Invoice)
    return outcome.value


# ---------------------------------------------------------------------------------------------- contracts


def test_the_claims_id_is_golden() -> None:
    assert claim_of(OPPORTUNITY) == "7f59750e-d8d7-5eaa-b6a0-677ade92dd51", (
        "The id of the claim note is derived in another way. The notes that are in Dataverse would not be found: "
        "EVERY OPPORTUNITY WHOSE WIN IS HANDLED AGAIN WOULD BE BILLED AGAIN. Never change it."
    )


def test_the_claims_id_is_the_opportunitys_alone() -> None:
    assert claim_of(OPPORTUNITY) == claim_of(OPPORTUNITY)
    assert claim_of(OPPORTUNITY) != claim_of(INVOICE)


# ---------------------------------------------------------------------------------------------- the first time


def test_a_won_opportunity_without_an_invoice_gets_one(ensure: Ensure) -> None:
    outcome = ensure([WON, NONE, NONE], [DONE, rows(invoice_row()), CLAIMED], ok(FULL))
    assert invoice_of(outcome).id == INVOICE
    look, call, retrieve = outcome.asked
    of_opportunity = f"$filter=_opportunityid_value eq {OPPORTUNITY}"
    invoices = Read(
        f"invoices?$select=invoiceid,statecode,createdon&{of_opportunity}&$orderby=createdon,invoiceid"
    )
    assert look == [
        Read(f"opportunities({OPPORTUNITY})?$select=statecode"),
        invoices,
        Read(f"salesorders?$select=salesorderid&{of_opportunity}&$top=1"),
    ]
    claim, generate = call[0].writes
    assert call[1:] == [
        invoices,
        Read(f"annotations?$select=annotationid&$filter=annotationid eq {claim_of(OPPORTUNITY)}"),
    ], "the reads come after the change set, the invoices before the claim"
    assert claim.path == "annotations"
    assert claim.body["annotationid"] == claim_of(OPPORTUNITY)
    assert claim.body["objectid_opportunity@odata.bind"] == f"/opportunities({OPPORTUNITY})"
    assert (generate.path, generate.body) == (
        "GenerateInvoiceFromOpportunity",
        {"OpportunityId": OPPORTUNITY, "ColumnSet": {"AllColumns": False, "Columns": ["invoiceid"]}},
    )
    assert retrieve.path.startswith(f"invoices({INVOICE})?$select=invoiceid,")
    assert "$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)" in retrieve.path


def test_the_note_tells_a_sales_person_what_it_is(ensure: Ensure) -> None:
    outcome = ensure([WON, NONE, NONE], [DONE, rows(invoice_row()), CLAIMED], ok(FULL))
    claim, _ = outcome.asked[1][0].writes
    assert claim.body["subject"] == "Invoice generated automatically"
    assert claim.body["notetext"] == (
        "This opportunity was won, and its invoice was generated automatically. Please keep this note: it makes sure "
        "that the opportunity is not invoiced twice. If the invoice was deleted or canceled and a new one is wanted, "
        "create it by hand, or delete this note and have the event sent again."
    )


# ---------------------------------------------------------------------------------------------- the look


@pytest.mark.parametrize("statecode", [0, 1, 2])
def test_an_invoice_that_is_there_is_taken_whoever_made_it(statecode: int, ensure: Ensure) -> None:
    outcome = ensure([WON, rows(invoice_row(statecode=statecode)), error(403)], ok(FULL))
    assert invoice_of(outcome).id == INVOICE


def test_the_oldest_that_is_not_canceled_is_taken(ensure: Ensure) -> None:
    there = rows(invoice_row(ACCOUNT, statecode=3), invoice_row(), invoice_row(OTHER_INVOICE))
    outcome = ensure([WON, there, NONE], ok(FULL))
    assert outcome.asked[1].path.startswith(f"invoices({INVOICE})")


def test_a_canceled_invoice_is_none(ensure: Ensure) -> None:
    canceled = rows(invoice_row(OTHER_INVOICE, statecode=3))
    both = rows(invoice_row(OTHER_INVOICE, statecode=3), invoice_row())
    assert invoice_of(ensure([WON, canceled, NONE], [DONE, both, CLAIMED], ok(FULL))).id == INVOICE


def test_an_open_opportunity_is_looked_at_again(ensure: Ensure) -> None:
    ensure.fails(OpportunityStillOpen, [OPEN, rows(invoice_row()), NONE])


@pytest.mark.parametrize("state", [LOST, ok({"statecode": 7})])
def test_an_opportunity_that_is_not_won_is_not_ours(state: Response, ensure: Ensure) -> None:
    assert ensure([state, rows(invoice_row()), NONE]).value == Ignored("the opportunity is not won")


def test_an_ordered_opportunity_is_billed_through_its_order(ensure: Ensure) -> None:
    outcome = ensure([WON, NONE, rows({"salesorderid": ACCOUNT})])
    assert outcome.value == Ignored("the opportunity has a sales order and is billed through it")


def test_unless_a_setting_says_otherwise(ensure: Ensure) -> None:
    outcome = ensure(
        [WON, NONE, rows({"salesorderid": ACCOUNT})],
        [DONE, rows(invoice_row()), CLAIMED],
        ok(FULL),
        ordered=OrderedOpportunity.INVOICE,
    )
    assert invoice_of(outcome).id == INVOICE


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        ([error(404, "0x80040217"), NONE, NONE], OpportunityNotFound),
        ([error(404), NONE, NONE], DataverseNotFound),
        ([WON, error(403, "0x80040220"), NONE], DataverseForbidden),
        ([WON, NONE, error(403, "0x80040220")], DataverseForbidden),
        ([WON, error(500), NONE], DataverseUnavailable),
        ([ok({}), NONE, NONE], DataverseUnavailable),
        ([ok({"statecode": True}), NONE, NONE], DataverseUnavailable),
        ([ok({"statecode": "1"}), NONE, NONE], DataverseUnavailable),
        ([WON, ok({}), NONE], DataverseUnavailable),
        ([WON, ok({"value": {}}), NONE], DataverseUnavailable),
        ([WON, ok({"value": [1]}), NONE], DataverseUnavailable),
        ([WON, rows({"invoiceid": INVOICE}), NONE], DataverseUnavailable),
        ([WON, rows({"statecode": 0}), NONE], DataverseUnavailable),
        ([WON, rows({"statecode": 0, "invoiceid": 7}), NONE], DataverseUnavailable),
        ([WON, rows({"statecode": 0, "invoiceid": "x"}), NONE], DataverseUnavailable),
        ([WON, NONE, ok({})], DataverseUnavailable),
    ],
)
def test_nothing_is_made_after_a_look_that_saw_nothing(
    look: list[Response], expected: type[InvoicingFailure], ensure: Ensure
) -> None:
    """An answer that is none, or somebody else's, does not mean that there is no invoice."""
    raised = ensure.fails(expected, look)
    assert raised.request_id == "r-1"


# ---------------------------------------------------------------------------------------------- claim and call


@pytest.mark.parametrize(
    "change_set",
    [
        error(412, "0x80040237"),
        error(412, "0x80060892"),
        error(500, "0x80040237"),
        error(500, "0x80044150"),
        error(429, "0x80072322"),
        error(400, "0x80040265"),
        error(403, "0x80040220"),
        ok({}, 204),
    ],
)
def test_what_happened_is_read_and_never_inferred_from_the_change_sets_answer(
    change_set: Response, ensure: Ensure
) -> None:
    """Whoever comes second finds the invoice of the first."""
    outcome = ensure([WON, NONE, NONE], [change_set, rows(invoice_row()), CLAIMED], ok(FULL))
    assert invoice_of(outcome).id == INVOICE


def test_an_invoice_that_somebody_made_by_hand_meanwhile_is_taken(ensure: Ensure) -> None:
    refused = error(400, "0x80040265")
    assert invoice_of(ensure([WON, NONE, NONE], [refused, rows(invoice_row()), NONE], ok(FULL))).id == INVOICE


@pytest.mark.parametrize("invoices", [NONE, rows(invoice_row(statecode=3))])
@pytest.mark.parametrize("change_set", [error(412, "0x80040237"), DONE])
def test_what_was_billed_before_is_not_billed_again(
    invoices: Response, change_set: Response, ensure: Ensure
) -> None:
    """The invoice was deleted or canceled: that is the decision of whoever did it."""
    raised = ensure.fails(ClaimedWithoutInvoice, [WON, NONE, NONE], [change_set, invoices, CLAIMED])
    assert raised.request_id == "r-1"


@pytest.mark.parametrize(
    ("change_set", "expected"),
    [
        (error(400, "0x80040265"), InvoiceRefused),
        (error(400, "0x80100010"), InvoiceRefused),
        (error(403, "0x80040220"), DataverseForbidden),
        (error(404, "0x80040217"), RecordNotFound),
        (error(404), DataverseNotFound),
        (error(429), DataverseThrottled),
        (error(412, "0x80040237"), DataverseUnavailable),
        (error(500, "0x80044150"), DataverseUnavailable),
        (DONE, DataverseUnavailable),
    ],
)
def test_where_nothing_changed_the_change_sets_own_error_decides(
    change_set: Response, expected: type[InvoicingFailure], ensure: Ensure
) -> None:
    ensure.fails(expected, [WON, NONE, NONE], [change_set, NONE, NONE])


@pytest.mark.parametrize(
    "reads", [(error(500), CLAIMED), (rows(invoice_row()), error(500)), (NONE, error(500)), (ok({}), NONE)]
)
@pytest.mark.parametrize("change_set", [DONE, error(400, "0x80040265")])
def test_without_both_reads_nothing_is_concluded(
    change_set: Response, reads: tuple[Response, Response], ensure: Ensure
) -> None:
    ensure.fails(DataverseUnavailable, [WON, NONE, NONE], [change_set, *reads])


def test_a_batch_without_a_whole_answer_is_left_to_the_caller(ensure: Ensure) -> None:
    ensure.fails(DataverseUnreachable, [WON, NONE, NONE], DataverseUnreachable("It broke off."))


# ---------------------------------------------------------------------------------------------- the invoice


def retrieved(ensure: Ensure, **changes: object) -> Invoice:
    return invoice_of(ensure([WON, rows(invoice_row()), NONE], ok({**FULL, **changes})))


def test_the_invoice_is_what_its_own_retrieve_says(ensure: Ensure) -> None:
    assert retrieved(ensure) == Invoice(
        id=INVOICE,
        number="INV-01042",
        name="Coffee machines",
        opportunity_id=OPPORTUNITY,
        customer=Customer("account", ACCOUNT),
        total_amount=Decimal("1250.4"),
        currency=Currency(EURO, "EUR", 2),
        pricing_error_code=0,
        created_on=datetime(2026, 3, 1, 11, 59, tzinfo=UTC),
    )


def test_what_an_invoice_may_lack(ensure: Ensure) -> None:
    names = (
        "invoicenumber",
        "name",
        "totalamount",
        "pricingerrorcode",
        "_customerid_value",
        "transactioncurrencyid",
    )
    bare = retrieved(ensure, **dict.fromkeys(names))
    assert (bare.number, bare.name, bare.total_amount, bare.pricing_error_code) == (None,) * 4
    assert (bare.customer, bare.currency) == (None, None)


def test_a_customer_whose_table_is_not_told(ensure: Ensure) -> None:
    name = "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"
    assert retrieved(ensure, **{name: None}).customer == Customer("unknown", ACCOUNT)


@pytest.mark.parametrize("created_on", ["2026-03-01T11:59:00", "2026-03-01T12:59:00+01:00"])
def test_the_time_is_utc(created_on: str, ensure: Ensure) -> None:
    assert retrieved(ensure, createdon=created_on).created_on.isoformat() == "2026-03-01T11:59:00+00:00"


@pytest.mark.parametrize("amount", [1250, -3, 0, 922337203685477])
def test_whole_and_negative_amounts(amount: int, ensure: Ensure) -> None:
    assert retrieved(ensure, totalamount=amount).total_amount == Decimal(amount)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("invoiceid", "x"),
        ("invoiceid", None),
        ("_opportunityid_value", None),
        ("invoicenumber", 7),
        ("name", ["x"]),
        ("totalamount", "1250.4"),
        ("totalamount", 1e300),
        ("totalamount", -(10**15)),
        ("createdon", None),
        ("createdon", "yesterday"),
        ("createdon", "0001-01-01T00:00:00+14:00"),
        ("pricingerrorcode", "0"),
        ("_customerid_value", "x"),
        ("_transactioncurrencyid_value", None),
        ("transactioncurrencyid", {"isocurrencycode": "EUR"}),
        ("transactioncurrencyid", {"isocurrencycode": None, "currencyprecision": 2}),
        ("transactioncurrencyid", {"isocurrencycode": "", "currencyprecision": 2}),
        ("transactioncurrencyid", {"isocurrencycode": "EUR", "currencyprecision": -1}),
        ("transactioncurrencyid", {"isocurrencycode": "EUR", "currencyprecision": 10**9}),
    ],
)
def test_an_invoice_that_makes_no_sense_is_somebody_elses_answer(
    column: str, value: object, ensure: Ensure
) -> None:
    raised = ensure.fails(DataverseUnavailable, [WON, rows(invoice_row()), NONE], ok({**FULL, column: value}))
    assert "another server may have sent it" in raised.description
    assert raised.request_id == "r-1"


def test_an_invoice_that_is_deleted_at_that_moment(ensure: Ensure) -> None:
    """A later look tells whether the opportunity was claimed, or may be invoiced anew."""
    raised = ensure.fails(RecordNotFound, [WON, rows(invoice_row()), NONE], error(404, "0x80040217"))
    assert raised.request_id == "r-1"


def test_an_invoice_that_cannot_be_read_is_read_later(ensure: Ensure) -> None:
    ensure.fails(DataverseUnavailable, [WON, rows(invoice_row()), NONE], error(503))
