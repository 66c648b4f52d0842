"""Typed access to a row of a Dataverse response: each method returns one type, or raises DataverseUnavailable.

Which columns a row must have is left to the modules that select them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from shared.errors import DataverseUnavailable
from shared.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping

# Money in Dataverse stays below a quadrillion; far beyond that, exact arithmetic runs out of digits.
_AMOUNT_BOUND = 10**15
# More decimal places than any column has; a huge exponent would make the arithmetic or a text too large.
_MAX_PLACES = 30
_LOOKUP_TABLE = "@Microsoft.Dynamics.CRM.lookuplogicalname"
_FORMATTED = "@OData.Community.Display.V1.FormattedValue"


@dataclass(frozen=True)
class Record:
    """One row. `columns` are as the Web API returns them, `request_id` names the request that read them."""

    columns: Mapping[str, Any]
    request_id: str

    def integer(self, column: str) -> int:
        """Return a whole number, such as a state."""
        value = self.columns.get(column)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.unexpected(column)
        return value

    def optional_integer(self, column: str) -> int | None:
        """Return a whole number, or None for null."""
        return None if self.columns.get(column) is None else self.integer(column)

    def amount(self, column: str) -> Decimal | None:
        """Return an exact number, or None for null."""
        value = self.columns.get(column)
        if value is None:
            return None
        # A bool is an int, and NaN is a float.
        if not isinstance(value, int | Decimal) or isinstance(value, bool):
            raise self.unexpected(column)
        amount = Decimal(value)
        if not -_AMOUNT_BOUND < amount < _AMOUNT_BOUND or abs(int(amount.as_tuple().exponent)) > _MAX_PLACES:
            raise self.unexpected(column)
        return amount

    def text(self, column: str) -> str | None:
        """Return a text that UTF-8 can encode, or None for null."""
        value = self.columns.get(column)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.unexpected(column)
        return encodable(value)

    def guid(self, column: str) -> str:
        """Return a GUID in lower case with hyphens."""
        try:
            return str(uuid.UUID(self.columns.get(column)))
        except (ValueError, TypeError, AttributeError) as error:
            raise self.unexpected(column) from error

    def optional_guid(self, column: str) -> str | None:
        """Return a GUID in lower case with hyphens, or None for null."""
        return None if self.columns.get(column) is None else self.guid(column)

    @property
    def etag(self) -> str | None:
        """The version of the row, None where Dataverse does not say."""
        return self.text("@odata.etag")

    def lookup_table(self, column: str) -> str | None:
        """Return the logical name of the table that a lookup points to; None where Dataverse does not say."""
        return self.text(column + _LOOKUP_TABLE)

    def date(self, column: str) -> date | None:
        """Return a day, or None for null. A time that follows the day is ignored."""
        value = self.text(column)
        try:
            return None if value is None else date.fromisoformat(value[:10])
        except ValueError as error:
            raise self.unexpected(column) from error

    def label(self, column: str) -> str | None:
        """Return what people see instead of the value; None where Dataverse does not say."""
        return self.text(column + _FORMATTED)

    def time(self, column: str) -> datetime:
        """Return a moment in UTC."""
        try:
            time = datetime.fromisoformat(str(self.columns.get(column)))
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise self.unexpected(column) from error

    def expanded(self, column: str) -> Record | None:
        """Return the row that a lookup was expanded to, or None where it is null."""
        value = self.columns.get(column)
        return Record(value, self.request_id) if isinstance(value, dict) else None

    def unexpected(self, column: str) -> DataverseUnavailable:
        """Return the error for a column whose value Dataverse itself would not return."""
        return DataverseUnavailable(
            f"Dataverse's response has no usable {column}: another server may have sent it.",
            request_id=self.request_id,
        )
