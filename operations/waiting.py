"""`operations waiting`: the scheduled retries, and why they wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from azure.servicebus import ServiceBusMessageState

from operations.console import Column, Commands, confirm, count, note, progress, say, say_json
from operations.listing import AGE, info_cells, info_row, say_message, say_messages, with_reason
from operations.messages import MessageInfo, NotCopyable, copy_of, document_of
from operations.names import Names
from operations.namespace import MessageId, Place, Source, open_namespace
from operations.selection import SEQUENCE_NUMBER, Selection, check_reason, selecting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from azure.servicebus import ServiceBusReceivedMessage

    from operations.namespace import NamespaceClient

NOT_DONE = 1


@dataclass(frozen=True)
class QueuedMessage:
    """A message in the queue of wins, and what it says about itself."""

    number: int
    seen: MessageInfo
    message: ServiceBusReceivedMessage


@dataclass(frozen=True)
class Retried:
    """One message that was to be retried now. `problem`: why it still waits, or what else went wrong."""

    number: int
    is_sent: bool
    problem: str = ""


def waiting_messages(
    namespace: NamespaceClient, undecodable: Callable[[str], None]
) -> Iterator[QueuedMessage]:
    """Yield the scheduled messages of the queue; nothing is moved.

    `undecodable` is called with a sentence about a message that cannot be decoded: whether it waits is not known.
    """
    for peeked in namespace.peek_every(Source(namespace.settings.opportunity_won_queue)):
        if peeked.message is None:
            undecodable(f"Message {peeked.number} of the queue cannot be decoded.")
        elif peeked.message.state == ServiceBusMessageState.SCHEDULED:
            yield QueuedMessage(peeked.number, MessageInfo.of(peeked.message), peeked.message)


def retry_messages(
    namespace: NamespaceClient, messages: Iterable[QueuedMessage], *, drop_unsupported: bool = False
) -> Iterator[Retried]:
    """Have each message tried at once: its copy is sent before it is canceled.

    Both together are idempotent: the opportunity is only processed twice.
    """
    queue = namespace.settings.opportunity_won_queue
    for waiting_message in messages:
        try:
            # With its retry state: it stays the same root.
            copy = copy_of(waiting_message.message, without=frozenset(), drop_unsupported=drop_unsupported)
        except NotCopyable as error:
            yield Retried(waiting_message.number, is_sent=False, problem=str(error))
            continue
        namespace.send(queue, copy)
        canceled = namespace.cancel(queue, waiting_message.number)
        problem = (
            "" if canceled else "It was due in this moment, so it is processed twice, which changes nothing."
        )
        yield Retried(waiting_message.number, is_sent=True, problem=problem)


@click.group(cls=Commands)
def waiting() -> None:
    """Messages that are scheduled for another try: list or show them, or have them tried now."""


@waiting.command("list")
@click.option("--reason", help="Only messages with this reason, such as DataverseUnreachable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_waiting(environment: Mapping[str, str], reason: str | None, *, as_json: bool) -> None:
    """List the scheduled messages of the queue; nothing is moved."""
    with open_namespace(environment) as namespace:
        messages = with_reason(progress(waiting_messages(namespace, note), "Reading"), reason)
    names = Names.of(environment, (each.seen.opportunity_id for each in messages))
    if as_json:
        say_json([_row(each, names) for each in messages])
        return
    if not messages:
        say("No message waits for another try.")
        return
    say(f"{count(len(messages), 'message')} scheduled for another try:")
    say()
    rows = [
        {
            "number": each.number,
            "dueText": "" if each.seen.due is None else f"{each.seen.due:%H:%M:%S}",
            **info_cells(each.seen, names),
        }
        for each in messages
    ]
    say_messages(_COLUMNS, rows, names)


@waiting.command()
@click.argument("number", type=SEQUENCE_NUMBER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(environment: Mapping[str, str], number: int, *, as_json: bool) -> None:
    """Show one scheduled message: its reason, its properties and its body, which may hold personal data."""
    with open_namespace(environment) as namespace:
        peeked = namespace.peek_one(Source(namespace.settings.opportunity_won_queue), number)
    message = None if peeked is None else peeked.message
    if message is None or message.state != ServiceBusMessageState.SCHEDULED:
        raise click.ClickException(f"There is no scheduled message {number}: see waiting list.")
    waiting_message = QueuedMessage(number, MessageInfo.of(message), message)
    row = _row(waiting_message, Names.of(environment, [waiting_message.seen.opportunity_id]))
    if as_json:
        say_json({**row, **document_of(message)})
        return
    say_message(row, message)


@waiting.command("retry-now")
@selecting
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--drop-unsupported-properties",
    "drop_unsupported",
    is_flag=True,
    help="Include messages with properties that cannot be copied, without these properties.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def retry_now(
    environment: Mapping[str, str],
    *,
    selection: Selection,
    yes: bool,
    drop_unsupported: bool,
    as_json: bool,
) -> None:
    """Have scheduled messages tried at once, as when an outage is known to be over.

    The copy is sent before the scheduled message is canceled, so this may be interrupted at any time.
    """
    with open_namespace(environment) as namespace:
        every = list(progress(waiting_messages(namespace, note), "Reading"))
        check_reason(selection.reason, (each.seen.reason for each in every))
        selected = [each for each in every if selection.matches(_id(each), each.seen.reason)]
        selection.check_found(map(_id, selected), "waiting")
        if len(selected) > 1:
            confirm(f"Try {len(selected)} messages now?", yes=yes)
        retrying = retry_messages(namespace, selected, drop_unsupported=drop_unsupported)
        retried = list(progress(retrying, "Sending", len(selected)))
    sent = sum(each.is_sent for each in retried)
    if as_json:
        say_json(
            [
                {"number": each.number, "sent": each.is_sent, "problem": each.problem or None}
                for each in retried
            ]
        )
    else:
        for each in retried:
            if each.problem:
                note(f"{each.number}: {each.problem}")
        say(f"{sent} sent." if retried else "No message waits for another try.")
    if sent < len(retried):
        raise click.exceptions.Exit(NOT_DONE)


_COLUMNS = [
    Column("Number", "number", number=True),
    AGE,
    Column("Next try", "dueText", number=True),
]


def _id(message: QueuedMessage) -> MessageId:
    return MessageId(Place.FAILED, message.number)


def _row(message: QueuedMessage, names: Names) -> dict[str, object]:
    seen = message.seen
    return {
        "number": message.number,
        **info_row(seen, names),
        "age": None if seen.age is None else str(seen.age).partition(".")[0],
        "attempt": seen.retries,
        "due": seen.due,
    }
