"""`operations waiting`: the messages that are tried again later, and why they wait."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from azure.servicebus import ServiceBusMessageState
from azure.servicebus.exceptions import ServiceBusError

from operations import namespace as bus
from operations.console import Column, confirm, progress, show_rows
from operations.selection import selecting
from shared.message import ATTEMPT, FIRST_SEEN, REASON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from azure.servicebus import ServiceBusReceivedMessage

    from operations.namespace import Namespace
    from operations.selection import Selection


@click.group()
def waiting() -> None:
    """Messages that are tried again later: look at them, or try them now."""


@waiting.command("list")
@click.option("--reason", help="Only messages with this reason, such as DataverseUnreachable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_waiting(environment: Mapping[str, str], reason: str | None, *, as_json: bool) -> None:
    """List the scheduled messages of the queue; nothing is moved."""
    with bus.open_namespace(environment) as namespace:
        rows = [_row(message) for message in _scheduled(namespace)]
    rows = [row for row in rows if reason in (None, row["reason"])]
    columns = [
        Column("Number", "number", number=True),
        Column("Reason", "reason"),
        Column("Opportunity", "opportunity"),
        Column("Age", "age", number=True),
        Column("Attempt", "attempt", number=True),
        Column("Tried next", "due"),
    ]
    show_rows(f"{len(rows)} waiting", columns, rows, as_json=as_json)


@waiting.command("retry-now")
@selecting
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def retry_now(environment: Mapping[str, str], *, selection: Selection, yes: bool) -> None:
    """Let scheduled messages be tried at once, as when an outage is known to be over.

    The copy is sent before the scheduled one is canceled, so this may be interrupted; both together are harmless.
    """
    with bus.open_namespace(environment) as namespace:
        chosen = [
            message
            for message in _scheduled(namespace)
            if selection.means(bus.sequence_number(message), _reason(message))
        ]
        selection.check_found(map(bus.sequence_number, chosen), "waiting")
        if len(chosen) > 1:
            confirm(f"Try {len(chosen)} messages now?", yes=yes)
        sender = namespace.sender(namespace.settings.opportunity_won_queue)
        for message in progress(chosen, "Sending", total=len(chosen)):
            # The same place in the chain.
            sender.send(bus.copy_of(message, without=frozenset()))
            try:
                sender.cancel(bus.sequence_number(message))
            except ServiceBusError as error:
                # It fell due in this moment: the opportunity is tried twice, which changes nothing.
                click.echo(f"{message.sequence_number} was not canceled: {type(error).__name__}.", err=True)
    click.echo(f"{len(chosen)} sent.")


def _scheduled(namespace: Namespace) -> list[ServiceBusReceivedMessage]:
    messages = bus.peek_all(namespace, namespace.settings.opportunity_won_queue)
    return [
        message
        for message in progress(messages, "Looking")
        if message.state == ServiceBusMessageState.SCHEDULED
    ]


def _reason(message: ServiceBusReceivedMessage) -> object:
    return bus.text_properties(message).get(REASON)


def _row(message: ServiceBusReceivedMessage) -> dict[str, object]:
    properties = bus.text_properties(message)
    return {
        "number": message.sequence_number,
        "reason": _reason(message),
        "opportunity": bus.opportunity_of(message),
        "age": _age(properties.get(FIRST_SEEN)),
        "attempt": properties.get(ATTEMPT),
        "due": message.scheduled_enqueue_time_utc,
    }


def _age(first_seen: object) -> str | None:
    try:
        since = datetime.now(UTC) - datetime.fromisoformat(str(first_seen))
    except (ValueError, TypeError):
        return None
    return str(since).partition(".")[0]
