"""The demonstration's own judgement: it must notice what is missing, double or wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import requests

from sandbox import demo
from sandbox.actors import ReceivedEvent
from sandbox.dataverse import DataverseApp, WsgiAdapter, seed
from sandbox.dataverse.schema import TABLES
from sandbox.identity import Identity, TokenAuthority

if TYPE_CHECKING:
    from collections.abc import Iterator


WON_AT = 100.0


class _Sales:
    """A Dataverse with one won opportunity, and the means to invoice it."""

    def __init__(self) -> None:
        authority, identity = TokenAuthority(), Identity.named("administrator")
        self.app = DataverseApp(authority.verify)
        self.opportunity, *_ = seed.demo_organization(self.app, 1).opportunities
        seed.add_administrator(self.app, identity.client_id)
        self._url = self.app.organization.url
        self.session = requests.Session()
        self.session.mount(self._url, WsgiAdapter(self.app))
        self.session.headers["Authorization"] = f"Bearer {authority.issue(identity, self._url)}"
        self.call(
            "WinOpportunity",
            {
                "OpportunityClose": {"opportunityid@odata.bind": f"/opportunities({self.opportunity})"},
                "Status": -1,
            },
        )

    def call(self, action: str, body: dict[str, Any]) -> None:
        response = self.session.post(f"{self._url}/api/data/v9.2/{action}", json=body, timeout=5)
        assert response.ok, response.text

    def invoice(self) -> None:
        columns = {"AllColumns": True, "Columns": []}
        self.call("GenerateInvoiceFromOpportunity", {"OpportunityId": self.opportunity, "ColumnSet": columns})
        for row in self.invoices():
            self.session.get(f"{self._url}/api/data/v9.2/invoices({row['invoiceid']})", timeout=5)

    def invoices(self) -> list[dict[str, Any]]:
        with self.app.database.reading() as transaction:
            return [dict(row) for row in transaction.rows(TABLES["invoice"])]

    def event(self, **changes: object) -> ReceivedEvent:
        (invoice, *_) = self.invoices()
        with self.app.database.reading() as transaction:
            currency = transaction.get(TABLES["transactioncurrency"], invoice["transactioncurrencyid"])
            is_account = transaction.get(TABLES["account"], invoice["customerid"]) is not None
        assert currency is not None
        data = {
            "invoiceId": invoice["invoiceid"],
            "invoiceNumber": invoice["invoicenumber"],
            "name": invoice["name"],
            "opportunityId": self.opportunity,
            "customer": {"kind": "account" if is_account else "contact", "id": invoice["customerid"]},
            "totalAmount": f"{invoice['totalamount']:.{currency['currencyprecision']}f}",
            "currency": {"id": currency["transactioncurrencyid"], "isoCode": currency["isocurrencycode"]},
        } | changes
        body = json.dumps({"id": "an-event", "data": data}).encode()
        return ReceivedEvent(body, {}, None, "an-event", None, WON_AT + 1.5)

    def outcome(self, *events: ReceivedEvent, pending: demo.Pending | None = None) -> demo.Outcome:
        waiting = {self.opportunity: pending} if pending else {}
        return demo.compare(self.app.database, {self.opportunity: WON_AT}, events, waiting)


@pytest.fixture
def sales() -> Iterator[_Sales]:
    prepared = _Sales()
    yield prepared
    prepared.session.close()
    prepared.app.close()


def test_one_invoice_and_one_event_that_agree_are_good(sales: _Sales) -> None:
    sales.invoice()
    outcome = sales.outcome(sales.event())
    assert outcome.is_good, outcome.wins
    assert str(outcome) == "1 opportunity won · 1 invoice · 1 event · 0 failed"
    (win,) = outcome.wins
    assert win.milliseconds == 1500
    assert win.invoice_number == sales.invoices()[0]["invoicenumber"]


def test_an_event_with_further_members_agrees(sales: _Sales) -> None:
    sales.invoice()
    event = sales.event()
    customer = {**event.content["data"]["customer"], "number": "A-00000"}
    assert sales.outcome(sales.event(customer=customer, lines=[])).is_good


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("totalAmount", "0.00"),
        ("invoiceNumber", "INV-0"),
        ("invoiceId", "another"),
        ("customer", {"kind": "account", "id": "another"}),
        ("currency", None),
    ],
)
def test_an_event_that_says_something_else_is_found(sales: _Sales, field: str, value: object) -> None:
    sales.invoice()
    outcome = sales.outcome(sales.event(**{field: value}))
    assert not outcome.is_good
    assert [problem.partition(" ")[0] for problem in outcome.wins[0].problems] == [field]


@pytest.mark.parametrize(
    ("invoices", "events", "problems"),
    [
        (2, [{}], ("2 invoices",)),
        (0, [], ("0 invoices", "0 events")),
        (1, [{}, {}], ("2 events",)),
        # Of an opportunity that nobody won.
        (1, [{}, {"opportunityId": "unknown"}], ()),
    ],
)
def test_what_is_missing_or_too_much_is_found(
    sales: _Sales, invoices: int, events: list[dict[str, str]], problems: tuple[str, ...]
) -> None:
    for _ in range(invoices):
        sales.invoice()
    outcome = sales.outcome(*(sales.event(**changes) for changes in events))
    assert (outcome.is_good, outcome.invoices) == (False, invoices)
    assert outcome.wins[0].problems == problems


def test_what_is_still_retried_has_not_failed(sales: _Sales) -> None:
    outcome = sales.outcome(pending=demo.Pending(is_parked=False, reason="DataverseUnavailable"))
    assert not outcome.is_good
    shown = "1 opportunity won · 0 invoices · 0 events · 1 being retried (DataverseUnavailable) · 0 failed"
    assert str(outcome) == shown


def test_what_is_parked_has_failed_with_its_reason(sales: _Sales) -> None:
    outcome = sales.outcome(pending=demo.Pending(is_parked=True, reason="InvoiceOutdated"))
    assert str(outcome) == "1 opportunity won · 0 invoices · 0 events · 1 failed"
    assert outcome.wins[0].problems[-1] == "parked: InvoiceOutdated"


def test_a_second_message_of_a_good_opportunity_is_no_problem(sales: _Sales) -> None:
    sales.invoice()
    assert sales.outcome(sales.event(), pending=demo.Pending(is_parked=False, reason="x")).is_good


@pytest.mark.parametrize(
    ("booked", "is_good"),
    [(("an-event",), True), ((), False), (("an-event", "an-event"), False), (("an-event", "another"), False)],
)
def test_every_event_is_booked_once(sales: _Sales, booked: tuple[str, ...], is_good: bool) -> None:  # noqa: FBT001 - pytest's
    sales.invoice()
    outcome = replace(sales.outcome(sales.event()), booked=booked)
    assert outcome.is_good == is_good
    assert f" · 1 event · {len(booked)} booked · 0 failed" in str(outcome)
