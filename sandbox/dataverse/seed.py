"""Filling an organization: what every environment has, users and roles, and made-up customers to sell to.

Everything goes through the store directly, so thousands of rows take a moment; the same seed makes the same
rows.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sandbox.clock import MovableClock
from sandbox.dataverse.schema import MESSAGES, PRIVILEGES, TABLES, VERBS, Row, format_datetime, stable_id
from sandbox.dataverse.security import Depth
from sandbox.dataverse.store import Store, Transaction

if TYPE_CHECKING:
    from sandbox.dataverse.web_api import DataverseApp

ORGANIZATION_ID: Final = stable_id("organization")
ADMINISTRATOR_ROLE: Final = "System Administrator"
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)

# What the generated invoices, the claim and the looks need: the documented privileges of
# GenerateInvoiceFromOpportunity, of notes, orders and currencies.
INVOICING_PRIVILEGES: Final = (
    "prvCreateInvoice", "prvReadInvoice", "prvAppendInvoice", "prvAppendToInvoice",
    "prvReadOpportunity", "prvAppendToOpportunity", "prvAppendToAccount", "prvAppendToContact",
    "prvReadEntityMap", "prvReadAttributeMap", "prvReadTransactionCurrency", "prvReadSalesOrder",
    "prvCreateNote", "prvReadNote", "prvAppendNote",
)  # fmt: skip


@dataclass(frozen=True)
class Currency:
    """A currency of the demo organization."""

    code: str
    name: str
    symbol: str
    precision: int
    rate: Decimal


CURRENCIES: Final = (
    Currency("EUR", "Euro", "€", 2, Decimal(1)),
    Currency("USD", "US Dollar", "$", 2, Decimal("1.0842")),
    Currency("JPY", "Yen", "¥", 0, Decimal("163.25")),
    Currency("KWD", "Kuwaiti Dinar", "KD", 3, Decimal("0.3331")),
)


@dataclass(frozen=True)
class DemoOrganization:
    """The ids of what `demo_organization` made."""

    opportunities: tuple[str, ...]
    accounts: tuple[str, ...]
    contacts: tuple[str, ...]
    sellers: tuple[str, ...]
    currencies: Mapping[str, str]
    price_lists: Mapping[str, str]


@lru_cache(maxsize=16)
def base_image(organization_id: str) -> bytes:
    """Return a database with what every organization has before anybody sells anything."""
    store = Store(MovableClock(_EPOCH))
    with store.writing() as transaction:
        _base(transaction, organization_id)
    image = store.image()
    store.close()
    return image


def _base(transaction: Transaction, organization_id: str) -> None:
    insert = _Inserter(transaction, organization_id)
    unit = insert("businessunit", {"name": "sandbox"}, "root unit")
    system = insert("systemuser", {"fullname": "SYSTEM", "businessunitid": unit, "accessmode": 1}, "SYSTEM")
    insert.user, insert.unit = system, unit
    for currency in CURRENCIES:
        insert(
            "transactioncurrency",
            {
                "currencyname": currency.name,
                "isocurrencycode": currency.code,
                "currencysymbol": currency.symbol,
                "currencyprecision": currency.precision,
                "exchangerate": currency.rate,
            },
            currency.code,
        )
    insert(
        "organization",
        {
            "organizationid": organization_id,
            "name": "sandbox",
            "friendlyname": "Sandbox",
            "uniquename": f"unq{organization_id.replace('-', '')[:25]}",
            "basecurrencyid": insert.id("transactioncurrency", "EUR"),
        },
        "organization",
    )
    role = insert("role", {"name": ADMINISTRATOR_ROLE, "businessunitid": unit}, ADMINISTRATOR_ROLE)
    for name in PRIVILEGES:
        verb = max((verb for verb in VERBS if name.startswith(f"prv{verb}")), key=len)
        # The id that refusals name as well.
        privilege = stable_id(organization_id, name)
        insert(
            "privilege", {"privilegeid": privilege, "name": name, "accessright": 1 << VERBS.index(verb)}, name
        )
        insert("roleprivileges", _granted(role, privilege, Depth.GLOBAL), f"{role}/{name}")
    for message, tables in MESSAGES.items():
        message_id = insert("sdkmessage", {"name": message}, message)
        for table in tables:
            insert(
                "sdkmessagefilter",
                {
                    "primaryobjecttypecode": table,
                    "secondaryobjecttypecode": "none",
                    "sdkmessageid": message_id,
                },
                f"{message}/{table}",
            )


class _Inserter:
    """Adds rows as the platform; ids derive from names, so that they are the same in every run."""

    def __init__(self, transaction: Transaction, scope: str, now: datetime = _EPOCH) -> None:
        self._transaction = transaction
        self._scope = scope
        self.now = format_datetime(now)
        self.user: str | None = None
        self.unit: str | None = None

    def id(self, table: str, name: str) -> str:
        return stable_id(self._scope, table, name)

    def __call__(self, table: str, values: Row, name: str) -> str:
        description = TABLES[table]
        full = {description.key: self.id(table, name), **values}
        if "createdon" in description.columns:
            full = {"createdon": self.now, "modifiedon": self.now, **full}
            full = {"createdby": self.user, "modifiedby": self.user, **full}
        if description.owned:
            full = {"ownerid": self.user, "owningbusinessunit": self.unit, **full}
        self._transaction.insert(description, full)
        return str(full[description.key])


def _granted(role: str, privilege: str, depth: Depth) -> Row:
    return {"roleid": role, "privilegeid": privilege, "privilegedepthmask": int(depth)}


# --- users, roles, endpoints --------------------------------------------------------------------------------


def add_administrator(app: "DataverseApp", client_id: str, object_id: str | None = None) -> str:
    """Make an application user that may do everything; returns its id."""
    with app.session() as session:
        role = session.transaction.rows(TABLES["role"], "name = ?", (ADMINISTRATOR_ROLE,))[0]["roleid"]
    return add_application_user(app, client_id, object_id, roles=[role])


def add_application_user(
    app: "DataverseApp",
    client_id: str,
    object_id: str | None = None,
    *,
    roles: Iterable[str] = (),
    business_unit: str | None = None,
    name: str | None = None,
) -> str:
    """Make an application user with these roles, in the root business unit unless told; returns its id."""
    with app.session() as session:
        user = session.add(
            TABLES["systemuser"],
            {
                "applicationid": client_id.lower(),
                "azureactivedirectoryobjectid": object_id.lower() if object_id else None,
                "fullname": name or f"# {client_id[:8]}",
                "businessunitid": business_unit or session.caller.business_unit_id,
            },
        )["systemuserid"]
        for role in roles:
            session.add(TABLES["systemuserroles"], {"systemuserid": user, "roleid": role})
    return str(user)


def add_role(
    app: "DataverseApp",
    privileges: Iterable[str] | Mapping[str, Depth] = INVOICING_PRIVILEGES,
    depth: Depth = Depth.GLOBAL,
    name: str = "Opportunity Invoicing",
) -> str:
    """Make a role with privileges, all of one depth or each of its own; returns its id."""
    depths = dict(privileges) if isinstance(privileges, Mapping) else dict.fromkeys(privileges, depth)
    with app.session() as session:
        unit = session.caller.business_unit_id
        role = session.add(TABLES["role"], {"name": name, "businessunitid": unit})["roleid"]
        for privilege, reach in depths.items():
            granted = _granted(role, stable_id(app.organization.id, privilege), reach)
            session.add(TABLES["roleprivileges"], granted)
    return str(role)


def add_service_endpoint(
    app: "DataverseApp",
    *,
    namespace_address: str,
    path: str,
    sas_key_name: str = "dataverse",
    sas_key: str = "",
    message_format: int = 2,
) -> str:
    """Register a queue to post to; returns the service endpoint's id."""
    with app.session() as session:
        return str(
            session.create(
                TABLES["serviceendpoint"],
                {
                    "name": path,
                    "namespaceaddress": namespace_address,
                    "path": path,
                    "saskeyname": sas_key_name,
                    "saskey": sas_key,
                    "contract": 6,
                    "authtype": 2,
                    "namespaceformat": 2,
                    "messageformat": message_format,
                },
            )["serviceendpointid"]
        )


