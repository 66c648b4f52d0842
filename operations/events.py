"""`operations events`: publish the event of an invoice again, for a consumer that lost it."""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from operations.console import Column, Commands, say_json, say_table
from operations.environment import dataverse_settings_of, service_bus_settings_of
from shared.bootstrap import build_dataverse, build_sender
from shared.clock import Deadline, SystemClock
from shared.credential import Identities
from shared.errors import RecordNotFound
from shared.invoice_created import invoice_created
from shared.retrieval import InvoiceReader
from shared.service_bus import ServiceBus

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = 120.0


@dataclass(frozen=True)
class Resent:
    """An event that was published again: the invoice's number, and the ids of event and message."""

    invoice_id: str
    number: str | None
    event_id: str
    message_id: str


def resend_event(environment: Mapping[str, str], invoice_id: str) -> Resent:
    """Publish "invoice created" of an invoice again: the same CloudEvent, a new Service Bus message id.

    The invoice is read as it is now; consumers that have the event's id drop it. Raises RecordNotFound.
    """
    clock, identities = SystemClock(), Identities(environment)
    deadline = Deadline.after(clock, _SECONDS)
    settings, service_bus = dataverse_settings_of(environment), service_bus_settings_of(environment)
    with closing(build_dataverse(settings, identities, clock)) as dataverse:
        invoice = InvoiceReader(dataverse, settings.invoice_columns).retrieve(invoice_id, deadline)
    event = invoice_created(invoice, dataverse_url=settings.url)
    again = replace(event, message_id=str(uuid.uuid4()))
    with closing(build_sender(service_bus, identities)) as sender:
        ServiceBus(sender, service_bus, clock).publish(again, deadline)
    return Resent(invoice.id, invoice.number, event.message_id, again.message_id)


@click.group(cls=Commands)
def events() -> None:
    """Events that were published."""


@events.command()
@click.argument("invoice", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def resend(environment: Mapping[str, str], invoice: uuid.UUID, *, as_json: bool) -> None:
    """Publish "invoice created" of INVOICE (its id) again: the same CloudEvent, a new Service Bus message id.

    The invoice is read as it is now; consumers that have the event's id drop it.
    """
    try:
        resent = resend_event(environment, str(invoice))
    except RecordNotFound as error:
        url = dataverse_settings_of(environment).url
        raise click.ClickException(f"There is no invoice {invoice} in {url}.") from error
    row = {
        "invoice": resent.invoice_id,
        "number": resent.number,
        "event": resent.event_id,
        "message": resent.message_id,
    }
    columns = [
        Column("Invoice", "invoice"),
        Column("Number", "number"),
        Column("Event", "event"),
        Column("Message", "message"),
    ]
    if as_json:
        say_json([row])
    else:
        say_table(columns, [row])
