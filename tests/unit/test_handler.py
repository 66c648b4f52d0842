from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnauthorized,
    DataverseUnavailable,
    DataverseUnreachable,
    InvalidSettings,
    InvoiceRefused,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
    RetryLater,
    RetryPolicy,
    ServiceBusUnavailable,
    TokenUnavailable,
)
from shared.handler import Environment, Handler
from shared.invoice import Currency, Customer, Invoice
from shared.message import Ignored, RetryState, log_suffix
from shared.service_bus import NotSent, Outgoing, ServiceBus, TooLarge
from shared.settings import ConnectionString, RetrySettings, ServiceBusSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.clock import Deadline
    from shared.message import Message
    from tests.unit.conftest import FakeClock, RecordingSender

OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
ORGANIZATION = "11111111-2222-3333-4444-555555555555"
INVOICE = Invoice(
    id="0f8fad5b-d9cb-469f-a165-70867728950e",
    number="INV-01042",
    name="Coffee machines",
    opportunity_id=OPPORTUNITY,
    customer=Customer("account", "83883308-7ad5-ea11-a813-000d3a33f3b4"),
    total_amount=Decimal("1250.4"),
    currency=Currency("7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40", "EUR", 2),
    pricing_error_code=0,
    created_on=datetime(2026, 3, 1, 11, 59, tzinfo=UTC),
)
ROOT = "7@2026-03-01T11:59:58+00:00"
SETTINGS = ServiceBusSettings(ConnectionString("Endpoint=sb://x/"), "won", "failed", "created", 240)
RETRY = RetrySettings(
    {
        RetryPolicy.OPEN: timedelta(minutes=5),
        RetryPolicy.RECORD: timedelta(hours=1),
        RetryPolicy.OUTAGE: timedelta(days=3),
    },
    first_delay=timedelta(seconds=5),
    longest_delay=timedelta(minutes=15),
)
LATER: list[RetryLater] = [
    OpportunityStillOpen("x"),
    OpportunityNotFound("x"),
    RecordNotFound("x"),
    InvoiceRefused("x"),
    ClaimedWithoutInvoice("x"),
    DataverseUnreachable("x"),
    DataverseUnavailable("x"),
    DataverseThrottled("x", retry_after=7),
    DataverseThrottled("x", retry_after=None),
    DataverseUnauthorized("x"),
    DataverseForbidden("x"),
    DataverseNotFound("x"),
    TokenUnavailable("x"),
    InvalidSettings(("x",)),
]


class Stage:
    """A handler, what it is given, and what it has done."""

    def __init__(self, clock: FakeClock, sender: RecordingSender, retry: RetrySettings) -> None:
        self.outcome: Invoice | Ignored | Exception = INVOICE
        self.asked: list[str] = []
        self.time_for_invoicing = 0.0
        self.warmed_up_before: list[str] = []
        self.random = 0.0
        self.on_ensure_invoice: Callable[[], None] = lambda: None
        self.clock = clock
        self.sender = sender
        self.handler = Handler(
            self._ensure_invoice,
            ServiceBus(sender, SETTINGS, clock),
            Environment("https://contoso.crm4.dynamics.com", ORGANIZATION),
            retry,
            invocation_deadline=240,
            clock=clock,
            random=lambda: self.random,
        )

    def _ensure_invoice(self, opportunity_id: str, deadline: Deadline) -> Invoice | Ignored:
        self.asked.append(opportunity_id)
        self.on_ensure_invoice()
        self.time_for_invoicing = deadline.remaining
        self.warmed_up_before = list(self.sender.warmed_up)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    @property
    def sent(self) -> list[tuple[str, Outgoing]]:
        return self.sender.sent

    def the_only_one_sent(self, entity: str) -> Outgoing:
        ((to, outgoing),) = self.sent
        assert to == entity
        return outgoing


@pytest.fixture
def stage(clock: FakeClock, sender: RecordingSender, caplog: pytest.LogCaptureFixture) -> Stage:
    caplog.set_level(logging.INFO)
    return Stage(clock, sender, RETRY)


def aged(message: Message, policy: RetryPolicy, age: timedelta, **more: object) -> Message:
    """Return a copy that has been tried under a policy since `age`."""
    since = (message.enqueued_at - age).isoformat()
    place: Mapping[str, object] = {
        "InvoicingRoot": "root-1",
        "InvoicingAttempt": 4,
        "InvoicingBackoff": 4,
        "InvoicingFirstSeen": since,
        "InvoicingRhythm": policy.value,
        "InvoicingRhythmSince": since,
    }
    return replace(message, properties={**place, **more})


