"""Reads and writes JSON: bodies → values of columns, rows → properties with annotations.

Numbers are exact in both directions: amounts are read as Decimal and written with the scale of their column, without
a float in between.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache

from sandbox.dataverse.columns import Column, ColumnKind, InvalidValue, Row, Table, guid
from sandbox.dataverse.errors import bad_payload, bad_request, not_supported
from sandbox.dataverse.schema import BY_SET, COLLECTIONS

_REFERENCE = re.compile(r"(?:https?://[^/]+/api/data/v9\.\d+)?/?(\w+)\(([^)]*)\)\Z")
_ANNOTATIONS = re.compile(r'odata\.include-annotations\s*=\s*"([^"]*)"')
FORMATTED = "OData.Community.Display.V1.FormattedValue"
LOOKUP_NAME = "Microsoft.Dynamics.CRM.lookuplogicalname"
NAVIGATION = "Microsoft.Dynamics.CRM.associatednavigationproperty"


def included_annotations(prefer: str) -> tuple[str, ...]:
    """Return the patterns of the annotations that a Prefer header asks for."""
    match = _ANNOTATIONS.search(prefer)
    return tuple(name.strip() for name in match[1].split(",")) if match else ()


def read_json(body: bytes, entity: str = "") -> dict[str, object]:
    """Parse a body; numbers with a fraction become Decimals. Raises RequestRefused (400)."""
    try:
        parsed = json.loads(body.decode("utf-8-sig"), parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise bad_payload(entity, "The body is not valid JSON.") from error
    if not isinstance(parsed, dict):
        raise bad_payload(entity, "The body must be a JSON object.")
    return parsed


def write_json(value: object) -> bytes:
    """Write JSON; a Decimal becomes a number with all of its digits."""
    pieces: list[str] = []
    _write(value, pieces)
    return "".join(pieces).encode()


_escape = json.JSONEncoder(ensure_ascii=False).encode


def _write(value: object, pieces: list[str]) -> None:
    if isinstance(value, Decimal):
        pieces.append(f"{value:f}")
    elif isinstance(value, Mapping):
        separator = "{"
        for key, item in value.items():
            pieces.append(f"{separator}{_escape(key)}:")
            _write(item, pieces)
            separator = ","
        pieces.append("}" if value else "{}")
    elif isinstance(value, list | tuple):
        pieces.append("[")
        for index, item in enumerate(value):
            if index:
                pieces.append(",")
            _write(item, pieces)
        pieces.append("]")
    else:
        pieces.append(_escape(value))


def parse_reference(uri: object) -> tuple[Table, str]:
    """Read `/opportunities(id)`, with or without the service's root before it."""
    match = _REFERENCE.match(uri) if isinstance(uri, str) else None
    if match is None or match[1] not in BY_SET:
        raise bad_request(f"Invalid reference to a record: '{uri}'.", "0x80048d19")
    try:
        return BY_SET[match[1]], guid(match[2])
    except InvalidValue as error:
        raise bad_request(str(error), "0x80048d19") from error


def parse_entity(table: Table, body: Mapping[str, object]) -> Row:
    """Turn the properties of a body into values of columns. Raises RequestRefused (400)."""
    values: Row = {}
    for name, value in body.items():
        if name.endswith("@odata.bind"):
            column, bound = _bind(table, name.removesuffix("@odata.bind"), value)
            values[column.name] = bound
        elif "@" not in name:
            column = _writable(table, name, value)
            try:
                values[column.name] = column.parse(value)
            except InvalidValue as error:
                raise bad_payload(table.name, str(error)) from error
    return values


def _writable(table: Table, name: str, value: object) -> Column:
    column = table.columns.get(name)
    if column is None or column.kind is ColumnKind.LOOKUP:
        if name in COLLECTIONS[table.name] or isinstance(value, dict | list):
            raise not_supported("creating related rows within another (deep insert)")
        raise bad_payload(
            table.name,
            f"An error occurred while validating input parameters: Invalid property '{name}' was found in "
            f"entity 'Microsoft.Dynamics.CRM.{table.name}'.",
        )
    if not column.writable:
        raise bad_payload(table.name, f"The property '{name}' cannot be written.")
    return column


def _bind(table: Table, navigation: str, value: object) -> tuple[Column, str | None]:
    if navigation not in table.navigation:
        raise bad_payload(
            table.name,
            f"An undeclared property '{navigation}' which only has property annotations in the payload but no "
            "property value was found in the payload. In OData, only declared navigation properties and "
            "declared named streams can be represented as properties without values.",
        )
    column, targets = table.navigation[navigation]
    if not column.writable:
        raise bad_payload(table.name, f"The property '{navigation}' cannot be written.")
    if value is None:
        return column, None
    referred, record_id = parse_reference(value)
    if referred.name not in targets:
        raise bad_payload(
            table.name, f"'{navigation}' leads to {' or '.join(targets)}, not to {referred.name}."
        )
    return column, record_id


