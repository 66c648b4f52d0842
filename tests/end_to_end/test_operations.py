"""`python -m operations failed` and `waiting`, over sockets against the Service Bus of the sandbox."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from azure.servicebus import ServiceBusClient
from rich.cells import cell_len

from operations.dashboard.application import Dashboard
from operations.failed import Outcome, discard_messages, select
from operations.namespace import MessageId, Place, open_namespace
from operations.selection import Selection
from sandbox.cloud import CREATED_TOPIC, FAILED_QUEUE, WON_QUEUE
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.proxy import TcpProxy
from sandbox.service_bus import Broker, EventKind, Message, Observation, ReceiveMode
from tests.end_to_end.conftest import event, opportunity, started, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.end_to_end.conftest import Namespace


SELECTING = (("failed", "replay"), ("failed", "discard"), ("waiting", "retry-now"))


def dead_letter(broker: Broker, queue: str, reason: str) -> None:
    """Dead-letter all that is in a queue."""
    for message in broker.receive(queue, 9):
        assert message.lock_token is not None
        broker.dead_letter(queue, message.lock_token, reason, "Ten times.")


def test_list_shows_reason_opportunity_since_when_and_attempts(namespace: Namespace) -> None:
    namespace.park(1)
    namespace.park(2, reason="InvalidEvent")
    assert namespace.listed("failed", "list") == [
        {
            "id": str(number),
            "number": number,
            "reason": reason,
            "description": "What was wrong. What to do.",
            "opportunity": opportunity(number),
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
    namespace.broker.send(WON_QUEUE, Message(event(7)))
    dead_letter(namespace.broker, WON_QUEUE, "MaxDeliveryCountExceeded")
    (row,) = namespace.listed("failed", "list")
    assert (row["reason"], row["opportunity"]) == ("MaxDeliveryCountExceeded", opportunity(7))


def test_a_message_of_another_sender_is_listed_too(namespace: Namespace) -> None:
    """With properties whose names resemble ours, and with times in the format of all lists."""
    namespace.broker.send(FAILED_QUEUE, Message(b"?", application_properties={"InvoicingAttempt": "often"}))
    (row,) = namespace.listed("failed", "list")
    assert (row["reason"], row["opportunity"], row["attempts"]) == ("unknown", None, 0)
    assert datetime.fromisoformat(row["since"]).tzinfo is not None
    assert "T" in row["since"]


def test_show_prints_the_whole_message(namespace: Namespace) -> None:
    namespace.park(1)
    result = namespace.run("failed", "show", "1")
    assert "InvoiceRefused: What was wrong. What to do." in result.output
    assert opportunity(1) in result.output
    namespace.run("failed", "show", "2", code=1)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        # No broker assigns such a number.
        *product((("failed", "show"), *SELECTING), [("0",), (str(2**63),)], ["is not in the range"]),
        *product(SELECTING, [(), ("1", "--all"), ("--all", "--reason", "x")], ["Say which messages"]),
    ],
)
def test_a_selection_must_be_clear(
    namespace: Namespace, command: tuple[str, ...], arguments: tuple[str, ...], text: str
) -> None:
    assert text in namespace.run(*command, *arguments, code=2).output


def test_replay_starts_a_new_root_without_the_marks_of_the_old_one(namespace: Namespace) -> None:
    """Each replay is another root: the same message twice is no duplicate."""
    namespace.park(1, 1)
    assert namespace.run("failed", "replay", "--all", "--yes").output == "2 replayed.\n"
    copies = namespace.messages(WON_QUEUE)
    assert len({copy.message_id for copy in copies} - {"parked-1", "original", "root"}) == 2
    for copy in copies:
        assert copy.body == event(1)
        assert (copy.content_type, copy.correlation_id) == ("application/json", "correlation")
        assert copy.application_properties == {
            "http://schemas.microsoft.com/xrm/2011/Claims/Organization": "contoso"
        }
    assert namespace.messages(FAILED_QUEUE) == []


# What a function may do with a message that is sent to its queue.


def ignore(broker: Broker, _: Message) -> None:
    broker.receive(WON_QUEUE, 1, ReceiveMode.RECEIVE_AND_DELETE)


def publish(broker: Broker, message: Message) -> None:
    data = {"opportunityId": opportunity(1), "invoiceId": "i", "invoiceNumber": "INV-7"}
    broker.send(CREATED_TOPIC, Message(json.dumps({"id": "e", "data": data}).encode()))
    ignore(broker, message)


def retry(broker: Broker, message: Message) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    properties = {"InvoicingReason": "DataverseThrottled", "InvoicingAttempt": 1}
    broker.send(
        WON_QUEUE, Message(message.body, scheduled_enqueue_time=due, application_properties=properties)
    )
    ignore(broker, message)


def park(broker: Broker, message: Message) -> None:
    properties = {"DeadLetterReason": "InvoiceRefused", "InvoicingOriginalMessageId": message.message_id}
    broker.send(FAILED_QUEUE, Message(message.body, application_properties=properties))
    ignore(broker, message)


@pytest.mark.parametrize(
    ("does", "code", "state", "text"),
    [
        (publish, 0, "published", "INV-7"),
        (retry, 0, "is retried", "DataverseThrottled, next try at"),
        (park, 1, "failed again", "InvoiceRefused"),
        (ignore, 0, "processed", "nothing to invoice"),
        (None, 0, "waits in the queue", ""),
    ],
)
def test_a_followed_replay_reports_what_became_of_the_message(
    namespace: Namespace, does: Callable[[Broker, Message], None] | None, code: int, state: str, text: str
) -> None:
    def process(seen: Observation) -> None:
        if does is not None and seen.entity == WON_QUEUE and seen.kind is EventKind.ACCEPTED:
            stop()
            # Not in the broker's own thread, which holds its lock.
            threading.Thread(target=does, args=(namespace.broker, seen.message.message), daemon=True).start()

    namespace.park(1)
    stop = namespace.broker.observe(process)
    seconds = "3" if does is None else "60"
    result = namespace.run("failed", "replay", "1", "--follow", "--seconds", seconds, "--json", code=code)
    (row,) = json.loads(result.stdout)
    assert (row["outcome"], row["became"]) == ("done", state)
    assert text in row["detail"]


def test_a_dry_run_does_nothing(namespace: Namespace) -> None:
    namespace.park(1, 2)
    assert namespace.run("failed", "replay", "--all", "--dry-run").output == "2 would be replayed.\n"
    assert namespace.run("failed", "discard", "--all", "--dry-run").output == "2 would be discarded.\n"
    assert namespace.broker.counts(FAILED_QUEUE).active == 2


@pytest.mark.parametrize("output", [(), ("--json",)])
@pytest.mark.parametrize(
    "arguments",
    [("failed", "replay", "--all"), ("failed", "discard", "1"), ("waiting", "retry-now", "--all")],
)
def test_nothing_is_done_where_nobody_can_be_asked(
    namespace: Namespace, arguments: tuple[str, ...], output: tuple[str, ...]
) -> None:
    """The format of the output is no consent."""
    namespace.park(1, 2)
    namespace.schedule(1, 2)
    assert "--yes" in namespace.run(*arguments, *output, code=2).output
    assert namespace.broker.counts(FAILED_QUEUE).active == namespace.broker.counts(WON_QUEUE).scheduled == 2


def test_a_number_that_is_not_there_stops_the_command_before_anything_is_done(namespace: Namespace) -> None:
    namespace.park(1)
    assert "99" in namespace.run("failed", "replay", "1", "99", "--yes", code=1).output
    assert namespace.broker.counts(FAILED_QUEUE).active == 1


def test_only_what_waits_can_be_tried_now(namespace: Namespace) -> None:
    namespace.schedule(1)
    namespace.schedule(2, reason="DataverseThrottled")
    namespace.broker.send(WON_QUEUE, Message(b"active"))
    assert "Not waiting: 3" in namespace.run("waiting", "retry-now", "3", "--yes", code=1).output
    throttled = ("--reason", "DataverseThrottled")
    assert namespace.run("waiting", "retry-now", *throttled, "--yes").output == "1 sent.\n"
    assert [row["reason"] for row in namespace.listed("waiting", "list")] == ["DataverseUnreachable"]


def test_selecting_messages_costs_the_others_no_delivery(namespace: Namespace) -> None:
    """Of 400 messages, 10 selective passes, by reason or by number, settle only what they match.

    All others stay, delivered once at most.
    """
    for number in range(400):
        namespace.park(number, reason=f"Reason{number % 20}")
    with open_namespace(namespace.environment) as opened:
        for number in range(0, 20, 2):
            by_reason = Selection((), f"Reason{number}", everything=False)
            # The first message has the number 1.
            numbers = (MessageId(Place.FAILED, each) for each in range(number + 1, 401, 20))
            by_number = Selection(tuple(numbers), None, everything=False)
            selected = select(opened, by_number if number % 8 else by_reason)
            settled = list(discard_messages(opened, selected))
            assert [each.outcome for each in settled] == [Outcome.DONE] * 20
    left = namespace.broker.peek(FAILED_QUEUE, 0, 400)
    reasons = Counter(each.message.application_properties["DeadLetterReason"] for each in left)
    assert reasons == {f"Reason{number}": 20 for number in range(1, 20, 2)}
    assert max(each.delivery_count for each in left) <= 1
    assert namespace.messages(f"{FAILED_QUEUE}/$DeadLetterQueue") == []


def test_a_link_is_read_by_the_call_that_waits_and_by_no_other_thread(namespace: Namespace) -> None:
    """The SDK's keep-alive thread can give a message the lock of another that arrives at the same time."""

    def keep_alive_threads() -> int:
        return sum("keep_alive" in thread.name for thread in threading.enumerate())

    namespace.park(0, 1, 2)
    with open_namespace(namespace.environment) as opened:
        source = Place.FAILED.source(opened.settings)
        assert [each.number for each in opened.peek_every(source)] == [1, 2, 3]
        assert namespace.broker.counts(FAILED_QUEUE).locked == 0, "peeking locks nothing"
        locked = opened.lock(source, 2)
        assert locked is not None
        assert keep_alive_threads() == 0
        opened.complete(source, locked)
    with (
        ServiceBusClient.from_connection_string(namespace.environment["ServiceBusConnection"]) as client,
        client.get_queue_receiver(FAILED_QUEUE) as receiver,
    ):
        assert [message.delivery_count for message in receiver.peek_messages(3)] == [0, 0]
        assert keep_alive_threads() == 1, "otherwise this test would not see one"


