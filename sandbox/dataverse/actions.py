"""The messages of Sales and the platform beyond create, read, update and delete.

Each takes a session and the parameters as JSON has them, and returns what the Web API answers with.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from sandbox.dataverse.errors import bad_payload, bad_request, invalid_argument, no_property, no_record
from sandbox.dataverse.events import Entity, Event, OptionSet
from sandbox.dataverse.payload import parse_entity, parse_reference
from sandbox.dataverse.schema import TABLES, InvalidValueError, Row, Table, guid
from sandbox.dataverse.security import (
    Depth,
    check_access,
    load_caller,
    require,
    role_privileges,
)
from sandbox.dataverse.service import LOST, OPEN, WON, Session, access_rights

_ZERO: Final = Decimal(0)
_STATE_OF_REASON: Final = {1: OPEN, 2: OPEN, 3: WON, 4: LOST, 5: LOST}


@dataclass(frozen=True)
class EntityAnswer:
    """A row as the answer of an action: these columns of it."""

    table: Table
    row: Row
    columns: tuple[str, ...]


Parameters = Mapping[str, Any]
Answer = EntityAnswer | dict[str, object] | None
Action = Callable[[Session, Parameters], Answer]
BoundAction = Callable[[Session, Row, Parameters], Answer]


# --- closing opportunities ----------------------------------------------------------------------------------


def win_opportunity(session: Session, parameters: Parameters) -> None:
    """Close an open opportunity as won."""
    _close_opportunity(session, parameters, "Win", WON, 3)


def lose_opportunity(session: Session, parameters: Parameters) -> None:
    """Close an open opportunity as lost."""
    _close_opportunity(session, parameters, "Lose", LOST, 4)


def _close_opportunity(
    session: Session, parameters: Parameters, message: str, state: int, reason: int
) -> None:
    table, close_table = TABLES["opportunity"], TABLES["opportunityclose"]
    body = parameters.get("OpportunityClose")
    if not isinstance(body, Mapping):
        raise invalid_argument("Required field 'OpportunityClose' is missing")
    close = parse_entity(close_table, body)
    opportunity_id = close.get("opportunityid")
    if not opportunity_id:
        raise invalid_argument("The opportunityclose names no opportunity: opportunityid is missing.")
    opportunity = session.find(table, str(opportunity_id))
    check_access(session.caller, table, "Write", opportunity)
    status = parameters.get("Status", -1)
    status = reason if status == -1 else status
    if opportunity["statecode"] != OPEN:
        # The text is the real service's; that this is its code is not confirmed.
        raise invalid_argument("The opportunity is already closed.", "0x80040203")
    if (
        isinstance(status, bool)
        or _STATE_OF_REASON.get(status, state) != state
        or not isinstance(status, int)
    ):
        raise invalid_argument(
            f"{status} is not a valid status code for state code {state} on opportunity.", "0x80048408"
        )
    _close(session, opportunity, close, Closing(message, state, status))


@dataclass(frozen=True)
class Closing:
    """How an opportunity is closed."""

    message: str
    state: int
    status: int


def _close(session: Session, opportunity: Row, close: Row, closing: Closing) -> None:
    close_id = close.get("activityid") or session.organization.new_id()
    inputs = [
        ("OpportunityClose", Entity(TABLES["opportunityclose"], close_id, {**close, "activityid": close_id})),
        ("Status", OptionSet(closing.status)),
    ]
    event = Event(closing.message, "opportunity", opportunity["opportunityid"], inputs)
    session.parents.append(event)
    revenue = close.get("actualrevenue")
    if revenue is None and closing.state == WON:
        revenue = opportunity["totalamount"] or opportunity["estimatedvalue"]
    row = {"subject": f"Opportunity {closing.message}", "actualend": session.now, "actualrevenue": revenue}
    row |= {"transactioncurrencyid": opportunity["transactioncurrencyid"]}
    session.create(TABLES["opportunityclose"], {**row, **close, "activityid": close_id})
    session.change(
        TABLES["opportunity"],
        opportunity["opportunityid"],
        {
            "statecode": closing.state,
            "statuscode": closing.status,
            "actualclosedate": (close.get("actualend") or session.now)[:10],
            "actualvalue": revenue,
        },
    )
    session.parents.pop()
    session.fire(event)


# --- invoices -----------------------------------------------------------------------------------------------


def generate_invoice(session: Session, parameters: Parameters) -> EntityAnswer:
    """Make an invoice out of an opportunity; asked twice, it makes two, as the real one does.

    The state of the opportunity is not looked at: what the real service does with one that is not won is
    undocumented, and a caller that relies on a refusal must not be lulled.
    """
    invoices, opportunities = TABLES["invoice"], TABLES["opportunity"]
    try:
        opportunity_id = guid(parameters.get("OpportunityId"))
    except InvalidValueError as error:
        raise bad_payload("GenerateInvoiceFromOpportunity", str(error)) from error
    columns = _column_set(invoices, parameters.get("ColumnSet"))
    for verb in ("Create", "Read", "Append", "AppendTo"):
        require(session.caller, verb, invoices)
    require(session.caller, "Read", opportunities)
    opportunity = session.find(opportunities, opportunity_id)
    for verb in ("Read", "AppendTo"):
        check_access(session.caller, opportunities, verb, opportunity)
    customer = session.target(opportunities.columns["customerid"], opportunity["customerid"] or "")
    if customer:
        check_access(session.caller, customer[0], "AppendTo", customer[1])
    if not opportunity["pricelevelid"]:
        raise invalid_argument("A price list is mandatory: the opportunity has none.", "0x80100010")
    invoice = _copy_invoice(session, opportunity)
    session.fire(Event("GenerateInvoiceFromOpportunity", "none", None, [("OpportunityId", opportunity_id)]))
    return EntityAnswer(invoices, invoice, columns)


_COPIED_TERMS: Final = (
    "name",
    "customerid",
    "transactioncurrencyid",
    "pricelevelid",
    "exchangerate",
    "discountamount",
    "discountpercentage",
    "freightamount",
    "opportunityid",
)
_COPIED_LINE: Final = (
    "productid",
    "productdescription",
    "productname",
    "description",
    "quantity",
    "priceperunit",
    "manualdiscountamount",
    "tax",
    "baseamount",
    "extendedamount",
    "lineitemnumber",
    "sequencenumber",
    "isproductoverridden",
    "ispriceoverridden",
    "transactioncurrencyid",
)


def _copy_invoice(session: Session, opportunity: Row) -> Row:
    number = 1000 + session.transaction.next_number("invoice") - 1
    suffix = session.organization.new_id().replace("-", "")[:6].upper()
    values = {name: opportunity[name] for name in _COPIED_TERMS}
    # Calculated when the invoice is retrieved by itself.
    values |= dict.fromkeys(_TOTALS, _ZERO) | {"_totalspending": True}
    values["invoicenumber"] = f"INV-{number:05d}-{suffix}"
    invoice = session.add(TABLES["invoice"], values)
    lines = session.transaction.rows(
        TABLES["opportunityproduct"],
        "opportunityid = ?",
        (opportunity["opportunityid"],),
        "ORDER BY lineitemnumber, opportunityproductid",
    )
    for line in lines:
        copied = {name: line[name] for name in _COPIED_LINE}
        session.add(TABLES["invoicedetail"], {**copied, "invoiceid": invoice["invoiceid"]})
    target = {name: value for name, value in values.items() if not TABLES["invoice"].columns[name].secret}
    session.fire(
        Event(
            "Create",
            "invoice",
            invoice["invoiceid"],
            [("Target", Entity(TABLES["invoice"], invoice["invoiceid"], target))],
        )
    )
    return invoice


_TOTALS: Final = (
    "totalamount",
    "totalamountlessfreight",
    "totaldiscountamount",
    "totallineitemamount",
    "totallineitemdiscountamount",
    "totaltax",
)


def calculate_totals(session: Session, invoice: Row) -> Row:
    """Calculate an invoice's totals from its lines, as its retrieval does; returns the row as it is then."""
    currency = session.transaction.get(TABLES["transactioncurrency"], invoice["transactioncurrencyid"] or "")
    precision = Decimal(1).scaleb(-(currency["currencyprecision"] if currency else 2))
    lines = session.transaction.rows(TABLES["invoicedetail"], "invoiceid = ?", (invoice["invoiceid"],))
    amounts = totals(invoice, lines, precision)
    session.transaction.update(TABLES["invoice"], invoice["invoiceid"], {**amounts, "_totalspending": False})
    return session.find(TABLES["invoice"], invoice["invoiceid"])