# --- writing rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expansion:
    """A navigation property to write within its row."""

    name: str
    shape: "Shape"
    # For collections only: which rows to write.
    filter: str | None = None


@dataclass(frozen=True)
class Shape:
    """Which parts of a row to write: columns (None: all), expansions, annotations (patterns)."""

    select: tuple[str, ...] | None = None
    expand: tuple[Expansion, ...] = ()
    annotations: tuple[str, ...] = ()

    def wants(self, annotation: str) -> bool:
        """Return whether an annotation was requested."""
        return any(fnmatchcase(annotation, pattern) for pattern in self.annotations)


Target = Callable[[Column, str], tuple[Table, Row] | None]
"""Finds table and row to which a lookup refers."""


def represent(target: Target, table: Table, row: Row, shape: Shape) -> dict[str, object]:
    """Write a row as the Web API does, without `@odata.context`."""
    entity: dict[str, object] = {"@odata.etag": f'W/"{row["versionnumber"]}"'}
    for column in _selected(table, shape.select):
        value = column.of(row)
        if shape.annotations and value is not None:
            entity |= _annotations(target, (table, row), column, value, shape)
        entity[column.property_name] = value
    return entity


@lru_cache(maxsize=1024)
def _selected(table: Table, select: tuple[str, ...] | None) -> tuple[Column, ...]:
    if select is None:
        return tuple(table.by_property.values())
    names = dict.fromkeys((*select, table.key))
    return tuple(table.by_property[name] for name in names)


def _annotations(
    target: Target, owner: tuple[Table, Row], column: Column, value: object, shape: Shape
) -> dict[str, object]:
    annotations: dict[str, object] = {}
    formatted: object = None
    if column.lookup:
        found = target(column, str(value))
        if found is None:
            return {}
        table, row = found
        annotations = {LOOKUP_NAME: table.name, NAVIGATION: column.lookup.targets[table.name]}
        formatted = row[table.primary_name]
    elif column.kind is ColumnKind.MONEY and isinstance(value, Decimal):
        formatted = _format_money(value, *_currency(target, owner, column))
    else:
        formatted = _format(column, value)
    if formatted is not None:
        annotations[FORMATTED] = formatted
    return {f"{column.property_name}@{name}": item for name, item in annotations.items() if shape.wants(name)}


def _currency(target: Target, owner: tuple[Table, Row], column: Column) -> tuple[str, int]:
    """Return symbol and decimal places of an amount's currency: the row's, or else the base currency."""
    table, row = owner
    lookup = table.columns.get("transactioncurrencyid")
    if column.base_of is None and lookup is not None and row["transactioncurrencyid"]:
        found = target(lookup, row["transactioncurrencyid"])
        if found is not None:
            return found[1]["currencysymbol"], found[1]["currencyprecision"]
    return "€", 2


def _format_money(amount: Decimal, symbol: str, digits: int) -> str:
    """Write an amount with the decimal places of its currency; prices may have more."""
    exponent = amount.normalize().as_tuple().exponent
    needed = -exponent if isinstance(exponent, int) and exponent < 0 else 0
    sign = "-" if amount < 0 else ""
    return f"{sign}{symbol}{abs(amount):,.{max(digits, needed)}f}"


def _format(column: Column, value: object) -> str | None:
    """Write a value as a form shows it to a user in the United States."""
    if column.kind is ColumnKind.CHOICE:
        return column.labels.get(int(str(value)))
    write = _FORMATS.get(column.kind)
    return write(value) if write else None


def _format_date(value: object) -> str:
    day = datetime.fromisoformat(str(value))
    return f"{day.month}/{day.day}/{day.year}"


def _format_datetime(value: object) -> str:
    moment = datetime.fromisoformat(str(value))
    return f"{_format_date(value)} {moment.hour % 12 or 12}:{moment:%M %p}"


_FORMATS: Mapping[ColumnKind, Callable[[object], str]] = {
    ColumnKind.BOOLEAN: lambda value: "Yes" if value else "No",
    ColumnKind.DATE: _format_date,
    ColumnKind.DATETIME: _format_datetime,
    ColumnKind.INTEGER: "{:,}".format,
    ColumnKind.DECIMAL: "{:,.2f}".format,
}