def test_a_message_leaves_the_failed_queue_only_after_its_copy_is_accepted(namespace: Namespace) -> None:
    """The queue does not exist, so the copy is refused and the original stays."""
    namespace.park(1)
    namespace.environment["OPPORTUNITY_WON_QUEUE"] = "no-such-queue"
    result = namespace.run("failed", "replay", "1", code=1)
    assert "has no such queue" in result.output
    assert "operations doctor" in result.output
    # The dead-letter queue of a queue that does not exist does not prevent the list.
    listed = namespace.run("failed", "list")
    assert "1 failed message, by reason:" in listed.output
    assert "dead-letter queue of no-such-queue cannot be read" in listed.output


def test_waiting_lists_age_attempt_and_reason(namespace: Namespace) -> None:
    namespace.schedule(1)
    namespace.schedule(2, reason="DataverseThrottled")
    namespace.broker.send(WON_QUEUE, Message(b"active"))
    rows = namespace.listed("waiting", "list")
    assert [(row["opportunity"], row["attempt"], row["reason"]) for row in rows] == [
        (opportunity(1), 2, "DataverseUnreachable"),
        (opportunity(2), 2, "DataverseThrottled"),
    ]
    assert rows[0]["age"].startswith("2:00:")
    assert {row["description"] for row in rows} == {"What was wrong."}
    text = namespace.run("waiting", "list").stdout
    assert "What was" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(namespace.listed("waiting", "list", "--reason", "DataverseThrottled")) == 1


