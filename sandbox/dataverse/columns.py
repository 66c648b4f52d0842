"""The types of tables and columns: kinds, lookups, ids, and the conversion of values from and to JSON and SQLite.

`schema` has the tables themselves.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final

from sandbox.dataverse.errors import RequestRefused

Row = dict[str, Any]
"""A row by logical names: str, int, bool, Decimal or None; ids and dates are strings in one fixed form."""

_GUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z")
_DATE_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_INT32 = range(-(2**31), 2**31)


class ColumnKind(Enum):
    """What a column holds. The values are the names of AttributeType, but for DATE, which has that of DATETIME."""

    ID = "Uniqueidentifier"
    LOOKUP = "Lookup"
    TEXT = "String"
    INTEGER = "Integer"
    VERSION = "BigInt"
    CHOICE = "Picklist"
    BOOLEAN = "Boolean"
    MONEY = "Money"
    DECIMAL = "Decimal"
    DATE = "Date"
    DATETIME = "DateTime"


# The Python types that a JSON value may have, and the OData type that an error names; ids and dates are texts in forms
# of their own.
_JSON_TYPES: Final[Mapping[ColumnKind, tuple[Any, str]]] = {
    ColumnKind.TEXT: (str, "Edm.String"),
    ColumnKind.BOOLEAN: (bool, "Edm.Boolean"),
    ColumnKind.MONEY: (int | Decimal, "Edm.Decimal"),
    ColumnKind.DECIMAL: (int | Decimal, "Edm.Decimal"),
    **dict.fromkeys((ColumnKind.INTEGER, ColumnKind.VERSION, ColumnKind.CHOICE), (int, "Edm.Int32")),
}
# Exact amounts are stored as scaled 64-bit integers, as SQL Server's `money` is: they sort, compare and add up.
_SCALE: Final = {ColumnKind.MONEY: 4, ColumnKind.DECIMAL: 10}
# The base currency of the organization is the euro.
_BASE_UNIT: Final = Decimal("0.01")


class InvalidValue(RequestRefused):
    """A value that does not fit its column; the text says why."""

    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, "0x80060888", message)


@dataclass(frozen=True)
class Lookup:
    """The target tables of a lookup, each with its navigation property, and the collections in the other direction.

    Tables may share a navigation property, as users and teams share `ownerid`.
    """

    targets: Mapping[str, str]
    collections: Mapping[str, str] = field(default_factory=dict)
    on_delete: str = "remove link"


@dataclass(frozen=True)
class Column:
    """A column. Callers of the Web API may change a `writable` one; a `secret` one is never returned.

    `unique`: no two rows have the same value, except null. `states`, for a status reason: the state of each value.
    `base_of`: the column whose amount this one gives in the base currency; it is calculated, not stored.
    """

    name: str
    kind: ColumnKind
    writable: bool = True
    secret: bool = False
    unique: bool = False
    default: object = None
    labels: Mapping[int, str] = field(default_factory=dict)
    states: Mapping[int, int] = field(default_factory=dict)
    lookup: Lookup | None = None
    base_of: str | None = None

    @property
    def property_name(self) -> str:
        """The name of the column's property in the Web API."""
        return f"_{self.name}_value" if self.kind is ColumnKind.LOOKUP else self.name

    def of(self, row: Row) -> object:
        """Return the column's value in a row; an amount has all the decimal places of its kind."""
        value = row[self.name] if self.base_of is None else _in_base_currency(row, self.base_of)
        return value.quantize(Decimal(1).scaleb(-_SCALE[self.kind])) if isinstance(value, Decimal) else value

    def parse(self, value: object) -> object:
        """Turn a JSON value into what a row holds. Raises InvalidValue."""
        if value is None:
            return None
        match self.kind:
            case ColumnKind.ID | ColumnKind.LOOKUP:
                return guid(value)
            case ColumnKind.DATE:
                return parse_datetime(value)[:10]
            case ColumnKind.DATETIME:
                return parse_datetime(value)
        kinds, name = _JSON_TYPES[self.kind]
        if (
            not isinstance(value, kinds)
            or isinstance(value, bool) != (self.kind is ColumnKind.BOOLEAN)
            or (name == "Edm.Int32" and value not in _INT32)
        ):
            raise InvalidValue(f"Cannot convert a value of '{self.name}' to the expected type '{name}'.")
        return self._checked(value)

    def _checked(self, value: Any) -> object:  # noqa: ANN401 - what JSON has
        """Refuse texts that are not Unicode and amounts out of range; give an amount the scale of its kind."""
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidValue(f"The text of '{self.name}' is not valid Unicode.") from error
        elif self.kind in _SCALE:
            value = Decimal(value)
            # SQLite stores both kinds as 64-bit integers; Dataverse's own bounds are a little narrower.
            if not value.is_finite() or abs(value) > Decimal(2**63 - 1).scaleb(-_SCALE[self.kind]):
                raise InvalidValue(f"A value of '{self.name}' is out of range.")
            return value.quantize(Decimal(1).scaleb(-_SCALE[self.kind]))
        return value

    def to_sql(self, value: object) -> object:
        """Turn what a row holds into what SQLite stores."""
        if isinstance(value, Decimal):
            return int(value.scaleb(_SCALE[self.kind]).to_integral_value())
        return int(value) if isinstance(value, bool) else value

    def from_sql(self, value: Any) -> object:  # noqa: ANN401 - the types that SQLite has
        """Turn what SQLite stores into what a row holds."""
        if value is None:
            return None
        if self.kind in _SCALE:
            return Decimal(value).scaleb(-_SCALE[self.kind])
        return bool(value) if self.kind is ColumnKind.BOOLEAN else value


