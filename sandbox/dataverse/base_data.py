"""The rows that a new organization has: its business unit, currencies, roles, privileges and messages."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Final

from sandbox.clock import MovableClock
from sandbox.dataverse.columns import ORGANIZATION_ID, Row, format_datetime, stable_id
from sandbox.dataverse.database import Database, Transaction
from sandbox.dataverse.schema import ACT_ON_BEHALF, MESSAGES, PRIVILEGES, TABLES, VERBS
from sandbox.dataverse.security import Depth, granted, privilege_id

ADMINISTRATOR_ROLE: Final = "System Administrator"
SALESPERSON_ROLE: Final = "Salesperson"
_SALESPERSON: Final = frozenset(
    f"prv{verb}{table}"
    for table in ("Account", "Activity", "Contact", "Invoice", "Note", "Opportunity", "Quote", "SalesOrder")
    for verb in ("Create", "Read", "Write", "Append", "AppendTo", "Assign")
) | {
    f"prvRead{name}"
    for name in ("Attribute", "Entity", "Product", "Team", "TransactionCurrency", "User", "new_Project")
}
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


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


@cache
def base_image() -> bytes:
    """Return a database with the rows that every new organization has."""
    database = Database(MovableClock(EPOCH))
    with database.writing() as transaction:
        _write_base(transaction)
    image = database.image()
    database.close()
    return image


def _write_base(transaction: Transaction) -> None:
    insert = Inserter(transaction, ORGANIZATION_ID)
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
            "organizationid": ORGANIZATION_ID,
            "name": "sandbox",
            "friendlyname": "Sandbox",
            "uniquename": f"unq{ORGANIZATION_ID.replace('-', '')[:25]}",
            "basecurrencyid": insert.id("transactioncurrency", "EUR"),
        },
        "organization",
    )
    roles = {
        name: insert("role", {"name": name, "businessunitid": unit}, name)
        for name in (ADMINISTRATOR_ROLE, SALESPERSON_ROLE)
    }
    for name in PRIVILEGES:
        verb = max((verb for verb in VERBS if name.startswith(f"prv{verb}")), key=len, default="Create")
        privilege = privilege_id(name)
        insert(
            "privilege", {"privilegeid": privilege, "name": name, "accessright": 1 << VERBS.index(verb)}, name
        )
        for role, role_id in roles.items():
            # The administrator role lacks the privilege to act on behalf of others, too.
            if name in _SALESPERSON or (role == ADMINISTRATOR_ROLE and name != ACT_ON_BEHALF):
                insert("roleprivileges", granted(role_id, privilege, Depth.GLOBAL), f"{role}/{name}")
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


class Inserter:
    """Adds rows as the platform. Ids derive from names, so they are the same in every run."""

    def __init__(self, transaction: Transaction, scope: str, now: datetime = EPOCH) -> None:
        self._transaction = transaction
        self._scope = scope
        self.moment = now
        self.now = format_datetime(now)
        self.user: str | None = None
        self.unit: str | None = None

    def id(self, table: str, name: str) -> str:
        """Return the id of the row with this name."""
        return stable_id(self._scope, table, name)

    def __call__(self, table: str, values: Row, name: str) -> str:
        """Add a row; returns its id."""
        description = TABLES[table]
        full = {description.key: self.id(table, name), **values}
        if "createdon" in description.columns:
            full = {"createdon": self.now, "modifiedon": self.now, **full}
            full = {"createdby": self.user, "modifiedby": self.user, **full}
        if description.owned:
            full = {"ownerid": self.user, "owningbusinessunit": self.unit, **full}
            full.setdefault("owninguser", None if full.get("owningteam") else full["ownerid"])
        self._transaction.insert(description, full)
        return str(full[description.key])
