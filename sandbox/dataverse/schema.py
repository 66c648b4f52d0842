"""The tables of the organization by their names, and their relations.

SQL, OData, privileges and annotations derive from the declarations. `sales_rules` and `platform_rules` have the
behaviour of the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sandbox.dataverse.columns import Column, Table
from sandbox.dataverse.platform_tables import PLATFORM
from sandbox.dataverse.sales_tables import SALES

TABLES: Final[Mapping[str, Table]] = {table.name: table for table in (*SALES, *PLATFORM)}
BY_SET: Final[Mapping[str, Table]] = {table.set_name: table for table in TABLES.values()}


@dataclass(frozen=True)
class Collection:
    """A collection-valued navigation property: the rows of `table` whose `lookup` refers to the row."""

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

# A privilege that belongs to no table. No role has it until somebody adds it.
ACT_ON_BEHALF: Final = "prvActOnBehalfOfAnotherUser"
VERBS: Final = ("Create", "Read", "Write", "Delete", "Append", "AppendTo", "Assign", "Share")
PRIVILEGES: Final[tuple[str, ...]] = (
    *(
        f"prv{verb}{name}"
        for name in sorted(
            {table.privilege for table in TABLES.values()}
            | {"EntityMap", "AttributeMap", "Entity", "Attribute"}
        )
        for verb in VERBS
    ),
    ACT_ON_BEHALF,
)

_CHANGED: Final = ("opportunity", "invoice", "annotation", "account", "contact", "salesorder")
# The messages on which a step can be registered, each with its tables; some have none.
MESSAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "Create": (*_CHANGED, "opportunityclose"),
    "Update": _CHANGED,
    "Delete": _CHANGED,
    "SetState": ("opportunity", "invoice"),
    "SetStateDynamicEntity": ("opportunity", "invoice"),
    "Assign": ("opportunity", "invoice"),
    "Win": ("opportunity",),
    "Lose": ("opportunity",),
    "GenerateInvoiceFromOpportunity": (),
    "GenerateSalesOrderFromOpportunity": (),
    "GenerateQuoteFromOpportunity": (),
    "ConvertSalesOrderToInvoice": (),
    "Cancel": ("salesorder",),
    "Fulfill": ("salesorder",),
}