def add_step(
    app: "DataverseApp",
    endpoint: str,
    message: str = "Win",
    table: str = "opportunity",
    *,
    mode: int = 1,
    auto_delete: bool = True,
) -> str:
    """Register a step (mode 1 asynchronous, 0 synchronous) that posts to an endpoint; returns its id."""
    with app.session() as session:
        sdk_message = session.transaction.rows(TABLES["sdkmessage"], "name = ?", (message,))[0][
            "sdkmessageid"
        ]
        filters = session.transaction.rows(
            TABLES["sdkmessagefilter"], "sdkmessageid = ? AND primaryobjecttypecode = ?", (sdk_message, table)
        )
        values = {
            "name": f"{message} of {table}",
            "mode": mode,
            "stage": 40,
            "asyncautodelete": auto_delete,
            "eventhandler": endpoint,
            "sdkmessageid": sdk_message,
            "sdkmessagefilterid": filters[0]["sdkmessagefilterid"],
        }
        return str(session.create(TABLES["sdkmessageprocessingstep"], values)["sdkmessageprocessingstepid"])


# --- a company that sells -----------------------------------------------------------------------------------

_COMPANIES = (
    "Alder",
    "Birch",
    "Cedar",
    "Dogwood",
    "Elm",
    "Fir",
    "Ginkgo",
    "Hazel",
    "Juniper",
    "Larch",
    "Maple",
    "Oak",
)
_TRADES = (
    "Bakeries",
    "Bearings",
    "Boatworks",
    "Ceramics",
    "Dairies",
    "Instruments",
    "Logistics",
    "Optics",
    "Textiles",
)
_FIRST = (
    "Amara",
    "Bruno",
    "Chiara",
    "Dmitri",
    "Elif",
    "Farid",
    "Greta",
    "Hiro",
    "Ines",
    "Jonas",
    "Kateryna",
    "Liam",
)
_LAST = (
    "Abiodun",
    "Bergström",
    "Castellanos",
    "Dubois",
    "Eriksen",
    "Fontana",
    "Grünwald",
    "Haddad",
    "Ito",
    "Jansen",
)
_GOODS = (
    ("Commissioning, on site", "480"),
    ("Control unit C-40", "1299.5"),
    ("Filter set, twelve pieces", "86.4"),
    ("Maintenance, one year", "2150"),
    ("Pump assembly P-7", "3475.25"),
    ("Sensor, calibrated", "212.75"),
)


