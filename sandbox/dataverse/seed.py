"""Filling an organization: what every environment has, users and roles, and made-up customers to sell to.

Everything goes through the store directly, so thousands of rows take a moment; the same seed makes the same
rows.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

from sandbox.dataverse.base_data import (
    ADMINISTRATOR_ROLE,
    CURRENCIES,
    SALESPERSON_ROLE,
    Currency,
    Inserter,
    granted,
)
from sandbox.dataverse.base_data import ORGANIZATION_ID as ORGANIZATION_ID  # noqa: PLC0414 - of all that is seeded
from sandbox.dataverse.columns import Row, format_datetime, stable_id
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Depth
from sandbox.dataverse.store import Transaction
from sandbox.dataverse.web_api import DataverseApp

# What the deployed function's role has: the documented privileges of GenerateInvoiceFromOpportunity, the claim's, those
# to read what an event tells, and those to assign the invoice.
INVOICING_PRIVILEGES: Final = (
    "prvCreateInvoice", "prvReadInvoice", "prvAppendInvoice", "prvAppendToInvoice",
    "prvReadOpportunity", "prvAppendToOpportunity", "prvAppendToAccount", "prvAppendToContact",
    "prvReadEntityMap", "prvReadAttributeMap", "prvReadTransactionCurrency", "prvReadSalesOrder",
    "prvCreateNote", "prvReadNote", "prvAppendNote",
    "prvReadActivity", "prvReadProduct", "prvReadAccount", "prvReadContact",
    "prvWriteInvoice", "prvAssignInvoice", "prvReadUser", "prvReadTeam",
)  # fmt: skip


@dataclass(frozen=True)
class DemoOrganization:
    """The ids of what `demo_organization` made."""

    opportunities: tuple[str, ...]
    accounts: tuple[str, ...]
    contacts: tuple[str, ...]
    sellers: tuple[str, ...]
    currencies: Mapping[str, str]
    price_lists: Mapping[str, str]


# --- users, roles, endpoints --------------------------------------------------------------------------------


def add_administrator(app: DataverseApp, client_id: str, object_id: str | None = None) -> str:
    """Make an application user that may do everything; returns its id."""
    return add_application_user(app, client_id, object_id, roles=[find_role(app, ADMINISTRATOR_ROLE)])


def find_role(app: DataverseApp, name: str) -> str:
    """Return the id of the role with this name."""
    with app.store.reading() as transaction:
        return str(transaction.rows(TABLES["role"], "name = ?", (name,))[0]["roleid"])


def add_application_user(
    app: DataverseApp,
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


def add_team(
    app: DataverseApp, name: str, *, roles: Iterable[str] = (), members: Iterable[str] = (), kind: int = 0
) -> str:
    """Make a team (kind 0 owns rows, 1 does not) with roles and members, in the root business unit; returns its id."""
    with app.session() as session:
        values = {"name": name, "teamtype": kind, "businessunitid": session.caller.business_unit_id}
        team = str(session.add(TABLES["team"], values)["teamid"])
        for role in roles:
            session.add(TABLES["teamroles"], {"teamid": team, "roleid": role})
        for member in members:
            session.add(TABLES["teammembership"], {"teamid": team, "systemuserid": member})
    return team


def add_role(
    app: DataverseApp,
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
            grant = granted(role, stable_id(app.organization.id, privilege), reach)
            session.add(TABLES["roleprivileges"], grant)
    return str(role)


def add_service_endpoint(
    app: DataverseApp,
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
    app: DataverseApp,
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
    app: DataverseApp, opportunities: int = 20, *, seed: int = 1, accounts: int = 12, contacts: int = 12
) -> DemoOrganization:
    """Make customers, price lists, sellers and open opportunities with lines; the same for the same seed."""
    with app.session() as session:
        builder = _Demo(session.transaction, app, random.Random(seed), seed)  # noqa: S311 - names and amounts
        return builder.build(opportunities, accounts, contacts)


class _Demo:
    """Makes the demo organization's rows."""

    def __init__(self, transaction: Transaction, app: DataverseApp, chance: random.Random, seed: int) -> None:
        self._chance = chance
        now = app.organization.clock.now()
        self._insert = Inserter(transaction, f"{app.organization.id}/demo/{seed}", now)
        system = transaction.rows(TABLES["systemuser"], "fullname = 'SYSTEM'")[0]
        self._insert.user, self._insert.unit = system["systemuserid"], system["businessunitid"]
        self._role = transaction.rows(TABLES["role"], "name = ?", (SALESPERSON_ROLE,))[0]["roleid"]
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
        user = self._insert("systemuser", values, f"seller {number}")
        self._insert(
            "systemuserroles", {"systemuserid": user, "roleid": self._role}, f"role of seller {number}"
        )
        return user

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
