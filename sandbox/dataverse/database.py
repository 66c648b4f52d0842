"""The organization's rows, in SQLite: transactions, row versions, and the log of what was committed.

A database is either in memory (one connection; cheap enough for a new one in each history of a proof) or in a file
(readers see what is committed while a writer works, as with Dataverse's read-committed snapshots). Both serialise
writers. Privileges, events and HTTP are left to other modules.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from queue import Empty, LifoQueue

from sandbox.clock import Clock
from sandbox.dataverse.columns import Column, ColumnKind, Row, Table
from sandbox.dataverse.schema import TABLES

_TEXT_KINDS = frozenset(
    {ColumnKind.ID, ColumnKind.LOOKUP, ColumnKind.TEXT, ColumnKind.DATE, ColumnKind.DATETIME}
)


@dataclass(frozen=True)
class Change:
    """One row's change. `values`: all of a created or deleted row, the new values of an updated row."""

    kind: str
    table: str
    id: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Commit:
    """A committed transaction: its number, time, user and request, and what it changed."""

    number: int
    at: datetime
    user_id: str | None
    request_id: str | None
    changes: tuple[Change, ...]


class DuplicateKey(Exception):
    """A row with this primary key exists already."""


class Transaction:
    """Rows within one transaction; only `Database` creates it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.changes: list[Change] = []
        self.user_id: str | None = None
        self.request_id: str | None = None
        self.after_commit: list[Callable[[], None]] = []

    def get(self, table: Table, record_id: str) -> Row | None:
        """Return the row with this primary key."""
        rows = self.rows(table, f'"{table.key}" = ?', (record_id,))
        return rows[0] if rows else None

    def rows(
        self, table: Table, where: str = "1", parameters: Sequence[object] = (), tail: str = ""
    ) -> list[Row]:
        """Return the rows of `table` (`t` within `where`) that match an SQL condition."""
        sql = f'SELECT t.* FROM "{table.name}" t WHERE {where} {tail}'  # noqa: S608 - names of the schema
        return [_row(table, values) for values in self._connection.execute(sql, parameters)]

    def count(self, table: Table, where: str = "1", parameters: Sequence[object] = ()) -> int:
        """Count the rows that match an SQL condition."""
        sql = f'SELECT count(*) FROM "{table.name}" t WHERE {where}'  # noqa: S608
        return int(self._connection.execute(sql, parameters).fetchone()[0])

    def insert(self, table: Table, row: Mapping[str, object]) -> Row:
        """Add a row; columns that it lacks get their defaults. Raises DuplicateKey."""
        full = {name: row.get(name, column.default) for name, column in table.stored.items()}
        full["versionnumber"] = self.next_number("version")
        try:
            self._connection.execute(_insert_sql(table), _sql_values(table, full))
        except sqlite3.IntegrityError as error:
            raise DuplicateKey(f"{table.name} {full[table.key]}") from error
        self.changes.append(Change("create", table.name, str(full[table.key]), full))
        return full

    def update(self, table: Table, record_id: str, values: Mapping[str, object]) -> None:
        """Change columns of a row, and its version."""
        stamped = {**values, "versionnumber": self.next_number("version")}
        assignments = ", ".join(f'"{name}" = ?' for name in stamped)
        self._connection.execute(
            f'UPDATE "{table.name}" SET {assignments} WHERE "{table.key}" = ?',  # noqa: S608
            (*_sql_values(table, stamped), record_id),
        )
        self.changes.append(Change("update", table.name, record_id, stamped))

    def delete(self, table: Table, row: Row) -> None:
        """Delete a row."""
        self._connection.execute(
            f'DELETE FROM "{table.name}" WHERE "{table.key}" = ?',  # noqa: S608
            (row[table.key],),
        )
        self.changes.append(Change("delete", table.name, str(row[table.key]), row))

    def next_number(self, counter: str) -> int:
        """Return the next number; if the transaction is rolled back, the number is used again."""
        updated = self._connection.execute(
            "INSERT INTO _counter VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value",
            (counter,),
        )
        return int(updated.fetchone()[0])


class Database:
    """The database of one organization. Close it after use.

    `image` is the result of `image()` of another one, or None for empty tables. With a `directory`, the rows are in a
    file there, otherwise in memory.
    """

    def __init__(self, clock: Clock, image: bytes | None = None, directory: Path | None = None) -> None:
        self._clock = clock
        self._write_lock = threading.RLock()
        self._log: list[Commit] = []
        self._table_versions: dict[str, int] = {}
        self._image = image or _empty_image()
        self._path = directory / "dataverse.sqlite" if directory else None
        self._connections: list[sqlite3.Connection] = []
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        if self._path:
            self._path.write_bytes(self._image)
        self._writer = self._connect()
        if self._path:
            self._writer.execute("PRAGMA journal_mode = WAL")

    @property
    def commits(self) -> Sequence[Commit]:
        """Every transaction so far, the oldest first; the list only grows."""
        return self._log

    def version(self, tables: Iterable[str]) -> tuple[int, ...]:
        """Return a number for each of `tables`, which grows with every commit to the table."""
        return tuple(self._table_versions.get(table, 0) for table in tables)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Yield a consistent, read-only view of what is committed."""
        if self._path is None:
            # One connection: readers wait for the writer. The writer's own thread sees its uncommitted rows.
            with self._write_lock:
                if self._writer.in_transaction:
                    yield Transaction(self._writer)
                else:
                    with _rolled_back(self._writer):
                        yield Transaction(self._writer)
            return
        connection = self._idle_connection()
        try:
            with _rolled_back(connection):
                yield Transaction(connection)
        finally:
            self._idle.put(connection)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Run the only writing transaction: commit it at the end, or roll it back on any exception."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self._writer)
            try:
                yield transaction
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")
            self._record(transaction)
        for callback in transaction.after_commit:
            callback()

    def image(self) -> bytes:
        """Return all rows, as the `image` of another database."""
        with self._write_lock:
            image = self._writer.serialize()
        # Two bytes of the header say that there is a write-ahead log, which a database in memory cannot have.
        return image[:18] + b"\x01\x01" + image[20:]

    def close(self) -> None:
        """Close every connection; the database cannot be used afterwards."""
        with self._write_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _record(self, transaction: Transaction) -> None:
        for table in {change.table for change in transaction.changes}:
            self._table_versions[table] = self._table_versions.get(table, 0) + 1
        if transaction.changes:
            self._log.append(
                Commit(
                    len(self._log) + 1,
                    self._clock.now(),
                    transaction.user_id,
                    transaction.request_id,
                    tuple(transaction.changes),
                )
            )

    def _idle_connection(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        # The locks here, not SQLite's own check, keep two threads from using one connection at once.
        connection = sqlite3.connect(
            self._path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=512
        )
        self._connections.append(connection)
        if self._path is None:
            connection.deserialize(self._image)
        # The data need not survive a power failure.
        connection.execute("PRAGMA synchronous = OFF")
        return connection


@contextmanager
def _rolled_back(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _row(table: Table, values: Sequence[object]) -> Row:
    row: Row = dict(zip(table.stored, values, strict=True))
    for column in table.converted:
        row[column.name] = column.from_sql(row[column.name])
    return row


def _sql_values(table: Table, values: Mapping[str, object]) -> list[object]:
    return [table.columns[name].to_sql(value) for name, value in values.items()]


@cache
def _insert_sql(table: Table) -> str:
    names = ", ".join(f'"{name}"' for name in table.stored)
    return f'INSERT INTO "{table.name}" ({names}) VALUES ({", ".join("?" * len(table.stored))})'  # noqa: S608


@lru_cache(maxsize=1)
def _empty_image() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    # Small pages keep the image small: each empty table or index takes a page.
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("CREATE TABLE _counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    for table in TABLES.values():
        for statement in _ddl(table):
            connection.execute(statement)
    image = connection.serialize()
    connection.close()
    return image


def _ddl(table: Table) -> Iterator[str]:
    columns = ", ".join(_column_ddl(column) for column in table.stored.values())
    yield f'CREATE TABLE "{table.name}" ({columns}, PRIMARY KEY ("{table.key}")) WITHOUT ROWID'
    for column in table.stored.values():
        if column.lookup and (column.lookup.collections or column.lookup.on_delete == "cascade"):
            yield f'CREATE INDEX "{table.name}_{column.name}" ON "{table.name}" ("{column.name}")'


def _column_ddl(column: Column) -> str:
    if column.kind not in _TEXT_KINDS:
        return f'"{column.name}" INTEGER'
    # Dataverse ignores case when it compares text. Ids and dates are stored in one form, so they need no collation.
    return f'"{column.name}" TEXT' + (" COLLATE NOCASE" if column.kind is ColumnKind.TEXT else "")
