"""`operations events`: publish the event of an invoice again, for a consumer that lost it."""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import replace
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
    clock, identities = SystemClock(), Identities(environment)
    deadline = Deadline.after(clock, _SECONDS)
    settings, service_bus = dataverse_settings_of(environment), service_bus_settings_of(environment)
    with closing(build_dataverse(settings, identities, clock)) as dataverse:
        try:
            read = InvoiceReader(dataverse, settings.invoice_columns).retrieve(str(invoice), deadline)
        except RecordNotFound as error:
            raise click.ClickException(f"There is no invoice {invoice} in {settings.url}.") from error
    event = invoice_created(read, dataverse_url=settings.url)
    again = replace(event, message_id=str(uuid.uuid4()))
    with closing(build_sender(service_bus, identities)) as sender:
        ServiceBus(sender, service_bus, clock).publish(again, deadline)
    row = {
        "invoice": read.id,
        "number": read.number,
        "event": event.message_id,
        "message": again.message_id,
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
