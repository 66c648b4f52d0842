"""A company that sells: customers, a product catalog, salespeople, and open opportunities with lines.

Rows are written to the database directly, so that thousands of them take little time. The same seed gives the same
rows.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

from sandbox.dataverse.base_data import CURRENCIES, SALESPERSON_ROLE, Currency, Inserter
from sandbox.dataverse.columns import Row, format_datetime
from sandbox.dataverse.database import Transaction
from sandbox.dataverse.pricing import Pricing
from sandbox.dataverse.sales_tables import BUNDLE, OPTIONAL_PART, PRODUCT, REQUIRED_PART
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.web_api import DataverseApp

# fmt: off
_COMPANIES: Final = (
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Juniper", "Larch", "Maple", "Oak",
)
_TRADES: Final = (
    "Bakeries", "Bearings", "Boatworks", "Ceramics", "Dairies", "Instruments", "Logistics", "Optics", "Textiles",
)
_FIRST: Final = (
    "Amara", "Bruno", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kateryna", "Liam",
)
_LAST: Final = (
    "Abiodun", "Bergström", "Castellanos", "Dubois", "Eriksen", "Fontana", "Grünwald", "Haddad", "Ito", "Jansen",
)
# fmt: on
_UNITS: Final = ("piece", "hour", "metre")
_PROJECTS: Final = ("Line 3", "Water treatment", "New hall")
_PRICE_DIGITS: Final = Decimal("0.0001")
_TAX_RATE: Final = Decimal("0.19")
# From this quantity on, each piece costs less.
_VOLUME: Final = 10


@dataclass(frozen=True)
class _Item:
    """A product of the catalog: number, name, unit, price in the base currency."""

    number: str
    name: str
    unit: str
    price: Decimal


_CATALOG: Final = (
    _Item("SRV-010", "Commissioning, on site", "hour", Decimal(480)),
    _Item("CTL-040", "Control unit C-40", "piece", Decimal("1299.5")),
    _Item("FLT-012", "Filter set, twelve pieces", "piece", Decimal("86.4")),
    _Item("SRV-100", "Maintenance, one year", "piece", Decimal(2150)),
    _Item("PMP-007", "Pump assembly P-7", "piece", Decimal("3475.25")),
    _Item("SNS-003", "Sensor, calibrated", "piece", Decimal("212.75")),
    _Item("CBL-250", "Signal cable, shielded", "metre", Decimal("1.3475")),
)
_STATION: Final = _Item("BDL-001", "Pump station", "piece", Decimal(5200))
_STATION_PARTS: Final = (
    (_CATALOG[4], REQUIRED_PART),
    (_CATALOG[1], REQUIRED_PART),
    (_CATALOG[5], OPTIONAL_PART),
)
_WRITE_INS: Final = (("Travel expenses", Decimal(310)), ("Transport and packaging", Decimal("145.9")))


@dataclass(frozen=True)
class DemoOrganization:
    """The ids of the rows that `demo_organization` created."""

    opportunities: tuple[str, ...]
    accounts: tuple[str, ...]
    contacts: tuple[str, ...]
    sellers: tuple[str, ...]
    teams: tuple[str, ...]
    products: Mapping[str, str]
    projects: tuple[str, ...]
    currencies: Mapping[str, str]
    price_lists: Mapping[str, str]


def demo_organization(
    app: DataverseApp, opportunities: int = 20, *, seed: int = 1, accounts: int = 12, contacts: int = 12
) -> DemoOrganization:
    """Create customers, a catalog, salespeople and open opportunities; the same seed gives the same rows."""
    with app.session() as session:
        insert = Inserter(
            session.transaction, f"{app.organization.id}/demo/{seed}", app.organization.clock.now()
        )
        insert.user, insert.unit = session.caller.user_id, session.caller.business_unit_id
        company = _Company(session.transaction, insert, random.Random(seed))  # noqa: S311 - names and amounts
        return company.build(opportunities, accounts, contacts)


class _Company:
    """Creates the rows of the demo organization: open opportunities have products, write-ins, bundles and tax."""

    def __init__(self, transaction: Transaction, insert: Inserter, chance: random.Random) -> None:
        self._insert = insert
        self._chance = chance
        self._role = transaction.rows(TABLES["role"], "name = ?", (SALESPERSON_ROLE,))[0]["roleid"]
        self._currencies = {
            row["isocurrencycode"]: row["transactioncurrencyid"]
            for row in transaction.rows(TABLES["transactioncurrency"])
        }
        self._price_lists = {
            code: insert("pricelevel", {"name": f"List {code}", "transactioncurrencyid": currency}, code)
            for code, currency in self._currencies.items()
        }
        self._unit_group = insert("uomschedule", {"name": "Default Unit", "baseuomname": _UNITS[0]}, "units")
        self._units = {unit: self._unit(unit) for unit in _UNITS}
        self._products = {item.number: self._product(item) for item in (*_CATALOG, _STATION)}

    def build(self, opportunities: int, accounts: int, contacts: int) -> DemoOrganization:
        sellers = tuple(self._seller(number) for number in range(3))
        team = self._team(sellers[:2])
        made_accounts = tuple(self._account(number) for number in range(accounts))
        made_contacts = tuple(self._contact(number, made_accounts) for number in range(contacts))
        projects = tuple(self._project(number) for number in range(len(_PROJECTS)))
        customers = made_accounts + made_contacts
        made = []
        for number in range(opportunities):
            seller = sellers[number % 3]
            owner: Row = {"ownerid": seller, "owninguser": seller}
            if number % 5 == 4:  # noqa: PLR2004 - some of them
                owner = {"ownerid": team, "owninguser": None, "owningteam": team}
            columns = {
                "customerid": customers[number % len(customers)] if customers else None,
                "new_project": projects[number % 3] if number % 2 else None,
                **owner,
            }
            made.append(self._opportunity(number, columns))
        return DemoOrganization(
            tuple(made),
            made_accounts,
            made_contacts,
            sellers,
            (team,),
            self._products,
            projects,
            self._currencies,
            self._price_lists,
        )

    def _unit(self, name: str) -> str:
        values = {"name": name, "quantity": Decimal(1), "uomscheduleid": self._unit_group}
        return self._insert("uom", values, f"unit {name}")

    def _product(self, item: _Item) -> str:
        values = {
            "name": item.name,
            "productnumber": item.number,
            "price": item.price,
            "productstructure": 3 if item is _STATION else 1,
            "pricelevelid": self._price_lists["EUR"],
            "defaultuomid": self._units[item.unit],
            "defaultuomscheduleid": self._unit_group,
            "transactioncurrencyid": self._currencies["EUR"],
        }
        return self._insert("product", values, item.number)

    def _seller(self, number: int) -> str:
        name = f"{self._chance.choice(_FIRST)} {self._chance.choice(_LAST)}"
        values = {"fullname": name, "businessunitid": self._insert.unit, "accessmode": 0}
        user = self._insert("systemuser", values, f"seller {number}")
        role = {"systemuserid": user, "roleid": self._role}
        self._insert("systemuserroles", role, f"role of seller {number}")
        return user

    def _team(self, members: Sequence[str]) -> str:
        values = {"name": "Key accounts", "businessunitid": self._insert.unit}
        team = self._insert("team", values, "key accounts")
        self._insert("teamroles", {"teamid": team, "roleid": self._role}, "role of key accounts")
        for member in members:
            self._insert("teammembership", {"teamid": team, "systemuserid": member}, f"key accounts/{member}")
        return team

    def _account(self, number: int) -> str:
        name = f"{_COMPANIES[number % len(_COMPANIES)]} {self._chance.choice(_TRADES)}"
        values = {
            "name": name,
            # Not every account has a number.
            "accountnumber": f"A-{number:05d}" if number % 6 != 5 else None,  # noqa: PLR2004
            "address1_line1": f"{number + 1} Harbour Road",
            "address1_city": "Rotterdam",
            "address1_postalcode": f"30{number:02d} AB",
            "address1_country": "Netherlands",
        }
        return self._insert("account", values, f"account {number}")

    def _contact(self, number: int, accounts: Sequence[str]) -> str:
        first, last = self._chance.choice(_FIRST), self._chance.choice(_LAST)
        values: Row = {"firstname": first, "lastname": last, "fullname": f"{first} {last}"}
        values["parentcustomerid"] = self._chance.choice(accounts) if accounts else None
        return self._insert("contact", values, f"contact {number}")

    def _project(self, number: int) -> str:
        values = {"new_name": _PROJECTS[number], "new_number": f"P-{number + 1:03d}"}
        return self._insert("new_project", values, f"project {number}")

    def _opportunity(self, number: int, columns: Row) -> str:
        # The opportunities use the currencies in turn, so that a few of them show all currencies.
        currency = CURRENCIES[number % len(CURRENCIES)]
        pricing = Pricing(currency.precision)
        money = {
            "transactioncurrencyid": self._currencies[currency.code],
            "exchangerate": currency.rate,
        }
        opportunity = self._insert.id("opportunity", str(number))
        lines = [
            _completed(
                {**line, **money, "opportunityid": opportunity, "lineitemnumber": position},
                pricing,
                is_taxed=number % 2 == 0,
            )
            for position, line in enumerate(self._lines(number, currency), start=1)
        ]
        header = {
            "name": f"{lines[0]['productname']} for {_COMPANIES[number % len(_COMPANIES)]} {number + 1}",
            "pricelevelid": self._price_lists[currency.code],
            "discountpercentage": Decimal(self._chance.choice(("0", "0", "0", "2.5", "5"))),
            "freightamount": pricing.rounded(Decimal("49.9") * currency.rate) if number % 3 == 1 else None,
            "estimatedclosedate": self._day(self._chance.randint(1, 90)),
            "new_costcenter": f"CC-{1000 + number % 40}",
            "new_commission": pricing.rounded(Decimal(25) * currency.rate),
            "new_channel": 100000000 + number % 3,
            "new_handoverdate": self._day(90 + number % 60),
            "new_approvedon": self._insert.now,
            "new_isrenewal": number % 7 == 0,
            "new_warrantymonths": 24,
            **money,
            **columns,
        }
        amounts = pricing.totals(header, lines)
        header |= {**amounts, "estimatedvalue": amounts["totalamount"]}
        self._insert("opportunity", header, str(number))
        for position, line in enumerate(lines):
            self._insert("opportunityproduct", line, f"{number}/{position}")
        return opportunity

    def _lines(self, number: int, currency: Currency) -> list[Row]:
        lines = [
            self._line(self._chance.choice(_CATALOG), currency) for _ in range(self._chance.randint(2, 4))
        ]
        if number % 3 == 0:
            description, price = self._chance.choice(_WRITE_INS)
            lines.append(
                {
                    "productdescription": description,
                    "productname": description,
                    "isproductoverridden": True,
                    "quantity": Decimal(1),
                    "priceperunit": Pricing(currency.precision).rounded(price * currency.rate),
                }
            )
        if number % 4 == 1:
            # The price of a bundle includes its required parts.
            bundle = self._insert.id("opportunityproduct", f"{number}/{len(lines)}")
            lines.append({**self._line(_STATION, currency), "producttypecode": BUNDLE})
            lines += [
                {
                    **self._line(item, currency),
                    "producttypecode": kind,
                    "parentbundleid": bundle,
                    "parentbundleidref": bundle,
                    "productassociationid": self._insert.id("productassociation", item.number),
                }
                for item, kind in _STATION_PARTS
            ]
        return lines

    def _line(self, item: _Item, currency: Currency) -> Row:
        quantity = Decimal(self._chance.randint(1, 12))
        price = (item.price * currency.rate).quantize(_PRICE_DIGITS)
        line = {
            "productid": self._products[item.number],
            "productname": item.name,
            "uomid": self._units[item.unit],
            "quantity": quantity,
            "priceperunit": price,
        }
        if quantity >= _VOLUME:
            line["volumediscountamount"] = (price / 20).quantize(_PRICE_DIGITS)
        elif self._chance.random() < 0.3:  # noqa: PLR2004 - some of them
            line["manualdiscountamount"] = Pricing(currency.precision).rounded(price * quantity / 10)
        return line

    def _day(self, days: int) -> str:
        """Return the date `days` days from now."""
        return format_datetime(self._insert.moment + timedelta(days=days))[:10]


def _completed(line: Row, pricing: Pricing, *, is_taxed: bool) -> Row:
    """Return a line with its defaults and its calculated amounts."""
    full = {"producttypecode": PRODUCT, "isproductoverridden": False, **line}
    full |= pricing.line(full)
    if is_taxed:
        full["tax"] = pricing.rounded(full["extendedamount"] * _TAX_RATE)
        full |= pricing.line(full)
    return full