def totals(header: Row, lines: list[Row], precision: Decimal) -> dict[str, Decimal]:
    """Add lines, discounts, freight and tax up, rounded to the currency's precision."""
    items, line_discount, tax = _ZERO, _ZERO, _ZERO
    for line in lines:
        amount = (line["priceperunit"] or _ZERO) * (line["quantity"] or _ZERO)
        items += (amount - (line["manualdiscountamount"] or _ZERO)).quantize(precision, ROUND_HALF_EVEN)
        line_discount += line["manualdiscountamount"] or _ZERO
        tax += line["tax"] or _ZERO
    percentage = (header["discountpercentage"] or _ZERO) / 100
    discount = ((header["discountamount"] or _ZERO) + items * percentage).quantize(precision, ROUND_HALF_EVEN)
    less_freight = items - discount
    return {
        "totallineitemamount": items,
        "totallineitemdiscountamount": line_discount,
        "totaldiscountamount": discount + line_discount,
        "totalamountlessfreight": less_freight,
        "totaltax": tax,
        "totalamount": less_freight + (header["freightamount"] or _ZERO) + tax,
    }


def _column_set(table: Table, column_set: object) -> tuple[str, ...]:
    """Read a ColumnSet; its names are logical ones."""
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


# --- the platform -------------------------------------------------------------------------------------------


