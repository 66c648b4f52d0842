"""The judge itself, on evidence made up by hand: what the mutants do not show."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from checker import (
    FAILED_QUEUE,
    QUEUE,
    TOPIC,
    Cause,
    Evidence,
    Expectations,
    Request,
    Watch,
    judge,
    judge_requests,
)
from contract import validate_event

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
        self.watch = Watch(self.broker)
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

    def told(self, invoice: str, event_id: str | None = None, opportunity: str = _OPPORTUNITY) -> None:
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
    made.told("i1")
    made.told("i1")

    assert made.broken() == []


def test_second_invoice_is_found_though_the_first_is_deleted(made: _Made) -> None:
    made.invoiced("i1")
    made.commit(_PERSON, Change("delete", "invoice", "i1", {}))
    made.invoiced("i2")
    made.told("i2")

    assert made.broken() == ["one generated invoice per opportunity"]


def test_second_invoice_is_found_though_only_the_claim_is_deleted(made: _Made) -> None:
    made.invoiced("i1")
    made.commit(_PERSON, Change("delete", "annotation", "note i1", {}))
    made.invoiced("i2")

    assert "one generated invoice per opportunity" in made.broken(invoiced=())


@pytest.mark.parametrize(
    "gone", [Change("delete", "invoice", "i1", {}), Change("update", "invoice", "i1", {"statecode": 3})]
)
def test_second_invoice_is_asked_for_by_deleting_claim_and_invoice(made: _Made, gone: Change) -> None:
    made.invoiced("i1")
    made.commit(_PERSON, Change("delete", "annotation", "note i1", {}))
    made.commit(_PERSON, gone)
    made.invoiced("i2")
    made.told("i2")

    assert made.broken() == []


def test_manual_invoice_is_nobodys_second(made: _Made) -> None:
    made.invoiced("by hand", _PERSON)
    made.told("by hand")

    assert made.broken(never=[_OPPORTUNITY]) == []


def test_an_invoice_is_given_away_once_and_taken_from_nobody(made: _Made) -> None:
    """The product may give its own invoice to the salesperson; a person may do anything."""
    made.invoiced("i1", owner=_FUNCTION)
    made.told("i1")
    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"ownerid": "a salesperson"}))
    made.commit(_PERSON, Change("update", "invoice", "i1", {"ownerid": "another"}))
    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"totalamount": 7}))
    assert made.broken() == []

    made.commit(_FUNCTION, Change("update", "invoice", "i1", {"ownerid": "a salesperson"}))
    assert made.broken() == ["an invoice that somebody has taken stays theirs"]


def test_where_people_made_another_there_is_one_at_least_and_it_is_told_of(made: _Made) -> None:
    assert made.broken(invoiced=(), crowded=[_OPPORTUNITY]) == ["every won opportunity has its invoice"]
    made.invoiced("i1")
    made.invoiced("by hand", _PERSON)
    assert made.broken(invoiced=(), crowded=[_OPPORTUNITY]) == ["every won opportunity has its event"]
    made.told("by hand")

    assert made.broken(invoiced=(), crowded=[_OPPORTUNITY]) == []
    assert made.broken() == ["every won opportunity has its invoice"]


@pytest.mark.parametrize(("invoice", "opportunity"), [("i2", _OPPORTUNITY), ("i1", "another opportunity")])
def test_event_without_its_invoice(made: _Made, invoice: str, opportunity: str) -> None:
    made.invoiced("i1")
    made.told("i1")
    made.told(invoice, "another event", opportunity)

    assert "no event without its invoice" in made.broken()


def test_event_before_its_invoice(made: _Made) -> None:
    made.told("i1")
    made.invoiced("i1")

    assert made.broken() == ["no event without its invoice"]


def test_two_ids_for_one_invoice(made: _Made) -> None:
    made.invoiced("i1")
    made.told("i1")
    made.told("i1", "another id")

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
    made.told("i1")
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
    made.told("i1")
    for body, reason in ((b"o1", "InvoiceRefused"), (b"o1", "PublishFailed"), (b"o2", "InvoiceRefused")):
        properties = {"DeadLetterReason": reason}
        made.broker.send(FAILED_QUEUE, Message(body=body, application_properties=properties))

    assert (
        made.broken(causes=[Cause(b"o1", frozenset({"InvoiceRefused"}))])
        == ["parked is only what has a permanent cause"] * 2
    )


def test_requests_before_their_time() -> None:
    """What was under way before the answer is not early; another process does not know."""
    told = Request("one", order=1, at=_START, answered=3, hold_back_until=_START + timedelta(seconds=60))
    under_way = Request("one", order=2, at=_START, answered=4)
    early = Request("one", order=5, at=_START + timedelta(seconds=59), answered=6)
    elsewhere = Request("other", order=7, at=_START + timedelta(seconds=59), answered=8)
    in_time = Request("one", order=9, at=_START + timedelta(seconds=60), answered=10)

    assert [each.rule for each in judge_requests([told, under_way, elsewhere, in_time])] == []
    assert [each.rule for each in judge_requests([told, early])] == ["no request before its time"]
