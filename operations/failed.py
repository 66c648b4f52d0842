"""`operations failed`: what failed for good, with its reason; sent round again, or discarded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from operations import namespace as bus
from operations.console import Column, as_json_text, confirm, progress, show_rows
from operations.selection import SEQUENCE_NUMBER, selecting
from shared.message import ATTEMPT, FIRST_SEEN, PARKED_PROPERTIES, RETRY_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage

    from operations.namespace import Namespace
    from operations.selection import Selection

    CopyOf = Callable[[ServiceBusReceivedMessage], ServiceBusMessage]


@click.group()
def failed() -> None:
    """Messages that failed for good: look at them, replay or discard them."""


@failed.command("list")
@click.option("--reason", help="Only messages with this reason, such as InvoiceRefused.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_failed(environment: Mapping[str, str], reason: str | None, *, as_json: bool) -> None:
    """List what is in the failed queue; nothing is moved."""
    with bus.open_namespace(environment) as namespace:
        messages = bus.peek_all(namespace, namespace.settings.failed_queue)
        rows = [_row(message) for message in progress(messages, "Looking")]
    rows = [row for row in rows if reason in (None, row["reason"])]
    columns = [
        Column("Number", "number", number=True),
        Column("Reason", "reason"),
        Column("Opportunity", "opportunity"),
        Column("Since", "since"),
        Column("Attempts", "attempts", number=True),
    ]
    show_rows(f"{len(rows)} failed", columns, rows, as_json=as_json)


@failed.command()
@click.argument("number", type=SEQUENCE_NUMBER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(environment: Mapping[str, str], number: int, *, as_json: bool) -> None:
    """Show one message whole: its reason, its properties and its body, which may hold personal data."""
    with bus.open_namespace(environment) as namespace:
        message = bus.peek_one(namespace, namespace.settings.failed_queue, number)
    if message is None:
        raise click.ClickException(f"There is no message {number} in the failed queue: see failed list.")
    reason, description = bus.reason_of(message)
    document = {
        **_row(message),
        "description": description,
        "messageId": message.message_id,
        "correlationId": message.correlation_id,
        "contentType": message.content_type,
        "enqueued": message.enqueued_time_utc,
        "properties": bus.text_properties(message),
        "body": bus.body_of(message).decode("utf-8", errors="replace"),
    }
    if as_json:
        click.echo(as_json_text(document))
        return
    click.echo(f"{reason}: {description}\n")
    for name, value in document.items():
        if name not in ("description", "body", "properties"):
            click.echo(f"{name + ':':<15} {'' if value is None else value}")
    for name, value in bus.text_properties(message).items():
        click.echo(f"  {name} = {value}")
    click.echo(f"\n{document['body']}")


@failed.command()
@selecting
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def replay(environment: Mapping[str, str], *, selection: Selection, dry_run: bool, yes: bool) -> None:
    """Send messages round again, each as a new root; harmless twice.

    A message leaves the failed queue only after its copy is accepted, so this may be interrupted at any time.
    """
    with bus.open_namespace(environment) as namespace:
        chosen = choose(namespace, selection)
        if dry_run:
            click.echo(f"{len(chosen)} would be replayed.")
            return
        if len(chosen) > 1:
            confirm(f"Replay {len(chosen)} messages?", yes=yes)
        done = let_go(namespace, chosen, "Replaying", replay_copy)
    click.echo(f"{done} replayed.")


@failed.command()
@selecting
@click.option("--dry-run", is_flag=True, help="Only say what would be discarded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def discard(environment: Mapping[str, str], *, selection: Selection, dry_run: bool, yes: bool) -> None:
    """Delete messages for good."""
    with bus.open_namespace(environment) as namespace:
        chosen = choose(namespace, selection)
        if dry_run:
            click.echo(f"{len(chosen)} would be discarded.")
            return
        confirm(f"Discard {len(chosen)} messages for good?", yes=yes)
        done = let_go(namespace, chosen, "Discarding", None)
    click.echo(f"{done} discarded.")


def replay_copy(message: ServiceBusReceivedMessage) -> ServiceBusMessage:
    """Return the message as it first came: a new root, without attempts, first time seen and dead-letter properties."""
    return bus.copy_of(message, without=RETRY_PROPERTIES | PARKED_PROPERTIES)


def choose(namespace: Namespace, selection: Selection) -> list[int]:
    """Return the sequence numbers of the messages that are meant."""
    queue = namespace.settings.failed_queue
    if selection.numbers:
        # Not the whole queue for a few.
        chosen = [
            number for number in dict.fromkeys(selection.numbers) if bus.peek_one(namespace, queue, number)
        ]
        selection.check_found(chosen, "in the failed queue")
        return chosen
    messages = bus.peek_all(namespace, queue)
    # Their numbers, not the messages: those may be thousands, with whole bodies.
    return [
        bus.sequence_number(message)
        for message in progress(messages, "Looking")
        if selection.means(bus.sequence_number(message), bus.reason_of(message)[0])
    ]


def let_go(namespace: Namespace, chosen: list[int], description: str, copy: CopyOf | None) -> int:
    """Let the chosen messages go, each after its copy is accepted where there is one; return how many went."""
    picker = bus.Picker(namespace, namespace.settings.failed_queue)
    done = 0
    for number in progress(chosen, description, total=len(chosen)):
        message = picker.pick(number)
        if message is None:
            click.echo(f"{number} has left the failed queue since, or is held by somebody else.", err=True)
            continue
        if copy is not None:
            queue = namespace.settings.opportunity_won_queue
            namespace.sender(queue).send(copy(message))
        picker.complete(message)
        done += 1
    return done


def _row(message: ServiceBusReceivedMessage) -> dict[str, object]:
    properties = bus.text_properties(message)
    attempt = properties.get(ATTEMPT)
    return {
        "number": message.sequence_number,
        "reason": bus.reason_of(message)[0],
        "opportunity": bus.opportunity_of(message),
        "since": properties.get(FIRST_SEEN) or message.enqueued_time_utc,
        # The first try counts; the broker counts for a message that never came so far as to be put aside.
        "attempts": attempt + 1 if isinstance(attempt, int) else message.delivery_count,
    }
