"""`python -m operations failed` and `waiting`, over sockets against the Service Bus of the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from azure.servicebus import ServiceBusMessage
from rich.cells import cell_len

from operations.dashboard.application import Dashboard
from operations.failed import Outcome, discard_messages, replay_copy, select
from operations.namespace import MessageId, Place, open_namespace
from operations.selection import Selection
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.proxy import TcpProxy
from sandbox.service_bus import (
    EventKind,
    Message,
    Observation,
    ReceiveMode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.end_to_end.conftest import Namespace


ROOT = Path(__file__).resolve().parents[2]
QUEUE = "opportunity-won"
FAILED = "opportunity-won-failed"
TOPIC = "invoice-created"


def test_list_shows_reason_opportunity_since_when_and_attempts(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2, "InvalidEvent")])
    assert namespace.listed("failed", "list") == [
        {
            "id": str(number),
            "number": number,
            "reason": reason,
            "description": "What was wrong. What to do.",
            "opportunity": namespace.opportunity(number),
            "opportunityName": None,
            "customer": None,
            "since": "2026-11-01T12:00:00+00:00",
            "attempts": 4,
        }
        for number, reason in ((1, "InvoiceRefused"), (2, "InvalidEvent"))
    ]
    assert [row["number"] for row in namespace.listed("failed", "list", "--reason", "InvalidEvent")] == [2]


def test_a_message_that_the_broker_dead_lettered_is_listed_with_the_parked_ones(namespace: Namespace) -> None:
    """Dead letters of the main queue are forwarded to the failed queue: all failures are in one place."""
    namespace.send(QUEUE, [ServiceBusMessage(json.dumps({"opportunityId": namespace.opportunity(7)}))])
    with namespace.client.get_queue_receiver(QUEUE) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=10)
        receiver.dead_letter_message(
            message, reason="MaxDeliveryCountExceeded", error_description="Ten times."
        )
    (row,) = namespace.listed("failed", "list")
    assert (row["reason"], row["opportunity"]) == ("MaxDeliveryCountExceeded", namespace.opportunity(7))


def test_a_message_of_another_sender_is_listed_too(namespace: Namespace) -> None:
    """With properties whose names resemble ours, and with times in the format of all lists."""
    namespace.send(FAILED, [ServiceBusMessage("?", application_properties={"InvoicingAttempt": "often"})])
    (row,) = namespace.listed("failed", "list")
    assert (row["reason"], row["opportunity"], row["attempts"]) == ("unknown", None, 0)
    assert datetime.fromisoformat(str(row["since"])).tzinfo is not None
    assert "T" in str(row["since"])


def test_show_prints_the_whole_message(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    result = namespace.run("failed", "show", "1")
    assert "InvoiceRefused: What was wrong. What to do." in result.output
    assert namespace.opportunity(1) in result.output
    assert namespace.run("failed", "show", "2").exit_code == 1


@pytest.mark.parametrize(
    "command", [("failed", "show"), ("failed", "replay"), ("failed", "discard"), ("waiting", "retry-now")]
)
@pytest.mark.parametrize("number", ["0", str(2**63)])
def test_a_number_that_no_broker_assigns_is_refused_at_once(
    namespace: Namespace, command: tuple[str, ...], number: str
) -> None:
    result = namespace.run(*command, number)
    assert (result.exit_code, "is not in the range" in result.output) == (2, True)


def test_replay_starts_a_new_root_without_the_marks_of_the_old_one(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    result = namespace.run("failed", "replay", "1")
    assert (result.exit_code, result.output) == (0, "1 replayed.\n")
    (copy,) = namespace.receive(QUEUE, 1)
    assert json.loads(str(copy)) == {"opportunityId": namespace.opportunity(1)}
    assert copy.message_id not in ("parked-1", "original", "root")
    assert (copy.content_type, copy.correlation_id) == ("application/json", "correlation")
    assert copy.application_properties == {
        b"http://schemas.microsoft.com/xrm/2011/Claims/Organization": b"contoso"
    }
    assert namespace.listed("failed", "list") == []


def test_each_replay_is_another_root(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    with namespace.client.get_queue_receiver(FAILED) as receiver:
        (message,) = receiver.peek_messages()
    first, second = (replay_copy(message).properties for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.message_id != second.message_id


class Function:
    """Does with each message that is sent to the queue what a function may do with it."""

    def __init__(self, namespace: Namespace, does: str) -> None:
        self._broker = namespace.broker
        self._namespace = namespace
        self._does = does
        self._stop = namespace.broker.observe(self._see)

    def _see(self, seen: Observation) -> None:
        if seen.entity == QUEUE and seen.kind is EventKind.ACCEPTED:
            # Not in the broker's own thread, which holds its lock.
            threading.Thread(target=self._process, args=(seen.message.message,), daemon=True).start()

    def _process(self, message: Message) -> None:
        self._stop()
        copy = {"DeadLetterReason": "InvoiceRefused", "InvoicingOriginalMessageId": str(message.message_id)}
        if self._does == "parks":
            self._broker.send(FAILED, Message(message.body, application_properties=copy))
        if self._does == "retries":
            due = datetime.now(UTC) + timedelta(hours=1)
            retry = {"InvoicingReason": "DataverseThrottled", "InvoicingAttempt": 1}
            self._broker.send(
                QUEUE, Message(message.body, scheduled_enqueue_time=due, application_properties=retry)
            )
        if self._does == "publishes":
            data = {
                "opportunityId": self._namespace.opportunity(1),
                "invoiceId": "i",
                "invoiceNumber": "INV-7",
            }
            self._broker.send(TOPIC, Message(json.dumps({"id": "e", "data": data}).encode()))
        if self._does != "nothing":
            self._broker.receive(QUEUE, 1, ReceiveMode.RECEIVE_AND_DELETE)


@pytest.mark.parametrize(
    ("does", "code", "state", "text"),
    [
        ("publishes", 0, "published", "INV-7"),
        ("retries", 0, "is retried", "DataverseThrottled, next try at"),
        ("parks", 1, "failed again", "InvoiceRefused"),
        ("ignores", 0, "processed", "nothing to invoice"),
        ("nothing", 0, "waits in the queue", ""),
    ],
)
def test_a_followed_replay_reports_what_became_of_the_message(
    namespace: Namespace, does: str, code: int, state: str, text: str
) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    Function(namespace, does)
    seconds = "3" if does == "nothing" else "60"
    result = namespace.run("failed", "replay", "1", "--follow", "--seconds", seconds, "--json")
    assert result.exit_code == code, result.output
    (row,) = json.loads(result.stdout)
    assert (row["outcome"], row["became"]) == ("done", state)
    assert text in row["detail"]


def test_a_dry_run_does_nothing(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2)])
    assert namespace.run("failed", "replay", "--all", "--dry-run").output == "2 would be replayed.\n"
    assert namespace.run("failed", "discard", "--all", "--dry-run").output == "2 would be discarded.\n"
    assert len(namespace.listed("failed", "list")) == 2


@pytest.mark.parametrize("output", [(), ("--json",)])
@pytest.mark.parametrize(
    "arguments",
    [("failed", "replay", "--all"), ("failed", "discard", "1"), ("waiting", "retry-now", "--all")],
)
def test_nothing_is_done_where_nobody_can_be_asked(
    namespace: Namespace, arguments: tuple[str, ...], output: tuple[str, ...]
) -> None:
    """The format of the output is no consent."""
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2)])
    namespace.send(QUEUE, [namespace.waiting(1), namespace.waiting(2)])
    result = namespace.run(*arguments, *output)
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert len(namespace.listed("failed", "list")) == len(namespace.listed("waiting", "list")) == 2


@pytest.mark.parametrize("command", [("failed", "replay"), ("failed", "discard"), ("waiting", "retry-now")])
@pytest.mark.parametrize("arguments", [(), ("1", "--all"), ("--all", "--reason", "InvalidEvent")])
def test_a_selection_must_be_clear(
    namespace: Namespace, command: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    result = namespace.run(*command, *arguments)
    assert result.exit_code == 2
    assert "Say which messages" in result.output


def test_a_number_that_is_not_there_stops_the_command_before_anything_is_done(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    result = namespace.run("failed", "replay", "1", "99", "--yes")
    assert result.exit_code == 1
    assert "99" in result.output
    assert len(namespace.listed("failed", "list")) == 1


def test_only_what_waits_can_be_tried_now(namespace: Namespace) -> None:
    namespace.send(
        QUEUE, [namespace.waiting(1), namespace.waiting(2, "DataverseThrottled"), ServiceBusMessage("active")]
    )
    result = namespace.run("waiting", "retry-now", "3", "--yes")
    assert (result.exit_code, "Not waiting: 3" in result.output) == (1, True)
    assert (
        namespace.run("waiting", "retry-now", "--reason", "DataverseThrottled", "--yes").output == "1 sent.\n"
    )
    assert [row["reason"] for row in namespace.listed("waiting", "list")] == ["DataverseUnreachable"]


@pytest.mark.timeout(400)
def test_selecting_messages_costs_the_others_no_delivery(namespace: Namespace) -> None:
    """Of 2,000 messages, 50 selective passes, by reason or by number, settle only what they match.

    All others stay, delivered once at most.
    """
    for number in range(2000):
        namespace.broker.send(
            FAILED, Message(b"{}", application_properties={"DeadLetterReason": f"Reason{number % 100}"})
        )
    with open_namespace(namespace.environment) as opened:
        for number in range(0, 100, 2):
            by_reason = Selection((), f"Reason{number}", everything=False)
            # The first message has the number 1.
            numbers = (MessageId(Place.FAILED, each) for each in range(number + 1, 2001, 100))
            by_number = Selection(tuple(numbers), None, everything=False)
            selected = select(opened, by_number if number % 8 else by_reason)
            settled = list(discard_messages(opened, selected))
            assert [each.outcome for each in settled] == [Outcome.DONE] * 20
    left = Counter(str(row["reason"]) for row in namespace.listed("failed", "list"))
    assert left == {f"Reason{number}": 20 for number in range(1, 100, 2)}
    with namespace.client.get_queue_receiver(FAILED) as receiver:
        assert max(message.delivery_count or 0 for message in receiver.peek_messages(250)) <= 1
    with namespace.client.get_queue_receiver(FAILED, sub_queue="deadletter") as receiver:
        assert receiver.peek_messages() == []


def test_a_link_is_read_by_the_call_that_waits_and_by_no_other_thread(namespace: Namespace) -> None:
    """The SDK's keep-alive thread can give a message the lock of another that arrives at the same time."""

    def keep_alive_threads() -> int:
        return sum("keep_alive" in thread.name for thread in threading.enumerate())

    namespace.send(FAILED, [namespace.parked(number) for number in range(3)])
    with open_namespace(namespace.environment) as opened:
        source = Place.FAILED.source(opened.settings)
        assert [each.number for each in opened.peek_every(source)] == [1, 2, 3]
        assert namespace.broker.counts(FAILED).locked == 0, "peeking locks nothing"
        locked = opened.lock(source, 2)
        assert locked is not None
        assert keep_alive_threads() == 0
        opened.complete(source, locked)
    with namespace.client.get_queue_receiver(FAILED) as receiver:
        assert [message.delivery_count for message in receiver.peek_messages(3)] == [0, 0]
        assert keep_alive_threads() == 1, "otherwise this test would not see one"


