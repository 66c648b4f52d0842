"""What can be done to a running sandbox, in values that JSON has.

Wins go over HTTPS like a salesperson's. What is shown is read from the parts themselves: reading does not disturb them,
and a connection that is broken on purpose does not hide anything.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import requests

from sandbox.actors import LineChange, OpportunityChange, Salesperson, SalesRefused
from sandbox.cloud import Cloud, NotInThisSandbox
from sandbox.control.journal import Journal
from sandbox.dataverse import DataverseApp, RequestRecord
from sandbox.dataverse.columns import Row
from sandbox.dataverse.database import Transaction
from sandbox.dataverse.schema import TABLES
from sandbox.faults import FaultPlan
from sandbox.faults.syntax import InvalidRule, parse_rule
from sandbox.sales_records import SalesRecords
from sandbox.service_bus import EventKind, Message, Observation
from sandbox.service_bus.errors import Refusal

_STATES = ("open", "won", "lost")
_MAX_LISTED = 1_000
_MAX_HOURS = 24 * 365.0
_POLL_SECONDS = 0.05

Json = dict[str, Any]


class Refused(Exception):
    """The sandbox does not do this; the text says why."""


class ControlPanel:
    """Acts on a running cloud and watches it from now on; a context manager. Safe under many threads."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._started_at = datetime.now(UTC)
        self._events = Journal()
        self._one_sale_at_a_time = threading.Lock()
        self._closing = ExitStack()
        self._salesperson: Salesperson | None = None
        self._topics = {topic.path for topic in cloud.configuration.topics}

    def __enter__(self) -> Self:
        self._closing.callback(self._cloud.broker.observe(self._observe))
        if self._cloud.options.dataverse:
            self._salesperson = self._closing.enter_context(Salesperson(self._cloud))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # --- what there is ---

    def status(self) -> Json:
        """Return where everything is, what is broken, and how many messages wait where."""
        cloud, host = self._cloud, self._cloud.host
        return {
            "pid": os.getpid(),
            "app": str(cloud.options.app_root.resolve()),
            "mode": cloud.options.mode.value,
            "startedAt": self._started_at.isoformat(),
            "clockAheadSeconds": round((cloud.broker_clock.now() - datetime.now(UTC)).total_seconds()),
            "functions": [
                {"name": each.name, "source": each.trigger.source.path, "disabled": each.disabled}
                for each in (host.functions if host else ())
            ],
            "workers": list(host.worker_pids) if host else [],
            "dataverse": cloud.dataverse_server.url if cloud.options.dataverse else None,
            "faults": self._faults(),
            "entities": self._entities(),
            "opportunities": self._count_opportunities(),
            "eventsPublished": self._events.last,
            "tracing": self._cloud.spans is not None,
        }

    def opportunities(self, search: str = "") -> list[Json]:
        """Return the opportunities whose name contains `search` or whose id is `search`."""
        records = self._records()
        found = _matching(records.opportunities.values(), search)
        return [_opportunity(records, row) for row in found[:_MAX_LISTED]]

    def invoices(self) -> list[Json]:
        """Return the invoices, the newest first."""
        records = self._records()
        rows = [row for invoices in records.invoices.values() for row in invoices]
        rows.sort(key=lambda row: str(row["createdon"]), reverse=True)
        return [_invoice(records, row) for row in rows[:_MAX_LISTED]]

    def events(self, after: int = 0, wait: float = 0.0) -> list[Json]:
        """Return what was published on the topics after the entry `after`."""
        return self._events.after(after, wait)

    def requests(self, after: int = 0, wait: float = 0.0) -> list[Json]:
        """Return Dataverse's requests after the first `after` ones, once there is one or `wait` seconds are over."""
        records = self._dataverse().requests
        deadline = time.monotonic() + wait
        while len(records) <= after and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        first = max(after, len(records) - _MAX_LISTED, 0)
        clients = self._clients()
        return [_request(number, each, clients) for number, each in enumerate(records[first:], first + 1)]

    def messages(self, entity: str) -> list[Json]:
        """Return the messages of a queue, a subscription or a dead-letter queue, without receiving them."""
        try:
            peeked = self._cloud.broker.peek(entity, 0, _MAX_LISTED)
        except Refusal as error:
            raise Refused(str(error)) from error
        return [
            {
                **_message(each.message),
                "sequenceNumber": each.sequence_number,
                "state": each.state.name.lower(),
                "enqueuedAt": each.enqueued_at.isoformat(),
                "deliveryCount": each.delivery_count,
            }
            for each in peeked
        ]

    def traces(self, opportunity: str | None = None) -> list[Json]:
        """Return the spans of one opportunity (an id) or of all, each below its parent."""
        if self._cloud.spans is None:
            raise Refused("this sandbox collects no traces: start it with --traces")
        return self._cloud.spans.outline(opportunity)

    # --- what can be done ---

    def win(self, wanted: Sequence[str] = (), count: int = 1) -> list[Json]:
        """Win the opportunities that are named, or the next `count` open ones."""
        return self._sell(self._win, "open", wanted, count)

    def lose(self, wanted: Sequence[str]) -> list[Json]:
        """Lose the open opportunities that are named."""
        return self._sell(lambda seller, row: seller.lose(row["opportunityid"]), "open", _some(wanted), 1)

    def reopen(self, wanted: Sequence[str]) -> list[Json]:
        """Open the closed opportunities that are named again."""
        return self._sell(lambda seller, row: seller.reopen(row["opportunityid"]), "won", _some(wanted), 1)

    def change(self, wanted: Sequence[str], change: Mapping[str, Any]) -> list[Json]:
        """Change the opportunities that are named.

        `change` may have the amounts freight, discount and discountPercentage, the currency's code, and for one line,
        the first unless `line` says another, price and quantity.
        """
        parsed = self._change(change)
        return self._sell(
            lambda seller, row: seller.change(row["opportunityid"], parsed), "open", _some(wanted), 1
        )

    def send(self, entity: str, body: str, message: Mapping[str, Any]) -> Json:
        """Send a message; `message` may have contentType, messageId, subject, correlationId, applicationProperties."""
        try:
            numbers = self._cloud.broker.send(
                entity,
                Message(
                    body=body.encode(),
                    content_type=message.get("contentType"),
                    message_id=message.get("messageId"),
                    subject=message.get("subject"),
                    correlation_id=message.get("correlationId"),
                    application_properties=message.get("applicationProperties") or {},
                ),
            )
        except Refusal as error:
            raise Refused(str(error)) from error
        return {"sequenceNumbers": list(numbers)}

    def add_fault(self, rule: str, seconds: float | None = None) -> Json:
        """Let a fault rule take part, for some seconds or until `repair`."""
        plan = self._plan()
        try:
            parsed = parse_rule(rule)
        except InvalidRule as error:
            raise Refused(str(error)) from error
        if seconds is not None:
            if seconds <= 0:
                raise Refused("seconds must be more than 0")
            parsed = replace(parsed, when=replace(parsed.when, duration=timedelta(seconds=seconds)))
        plan.add(parsed)
        return {"faults": self._faults()}

    def repair(self) -> Json:
        """End every fault."""
        self._plan().clear()
        return {"faults": self._faults()}

    def kill_workers(self) -> Json:
        """End the worker processes, as a crash does; others are started."""
        if self._cloud.host is None:
            raise Refused("the sandbox runs no functions host")
        killed = list(self._cloud.host.worker_pids)
        self._cloud.kill_workers()
        return {"killed": killed}

    def advance(self, hours: float) -> Json:
        """Let hours pass for Service Bus: schedules, locks, ages. No other clock moves."""
        if not 0 < hours <= _MAX_HOURS:
            raise Refused(f"hours must be more than 0 and at most {_MAX_HOURS:g}")
        self._cloud.move_broker_clock(timedelta(hours=hours))
        return {"now": self._cloud.broker_clock.now().isoformat(timespec="seconds")}

    # --- how ---

    def _sell(
        self, act: Callable[[Salesperson, Row], None], state: str, wanted: Sequence[str], count: int
    ) -> list[Json]:
        """Let the salesperson act on opportunities, and return what they are afterwards."""
        chosen = _choose(list(self._records().opportunities.values()), state, wanted, count)
        assert self._salesperson is not None  # noqa: S101 - for the type checker: `_records` has refused it
        with self._one_sale_at_a_time:
            for row in chosen:
                try:
                    act(self._salesperson, row)
                except (SalesRefused, requests.RequestException) as error:
                    raise Refused(f"{row['name']}: {error}") from error
        records = self._records()
        return [_opportunity(records, records.opportunities[row["opportunityid"]]) for row in chosen]

    def _win(self, seller: Salesperson, row: Row) -> None:
        opportunity = row["opportunityid"]
        if self._cloud.spans is None:
            seller.win(opportunity)
            return
        # The win is where the trace of an invoice begins.
        about = {"invoicing.opportunity.id": opportunity}
        with self._cloud.spans.recording("WinOpportunity", "salesperson", about) as context:
            seller.win(opportunity, context.trace_parent)

    def _change(self, change: Mapping[str, Any]) -> OpportunityChange:
        price, quantity = _amount(change, "price"), _amount(change, "quantity")
        lines: tuple[LineChange, ...] = ()
        if price is not None or quantity is not None:
            lines = (LineChange(int(_amount(change, "line") or 1), price=price, quantity=quantity),)
        code = change.get("currency")
        with self._reading() as transaction:
            rows = transaction.rows(TABLES["transactioncurrency"])
        currencies = {str(row["isocurrencycode"]): str(row["transactioncurrencyid"]) for row in rows}
        if code is not None and code not in currencies:
            raise Refused(f"there is no currency {code!r}; there is {', '.join(sorted(currencies))}")
        parsed = OpportunityChange(
            freight=_amount(change, "freight"),
            discount=_amount(change, "discount"),
            discount_percentage=_amount(change, "discountPercentage"),
            currency=currencies[code] if code is not None else None,
            lines=lines,
        )
        if parsed == OpportunityChange():
            raise Refused("nothing changes: give a price, quantity, freight, discount or currency")
        return parsed

    def _dataverse(self) -> DataverseApp:
        try:
            return self._cloud.dataverse
        except NotInThisSandbox as error:
            raise Refused(str(error)) from error

    def _reading(self) -> AbstractContextManager[Transaction]:
        return self._dataverse().database.reading()

    def _records(self) -> SalesRecords:
        with self._reading() as transaction:
            return SalesRecords(transaction)

    def _plan(self) -> FaultPlan:
        if self._cloud.options.faults is None:
            raise Refused("this sandbox has no fault plan")
        return self._cloud.options.faults

    def _faults(self) -> list[Json]:
        if self._cloud.options.faults is None:
            return []
        return [
            {
                "rule": str(each.rule),
                "until": each.until.isoformat(timespec="seconds") if each.until else None,
            }
            for each in self._cloud.options.faults.active
        ]

    def _entities(self) -> list[Json]:
        configuration, broker = self._cloud.configuration, self._cloud.broker
        paths = [queue.path for queue in configuration.queues]
        paths += [each.queue.path for topic in configuration.topics for each in topic.subscriptions]
        counts = {path: broker.counts(path) for path in paths}
        return [
            {
                "path": path,
                "active": count.active,
                "locked": count.locked,
                "scheduled": count.scheduled,
                "deadLetter": count.dead_letter,
            }
            for path, count in counts.items()
        ]

    def _count_opportunities(self) -> Json | None:
        if not self._cloud.options.dataverse:
            return None
        counts = Counter(row["statecode"] for row in self._records().opportunities.values())
        return {state: counts[code] for code, state in enumerate(_STATES)}

    def _clients(self) -> Mapping[str, str]:
        known = {
            self._cloud.function_identity.client_id: "function",
            self._cloud.operator.client_id: "operator",
        }
        with self._reading() as transaction:
            return {
                str(row["systemuserid"]): known[row["applicationid"]]
                for row in transaction.rows(TABLES["systemuser"], "t.applicationid IS NOT NULL")
                if row["applicationid"] in known
            }

    def _observe(self, seen: Observation) -> None:
        # Under the broker's lock: only take note.
        if seen.kind is EventKind.ACCEPTED and seen.entity in self._topics:
            self._events.append(
                {"at": seen.at.isoformat(), "topic": seen.entity, **_message(seen.message.message)}
            )


