"""The judge itself, on evidence made up by hand: what the mutants do not show."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from proofs.checker import (
    FAILED_QUEUE,
    QUEUE,
    TOPIC,
    Cause,
    Evidence,
    Expectations,
    Refusal,
    Request,
    Watch,
    judge,
    judge_requests,
)
from proofs.sales_state import InvoiceState, OpportunityState, Terms
from published_event import validate_event

from sandbox.clock import MovableClock
from sandbox.dataverse import Change, Commit
from sandbox.service_bus import Broker, Configuration, Message

_START = datetime(2026, 3, 2, 8, tzinfo=UTC)
_FUNCTION, _PERSON = "the function", "a person"
_OPPORTUNITY = "an opportunity"


class _Made:
    """Evidence in the making: a log of commits, and a broker to send to."""

    def __init__(self) -> None:
        self.clock = MovableClock(_START)
        self.broker = Broker(Configuration.load(), self.clock)
        self.watch = Watch(self.broker, lambda *_: None)
        self.commits: list[Commit] = []

    def commit(self, user: str, *changes: Change) -> None:
        self.clock.advance(timedelta(seconds=1))
        self.commits.append(Commit(len(self.commits) + 1, self.clock.now(), user, None, changes))

    def invoiced(self, invoice: str, user: str = _FUNCTION, owner: str = _PERSON) -> None:
        values = {"opportunityid": _OPPORTUNITY, "statecode": 0, "ownerid": owner}
        made = Change("create", "invoice", invoice, values)
        claim = Change(
            "create", "annotation", f"note {invoice}", {"objectid": _OPPORTUNITY, "createdby": user}
        )
        self.commit(user, claim, made)

    def published(self, invoice: str, event_id: str | None = None, opportunity: str = _OPPORTUNITY) -> None:
        id_ = event_id or f"event of {invoice}"
        body = json.dumps({"id": id_, "data": {"opportunityId": opportunity, "invoiceId": invoice}}).encode()
        self.clock.advance(timedelta(seconds=1))
        self.broker.send(TOPIC, Message(body=body, message_id=id_))

    def evidence(self) -> Evidence:
        return self.watch.evidence(self.commits, _FUNCTION)

    def broken(self, **expectations: object) -> list[str]:
        expected = {"invoiced": [_OPPORTUNITY], **expectations}
        return [violation.rule for violation in judge(self.evidence(), Expectations(**expected))]  # type: ignore[arg-type]


@pytest.fixture
def made() -> _Made:
    return _Made()


def test_promise_kept(made: _Made) -> None:
    made.invoiced("i1")
    made.published("i1")
    made.published("i1")

    assert made.broken() == []


_NO_NOTE = Change("delete", "annotation", "note i1", {})
_NO_INVOICE = Change("delete", "invoice", "i1", {})


@pytest.mark.parametrize(
    ("gone", "is_asked_for"),
    [
        ([_NO_INVOICE], False),
        ([_NO_NOTE], False),
        ([_NO_NOTE, _NO_INVOICE], True),
        ([_NO_NOTE, Change("update", "invoice", "i1", {"statecode": 3})], True),
    ],
)
def test_second_invoice_is_asked_for_by_deleting_claim_and_invoice(
    made: _Made, gone: list[Change], *, is_asked_for: bool
) -> None:
    made.invoiced("i1")
    for change in gone:
        made.commit(_PERSON, change)
    made.invoiced("i2")
    made.published("i2")

    rule = "one generated invoice per opportunity"
    assert made.broken(invoiced=()) == ([] if is_asked_for else [rule])
    assert made.broken() == [] or not is_asked_for


def test_a_manual_invoice_does_not_count_as_generated(made: _Made) -> None:
    made.invoiced("by hand", _PERSON)
    made.published("by hand")

    assert made.broken(never=[_OPPORTUNITY]) == []


def test_an_invoice_is_given_away_once_and_taken_from_nobody(made: _Made) -> None:
    """The function may give its own invoice to the salesperson; a user may do anything."""
    made.invoiced("i1", owner=_FUNCTION)
    made.published("i1")
    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"ownerid": "a salesperson"}))
    made.commit(_PERSON, Change("update", "invoice", "i1", {"ownerid": "another"}))
    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"totalamount": 7}))
    assert made.broken() == []

    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"ownerid": "a salesperson"}))
    assert made.broken() == ["an invoice that somebody has taken stays theirs"]


def test_where_users_created_another_there_is_at_least_one_with_its_event(made: _Made) -> None:
    assert made.broken(invoiced=(), concurrent=[_OPPORTUNITY]) == ["every won opportunity has its invoice"]
    made.invoiced("i1")
    made.invoiced("by hand", _PERSON)
    assert made.broken(invoiced=(), concurrent=[_OPPORTUNITY]) == ["every won opportunity has its event"]
    made.published("by hand")

    assert made.broken(invoiced=(), concurrent=[_OPPORTUNITY]) == []
    assert made.broken() == ["every won opportunity has its invoice"]


@pytest.mark.parametrize(("invoice", "opportunity"), [("i2", _OPPORTUNITY), ("i1", "another opportunity")])
def test_event_without_its_invoice(made: _Made, invoice: str, opportunity: str) -> None:
    made.invoiced("i1")
    made.published("i1")
    made.published(invoice, "another event", opportunity)

    assert "no event without its invoice" in made.broken()


def test_event_before_its_invoice(made: _Made) -> None:
    made.published("i1")
    made.invoiced("i1")

    assert made.broken() == ["no event without its invoice"]


def test_two_ids_for_one_invoice(made: _Made) -> None:
    made.invoiced("i1")
    made.published("i1")
    made.published("i1", "another id")

    assert made.broken() == ["all events of an invoice have one id"]


def test_an_event_that_breaks_the_contract_is_found() -> None:
    broker = Broker(Configuration.load(), MovableClock(_START))
    watch = Watch(broker, validate_event)
    broker.send(TOPIC, Message(body=b"{}", message_id="event"), Message(body=b"no JSON", message_id="other"))

    broken = [
        each for each in judge(watch.evidence([], _FUNCTION), Expectations()) if "contract" in each.rule
    ]

    assert [each.what.partition(":")[0] for each in broken] == ["event", "other"]


def test_what_is_left_is_found(made: _Made) -> None:
    """A message that waits, one that is locked, and one that is scheduled; and one that is dead-lettered."""
    made.invoiced("i1")
    made.published("i1")
    made.broker.send(QUEUE, Message(message_id="locked"), Message(message_id="waits"))
    later = Message(message_id="scheduled", scheduled_enqueue_time=_START + timedelta(days=1))
    made.broker.send(QUEUE, later)
    made.broker.receive(QUEUE)
    made.broker.send(FAILED_QUEUE, Message(message_id="dead"))
    token = made.broker.receive(FAILED_QUEUE)[0].lock_token
    assert token is not None
    made.broker.dead_letter(FAILED_QUEUE, token)

    assert made.broken() == ["nothing waits"] * 3 + ["nothing lies in a dead-letter queue"]


def test_parked_needs_a_cause_of_its_own(made: _Made) -> None:
    """The opportunity and the reason must both be those that were made to fail."""
    made.invoiced("i1")
    made.published("i1")
    for body, reason in ((b"o1", "InvoiceRefused"), (b"o1", "PublishFailed"), (b"o2", "InvoiceRefused")):
        properties = {"DeadLetterReason": reason}
        made.broker.send(FAILED_QUEUE, Message(body=body, application_properties=properties))

    assert (
        made.broken(causes=[Cause(b"o1", frozenset({"InvoiceRefused"}))])
        == ["parked is only what has a permanent cause"] * 2
    )


def test_requests_before_their_time() -> None:
    """What was sent before the response is not early; another process does not know of it."""
    throttled = Request(
        "one", order=1, at=_START, responded=3, throttled_until=_START + timedelta(seconds=60)
    )
    under_way = Request("one", order=2, at=_START, responded=4)
    early = Request("one", order=5, at=_START + timedelta(seconds=59), responded=6)
    elsewhere = Request("other", order=7, at=_START + timedelta(seconds=59), responded=8)
    in_time = Request("one", order=9, at=_START + timedelta(seconds=60), responded=10)

    assert [each.rule for each in judge_requests([throttled, under_way, elsewhere, in_time])] == []
    assert [each.rule for each in judge_requests([throttled, early])] == ["no request before its time"]


_TERMS = Terms(Decimal(100), "EUR", "a customer")
_INVOICE = InvoiceState("i1", _TERMS, "a salesperson", "2026-03-02T08:00:01Z", _FUNCTION)
_SALE = OpportunityState(
    is_won=True,
    is_ordered=False,
    is_claimed=True,
    terms=_TERMS,
    owner="a salesperson",
    won_on="2026-03-02T08:00:00Z",
    invoices=(_INVOICE,),
)
_WON_AGAIN = replace(_SALE, won_on="2026-03-02T09:00:00Z", terms=replace(_TERMS, total=Decimal(120)))


def _rules(made: _Made, sale: OpportunityState, **expectations: object) -> list[str]:
    evidence = made.watch.evidence(made.commits, _FUNCTION, {_OPPORTUNITY: sale})
    return [violation.rule for violation in judge(evidence, Expectations(**expectations))]  # type: ignore[arg-type]


def _park(made: _Made, reason: str, body: str = _OPPORTUNITY, **properties: str) -> None:
    parked = {"DeadLetterReason": reason, **properties}
    made.broker.send(FAILED_QUEUE, Message(body=body.encode(), application_properties=parked))


def test_a_win_of_which_nothing_is_left_is_lost(made: _Made) -> None:
    """Whether the win has an invoice or not: without event and message, nobody would notice."""
    assert _rules(made, _SALE) == ["no win is lost"]
    assert _rules(made, replace(_SALE, is_won=False)) == []
    assert _rules(made, replace(_SALE, is_ordered=True)) == []
    assert _rules(made, _SALE, ordered=[_OPPORTUNITY]) == []


@pytest.mark.parametrize("body", [_OPPORTUNITY.upper().encode(), _OPPORTUNITY.encode("utf-16-le")])
def test_a_parked_win_is_not_lost_in_any_form(made: _Made, body: bytes) -> None:
    made.broker.send(FAILED_QUEUE, Message(body=body))

    assert "no win is lost" not in _rules(made, _SALE)


def test_an_outdated_invoice_is_to_be_parked_and_no_other(made: _Made) -> None:
    rule = "an outdated invoice is parked, and no other"
    causes = [Cause(_OPPORTUNITY.encode(), frozenset({"InvoiceOutdated"}))]
    made.published("i1")
    assert rule in _rules(made, _WON_AGAIN, won_again=[_OPPORTUNITY])
    assert rule not in _rules(made, _SALE, won_again=[_OPPORTUNITY])
    _park(made, "InvoiceOutdated")
    assert rule not in _rules(made, _WON_AGAIN, won_again=[_OPPORTUNITY], causes=causes)
    assert rule in _rules(made, _SALE, won_again=[_OPPORTUNITY], causes=causes)


@pytest.mark.parametrize(
    "sale",
    [
        replace(_WON_AGAIN, terms=_TERMS),
        replace(_WON_AGAIN, terms=replace(_TERMS, total=None)),
        replace(_WON_AGAIN, won_on="2026-03-02T07:00:00Z"),
        replace(_WON_AGAIN, is_claimed=False),
        replace(_WON_AGAIN, invoices=()),
    ],
)
def test_not_outdated(sale: OpportunityState) -> None:
    assert _WON_AGAIN.is_outdated
    assert sale.is_outdated is False


@pytest.mark.parametrize(
    ("reason", "text", "minutes", "is_right"),
    [
        ("InvoiceRefused", "No credit.", 60, True),
        ("InvoiceRefused", "No credit.", 79, True),
        ("DataverseUnavailable", "No credit.", 60, False),
        ("InvoiceRefused", "An error.", 60, False),
        ("InvoiceRefused", "No credit.", 3, False),
        ("InvoiceRefused", "No credit.", 3 * 24 * 60, False),
    ],
)
def test_a_refusal_is_judged_by_reason_text_and_time(
    made: _Made, reason: str, text: str, minutes: int, *, is_right: bool
) -> None:
    first_seen = made.clock.now().isoformat()
    made.clock.advance(timedelta(minutes=minutes))
    _park(made, reason, DeadLetterErrorDescription=text, InvoicingFirstSeen=first_seen)
    refusal = Refusal(_OPPORTUNITY, "InvoiceRefused", "No credit.", timedelta(hours=1))

    rules = _rules(made, _SALE, refusals=[refusal])

    assert ("a refusal is parked with its text" not in rules) is is_right


def test_a_refusal_that_left_nothing_is_found(made: _Made) -> None:
    refusal = Refusal(_OPPORTUNITY, "InvoiceRefused", "No credit.", timedelta(hours=1))

    assert "a refusal is parked with its text" in _rules(made, _SALE, refusals=[refusal])


def test_owner_of_a_generated_invoice(made: _Made) -> None:
    rule = "the right one owns the invoice"
    by_hand = replace(_SALE, invoices=(replace(_INVOICE, created_by=_PERSON),))

    assert rule not in _rules(made, _SALE, owners={_OPPORTUNITY: "a salesperson"})
    assert rule in _rules(made, _SALE, owners={_OPPORTUNITY: "a team"})
    assert rule not in _rules(made, by_hand, owners={_OPPORTUNITY: "a team"})


def test_troubles_of_others_delay_nothing(made: _Made) -> None:
    rule = "the troubles of others delay nothing"
    made.commit(_PERSON, Change("update", "opportunity", _OPPORTUNITY, {"statecode": 1}))
    assert rule in _rules(made, _SALE, prompt=[_OPPORTUNITY])
    made.published("i1")
    assert rule not in _rules(made, _SALE, prompt=[_OPPORTUNITY])
    made.watch._published[:] = [replace(made.watch._published[0], at=_START + timedelta(minutes=5))]
    assert rule in _rules(made, _SALE, prompt=[_OPPORTUNITY])


def test_retries_are_counted_by_what_they_mention(made: _Made) -> None:
    rule = "the delays of retries grow"
    for number in range(3):
        properties = {"InvoicingRoot": "a root"} if number else {}
        body = _OPPORTUNITY.encode()
        made.broker.send(QUEUE, Message(body=body, application_properties=properties))

    assert rule not in _rules(made, _SALE, max_retries={_OPPORTUNITY: 2})
    assert rule in _rules(made, _SALE, max_retries={_OPPORTUNITY: 1})


def test_a_parked_copy_has_the_body_of_an_original(made: _Made) -> None:
    made.broker.send(QUEUE, Message(body=b"\xff"))
    rule = "a copy has the body of its original"
    made.broker.send(FAILED_QUEUE, Message(body=b"\xff", application_properties={"InvoicingRoot": "a root"}))
    assert rule not in _rules(made, _SALE)
    made.broker.send(FAILED_QUEUE, Message(body=b"?", application_properties={"InvoicingRoot": "a root"}))
    assert rule in _rules(made, _SALE)


def test_columns_of_events(made: _Made) -> None:
    rule = "every event has the configured columns"
    made.published("i1")

    assert rule in _rules(made, _SALE, columns=frozenset({"new_costcenter"}))
    assert rule not in _rules(made, _SALE)