def _in_base_currency(row: Row, name: str) -> Decimal | None:
    amount, rate = row[name], row["exchangerate"]
    if amount is None or not rate:
        return None
    base: Decimal = (amount / rate).quantize(_BASE_UNIT, ROUND_HALF_EVEN)
    return base


@dataclass(frozen=True, eq=False)
class Table:
    """A table; `privilege` is the name in `prvRead…`, `owned` says whether its rows have owners."""

    name: str
    set_name: str
    columns: Mapping[str, Column]
    privilege: str
    owned: bool
    primary_name: str
    code: int

    @cached_property
    def key(self) -> str:
        """The primary key."""
        return next(column.name for column in self.columns.values() if column.kind is ColumnKind.ID)

    @cached_property
    def stored(self) -> Mapping[str, Column]:
        """The columns that are stored; the others are calculated."""
        return {column.name: column for column in self.columns.values() if column.base_of is None}

    @cached_property
    def by_property(self) -> Mapping[str, Column]:
        """The columns that are returned, by the names of their properties in the Web API."""
        return {column.property_name: column for column in self.columns.values() if not column.secret}

    @cached_property
    def navigation(self) -> Mapping[str, tuple[Column, tuple[str, ...]]]:
        """The single-valued navigation properties, each with its lookup and target tables."""
        found: dict[str, tuple[Column, tuple[str, ...]]] = {}
        for column in self.columns.values():
            for target, name in column.lookup.targets.items() if column.lookup else ():
                found[name] = (column, (*found.get(name, (column, ()))[1], target))
        return found

    @cached_property
    def converted(self) -> tuple[Column, ...]:
        """The columns whose form in SQLite differs from that in a row."""
        return tuple(c for c in self.stored.values() if c.kind in _SCALE or c.kind is ColumnKind.BOOLEAN)


def guid(text: object) -> str:
    """Normalise a GUID to lower case. Raises InvalidValue."""
    if not isinstance(text, str) or not _GUID.match(text):
        raise InvalidValue(f"Cannot convert the literal '{text}' to the expected type 'Edm.Guid'.")
    return text.lower()


def format_datetime(moment: datetime) -> str:
    """Write a time as columns hold it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(_DATE_FORMAT)


def parse_datetime(text: object) -> str:
    """Read a date or a time (UTC if it has no offset) into the form that columns hold."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise InvalidValue(
            f"Cannot convert the literal '{text}' to the expected type 'Edm.DateTimeOffset'."
        ) from error
    return format_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


_NAMESPACE = uuid.UUID("8d1f3b7a-5c0e-4f4b-9b6e-2f6f0f0c7d11")


def stable_id(*parts: str) -> str:
    """Derive an id that is the same in every run, as for messages and privileges."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))


ORGANIZATION_ID: Final = stable_id("organization")
