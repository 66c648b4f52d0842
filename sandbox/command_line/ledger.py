"""A consumer of the events beside the demonstration: a program of its own, and the ledger that it writes.

The program finds Service Bus by the same settings as a function, its subscription in LEDGER_SUBSCRIPTION, and in
LEDGER_FILE where it shall write: an SQLite database with the table `entry`, or a text file with a line for each booking
(JSON, or CSV after a header).
"""

import os
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

import click

from sandbox.cloud import CREATED_TOPIC, Cloud

SUBSCRIPTION = "ledger"
# What the demonstration's Service Bus has for it.
EXTRA_SUBSCRIPTION = (CREATED_TOPIC, SUBSCRIPTION)

_SQLITE = b"SQLite format 3\0"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0


class LedgerConsumer:
    """Runs the program from entering the context to leaving it."""

    def __init__(self, command: Sequence[str], cloud: Cloud) -> None:
        self._command = command
        self._file = cloud.folder / "ledger"
        self._environment = {
            **os.environ,
            **cloud.operator_connection,
            **cloud.certificates.settings,
            "NODE_EXTRA_CA_CERTS": str(cloud.certificates.bundle),
            "INVOICE_CREATED_TOPIC": CREATED_TOPIC,
            "LEDGER_SUBSCRIPTION": SUBSCRIPTION,
            "LEDGER_FILE": str(self._file),
        }

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            raise click.ClickException(f"the consumer does not start: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_for(self, count: int, timeout: float) -> int:
        """Wait until so many bookings are in the ledger, `timeout` seconds at most; returns how many there are."""
        deadline = time.monotonic() + timeout
        while (booked := bookings(self._file)) < count and time.monotonic() < deadline:
            if self._process.poll() is not None:
                click.echo(f"The consumer ended with {self._process.returncode}.", err=True)
                return bookings(self._file)
            time.sleep(_POLL_SECONDS)
        return booked


def bookings(file: Path) -> int:
    """Count the bookings in a ledger; one that does not exist yet has none."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return 0
    if content.startswith(_SQLITE):
        return _entries(file)
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        return 0
    return len(lines) if lines[0].startswith(b"{") else len(lines) - 1


def _entries(file: Path) -> int:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        try:
            (count,) = database.execute("SELECT count(*) FROM entry").fetchone()
        except sqlite3.OperationalError:
            # It is being made, or is locked for a moment.
            return 0
    return int(count)