def test_a_message_leaves_the_failed_queue_only_after_its_copy_is_accepted(namespace: Namespace) -> None:
    """The queue does not exist, so the copy is refused and the original stays."""
    namespace.send(FAILED, [namespace.parked(1)])
    namespace.environment["OPPORTUNITY_WON_QUEUE"] = "no-such-queue"
    result = namespace.run("failed", "replay", "1")
    assert result.exit_code == 1
    assert "has no such queue" in result.output
    assert "operations doctor" in result.output
    # The dead-letter queue of a queue that does not exist does not prevent the list.
    listed = namespace.run("failed", "list")
    assert listed.exit_code == 0
    assert "1 failed message, by reason:" in listed.output
    assert "dead-letter queue of no-such-queue cannot be read" in listed.output


def test_waiting_lists_age_attempt_and_reason(namespace: Namespace) -> None:
    namespace.send(
        QUEUE, [namespace.waiting(1), namespace.waiting(2, "DataverseThrottled"), ServiceBusMessage("active")]
    )
    rows = namespace.listed("waiting", "list")
    assert [(row["opportunity"], row["attempt"], row["reason"]) for row in rows] == [
        (namespace.opportunity(1), 2, "DataverseUnreachable"),
        (namespace.opportunity(2), 2, "DataverseThrottled"),
    ]
    assert str(rows[0]["age"]).startswith("2:00:")
    assert {row["description"] for row in rows} == {"What was wrong."}
    text = namespace.run("waiting", "list").stdout
    assert "What was" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(namespace.listed("waiting", "list", "--reason", "DataverseThrottled")) == 1


