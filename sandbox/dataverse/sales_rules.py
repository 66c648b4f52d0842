"""The rules of the tables of Sales: states of opportunities, currencies, lines and the totals of headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sandbox.dataverse.columns import Row, Table
from sandbox.dataverse.errors import invalid_argument
from sandbox.dataverse.pricing import Pricing
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.service import Session, TableRules

OPEN, WON, LOST = 0, 1, 2
_COMPLETED, _CANCELED = 1, 2
_CANCELED_REASON = 3


@dataclass(frozen=True)
class Document:
    """A table whose rows have lines and totals; `number`: the column of the row's number, and the prefix."""

    header: Table
    lines: Table
    number: tuple[str, str] | None = None

    @property
    def link(self) -> str:
        """The name of a line's lookup to its header."""
        return self.header.key

    def lines_of(self, session: Session, header_id: str) -> list[Row]:
        """Return a header's lines, ordered by their numbers; lines with the same number have no defined order."""
        return session.transaction.rows(
            self.lines,
            f't."{self.link}" = ?',
            (header_id,),
            f'ORDER BY t.lineitemnumber, t.sequencenumber, t."{self.lines.key}"',
        )

    def next_number(self, session: Session) -> Row:
        """Return the column with a new row's number."""
        if self.number is None:
            return {}
        column, prefix = self.number
        number = 999 + session.transaction.next_number(self.header.name)
        suffix = session.organization.new_id().replace("-", "")[:6].upper()
        return {column: f"{prefix}-{number:05d}-{suffix}"}


OPPORTUNITY: Final = Document(TABLES["opportunity"], TABLES["opportunityproduct"])
QUOTE: Final = Document(TABLES["quote"], TABLES["quotedetail"], ("quotenumber", "QUO"))
ORDER: Final = Document(TABLES["salesorder"], TABLES["salesorderdetail"], ("ordernumber", "ORD"))
INVOICE: Final = Document(TABLES["invoice"], TABLES["invoicedetail"], ("invoicenumber", "INV"))
_DOCUMENTS: Final = (OPPORTUNITY, QUOTE, ORDER, INVOICE)

_PRICED_BY: Final = frozenset(
    {"discountamount", "discountpercentage", "freightamount", "pricelevelid", "transactioncurrencyid"}
)
_LINE_PRICED_BY: Final = frozenset(
    {"priceperunit", "quantity", "manualdiscountamount", "volumediscountamount", "tax", "producttypecode"}
)


def reprice(session: Session, document: Document, header: Row) -> None:
    """Calculate a header's totals from its lines, unless a plug-in of the organization does so."""
    if not prices_by_itself(session):
        return
    pricing = pricing_for(session, header["transactioncurrencyid"])
    amounts = pricing.totals(header, document.lines_of(session, header[document.header.key]))
    if document is OPPORTUNITY and header["isrevenuesystemcalculated"]:
        amounts["estimatedvalue"] = amounts["totalamount"]
    if document is INVOICE:
        amounts["_totalspending"] = False
    session.transaction.update(document.header, header[document.header.key], amounts)


def prices_by_itself(session: Session) -> bool:
    """Return whether the system's own price calculation is switched on."""
    return bool(_organization(session)["oobpricecalculationenabled"])


def pricing_for(session: Session, currency_id: str | None) -> Pricing:
    """Return how amounts of a currency are calculated."""
    currency = session.transaction.get(TABLES["transactioncurrency"], currency_id or "")
    per_unit = _organization(session)["discountcalculationmethod"] == 1
    return Pricing(currency["currencyprecision"] if currency else 2, per_unit)


def _organization(session: Session) -> Row:
    return session.find(TABLES["organization"], session.organization.id)


def _with_currency(session: Session, currency_id: object) -> Row:
    """Return a row's currency, the base currency if it names none, and its exchange rate."""
    found = currency_id or _organization(session)["basecurrencyid"]
    currency = session.transaction.get(TABLES["transactioncurrency"], str(found or ""))
    if currency is None:
        return {}
    return {"transactioncurrencyid": found, "exchangerate": currency["exchangerate"]}


class _HeaderRules(TableRules):
    """A quote, order or invoice: number, currency, totals."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def on_create(self, session: Session, values: Row) -> Row:
        columns = _unless_given(values, self._document.next_number(session))
        columns |= _with_currency(session, values.get("transactioncurrencyid"))
        columns |= _rounded_terms(session, columns, values)
        return columns | customer_columns(session, self._document.header, values)

    def on_update(self, session: Session, row: Row, values: Row) -> Row:
        columns: Row = {}
        if "transactioncurrencyid" in values:
            columns = _with_currency(session, values["transactioncurrencyid"])
        columns |= _rounded_terms(session, row, values)
        return columns | customer_columns(session, self._document.header, values)

    def after(self, session: Session, row: Row, changed: Mapping[str, object]) -> None:
        if changed is row:
            return
        if "transactioncurrencyid" in changed:
            self._change_currency(session, row)
        if _PRICED_BY & changed.keys():
            reprice(session, self._document, row)

    def _change_currency(self, session: Session, row: Row) -> None:
        """Give the lines their header's new currency; the numbers of their prices stay the same."""
        pricing = pricing_for(session, row["transactioncurrencyid"])
        for line in self._document.lines_of(session, row[self._document.header.key]):
            values = {name: row[name] for name in ("transactioncurrencyid", "exchangerate")}
            values |= pricing.line(line) if prices_by_itself(session) else {}
            session.transaction.update(self._document.lines, line[self._document.lines.key], values)