def _opportunity(records: SalesRecords, row: Row) -> Json:
    return {
        "id": row["opportunityid"],
        "name": row["name"],
        "state": _STATES[int(row["statecode"])],
        "invoices": len(records.invoices[str(row["opportunityid"])]),
        **_sale(records, row),
    }


def _invoice(records: SalesRecords, row: Row) -> Json:
    return {
        "id": row["invoiceid"],
        "number": row["invoicenumber"],
        "opportunity": row["opportunityid"],
        "createdAt": row["createdon"],
        **_sale(records, row),
    }


def _sale(records: SalesRecords, row: Row) -> Json:
    total, currency = records.total(row)
    return {"customer": records.customer(row)[1], "total": total, "currency": currency}


def _request(number: int, record: RequestRecord, clients: Mapping[str, str]) -> Json:
    return {
        "number": number,
        "at": record.at.isoformat(),
        "client": clients.get(record.user_id or "", "somebody else"),
        "method": record.method,
        "url": record.url,
        "status": record.status,
        "operations": [
            {"method": method, "url": url, "status": status} for method, url, status in record.operations
        ],
    }


def _message(message: Message) -> Json:
    body = message.body
    return {
        "messageId": message.message_id if message.message_id is None else str(message.message_id),
        "contentType": message.content_type,
        "subject": message.subject,
        "correlationId": message.correlation_id
        if message.correlation_id is None
        else str(message.correlation_id),
        "applicationProperties": {
            str(name): value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
            for name, value in message.application_properties.items()
        },
        "body": body.decode(errors="replace") if isinstance(body, bytes) else str(body),
    }