def demo_organization(
    app: "DataverseApp", opportunities: int = 20, *, seed: int = 1, accounts: int = 12, contacts: int = 12
) -> DemoOrganization:
    """Make customers, price lists, sellers and open opportunities with lines; the same for the same seed."""
    with app.session() as session:
        builder = _Demo(session.transaction, app, random.Random(seed), seed)  # noqa: S311 - names and amounts
        return builder.build(opportunities, accounts, contacts)


class _Demo:
    """Makes the demo organization's rows."""

    def __init__(
        self, transaction: Transaction, app: "DataverseApp", chance: random.Random, seed: int
    ) -> None:
        self._chance = chance
        now = app.organization.clock.now()
        self._insert = _Inserter(transaction, f"{app.organization.id}/demo/{seed}", now)
        system = transaction.rows(TABLES["systemuser"], "fullname = 'SYSTEM'")[0]
        self._insert.user, self._insert.unit = system["systemuserid"], system["businessunitid"]
        self._currencies = {
            row["isocurrencycode"]: row["transactioncurrencyid"]
            for row in transaction.rows(TABLES["transactioncurrency"])
        }
        self._now = now

    def build(self, opportunities: int, accounts: int, contacts: int) -> DemoOrganization:
        price_lists = {code: self._price_list(code) for code in self._currencies}
        sellers = tuple(self._seller(number) for number in range(3))
        made_accounts = tuple(self._account(number) for number in range(accounts))
        made_contacts = tuple(self._contact(number, made_accounts) for number in range(contacts))
        customers = made_accounts + made_contacts
        made = tuple(
            self._opportunity(number, customers, sellers, price_lists) for number in range(opportunities)
        )
        return DemoOrganization(made, made_accounts, made_contacts, sellers, self._currencies, price_lists)

    def _price_list(self, code: str) -> str:
        values = {"name": f"List {code}", "transactioncurrencyid": self._currencies[code]}
        return self._insert("pricelevel", values, code)

    def _seller(self, number: int) -> str:
        name = f"{self._chance.choice(_FIRST)} {self._chance.choice(_LAST)}"
        values = {"fullname": name, "businessunitid": self._insert.unit, "accessmode": 0}
        return self._insert("systemuser", values, f"seller {number}")

    def _account(self, number: int) -> str:
        name = f"{_COMPANIES[number % len(_COMPANIES)]} {self._chance.choice(_TRADES)}"
        return self._insert(
            "account", {"name": name, "accountnumber": f"A-{number:05d}"}, f"account {number}"
        )

    def _contact(self, number: int, accounts: Sequence[str]) -> str:
        first, last = self._chance.choice(_FIRST), self._chance.choice(_LAST)
        values: Row = {"firstname": first, "lastname": last, "fullname": f"{first} {last}"}
        values["parentcustomerid"] = self._chance.choice(accounts) if accounts else None
        return self._insert("contact", values, f"contact {number}")

    def _opportunity(
        self, number: int, customers: Sequence[str], sellers: Sequence[str], price_lists: Mapping[str, str]
    ) -> str:
        # The first ones go through the currencies in turn, so that few already show them all.
        currency = CURRENCIES[number % len(CURRENCIES)]
        opportunity = self._insert.id("opportunity", str(number))
        lines = [self._line(number, n, opportunity, currency) for n in range(self._chance.randint(1, 5))]
        estimated = sum((line["baseamount"] for line in lines), Decimal(0))
        discount = self._chance.choice(("0", "0", "0", "2.5", "5"))
        self._insert(
            "opportunity",
            {
                "name": f"{lines[0]['productdescription']} for {_COMPANIES[number % len(_COMPANIES)]} {number + 1}",
                "customerid": customers[number % len(customers)],
                "transactioncurrencyid": self._currencies[currency.code],
                "pricelevelid": price_lists[currency.code],
                "exchangerate": currency.rate,
                "estimatedvalue": estimated,
                "totallineitemamount": estimated,
                "totalamount": estimated,
                "discountpercentage": Decimal(discount),
                "estimatedclosedate": format_datetime(
                    self._now + timedelta(days=self._chance.randint(1, 90))
                ),
                "ownerid": self._chance.choice(sellers),
            },
            str(number),
        )
        for n, line in enumerate(lines):
            self._insert("opportunityproduct", line, f"{number}/{n}")
        return opportunity

    def _line(self, number: int, position: int, opportunity: str, currency: Currency) -> Row:
        goods, price = self._chance.choice(_GOODS)
        smallest = Decimal(1).scaleb(-currency.precision)
        odd = Decimal(self._chance.randint(0, 999)) * smallest
        unit_price = (Decimal(price) * currency.rate).quantize(smallest) + odd
        quantity = Decimal(self._chance.randint(1, 12))
        return {
            "productdescription": goods,
            "productname": goods,
            "isproductoverridden": True,
            "quantity": quantity,
            "priceperunit": unit_price,
            "baseamount": unit_price * quantity,
            "extendedamount": unit_price * quantity,
            "lineitemnumber": position + 1,
            "opportunityid": opportunity,
            "transactioncurrencyid": self._currencies[currency.code],
            "createdon": format_datetime(self._now - timedelta(days=number % 60)),
        }
