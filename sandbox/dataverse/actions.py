"""The messages of Sales: closing opportunities and orders, conversions between them, quotes and invoices.

Each takes a session and the parameters from the JSON body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Final

from sandbox.dataverse.columns import InvalidValue, Row, Table, guid
from sandbox.dataverse.errors import bad_payload, bad_request, invalid_argument
from sandbox.dataverse.execution_context import Entity, MessageExecution, OptionSet
from sandbox.dataverse.payload import parse_entity
from sandbox.dataverse.sales_rules import (
    INVOICE,
    LOST,
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
from sandbox.dataverse.sales_tables import CUSTOM_COLUMNS, LINE_COLUMNS, TOTALS
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import check_access, require
from sandbox.dataverse.service import EntityResult, Parameters, SdkMessage, Session

_ZERO: Final = Decimal(0)
_CANCELED, _FULFILLED, _INVOICED = 2, 3, 4


# --- closing opportunities and orders -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Closing:
    """How a row is closed, and the activity that closes it; `reason` is the status reason if the caller names none."""

    message: str
    table: Table
    activity: Table
    parameter: str
    state: int
    reason: int


def _close(closing: _Closing, session: Session, parameters: Parameters) -> None:
    """Close an open row, with an activity that names it."""
    table = closing.table
    close = _activity(closing, parameters)
    row = session.find(table, str(close[table.key]))
    check_access(session.caller, table, "Write", row)
    if row["statecode"] in _CLOSED[table.name]:
        # The text for opportunities is the real service's; the codes and the text for orders are not confirmed.
        raise invalid_argument(f"The {_WORDS[table.name]} is already closed.")
    reason = _reason(closing, parameters)
    close["activityid"] = close.get("activityid") or session.organization.new_id()
    inputs = [
        (closing.parameter, Entity(closing.activity, close["activityid"], dict(close))),
        ("Status", OptionSet(reason)),
    ]
    event = MessageExecution(closing.message, table.name, row[table.key], inputs)
    close["actualend"] = close.get("actualend") or session.now[:10]
    change: Row = {"statecode": closing.state, "statuscode": reason}
    if table is OPPORTUNITY.header:
        _complete(close, change, row)
    session.parents.append(event)
    session.create(closing.activity, close)
    session.change(table, row[table.key], change)
    session.parents.pop()
    session.fire(event)


def _complete(close: Row, change: Row, opportunity: Row) -> None:
    """Add the columns that an opportunity and its closing activity have in common."""
    is_won = change["statecode"] == WON
    revenue = close.get("actualrevenue")
    if revenue is None and is_won:
        revenue = opportunity["totalamount"] or opportunity["estimatedvalue"]
    close.setdefault("subject", f"Opportunity {'Win' if is_won else 'Lose'}")
    close |= {
        "actualrevenue": revenue,
        "opportunitystatecode": change["statecode"],
        "opportunitystatuscode": change["statuscode"],
        "transactioncurrencyid": opportunity["transactioncurrencyid"],
        "exchangerate": opportunity["exchangerate"],
    }
    change |= {"actualclosedate": close["actualend"], "actualvalue": revenue}


def _activity(closing: _Closing, parameters: Parameters) -> Row:
    """Read the activity that closes a row; it must name the row."""
    body = parameters.get(closing.parameter)
    if not isinstance(body, Mapping):
        raise invalid_argument(f"Required field '{closing.parameter}' is missing")
    close = parse_entity(closing.activity, body)
    if not close.get(closing.table.key):
        raise invalid_argument(
            f"The {closing.activity.name} names no {closing.table.name}: {closing.table.key} is missing."
        )
    return close


def _reason(closing: _Closing, parameters: Parameters) -> int:
    reason = parameters.get("Status", -1)
    if reason == -1:
        return closing.reason
    states = closing.table.columns["statuscode"].states
    # The sandbox does not know reasons that an organization adds.
    if (
        isinstance(reason, bool)
        or not isinstance(reason, int)
        or states.get(reason, closing.state) != closing.state
    ):
        raise invalid_argument(
            f"{reason} is not a valid status code for state code {closing.state} on {closing.table.name}.",
            "0x80048408",
        )
    return reason


_CLOSED: Final = {"opportunity": (WON, LOST), "salesorder": (_CANCELED, _FULFILLED, _INVOICED)}
_WORDS: Final = {"opportunity": "opportunity", "salesorder": "sales order"}
_BY_OPPORTUNITY_CLOSE: Final = (OPPORTUNITY.header, TABLES["opportunityclose"], "OpportunityClose")
_BY_ORDER_CLOSE: Final = (ORDER.header, TABLES["orderclose"], "OrderClose")
win_opportunity: Final = partial(_close, _Closing("Win", *_BY_OPPORTUNITY_CLOSE, WON, 3))
lose_opportunity: Final = partial(_close, _Closing("Lose", *_BY_OPPORTUNITY_CLOSE, LOST, 4))
_cancel_order: Final = partial(_close, _Closing("Cancel", *_BY_ORDER_CLOSE, _CANCELED, 4))
_fulfill_order: Final = partial(_close, _Closing("Fulfill", *_BY_ORDER_CLOSE, _FULFILLED, 100001))


# --- conversions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conversion:
    """A message that creates a document from another one, whose id is its parameter."""

    message: str
    source: Document
    target: Document

    @property
    def parameter(self) -> str:
        return _ID_PARAMETERS[self.source.header.name]


_ID_PARAMETERS: Final = {"opportunity": "OpportunityId", "quote": "QuoteId", "salesorder": "SalesOrderId"}
_CONVERSIONS: Final = (
    _Conversion("GenerateInvoiceFromOpportunity", OPPORTUNITY, INVOICE),
    _Conversion("GenerateSalesOrderFromOpportunity", OPPORTUNITY, ORDER),
    _Conversion("GenerateQuoteFromOpportunity", OPPORTUNITY, QUOTE),
    _Conversion("ConvertQuoteToSalesOrder", QUOTE, ORDER),
    _Conversion("ConvertSalesOrderToInvoice", ORDER, INVOICE),
)


def _generate(conversion: _Conversion, session: Session, parameters: Parameters) -> EntityResult:
    """Create a document from another one. Like Dataverse, a second call creates a second one.

    The opportunity's state is not checked. Whether Dataverse refuses an opportunity that is not won is undocumented, so
    a caller must not rely on it.
    """
    source, target = conversion.source, conversion.target
    try:
        source_id = guid(parameters.get(conversion.parameter))
    except InvalidValue as error:
        raise bad_payload(conversion.message, str(error)) from error
    columns = _column_set(target.header, parameters.get("ColumnSet"))
    row = _readable_source(session, source, target, source_id)
    made = _convert(session, row, source, target)
    session.fire(MessageExecution(conversion.message, "none", None, [(conversion.parameter, source_id)]))
    if source is ORDER:
        session.change(ORDER.header, source_id, {"statecode": _INVOICED, "statuscode": 100003})
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


_CARRIED: Final = frozenset(CUSTOM_COLUMNS) | {
    "name", "description", "customerid", "opportunityid", "quoteid", "salesorderid", "transactioncurrencyid",
    "exchangerate", "pricelevelid", "discountamount", "discountpercentage", "freightamount", "paymenttermscode",
}  # fmt: skip


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
    values |= customer_columns(session, target.header, values)
    if target is INVOICE:
        # The totals are calculated when the invoice is retrieved by its id.
        values["_totalspending"] = prices_by_itself(session)
    made = session.add(target.header, dict(sorted(values.items())))
    _copy_lines(session, source, target, made, source.lines_of(session, row[source.header.key]))
    if target is not INVOICE:
        reprice(session, target, made)
        made = session.find(target.header, made[target.header.key])
    _fire_create(session, target.header, made, values)
    return made


def _copy_lines(session: Session, source: Document, target: Document, made: Row, lines: list[Row]) -> None:
    pricing = pricing_for(session, made["transactioncurrencyid"])
    calculates = prices_by_itself(session)
    copied: dict[str, str] = {}
    # Parts of a bundle refer to the bundle's line, so it is copied before them.
    for line in sorted(lines, key=lambda line: line["parentbundleid"] is not None):
        bundle = copied.get(line["parentbundleid"] or "")
        values = {name: line[name] for name in LINE_COLUMNS}
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


SALES_ACTIONS: Final[Mapping[str, SdkMessage]] = {
    "WinOpportunity": SdkMessage(win_opportunity, frozenset({"OpportunityClose", "Status"})),
    "LoseOpportunity": SdkMessage(lose_opportunity, frozenset({"OpportunityClose", "Status"})),
    "CancelSalesOrder": SdkMessage(_cancel_order, frozenset({"OrderClose", "Status"})),
    "FulfillSalesOrder": SdkMessage(_fulfill_order, frozenset({"OrderClose", "Status"})),
    **{
        conversion.message: SdkMessage(
            partial(_generate, conversion), frozenset({conversion.parameter, "ColumnSet"})
        )
        for conversion in _CONVERSIONS
    },
}
