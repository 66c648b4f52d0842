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
        chance = random.Random(seed)  # noqa: S311 - names and amounts
        insert = Inserter(
            session.transaction, f"{app.organization.id}/demo/{seed}", app.organization.clock.now()
        )
        company = _Company(session.transaction, insert, chance)
        return company.build(opportunities, accounts, contacts)


class _Company:
    """Creates the rows of the demo organization."""

    def __init__(self, transaction: Transaction, insert: Inserter, chance: random.Random) -> None:
        self._insert = insert
        self._chance = chance
        system = transaction.rows(TABLES["systemuser"], "fullname = 'SYSTEM'")[0]
        insert.user, insert.unit = system["systemuserid"], system["businessunitid"]
        self._role = transaction.rows(TABLES["role"], "name = ?", (SALESPERSON_ROLE,))[0]["roleid"]
        self._currencies = {
            row["isocurrencycode"]: row["transactioncurrencyid"]
            for row in transaction.rows(TABLES["transactioncurrency"])
        }

    def build(self, opportunities: int, accounts: int, contacts: int) -> DemoOrganization:
        price_lists = {code: self._price_list(code) for code in self._currencies}
        sellers = tuple(self._seller(number) for number in range(3))
        team = self._team(sellers)
        made_accounts = tuple(self._account(number) for number in range(accounts))
        made_contacts = tuple(self._contact(number, made_accounts) for number in range(contacts))
        projects = tuple(self._project(number) for number in range(len(_PROJECTS)))
        catalog = _Catalog(self._insert, self._currencies["EUR"], price_lists["EUR"])
        book = _OpportunityBook(self._insert, self._chance, catalog, self._currencies, price_lists)
        made = tuple(
            book.open(
                number,
                customer=_nth(made_accounts + made_contacts, number),
                owner=_Owner(team, is_team=True) if number % 5 == 4 else _Owner(sellers[number % 3]),  # noqa: PLR2004
                project=projects[number % 3] if number % 2 else None,
            )
            for number in range(opportunities)
        )
        return DemoOrganization(
            made,
            made_accounts,
            made_contacts,
            sellers,
            (team,),
            catalog.products,
            projects,
            self._currencies,
            price_lists,
        )

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

    def _team(self, members: Sequence[str]) -> str:
        team = self._insert(
            "team", {"name": "Key accounts", "businessunitid": self._insert.unit}, "key accounts"
        )
        self._insert("teamroles", {"teamid": team, "roleid": self._role}, "role of key accounts")
        for member in members[:2]:
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


@dataclass(frozen=True)
class _Owner:
    """The user or team that owns an opportunity."""

    id: str
    is_team: bool = False

    @property
    def columns(self) -> Row:
        return {
            "ownerid": self.id,
            "owninguser": None if self.is_team else self.id,
            "owningteam": self.id if self.is_team else None,
        }


def _nth(ids: Sequence[str], number: int) -> str | None:
    return ids[number % len(ids)] if ids else None


class _Catalog:
    """The products with their units; `products` has the products' ids by number."""

    def __init__(self, insert: Inserter, currency: str, price_list: str) -> None:
        group = insert("uomschedule", {"name": "Default Unit", "baseuomname": _UNITS[0]}, "units")
        self.units = {
            unit: insert(
                "uom", {"name": unit, "quantity": Decimal(1), "uomscheduleid": group}, f"unit {unit}"
            )
            for unit in _UNITS
        }
        self.products = {
            item.number: insert(
                "product",
                {
                    "name": item.name,
                    "productnumber": item.number,
                    "price": item.price,
                    "productstructure": 3 if item is _STATION else 1,
                    "pricelevelid": price_list,
                    "defaultuomid": self.units[item.unit],
                    "defaultuomscheduleid": group,
                    "transactioncurrencyid": currency,
                },
                item.number,
            )
            for item in (*_CATALOG, _STATION)
        }

    def columns(self, item: _Item) -> Row:
        """Return the columns that a line copies from a product."""
        return {
            "productid": self.products[item.number],
            "productname": item.name,
            "uomid": self.units[item.unit],
            "isproductoverridden": False,
        }


