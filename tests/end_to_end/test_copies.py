"""Copies of odd messages, over real sockets: faithful, or refused with the original where it was."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType, AmqpMessageProperties

from sandbox.service_bus import Message
from sandbox.service_bus.amqp.encoding import Char
from sandbox.service_bus.messages import AmqpSequence, AmqpValue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.conftest import Namespace

QUEUE = "opportunity-won"
FAILED = "opportunity-won-failed"
OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
EVENT = json.dumps({"opportunityId": OPPORTUNITY})


def send(namespace: Namespace, entity: str = FAILED, **parts: Any) -> None:  # noqa: ANN401 - the SDK's own
    """Send a message as AMQP libraries of other families do."""
    with namespace.client.get_queue_sender(entity) as sender:
        sender.send_messages(AmqpAnnotatedMessage(**parts))


def in_queue(namespace: Namespace, entity: str) -> list[Message]:
    return [each.message for each in namespace.broker.peek(entity, 0, 99)]


# Bodies that the function cannot read, so that no copy can help.
NOT_COPIED = {
    "number": {"value_body": 42},
    "boolean": {"value_body": True},
    "map": {"value_body": {"opportunityId": OPPORTUNITY}},
    "list": {"value_body": ["text"]},
    "sequence": {"sequence_body": [[EVENT, 1]]},
    "sequences": {"sequence_body": [[EVENT], [2]]},
}


@pytest.mark.parametrize("parts", NOT_COPIED.values(), ids=NOT_COPIED)
def test_a_body_that_cannot_be_copied_stays_and_the_others_are_replayed(
    namespace: Namespace, parts: dict[str, Any]
) -> None:
    send(namespace, **parts)
    namespace.send(FAILED, [namespace.parked(1)])
    (before, _) = in_queue(namespace, FAILED)

    listed = namespace.listed("failed", "list")
    assert [row["opportunity"] for row in listed] == [None, namespace.opportunity(1)]
    assert namespace.run("failed", "show", "1").exit_code == 0
    result = namespace.run("failed", "replay", "--all", "--yes")

    assert result.exit_code == 1
    assert "1 replayed. 1 not replayed." in result.output
    assert in_queue(namespace, FAILED) == [before]
    (copy,) = in_queue(namespace, QUEUE)
    assert json.loads(copy.body) == {"opportunityId": namespace.opportunity(1)}  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [EVENT, EVENT.encode()], ids=["text", "binary"])
def test_a_text_in_an_amqp_value_is_replayed_as_data_which_the_function_reads(
    namespace: Namespace, text: str | bytes
) -> None:
    """The message of a portal or of another library: its text is all that it says."""
    namespace.broker.send(FAILED, Message(AmqpValue(text), subject="label"))
    assert namespace.listed("failed", "list")[0]["opportunity"] == OPPORTUNITY
    assert namespace.run("failed", "replay", "1").exit_code == 0
    (copy,) = in_queue(namespace, QUEUE)
    assert (copy.body, copy.subject) == (EVENT.encode(), "label")
    assert in_queue(namespace, FAILED) == []


def test_several_data_sections_are_copied_whole(namespace: Namespace) -> None:
    half = len(EVENT) // 2
    send(namespace, data_body=[EVENT[:half].encode(), EVENT[half:].encode()])
    assert namespace.listed("failed", "list")[0]["opportunity"] == OPPORTUNITY
    assert namespace.run("failed", "replay", "1").exit_code == 0
    (message,) = namespace.receive(QUEUE, 1)
    assert message.body_type is AmqpMessageBodyType.DATA
    assert b"".join(message.body) == EVENT.encode()


def test_properties_are_copied_with_their_values(namespace: Namespace) -> None:
    properties = {
        "text": "Grüße \U0001f600",
        "empty": "",
        "number": -5,
        "large": 2**40,
        "smallest": -(2**63),
        "yes": True,
        "no": False,
        "ratio": 0.25,
        "nothing": None,
        "id": UUID(int=7),
        "bytes": b"\xff\x00\xfe",
    }
    send(
        namespace,
        data_body=EVENT.encode(),
        application_properties=properties
        | {
            "large": {"TYPE": "LONG", "VALUE": 2**40},
            "smallest": {"TYPE": "LONG", "VALUE": -(2**63)},
            "bytes": {"TYPE": "BINARY", "VALUE": properties["bytes"]},
        },
        properties=AmqpMessageProperties(
            message_id="original",
            correlation_id=str(UUID(int=9)),
            subject="label",
            reply_to="reply",
            content_type="application/json",
            content_encoding="utf-8",
            to="somewhere",
        ),
    )
    (before,) = in_queue(namespace, FAILED)
    assert namespace.run("failed", "replay", "1").output == "1 replayed.\n"
    (copy,) = in_queue(namespace, QUEUE)
    assert copy.application_properties == before.application_properties == properties
    for name in ("subject", "content_type", "correlation_id", "to", "reply_to", "body"):
        assert getattr(copy, name) == getattr(before, name), name
    assert copy.other.get("properties.7") == before.other.get("properties.7")
    assert copy.message_id != "original"


@pytest.mark.parametrize(
    ("name", "value"),
    [("huge", {"TYPE": "ULONG", "VALUE": 2**64 - 1}), ("nan", float("nan"))],
)
def test_a_property_that_cannot_be_copied_is_refused_unless_one_agrees_to_drop_it(
    namespace: Namespace, name: str, value: object
) -> None:
    send(namespace, data_body=EVENT.encode(), application_properties={name: value, "kept": "x"})
    refused = namespace.run("failed", "replay", "1")
    assert refused.exit_code == 1
    assert len(in_queue(namespace, FAILED)) == 1
    assert in_queue(namespace, QUEUE) == []
    agreed = namespace.run("failed", "replay", "1", "--drop-unsupported-properties")
    assert agreed.output == "1 replayed.\n"
    (copy,) = in_queue(namespace, QUEUE)
    assert copy.application_properties == {"kept": "x"}


def test_retry_now_copies_as_faithfully_as_replay(namespace: Namespace) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    namespace.broker.send(QUEUE, Message(AmqpSequence(((EVENT,),)), scheduled_enqueue_time=due))
    namespace.broker.send(
        QUEUE,
        Message(
            EVENT.encode(),
            subject="label",
            scheduled_enqueue_time=due,
            application_properties={"large": 2**40},
        ),
    )
    result = namespace.run("waiting", "retry-now", "--all", "--yes")
    assert (result.exit_code, result.stdout) == (1, "1 sent.\n")
    assert "AMQP sequence" in result.stderr
    left, copy = sorted(in_queue(namespace, QUEUE), key=lambda each: each.scheduled_enqueue_time is None)
    assert left.body == AmqpSequence(((EVENT,),))
    assert (copy.body, copy.subject, copy.application_properties) == (
        EVENT.encode(),
        "label",
        {"large": 2**40},
    )


def test_an_export_keeps_odd_messages_too(namespace: Namespace, tmp_path: Path) -> None:
    send(
        namespace,
        sequence_body=[[EVENT, 1]],
        application_properties={"bytes": {"TYPE": "BINARY", "VALUE": b"\xff"}},
    )
    send(namespace, data_body=b"\xff\xfe")
    file = tmp_path / "export.jsonl"
    assert namespace.run("failed", "export", "--all", "--output", str(file)).exit_code == 0
    sequence, data = map(json.loads, file.read_text().splitlines())
    assert sequence["body"] == [[EVENT, 1]]
    assert sequence["properties"] == {"bytes": {"base64": "/w=="}}
    assert [base64.b64decode(section) for section in data["bodyBase64"]] == [b"\xff\xfe"]


@pytest.mark.timeout(400)  # each receive waits for the broker
def test_a_message_that_the_sdk_cannot_decode_breaks_no_command_over_the_queue(
    namespace: Namespace, tmp_path: Path
) -> None:
    """The SDK has no decoder for a character: it raises, and with it a whole page of messages or the link."""
    namespace.send(FAILED, [namespace.parked(number) for number in (1, 2)])
    namespace.broker.send(FAILED, Message(b"{}", application_properties={"grade": Char("A")}))
    namespace.send(FAILED, [namespace.parked(number) for number in (4, 5)])
    assert [(row["number"], row["reason"]) for row in namespace.listed("failed", "list")] == [
        (1, "InvoiceRefused"),
        (2, "InvoiceRefused"),
        (3, "unknown"),
        (4, "InvoiceRefused"),
        (5, "InvoiceRefused"),
    ]
    shown = namespace.run("failed", "show", "3")
    assert (shown.exit_code, "cannot decode" in shown.output) == (1, True)
    exported = namespace.run("failed", "export", "--all", "--output", str(tmp_path / "export.jsonl"))
    assert exported.exit_code == 1
    assert "4 messages written" in exported.stdout
    assert "1 message not exported" in exported.stderr
    discarded = namespace.run("failed", "discard", "3", "4", "--yes", "--no-export")
    assert discarded.exit_code == 1
    assert "not decoded" in discarded.output
    assert "1 discarded. 1 not discarded." in discarded.output
    result = namespace.run("failed", "replay", "--all", "--yes")
    assert result.exit_code == 1
    assert "3 replayed. 1 not replayed." in result.output
    assert [row["number"] for row in namespace.listed("failed", "list")] == [3]


@pytest.mark.timeout(400)  # each peek that fails opens its link again
def test_a_message_that_cannot_be_decoded_breaks_no_command_over_what_waits(namespace: Namespace) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    odd = Message(b"{}", application_properties={"grade": Char("A")}, scheduled_enqueue_time=due)
    namespace.broker.send(QUEUE, odd)
    namespace.send(QUEUE, [namespace.waiting(2)])
    waiting = namespace.run("waiting", "list", "--json")
    assert waiting.exit_code == 0
    assert [row["number"] for row in json.loads(waiting.stdout)] == [2]
    assert "Message 1 of the queue cannot be decoded." in waiting.stderr
    assert namespace.run("waiting", "retry-now", "--all").stdout == "1 sent.\n"


@pytest.mark.parametrize(
    "properties",
    [
        {"DeadLetterReason": b"\xff\xfe", "DeadLetterErrorDescription": b"\xff\xfe"},
        {"InvoicingFirstSeen": "0001-01-01T00:00:00+14:00"},
        {"InvoicingFirstSeen": "9999-12-31T23:59:59-14:00"},
    ],
    ids=["reason", "too early", "too late"],
)
def test_properties_that_make_no_sense_break_no_command(
    namespace: Namespace, properties: dict[str, object], tmp_path: Path
) -> None:
    """The SDK's accessors, and conversions to UTC, raise for values that a sender may have set."""
    namespace.broker.send(FAILED, Message(EVENT.encode(), application_properties=properties))
    due = datetime.now(UTC) + timedelta(hours=1)
    namespace.broker.send(
        QUEUE, Message(EVENT.encode(), application_properties=properties, scheduled_enqueue_time=due)
    )
    for command in (
        ("failed", "list"),
        ("failed", "show", "1"),
        ("failed", "export", "--all", "--output", str(tmp_path / "export.jsonl")),
        ("waiting", "list"),
        ("waiting", "show", "1"),
    ):
        assert namespace.run(*command).exit_code == 0, command
        assert command[1] == "export" or namespace.run(*command, "--json").exit_code == 0, command
