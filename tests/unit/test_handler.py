from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

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
    InvoiceOutdated,
    InvoiceRefused,
    OpportunityNotFound,
    OpportunityStillOpen,
    RecordNotFound,
    RetryLater,
    RetryPolicy,
    ServiceBusUnavailable,
    TokenUnavailable,
)
from shared.message import Ignored, RetryState, log_suffix
from shared.service_bus import NotSent, TooLarge
from tests.unit.conftest import INVOICE, OPPORTUNITY, RETRY, ROOT, WIN, Stage

if TYPE_CHECKING:
    from tests.unit.conftest import FakeClock, RecordingSender

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
UNREACHABLE = DataverseUnreachable("x")
HOSTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENDERS = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


def aged(policy: RetryPolicy, age: timedelta, **more: object) -> dict[str, object]:
    """Return the properties of a retry that has been tried under a policy since `age`."""
    since = (WIN.enqueued_at - age).isoformat()
    return {
        "InvoicingRoot": "root-1",
        "InvoicingAttempt": 4,
        "InvoicingBackoff": 4,
        "InvoicingFirstSeen": since,
        "InvoicingRhythm": policy.value,
        "InvoicingRhythmSince": since,
        **more,
    }


# ---------------------------------------------------------------------------------------------- done


def test_a_win_becomes_an_invoice_and_its_event(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"opportunityId": "%s", "correlationId": "c-9"}' % OPPORTUNITY.upper().encode()
    stage.handle(body=body, traceparent=HOSTS)
    assert stage.asked == [OPPORTUNITY]
    event = stage.the_only_one_sent("created")
    assert event.correlation_id == "c-9"
    assert event.properties["traceparent"] == HOSTS
    assert event.properties["cloudEvents_source"] == "https://contoso.crm4.dynamics.com"
    (line,) = caplog.messages
    assert line == (
        f"published: opportunity={OPPORTUNITY} invoice={INVOICE.id} event={event.message_id} attempt=0 age=0s "
        f"root={ROOT}"
    )


def test_the_link_to_the_topic_is_opened_while_dataverse_is_asked(stage: Stage) -> None:
    """It takes half a second, and at a CRM's rate most messages are the first after a while."""
    before: list[str] = []
    stage.on_ensure_invoice = lambda *_: before.extend(stage.sender.warmed_up)
    stage.handle()
    assert before == ["created"]
    stage.handle(body=b"<")
    assert stage.sender.warmed_up == ["created"], "not for a message that is not a win"


def test_the_event_is_the_same_from_every_attempt(stage: Stage) -> None:
    stage.handle()
    stage.handle(message_id="another win", sequence_number=9)
    (_, first), (_, second) = stage.sent
    assert (first.message_id, first.body) == (second.message_id, second.body)


def test_some_of_the_time_is_reserved_for_scheduling_a_retry(stage: Stage) -> None:
    left: list[float] = []
    stage.on_ensure_invoice = lambda _, deadline: left.append(deadline.remaining)
    stage.handle()
    assert left == [180]


# ---------------------------------------------------------------------------------------------- ignored