def who_am_i(session: Session, _: Parameters) -> dict[str, object]:
    """Tell the caller who it is."""
    return {
        "BusinessUnitId": session.caller.business_unit_id,
        "UserId": session.caller.user_id,
        "OrganizationId": session.organization.id,
    }


def add_privileges_role(session: Session, role: Row, parameters: Parameters) -> None:
    """Grant privileges to a role; whether the real one raises a lesser depth is not confirmed: this does."""
    check_access(session.caller, TABLES["role"], "Write", role)
    granted = parameters.get("Privileges")
    if not isinstance(granted, list):
        raise bad_payload("role", "Privileges is a collection of RolePrivilege.")
    depths = {depth.word: depth for depth in Depth}
    for item in granted:
        depth = depths.get(str(item.get("Depth"))) if isinstance(item, Mapping) else None
        if depth is None:
            raise bad_payload("role", "Depth is one of 'Basic', 'Local', 'Deep' and 'Global'.")
        privilege = session.find(TABLES["privilege"], _guid(item.get("PrivilegeId")))
        grant(session, role["roleid"], privilege["privilegeid"], depth)


def grant(session: Session, role_id: str, privilege_id: str, depth: Depth) -> None:
    """Give a privilege to a role, or another depth."""
    table = TABLES["roleprivileges"]
    there = session.transaction.rows(table, "roleid = ? AND privilegeid = ?", (role_id, privilege_id))
    if there:
        session.transaction.update(table, there[0][table.key], {"privilegedepthmask": int(depth)})
    else:
        session.add(table, {"roleid": role_id, "privilegeid": privilege_id, "privilegedepthmask": int(depth)})


def remove_privilege_role(session: Session, role: Row, parameters: Parameters) -> None:
    """Take a privilege from a role."""
    check_access(session.caller, TABLES["role"], "Write", role)
    table = TABLES["roleprivileges"]
    privilege_id = _guid(parameters.get("PrivilegeId"))
    for row in session.transaction.rows(
        table, "roleid = ? AND privilegeid = ?", (role["roleid"], privilege_id)
    ):
        session.transaction.delete(table, row)


def retrieve_role_privileges(session: Session, parameters: Parameters) -> dict[str, object]:
    """List the privileges of a role."""
    role = session.retrieve(TABLES["role"], _guid(parameters.get("RoleId")))
    return _privileges(session, role_privileges(session.transaction, role["roleid"]), role["businessunitid"])


