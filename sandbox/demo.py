"""The demonstration: win opportunities, watch invoices and events come, and check that they agree.

It is at the top of the sandbox because it uses all parts, from outside: it wins over HTTPS, listens on the topic, and
compares each event with the invoice in Dataverse's database. It searches the queues for what is missing.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sandbox.actors import Consumer, ReceivedEvent, Salesperson
from sandbox.cloud import FAILED_QUEUE, WON_QUEUE, Cloud
from sandbox.cloud.entities import entity_names
from sandbox.dataverse.columns import Row
from sandbox.dataverse.database import Database
from sandbox.sales_records import SalesRecords

# For all events to come, after the last win: some seconds, and more for each opportunity.
PATIENCE_SECONDS = 30.0
_PATIENCE_PER_WIN_SECONDS = 0.5
_MAX_MESSAGES = 10_000


@dataclass(frozen=True)
class WinOutcome:
    """What came of one won opportunity; `problems` is empty where all is as it should be.

    `retry_reason` says why the function tries again, where that is what is missing.
    """

    opportunity_id: str
    opportunity: str
    invoice_number: str = ""
    customer: str = ""
    total: str = ""
    event_id: str = ""
    milliseconds: int | None = None
    problems: tuple[str, ...] = ()
    retry_reason: str = ""


@dataclass(frozen=True)
class Pending:
    """What waits for an opportunity: a retry, or a parked message, and why."""

    is_parked: bool
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of all wins; `invoices` counts every invoice, and `received` has every event, duplicates included.

    `booked`: the ids of the events that a consumer has booked, duplicates included; None without a consumer.
    """

    wins: tuple[WinOutcome, ...]
    invoices: int
    received: tuple[ReceivedEvent, ...]
    booked: tuple[str, ...] | None = None

    @property
    def events(self) -> int:
        """How many events came."""
        return len(self.received)

    @property
    def failed(self) -> int:
        """How many opportunities have not exactly one invoice and one event that agree, and are not retried."""
        return sum(bool(win.problems) and not win.retry_reason for win in self.wins)

    @property
    def retried(self) -> Mapping[str, int]:
        """How many opportunities are still being retried, by reason."""
        return Counter(win.retry_reason for win in self.wins if win.retry_reason)

    @property
    def is_good(self) -> bool:
        """Whether every opportunity has exactly one invoice and one event, and nothing else is there."""
        counts = {self.invoices, self.events, len(self.wins)}
        if self.booked is not None:
            counts |= {len(self.booked), len(set(self.booked))}
        return not any(win.problems for win in self.wins) and len(counts) == 1

    def __str__(self) -> str:
        parts = [
            f"{_counted(len(self.wins), 'opportunity', 'opportunities')} won",
            _counted(self.invoices, "invoice", "invoices"),
            _counted(self.events, "event", "events"),
            *([f"{len(self.booked)} booked"] if self.booked is not None else []),
            *(f"{count} being retried ({reason})" for reason, count in self.retried.items()),
            f"{self.failed} failed",
        ]
        return " · ".join(parts)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


@dataclass(frozen=True)
class Progress:
    """How far the demonstration is, in opportunities."""

    total: int
    won: int
    events: int


def run(
    cloud: Cloud,
    opportunities: Sequence[str],
    report: Callable[[Progress], None] = lambda _: None,
    is_called_off: Callable[[], bool] = lambda: False,
    patience: float = PATIENCE_SECONDS,
) -> Outcome:
    """Win `opportunities` one after the other and wait for their events; compare what came.

    `patience` is how many seconds to wait after the last win, besides half a second for each.
    """
    won_at: dict[str, float] = {}
    total = len(opportunities)
    with Consumer(cloud) as consumer:
        with Salesperson(cloud) as salesperson:
            for opportunity in opportunities:
                if is_called_off():
                    break
                won_at[opportunity] = time.monotonic()
                salesperson.win(opportunity)
                report(Progress(total, len(won_at), len(consumer.events)))
        deadline = time.monotonic() + patience + total * _PATIENCE_PER_WIN_SECONDS
        while len(consumer.events) < len(won_at) and time.monotonic() < deadline and not is_called_off():
            consumer.wait_for(len(consumer.events) + 1, timeout=0.2)
            report(Progress(total, len(won_at), len(consumer.events)))
        events = consumer.events
    return compare(cloud.dataverse.database, won_at, events, _pending(cloud, won_at))


