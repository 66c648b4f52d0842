from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from shared.clock import Deadline
from shared.dataverse import ChangeSet, Read, Update
from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoiceOutdated,
    InvoiceRefused,
    InvoicingFailure,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
)
from shared.invoice import Invoice, InvoiceOwner, OrderedOpportunity
from shared.invoicing import Invoicing
from shared.message import Ignored
from shared.response import Response
from shared.retrieval import InvoiceReader
from shared.sales import claim_of
from shared.tracing import Tracing
from tests.unit.conftest import INVOICE as FOUND
from tests.unit.conftest import OPPORTUNITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.dataverse import Dataverse
    from tests.unit.conftest import FakeClock

INVOICE = FOUND.id
OTHER_INVOICE = "1f8fad5b-d9cb-469f-a165-70867728950e"
ACCOUNT = "83883308-7ad5-ea11-a813-000d3a33f3b4"
EURO = "7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40"


def ok(document: object, status: int = 200) -> Response:
    return Response(status, {}, json.dumps(document).encode(), "r-1", datetime(2026, 3, 1, tzinfo=UTC))


def error(status: int, code: str = "") -> Response:
    return ok({"error": {"code": code, "message": "Why."}}, status)


def rows(*found: object) -> Response:
    return ok({"value": list(found)})


def invoice_row(
    invoice_id: str = INVOICE, statecode: int = 0, createdon: str = "2026-03-01T11:59:00Z"
) -> dict[str, object]:
    return {"invoiceid": invoice_id, "statecode": statecode, "createdon": createdon}


def opportunity(statecode: int = 1, **columns: Any) -> Response:  # noqa: ANN401 - any column
    return ok({"statecode": statecode, **columns})


OPEN, WON, LOST = (opportunity(state) for state in (0, 1, 2))
NONE = rows()
DONE = ok({"invoiceid": INVOICE})
CLAIM = {
    "annotationid": "claim",
    "subject": "Invoice generated automatically",
    "_objectid_value": OPPORTUNITY,
}
CLAIMED = rows(CLAIM)


def check(
    state: Response = WON,
    *,
    claims: Response = NONE,
    invoices: Response = NONE,
    orders: Response = NONE,
    closes: Response = NONE,
) -> list[Response]:
    """Return the responses to the reads before the change set."""
    return [state, claims, invoices, orders, closes]


NOTHING_YET = check()
INVOICED = check(invoices=rows(invoice_row()))
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
GENERATED = [DONE, CLAIMED, rows(invoice_row())]