def test_retry_now_sends_the_copy_and_cancels_the_scheduled_one(namespace: Namespace) -> None:
    namespace.send(QUEUE, [namespace.waiting(1), namespace.waiting(2)])
    (first, _) = namespace.listed("waiting", "list")
    assert namespace.run("waiting", "retry-now", str(first["number"])).output == "1 sent.\n"
    (copy,) = namespace.receive(QUEUE, 1)
    assert json.loads(str(copy)) == {"opportunityId": namespace.opportunity(1)}
    assert copy.message_id != "copy-1"
    properties = copy.application_properties or {}
    assert (properties[b"InvoicingRoot"], properties[b"InvoicingAttempt"]) == (b"root", 2)
    assert [row["opportunity"] for row in namespace.listed("waiting", "list")] == [namespace.opportunity(2)]


@contextmanager
def behind(namespace: Namespace, *rules: FaultRule) -> Iterator[dict[str, str]]:
    """Put a proxy with faults before the broker; give the environment of a command that connects through it."""
    connection_string = namespace.environment["ServiceBusConnection"]
    address = urlsplit(connection_string.partition(";")[0].partition("=")[2])
    target = str(address.hostname), int(address.port or 0)
    with TcpProxy(target, FaultPlan(rules), Dependency.SERVICE_BUS_IN) as proxy:
        there = {"ServiceBusConnection": connection_string.replace(address.netloc, proxy.address)}
        yield {**os.environ, **namespace.environment, **there}