def test_retry_now_sends_the_copy_and_cancels_the_scheduled_one(namespace: Namespace) -> None:
    namespace.schedule(1, 2)
    assert namespace.run("waiting", "retry-now", "1").output == "1 sent.\n"
    (copy,) = (each.message for each in namespace.broker.receive(WON_QUEUE, 9))
    assert copy.body == event(1)
    assert copy.message_id != "copy-1"
    properties = copy.application_properties
    assert (properties["InvoicingRoot"], properties["InvoicingAttempt"]) == ("root", 2)
    assert [row["opportunity"] for row in namespace.listed("waiting", "list")] == [opportunity(2)]


@contextmanager
def behind(namespace: Namespace, *rules: FaultRule) -> Iterator[dict[str, str]]:
    """Put a proxy with faults before the broker; give the environment of a command that connects through it."""
    connection_string = namespace.environment["ServiceBusConnection"]
    address = urlsplit(connection_string.partition(";")[0].partition("=")[2])
    target = str(address.hostname), int(address.port or 0)
    with TcpProxy(target, FaultPlan(rules), Dependency.SERVICE_BUS_IN) as proxy:
        there = {"ServiceBusConnection": connection_string.replace(address.netloc, proxy.address)}
        yield {**os.environ, **namespace.environment, **there}


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
    namespace.park(1)
    with behind(namespace, third) as environment:
        environment["OPERATIONS_RESPONSE_SECONDS"] = "4"
        with started(environment, "failed", "replay", "1") as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Service Bus did not respond within 4 s" in said
    assert len(namespace.messages(FAILED_QUEUE)) == 1