def compare(
    database: Database,
    won_at: Mapping[str, float],
    events: Sequence[ReceivedEvent],
    pending: Mapping[str, Pending],
) -> Outcome:
    """Judge what came of the opportunities in `won_at` (id → when, monotonic) by Dataverse's database."""
    by_opportunity: dict[str, list[ReceivedEvent]] = {opportunity: [] for opportunity in won_at}
    for event in events:
        by_opportunity.setdefault(str(event.content["data"]["opportunityId"]), []).append(event)
    with database.reading() as transaction:
        records = SalesRecords(transaction)
    wins = tuple(
        _with_pending(
            _win_outcome(records, opportunity, won_at[opportunity], by_opportunity[opportunity]),
            pending.get(opportunity),
        )
        for opportunity in won_at
    )
    return Outcome(wins, sum(map(len, records.invoices.values())), tuple(events))


def _pending(cloud: Cloud, opportunities: Iterable[str]) -> Mapping[str, Pending]:
    """Find what waits in the queues for opportunities, by what this project's function writes into properties."""
    found: dict[str, Pending] = {}
    names = entity_names(cloud.configuration)
    for queue, name in ((FAILED_QUEUE, "DeadLetterReason"), (WON_QUEUE, "InvoicingReason")):
        if queue not in names:
            continue
        for waiting in cloud.broker.peek(queue, 0, _MAX_MESSAGES):
            message = waiting.message
            reason = str(message.application_properties.get(name, "not processed yet"))
            body = message.body.lower() if isinstance(message.body, bytes) else b""
            for opportunity in opportunities:
                if opportunity.encode() in body:
                    found[opportunity] = Pending(queue == FAILED_QUEUE, reason)
    return found


def _with_pending(win: WinOutcome, pending: Pending | None) -> WinOutcome:
    if not win.problems or pending is None:
        return win
    if pending.is_parked:
        return replace(win, problems=(*win.problems, f"parked: {pending.reason}"))
    return replace(win, retry_reason=pending.reason)


def _win_outcome(
    records: SalesRecords, opportunity: str, won_at: float, events: Sequence[ReceivedEvent]
) -> WinOutcome:
    invoices = records.invoices[opportunity]
    name = str(records.opportunities[opportunity]["name"])
    problems = [] if len(invoices) == 1 else [f"{len(invoices)} invoices"]
    if len(events) != 1:
        problems.append(f"{len(events)} events")
    if not invoices or not events:
        return WinOutcome(opportunity, name, problems=tuple(problems))
    invoice, event = invoices[0], events[0]
    problems += _differences(_expected(records, invoice), event.content["data"])
    return WinOutcome(
        opportunity_id=opportunity,
        opportunity=name,
        invoice_number=str(invoice["invoicenumber"]),
        customer=records.customer(invoice)[1],
        total=" ".join(map(str, records.total(invoice))),
        event_id=str(event.content["id"]),
        milliseconds=round((event.received_at - won_at) * 1000),
        problems=tuple(problems),
    )


def _expected(records: SalesRecords, invoice: Row) -> dict[str, object]:
    """Return what an event must say of an invoice."""
    total, currency = records.total(invoice)
    return {
        "invoiceId": invoice["invoiceid"],
        "invoiceNumber": invoice["invoicenumber"],
        "name": invoice["name"],
        "opportunityId": invoice["opportunityid"],
        "customer": {"kind": records.customer(invoice)[0], "id": invoice["customerid"]},
        "totalAmount": total,
        "currency": {"id": invoice["transactioncurrencyid"], "isoCode": currency},
    }


def _differences(expected: Mapping[str, object], actual: Mapping[str, object]) -> list[str]:
    return [
        f"{name} is {actual.get(name)!r} in the event, {value!r} in the database"
        for name, value in expected.items()
        if not _says(actual.get(name), value)
    ]


def _says(actual: object, expected: object) -> bool:
    """Tell whether a member of an event says what is expected; it may have members that this module does not know."""
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        return all(actual.get(name) == value for name, value in expected.items())
    return actual == expected
