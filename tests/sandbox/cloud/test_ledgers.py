"""The ledgers that a consumer of the demonstration may write."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sandbox.command_line.ledger import bookings


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ('{"id": 1}\n{"id": 2}\n', 2), ("id,amount\n1,2\n", 1), ("id,amount\n", 0), ("\n\n", 0)],
)
def test_text_has_a_booking_on_each_line(tmp_path: Path, text: str, count: int) -> None:
    file = tmp_path / "ledger"
    file.write_text(text)
    assert bookings(file) == count


def test_a_database_has_them_in_a_table(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    assert bookings(file) == 0
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE other (x)")
    assert bookings(file) == 0
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE entry (x)")
        database.executemany("INSERT INTO entry VALUES (?)", [(1,), (2,), (3,)])
    assert bookings(file) == 3