class Ensure(Tracing):
    """Asks for the invoice of an opportunity of a Dataverse that returns the given outcomes in order."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._outcomes: list[list[Response] | Response | InvoicingFailure] = []
        self.asked: list[Any] = []
        self.generated = 0

    def __call__(
        self,
        *outcomes: list[Response] | Response | InvoicingFailure,
        ordered: OrderedOpportunity = OrderedOpportunity.SKIP,
        owner: InvoiceOwner = InvoiceOwner.OPPORTUNITY,
    ) -> Invoice | Ignored:
        self._outcomes.extend(outcomes)
        dataverse = cast("Dataverse", self)
        invoicing = Invoicing(dataverse, InvoiceReader(dataverse), ordered, owner, tracing=self)
        try:
            return invoicing.ensure_invoice(OPPORTUNITY, self._deadline)
        finally:
            assert not self._outcomes, "every expected request was made, and no other"

    def fails(
        self, expected: type[InvoicingFailure], *outcomes: list[Response] | Response | InvoicingFailure
    ) -> InvoicingFailure:
        with pytest.raises(expected) as raised:
            self(*outcomes)
        assert type(raised.value) is expected
        return raised.value

    def batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        assert deadline is self._deadline
        self.asked.append(list(operations))
        outcomes = self._outcomes.pop(0)
        if isinstance(outcomes, InvoicingFailure):
            raise outcomes
        if isinstance(outcomes, Response):
            # To the retrieve of an invoice, which has no lines here.
            outcomes = [outcomes, NONE]
        assert len(outcomes) == len(operations)
        return outcomes

    def invoice_generated(self) -> None:
        self.generated += 1


@pytest.fixture
def ensure(clock: FakeClock) -> Ensure:
    return Ensure(Deadline.after(clock, 180))


# ---------------------------------------------------------------------------------------------- contracts


def test_the_claims_id_is_golden() -> None:
    assert claim_of(OPPORTUNITY) == "7f59750e-d8d7-5eaa-b6a0-677ade92dd51", (
        "The id of the claim note is derived in another way. The notes that are in Dataverse would not be found: "
        "EVERY OPPORTUNITY WHOSE WIN IS HANDLED AGAIN WOULD BE BILLED AGAIN. Never change it."
    )
    assert claim_of(OPPORTUNITY) != claim_of(INVOICE)


# ---------------------------------------------------------------------------------------------- the first time


def test_a_won_opportunity_without_an_invoice_gets_one(ensure: Ensure) -> None:
    assert ensure(NOTHING_YET, GENERATED, ok(FULL)) == FOUND
    assert ensure.generated == 1
    checks, call, retrieve = ensure.asked
    of_opportunity = f"$filter=_opportunityid_value eq {OPPORTUNITY}"
    currency = "&$expand=transactioncurrencyid($select=isocurrencycode,currencyprecision)"
    claim_of_it = Read(
        "annotations?$select=annotationid,subject,_objectid_value,_createdby_value"
        f"&$filter=annotationid eq {claim_of(OPPORTUNITY)}"
    )
    invoices = Read(
        f"invoices?$select=invoiceid,statecode,createdon,_createdby_value,_ownerid_value&{of_opportunity}"
        "&$orderby=createdon,invoiceid"
    )
    assert checks == [
        Read(
            f"opportunities({OPPORTUNITY})?$select=statecode,totalamount,_customerid_value,_ownerid_value,"
            f"_transactioncurrencyid_value{currency}"
        ),
        claim_of_it,
        invoices,
        Read(f"salesorders?$select=salesorderid&{of_opportunity} and statecode ne 2&$top=1"),
        Read(
            f"opportunitycloses?$select=createdon,opportunitystatecode&{of_opportunity} and statecode eq 1"
            "&$orderby=createdon desc"
        ),
    ]
    claim, generate = call[0].writes
    assert call[1:] == [claim_of_it, invoices], "the reads come after the change set"
    assert (claim.path, claim.body) == (
        "annotations",
        {
            "annotationid": claim_of(OPPORTUNITY),
            "subject": "Invoice generated automatically",
            # To the salesperson.
            "notetext": (
                "This opportunity was won, and its invoice was generated automatically. Please keep this note: it "
                "makes sure that the opportunity is not invoiced twice. If the invoice was deleted or canceled and a "
                "new one is wanted, create it by hand, or delete this note and have the event sent again."
            ),
            "objectid_opportunity@odata.bind": f"/opportunities({OPPORTUNITY})",
        },
    )
    assert (generate.path, generate.body) == (
        "GenerateInvoiceFromOpportunity",
        {"OpportunityId": OPPORTUNITY, "ColumnSet": {"AllColumns": False, "Columns": ["invoiceid"]}},
    )
    assert [read.path.partition("?")[0] for read in retrieve] == [f"invoices({INVOICE})", "invoicedetails"]


# ---------------------------------------------------------------------------------------------- the check


@pytest.mark.parametrize("statecode", [0, 1, 2])
def test_an_existing_invoice_is_used_no_matter_who_created_it(statecode: int, ensure: Ensure) -> None:
    existing = rows(invoice_row(statecode=statecode))
    unreadable = error(403)
    assert ensure(check(invoices=existing, orders=unreadable, closes=unreadable), ok(FULL)) == FOUND


def test_the_oldest_that_is_not_canceled_is_used(ensure: Ensure) -> None:
    existing = rows(invoice_row(ACCOUNT, statecode=3), invoice_row(), invoice_row(OTHER_INVOICE))
    ensure(check(invoices=existing), ok(FULL))
    assert ensure.asked[1][0].path.startswith(f"invoices({INVOICE})")


def test_a_canceled_invoice_does_not_count(ensure: Ensure) -> None:
    canceled = rows(invoice_row(OTHER_INVOICE, statecode=3))
    both = rows(invoice_row(OTHER_INVOICE, statecode=3), invoice_row())
    assert ensure(check(invoices=canceled), [DONE, CLAIMED, both], ok(FULL)) == FOUND


def test_an_open_opportunity_is_checked_again(ensure: Ensure) -> None:
    ensure.fails(OpportunityStillOpen, check(OPEN, invoices=rows(invoice_row())))


@pytest.mark.parametrize("state", [LOST, opportunity(7)])
def test_an_opportunity_that_is_not_won_is_ignored(state: Response, ensure: Ensure) -> None:
    assert ensure(check(state, invoices=rows(invoice_row()))) == Ignored("the opportunity is not won")


def test_an_ordered_opportunity_is_billed_through_its_order(ensure: Ensure) -> None:
    assert ensure(check(orders=rows({"salesorderid": ACCOUNT}))) == Ignored(
        "the opportunity has a sales order and is billed through it"
    )


def test_unless_a_setting_says_otherwise(ensure: Ensure) -> None:
    ordered = check(orders=rows({"salesorderid": ACCOUNT}))
    assert ensure(ordered, GENERATED, ok(FULL), ordered=OrderedOpportunity.INVOICE) == FOUND


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (check(error(404, "0x80040217")), OpportunityNotFound),
        (check(error(404)), DataverseNotFound),
        (check(invoices=error(403, "0x80040220")), DataverseForbidden),
        (check(orders=error(403, "0x80040220")), DataverseForbidden),
        (check(claims=error(403, "0x80040220")), DataverseForbidden),
        (check(invoices=error(500)), DataverseUnavailable),
        (check(ok({})), DataverseUnavailable),
        (check(ok({"statecode": True})), DataverseUnavailable),
        (check(ok({"statecode": "1"})), DataverseUnavailable),
        (check(invoices=ok({})), DataverseUnavailable),
        (check(invoices=ok({"value": {}})), DataverseUnavailable),
        (check(invoices=ok({"value": [1]})), DataverseUnavailable),
        (check(invoices=rows({"invoiceid": INVOICE})), DataverseUnavailable),
        (check(invoices=rows({"statecode": 0})), DataverseUnavailable),
        (check(invoices=rows({"statecode": 0, "invoiceid": 7})), DataverseUnavailable),
        (check(invoices=rows({"statecode": 0, "invoiceid": "x"})), DataverseUnavailable),
        (check(orders=ok({})), DataverseUnavailable),
        (check(claims=ok({})), DataverseUnavailable),
    ],
)
def test_nothing_is_generated_after_a_check_that_saw_nothing(
    responses: list[Response], expected: type[InvoicingFailure], ensure: Ensure
) -> None:
    """A failed read, or a response of another server, does not mean that there is no invoice."""
    raised = ensure.fails(expected, responses)
    assert raised.request_id == "r-1"


def test_closes_that_cannot_be_read_stop_no_invoice_that_does_not_need_them(ensure: Ensure) -> None:
    assert ensure(check(closes=error(403, "0x80040220")), GENERATED, ok(FULL)) == FOUND


# ---------------------------------------------------------------------------------------------- won again

BEFORE, AFTER = "2026-03-01T11:58:59Z", "2026-03-02T08:30:00Z"
DOLLAR = "8d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40"
EUROS: dict[str, Any] = {
    name: FULL[name] for name in ("_transactioncurrencyid_value", "transactioncurrencyid")
}
DOLLARS: dict[str, Any] = {
    "_transactioncurrencyid_value": DOLLAR,
    "transactioncurrencyid": {"isocurrencycode": "USD", "currencyprecision": 2},
}
DEARER = opportunity(totalamount=1500, **EUROS)


def closed(created_on: str = AFTER, state: int | None = 1) -> dict[str, object]:
    return {"createdon": created_on, "opportunitystatecode": state}


def won_again(state: Response = DEARER, **others: Response) -> list[Response]:
    """Return the responses for an opportunity that the function invoiced, and that was won again since."""
    responses: dict[str, Response] = {
        "claims": CLAIMED,
        "invoices": rows(invoice_row()),
        "closes": rows(closed(), closed(BEFORE)),
        **others,
    }
    return check(state, **responses)


def test_an_invoice_that_a_later_win_outdated_is_left_to_a_person(ensure: Ensure) -> None:
    raised = ensure.fails(InvoiceOutdated, won_again(), ok(FULL))
    assert raised.description == (
        f"The invoice {INVOICE} was created on 2026-03-01 11:59 UTC, and the opportunity was changed and won again on "
        "2026-03-02 08:30 UTC: the invoice amounts to 1250.40 EUR, the opportunity to 1500.00 EUR."
    )
    assert raised.request_id == "r-1"


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        (won_again(opportunity(totalamount=1250.41, **EUROS)), "1250.40 EUR, the opportunity to 1250.41 EUR"),
        (
            won_again(opportunity(totalamount=1250.4, **DOLLARS)),
            "1250.40 EUR, the opportunity to 1250.40 USD",
        ),
        (won_again(opportunity(totalamount=1500)), "1250.4, the opportunity to 1500"),
        (won_again(opportunity(totalamount=None, **DOLLARS)), "the currency is another one"),
        (won_again(opportunity(_customerid_value=EURO)), "the customer is another one"),
        (
            won_again(opportunity(totalamount=7, _customerid_value=EURO)),
            "to 7; the customer is another one",
        ),
        # The latest win is found: its state is not filled, or it comes in another order.
        (won_again(closes=rows(closed(state=None), closed(BEFORE))), "on 2026-03-02 08:30 UTC"),
        (won_again(closes=rows(closed(BEFORE), closed())), "on 2026-03-02 08:30 UTC"),
        # The later invoice is canceled.
        (
            won_again(invoices=rows(invoice_row(), invoice_row(OTHER_INVOICE, 3, createdon=AFTER))),
            "to 1500.00 EUR",
        ),
    ],
)
def test_amount_currency_and_customer_are_compared(
    responses: list[Response], says: str, ensure: Ensure
) -> None:
    assert says in ensure.fails(InvoiceOutdated, responses, ok(FULL)).description


UP_TO_DATE: dict[str, list[Response]] = {
    "equal": won_again(opportunity(totalamount=1250.4, _customerid_value=ACCOUNT, **EUROS)),
    "equal to the cent": won_again(opportunity(totalamount=1250.4004, **EUROS)),
    "without currency": won_again(opportunity(totalamount=1250.40)),
    "null total": won_again(opportunity(totalamount=None, **EUROS)),
    "null customer": won_again(opportunity(_customerid_value=None)),
    "nothing known": won_again(opportunity()),
    "no close": won_again(closes=NONE),
    "edited by a person": won_again(closes=rows(closed(BEFORE))),
    "same second": won_again(closes=rows(closed("2026-03-01T11:59:00Z"))),
    "lost since": won_again(closes=rows(closed(state=2), closed(BEFORE))),
    "invoiced by a person": won_again(claims=NONE),
    "note of another record": won_again(claims=rows({**CLAIM, "_objectid_value": ACCOUNT})),
    "billed by hand since": won_again(
        invoices=rows(invoice_row(), invoice_row(OTHER_INVOICE, createdon=AFTER))
    ),
}


@pytest.mark.parametrize("responses", UP_TO_DATE.values(), ids=UP_TO_DATE.keys())
def test_neither_a_later_win_nor_a_difference_alone_outdates_an_invoice(
    responses: list[Response], ensure: Ensure
) -> None:
    assert ensure(responses, ok(FULL)) == FOUND


@pytest.mark.parametrize("lacking", ["totalamount", "_customerid_value", "transactioncurrencyid"])
def test_what_the_invoice_lacks_proves_no_difference(lacking: str, ensure: Ensure) -> None:
    assert isinstance(ensure(UP_TO_DATE["equal"], ok({**FULL, lacking: None})), Invoice)


def test_without_the_closes_a_difference_is_not_judged(ensure: Ensure) -> None:
    ensure.fails(DataverseForbidden, won_again(closes=error(403, "0x80040220")), ok(FULL))


# ---------------------------------------------------------------------------------------------- claim and generate


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
def test_the_outcome_is_read_and_never_inferred_from_the_change_sets_response(
    change_set: Response, ensure: Ensure
) -> None:
    """The second of two finds the invoice of the first."""
    assert ensure(NOTHING_YET, [change_set, CLAIMED, rows(invoice_row())], ok(FULL)) == FOUND


def test_an_invoice_that_a_person_creates_meanwhile_is_used(ensure: Ensure) -> None:
    refused = error(400, "0x80040265")
    assert ensure(NOTHING_YET, [refused, NONE, rows(invoice_row())], ok(FULL)) == FOUND
    assert ensure.generated == 0


@pytest.mark.parametrize("invoices", [NONE, rows(invoice_row(statecode=3))])
@pytest.mark.parametrize("change_set", [error(412, "0x80040237"), DONE])
def test_what_was_billed_before_is_not_billed_again(
    invoices: Response, change_set: Response, ensure: Ensure
) -> None:
    """The invoice was deleted or canceled: that is the decision of the person who did it."""
    raised = ensure.fails(ClaimedWithoutInvoice, NOTHING_YET, [change_set, CLAIMED, invoices])
    assert raised.request_id == "r-1"


@pytest.mark.parametrize(
    ("claim", "invoices", "says"),
    [
        (CLAIM, NONE, "No invoice refers to it any more: it was deleted, or moved to another opportunity."),
        (CLAIM, rows(invoice_row(statecode=3)), "All its invoices are canceled."),
        ({**CLAIM, "_objectid_value": ACCOUNT}, NONE, "belongs to another record"),
        ({**CLAIM, "_objectid_value": None}, NONE, "belongs to another record"),
        ({**CLAIM, "subject": "Call Jane"}, NONE, "has another subject"),
        ({**CLAIM, "subject": None}, NONE, "has another subject"),
    ],
)
def test_a_claim_without_invoice_says_what_is_the_case(
    claim: dict[str, object], invoices: Response, says: str, ensure: Ensure
) -> None:
    """Known from the check: no change set is sent that cannot succeed."""
    raised = ensure.fails(ClaimedWithoutInvoice, check(claims=rows(claim), invoices=invoices))
    assert says in raised.description
    assert f"The note {claim_of(OPPORTUNITY)}, " in raised.description
    assert "Jane" not in raised.description
    assert raised.request_id == "r-1"


@pytest.mark.parametrize(
    ("change_set", "expected"),
    [
        (error(400, "0x80100010"), InvoiceRefused),
        (error(403, "0x80040220"), DataverseForbidden),
        (error(404, "0x80040217"), RecordNotFound),
        (error(404), DataverseNotFound),
        (error(400), InvoiceRefused),
        *(
            (error(status, "0x80040265"), InvoiceRefused)
            for status in (400, 403, 404, 405, 408, 409, 410, 412, 413, 417, 424, 500, 503)
        ),
        (error(429, "0x80040265"), DataverseThrottled),
        (error(429), DataverseThrottled),
        (error(412, "0x80040237"), DataverseUnavailable),
        (error(500, "0x80044150"), DataverseUnavailable),
        (DONE, DataverseUnavailable),
    ],
)
def test_where_nothing_changed_the_change_sets_own_error_decides(
    change_set: Response, expected: type[InvoicingFailure], ensure: Ensure
) -> None:
    raised = ensure.fails(expected, NOTHING_YET, [change_set, NONE, NONE])
    assert raised.request_id == change_set.request_id


@pytest.mark.parametrize(
    "reads", [(CLAIMED, error(500)), (error(500), rows(invoice_row())), (error(500), NONE), (NONE, ok({}))]
)
@pytest.mark.parametrize("change_set", [DONE, error(400, "0x80040265")])
def test_without_both_reads_nothing_is_concluded(
    change_set: Response, reads: tuple[Response, Response], ensure: Ensure
) -> None:
    ensure.fails(DataverseUnavailable, NOTHING_YET, [change_set, *reads])


def test_a_batch_without_a_complete_response_is_left_to_the_caller(ensure: Ensure) -> None:
    ensure.fails(DataverseUnreachable, NOTHING_YET, DataverseUnreachable("It broke off."))


# ---------------------------------------------------------------------------------------------- the owner

US, SELLER = "465b158c-5fe4-ea11-a813-000d3a33f47e", "565b158c-5fe4-ea11-a813-000d3a33f47e"
OWNERS_TABLE = "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"
USER: dict[str, Any] = {OWNERS_TABLE: "systemuser"}
SOLD = opportunity(_ownerid_value=SELLER, **USER)
OUR_CLAIM = rows({**CLAIM, "_createdby_value": US})
WRITTEN = ok({}, 204)


def owned(**columns: object) -> Response:
    """Return the invoice that we generated and still own, unless the columns say otherwise."""
    ours = {"_createdby_value": US, "_ownerid_value": US, "@odata.etag": 'W/"1"'}
    return rows({**invoice_row(), **ours, **columns})


def assigned(ensure: Ensure) -> list[Any]:
    """Return the writes that travel with the retrieve of the invoice."""
    return [write for each in ensure.asked[-1] if isinstance(each, ChangeSet) for write in each.writes]


@pytest.mark.parametrize(
    ("table", "owners", "etag", "if_match"),
    [("systemuser", "systemusers", 'W/"1"', 'W/"1"'), ("team", "teams", None, "*")],
)
def test_a_new_invoice_is_assigned_to_the_opportunitys_owner(
    table: str, owners: str, etag: str | None, if_match: str, ensure: Ensure
) -> None:
    """No request is added for it: the write travels with the retrieve."""
    sold = ok({"statecode": 1, "_ownerid_value": SELLER, OWNERS_TABLE: table})
    ensure(check(sold), [DONE, OUR_CLAIM, owned(**{"@odata.etag": etag})], [WRITTEN, ok(FULL), NONE])
    assert assigned(ensure) == [
        Update(f"invoices({INVOICE})", {"ownerid@odata.bind": f"/{owners}({SELLER})"}, if_match)
    ]
    assert len(ensure.asked) == 3


def test_an_assignment_that_an_interruption_prevented_is_made_the_next_time(ensure: Ensure) -> None:
    ensure(check(SOLD, claims=OUR_CLAIM, invoices=owned()), [WRITTEN, ok(FULL), NONE])
    assert len(assigned(ensure)) == 1


KEPT: dict[str, list[Response]] = {
    "assigned before": check(SOLD, claims=OUR_CLAIM, invoices=owned(_ownerid_value=SELLER)),
    "taken by another": check(SOLD, claims=OUR_CLAIM, invoices=owned(_ownerid_value=ACCOUNT)),
    "created by another": check(
        SOLD, claims=OUR_CLAIM, invoices=owned(_createdby_value=ACCOUNT, _ownerid_value=ACCOUNT)
    ),
    "creator not known": check(SOLD, claims=OUR_CLAIM, invoices=owned(_createdby_value=None)),
    "not claimed": check(SOLD, invoices=owned()),
    "claimed by another": check(SOLD, claims=CLAIMED, invoices=owned()),
    "claim not readable": check(SOLD, claims=error(403, "0x80040220"), invoices=owned()),
    "owner's table not known": check(opportunity(_ownerid_value=SELLER), claims=OUR_CLAIM, invoices=owned()),
    "owner not known": check(claims=OUR_CLAIM, invoices=owned()),
    "ours anyway": check(opportunity(_ownerid_value=US, **USER), claims=OUR_CLAIM, invoices=owned()),
}


@pytest.mark.parametrize("responses", KEPT.values(), ids=KEPT.keys())
def test_an_invoice_that_the_function_may_not_assign_stays_as_it_is(
    responses: list[Response], ensure: Ensure
) -> None:
    assert ensure(responses, ok(FULL)) == FOUND
    assert assigned(ensure) == []


def test_the_application_user_keeps_the_invoice_if_the_setting_says_so(ensure: Ensure) -> None:
    ensure(check(SOLD), [DONE, OUR_CLAIM, owned()], ok(FULL), owner=InvoiceOwner.APPLICATION_USER)
    assert assigned(ensure) == []


def test_an_assignment_that_fails_does_not_stop_the_invoice(ensure: Ensure) -> None:
    refused = error(403, "0x80040299")
    assert ensure(check(SOLD), [DONE, OUR_CLAIM, owned()], [refused, ok(FULL), NONE]) == FOUND


# ---------------------------------------------------------------------------------------------- the invoice


@pytest.mark.parametrize(
    ("response", "expected", "says"),
    [
        # A later check shows whether the opportunity was claimed, or may be invoiced again.
        (error(404, "0x80040217"), RecordNotFound, "Why."),
        (error(503), DataverseUnavailable, ""),
        (ok({**FULL, "invoiceid": "x"}), DataverseUnavailable, "another server may have sent it"),
        # Its event would name another opportunity; a later check shows what this one has.
        (ok({**FULL, "_opportunityid_value": ACCOUNT}), RecordNotFound, "was moved to another opportunity"),
    ],
    ids=["deleted", "not readable", "nonsense", "moved"],
)
def test_an_invoice_that_cannot_be_retrieved_at_that_moment(
    response: Response, expected: type[InvoicingFailure], says: str, ensure: Ensure
) -> None:
    assert says in ensure.fails(expected, INVOICED, response).description