@contextmanager
def started(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a process of its own, which must end wherever the SDK blocks."""
    command = [sys.executable, "-m", "operations", *arguments]
    with subprocess.Popen(  # noqa: S603 - our own command, no shell
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_commands_end_also_where_service_bus_takes_connections_and_says_nothing(namespace: Namespace) -> None:
    """The SDK would wait without end: each command reports the timeout, and what to do."""
    silent = FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.SILENT), operation="connect")
    commands = (
        ("failed", "list"),
        ("failed", "replay", "1"),
        ("failed", "discard", "1", "--yes"),
        ("waiting", "retry-now", "--all", "--yes"),
    )
    with behind(namespace, silent) as environment, ExitStack() as stack:
        environment["OPERATIONS_RESPONSE_SECONDS"] = "0.5"
        for process in [stack.enter_context(started(environment, *command)) for command in commands]:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1, said
            assert "Service Bus did not respond within 0.5 s" in said
            assert "operations doctor" in said


def test_a_command_ends_also_where_service_bus_falls_silent_under_way(namespace: Namespace) -> None:
    """The message is found and locked, and the link for its copy is never opened: it stays."""
    third = FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.SILENT), When(first=3), operation="connect")
    namespace.send(FAILED, [namespace.parked(1)])
    with behind(namespace, third) as environment:
        environment["OPERATIONS_RESPONSE_SECONDS"] = "4"
        with started(environment, "failed", "replay", "1") as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Service Bus did not respond within 4 s" in said
    assert len(namespace.listed("failed", "list")) == 1


def test_a_replay_that_is_killed_loses_nothing(namespace: Namespace) -> None:
    """In the worst moment: the third copy is accepted, and its original has not left the failed queue yet."""
    namespace.send(FAILED, [namespace.parked(number) for number in range(6)])
    copies = 0
    with started({**os.environ, **namespace.environment}, "failed", "replay", "--all", "--yes") as process:

        def kill(seen: Observation) -> None:
            nonlocal copies
            copies += seen.entity == QUEUE and seen.kind is EventKind.ACCEPTED
            if copies == 3:
                process.kill()

        namespace.broker.observe(kill)
        process.communicate(timeout=60)
    left = {queue: namespace.broker.peek(queue, 0, 10) for queue in (QUEUE, FAILED)}
    assert {queue: len(messages) for queue, messages in left.items()} == {QUEUE: 3, FAILED: 4}
    bodies = {message.message.body for messages in left.values() for message in messages}
    assert len(bodies) == 6


def test_a_short_timeout_does_not_end_the_wait_for_a_message_that_somebody_else_has_locked(
    namespace: Namespace,
) -> None:
    """The broker itself is asked to wait some seconds for more to come."""
    namespace.send(FAILED, [namespace.parked(1)])
    namespace.environment["OPERATIONS_RESPONSE_SECONDS"] = "4"
    with namespace.client.get_queue_receiver(FAILED) as receiver:
        assert receiver.receive_messages(max_wait_time=10)
        result = namespace.run("failed", "replay", "1")
    assert "did not respond" not in result.output
    assert namespace.broker.counts(QUEUE).active == 0
    assert len(namespace.listed("failed", "list")) == 1


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_the_time_for_a_response_is_a_number_of_seconds(namespace: Namespace, seconds: str) -> None:
    namespace.environment["OPERATIONS_RESPONSE_SECONDS"] = seconds
    result = namespace.run("failed", "list")
    assert (result.exit_code, "OPERATIONS_RESPONSE_SECONDS should be" in result.output) == (2, True)


def test_problems_of_settings_are_reported_at_once(namespace: Namespace) -> None:
    namespace.environment |= {"OPPORTUNITY_WON_QUEUE": "", "INVOICE_CREATED_TOPIC": "a b"}
    result = namespace.run("failed", "list")
    assert result.exit_code != 0
    assert "OPPORTUNITY_WON_QUEUE is missing" in result.output
    assert "INVOICE_CREATED_TOPIC is not valid" in result.output


def test_a_connection_string_without_a_key_is_reported_without_its_value(namespace: Namespace) -> None:
    namespace.environment["ServiceBusConnection"] = "Endpoint=sb://contoso/;SharedAccessKey2=secret"
    with started({**os.environ, **namespace.environment}, "failed", "list") as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, len(said.splitlines())) == (1, 2)
    assert "ServiceBusConnection has no key" in said
    assert "secret" not in said


# ------------------------------------------------------------------------------------- what people read


def test_the_list_begins_with_a_summary_and_fits_80_columns(namespace: Namespace) -> None:
    namespace.send(FAILED, [namespace.parked(number) for number in range(3)])
    namespace.send(FAILED, [namespace.parked(9, "ServiceBusUnavailable")])
    lines = namespace.run("failed", "list").stdout.splitlines()
    assert lines[0] == "4 failed messages, by reason:"
    assert lines[2].split() == ["Reason", "Messages", "Oldest"]
    assert lines[3].split()[:2] == ["InvoiceRefused", "3"]
    assert lines[4].split()[:2] == ["ServiceBusUnavailable", "1"]
    assert lines[6].split() == ["Id", "Age", "Reason", "Opportunity", "Text"]
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80


def test_a_row_shows_what_distinguishes_it(namespace: Namespace) -> None:
    """All refusals begin in the same way, and the ends of names differ."""
    said = "Dataverse responded 403 0x80048d06: Credit limit exceeded. (request 94cc6a05) What to do."
    message = namespace.parked(1)
    assert message.application_properties is not None
    message.application_properties["DeadLetterErrorDescription"] = said
    namespace.send(FAILED, [message])
    *_, row = namespace.run("failed", "list").stdout.splitlines()
    assert "  Credit limit" in row
    (listed,) = namespace.listed("failed", "list")
    assert listed["description"] == said


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("failed", "list"), "No message has failed."),
        (("failed", "replay", "--all"), "No message has failed."),
        (("failed", "discard", "--all"), "No message has failed."),
        (("failed", "export", "--all"), "No message has failed."),
        (("waiting", "list"), "No message waits for another try."),
        (("waiting", "retry-now", "--all"), "No message waits for another try."),
    ],
)
def test_nothing_to_show_is_a_sentence(namespace: Namespace, command: tuple[str, ...], sentence: str) -> None:
    result = namespace.run(*command)
    assert (result.exit_code, result.stdout.strip()) == (0, sentence)


@pytest.mark.parametrize(
    "command",
    [("failed", "list"), ("failed", "replay", "--yes"), ("failed", "discard", "--yes"), ("failed", "export")],
)
def test_a_reason_that_no_message_has_is_an_error_that_names_those_that_exist(
    namespace: Namespace, command: tuple[str, ...]
) -> None:
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2, "InvalidEvent")])
    result = namespace.run(*command, "--reason", "InvoiceRefusd")
    assert result.exit_code == 1
    assert (
        "No message has the reason InvoiceRefusd. The reasons are: InvalidEvent, InvoiceRefused."
        in result.output
    )
    assert namespace.broker.counts(FAILED).active == 2


def test_control_characters_of_senders_reach_no_terminal(namespace: Namespace) -> None:
    """Bodies, property names and values, reasons and ids come from everybody with the Send key."""
    bad = "\x1b]0;title\x07\x1b[2J\t\r\n999  InvalidEvent  forged\u202e\x9b31m\u2028"
    for entity, due in ((FAILED, None), (QUEUE, datetime.now(UTC) + timedelta(hours=1))):
        namespace.broker.send(
            entity,
            Message(
                b'"' + bad.encode() + b'"',
                message_id=bad[:40],
                subject=bad,
                application_properties={
                    "DeadLetterReason": bad,
                    "DeadLetterErrorDescription": bad,
                    "InvoicingReason": bad,
                    bad: bad,
                },
                scheduled_enqueue_time=due,
            ),
        )
    commands = (
        ("failed", "list"),
        ("failed", "show", "1"),
        ("failed", "list", "--reason", bad),
        ("failed", "list", "--reason", "none"),
        ("waiting", "list"),
        ("waiting", "show", "1"),
        ("waiting", "list", "--reason", "none"),
    )
    for command in commands:
        output = namespace.run(*command).output
        assert not [character for character in output if character in "\x1b\x07\t\r\x9b\u202e\u2028"], command
        assert not [line for line in output.splitlines() if line.startswith("999")], command
    # A script gets every character, with the escapes of JSON.
    assert namespace.listed("failed", "list")[0]["reason"] == bad


def test_no_text_of_a_sender_is_wider_than_the_terminal(namespace: Namespace) -> None:
    """Its end would begin a line of the terminal, as a row of its own; some characters take two columns."""
    wide = "\N{CJK UNIFIED IDEOGRAPH-65E5}"
    for bad in ("Reason" + " " * 70 + "99  InvalidEvent", wide * 70 + "99", wide * 20):
        properties = {"DeadLetterReason": bad, "DeadLetterErrorDescription": bad, "InvoicingReason": bad}
        namespace.broker.send(FAILED, Message(b"{}", application_properties=properties))
        due = datetime.now(UTC) + timedelta(hours=1)
        namespace.broker.send(
            QUEUE, Message(b"{}", application_properties=properties, scheduled_enqueue_time=due)
        )
    for command in (("failed", "list"), ("waiting", "list")):
        lines = namespace.run(*command).stdout.splitlines()
        assert max(map(cell_len, lines)) <= 80, command
        assert len({cell_len(line) for line in lines[-3:]}) == 1, "the columns of all rows are aligned"
        assert not [line for line in lines if line.strip().startswith("99")]


def test_waiting_show_prints_one_scheduled_message(namespace: Namespace) -> None:
    namespace.send(QUEUE, [namespace.waiting(1), ServiceBusMessage("active")])
    shown = namespace.run("waiting", "show", "1")
    assert shown.exit_code == 0
    assert "DataverseUnreachable" in shown.output
    assert namespace.opportunity(1) in shown.output
    assert json.loads(namespace.run("waiting", "show", "1", "--json").stdout)["attempt"] == 2
    assert namespace.run("waiting", "show", "2").exit_code == 1


# ------------------------------------------------------------------------------------- dead-letter queues


def test_dead_letter_queues_are_listed_and_replayed_like_the_failed_queue(namespace: Namespace) -> None:
    """Those of the failed queue, and of the queue of wins where it does not forward."""
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2)])
    with namespace.client.get_queue_receiver(FAILED) as receiver:
        for message in receiver.receive_messages(2, max_wait_time=10):
            receiver.dead_letter_message(message, reason="Tired")
    first, second = namespace.listed("failed", "list", "--reason", "Tired")
    assert {str(first["id"]).partition(":")[0], str(second["id"]).partition(":")[0]} == {"failed-dlq"}
    assert namespace.run("failed", "show", str(first["id"])).exit_code == 0
    assert namespace.run("failed", "replay", str(second["id"])).output == "1 replayed.\n"
    (copy,) = namespace.receive(QUEUE, 1)
    assert json.loads(str(copy)) == {"opportunityId": second["opportunity"]}
    assert [row["id"] for row in namespace.listed("failed", "list")] == [first["id"]]


# ------------------------------------------------------------------------------------- export and discard


def test_discard_exports_first_and_records_who_discarded_what(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2)])
    result = namespace.run("failed", "discard", "2", "--yes", "--because", "a test")
    assert (result.exit_code, result.stdout) == (0, "1 discarded.\n")
    (exported,) = tmp_path.glob("discarded-*.jsonl")
    (document,) = map(json.loads, exported.read_text().splitlines())
    assert json.loads(document["body"]) == {"opportunityId": namespace.opportunity(2)}
    assert document["properties"]["DeadLetterReason"] == "InvoiceRefused"
    begun, done = map(json.loads, (tmp_path / "operations-audit.jsonl").read_text().splitlines())
    # Of a discard that is killed, this is all there is.
    assert (begun["what"], begun["ids"], begun["because"]) == ("discard begins", ["2"], "a test")
    assert (begun["who"], begun["export"]) == (done["who"], str(exported))
    assert done["who"]["account"]
    assert done["who"]["key"] == "RootManageSharedAccessKey"
    assert (done["because"], done["export"]) == ("a test", str(exported))
    assert done["messages"] == [
        {"id": "2", "outcome": "done", "reason": "InvoiceRefused", "opportunity": namespace.opportunity(2)}
    ]
    for file in (exported, tmp_path / "operations-audit.jsonl"):
        assert file.stat().st_mode & 0o077 == 0
    assert [row["number"] for row in namespace.listed("failed", "list")] == [1]


def test_the_dashboard_exports_and_records_a_discard_too(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace.send(FAILED, [namespace.parked(1)])
    dashboard = Dashboard(namespace.environment)
    dashboard.act("discard", {"ids": ["1"]})
    end = time.monotonic() + 60
    while (job := dashboard.jobs()[0])["running"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    dashboard.stop()
    assert (job["error"], job["outcomes"]) == ("", {"done: InvoiceRefused": 1})
    (exported,) = tmp_path.glob("discarded-*.jsonl")
    assert json.loads(exported.read_text())["id"] == "1"
    begun, done = map(json.loads, (tmp_path / "operations-audit.jsonl").read_text().splitlines())
    assert begun["because"] == done["because"] == "from the dashboard"
    assert done["export"] == str(exported)
    assert namespace.broker.counts(FAILED).active == 0


def test_what_cannot_be_exported_or_recorded_is_not_discarded(namespace: Namespace, tmp_path: Path) -> None:
    namespace.send(FAILED, [namespace.parked(1)])
    namespace.environment["OPERATIONS_AUDIT_FILE"] = str(tmp_path / "audit.jsonl")
    result = namespace.run("failed", "discard", "1", "--yes", "--output", str(tmp_path / "absent" / "file"))
    assert (result.exit_code, "cannot be written" in result.output) == (1, True)
    namespace.environment["OPERATIONS_AUDIT_FILE"] = str(tmp_path / "absent" / "audit.jsonl")
    result = namespace.run("failed", "discard", "1", "--yes", "--no-export")
    assert (result.exit_code, "cannot be written" in result.output) == (1, True)
    assert namespace.broker.counts(FAILED).active == 1


def test_export_writes_selected_messages_and_moves_nothing(namespace: Namespace, tmp_path: Path) -> None:
    namespace.send(FAILED, [namespace.parked(1), namespace.parked(2, "InvalidEvent"), namespace.parked(3)])
    file = tmp_path / "export.jsonl"
    result = namespace.run("failed", "export", "--reason", "InvoiceRefused", "--output", str(file))
    assert (result.exit_code, result.stdout) == (0, f"2 messages written to {file}.\n")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["1", "3"]
    assert namespace.broker.counts(FAILED).active == 3
    # A file that is there is never overwritten.
    assert namespace.run("failed", "export", "--all", "--output", str(file)).exit_code == 1