def retrieve_user_privileges(session: Session, user: Row, parameters: Parameters) -> dict[str, object]:
    """List those of the named privileges that a user has."""
    names = parameters.get("PrivilegeNames")
    if not isinstance(names, list):
        raise bad_request("PrivilegeNames is a collection of names.")
    depths = load_caller(session.transaction, user, session.organization.id).depths
    held = {name: depths[name] for name in names if name in depths}
    return _privileges(session, held, user["businessunitid"])


def _privileges(session: Session, depths: Mapping[str, Depth], unit: str) -> dict[str, object]:
    ids = {row["name"]: row["privilegeid"] for row in session.transaction.rows(TABLES["privilege"])}
    return {
        "RolePrivileges": [
            {"Depth": depth.word, "PrivilegeId": ids[name], "BusinessUnitId": unit, "PrivilegeName": name}
            for name, depth in depths.items()
        ]
    }


def retrieve_principal_access(session: Session, user: Row, parameters: Parameters) -> dict[str, object]:
    """Tell what a user may do with one row."""
    target = parameters.get("Target")
    if isinstance(target, str):
        target = json.loads(target.replace("'", '"'))
    table, record_id = parse_reference((target or {}).get("@odata.id"))
    row = session.transaction.get(table, record_id)
    if row is None:
        raise no_record(table.name, record_id)
    caller = load_caller(session.transaction, user, session.organization.id)
    return {"AccessRights": ", ".join(access_rights(caller, table, row)) or "None"}


def trigger_service_endpoint_check(session: Session, endpoint: Row, _: Parameters) -> None:
    """Post a probe to a service endpoint, later."""
    check_access(session.caller, TABLES["serviceendpoint"], "Read", endpoint)
    session.organization.pipeline.check_endpoint(session.transaction, endpoint, session.surroundings)


def _guid(value: object) -> str:
    try:
        return guid(value)
    except InvalidValueError as error:
        raise bad_request(str(error)) from error


def check_known_parameters(name: str, known: frozenset[str], parameters: Parameters) -> None:
    """Refuse parameters that the message does not have."""
    for parameter in parameters:
        if parameter not in known and not parameter.startswith("@odata."):
            raise no_property(parameter, name)


@dataclass(frozen=True)
class Operation:
    """An action (POST, may change things) or a function (GET), and the parameters that it takes."""

    run: Action
    parameters: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BoundOperation:
    """An action or a function bound to a row of a table."""

    table: str
    run: BoundAction
    parameters: frozenset[str] = frozenset()


ACTIONS: Final[Mapping[str, Operation]] = {
    "WinOpportunity": Operation(win_opportunity, frozenset({"OpportunityClose", "Status"})),
    "LoseOpportunity": Operation(lose_opportunity, frozenset({"OpportunityClose", "Status"})),
    "GenerateInvoiceFromOpportunity": Operation(generate_invoice, frozenset({"OpportunityId", "ColumnSet"})),
}
FUNCTIONS: Final[Mapping[str, Operation]] = {
    "WhoAmI": Operation(who_am_i),
    "RetrieveRolePrivilegesRole": Operation(retrieve_role_privileges, frozenset({"RoleId"})),
}
BOUND_ACTIONS: Final[Mapping[str, BoundOperation]] = {
    "AddPrivilegesRole": BoundOperation("role", add_privileges_role, frozenset({"Privileges"})),
    "RemovePrivilegeRole": BoundOperation("role", remove_privilege_role, frozenset({"PrivilegeId"})),
    "TriggerServiceEndpointCheck": BoundOperation("serviceendpoint", trigger_service_endpoint_check),
}
BOUND_FUNCTIONS: Final[Mapping[str, BoundOperation]] = {
    "RetrieveUserSetOfPrivilegesByNames": BoundOperation(
        "systemuser", retrieve_user_privileges, frozenset({"PrivilegeNames"})
    ),
    "RetrievePrincipalAccess": BoundOperation("systemuser", retrieve_principal_access, frozenset({"Target"})),
}