def test_a_replay_that_is_killed_loses_nothing(namespace: Namespace) -> None:
    """In the worst moment: the third copy is accepted, and its original has not left the failed queue yet."""
    namespace.park(*range(6))
    copies = 0
    with started({**os.environ, **namespace.environment}, "failed", "replay", "--all", "--yes") as process:

        def kill(seen: Observation) -> None:
            nonlocal copies
            copies += seen.entity == WON_QUEUE and seen.kind is EventKind.ACCEPTED
            if copies == 3:
                process.kill()

        namespace.broker.observe(kill)
        process.communicate(timeout=60)
    waiting, left = namespace.messages(WON_QUEUE), namespace.messages(FAILED_QUEUE)
    assert (len(waiting), len(left)) == (3, 4)
    assert len({message.body for message in (*waiting, *left)}) == 6


def test_a_short_timeout_does_not_end_the_wait_for_a_message_that_somebody_else_has_locked(
    namespace: Namespace,
) -> None:
    """The broker itself is asked to wait some seconds for more to come."""
    namespace.park(1)
    namespace.environment["OPERATIONS_RESPONSE_SECONDS"] = "4"
    assert namespace.broker.receive(FAILED_QUEUE)
    assert "did not respond" not in namespace.run("failed", "replay", "1", code=1).output
    assert namespace.broker.counts(WON_QUEUE).active == 0
    assert namespace.broker.counts(FAILED_QUEUE).active == 1


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_the_time_for_a_response_is_a_number_of_seconds(namespace: Namespace, seconds: str) -> None:
    namespace.environment["OPERATIONS_RESPONSE_SECONDS"] = seconds
    assert "OPERATIONS_RESPONSE_SECONDS should be" in namespace.run("failed", "list", code=2).output


def test_problems_of_settings_are_reported_at_once(namespace: Namespace) -> None:
    namespace.environment |= {"OPPORTUNITY_WON_QUEUE": "", "INVOICE_CREATED_TOPIC": "a b"}
    output = namespace.run("failed", "list", code=1).output
    assert "OPPORTUNITY_WON_QUEUE is missing" in output
    assert "INVOICE_CREATED_TOPIC is not valid" in output


def test_a_connection_string_without_a_key_is_reported_without_its_value(namespace: Namespace) -> None:
    namespace.environment["ServiceBusConnection"] = "Endpoint=sb://contoso/;SharedAccessKey2=secret"
    output = namespace.run("failed", "list", code=1).output
    assert len(output.splitlines()) == 2
    assert "ServiceBusConnection has no key" in output
    assert "secret" not in output