def _unless_given(values: Row, columns: Row) -> Row:
    """Return the columns for which the caller gave no value."""
    return {name: value for name, value in columns.items() if values.get(name) is None}


def _rounded_terms(session: Session, row: Row, values: Row) -> Row:
    """Return the changed amounts, or all if the currency changes, rounded to the currency's decimal places."""
    after: Row = {"transactioncurrencyid": None, **row, **values}
    names = {"freightamount", "discountamount"}
    names &= after.keys() if "transactioncurrencyid" in values else values.keys()
    pricing = pricing_for(session, after["transactioncurrencyid"])
    return {name: pricing.rounded(after[name]) for name in sorted(names) if after[name] is not None}


def customer_columns(session: Session, header: Table, values: Row) -> Row:
    """Return an invoice's read-only columns that repeat its customer, if that is given."""
    if "accountid" not in header.columns or "customerid" not in values:
        return {}
    customer = values["customerid"]
    found = session.target(header.columns["customerid"], str(customer)) if customer else None
    return {
        f"{name}id": customer if found and found[0].name == name else None for name in ("account", "contact")
    }


class _OpportunityRules(_HeaderRules):
    """Adds the rules of opportunities: only a message closes one, and a change of the state reopens it."""

    def on_update(self, session: Session, row: Row, values: Row) -> Row:
        state = values.get("statecode", row["statecode"])
        columns = super().on_update(session, row, values)
        if state == row["statecode"]:
            return columns
        if state != OPEN:
            word, message = ("Won", "WinOpportunity") if state == WON else ("Lost", "LoseOpportunity")
            raise invalid_argument(
                f"This message can not be used to set the state of opportunity to {word}. In order to set state of "
                f"opportunity to {word}, use the {message} message instead."
            )
        self._cancel_closes(session, row["opportunityid"])
        return columns | {"actualclosedate": None, "actualvalue": None}

    def _cancel_closes(self, session: Session, opportunity_id: str) -> None:
        """Cancel the activities that closed the opportunity."""
        closes = session.transaction.rows(
            TABLES["opportunityclose"], "opportunityid = ? AND statecode = ?", (opportunity_id, _COMPLETED)
        )
        for close in closes:
            session.change(
                TABLES["opportunityclose"],
                close["activityid"],
                {"statecode": _CANCELED, "statuscode": _CANCELED_REASON},
            )


class _LineRules(TableRules):
    """A line: columns from its header and its product, its amounts, and the header's totals."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def on_create(self, session: Session, values: Row) -> Row:
        header_id = values.get(self._document.link)
        if not header_id:
            raise invalid_argument(f"Required field '{self._document.link}' is missing")
        header = session.find(self._document.header, str(header_id))
        columns: Row = {name: header[name] for name in ("transactioncurrencyid", "exchangerate", "ownerid")}
        lines = self._document.lines_of(session, str(header_id))
        columns["lineitemnumber"] = max((line["lineitemnumber"] or 0 for line in lines), default=0) + 1
        columns = _unless_given(values, columns | _product_columns(session, header, values))
        full = {column.name: column.default for column in self._document.lines.stored.values()}
        full |= values | columns
        return columns | _named(full) | pricing_for(session, header["transactioncurrencyid"]).line(full)

    def on_update(self, session: Session, row: Row, values: Row) -> Row:
        full = {**row, **values}
        columns = _named(full)
        if _LINE_PRICED_BY & values.keys() and prices_by_itself(session):
            columns |= pricing_for(session, row["transactioncurrencyid"]).line(full)
        return columns

    def after(self, session: Session, row: Row, changed: Mapping[str, object]) -> None:
        if changed and not _LINE_PRICED_BY & changed.keys():
            return
        header = session.transaction.get(self._document.header, row[self._document.link] or "")
        if header is not None:
            reprice(session, self._document, header)


def _named(line: Row) -> Row:
    """Return the name of a write-in; any other line has its product's name."""
    return {"productname": line["productdescription"]} if line["isproductoverridden"] else {}


def _product_columns(session: Session, header: Row, values: Row) -> Row:
    """Return a line's columns from its product: name, unit, and the price if the caller names none."""
    if not values.get("productid"):
        return {"isproductoverridden": True}
    product = session.find(TABLES["product"], str(values["productid"]))
    columns: Row = {"productname": product["name"], "uomid": product["defaultuomid"]}
    if values.get("priceperunit") is not None:
        columns["ispriceoverridden"] = True
    elif product["price"] is not None:
        unit = Decimal(1).scaleb(-_organization(session)["pricingdecimalprecision"])
        columns["priceperunit"] = (product["price"] * (header["exchangerate"] or 1)).quantize(unit)
    return columns


RULES: Final[Mapping[str, TableRules]] = {
    "opportunity": _OpportunityRules(OPPORTUNITY),
    **{document.header.name: _HeaderRules(document) for document in _DOCUMENTS[1:]},
    **{document.lines.name: _LineRules(document) for document in _DOCUMENTS},
}