def _some(wanted: Sequence[str]) -> Sequence[str]:
    if not wanted:
        raise Refused("name at least one opportunity")
    return wanted


def _amount(values: Mapping[str, Any], name: str) -> Decimal | None:
    if values.get(name) is None:
        return None
    try:
        return Decimal(str(values[name]))
    except InvalidOperation as error:
        raise Refused(f"{name} must be a number") from error


def _matching(rows: Collection[Row], search: str) -> list[Row]:
    """Return the row whose id or whole name it is, or else all whose names contain it."""
    text = search.lower()
    exact = [row for row in rows if text in (str(row["opportunityid"]), str(row["name"]).lower())]
    return exact or [row for row in rows if text in str(row["name"]).lower()]


def _choose(rows: Sequence[Row], state: str, wanted: Sequence[str], count: int) -> list[Row]:
    """Return the rows that are wanted, or the first `count` in this state. Raises Refused."""
    if not wanted:
        candidates = [row for row in rows if _STATES[int(row["statecode"])] == state]
        if not candidates:
            raise Refused(f"no opportunity is {state}")
        if count < 1 or count > len(candidates):
            raise Refused(
                f"{count} is not between 1 and {len(candidates)}, the number of opportunities that are {state}"
            )
        return candidates[:count]
    chosen = []
    for text in wanted:
        found = _matching(rows, text)
        if not found:
            raise Refused(f"no opportunity is called {text!r}")
        if len(found) > 1:
            names = ", ".join(str(row["name"]) for row in found[:5])
            raise Refused(f"{len(found)} opportunities match {text!r}, such as {names}: name one, or its id")
        chosen += found
    return chosen