# ------------------------------------------------------------------------------------- what people read


def test_the_list_begins_with_a_summary_and_fits_80_columns(namespace: Namespace) -> None:
    namespace.park(0, 1, 2)
    namespace.park(9, reason="ServiceBusUnavailable")
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
    namespace.park(1, text=said)
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
    assert namespace.run(*command).stdout.strip() == sentence


@pytest.mark.parametrize(
    "command",
    [("failed", "list"), ("failed", "replay", "--yes"), ("failed", "discard", "--yes"), ("failed", "export")],
)
def test_a_reason_that_no_message_has_is_an_error_that_names_those_that_exist(
    namespace: Namespace, command: tuple[str, ...]
) -> None:
    namespace.park(1)
    namespace.park(2, reason="InvalidEvent")
    output = namespace.run(*command, "--reason", "InvoiceRefusd", code=1).output
    assert "No message has the reason InvoiceRefusd. The reasons are: InvalidEvent, InvoiceRefused." in output
    assert namespace.broker.counts(FAILED_QUEUE).active == 2


def test_control_characters_of_senders_reach_no_terminal(namespace: Namespace) -> None:
    """Bodies, property names and values, reasons and ids come from everybody with the Send key."""
    bad = "\x1b]0;title\x07\x1b[2J\t\r\n999  InvalidEvent  forged\u202e\x9b31m\u2028"
    for entity, due in ((FAILED_QUEUE, None), (WON_QUEUE, datetime.now(UTC) + timedelta(hours=1))):
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
        output = namespace.run(*command, code=int(command[-1] == "none")).output
        assert not [character for character in output if character in "\x1b\x07\t\r\x9b\u202e\u2028"], command
        assert not [line for line in output.splitlines() if line.startswith("999")], command
    # A script gets every character, with the escapes of JSON.
    assert namespace.listed("failed", "list")[0]["reason"] == bad


def test_no_text_of_a_sender_is_wider_than_the_terminal(namespace: Namespace) -> None:
    """Its end would begin a line of the terminal, as a row of its own; some characters take two columns."""
    wide = "\N{CJK UNIFIED IDEOGRAPH-65E5}"
    for bad in ("Reason" + " " * 70 + "99  InvalidEvent", wide * 70 + "99", wide * 20):
        properties = {"DeadLetterReason": bad, "DeadLetterErrorDescription": bad, "InvoicingReason": bad}
        namespace.broker.send(FAILED_QUEUE, Message(b"{}", application_properties=properties))
        due = datetime.now(UTC) + timedelta(hours=1)
        namespace.broker.send(
            WON_QUEUE, Message(b"{}", application_properties=properties, scheduled_enqueue_time=due)
        )
    for command in (("failed", "list"), ("waiting", "list")):
        lines = namespace.run(*command).stdout.splitlines()
        assert max(map(cell_len, lines)) <= 80, command
        assert len({cell_len(line) for line in lines[-3:]}) == 1, "the columns of all rows are aligned"
        assert not [line for line in lines if line.strip().startswith("99")]


def test_waiting_show_prints_one_scheduled_message(namespace: Namespace) -> None:
    namespace.schedule(1)
    namespace.broker.send(WON_QUEUE, Message(b"active"))
    shown = namespace.run("waiting", "show", "1")
    assert "DataverseUnreachable" in shown.output
    assert opportunity(1) in shown.output
    assert json.loads(namespace.run("waiting", "show", "1", "--json").stdout)["attempt"] == 2
    namespace.run("waiting", "show", "2", code=1)


# ------------------------------------------------------------------------------------- dead-letter queues


def test_dead_letter_queues_are_listed_and_replayed_like_the_failed_queue(namespace: Namespace) -> None:
    """Those of the failed queue, and of the queue of wins where it does not forward."""
    namespace.park(1, 2)
    dead_letter(namespace.broker, FAILED_QUEUE, "Tired")
    first, second = namespace.listed("failed", "list", "--reason", "Tired")
    assert {first["id"].partition(":")[0], second["id"].partition(":")[0]} == {"failed-dlq"}
    namespace.run("failed", "show", first["id"])
    assert namespace.run("failed", "replay", second["id"]).output == "1 replayed.\n"
    (copy,) = namespace.messages(WON_QUEUE)
    assert copy.body == event(2)
    assert [row["id"] for row in namespace.listed("failed", "list")] == [first["id"]]


