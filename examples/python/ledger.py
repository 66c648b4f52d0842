"""A ledger in SQLite: an event "invoice created" becomes one entry whose postings add up to zero."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = Path(__file__).parent.parent / "ledger.sql"
# SQLite's integers have 64 bits.
MAX_UNITS = 2**63


class CannotBook(Exception):
    """The event cannot be booked; `reason` is a word for machines, the text is for people."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Posting:
    """An amount on an account, in the currency's smallest unit: a debit is positive, a credit negative."""

    account: str
    text: str | None
    amount: int


@dataclass(frozen=True)
class Entry:
    """What is booked for one event."""

    event_id: str
    invoice_id: str
    invoice_number: str | None
    customer: str | None
    total: int
    currency: str
    decimal_places: int
    due_date: str | None
    postings: tuple[Posting, ...]


def entry_of(event: dict[str, Any]) -> Entry:
    """Return the entry for a valid event; raise CannotBook where a person has to decide."""
    data = event["data"]
    total, currency, amounts = data["totalAmount"], data["currency"], data.get("amounts")
    if data["pricingErrorCode"] is not None:
        raise CannotBook("PricingError", f"Dataverse reports the pricing error {data['pricingErrorCode']}.")
    if total is None or currency is None or amounts is None:
        raise CannotBook("AmountsMissing", "The event has no total, no currency, or no amounts.")
    if not data.get("totalsAgree"):
        raise CannotBook("TotalsDisagree", "Dataverse's lines, discounts, freight and tax do not add up.")
    places = len(total.partition(".")[2])

    def units(amount: str | None) -> int:
        exact = Decimal(amount or 0).scaleb(places)
        if exact != exact.to_integral_value() or abs(exact) >= MAX_UNITS:
            raise CannotBook("AmountsMissing", f"{amount} cannot be booked with {places} decimal places.")
        return int(exact)

    customer = data["customer"] or {}
    discount = units(amounts["linesTotal"]) - units(amounts["totalBeforeFreight"])
    postings = [
        Posting("receivables", customer.get("number") or customer.get("id"), units(total)),
        *(Posting("revenue", text, -amount) for text, amount in _revenue(data, units)),
        Posting("discounts", None, discount),
        Posting("freight", None, -units(amounts["freight"])),
        Posting("tax", None, -units(amounts["tax"])),
    ]
    if sum(posting.amount for posting in postings) != 0:
        raise CannotBook("TotalsDisagree", "The lines of the event do not add up to its total.")
    return Entry(
        event_id=event["id"],
        invoice_id=data["invoiceId"],
        invoice_number=data["invoiceNumber"],
        customer=customer.get("number") or customer.get("id"),
        total=units(total),
        currency=currency["isoCode"],
        decimal_places=places,
        due_date=data.get("dueDate"),
        postings=tuple(posting for posting in postings if posting.amount),
    )


def _revenue(data: dict[str, Any], units: Callable[[str | None], int]) -> list[tuple[str | None, int]]:
    lines = data.get("lines")
    if lines is None:  # They did not fit into the message; the amounts are complete all the same.
        return [(f"{data.get('lineCount')} lines", units(data["amounts"]["linesTotal"]))]
    return [
        (
            line["product"]["name"] if line["product"] else line["description"],
            units(line["amount"]) - units(line["tax"]),
        )
        for line in lines
        if line["isPriced"]  # The price of a required part is in the line of its bundle.
    ]


class Ledger:
    """The entries, in a file. A crash at any time leaves whole entries only."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, timeout=30)
        self._database.executescript(SCHEMA.read_text())

    def book(self, entry: Entry) -> bool:
        """Store an entry and return True, or return False if its event was booked before."""
        with self._database:  # one transaction
            added = self._database.execute(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
                (
                    entry.event_id,
                    entry.invoice_id,
                    entry.invoice_number,
                    entry.customer,
                    entry.total,
                    entry.currency,
                    entry.decimal_places,
                    entry.due_date,
                ),
            )
            if added.rowcount == 0:
                return False
            self._database.executemany(
                "INSERT INTO posting VALUES (?, ?, ?, ?, ?)",
                [
                    (entry.event_id, number, posting.account, posting.text, posting.amount)
                    for number, posting in enumerate(entry.postings)
                ],
            )
        return True

    def close(self) -> None:
        """Close the file."""
        self._database.close()
