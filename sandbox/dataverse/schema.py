"""The tables of the organization, as data.

One declaration per table, in Dataverse's logical names; everything else (SQL, OData, privileges, annotations)
is derived from it. What a table *does* is elsewhere.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any, Final

Row = dict[str, Any]
"""A row by logical names: str, int, bool, Decimal or None; ids and dates are strings in one fixed form."""

_GUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z")
_DATE_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_INT32 = range(-(2**31), 2**31)


class Kind(Enum):
    """What a column holds."""

    ID = "Edm.Guid"
    LOOKUP = "Microsoft.Dynamics.CRM.lookup"
    TEXT = "Edm.String"
    INTEGER = "Edm.Int32"
    VERSION = "Edm.Int64"
    CHOICE = "Microsoft.Dynamics.CRM.choice"
    BOOLEAN = "Edm.Boolean"
    MONEY = "Microsoft.Dynamics.CRM.money"
    DECIMAL = "Edm.Decimal"
    DATE = "Edm.Date"
    DATETIME = "Edm.DateTimeOffset"


# Exact amounts are stored as scaled 64-bit integers, as SQL Server's `money` is: they sort, compare and add up.
_SCALE: Final = {Kind.MONEY: 4, Kind.DECIMAL: 10}


class InvalidValueError(ValueError):
    """A value that does not fit its column; the text says why."""


@dataclass(frozen=True)
class Lookup:
    """Where a lookup leads: table → navigation property, and the collections that lead back."""

    targets: Mapping[str, str]
    collections: Mapping[str, str] = field(default_factory=dict)
    on_delete: str = "remove link"


@dataclass(frozen=True)
class Column:
    """A column; `writable` is about callers of the Web API, `secret` ones are never given out.

    `unique`: no two rows have the same value, other than none.
    """

    name: str
    kind: Kind
    writable: bool = True
    secret: bool = False
    unique: bool = False
    default: object = None
    labels: Mapping[int, str] = field(default_factory=dict)
    lookup: Lookup | None = None

    @property
    def wire_name(self) -> str:
        """The property by which the Web API gives the column out."""
        return f"_{self.name}_value" if self.kind is Kind.LOOKUP else self.name

    def parse(self, value: object) -> object:
        """Turn a JSON value into what a row holds. Raises InvalidValueError."""
        if value is None:
            return None
        return _PARSERS[self.kind](self, value)

    def exact(self, value: object) -> object:
        """Give an amount all the digits of its kind."""
        return value.quantize(Decimal(1).scaleb(-_SCALE[self.kind])) if isinstance(value, Decimal) else value

    def to_sql(self, value: object) -> object:
        """Turn what a row holds into what SQLite stores."""
        if isinstance(value, Decimal):
            return int(value.scaleb(_SCALE[self.kind]).to_integral_value())
        return int(value) if isinstance(value, bool) else value

    def from_sql(self, value: Any) -> object:  # noqa: ANN401 - whatever SQLite has
        """Turn what SQLite stores into what a row holds."""
        if value is None:
            return None
        if self.kind in _SCALE:
            return Decimal(value).scaleb(-_SCALE[self.kind])
        return bool(value) if self.kind is Kind.BOOLEAN else value


@dataclass(frozen=True)
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
        return next(column.name for column in self.columns.values() if column.kind is Kind.ID)

    @cached_property
    def by_wire_name(self) -> Mapping[str, Column]:
        """The columns that are given out, by their Web API properties."""
        return {column.wire_name: column for column in self.columns.values() if not column.secret}

    @cached_property
    def navigation(self) -> Mapping[str, tuple[Column, str]]:
        """The single-valued navigation properties: the lookup and the table that it leads to."""
        return {
            navigation: (column, target)
            for column in self.columns.values()
            if column.lookup
            for target, navigation in column.lookup.targets.items()
        }

    @cached_property
    def converted(self) -> tuple[Column, ...]:
        """The columns whose stored form differs from the row's."""
        return tuple(c for c in self.columns.values() if c.kind in _SCALE or c.kind is Kind.BOOLEAN)


def guid(text: object) -> str:
    """Normalise a GUID to lower case. Raises InvalidValueError."""
    if not isinstance(text, str) or not _GUID.match(text):
        raise InvalidValueError(f"Cannot convert the literal '{text}' to the expected type 'Edm.Guid'.")
    return text.lower()