class _OpportunityBook:
    """Creates open opportunities with lines of every kind: products, write-ins, bundles, discounts and tax."""

    def __init__(
        self,
        insert: Inserter,
        chance: random.Random,
        catalog: _Catalog,
        currencies: Mapping[str, str],
        price_lists: Mapping[str, str],
    ) -> None:
        self._insert = insert
        self._chance = chance
        self._catalog = catalog
        self._currencies = currencies
        self._price_lists = price_lists

    def open(self, number: int, *, customer: str | None, owner: "_Owner", project: str | None) -> str:
        # The opportunities use the currencies in turn, so that a few of them show all currencies.
        currency = CURRENCIES[number % len(CURRENCIES)]
        opportunity = self._insert.id("opportunity", str(number))
        lines = self._lines(number, opportunity, currency)
        header = {
            "name": f"{lines[0]['productname']} for {_COMPANIES[number % len(_COMPANIES)]} {number + 1}",
            "customerid": customer,
            "transactioncurrencyid": self._currencies[currency.code],
            "pricelevelid": self._price_lists[currency.code],
            "exchangerate": currency.rate,
            "discountpercentage": Decimal(self._chance.choice(("0", "0", "0", "2.5", "5"))),
            "freightamount": _rounded(Decimal("49.9") * currency.rate, currency) if number % 3 == 1 else None,
            "estimatedclosedate": self._day(self._chance.randint(1, 90)),
            **owner.columns,
            **self._custom_columns(number, project, currency),
        }
        amounts = Pricing(currency.precision).totals(header, lines)
        self._insert(
            "opportunity", {**header, **amounts, "estimatedvalue": amounts["totalamount"]}, str(number)
        )
        for position, line in enumerate(lines):
            self._insert("opportunityproduct", line, f"{number}/{position}")
        return opportunity

    def _lines(self, number: int, opportunity: str, currency: Currency) -> list[Row]:
        picked = [
            self._product(self._chance.choice(_CATALOG), currency) for _ in range(self._chance.randint(2, 4))
        ]
        if number % 3 == 0:
            picked.append(self._write_in(currency))
        position = len(picked)
        if number % 4 == 1:
            picked += self._bundle(self._insert.id("opportunityproduct", f"{number}/{position}"), currency)
        return [
            self._completed(
                {
                    **line,
                    "lineitemnumber": position + 1,
                    "opportunityid": opportunity,
                    "transactioncurrencyid": self._currencies[currency.code],
                    "exchangerate": currency.rate,
                },
                currency,
                is_taxed=number % 2 == 0,
            )
            for position, line in enumerate(picked)
        ]

    def _product(self, item: _Item, currency: Currency) -> Row:
        quantity = Decimal(self._chance.randint(1, 12))
        price = (item.price * currency.rate).quantize(_PRICE_DIGITS)
        line = {**self._catalog.columns(item), "quantity": quantity, "priceperunit": price}
        if quantity >= _VOLUME:
            line["volumediscountamount"] = (price / 20).quantize(_PRICE_DIGITS)
        elif self._chance.random() < 0.3:  # noqa: PLR2004 - some of them
            line["manualdiscountamount"] = _rounded(price * quantity / 10, currency)
        return line

    def _write_in(self, currency: Currency) -> Row:
        description, price = self._chance.choice(_WRITE_INS)
        return {
            "productdescription": description,
            "productname": description,
            "isproductoverridden": True,
            "quantity": Decimal(1),
            "priceperunit": _rounded(price * currency.rate, currency),
        }

    def _bundle(self, bundle_id: str, currency: Currency) -> list[Row]:
        """Return a bundle and its parts; the price of the bundle includes its required parts."""
        bundle = {**self._product(_STATION, currency), "producttypecode": BUNDLE}
        parts = [
            {
                **self._product(item, currency),
                "producttypecode": kind,
                "parentbundleid": bundle_id,
                "parentbundleidref": bundle_id,
                "productassociationid": self._insert.id("productassociation", item.number),
            }
            for item, kind in _STATION_PARTS
        ]
        return [bundle, *parts]

    def _completed(self, line: Row, currency: Currency, *, is_taxed: bool) -> Row:
        pricing = Pricing(currency.precision)
        full = {"producttypecode": PRODUCT, "isproductoverridden": False, **line}
        full |= pricing.line(full)
        if is_taxed:
            full["tax"] = pricing.rounded(full["extendedamount"] * _TAX_RATE)
            full |= pricing.line(full)
        return full

    def _day(self, days: int) -> str:
        """Return the date `days` days from now."""
        return format_datetime(self._insert.moment + timedelta(days=days))[:10]

    def _custom_columns(self, number: int, project: str | None, currency: Currency) -> Row:
        return {
            "new_costcenter": f"CC-{1000 + number % 40}",
            "new_project": project,
            "new_commission": _rounded(Decimal(25) * currency.rate, currency),
            "new_channel": 100000000 + number % 3,
            "new_handoverdate": self._day(90 + number % 60),
            "new_approvedon": self._insert.now,
            "new_isrenewal": number % 7 == 0,
            "new_warrantymonths": 24,
        }


def _rounded(amount: Decimal, currency: Currency) -> Decimal:
    return Pricing(currency.precision).rounded(amount)