# ------------------------------------------------------------------------------------- export and discard


def test_discard_exports_first_and_records_who_discarded_what(namespace: Namespace, tmp_path: Path) -> None:
    namespace.park(1, 2)
    result = namespace.run("failed", "discard", "2", "--yes", "--because", "a test")
    assert result.stdout == "1 discarded.\n"
    (exported,) = tmp_path.glob("discarded-*.jsonl")
    (document,) = map(json.loads, exported.read_text().splitlines())
    assert document["body"].encode() == event(2)
    assert document["properties"]["DeadLetterReason"] == "InvoiceRefused"
    begun, done = map(json.loads, (tmp_path / "operations-audit.jsonl").read_text().splitlines())
    # Of a discard that is killed, this is all there is.
    assert (begun["what"], begun["ids"], begun["because"]) == ("discard begins", ["2"], "a test")
    assert (begun["who"], begun["export"]) == (done["who"], str(exported))
    assert done["who"]["account"]
    assert done["who"]["key"] == "RootManageSharedAccessKey"
    assert (done["because"], done["export"]) == ("a test", str(exported))
    assert done["messages"] == [
        {"id": "2", "outcome": "done", "reason": "InvoiceRefused", "opportunity": opportunity(2)}
    ]
    for file in (exported, tmp_path / "operations-audit.jsonl"):
        assert file.stat().st_mode & 0o077 == 0
    assert [message.body for message in namespace.messages(FAILED_QUEUE)] == [event(1)]


def test_the_dashboard_exports_and_records_a_discard_too(namespace: Namespace, tmp_path: Path) -> None:
    namespace.park(1)
    dashboard = Dashboard(namespace.environment)
    dashboard.act("discard", {"ids": ["1"]})
    wait_until(lambda: not dashboard.jobs()[0]["running"], "the discard ends")
    (job,) = dashboard.jobs()
    dashboard.stop()
    assert (job["error"], job["outcomes"]) == ("", {"done: InvoiceRefused": 1})
    (exported,) = tmp_path.glob("discarded-*.jsonl")
    assert json.loads(exported.read_text())["id"] == "1"
    begun, done = map(json.loads, (tmp_path / "operations-audit.jsonl").read_text().splitlines())
    assert begun["because"] == done["because"] == "from the dashboard"
    assert done["export"] == str(exported)
    assert namespace.broker.counts(FAILED_QUEUE).active == 0


@pytest.mark.parametrize(
    ("audit", "option"),
    [("audit.jsonl", ("--output", "absent/file")), ("absent/audit.jsonl", ("--no-export",))],
)
def test_what_cannot_be_exported_or_recorded_is_not_discarded(
    namespace: Namespace, audit: str, option: tuple[str, ...]
) -> None:
    namespace.park(1)
    namespace.environment["OPERATIONS_AUDIT_FILE"] = audit
    result = namespace.run("failed", "discard", "1", "--yes", *option, code=1)
    assert "cannot be written" in result.output
    assert namespace.broker.counts(FAILED_QUEUE).active == 1


def test_export_writes_selected_messages_and_moves_nothing(namespace: Namespace, tmp_path: Path) -> None:
    for number, reason in ((1, "InvoiceRefused"), (2, "InvalidEvent"), (3, "InvoiceRefused")):
        namespace.park(number, reason=reason)
    file = tmp_path / "export.jsonl"
    result = namespace.run("failed", "export", "--reason", "InvoiceRefused", "--output", str(file))
    assert result.stdout == f"2 messages written to {file}.\n"
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["1", "3"]
    assert namespace.broker.counts(FAILED_QUEUE).active == 3
    # A file that is there is never overwritten.
    namespace.run("failed", "export", "--all", "--output", str(file), code=1)
