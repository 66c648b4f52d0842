from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from shared.errors import DataverseUnavailable
from shared.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def record(value: object) -> Record:
    return Record({"column": value}, "r-1")


@pytest.mark.parametrize(
    "value", [Decimal("1E+31"), Decimal("0E+31"), Decimal("1E-31"), Decimal(10) ** 15, 10**15, -(10**15)]
)
def test_an_amount_that_no_column_can_hold_is_refused(value: object) -> None:
    """Written out, some of them would have a billion digits."""
    with pytest.raises(DataverseUnavailable, match="no usable column"):
        record(value).amount("column")


@pytest.mark.parametrize("value", [Decimal("1E-30"), Decimal(0), 10**15 - 1, -(10**15) + 1])
def test_amounts_up_to_the_bounds(value: object) -> None:
    assert record(value).amount("column") == value


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (True, Record.integer),
        (True, Record.amount),
        (float("nan"), Record.amount),
        (float("nan"), Record.integer),
        (None, Record.integer),
        (7, Record.text),
        (7, Record.guid),
        (None, Record.guid),
        ("x", Record.optional_guid),
        ("1", Record.optional_integer),
        ("12", Record.time),
        ("0001-01-01T00:00:00+14:00", Record.time),
        ("soon", Record.date),
        ("2026-02-30", Record.date),
        (7, Record.date),
    ],
)
def test_a_value_of_another_type_comes_from_another_server(
    value: object, read: Callable[[Record, str], object]
) -> None:
    with pytest.raises(DataverseUnavailable, match="no usable column") as raised:
        read(record(value), "column")
    assert raised.value.request_id == "r-1"


def test_null_is_none_where_that_is_allowed() -> None:
    numbers = (Record.amount, Record.optional_integer)
    texts = (Record.text, Record.optional_guid, Record.label, Record.lookup_table)
    for read in (*numbers, *texts, Record.date, Record.expanded):
        assert read(record(None), "column") is None
    assert record(None).etag is None


def test_values_have_one_form() -> None:
    assert record(f"{{{GUID.upper()}}}").guid("column") == GUID
    assert record(GUID.upper()).optional_guid("column") == GUID
    assert record(3).optional_integer("column") == 3
    assert record("half \ud800").text("column") == "half \ufffd"
    for text in ("2026-03-01T12:00:00+01:00", "2026-03-01T11:00:00", "2026-03-01T11:00:00Z"):
        assert record(text).time("column").isoformat() == "2026-03-01T11:00:00+00:00"
    expanded = record({"name": "x"}).expanded("column")
    assert expanded == Record({"name": "x"}, "r-1")


def test_a_day_is_read_with_and_without_a_time_after_it() -> None:
    for text in ("2026-06-03", "2026-06-03T00:00:00Z"):
        assert record(text).date("column") == date(2026, 6, 3)


def test_what_dataverse_says_beside_a_value_is_read() -> None:
    row = Record(
        {
            "@odata.etag": 'W/"1"',
            "column@OData.Community.Display.V1.FormattedValue": "Net 30",
            "column@Microsoft.Dynamics.CRM.lookuplogicalname": "account",
        },
        "r-1",
    )
    assert (row.etag, row.label("column"), row.lookup_table("column")) == ('W/"1"', "Net 30", "account")
