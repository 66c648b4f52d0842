"""The ledgers that a consumer of the demonstration may write."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sandbox.command_line.ledger import bookings


@pytest.mark.parametrize(
    ("text", "booked"),
    [
        ("", ()),
        ('{"event_id": "a"}\n{"event_id": "b"}\n', ("a", "b")),
        ('{"event_id": "a"}\n{"event_id": "a"}\n{"event_i', ("a", "a")),
        ("id,amount\na,2\n", ("a",)),
        ("id,amount\n", ()),
        ("\n\n", ()),
    ],
)
def test_text_has_a_booking_on_each_line(tmp_path: Path, text: str, booked: tuple[str, ...]) -> None:
    file = tmp_path / "ledger"
    file.write_text(text)
    assert bookings(file) == booked


def test_a_database_has_them_in_a_table(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    assert bookings(file) == ()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE other (x)")
    assert bookings(file) == ()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE entry (event_id)")
        database.executemany("INSERT INTO entry VALUES (?)", [("a",), ("b",)])
    assert bookings(file) == ("a", "b")