def test_an_event_that_wins_nothing_is_one_log_line(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.handle(body=b'{"MessageName": "Lose", "PrimaryEntityName": "opportunity", "InputParameters": []}')
    assert (stage.asked, stage.sent) == ([], [])
    (line,) = caplog.messages
    assert line.startswith("ignored: ")
    assert line.endswith(f" opportunity=unknown attempt=0 age=0s root={ROOT}")


def test_an_opportunity_that_is_ignored_is_one_log_line(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.outcome = Ignored("the opportunity is not won")
    stage.handle()
    assert stage.sent == []
    assert caplog.messages == [
        f"ignored: the opportunity is not won opportunity={OPPORTUNITY} attempt=0 age=0s root={ROOT}"
    ]


def test_a_win_that_stays_open_was_withdrawn(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.outcome = OpportunityStillOpen("It is open.")
    stage.handle(properties=aged(RetryPolicy.OPEN, timedelta(minutes=5)))
    assert stage.sent == []
    (line,) = caplog.messages
    assert line == f"ignored: the win was withdrawn opportunity={OPPORTUNITY} attempt=4 age=300s root=root-1"


# ---------------------------------------------------------------------------------------------- later


@pytest.mark.parametrize("error", LATER, ids=lambda error: error.reason)
def test_what_may_pass_is_tried_again_by_way_of_a_copy(
    error: RetryLater, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.outcome = error
    stage.handle(properties={"of": "the sender"})
    copy = stage.the_only_one_sent("won")
    assert copy.body == WIN.body
    assert stage.delay(copy) > 0
    assert copy.properties["of"] == "the sender"
    assert copy.properties["InvoicingReason"] == error.reason
    assert copy.properties["InvoicingAttempt"] == 1
    assert copy.message_id != WIN.message_id, "duplicate detection would drop it"
    (line,) = caplog.messages
    assert line.startswith(f"retry: reason={error.reason} in=")
    assert line.endswith(f"s opportunity={OPPORTUNITY} attempt=0 age=0s root={ROOT}: x")


def test_a_copy_is_accepted_before_the_original_is_completed(stage: Stage) -> None:
    """The host completes when `handle` returns: it does not return before, and raises if there is no copy."""
    stage.outcome = UNREACHABLE
    stage.sender.always = NotSent("x")
    with pytest.raises(ServiceBusUnavailable):
        stage.handle()
    stage.sender.always = None
    stage.handle()
    assert len(stage.sent) == 1


def test_a_publication_that_fails_is_made_up_by_a_copy(stage: Stage) -> None:
    stage.sender.failures.append(TooLarge("the broker takes no message of this size"))
    stage.handle()
    assert stage.the_only_one_sent("won").properties["InvoicingReason"] == "PublishFailed"


def test_a_copy_without_room_carries_the_event_in_its_plain_form(stage: Stage) -> None:
    stage.outcome = UNREACHABLE
    stage.sender.failures.append(TooLarge("x"))
    stage.handle(
        body=b'{"opportunityId": "%s", "x": 1}' % OPPORTUNITY.encode(),
        properties={"large": "x"},
        traceparent=HOSTS,
    )
    copy = stage.the_only_one_sent("won")
    assert copy.properties["traceparent"] == HOSTS
    assert "large" not in copy.properties
    stage.outcome = INVOICE
    stage.handle(body=copy.body, content_type=copy.content_type, properties=copy.properties)
    assert stage.asked == [OPPORTUNITY, OPPORTUNITY]


@pytest.mark.parametrize(("random", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_the_delay_doubles_up_to_a_quarter_of_an_hour_with_jitter(
    random: float, share: float, stage: Stage
) -> None:
    stage.outcome, stage.random = UNREACHABLE, random
    stage.handle()
    for _ in range(11):
        _, copy = stage.sent[-1]
        stage.handle(message_id=copy.message_id, properties=copy.properties)
    grown = [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900, 900]
    assert [stage.delay(copy) for _, copy in stage.sent] == [seconds * share for seconds in grown]
    assert len({copy.message_id for _, copy in stage.sent}) == 12


def test_the_delay_doubles_twenty_times_at_most(clock: FakeClock, sender: RecordingSender) -> None:
    """Otherwise a delay that grows from a millisecond for days would become a number of thousands of digits."""
    retry = replace(RETRY, first_delay=timedelta(milliseconds=1), longest_delay=timedelta(days=9))
    stage = Stage(clock, sender, retry=retry)
    stage.outcome, stage.random = UNREACHABLE, 1.0
    backoffs = (19, 20, 21, 1_000_000)
    for backoff in backoffs:
        stage.handle(properties={"InvoicingBackoff": backoff})
    assert [stage.delay(copy) for _, copy in stage.sent] == [524.288, 1048.576, 1048.576, 1048.576]


@pytest.mark.parametrize(
    ("asked", "random", "delay", "backoff"),
    [
        (60.0, 0.0, 60, 4),
        (60.0, 1.0, 71, 4),
        (1.0, 0.0, 1, 4),
        (10.0, 1.0, 13, 4),
        (900.0, 1.0, 911, 4),
        # The plug-in of one record may be busy for days, and says nothing of when to come back.
        (None, 1.0, 80, 5),
    ],
)
def test_throttling_waits_the_time_that_was_asked_for_and_some_more_or_backs_off_like_any_other_outage(
    asked: float | None, random: float, delay: float, backoff: int, stage: Stage
) -> None:
    stage.outcome, stage.random = DataverseThrottled("x", retry_after=asked), random
    stage.handle(properties=aged(RetryPolicy.OUTAGE, timedelta(hours=1)))
    copy = stage.the_only_one_sent("won")
    assert stage.delay(copy) == delay
    assert (copy.properties["InvoicingBackoff"], copy.properties["InvoicingAttempt"]) == (backoff, 5)


def test_a_slow_worker_clock_makes_no_retry_due_in_the_past(stage: Stage) -> None:
    """Due at once, it would come back in a hot loop for as long as the outage lasts."""
    stage.outcome, stage.random = UNREACHABLE, 1.0
    stage.handle(enqueued_at=stage.clock.now() + timedelta(hours=1))
    stage.clock.advance(30)
    stage.handle(enqueued_at=stage.clock.now() - timedelta(days=1), sequence_number=8)
    assert [stage.delay(copy) for _, copy in stage.sent] == [3600 - 25, 3600 + 5]


def test_no_text_from_outside_begins_a_log_line(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\nparked: reason=InvalidEvent\x1b[2J\u2028y"
    stage.outcome = InvoiceRefused(f"Dataverse responded: {forged}")
    root = {"InvoicingRoot": forged}
    for properties in (root, aged(RetryPolicy.RECORD, timedelta(hours=1), **root)):
        stage.handle(message_id=forged, correlation_id=forged, properties=properties)
    stage.handle(body=b"<" + forged.encode(), properties=root)
    assert len(caplog.messages) == 3
    assert all(line.isprintable() for line in caplog.messages)


# ---------------------------------------------------------------------------------------------- used up


@pytest.mark.parametrize(
    "error",
    [error for error in LATER if not isinstance(error, OpportunityStillOpen)],
    ids=lambda error: error.reason,
)
def test_what_does_not_pass_in_its_time_is_parked(
    error: RetryLater, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    bound = RETRY.bounds[error.policy]
    stage.outcome = error
    stage.handle(properties=aged(error.policy, bound - timedelta(seconds=1)))
    assert stage.sent.pop()[0] == "won"
    caplog.clear()
    stage.handle(properties=aged(error.policy, bound, of="the sender"))
    parked = stage.the_only_one_sent("failed")
    assert parked.body == WIN.body
    assert parked.properties["DeadLetterReason"] == error.reason
    assert error.advice in str(parked.properties["DeadLetterErrorDescription"])
    assert parked.properties["InvoicingAttempt"] == 4
    assert parked.properties["InvoicingOriginalMessageId"] == "win-1"
    assert parked.properties["of"] == "the sender"
    (line,) = caplog.messages
    assert line.startswith(f"parked: reason={error.reason} opportunity={OPPORTUNITY} attempt=4")
    assert line.endswith(f": {error}")


def test_another_policy_begins_anew(stage: Stage) -> None:
    """After an outage of two hours a record that can be fixed has its whole hour."""
    stage.outcome = InvoiceRefused("x")
    stage.handle(properties=aged(RetryPolicy.OUTAGE, timedelta(hours=2)))
    assert stage.the_only_one_sent("won").properties["InvoicingRhythm"] == "short"


def test_a_message_that_wanders_between_policies_ends_with_the_longest(stage: Stage) -> None:
    stage.outcome = InvoiceRefused("x")
    stage.handle(properties=aged(RetryPolicy.OUTAGE, timedelta(days=3)))
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
    body: bytes, reason: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.handle(body=body)
    assert stage.asked == []
    parked = stage.the_only_one_sent("failed")
    assert (parked.body, parked.properties["DeadLetterReason"]) == (body, reason)
    (line,) = caplog.messages
    assert line.startswith(f"parked: reason={reason} opportunity=unknown")


# ---------------------------------------------------------------------------------------------- left to the broker


def test_a_message_that_cannot_be_rescheduled_is_left_to_the_broker(stage: Stage) -> None:
    stage.sender.always = NotSent("x")
    began = stage.clock.monotonic()
    with pytest.raises(ServiceBusUnavailable):
        stage.handle(body=b"unreadable")
    assert 180 <= stage.clock.monotonic() - began <= 240, "it keeps trying, within the deadline"


def test_a_bug_is_left_to_the_broker(stage: Stage) -> None:
    stage.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        stage.handle()
    assert stage.sent == []


# ---------------------------------------------------------------------------------------------- a whole state


def test_retries_always_end(stage: Stage) -> None:
    """Three days of outage: some hundreds of copies, each with an id of its own, then the failed queue."""
    stage.outcome = UNREACHABLE
    message, ids = WIN, set()
    for _ in range(1000):
        stage.handler.handle(message)
        entity, copy = stage.sent.pop()
        if entity == "failed":
            break
        assert copy.message_id not in ids
        ids.add(copy.message_id)
        stage.clock.advance(stage.delay(copy))
        assert copy.due is not None
        message = replace(
            WIN, message_id=copy.message_id, enqueued_at=copy.due, properties=copy.properties, body=copy.body
        )
    assert entity == "failed"
    assert RetryState.of(message).age >= timedelta(days=3)
    assert 288 <= len(ids) <= 600
    assert copy.properties["InvoicingFirstSeen"] == "2026-03-01T11:59:58+00:00"


def test_handling_needs_nothing_of_what_a_message_may_lack(stage: Stage) -> None:
    stage.outcome = UNREACHABLE
    stage.handle(message_id=None, sequence_number=None, content_type=None, correlation_id=None, subject=None)
    copy = stage.the_only_one_sent("won")
    assert str(copy.properties["InvoicingRoot"]).endswith("@2026-03-01T11:59:58+00:00")
    assert (copy.content_type, copy.correlation_id, copy.subject) == (None, None, None)


# ---------------------------------------------------------------------------------------------- the trace


@pytest.mark.parametrize("outcome", [UNREACHABLE, InvoiceOutdated("x")], ids=["retry", "parked"])
def test_a_copy_belongs_to_the_trace_of_the_attempt(outcome: Exception, stage: Stage) -> None:
    """The host takes the older name where the newer is missing: it must not lead back to the first attempt."""
    stage.outcome = outcome
    stale = {"traceparent": SENDERS, "Diagnostic-Id": SENDERS}
    stage.handle(properties={**stale, "of": "the sender"}, traceparent=HOSTS)
    ((_, copy),) = stage.sent
    assert copy.properties["traceparent"] == HOSTS
    assert "Diagnostic-Id" not in copy.properties
    assert copy.properties["of"] == "the sender"


@pytest.mark.parametrize("name", ["traceparent", "Diagnostic-Id"])
def test_without_a_trace_of_the_host_the_senders_goes_on(name: str, stage: Stage) -> None:
    stage.handle(properties={name: SENDERS})
    assert stage.the_only_one_sent("created").properties["traceparent"] == SENDERS


def test_without_any_trace_a_retry_keeps_the_properties_as_they_are(stage: Stage) -> None:
    stage.outcome = UNREACHABLE
    stage.handle(properties={"Diagnostic-Id": "|an.older.format."})
    copy = stage.the_only_one_sent("won")
    assert copy.properties["Diagnostic-Id"] == "|an.older.format."
    assert "traceparent" not in copy.properties


def test_what_is_logged_about_dataverse_names_opportunity_and_root(stage: Stage) -> None:
    seen: list[str] = []
    stage.on_ensure_invoice = lambda *_: seen.append(log_suffix())
    stage.handle()
    assert seen == [f" opportunity={OPPORTUNITY} root={ROOT}"]
    assert log_suffix() == ""