# ---------------------------------------------------------------------------------------------- done


def test_a_win_becomes_an_invoice_and_its_event(
    stage: Stage,
    make_message: Callable[..., Message],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.handler.handle(
        make_message(body=b'{"opportunityId": "%s", "correlationId": "c-9"}' % OPPORTUNITY.upper().encode()),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert stage.asked == [OPPORTUNITY]
    event = stage.the_only_one_sent("created")
    assert event.correlation_id == "c-9"
    assert event.properties["traceparent"] == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert event.properties["cloudEvents_source"] == "https://contoso.crm4.dynamics.com"
    assert caplog.messages == [
        (
            f"published: opportunity={OPPORTUNITY} invoice={INVOICE.id} event={event.message_id} attempt=0 age=0s "
            f"root={ROOT}"
        )
    ]


def test_the_link_to_the_topic_is_opened_while_dataverse_is_asked(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    """It takes half a second, and at a CRM's rate most messages are the first after a while."""
    stage.handler.handle(make_message())
    assert stage.warmed_up_before == ["created"]
    stage.handler.handle(make_message(body=b"<"))
    assert stage.sender.warmed_up == ["created"], "not for a message that is not a win"


def test_the_event_is_the_same_from_every_attempt(stage: Stage, make_message: Callable[..., Message]) -> None:
    stage.handler.handle(make_message())
    stage.handler.handle(make_message(message_id="another win", sequence_number=9))
    (_, first), (_, second) = stage.sent
    assert (first.message_id, first.body) == (second.message_id, second.body)


def test_some_of_the_time_is_reserved_for_scheduling_a_retry(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.handler.handle(make_message())
    assert stage.time_for_invoicing == 180


# ---------------------------------------------------------------------------------------------- ignored


def test_an_event_that_wins_nothing_is_one_log_line(
    stage: Stage, make_message: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    lost = b'{"MessageName": "Lose", "PrimaryEntityName": "opportunity", "InputParameters": []}'
    stage.handler.handle(make_message(body=lost))
    assert (stage.asked, stage.sent) == ([], [])
    (line,) = caplog.messages
    assert line.startswith("ignored: ")
    assert line.endswith(f" opportunity=unknown attempt=0 age=0s root={ROOT}")


def test_an_opportunity_that_is_ignored_is_one_log_line(
    stage: Stage, make_message: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    stage.outcome = Ignored("the opportunity is not won")
    stage.handler.handle(make_message())
    assert stage.sent == []
    assert caplog.messages == [
        f"ignored: the opportunity is not won opportunity={OPPORTUNITY} attempt=0 age=0s root={ROOT}"
    ]


def test_a_win_that_stays_open_was_withdrawn(
    stage: Stage, make_message: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    stage.outcome = OpportunityStillOpen("It is open.")
    stage.handler.handle(aged(make_message(), RetryPolicy.OPEN, timedelta(minutes=5)))
    assert stage.sent == []
    (line,) = caplog.messages
    assert line == f"ignored: the win was withdrawn opportunity={OPPORTUNITY} attempt=4 age=300s root=root-1"


# ---------------------------------------------------------------------------------------------- later


@pytest.mark.parametrize("error", LATER, ids=lambda error: error.reason)
def test_what_may_pass_is_tried_again_by_way_of_a_copy(
    error: RetryLater,
    stage: Stage,
    make_message: Callable[..., Message],
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.outcome = error
    message = make_message(properties={"of": "the sender"})
    stage.handler.handle(message)
    copy = stage.the_only_one_sent("won")
    assert copy.body == message.body
    assert copy.due is not None
    assert copy.due > clock.now()
    assert copy.properties["of"] == "the sender"
    assert copy.properties["InvoicingReason"] == error.reason
    assert copy.properties["InvoicingAttempt"] == 1
    assert copy.message_id != message.message_id, "duplicate detection would drop it"
    (line,) = caplog.messages
    assert line.startswith(f"retry: reason={error.reason} in=")
    assert line.endswith(f"s opportunity={OPPORTUNITY} attempt=0 age=0s root={ROOT}: x")


def test_a_copy_is_accepted_before_the_original_is_completed(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    """The host completes when `handle` returns: it does not return before, and raises if there is no copy."""
    stage.outcome = DataverseUnreachable("x")
    stage.sender.always = NotSent("x")
    with pytest.raises(ServiceBusUnavailable):
        stage.handler.handle(make_message())
    stage.sender.always = None
    stage.handler.handle(make_message())
    assert len(stage.sent) == 1


def test_a_publication_that_fails_is_made_up_by_a_copy(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.sender.failures.append(TooLarge("the broker takes no message of this size"))
    stage.handler.handle(make_message())
    assert stage.the_only_one_sent("won").properties["InvoicingReason"] == "PublishFailed"


def test_a_copy_without_room_carries_the_event_in_its_plain_form(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.outcome = DataverseUnreachable("x")
    stage.sender.failures.append(TooLarge("x"))
    stage.handler.handle(make_message(body=b'{"opportunityId": "%s", "x": 1}' % OPPORTUNITY.encode()))
    copy = stage.the_only_one_sent("won")
    stage.outcome = INVOICE
    stage.handler.handle(
        make_message(body=copy.body, content_type=copy.content_type, properties=copy.properties)
    )
    assert stage.asked == [OPPORTUNITY, OPPORTUNITY]


@pytest.mark.parametrize(("random", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_the_delay_doubles_up_to_a_quarter_of_an_hour_with_jitter(
    random: float, share: float, stage: Stage, make_message: Callable[..., Message], clock: FakeClock
) -> None:
    stage.outcome, stage.random = DataverseUnreachable("x"), random
    message, delays = make_message(), []
    for _ in range(12):
        stage.handler.handle(message)
        _, copy = stage.sent[-1]
        assert copy.due is not None
        delays.append((copy.due - clock.now()).total_seconds())
        message = make_message(message_id=copy.message_id, properties=copy.properties)
    grown = [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900, 900]
    assert delays == [seconds * share for seconds in grown]
    assert len({copy.message_id for _, copy in stage.sent}) == 12


def test_the_delay_doubles_twenty_times_at_most(
    clock: FakeClock, sender: RecordingSender, make_message: Callable[..., Message]
) -> None:
    """Otherwise a delay that grows from a millisecond for days would become a number of thousands of digits."""
    stage = Stage(
        clock, sender, replace(RETRY, first_delay=timedelta(milliseconds=1), longest_delay=timedelta(days=9))
    )
    stage.outcome, stage.random = DataverseUnreachable("x"), 1.0
    for backoff, delay in ((19, 524.288), (20, 1048.576), (21, 1048.576)):
        stage.handler.handle(make_message(properties={"InvoicingBackoff": backoff}))
        _, retry = stage.sent.pop()
        assert retry.due is not None
        assert (retry.due - clock.now()).total_seconds() == delay


def test_the_highest_backoff_still_has_a_delay(stage: Stage, make_message: Callable[..., Message]) -> None:
    stage.outcome = DataverseUnreachable("x")
    stage.handler.handle(make_message(properties={"InvoicingBackoff": 1_000_000}))
    assert stage.the_only_one_sent("won").due is not None


def test_throttling_without_a_time_backs_off_like_any_other_outage(
    stage: Stage, make_message: Callable[..., Message], clock: FakeClock
) -> None:
    """The plug-in of one record may be busy for days, and says nothing of when to come back."""
    stage.outcome, stage.random = DataverseThrottled("x", retry_after=None), 1.0
    stage.handler.handle(aged(make_message(), RetryPolicy.OUTAGE, timedelta(hours=1)))
    copy = stage.the_only_one_sent("won")
    assert copy.due is not None
    assert copy.due - clock.now() == timedelta(seconds=80)
    assert copy.properties["InvoicingBackoff"] == 5


def test_a_slow_worker_clock_makes_no_retry_due_in_the_past(
    stage: Stage, make_message: Callable[..., Message], clock: FakeClock
) -> None:
    """Due at once, it would come back in a hot loop for as long as the outage lasts."""
    stage.outcome, stage.random = DataverseUnreachable("x"), 1.0
    stage.handler.handle(make_message(enqueued_at=clock.now() + timedelta(hours=1)))
    clock.advance(30)
    stage.handler.handle(make_message(enqueued_at=clock.now() - timedelta(days=1), sequence_number=8))
    dues = [copy.due for _, copy in stage.sent]
    broker = clock.now() + timedelta(hours=1)
    assert dues == [broker - timedelta(seconds=25), broker + timedelta(seconds=5)]


def test_no_text_from_outside_begins_a_log_line(
    stage: Stage, make_message: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    forged = "x\nparked: reason=InvalidEvent\x1b[2J\u2028y"
    stage.outcome = InvoiceRefused(f"Dataverse responded: {forged}")
    message = make_message(message_id=forged, correlation_id=forged, properties={"InvoicingRoot": forged})
    stage.handler.handle(message)
    stage.handler.handle(replace(message, body=b"<" + forged.encode()))
    stage.handler.handle(aged(message, RetryPolicy.RECORD, timedelta(hours=1), InvoicingRoot=forged))
    assert len(caplog.messages) == 3
    assert all(line.isprintable() for line in caplog.messages)


@pytest.mark.parametrize(
    ("random", "asked", "delay"),
    [(0.0, 60.0, 60), (1.0, 60.0, 71), (0.0, 1.0, 1), (1.0, 10.0, 13), (1.0, 900.0, 911)],
)
def test_throttling_waits_the_time_that_was_asked_for_and_some_more_and_does_not_raise_the_backoff(
    random: float,
    asked: float,
    delay: float,
    stage: Stage,
    make_message: Callable[..., Message],
    clock: FakeClock,
) -> None:
    stage.outcome, stage.random = DataverseThrottled("x", retry_after=asked), random
    stage.handler.handle(aged(make_message(), RetryPolicy.OUTAGE, timedelta(hours=1)))
    copy = stage.the_only_one_sent("won")
    assert copy.due is not None
    assert copy.due - clock.now() == timedelta(seconds=delay)
    assert (copy.properties["InvoicingBackoff"], copy.properties["InvoicingAttempt"]) == (4, 5)


# ---------------------------------------------------------------------------------------------- used up


@pytest.mark.parametrize(
    ("error", "bound"),
    [(error, RETRY.bounds[error.policy]) for error in LATER if not isinstance(error, OpportunityStillOpen)],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_what_does_not_pass_in_its_time_is_parked(
    error: RetryLater,
    bound: timedelta,
    stage: Stage,
    make_message: Callable[..., Message],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.outcome = error
    stage.handler.handle(aged(make_message(), error.policy, bound - timedelta(seconds=1)))
    assert stage.sent.pop()[0] == "won"
    caplog.clear()
    message = aged(make_message(), error.policy, bound, of="the sender")
    stage.handler.handle(message)
    parked = stage.the_only_one_sent("failed")
    assert parked.body == message.body
    assert parked.properties["DeadLetterReason"] == error.reason
    assert error.advice in str(parked.properties["DeadLetterErrorDescription"])
    assert parked.properties["InvoicingAttempt"] == 4
    assert parked.properties["InvoicingOriginalMessageId"] == "win-1"
    assert parked.properties["of"] == "the sender"
    (line,) = caplog.messages
    assert line.startswith(f"parked: reason={error.reason} opportunity={OPPORTUNITY} attempt=4")
    assert line.endswith(f": {error}")


def test_another_policy_begins_anew(stage: Stage, make_message: Callable[..., Message]) -> None:
    """After an outage of two hours a record that can be fixed has its whole hour."""
    stage.outcome = InvoiceRefused("x")
    stage.handler.handle(aged(make_message(), RetryPolicy.OUTAGE, timedelta(hours=2)))
    assert stage.the_only_one_sent("won").properties["InvoicingRhythm"] == "short"


def test_a_message_that_wanders_between_policies_ends_with_the_longest(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.outcome = InvoiceRefused("x")
    message = aged(make_message(), RetryPolicy.OUTAGE, timedelta(days=3))
    stage.handler.handle(message)
    assert stage.the_only_one_sent("failed").properties["DeadLetterReason"] == "InvoiceRefused"


# ---------------------------------------------------------------------------------------------- parked at once


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<xml/>", "InvalidEvent"),
        (b"", "InvalidEvent"),
        (
            b'{"opportunityId": "%s", "organizationId": "66666666-7777-8888-9999-aaaaaaaaaaaa"}'
            % OPPORTUNITY.encode(),
            "OtherOrganization",
        ),
    ],
)
def test_what_cannot_help_to_try_again_is_parked_at_once(
    body: bytes,
    reason: str,
    stage: Stage,
    make_message: Callable[..., Message],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.handler.handle(make_message(body=body))
    assert stage.asked == []
    parked = stage.the_only_one_sent("failed")
    assert (parked.body, parked.properties["DeadLetterReason"]) == (body, reason)
    (line,) = caplog.messages
    assert line.startswith(f"parked: reason={reason} opportunity=unknown")


# ---------------------------------------------------------------------------------------------- left to the broker


def test_a_message_that_cannot_be_rescheduled_is_left_to_the_broker(
    stage: Stage, make_message: Callable[..., Message], clock: FakeClock
) -> None:
    stage.sender.always = NotSent("x")
    began = clock.monotonic()
    with pytest.raises(ServiceBusUnavailable):
        stage.handler.handle(make_message(body=b"unreadable"))
    assert 180 <= clock.monotonic() - began <= 240, "it keeps trying, within the deadline"


def test_a_bug_is_left_to_the_broker(stage: Stage, make_message: Callable[..., Message]) -> None:
    stage.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        stage.handler.handle(make_message())
    assert stage.sent == []


# ---------------------------------------------------------------------------------------------- a whole state


def test_retries_always_end(stage: Stage, make_message: Callable[..., Message], clock: FakeClock) -> None:
    """Three days of outage: some hundreds of copies, each with an id of its own, then the failed queue."""
    stage.outcome = DataverseUnreachable("x")
    message, ids = make_message(), set()
    for _ in range(1000):
        stage.handler.handle(message)
        entity, copy = stage.sent.pop()
        if entity == "failed":
            break
        assert copy.message_id not in ids
        ids.add(copy.message_id)
        assert copy.due is not None
        clock.advance((copy.due - clock.now()).total_seconds())
        message = make_message(
            message_id=copy.message_id, enqueued_at=copy.due, properties=copy.properties, body=copy.body
        )
    assert entity == "failed"
    assert RetryState.of(message).age >= timedelta(days=3)
    assert 288 <= len(ids) <= 600
    assert copy.properties["InvoicingFirstSeen"] == "2026-03-01T11:59:58+00:00"


def test_handling_needs_nothing_of_what_a_message_may_lack(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    lacking: dict[str, Any] = dict.fromkeys(
        ("message_id", "sequence_number", "content_type", "correlation_id", "subject")
    )
    stage.outcome = DataverseUnreachable("x")
    stage.handler.handle(make_message(**lacking))
    copy = stage.the_only_one_sent("won")
    assert str(copy.properties["InvoicingRoot"]).endswith("@2026-03-01T11:59:58+00:00")
    assert (copy.content_type, copy.correlation_id, copy.subject) == (None, None, None)


# ---------------------------------------------------------------------------------------------- the trace

HOSTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENDERS = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
STALE = {"traceparent": SENDERS, "Diagnostic-Id": SENDERS}


def test_a_retry_belongs_to_the_trace_of_the_attempt(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    """The host takes the older name where the newer is missing: it must not lead back to the first attempt."""
    stage.outcome = DataverseUnreachable("x")
    stage.handler.handle(make_message(properties={**STALE, "of": "the sender"}), traceparent=HOSTS)
    copy = stage.the_only_one_sent("won")
    assert copy.properties["traceparent"] == HOSTS
    assert "Diagnostic-Id" not in copy.properties
    assert copy.properties["of"] == "the sender"


def test_a_retry_without_room_for_the_senders_properties_belongs_to_the_trace(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.outcome = DataverseUnreachable("x")
    stage.sender.failures.append(TooLarge("x"))
    stage.handler.handle(make_message(properties={"large": "x"}), traceparent=HOSTS)
    copy = stage.the_only_one_sent("won")
    assert copy.properties["traceparent"] == HOSTS
    assert "large" not in copy.properties


def test_a_parked_message_belongs_to_the_trace_of_the_attempt(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.handler.handle(make_message(body=b"unreadable", properties=STALE), traceparent=HOSTS)
    parked = stage.the_only_one_sent("failed")
    assert parked.properties["traceparent"] == HOSTS
    assert "Diagnostic-Id" not in parked.properties


@pytest.mark.parametrize("name", ["traceparent", "Diagnostic-Id"])
def test_without_a_trace_of_the_host_the_senders_goes_on(
    name: str, stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.handler.handle(make_message(properties={name: SENDERS}))
    assert stage.the_only_one_sent("created").properties["traceparent"] == SENDERS


def test_without_any_trace_a_retry_keeps_the_properties_as_they_are(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    stage.outcome = DataverseUnreachable("x")
    stage.handler.handle(make_message(properties={"Diagnostic-Id": "|an.older.format."}))
    copy = stage.the_only_one_sent("won")
    assert copy.properties["Diagnostic-Id"] == "|an.older.format."
    assert "traceparent" not in copy.properties


def test_what_is_logged_about_dataverse_names_opportunity_and_root(
    stage: Stage, make_message: Callable[..., Message]
) -> None:
    seen: list[str] = []
    stage.on_ensure_invoice = lambda: seen.append(log_suffix())
    stage.handler.handle(make_message())
    assert seen == [f" opportunity={OPPORTUNITY} root={ROOT}"]
    assert log_suffix() == ""
