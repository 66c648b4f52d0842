"""Retrieves an invoice by its id, with its lines and further columns: everything that its event contains.

Dataverse calculates an invoice's totals when it is retrieved by its id, and not before; so the lines are read after it,
in the same batch. `invoicing.py` decides which invoice it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from shared.columns import Columns, ColumnValue, attributes_of_invoice
from shared.dataverse import API, ChangeSet, Read
from shared.errors import (
    DataverseForbidden,
    DataverseNotFound,
    DataverseUnreachable,
    InvoiceRefused,
    InvoicingFailure,
    RequestRejected,
)
from shared.invoice import Invoice
from shared.message import log_suffix
from shared.record import Record
from shared.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.clock import Deadline
    from shared.dataverse import Dataverse, Update
    from shared.response import Response

_logger = logging.getLogger(__name__)

_HEADER: Final = (
    "invoiceid,invoicenumber,name,createdon,pricingerrorcode,duedate,paymenttermscode,"
    "totalamount,totallineitemamount,totallineitemdiscountamount,discountamount,discountpercentage,"
    "totaldiscountamount,totalamountlessfreight,freightamount,totaltax,"
    "_customerid_value,_opportunityid_value,_salesorderid_value,_transactioncurrencyid_value,_ownerid_value"
)
_LINE: Final = (
    "invoicedetailid,lineitemnumber,producttypecode,productname,productdescription,quantity,priceperunit,"
    "volumediscountamount,manualdiscountamount,baseamount,tax,extendedamount,"
    "_productid_value,_uomid_value,_parentbundleidref_value"
)
_CURRENCY: Final = "transactioncurrencyid($select=isocurrencycode,currencyprecision)"
_NO_ROW: Final = Record({}, "")
# What Dataverse responds to a column that it does not have (any more).
_NO_SUCH_COLUMN: Final = (DataverseNotFound, InvoiceRefused, RequestRejected)


@dataclass(frozen=True)
class Assignment:
    """The write that changes the owner of an invoice.

    It has the etag of the row that was read. `previous` is the id of the present owner, `owner` names the new
    owner in the log.
    """

    update: Update
    previous: str
    owner: str


class InvoiceReader:
    """Retrieves invoices. `columns` are the logical names of further columns."""

    def __init__(self, dataverse: Dataverse, columns: Sequence[str] = ()) -> None:
        self._dataverse = dataverse
        self._names = columns
        self._columns: Columns | None = None

    def retrieve(self, invoice_id: str, deadline: Deadline, assignment: Assignment | None = None) -> Invoice:
        """Return an invoice; carry out the assignment in the same batch. If that fails, the log says why.

        Raises RecordNotFound if the invoice does not exist.
        """
        columns = self._described(deadline)
        extra = columns.read(invoice_id) if columns else None
        reads = [_header(invoice_id), _lines(invoice_id), *([extra] if extra else [])]
        assigned, responses = self._batch(reads, deadline, assignment)
        try:
            row, lines = self._rows(responses, deadline)
        except DataverseForbidden as error:
            # Without the right to read accounts or products, Dataverse may refuse the whole read.
            _logger.warning(
                "dataverse: the invoice %s is read without names and numbers of customer, products and units: %s%s",
                invoice_id,
                one_line(str(error)),
                log_suffix(),
            )
            plain = [_header(invoice_id, names=False), _lines(invoice_id, names=False)]
            row, lines = self._rows(self._dataverse.batch(plain, deadline), deadline)
        if assignment is not None:
            # The other half of the time is for the event.
            self._conclude(assignment, assigned, row, deadline.within(deadline.remaining / 2))
        values = self._values(columns, responses[2] if extra else None) if columns else None
        invoice = Invoice.of(row, lines, values)
        if not invoice.totals_agree:
            _logger.warning(
                "dataverse: the lines, discounts, freight and tax of the invoice %s do not add up to its total%s",
                invoice_id,
                log_suffix(),
            )
        return invoice

    def _batch(
        self, reads: list[Read], deadline: Deadline, assignment: Assignment | None
    ) -> tuple[Response | None, list[Response]]:
        """Return the response to the assignment, None if there is none, and those to the reads.

        The assignment comes first, so that the reads show it.
        """
        if assignment is None:
            return None, self._dataverse.batch(reads, deadline)
        try:
            assigned, *responses = self._dataverse.batch([ChangeSet((assignment.update,)), *reads], deadline)
        except DataverseUnreachable:
            # A plug-in on Assign may take longer than a request may: the reads are repeated without it.
            return None, self._dataverse.batch(reads, deadline)
        return assigned, responses

    def _conclude(
        self, assignment: Assignment, assigned: Response | None, row: Record, deadline: Deadline
    ) -> None:
        """Repeat an assignment without response, or of a row that had changed; log why it failed; continue."""
        try:
            if assigned is None or assigned.status == HTTPStatus.PRECONDITION_FAILED:
                if row.optional_guid("_ownerid_value") != assignment.previous:
                    return  # It was carried out, or the invoice has another owner by now.
                update = replace(assignment.update, if_match=row.etag or "*")
                (assigned,) = self._dataverse.batch([ChangeSet((update,))], deadline)
            assigned.raise_for_status()
        except InvoicingFailure as error:
            _logger.warning(
                "dataverse: the invoice %s was not assigned to %s: %s%s",
                row.guid("invoiceid"),
                assignment.owner,
                one_line(str(error)),
                log_suffix(),
            )

    def _rows(self, responses: Sequence[Response], deadline: Deadline) -> tuple[Record, list[Record]]:
        """Return the invoice and all its lines: Dataverse returns 5,000 rows at a time."""
        header, response = responses[0].record(), responses[1]
        lines = response.records()
        while (link := response.record().text("@odata.nextLink")) is not None:
            response = self._dataverse.read(Read(link.partition(API)[2]), deadline)
            lines += response.records()
        return header, lines

    def _described(self, deadline: Deadline) -> Columns | None:
        """Return what is known of the further columns, None where none are configured."""
        if self._columns is None and self._names:
            # Once for each process. Two threads may do it at once, with the same result.
            response = self._dataverse.read(attributes_of_invoice(self._names), deadline)
            self._columns = Columns.of(self._names, response.records())
            for name, error in self._columns.errors.items():
                _logger.warning("settings: INVOICE_COLUMNS names %s: %s", name, error)
        return self._columns

    def _values(self, columns: Columns, response: Response | None) -> dict[str, ColumnValue]:
        if response is None:
            return columns.values(_NO_ROW)
        try:
            return columns.values(response.record())
        except _NO_SUCH_COLUMN as error:
            # A column may have been removed since its description was read.
            self._columns = None
            _logger.warning(
                "settings: the columns of INVOICE_COLUMNS were not read: %s", one_line(str(error))
            )
            return columns.unreadable("The column was not read: the log of the function says why.")


def _header(invoice_id: str, *, names: bool = True) -> Read:
    customer = ",customerid_account($select=accountnumber)" if names else ""
    return Read(f"invoices({invoice_id})?$select={_HEADER}&$expand={_CURRENCY}{customer}")


def _lines(invoice_id: str, *, names: bool = True) -> Read:
    # By filter, never by $expand of the collection: it may be cached.
    expand = "&$expand=productid($select=productnumber,name),uomid($select=name)" if names else ""
    return Read(
        f"invoicedetails?$select={_LINE}&$filter=_invoiceid_value eq {invoice_id}"
        f"&$orderby=lineitemnumber,invoicedetailid{expand}"
    )
