"""Copies of odd messages, over real sockets: faithful, or refused with the original where it was."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from sandbox.cloud import FAILED_QUEUE, WON_QUEUE
from sandbox.service_bus import Message
from sandbox.service_bus.amqp.encoding import Char, ULong
from sandbox.service_bus.messages import AmqpData, AmqpSequence, AmqpValue, Body
from tests.end_to_end.conftest import event, opportunity

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.conftest import Namespace

EVENT = event(1)
TEXT = EVENT.decode()
DUE = datetime.now(UTC) + timedelta(hours=1)


def test_a_body_that_cannot_be_copied_stays_and_the_others_are_replayed(namespace: Namespace) -> None:
    """The function cannot read such a body either, so that no copy can help."""
    bodies: tuple[Body, ...] = (
        AmqpValue(42),
        AmqpValue(value=True),
        AmqpValue({"opportunityId": opportunity(1)}),
        AmqpValue(["text"]),
        AmqpSequence(((TEXT, 1),)),
        AmqpSequence(((TEXT,), (2,))),
    )
    namespace.broker.send(FAILED_QUEUE, *map(Message, bodies))
    odd = namespace.messages(FAILED_QUEUE)
    namespace.park(7)

    listed = namespace.listed("failed", "list")
    assert [row["opportunity"] for row in listed] == [None] * len(odd) + [opportunity(7)]
    for row in listed:
        namespace.run("failed", "show", row["id"])
    result = namespace.run("failed", "replay", "--all", "--yes", code=1)

    assert "1 replayed. 6 not replayed." in result.output
    assert namespace.messages(FAILED_QUEUE) == odd
    assert [copy.body for copy in namespace.messages(WON_QUEUE)] == [event(7)]


def test_a_body_is_copied_in_a_form_that_the_function_reads(namespace: Namespace) -> None:
    """The message of a portal or of another library: its text is all that it says, and is sent as data."""
    sections = AmqpData((EVENT[:9], EVENT[9:]))
    for body in (AmqpValue(TEXT), AmqpValue(EVENT), sections):
        namespace.broker.send(FAILED_QUEUE, Message(body, subject="label"))
    assert {row["opportunity"] for row in namespace.listed("failed", "list")} == {opportunity(1)}
    namespace.run("failed", "replay", "--all", "--yes")
    copies = [(copy.body, copy.subject) for copy in namespace.messages(WON_QUEUE)]
    assert copies == [(EVENT, "label"), (EVENT, "label"), (sections, "label")]
    assert namespace.messages(FAILED_QUEUE) == []


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
    before = Message(
        EVENT,
        message_id="original",
        correlation_id=str(UUID(int=9)),
        subject="label",
        to="somewhere",
        reply_to="reply",
        content_type="application/json",
        application_properties=properties,
        # The content encoding.
        other={"properties.7": "utf-8"},
    )
    namespace.broker.send(FAILED_QUEUE, before)
    assert namespace.run("failed", "replay", "1").output == "1 replayed.\n"
    (copy,) = namespace.messages(WON_QUEUE)
    assert copy.application_properties == properties
    for name in ("subject", "content_type", "correlation_id", "to", "reply_to", "body"):
        assert getattr(copy, name) == getattr(before, name), name
    assert copy.other["properties.7"] == "utf-8"
    assert copy.message_id != "original"


@pytest.mark.parametrize("value", [ULong(2**64 - 1), float("nan")], ids=["huge", "nan"])
def test_a_property_that_cannot_be_copied_is_refused_unless_one_agrees_to_drop_it(
    namespace: Namespace, value: object
) -> None:
    message = Message(EVENT, application_properties={"odd": value, "kept": "x"})
    namespace.broker.send(FAILED_QUEUE, message)
    namespace.run("failed", "replay", "1", code=1)
    assert len(namespace.messages(FAILED_QUEUE)) == 1
    assert namespace.messages(WON_QUEUE) == []
    agreed = namespace.run("failed", "replay", "1", "--drop-unsupported-properties")
    assert agreed.output == "1 replayed.\n"
    (copy,) = namespace.messages(WON_QUEUE)
    assert copy.application_properties == {"kept": "x"}


def test_retry_now_copies_as_faithfully_as_replay(namespace: Namespace) -> None:
    sequence = AmqpSequence(((TEXT,),))
    large = {"large": 2**40}
    namespace.broker.send(
        WON_QUEUE,
        Message(sequence, scheduled_enqueue_time=DUE),
        Message(EVENT, subject="label", scheduled_enqueue_time=DUE, application_properties=large),
    )
    result = namespace.run("waiting", "retry-now", "--all", "--yes", code=1)
    assert result.stdout == "1 sent.\n"
    assert "AMQP sequence" in result.stderr
    left, copy = sorted(namespace.messages(WON_QUEUE), key=lambda each: each.scheduled_enqueue_time is None)
    assert left.body == sequence
    assert (copy.body, copy.subject, copy.application_properties) == (EVENT, "label", large)


def test_an_export_keeps_odd_messages_too(namespace: Namespace, tmp_path: Path) -> None:
    odd = Message(AmqpSequence(((TEXT, 1),)), application_properties={"bytes": b"\xff"})
    namespace.broker.send(FAILED_QUEUE, odd, Message(b"\xff\xfe"))
    file = tmp_path / "export.jsonl"
    namespace.run("failed", "export", "--all", "--output", str(file))
    sequence, data = map(json.loads, file.read_text().splitlines())
    assert sequence["body"] == [[TEXT, 1]]
    assert sequence["properties"] == {"bytes": {"base64": "/w=="}}
    assert [base64.b64decode(section) for section in data["bodyBase64"]] == [b"\xff\xfe"]


@pytest.mark.timeout(400)  # each receive waits for the broker
def test_a_message_that_the_sdk_cannot_decode_breaks_no_command_over_the_queue(
    namespace: Namespace, tmp_path: Path
) -> None:
    """The SDK has no decoder for a character: it raises, and with it a whole page of messages or the link."""
    namespace.park(1)
    namespace.broker.send(FAILED_QUEUE, Message(b"{}", application_properties={"grade": Char("A")}))
    namespace.park(3, 4)
    reasons = {row["number"]: row["reason"] for row in namespace.listed("failed", "list")}
    assert reasons == dict.fromkeys((1, 3, 4), "InvoiceRefused") | {2: "unknown"}
    assert "cannot decode" in namespace.run("failed", "show", "2", code=1).output
    file = str(tmp_path / "export.jsonl")
    exported = namespace.run("failed", "export", "--all", "--output", file, code=1)
    assert "3 messages written" in exported.stdout
    assert "1 message not exported" in exported.stderr
    discarded = namespace.run("failed", "discard", "2", "3", "--yes", "--no-export", code=1)
    assert "not decoded" in discarded.output
    assert "1 discarded. 1 not discarded." in discarded.output
    result = namespace.run("failed", "replay", "--all", "--yes", code=1)
    assert "2 replayed. 1 not replayed." in result.output
    assert [each.sequence_number for each in namespace.broker.peek(FAILED_QUEUE, 0, 9)] == [2]


@pytest.mark.timeout(400)  # each peek that fails opens its link again
def test_a_message_that_cannot_be_decoded_breaks_no_command_over_what_waits(namespace: Namespace) -> None:
    odd = Message(b"{}", application_properties={"grade": Char("A")}, scheduled_enqueue_time=DUE)
    namespace.broker.send(WON_QUEUE, odd)
    namespace.schedule(2)
    waiting = namespace.run("waiting", "list", "--json")
    assert [row["number"] for row in json.loads(waiting.stdout)] == [2]
    assert "Message 1 of the queue cannot be decoded." in waiting.stderr
    assert namespace.run("waiting", "retry-now", "--all").stdout == "1 sent.\n"


def test_properties_that_make_no_sense_break_no_command(namespace: Namespace, tmp_path: Path) -> None:
    """The SDK's accessors, and conversions to UTC, raise for values that a sender may have set."""
    senseless: tuple[dict[str, Any], ...] = (
        {"DeadLetterReason": b"\xff\xfe", "DeadLetterErrorDescription": b"\xff\xfe"},
        {"InvoicingFirstSeen": "0001-01-01T00:00:00+14:00"},
        {"InvoicingFirstSeen": "9999-12-31T23:59:59-14:00"},
    )
    for each in senseless:
        namespace.broker.send(FAILED_QUEUE, Message(EVENT, application_properties=each))
        waiting = Message(EVENT, application_properties=each, scheduled_enqueue_time=DUE)
        namespace.broker.send(WON_QUEUE, waiting)
    namespace.run("failed", "export", "--all", "--output", str(tmp_path / "export.jsonl"))
    for command in ("failed", "waiting"):
        namespace.run(command, "list")
        assert len(namespace.listed(command, "list")) == len(senseless)
        for number in ("1", "2", "3"):
            namespace.run(command, "show", number)
            namespace.run(command, "show", number, "--json")
