"""The requests for an invoice select every column that is read from the responses.

A column that is not selected is missing without an error: its member of the event would always be null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from shared.clock import Deadline, SystemClock
from shared.record import Record
from shared.retrieval import InvoiceReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.dataverse import Dataverse, Read

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
# Values without which a row is no invoice or line, or other columns are not read.
HEADER = {
    "invoiceid": ID,
    "_opportunityid_value": ID,
    "createdon": "2026-03-01T12:00:00Z",
    "_customerid_value": ID,
    "_transactioncurrencyid_value": ID,
}
CURRENCY = {"isocurrencycode": "EUR", "currencyprecision": 2}
LINE = {"invoicedetailid": ID, "_productid_value": ID}


class Row(dict[str, Any]):
    """A row that notes which columns are read."""

    def __init__(self, **columns: object) -> None:
        super().__init__(columns)
        self.read: set[str] = set()

    def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - dict's
        if "@" not in key:
            self.read.add(key)
        return super().get(key, default)


@dataclass
class Response:
    """The response to one read, with one row."""

    row: Row

    def record(self) -> Record:
        return Record(self.row, "r-1")

    def records(self) -> list[Record]:
        return [self.record()]


@dataclass
class FakeDataverse:
    """Responds to the reads of the header and of the lines."""

    responses: Sequence[Response]
    reads: list[Read] = field(default_factory=list)

    def batch(self, reads: Sequence[Read], _: Deadline) -> Sequence[Response]:
        self.reads += reads
        return self.responses


def selected(read: Read) -> dict[str, set[str]]:
    """Return the columns that a read selects, by the lookup that they are expanded from; "" for the row itself."""
    own, _, expand = read.path.partition("$select=")[2].partition("&$expand=")
    columns = {
        name: set(names.split(",")) for name, names in re.findall(r"(\w+)\(\$select=([\w,]+)\)", expand)
    }
    return {"": set(own.partition("&")[0].split(","))} | columns


def test_the_columns_that_are_read_are_selected() -> None:
    currency, account, product, unit = Row(**CURRENCY), Row(), Row(), Row()
    header = Row(**HEADER, transactioncurrencyid=currency, customerid_account=account)
    product_line = Row(**LINE, productid=product, uomid=unit)
    write_in = Row(**LINE | {"_productid_value": None})
    for line in (product_line, write_in):
        dataverse = FakeDataverse([Response(header), Response(line)])
        InvoiceReader(cast("Dataverse", dataverse)).retrieve(ID, Deadline.after(SystemClock(), 60))
    of_header, of_lines = (selected(read) for read in dataverse.reads)

    assert header.read - of_header.keys() <= of_header[""]
    assert currency.read <= of_header["transactioncurrencyid"]
    assert account.read <= of_header["customerid_account"]
    assert (product_line.read | write_in.read) - of_lines.keys() <= of_lines[""]
    assert product.read <= of_lines["productid"]
    assert unit.read <= of_lines["uomid"]
    assert {"duedate", "totaltax"} <= header.read
    assert {"quantity", "productdescription"} <= product_line.read | write_in.read
