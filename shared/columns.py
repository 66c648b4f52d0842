"""Further columns of the invoice, as the setting INVOICE_COLUMNS lists them: their types, and their values.

The types come from Dataverse's metadata, since a response does not distinguish a choice from a number, nor an amount of
money from another one. A column that cannot be read has the reason in place of its value: it stops neither the invoice
nor its event.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from shared.dataverse import Read
from shared.errors import DataverseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal

    from shared.record import Record

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


class ColumnType(Enum):
    """The type of a further column, by the name that it has in the event."""

    TEXT = "text"
    NUMBER = "number"
    MONEY = "money"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    CHOICES = "choices"
    DATE = "date"
    DATE_TIME = "dateTime"
    LOOKUP = "lookup"
    ID = "id"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ColumnValue:
    """The value of a further column.

    `label` belongs to a choice and a boolean, `table` and `name` to the row that a lookup points to; `error` says why
    the value of an unknown column is missing.
    """

    type: ColumnType
    value: str | int | bool | Decimal | datetime | tuple[int, ...] | None
    label: str | None = None
    table: str | None = None
    name: str | None = None
    error: str = ""

    @classmethod
    def unknown(cls, error: str) -> ColumnValue:
        """Return the value of a column that cannot be read."""
        return cls(ColumnType.UNKNOWN, None, error=error)


@dataclass(frozen=True)
class Columns:
    """The columns of the setting, by logical name: the types of those that can be read, the errors of the others."""

    types: Mapping[str, ColumnType]
    errors: Mapping[str, str]

    @classmethod
    def of(cls, names: Iterable[str], attributes: Iterable[Record]) -> Columns:
        """Read the metadata of the columns; raises DataverseUnavailable for rows that are not metadata."""
        types, errors = {}, {}
        described = {(row.text("LogicalName") or "").lower(): row for row in attributes}
        for name in names:
            attribute = described.get(name)
            if attribute is None:
                errors[name] = "The table invoice has no column of this name."
            elif (column_type := _type_of(attribute)) is None:
                errors[name] = "Columns of this type cannot be published."
            else:
                types[name] = column_type
        return cls(types, errors)

    def read(self, invoice_id: str) -> Read | None:
        """Return the retrieve of the columns, None where there is nothing to read."""
        if not self.types:
            return None
        properties = ",".join(_property(name, column_type) for name, column_type in self.types.items())
        return Read(f"invoices({invoice_id})?$select={properties}")

    def values(self, row: Record) -> dict[str, ColumnValue]:
        """Return the value of each column, in the order of the names."""
        found = {name: _value(row, name, column_type) for name, column_type in self.types.items()}
        return found | {name: ColumnValue.unknown(error) for name, error in self.errors.items()}

    def unreadable(self, error: str) -> dict[str, ColumnValue]:
        """Return the values where the row could not be read."""
        return {name: ColumnValue.unknown(error) for name in (*self.types, *self.errors)}


def attributes_of_invoice(names: Iterable[str]) -> Read:
    """Return the query for the metadata of columns of the invoice."""
    condition = " or ".join(f"LogicalName eq '{name}'" for name in names)
    return Read(
        "EntityDefinitions(LogicalName='invoice')/Attributes"
        f"?$select=LogicalName,AttributeType,AttributeTypeName,IsValidForRead&$filter={condition}"
    )


_TYPES: Final = {
    "Money": ColumnType.MONEY,
    "Decimal": ColumnType.NUMBER,
    "Double": ColumnType.NUMBER,
    "Integer": ColumnType.NUMBER,
    "BigInt": ColumnType.NUMBER,
    "Boolean": ColumnType.BOOLEAN,
    "Picklist": ColumnType.CHOICE,
    "State": ColumnType.CHOICE,
    "Status": ColumnType.CHOICE,
    "MultiSelectPicklistType": ColumnType.CHOICES,
    "Lookup": ColumnType.LOOKUP,
    "Customer": ColumnType.LOOKUP,
    "Owner": ColumnType.LOOKUP,
    "DateTime": ColumnType.DATE_TIME,
    "String": ColumnType.TEXT,
    "Memo": ColumnType.TEXT,
    "EntityName": ColumnType.TEXT,
    "Uniqueidentifier": ColumnType.ID,
}


def _type_of(attribute: Record) -> ColumnType | None:
    """Return the type of a column; None for images, files and the texts that belong to other columns."""
    if attribute.columns.get("IsValidForRead") is False:
        return None
    name = attribute.text("AttributeType")
    if name == "Virtual":
        # Only the newer name distinguishes a choice with several values.
        newer = attribute.expanded("AttributeTypeName")
        name = newer.text("Value") if newer else None
    return _TYPES.get(name or "")


def _property(name: str, column_type: ColumnType) -> str:
    return f"_{name}_value" if column_type is ColumnType.LOOKUP else name


def _value(row: Record, name: str, column_type: ColumnType) -> ColumnValue:
    column = _property(name, column_type)
    try:
        return _READERS[column_type](row, column)
    except DataverseUnavailable:
        # A number beyond what amounts can be, for instance.
        return ColumnValue.unknown("The value cannot be published.")


def _read_boolean(row: Record, column: str) -> ColumnValue:
    value = row.columns.get(column)
    if not isinstance(value, bool | None):
        raise row.unexpected(column)
    return ColumnValue(ColumnType.BOOLEAN, value, label=row.label(column))


def _read_choice(row: Record, column: str) -> ColumnValue:
    return ColumnValue(ColumnType.CHOICE, row.optional_integer(column), label=row.label(column))


def _read_choices(row: Record, column: str) -> ColumnValue:
    text = row.text(column)
    try:
        values = None if text is None else tuple(int(value) for value in text.split(","))
    except ValueError as error:
        raise row.unexpected(column) from error
    return ColumnValue(ColumnType.CHOICES, values, label=row.label(column))


def _read_date(row: Record, column: str) -> ColumnValue:
    # A column whose behavior is "date only" arrives as a day, any other one as a moment.
    text = row.text(column)
    if text is None or _DAY.fullmatch(text):
        return ColumnValue(ColumnType.DATE if text else ColumnType.DATE_TIME, text)
    return ColumnValue(ColumnType.DATE_TIME, row.time(column))


def _read_lookup(row: Record, column: str) -> ColumnValue:
    value, table = row.optional_guid(column), row.lookup_table(column)
    return ColumnValue(ColumnType.LOOKUP, value, table=table, name=row.label(column))


_READERS: Final[Mapping[ColumnType, Callable[[Record, str], ColumnValue]]] = {
    ColumnType.TEXT: lambda row, column: ColumnValue(ColumnType.TEXT, row.text(column)),
    ColumnType.NUMBER: lambda row, column: ColumnValue(ColumnType.NUMBER, row.amount(column)),
    ColumnType.MONEY: lambda row, column: ColumnValue(ColumnType.MONEY, row.amount(column)),
    ColumnType.ID: lambda row, column: ColumnValue(ColumnType.ID, row.optional_guid(column)),
    ColumnType.BOOLEAN: _read_boolean,
    ColumnType.CHOICE: _read_choice,
    ColumnType.CHOICES: _read_choices,
    ColumnType.DATE_TIME: _read_date,
    ColumnType.LOOKUP: _read_lookup,
}
