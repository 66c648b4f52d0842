"""A consumer of the events beside the demonstration: a program of its own, and the ledger that it writes.

The program finds Service Bus by the same settings as a function, its subscription in LEDGER_SUBSCRIPTION, and in
LEDGER_FILE where it shall write. Each booking has the id of its event: in the column `event_id` of the table `entry`
of an SQLite database, in the member `event_id` of a line of JSON, or in the first column of a CSV file with a header.
"""

import csv
import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from sandbox.cloud import CREATED_TOPIC, Cloud
from sandbox.command_line.beside import Beside

SUBSCRIPTION = "ledger"
# What the demonstration's Service Bus has for it.
EXTRA_SUBSCRIPTION = (CREATED_TOPIC, SUBSCRIPTION)

_SQLITE = b"SQLite format 3\0"
_POLL_SECONDS = 0.1


class LedgerConsumer(Beside):
    """Runs the program from entering the context to leaving it."""

    def __init__(self, command: Sequence[str], cloud: Cloud) -> None:
        self._file = cloud.folder / "ledger"
        settings = {
            **cloud.operator_connection,
            **cloud.certificates.settings,
            "NODE_EXTRA_CA_CERTS": str(cloud.certificates.bundle),
            "INVOICE_CREATED_TOPIC": CREATED_TOPIC,
            "LEDGER_SUBSCRIPTION": SUBSCRIPTION,
            "LEDGER_FILE": str(self._file),
        }
        super().__init__(command, settings, name="the consumer", silent=True)

    def wait_for(self, count: int, timeout: float) -> tuple[str, ...]:
        """Wait until so many bookings are in the ledger, `timeout` seconds at most; return their events' ids."""
        deadline = time.monotonic() + timeout
        while len(booked := bookings(self._file)) < count and time.monotonic() < deadline:
            if self._process.poll() is not None:
                click.echo(f"The consumer ended with {self._process.returncode}.", err=True)
                return bookings(self._file)
            time.sleep(_POLL_SECONDS)
        return booked


def bookings(file: Path) -> tuple[str, ...]:
    """Return the ids of the booked events, duplicates included; a ledger that does not exist yet has none."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return ()
    if content.startswith(_SQLITE):
        return _entries(file)
    lines = content.decode("utf-8", "replace").splitlines()
    if lines and lines[0].startswith("{"):
        # The last line may be being written.
        return tuple(str(json.loads(line).get("event_id")) for line in lines if line.endswith("}"))
    return tuple(row[0] for row in csv.reader(lines[1:]) if row)


def _entries(file: Path) -> tuple[str, ...]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        try:
            return tuple(row[0] for row in database.execute("SELECT event_id FROM entry"))
        except sqlite3.OperationalError:
            # It is being made, or is locked for a moment.
            return ()
