"""`operations failed`: messages that failed, with their reasons; replay, export or discard them.

Besides the failed queue this covers its dead-letter queue and that of the queue of wins: messages that the broker
dead-lettered are listed and replayed in the same way.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
from azure.servicebus.exceptions import ServiceBusError

from operations.console import (
    Column,
    Commands,
    Overflow,
    age_text,
    confirm,
    count,
    note,
    progress,
    say,
    say_json,
    say_table,
)
from operations.following import Fate, FateState, ReplayTracker
from operations.identity import operator
from operations.listing import AGE, info_cells, info_row, say_message, say_messages, with_reason
from operations.messages import MessageInfo, NotCopyable, copy_of, document_of
from operations.names import Names
from operations.namespace import MessageId, Place, open_namespace, sequence_number
from operations.selection import MessageIdType, Selection, check_reason, selecting
from shared.message import PARKED_PROPERTIES, RETRY_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from azure.servicebus import ServiceBusReceivedMessage
    from azure.servicebus.amqp import AmqpAnnotatedMessage

    from operations.namespace import NamespaceClient, Peeked

NOT_DONE = 1
_NEW_ROOT = RETRY_PROPERTIES | PARKED_PROPERTIES
AUDIT_FILE = "OPERATIONS_AUDIT_FILE"
_AUDIT_FILE = "operations-audit.jsonl"
_FOLLOW_SECONDS = 60.0
_UNDECODABLE = "The message holds an AMQP type that this command cannot decode."


@dataclass(frozen=True)
class FailedMessage:
    """A message that failed, and what it says about itself."""

    id: MessageId
    seen: MessageInfo


class Outcome(Enum):
    """What became of a message that was to be replayed or discarded."""

    DONE = "done"
    GONE = "gone, or locked by somebody else"
    NOT_COPYABLE = "not copied"
    NOT_DECODABLE = "not decoded"


@dataclass(frozen=True)
class Settled:
    """One message that was to be replayed or discarded. `copy_id`: the message id of its copy."""

    id: MessageId
    outcome: Outcome
    text: str = ""
    copy_id: str = ""
    opportunity_id: str | None = None


def failed_messages(namespace: NamespaceClient, unreadable: Callable[[str], None]) -> Iterator[FailedMessage]:
    """Yield every message that failed, wherever it is; nothing is moved.

    `unreadable` is called with a sentence about a dead-letter queue that cannot be read: the failed queue is what
    matters, and usually has all.
    """
    for place in Place:
        source = place.source(namespace.settings)
        try:
            for peeked in namespace.peek_every(source):
                yield FailedMessage(MessageId(place, peeked.number), MessageInfo.of(peeked.message))
        except ServiceBusError as error:
            if place is Place.FAILED:
                raise
            unreadable(f"The dead-letter queue of {source.entity} cannot be read: {type(error).__name__}.")


def failed_message(namespace: NamespaceClient, message_id: MessageId) -> Peeked | None:
    """Return one message that failed, or None where there is none with this id."""
    return namespace.peek_one(message_id.place.source(namespace.settings), message_id.number)


def select(namespace: NamespaceClient, selection: Selection) -> list[MessageId]:
    """Return the ids of the selected messages; raises ClickException where one is not there."""
    if selection.ids:
        # Without reading the whole queue for a few messages.
        found = [each for each in dict.fromkeys(selection.ids) if failed_message(namespace, each)]
        selection.check_found(found, "among the failed messages")
        return found
    # Their ids, not the messages: those may be thousands, with whole bodies.
    messages = [(each.id, each.seen.reason) for each in progress(failed_messages(namespace, note), "Reading")]
    check_reason(selection.reason, (reason for _, reason in messages))
    return [message_id for message_id, reason in messages if selection.matches(message_id, reason)]


def replay_copy(
    message: ServiceBusReceivedMessage | None, *, drop_unsupported: bool = False
) -> AmqpAnnotatedMessage:
    """Return the message as it first came: a new root, without retry state and dead-letter properties."""
    if message is None:
        raise NotCopyable(_UNDECODABLE)
    return copy_of(message, without=_NEW_ROOT, drop_unsupported=drop_unsupported)


def replay_messages(
    namespace: NamespaceClient, ids: Iterable[MessageId], *, drop_unsupported: bool = False
) -> Iterator[Settled]:
    """Send each message to the queue again, then remove it; what cannot be copied faithfully stays."""
    for message_id in ids:
        source = message_id.place.source(namespace.settings)
        # Checked before it is locked: a message that stays keeps its state.
        peeked = failed_message(namespace, message_id)
        if peeked is not None:
            try:
                replay_copy(peeked.message, drop_unsupported=drop_unsupported)
            except NotCopyable as error:
                yield Settled(message_id, Outcome.NOT_COPYABLE, str(error))
                continue
        message = None if peeked is None else namespace.lock(source, message_id.number)
        if message is None:
            yield Settled(message_id, Outcome.GONE)
            continue
        copy = replay_copy(message, drop_unsupported=drop_unsupported)
        namespace.send(namespace.settings.opportunity_won_queue, copy)
        namespace.complete(source, message)
        copy_id = str(copy.properties.message_id) if copy.properties else ""
        yield Settled(message_id, Outcome.DONE, "", copy_id, MessageInfo.of(message).opportunity_id)


def discard_messages(namespace: NamespaceClient, ids: Iterable[MessageId]) -> Iterator[Settled]:
    """Remove each message for good; one that cannot be decoded cannot be locked either, and stays."""
    for message_id in ids:
        source = message_id.place.source(namespace.settings)
        peeked = failed_message(namespace, message_id)
        if peeked is not None and peeked.message is None:
            yield Settled(
                message_id, Outcome.NOT_DECODABLE, f"{_UNDECODABLE} Remove it with Service Bus Explorer."
            )
            continue
        message = namespace.lock(source, message_id.number)
        if message is None:
            yield Settled(message_id, Outcome.GONE)
            continue
        seen = MessageInfo.of(message)
        namespace.complete(source, message)
        yield Settled(message_id, Outcome.DONE, seen.reason, "", seen.opportunity_id)


def discard_with_record(
    environment: Mapping[str, str],
    namespace: NamespaceClient,
    ids: Sequence[MessageId],
    because: str,
    file: Path | None,
) -> Iterator[Settled]:
    """Export the messages to a new file, if one is given, and remove them; append to the audit file who did it."""
    audit = Path(environment.get(AUDIT_FILE, "") or _AUDIT_FILE)
    who = operator(environment)

    def record(what: str, **details: object) -> None:
        line = {"time": datetime.now(UTC), "who": who, "what": what, "because": because}
        line |= {"export": file and str(file.resolve()), **details}
        try:
            with _opened(audit, os.O_APPEND) as log:
                log.write(json.dumps(line, default=str) + "\n")
        except OSError as error:
            raise click.ClickException(f"The record {audit} cannot be written: {error.strerror}.") from error

    # Before anything is deleted: a record that cannot be written, or names nobody, must not come too late.
    record("discard begins", ids=[str(each) for each in ids])
    if file is not None:
        _export(namespace, ids, file)
        note(f"Exported to {file}.")
    settled: list[Settled] = []
    try:
        for each in discard_messages(namespace, ids):
            settled.append(each)
            yield each
    finally:
        # What was done before an error belongs into the record.
        done = [
            {
                "id": str(each.id),
                "outcome": each.outcome.value,
                "reason": each.text,
                "opportunity": each.opportunity_id,
            }
            for each in settled
        ]
        record("discard", messages=done)
        note(f"Recorded in {audit}.")


@click.group(cls=Commands)
def failed() -> None:
    """Messages that failed: list, show, replay, export or discard them."""


@failed.command("list")
@click.option("--reason", help="Only messages with this reason, such as InvoiceRefused.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_failed(environment: Mapping[str, str], reason: str | None, *, as_json: bool) -> None:
    """List the messages that failed, with a summary by reason; nothing is moved."""
    with open_namespace(environment) as namespace:
        messages = with_reason(progress(failed_messages(namespace, note), "Reading"), reason)
    names = Names.of(environment, (each.seen.opportunity_id for each in messages))
    if as_json:
        say_json([_row(each, names) for each in messages])
        return
    if not messages:
        say("No message has failed.")
        return
    say(f"{count(len(messages), 'failed message')}, by reason:")
    say()
    say_table(_SUMMARY_COLUMNS, _summary(messages))
    say()
    rows = [{"id": each.id, **info_cells(each.seen, names)} for each in messages]
    say_messages([Column("Id", "id", number=True), AGE], rows, names)


@failed.command()
@click.argument("message_id", type=MessageIdType(), metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(environment: Mapping[str, str], message_id: MessageId, *, as_json: bool) -> None:
    """Show one message: its reason, its properties and its body, which may hold personal data."""
    with open_namespace(environment) as namespace:
        peeked = failed_message(namespace, message_id)
    if peeked is None:
        raise click.ClickException(f"There is no failed message {message_id}: see failed list.")
    message = peeked.message
    if message is None:
        raise click.ClickException(_UNDECODABLE)
    failure = FailedMessage(message_id, MessageInfo.of(message))
    row = _row(failure, Names.of(environment, [failure.seen.opportunity_id]))
    if as_json:
        say_json({**row, **document_of(message)})
        return
    say(f"{failure.seen.reason}: {failure.seen.description}")
    say()
    fields = {
        **row,
        "messageId": message.message_id,
        "correlationId": message.correlation_id,
        "contentType": message.content_type,
        "subject": message.subject,
    }
    del fields["reason"], fields["description"]
    say_message(fields, message)


@failed.command()
@selecting
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--follow", "is_followed", is_flag=True, help="Wait, and report what became of each message.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=_FOLLOW_SECONDS,
    show_default=True,
    help="How long --follow waits.",
)
@click.option(
    "--drop-unsupported-properties",
    "drop_unsupported",
    is_flag=True,
    help="Replay also messages with properties that cannot be copied, without these properties.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def replay(
    environment: Mapping[str, str],
    *,
    selection: Selection,
    dry_run: bool,
    yes: bool,
    is_followed: bool,
    seconds: float,
    drop_unsupported: bool,
    as_json: bool,
) -> None:
    """Send messages to the queue again, each as a new root. Replaying is idempotent: no second invoice is made.

    A message leaves the failed queue only after its copy is accepted, so this may be interrupted at any time. A message
    that cannot be copied faithfully stays. Exit code 1 if a message was not replayed, or failed again (--follow).
    """
    with open_namespace(environment) as namespace:
        ids = select(namespace, selection)
        if dry_run or not ids:
            _say_dry_run(ids, "replayed", as_json=as_json)
            return
        if len(ids) > 1:
            confirm(f"Replay {len(ids)} messages?", yes=yes)
        tracker = ReplayTracker.of(namespace) if is_followed else None
        replaying = replay_messages(namespace, ids, drop_unsupported=drop_unsupported)
        settled = list(progress(replaying, "Replaying", len(ids)))
        copies = {each.copy_id: each.opportunity_id for each in settled if each.copy_id}
        fates = {} if tracker is None else tracker.follow(copies, seconds)
    _report(settled, fates, "replayed", as_json=as_json)


@failed.command()
@selecting
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write, one JSON document a line.  [default: failed-TIME.jsonl]",
)
@click.pass_obj
def export(environment: Mapping[str, str], *, selection: Selection, output: Path | None) -> None:
    """Write messages with all that they hold into a file; nothing is moved."""
    with open_namespace(environment) as namespace:
        ids = select(namespace, selection)
        if not ids:
            say("No message has failed.")
            return
        file = output or new_file("failed")
        written = _export(namespace, ids, file)
    say(f"{count(written, 'message')} written to {file}.")
    if written < len(ids):
        raise click.exceptions.Exit(NOT_DONE)


@failed.command()
@selecting
@click.option("--dry-run", is_flag=True, help="Only say what would be discarded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to which the messages are exported first.  [default: discarded-TIME.jsonl]",
)
@click.option("--no-export", is_flag=True, help="Do not export the messages first: their bodies are lost.")
@click.option("--because", default="", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def discard(
    environment: Mapping[str, str],
    *,
    selection: Selection,
    dry_run: bool,
    yes: bool,
    output: Path | None,
    no_export: bool,
    because: str,
    as_json: bool,
) -> None:
    """Delete messages for good, after they are exported to a file.

    A record of who discarded what is appended to operations-audit.jsonl, or to the file that OPERATIONS_AUDIT_FILE
    names.
    """
    with open_namespace(environment) as namespace:
        ids = select(namespace, selection)
        if dry_run or not ids:
            _say_dry_run(ids, "discarded", as_json=as_json)
            return
        confirm(f"Discard {count(len(ids), 'message')} for good?", yes=yes)
        file = None if no_export else output or new_file("discarded")
        discarding = discard_with_record(environment, namespace, ids, because, file)
        settled = list(progress(discarding, "Discarding", len(ids)))
    _report(settled, {}, "discarded", as_json=as_json)


_SUMMARY_COLUMNS = [
    Column("Reason", "reason", overflow=Overflow.CUT),
    Column("Messages", "messages", number=True),
    Column("Oldest", "oldest", number=True),
]
_SETTLED_COLUMNS = [
    Column("Id", "id", number=True),
    Column("Outcome", "outcome"),
    Column("Became", "became"),
    Column("Detail", "detail", overflow=Overflow.CUT),
]


def _row(failure: FailedMessage, names: Names) -> dict[str, object]:
    return {
        "id": str(failure.id),
        "number": failure.id.number,
        **info_row(failure.seen, names),
        "attempts": failure.seen.attempts,
    }


def _summary(messages: Sequence[FailedMessage]) -> list[dict[str, object]]:
    by_reason: dict[str, list[FailedMessage]] = defaultdict(list)
    for each in messages:
        by_reason[each.seen.reason].append(each)
    return [
        {
            "reason": reason,
            "messages": len(some),
            "oldest": age_text(max((each.seen.age for each in some if each.seen.age), default=None)),
        }
        for reason, some in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]


def _report(settled: Sequence[Settled], fates: Mapping[str, Fate], verb: str, *, as_json: bool) -> None:
    """Print what became of the messages; raises Exit if one was left where it was, or failed again."""
    rows = [
        {
            "id": str(each.id),
            "outcome": each.outcome.value,
            "became": fate and fate.state.value,
            "detail": fate.text if fate else each.text,
            "opportunity": each.opportunity_id,
            "messageId": each.copy_id or None,
        }
        for each, fate in ((each, fates.get(each.copy_id)) for each in settled)
    ]
    done = sum(each.outcome is Outcome.DONE for each in settled)
    left = len(settled) - done
    if as_json:
        say_json(rows)
    else:
        interesting = [row for row in rows if row["outcome"] != Outcome.DONE.value or row["became"]]
        say_table(_SETTLED_COLUMNS, interesting)
        say(f"{done} {verb}." + (f" {left} not {verb}." if left else ""))
    if left or any(fate.state is FateState.PARKED for fate in fates.values()):
        raise click.exceptions.Exit(NOT_DONE)


def _say_dry_run(ids: Sequence[MessageId], verb: str, *, as_json: bool) -> None:
    if as_json:
        say_json([{"id": str(each), "outcome": f"would be {verb}"} for each in ids])
    else:
        say(f"{len(ids)} would be {verb}." if ids else "No message has failed.")


def _export(namespace: NamespaceClient, ids: Sequence[MessageId], file: Path) -> int:
    """Write the messages into a new file, one JSON document a line; return how many.

    Only its owner can read the file: bodies may hold personal data. Raises ClickException.
    """
    by_place: dict[Place, set[int]] = defaultdict(set)
    for message_id in ids:
        by_place[message_id.place].add(message_id.number)
    written = 0
    try:
        with _opened(file, os.O_EXCL) as output:
            for place, numbers in by_place.items():
                for message in namespace.peek_all(place.source(namespace.settings), min(numbers)):
                    number = sequence_number(message)
                    if number in numbers:
                        document = {"id": str(MessageId(place, number)), **document_of(message)}
                        output.write(json.dumps(document, default=str) + "\n")
                        written += 1
                    if number >= max(numbers):
                        break
            output.flush()
            os.fsync(output.fileno())
    except OSError as error:
        raise click.ClickException(
            f"{file} cannot be written: {error.strerror}. Nothing was changed."
        ) from error
    if written < len(ids):
        note(f"{count(len(ids) - written, 'message')} not exported: gone meanwhile, or not decodable.")
    return written


def new_file(name: str) -> Path:
    """Return the name of a file for an export of this moment."""
    return Path(f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl")


def _opened(file: Path, flags: int) -> TextIO:
    """Open a file to write to; a new one can be read by its owner only."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | flags, 0o600), "a", encoding="utf-8")
