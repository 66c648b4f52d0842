"""The messages of Sales: closing opportunities and orders, conversions between them, quotes and invoices.

Each takes a session and the parameters from the JSON body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sandbox.dataverse.columns import InvalidValue, Row, Table, guid
from sandbox.dataverse.errors import bad_payload, bad_request, invalid_argument
from sandbox.dataverse.execution_context import Entity, MessageExecution, OptionSet
from sandbox.dataverse.messages import EntityResult, Parameters, UnboundMessage
from sandbox.dataverse.payload import parse_entity
from sandbox.dataverse.pricing import TOTALS
from sandbox.dataverse.sales_rules import (
    INVOICE,
    LOST,
    OPEN,
    OPPORTUNITY,
    ORDER,
    QUOTE,
    WON,
    Document,
    customer_columns,
    prices_by_itself,
    pricing_for,
    reprice,
)
from sandbox.dataverse.sales_tables import CUSTOM_COLUMNS
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import check_access, require
from sandbox.dataverse.service import Session

_ZERO: Final = Decimal(0)
_CANCELED, _FULFILLED, _INVOICED = 2, 3, 4


# --- closing opportunities ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Closing:
    """How an opportunity or an order is closed; `reason` is the status reason if the caller names none."""

    message: str
    state: int
    reason: int


def win_opportunity(session: Session, parameters: Parameters) -> None:
    """Close an open opportunity as won."""
    _close_opportunity(session, parameters, _Closing("Win", WON, 3))


def lose_opportunity(session: Session, parameters: Parameters) -> None:
    """Close an open opportunity as lost."""
    _close_opportunity(session, parameters, _Closing("Lose", LOST, 4))


def _close_opportunity(session: Session, parameters: Parameters, closing: _Closing) -> None:
    table = TABLES["opportunity"]
    close = _activity(parameters, "OpportunityClose", TABLES["opportunityclose"], table)
    opportunity = session.find(table, str(close["opportunityid"]))
    check_access(session.caller, table, "Write", opportunity)
    if opportunity["statecode"] != OPEN:
        # The text is the real service's; the code is not confirmed.
        raise invalid_argument("The opportunity is already closed.", "0x80040203")
    reason = _reason(parameters, table, closing)
    close["activityid"] = close.get("activityid") or session.organization.new_id()
    inputs: list[tuple[str, object]] = [
        ("OpportunityClose", Entity(TABLES["opportunityclose"], close["activityid"], dict(close))),
        ("Status", OptionSet(reason)),
    ]
    event = MessageExecution(closing.message, "opportunity", opportunity["opportunityid"], inputs)
    session.parents.append(event)
    _write_close(session, opportunity, close, closing.state, reason)
    session.parents.pop()
    session.fire(event)


def _write_close(session: Session, opportunity: Row, close: Row, state: int, reason: int) -> None:
    revenue = close.get("actualrevenue")
    if revenue is None and state == WON:
        revenue = opportunity["totalamount"] or opportunity["estimatedvalue"]
    closed_on = close.get("actualend") or session.now[:10]
    session.create(
        TABLES["opportunityclose"],
        {
            "subject": f"Opportunity {'Win' if state == WON else 'Lose'}",
            **close,
            "actualend": closed_on,
            "actualrevenue": revenue,
            "opportunitystatecode": state,
            "opportunitystatuscode": reason,
            "transactioncurrencyid": opportunity["transactioncurrencyid"],
            "exchangerate": opportunity["exchangerate"],
        },
    )
    session.change(
        TABLES["opportunity"],
        opportunity["opportunityid"],
        {"statecode": state, "statuscode": reason, "actualclosedate": closed_on, "actualvalue": revenue},
    )


def _activity(parameters: Parameters, name: str, table: Table, closed: Table) -> Row:
    """Read the activity that closes a row; it must name the row."""
    body = parameters.get(name)
    if not isinstance(body, Mapping):
        raise invalid_argument(f"Required field '{name}' is missing")
    close = parse_entity(table, body)
    if not close.get(closed.key):
        raise invalid_argument(f"The {table.name} names no {closed.name}: {closed.key} is missing.")
    return close


def _reason(parameters: Parameters, table: Table, closing: _Closing) -> int:
    reason = parameters.get("Status", -1)
    if reason == -1 and not isinstance(reason, bool):
        return closing.reason
    states = table.columns["statuscode"].states
    # The sandbox does not know reasons that an organization adds.
    if (
        isinstance(reason, bool)
        or not isinstance(reason, int)
        or states.get(reason, closing.state) != closing.state
    ):
        raise invalid_argument(
            f"{reason} is not a valid status code for state code {closing.state} on {table.name}.",
            "0x80048408",
        )
    return reason


# --- closing orders -----------------------------------------------------------------------------------------


def cancel_order(session: Session, parameters: Parameters) -> None:
    """Cancel a sales order."""
    _close_order(session, parameters, _Closing("Cancel", _CANCELED, 4))


def fulfill_order(session: Session, parameters: Parameters) -> None:
    """Mark a sales order as fulfilled."""
    _close_order(session, parameters, _Closing("Fulfill", _FULFILLED, 100001))


def _close_order(session: Session, parameters: Parameters, closing: _Closing) -> None:
    table = TABLES["salesorder"]
    close = _activity(parameters, "OrderClose", TABLES["orderclose"], table)
    order = session.find(table, str(close["salesorderid"]))
    check_access(session.caller, table, "Write", order)
    if order["statecode"] in (_CANCELED, _FULFILLED, _INVOICED):
        # The real service's text and code are not known.
        raise invalid_argument("The sales order is already closed.")
    reason = _reason(parameters, table, closing)
    event = MessageExecution(
        closing.message, "salesorder", order["salesorderid"], [("Status", OptionSet(reason))]
    )
    session.parents.append(event)
    session.create(TABLES["orderclose"], {"actualend": session.now[:10], **close})
    session.change(table, order["salesorderid"], {"statecode": closing.state, "statuscode": reason})
    session.parents.pop()
    session.fire(event)


# --- conversions --------------------------------------------------------------------------------------------


def generate_invoice(session: Session, parameters: Parameters) -> EntityResult:
    """Create an invoice from an opportunity. Like Dataverse, a second call creates a second invoice.

    The opportunity's state is not checked. Whether Dataverse refuses an opportunity that is not won is undocumented, so
    a caller must not rely on it.
    """
    return _generate(session, parameters, OPPORTUNITY, INVOICE)


def generate_order(session: Session, parameters: Parameters) -> EntityResult:
    """Create a sales order from an opportunity."""
    return _generate(session, parameters, OPPORTUNITY, ORDER)


def generate_quote(session: Session, parameters: Parameters) -> EntityResult:
    """Create a quote from an opportunity."""
    return _generate(session, parameters, OPPORTUNITY, QUOTE)


def convert_quote(session: Session, parameters: Parameters) -> EntityResult:
    """Create a sales order from a quote."""
    return _generate(session, parameters, QUOTE, ORDER)


def convert_order(session: Session, parameters: Parameters) -> EntityResult:
    """Create an invoice from a sales order, and set the order to Invoiced."""
    result = _generate(session, parameters, ORDER, INVOICE)
    closed = {"statecode": _INVOICED, "statuscode": 100003}
    session.change(ORDER.header, result.row["salesorderid"], closed)
    return result


_ID_PARAMETERS: Final = {
    OPPORTUNITY.header.name: "OpportunityId",
    QUOTE.header.name: "QuoteId",
    ORDER.header.name: "SalesOrderId",
}
_MESSAGES: Final = {
    ("opportunity", "invoice"): "GenerateInvoiceFromOpportunity",
    ("opportunity", "salesorder"): "GenerateSalesOrderFromOpportunity",
    ("opportunity", "quote"): "GenerateQuoteFromOpportunity",
    ("quote", "salesorder"): "ConvertQuoteToSalesOrder",
    ("salesorder", "invoice"): "ConvertSalesOrderToInvoice",
}


def _generate(session: Session, parameters: Parameters, source: Document, target: Document) -> EntityResult:
    name = _ID_PARAMETERS[source.header.name]
    message = _MESSAGES[source.header.name, target.header.name]
    try:
        source_id = guid(parameters.get(name))
    except InvalidValue as error:
        raise bad_payload(message, str(error)) from error
    columns = _column_set(target.header, parameters.get("ColumnSet"))
    row = _readable_source(session, source, target, source_id)
    made = _convert(session, row, source, target)
    session.fire(MessageExecution(message, "none", None, [(name, source_id)]))
    return EntityResult(target.header, made, columns)


def _readable_source(session: Session, source: Document, target: Document, source_id: str) -> Row:
    """Return the row to convert; refuse a caller without the privileges for the whole conversion."""
    for verb in ("Create", "Read", "Append", "AppendTo"):
        require(session.caller, verb, target.header)
    require(session.caller, "Read", source.header)
    row = session.find(source.header, source_id)
    for verb in ("Read", "AppendTo"):
        check_access(session.caller, source.header, verb, row)
    customer = session.target(source.header.columns["customerid"], row["customerid"] or "")
    if customer:
        check_access(session.caller, customer[0], "AppendTo", customer[1])
    if not row["pricelevelid"]:
        raise invalid_argument("A price list is mandatory: the opportunity has none.", "0x80100010")
    return row


_CARRIED: Final = frozenset(
    {
        "name",
        "description",
        "customerid",
        "transactioncurrencyid",
        "pricelevelid",
        "exchangerate",
        "discountamount",
        "discountpercentage",
        "freightamount",
        "paymenttermscode",
        "opportunityid",
        "quoteid",
        "salesorderid",
        *CUSTOM_COLUMNS,
    }
)


def _convert(session: Session, row: Row, source: Document, target: Document) -> Row:
    """Copy a header with its lines; the caller owns the copy."""
    values = {
        name: row[name]
        for name in source.header.stored.keys() & target.header.stored.keys()
        if name in _CARRIED or name.startswith(("billto_", "shipto_"))
    }
    values |= target.next_number(session) | {"ownerid": session.caller.user_id}
    values |= (
        dict.fromkeys(TOTALS, _ZERO) if prices_by_itself(session) else {name: row[name] for name in TOTALS}
    )
    if target is INVOICE:
        values |= customer_columns(session, source.header.columns["customerid"], row["customerid"])
        # The totals are calculated when the invoice is retrieved by its id.
        values["_totalspending"] = prices_by_itself(session)
    made = session.add(target.header, dict(sorted(values.items())))
    _copy_lines(session, source, target, made, source.lines_of(session, row[source.header.key]))
    if target is not INVOICE:
        reprice(session, target, made)
        made = session.find(target.header, made[target.header.key])
    _fire_create(session, target.header, made, values)
    return made


# The columns of a line that a conversion copies.
_LINE_COLUMNS: Final = (
    "productdescription",
    "description",
    "productname",
    "productid",
    "uomid",
    "quantity",
    "priceperunit",
    "volumediscountamount",
    "manualdiscountamount",
    "tax",
    "baseamount",
    "extendedamount",
    "lineitemnumber",
    "sequencenumber",
    "isproductoverridden",
    "ispriceoverridden",
    "producttypecode",
    "pricingerrorcode",
    "productassociationid",
    "transactioncurrencyid",
    "exchangerate",
)


def _copy_lines(session: Session, source: Document, target: Document, made: Row, lines: list[Row]) -> None:
    pricing = pricing_for(session, made["transactioncurrencyid"])
    calculates = prices_by_itself(session)
    copied: dict[str, str] = {}
    # Parts of a bundle refer to the bundle's line, so it is copied before them.
    for line in sorted(lines, key=lambda line: line["parentbundleid"] is not None):
        bundle = copied.get(line["parentbundleid"] or "")
        values = {name: line[name] for name in _LINE_COLUMNS}
        values |= pricing.line(values) if calculates else {}
        values |= {"parentbundleid": bundle, "parentbundleidref": bundle, "ownerid": made["ownerid"]}
        values[target.link] = made[target.header.key]
        if source is ORDER and target is INVOICE:
            values["salesorderdetailid"] = line[source.lines.key]
        copied[line[source.lines.key]] = session.add(target.lines, values)[target.lines.key]


def _fire_create(session: Session, table: Table, made: Row, values: Row) -> None:
    shown = {name: value for name, value in values.items() if not table.columns[name].secret}
    target = session.entity(table, made[table.key], shown)
    session.fire(MessageExecution("Create", table.name, made[table.key], [("Target", target)]))


def _column_set(table: Table, column_set: object) -> tuple[str, ...]:
    """Read a ColumnSet, which contains logical names."""
    every = tuple(name for name, column in table.columns.items() if not column.secret)
    if column_set is None:
        return every
    if not isinstance(column_set, Mapping) or not column_set.keys() <= {
        "AllColumns",
        "Columns",
        "@odata.type",
    }:
        raise bad_payload("ColumnSet", "The ColumnSet takes AllColumns and Columns.")
    if column_set.get("AllColumns"):
        return every
    names = column_set.get("Columns") or []
    if not isinstance(names, list):
        raise bad_payload("ColumnSet", "Columns is a collection of names.")
    for name in names:
        if name not in every:
            raise bad_request(
                f"'{table.name}' entity doesn't contain attribute with Name = '{name}' and NameMapping = 'Logical'.",
                "0x80041103",
            )
    return tuple(name for name in every if name in names or name == table.key)


SALES_ACTIONS: Final[Mapping[str, UnboundMessage]] = {
    "WinOpportunity": UnboundMessage(win_opportunity, frozenset({"OpportunityClose", "Status"})),
    "LoseOpportunity": UnboundMessage(lose_opportunity, frozenset({"OpportunityClose", "Status"})),
    "CancelSalesOrder": UnboundMessage(cancel_order, frozenset({"OrderClose", "Status"})),
    "FulfillSalesOrder": UnboundMessage(fulfill_order, frozenset({"OrderClose", "Status"})),
    "GenerateInvoiceFromOpportunity": UnboundMessage(
        generate_invoice, frozenset({"OpportunityId", "ColumnSet"})
    ),
    "GenerateSalesOrderFromOpportunity": UnboundMessage(
        generate_order, frozenset({"OpportunityId", "ColumnSet"})
    ),
    "GenerateQuoteFromOpportunity": UnboundMessage(generate_quote, frozenset({"OpportunityId", "ColumnSet"})),
    "ConvertQuoteToSalesOrder": UnboundMessage(convert_quote, frozenset({"QuoteId", "ColumnSet"})),
    "ConvertSalesOrderToInvoice": UnboundMessage(convert_order, frozenset({"SalesOrderId", "ColumnSet"})),
}