def format_datetime(moment: datetime) -> str:
    """Write a moment as columns hold it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(_DATE_FORMAT)


def parse_datetime(text: object) -> str:
    """Read a date or a moment (without offset: UTC) into the form that columns hold."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise InvalidValueError(
            f"Cannot convert the literal '{text}' to the expected type 'Edm.DateTimeOffset'."
        ) from error
    return format_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _parse_text(column: Column, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(
            f"Cannot convert a value of '{column.name}' to the expected type 'Edm.String'."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"The text of '{column.name}' is not valid Unicode.") from error
    return value


def _parse_integer(column: Column, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT32:
        raise InvalidValueError(
            f"Cannot convert a value of '{column.name}' to the expected type 'Edm.Int32'."
        )
    return value


def _parse_boolean(column: Column, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError(
            f"Cannot convert a value of '{column.name}' to the expected type 'Edm.Boolean'."
        )
    return value


def _parse_amount(column: Column, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidValueError(
            f"Cannot convert a value of '{column.name}' to the expected type 'Edm.Decimal'."
        )
    amount = Decimal(value)
    # Both kinds are 64-bit integers underneath; Dataverse's own bounds are a little tighter.
    if not amount.is_finite() or abs(amount) > Decimal(2**63 - 1).scaleb(-_SCALE[column.kind]):
        raise InvalidValueError(f"A value of '{column.name}' is out of range.")
    return amount.quantize(Decimal(1).scaleb(-_SCALE[column.kind]))


_PARSERS: Final[Mapping[Kind, Any]] = {
    Kind.ID: lambda _, value: guid(value),
    Kind.LOOKUP: lambda _, value: guid(value),
    Kind.TEXT: _parse_text,
    Kind.INTEGER: _parse_integer,
    Kind.VERSION: _parse_integer,
    Kind.CHOICE: _parse_integer,
    Kind.BOOLEAN: _parse_boolean,
    Kind.MONEY: _parse_amount,
    Kind.DECIMAL: _parse_amount,
    Kind.DATE: lambda _, value: parse_datetime(value)[:10],
    Kind.DATETIME: lambda _, value: parse_datetime(value),
}


# --- How the tables below are written ---------------------------------------------------------------------


def _plain(kind: Kind, names: str, **options: Any) -> list[Column]:  # noqa: ANN401 - passed on to Column
    return [Column(name, kind, **options) for name in names.split()]


def _text(names: str, **options: Any) -> list[Column]:  # noqa: ANN401
    return _plain(Kind.TEXT, names, **options)


def _money(names: str, **options: Any) -> list[Column]:  # noqa: ANN401
    return _plain(Kind.MONEY, names, **options)


def _choice(name: str, labels: Mapping[int, str], default: int | None = None) -> list[Column]:
    return [Column(name, Kind.CHOICE, labels=labels, default=default)]


def _lookup(name: str, target: str, collection: str = "", on_delete: str = "remove link") -> list[Column]:
    collections = {target: collection} if collection else {}
    return [Column(name, Kind.LOOKUP, lookup=Lookup({target: name}, collections, on_delete))]


def _polymorphic(
    name: str, targets: str, collections: Mapping[str, str] | None = None, on_delete: str = "remove link"
) -> list[Column]:
    navigation = {target: f"{name}_{target}" for target in targets.split()}
    return [Column(name, Kind.LOOKUP, lookup=Lookup(navigation, collections or {}, on_delete))]


def _state(states: Mapping[int, str], reasons: Mapping[int, str], default: tuple[int, int]) -> list[Column]:
    return _choice("statecode", states, default[0]) + _choice("statuscode", reasons, default[1])


_HISTORY = [
    *_plain(Kind.DATETIME, "createdon modifiedon", writable=False),
    Column("createdby", Kind.LOOKUP, writable=False, lookup=Lookup({"systemuser": "createdby"})),
    Column("modifiedby", Kind.LOOKUP, writable=False, lookup=Lookup({"systemuser": "modifiedby"})),
]
_OWNERSHIP = [
    Column("ownerid", Kind.LOOKUP, lookup=Lookup({"systemuser": "ownerid"})),
    Column(
        "owningbusinessunit",
        Kind.LOOKUP,
        writable=False,
        lookup=Lookup({"businessunit": "owningbusinessunit"}),
    ),
]
_ACTIVE = _state({0: "Active", 1: "Inactive"}, {1: "Active", 2: "Inactive"}, (0, 1))


def _table(
    name: str,
    set_name: str,
    *columns: list[Column],
    privilege: str,
    code: int,
    owned: bool = False,
    key: str | None = None,
    primary_name: str = "name",
    history: bool = True,
) -> Table:
    every = [Column(key or f"{name}id", Kind.ID)]
    every += [column for group in columns for column in group]
    every += _HISTORY if history else []
    every += _OWNERSHIP if owned else []
    every.append(Column("versionnumber", Kind.VERSION, writable=False))
    return Table(name, set_name, {c.name: c for c in every}, privilege, owned, primary_name, code)


# --- Sales --------------------------------------------------------------------------------------------------

_TOTALS = _money(
    "totalamount totalamountlessfreight totaldiscountamount totallineitemamount totallineitemdiscountamount "
    "totaltax",
    writable=False,
)
_TERMS = [
    *_money("discountamount freightamount"),
    *_plain(Kind.DECIMAL, "discountpercentage"),
    *_plain(Kind.DECIMAL, "exchangerate", writable=False),
    *_choice("pricingerrorcode", {0: "None", 1: "Detail Error", 6: "Missing Price Level"}, 0),
    *_lookup("pricelevelid", "pricelevel"),
    *_lookup("transactioncurrencyid", "transactioncurrency"),
]
_ADDRESS = _text(
    "billto_name billto_line1 billto_line2 billto_city billto_postalcode billto_country "
    "shipto_name shipto_line1 shipto_line2 shipto_city shipto_postalcode shipto_country"
)
_LINE = [
    *_text("productdescription description productname"),
    *_money("priceperunit manualdiscountamount tax"),
    *_money("baseamount extendedamount", writable=False),
    *_plain(Kind.DECIMAL, "quantity"),
    *_plain(Kind.INTEGER, "lineitemnumber sequencenumber"),
    *_plain(Kind.BOOLEAN, "isproductoverridden ispriceoverridden", default=False),
    *_lookup("productid", "product"),
    *_lookup("transactioncurrencyid", "transactioncurrency"),
]


def _customer(collections: str) -> list[Column]:
    return _polymorphic(
        "customerid",
        "account contact",
        {"account": f"{collections}_accounts", "contact": f"{collections}_contacts"},
    )


_SALES = (
    _table(
        "opportunity", "opportunities",
        _text("name description emailaddress stepname"),
        _money("estimatedvalue actualvalue budgetamount"), _TOTALS, _TERMS,
        _plain(Kind.DATE, "estimatedclosedate actualclosedate"),
        _plain(Kind.INTEGER, "closeprobability"),
        _plain(Kind.BOOLEAN, "isrevenuesystemcalculated", default=True),
        _customer("opportunity_customer"),
        _lookup("parentaccountid", "account"), _lookup("parentcontactid", "contact"),
        _state(
            {0: "Open", 1: "Won", 2: "Lost"},
            {1: "In Progress", 2: "On Hold", 3: "Won", 4: "Canceled", 5: "Out-Sold"},
            (0, 1),
        ),
        privilege="Opportunity", code=3, owned=True,
    ),
    _table(
        "opportunityproduct", "opportunityproducts", _LINE,
        _lookup("opportunityid", "opportunity", "product_opportunities", "cascade"),
        privilege="Opportunity", code=1083, owned=True, primary_name="productdescription",
    ),
    _table(
        "opportunityclose", "opportunitycloses",
        _text("subject description"), _money("actualrevenue"), _plain(Kind.DATETIME, "actualend"),
        _lookup("opportunityid", "opportunity", "opportunity_OpportunityClose", "cascade"),
        _lookup("transactioncurrencyid", "transactioncurrency"),
        _state({0: "Open", 1: "Completed", 2: "Canceled"}, {1: "Open", 2: "Completed", 3: "Canceled"}, (1, 2)),
        privilege="Activity", code=4208, owned=True, key="activityid", primary_name="subject",
    ),
    _table(
        "quote", "quotes",
        _text("name quotenumber description"), _TOTALS, _TERMS, _ADDRESS, _customer("quote_customer"),
        _lookup("opportunityid", "opportunity", "opportunity_quotes"),
        _state(
            {0: "Draft", 1: "Active", 2: "Won", 3: "Closed"},
            {1: "In Progress", 2: "In Progress", 3: "Open", 4: "Won", 5: "Lost", 6: "Canceled", 7: "Revised"},
            (0, 1),
        ),
        privilege="Quote", code=1084, owned=True,
    ),
    _table(
        "salesorder", "salesorders",
        _text("name ordernumber description"), _TOTALS, _TERMS, _ADDRESS, _customer("order_customer"),
        _lookup("opportunityid", "opportunity", "opportunity_sales_orders"),
        _lookup("quoteid", "quote", "quote_orders"),
        _state(
            {0: "Active", 1: "Submitted", 2: "Canceled", 3: "Fulfilled", 4: "Invoiced"},
            {1: "New", 2: "Pending", 3: "In Progress", 4: "No Money", 100001: "Complete", 100003: "Invoiced"},
            (0, 1),
        ),
        privilege="SalesOrder", code=1088, owned=True,
    ),
    _table(
        "invoice", "invoices",
        _text("name invoicenumber description"), _TOTALS, _TERMS, _ADDRESS, _customer("invoice_customer"),
        _plain(Kind.DATE, "datedelivered duedate"),
        _plain(Kind.BOOLEAN, "ispricelocked", default=False),
        # The totals are calculated when the invoice is next retrieved by itself; nobody outside sees the mark.
        [Column("_totalspending", Kind.BOOLEAN, writable=False, secret=True, default=False)],
        _lookup("opportunityid", "opportunity", "opportunity_invoices", "restrict"),
        _lookup("salesorderid", "salesorder", "order_invoices"),
        _state(
            {0: "Active", 1: "Closed (deprecated)", 2: "Paid", 3: "Canceled"},
            {1: "New", 2: "Partially Shipped", 4: "Billed", 100001: "Complete", 100002: "Partial",
             100003: "Canceled"},
            (0, 1),
        ),
        privilege="Invoice", code=1090, owned=True,
    ),
    _table(
        "invoicedetail", "invoicedetails", _LINE,
        _lookup("invoiceid", "invoice", "invoice_details", "cascade"),
        privilege="Invoice", code=1091, owned=True, primary_name="productdescription",
    ),
    _table(
        "account", "accounts",
        _text("name accountnumber emailaddress1 telephone1 websiteurl description "
              "address1_line1 address1_line2 address1_city address1_postalcode address1_country"),
        _money("revenue"), _plain(Kind.INTEGER, "numberofemployees"),
        _lookup("primarycontactid", "contact"), _lookup("transactioncurrencyid", "transactioncurrency"), _ACTIVE,
        privilege="Account", code=1, owned=True,
    ),
    _table(
        "contact", "contacts",
        _text("fullname firstname lastname emailaddress1 telephone1 "
              "address1_line1 address1_line2 address1_city address1_postalcode address1_country"),
        _polymorphic("parentcustomerid", "account", {"account": "contact_customer_accounts"}),
        _lookup("transactioncurrencyid", "transactioncurrency"), _ACTIVE,
        privilege="Contact", code=2, owned=True, primary_name="fullname",
    ),
    _table(
        "transactioncurrency", "transactioncurrencies",
        _text("currencyname isocurrencycode currencysymbol"), _plain(Kind.INTEGER, "currencyprecision"),
        _plain(Kind.DECIMAL, "exchangerate"), _ACTIVE,
        privilege="TransactionCurrency", code=9105, primary_name="currencyname",
    ),
    _table(
        "pricelevel", "pricelevels",
        _text("name description"), _lookup("transactioncurrencyid", "transactioncurrency"), _ACTIVE,
        privilege="PriceLevel", code=1022,
    ),
    _table(
        "product", "products",
        _text("name productnumber description"), _money("price"),
        _lookup("pricelevelid", "pricelevel"), _lookup("transactioncurrencyid", "transactioncurrency"), _ACTIVE,
        privilege="Product", code=1024,
    ),
    _table(
        "annotation", "annotations",
        _text("subject notetext objecttypecode filename mimetype documentbody"),
        _plain(Kind.BOOLEAN, "isdocument", default=False),
        _polymorphic(
            "objectid", "opportunity account contact quote salesorder invoice",
            {"opportunity": "Opportunity_Annotation", "account": "Account_Annotation",
             "contact": "Contact_Annotation", "quote": "Quote_Annotation",
             "salesorder": "SalesOrder_Annotation", "invoice": "Invoice_Annotation"},
            "cascade",
        ),
        privilege="Note", code=5, owned=True, primary_name="subject",
    ),
)  # fmt: skip

# --- The platform -------------------------------------------------------------------------------------------

_DEPTHS = {1: "Basic", 2: "Local", 4: "Deep", 8: "Global"}
_ENABLED = _state({0: "Enabled", 1: "Disabled"}, {1: "Enabled", 2: "Disabled"}, (0, 1))

_PLATFORM = (
    _table(
        "organization", "organizations",
        _text("name friendlyname uniquename schemanameprefix"), _lookup("basecurrencyid", "transactioncurrency"),
        privilege="Organization", code=1019,
    ),
    _table(
        "businessunit", "businessunits",
        _text("name"), _lookup("parentbusinessunitid", "businessunit", "business_unit_parent_business_unit"),
        _plain(Kind.BOOLEAN, "isdisabled", default=False),
        privilege="BusinessUnit", code=10,
    ),
    _table(
        "systemuser", "systemusers",
        _text("fullname firstname lastname domainname internalemailaddress"),
        _plain(Kind.ID, "applicationid", unique=True), _plain(Kind.ID, "azureactivedirectoryobjectid"),
        _plain(Kind.BOOLEAN, "isdisabled", default=False),
        _choice("azurestate", {0: "Exists", 1: "Soft deleted", 2: "Not found or hard deleted"}, 0),
        _choice("accessmode", {0: "Read-Write", 1: "Administrative", 4: "Non-interactive"}, 4),
        _lookup("businessunitid", "businessunit", "business_unit_system_users"),
        privilege="User", code=8, primary_name="fullname",
    ),
    _table(
        "role", "roles",
        _text("name description"), _lookup("businessunitid", "businessunit", "business_unit_roles"),
        privilege="Role", code=1036,
    ),
    _table(
        "privilege", "privileges",
        _text("name"), _plain(Kind.INTEGER, "accessright"),
        _plain(Kind.BOOLEAN, "canbebasic canbelocal canbedeep canbeglobal", default=True),
        privilege="Privilege", code=1023, history=False,
    ),
    _table(
        "roleprivileges", "roleprivilegescollection",
        _lookup("roleid", "role", on_delete="cascade"), _lookup("privilegeid", "privilege", on_delete="cascade"),
        _choice("privilegedepthmask", _DEPTHS),
        privilege="Role", code=12, key="roleprivilegeid", primary_name="roleprivilegeid", history=False,
    ),
    _table(
        "systemuserroles", "systemuserrolescollection",
        _lookup("systemuserid", "systemuser", on_delete="cascade"), _lookup("roleid", "role", on_delete="cascade"),
        privilege="Role", code=15, key="systemuserroleid", primary_name="systemuserroleid", history=False,
    ),
    _table(
        "sdkmessage", "sdkmessages", _text("name categoryname"),
        privilege="SdkMessage", code=4606,
    ),
    _table(
        "sdkmessagefilter", "sdkmessagefilters",
        _text("name primaryobjecttypecode secondaryobjecttypecode"),
        _plain(Kind.BOOLEAN, "iscustomprocessingstepallowed", default=True),
        _lookup("sdkmessageid", "sdkmessage", "sdkmessageid_sdkmessagefilter"),
        privilege="SdkMessageFilter", code=4607,
    ),
    _table(
        "serviceendpoint", "serviceendpoints",
        _text("name description namespaceaddress solutionnamespace path saskeyname url"),
        _text("saskey", secret=True), _plain(Kind.BOOLEAN, "issaskeyset", writable=False, default=False),
        _choice("contract", {1: "OneWay", 2: "Queue", 3: "Rest", 4: "TwoWay", 5: "Topic",
                             6: "Queue (Persistent)", 7: "Event Hub", 8: "Webhook"}),
        _choice("connectionmode", {1: "Normal", 2: "Federated"}, 1),
        _choice("authtype", {1: "ACS", 2: "SAS Key", 3: "SAS Token", 9: "ManagedIdentity"}),
        _choice("namespaceformat", {1: "Namespace Name", 2: "Namespace Address"}),
        _choice("messageformat", {1: "Binary XML", 2: "Json", 3: "Text XML"}, 1),
        _choice("userclaim", {1: "None", 2: "UserId"}, 1),
        privilege="ServiceEndpoint", code=4618,
    ),
    _table(
        "sdkmessageprocessingstep", "sdkmessageprocessingsteps",
        _text("name description filteringattributes configuration"),
        _choice("mode", {0: "Synchronous", 1: "Asynchronous"}, 0),
        _choice("stage", {10: "Pre-validation", 20: "Pre-operation", 40: "Post-operation"}, 40),
        _choice("supporteddeployment", {0: "Server Only", 1: "Outlook Client Only", 2: "Both"}, 0),
        _plain(Kind.INTEGER, "rank", default=1), _plain(Kind.BOOLEAN, "asyncautodelete", default=False),
        [Column("eventhandler", Kind.LOOKUP, lookup=Lookup(
            {"serviceendpoint": "eventhandler_serviceendpoint"},
            {"serviceendpoint": "serviceendpoint_sdkmessageprocessingstep"}, "restrict"))],
        _lookup("sdkmessageid", "sdkmessage", "sdkmessageid_sdkmessageprocessingstep"),
        _lookup("sdkmessagefilterid", "sdkmessagefilter", "sdkmessagefilterid_sdkmessageprocessingstep"),
        _ENABLED,
        privilege="SdkMessageProcessingStep", code=4608,
    ),
    _table(
        "asyncoperation", "asyncoperations",
        _text("name message friendlymessage correlationid messagename primaryentitytype requestid"),
        _text("_post", secret=True),
        _choice("operationtype", {1: "System Event"}, 1),
        _plain(Kind.INTEGER, "errorcode"), _plain(Kind.INTEGER, "retrycount", default=0),
        _plain(Kind.DATETIME, "startedon completedon postponeuntil"),
        [Column("owningextensionid", Kind.LOOKUP, lookup=Lookup(
            {"sdkmessageprocessingstep": "owningextensionid"},
            {"sdkmessageprocessingstep": "SdkMessageProcessingStep_AsyncOperations"}))],
        [Column("regardingobjectid", Kind.LOOKUP, lookup=Lookup(
            {"opportunity": "regardingobjectid_opportunity", "serviceendpoint": "regardingobjectid_serviceendpoint"},
            {"opportunity": "Opportunity_AsyncOperations"}))],
        _state(
            {0: "Ready", 1: "Suspended", 2: "Locked", 3: "Completed"},
            {0: "Waiting For Resources", 10: "Waiting", 20: "In Progress", 21: "Pausing", 22: "Canceling",
             30: "Succeeded", 31: "Failed", 32: "Canceled"},
            (0, 0),
        ),
        privilege="AsyncOperation", code=4700, owned=True,
    ),
)  # fmt: skip

TABLES: Final[Mapping[str, Table]] = {table.name: table for table in (*_SALES, *_PLATFORM)}
BY_SET: Final[Mapping[str, Table]] = {table.set_name: table for table in TABLES.values()}


@dataclass(frozen=True)
class Collection:
    """A collection-valued navigation property: rows of `table` whose `lookup` is the row it starts from."""

    table: Table
    lookup: Column


COLLECTIONS: Final[Mapping[str, Mapping[str, Collection]]] = {
    start: {
        name: Collection(table, column)
        for table in TABLES.values()
        for column in table.columns.values()
        if column.lookup
        for target, name in column.lookup.collections.items()
        if target == start
    }
    for start in TABLES
}
REFERENCES: Final[Mapping[str, tuple[Collection, ...]]] = {
    target: tuple(
        Collection(table, column)
        for table in TABLES.values()
        for column in table.columns.values()
        if column.lookup and target in column.lookup.targets
    )
    for target in TABLES
}

VERBS: Final = ("Create", "Read", "Write", "Delete", "Append", "AppendTo", "Assign", "Share")
PRIVILEGES: Final[tuple[str, ...]] = tuple(
    f"prv{verb}{name}"
    for name in sorted({table.privilege for table in TABLES.values()} | {"EntityMap", "AttributeMap"})
    for verb in VERBS
)

# Messages that a step can be registered on, and with which tables. The last two exist without a table.
MESSAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "Create": (
        "opportunity",
        "opportunityclose",
        "invoice",
        "annotation",
        "account",
        "contact",
        "salesorder",
    ),
    "Update": ("opportunity", "invoice", "annotation", "account", "contact", "salesorder"),
    "Delete": ("opportunity", "invoice", "annotation", "account", "contact", "salesorder"),
    "SetState": ("opportunity", "invoice"),
    "SetStateDynamicEntity": ("opportunity", "invoice"),
    "Win": ("opportunity",),
    "Lose": ("opportunity",),
    "GenerateInvoiceFromOpportunity": (),
}

_NAMESPACE = uuid.UUID("8d1f3b7a-5c0e-4f4b-9b6e-2f6f0f0c7d11")


def stable_id(*parts: str) -> str:
    """Derive an id that is the same in every run, as for messages, or for privileges of one environment."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))
