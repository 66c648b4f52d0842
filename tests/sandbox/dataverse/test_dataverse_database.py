"""Rows in SQLite: exact amounts, readers, copies."""

from __future__ import annotations

from decimal import Decimal  # noqa: TC003 - hypothesis reads the annotations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.clock import MovableClock
from sandbox.dataverse import Database
from sandbox.dataverse.columns import InvalidValue
from sandbox.dataverse.schema import COLLECTIONS, PRIVILEGES, TABLES

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = TABLES["account"]


@given(st.decimals(min_value=-(10**14), max_value=10**14, places=4, allow_nan=False))
def test_money_survives_exactly(amount: Decimal) -> None:
    column = ACCOUNT.columns["revenue"]
    assert column.from_sql(column.to_sql(amount)) == amount


@given(st.decimals(min_value=-(10**8), max_value=10**8, places=10, allow_nan=False))
def test_decimals_survive_exactly(amount: Decimal) -> None:
    column = TABLES["invoicedetail"].columns["quantity"]
    assert column.from_sql(column.to_sql(amount)) == amount


@given(st.one_of(st.integers(), st.decimals(), st.text(), st.booleans(), st.none(), st.lists(st.none())))
def test_every_value_is_parsed_or_refused(value: object) -> None:
    """No other exception, and what is parsed can be stored."""
    for column in TABLES["opportunity"].columns.values():
        try:
            stored = column.to_sql(column.parse(value))
        except InvalidValue:
            continue
        assert not isinstance(stored, int) or abs(stored) < 2**63


def test_a_reader_changes_nothing(database: Database) -> None:
    with database.reading() as transaction:
        transaction.insert(ACCOUNT, {"accountid": "a"})
    with database.reading() as transaction:
        assert not transaction.rows(ACCOUNT)
    assert not database.commits


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_copy_has_the_rows_and_is_independent(tmp_path: Path, on_disk: bool) -> None:  # noqa: FBT001
    original = Database(MovableClock(), directory=tmp_path if on_disk else None)
    with original.writing() as transaction:
        transaction.insert(ACCOUNT, {"accountid": "a"})
    copy = Database(MovableClock(), original.image())
    with copy.writing() as transaction:
        assert transaction.get(ACCOUNT, "a")
        transaction.insert(ACCOUNT, {"accountid": "b"})
    with original.reading() as transaction:
        assert len(transaction.rows(ACCOUNT)) == 1
    original.close()
    copy.close()


def test_the_declaration_is_consistent() -> None:
    assert len({table.set_name for table in TABLES.values()}) == len(TABLES)
    assert len({table.code for table in TABLES.values()}) == len(TABLES)
    assert len(set(PRIVILEGES)) == len(PRIVILEGES)
    for table in TABLES.values():
        assert next(iter(table.columns)) == table.key
        assert table.primary_name in table.columns
        for column in table.columns.values():
            assert not column.lookup or column.lookup.targets.keys() <= TABLES.keys()
        assert all(collection.table in TABLES.values() for collection in COLLECTIONS[table.name].values())
