"""`operations reconcile`: won opportunities without an invoice, and an event for each that is sent after all.

"Nothing is lost" must not begin at our queue: a rotated key, a disabled endpoint or step, a failed system job lose a
win before it comes to it, and wins from before going live never were events.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING

import click
from azure.servicebus import ServiceBusMessage

from operations.console import Column, confirm, note, progress, say_json, say_table
from operations.namespace import open_namespace
from operations.privileges import PRIVILEGES, lacking, privileges_of
from operations.web_api import WebApi
from shared.errors import DataverseForbidden
from shared.invoice import OrderedOpportunity
from shared.invoicing import claim_read, invoices_of, oldest_active, orders_of
from shared.settings import dataverse_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from operations.web_api import Row

FOUND = 3
# What is looked at, in the whole organization.
_READS = {
    name: PRIVILEGES[name]
    for name in ("prvReadOpportunity", "prvReadInvoice", "prvReadSalesOrder", "prvReadNote")
}
# Three reads for each opportunity in one request; Dataverse takes up to 1,000.
_AT_ONCE = 100


class State(Enum):
    """Why a won opportunity has no invoice, as far as its records tell."""

    MISSING = "no invoice"
    CLAIMED = "its invoice was deleted or canceled"


@dataclass(frozen=True)
class Win:
    """A won opportunity without an invoice. `closed`: the date on which it was won, as Dataverse has it."""

    opportunity_id: str
    closed: str
    state: State


@click.command()
@click.option("--since", required=True, type=click.DateTime(["%Y-%m-%d"]), help="Won on this day or later.")
@click.option("--send", is_flag=True, help="Put an event on the queue for each that never had an invoice.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def reconcile(
    environment: Mapping[str, str], since: datetime, *, send: bool, yes: bool, as_json: bool
) -> None:
    """Find won opportunities that have no invoice; exit code 3 if there are any that are not sent.

    Opportunities with a sales order are left out, unless ORDERED_OPPORTUNITY=invoice. Sending is harmless twice.
    """
    api = WebApi.of(environment)
    check_that_all_is_seen(api)
    ordered = dataverse_settings(environment).ordered_opportunity
    wins = list(without_invoice(api, progress(_won(api, since), "Looking"), ordered))
    columns = [Column("Opportunity", "opportunity"), Column("Won", "won"), Column("State", "state")]
    rows = [_row(win) for win in wins]
    if as_json:
        say_json(rows)
    else:
        say_table(columns, rows)
    missing = [win for win in wins if win.state is State.MISSING]
    if send and missing:
        confirm(f"Send an event for {len(missing)} opportunities?", yes=yes)
        _send(environment, missing)
        note(f"{len(missing)} sent.")
    elif missing:
        raise click.exceptions.Exit(FOUND)


def check_that_all_is_seen(api: WebApi) -> None:
    """Raise ClickException for a login that does not read other people's rows: they are missing without a word."""
    try:
        granted = privileges_of(api, str(api.row("WhoAmI")["UserId"]), sorted(_READS))
    except DataverseForbidden:
        note(
            "Dataverse does not say how far your login reads (prvReadUser): wins of other people may be missing."
        )
        return
    shallow = lacking(_READS, granted)
    if shallow:
        raise click.ClickException(
            f"Your login does not have {', '.join(sorted(shallow))} for the whole organization: wins or invoices of "
            "other people would be missing from the answer without a word. Use one that has."
        )


def without_invoice(api: WebApi, won: Iterable[Row], ordered: OrderedOpportunity) -> Iterator[Win]:
    """Yield which of the won opportunities have no invoice that is not canceled."""
    for some in _slices(won, _AT_ONCE):
        reads = [
            read
            for row in some
            for read in (
                invoices_of(row["opportunityid"]),
                orders_of(row["opportunityid"]),
                claim_read(row["opportunityid"]),
            )
        ]
        answers = iter(api.batch(reads))
        for row, invoices, orders, claims in zip(some, answers, answers, answers, strict=True):
            billed_by_order = bool(orders.records()) and ordered is OrderedOpportunity.SKIP
            if oldest_active(invoices) is None and not billed_by_order:
                state = State.CLAIMED if claims.records() else State.MISSING
                yield Win(row["opportunityid"], str(row["actualclosedate"]), state)


def _won(api: WebApi, since: datetime) -> Iterator[Row]:
    # By the date of the business, not of the row's last change: an old win that somebody edits is no new win.
    return api.rows(
        "opportunities?$select=opportunityid,actualclosedate"
        f"&$filter=statecode eq 1 and actualclosedate ge {since:%Y-%m-%d}&$orderby=actualclosedate,opportunityid"
    )


def _send(environment: Mapping[str, str], wins: list[Win]) -> None:
    with open_namespace(environment) as namespace:
        for win in progress(wins, "Sending", total=len(wins)):
            event = ServiceBusMessage(
                json.dumps({"opportunityId": win.opportunity_id}),
                content_type="application/json",
                message_id=str(uuid.uuid4()),
            )
            namespace.send(namespace.settings.opportunity_won_queue, event)


def _slices(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while some := list(islice(iterator, size)):
        yield some


def _row(win: Win) -> dict[str, object]:
    return {"opportunity": win.opportunity_id, "won": win.closed, "state": win.state.value}
