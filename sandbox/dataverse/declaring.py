"""How tables are declared: short forms for columns that many tables have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sandbox.dataverse.columns import Column, ColumnKind, Lookup, Table

# A state: its label, and its status reasons. The first one is the default.
States = Mapping[int, tuple[str, Mapping[int, str]]]


def plain(kind: ColumnKind, names: str, **options: Any) -> list[Column]:  # noqa: ANN401 - passed on to Column
    """Declare columns of a kind."""
    return [Column(name, kind, **options) for name in names.split()]


def text(names: str, **options: Any) -> list[Column]:  # noqa: ANN401
    """Declare columns of text."""
    return plain(ColumnKind.TEXT, names, **options)


def money(names: str, **options: Any) -> list[Column]:  # noqa: ANN401
    """Declare amounts."""
    return plain(ColumnKind.MONEY, names, **options)


def choice(name: str, labels: Mapping[int, str], default: int | None = None) -> list[Column]:
    """Declare a choice."""
    return [Column(name, ColumnKind.CHOICE, labels=labels, default=default)]


def lookup(name: str, target: str, collection: str = "", on_delete: str = "remove link") -> list[Column]:
    """Declare a lookup to one table; `collection` is the navigation property in the other direction."""
    collections = {target: collection} if collection else {}
    return [Column(name, ColumnKind.LOOKUP, lookup=Lookup({target: name}, collections, on_delete))]


def polymorphic(
    name: str, targets: str, collections: Mapping[str, str] | None = None, on_delete: str = "remove link"
) -> list[Column]:
    """Declare a lookup to several tables, each with its navigation property."""
    navigation = {target: f"{name}_{target}" for target in targets.split()}
    return [Column(name, ColumnKind.LOOKUP, lookup=Lookup(navigation, collections or {}, on_delete))]


def states(declared: States) -> list[Column]:
    """Declare statecode and statuscode; the first reason of the first state is the default."""
    first, (_, first_reasons) = next(iter(declared.items()))
    labels = {state: label for state, (label, _) in declared.items()}
    reasons = {number: label for _, reasons in declared.values() for number, label in reasons.items()}
    state_of = {number: state for state, (_, reasons) in declared.items() for number in reasons}
    return [
        Column("statecode", ColumnKind.CHOICE, labels=labels, default=first),
        Column(
            "statuscode",
            ColumnKind.CHOICE,
            labels=reasons,
            states=state_of,
            default=next(iter(first_reasons)),
        ),
    ]


ACTIVE: Final = states({0: ("Active", {1: "Active"}), 1: ("Inactive", {2: "Inactive"})})

_HISTORY: Final = [
    *plain(ColumnKind.DATETIME, "createdon modifiedon", writable=False),
    Column("createdby", ColumnKind.LOOKUP, writable=False, lookup=Lookup({"systemuser": "createdby"})),
    Column("modifiedby", ColumnKind.LOOKUP, writable=False, lookup=Lookup({"systemuser": "modifiedby"})),
]
_OWNER: Final = Column(
    "ownerid", ColumnKind.LOOKUP, lookup=Lookup({"systemuser": "ownerid", "team": "ownerid"})
)
_OWNING: Final = [
    Column(name, ColumnKind.LOOKUP, writable=False, lookup=Lookup({target: name}))
    for name, target in (
        ("owningbusinessunit", "businessunit"),
        ("owninguser", "systemuser"),
        ("owningteam", "team"),
    )
]


def table(  # noqa: PLR0913 - the parts of a declaration
    name: str,
    set_name: str,
    *columns: list[Column],
    privilege: str,
    code: int,
    owned: bool = False,
    owner_of: str | None = None,
    key: str | None = None,
    primary_name: str = "name",
    history: bool = True,
) -> Table:
    """Declare a table. `owner_of`: the lookup to the row whose owner the rows share; they cannot be assigned."""
    every = [Column(key or f"{name}id", ColumnKind.ID)]
    every += [column for group in columns for column in group]
    if any(column.name == "exchangerate" for column in every):
        every += [
            Column(f"{column.name}_base", ColumnKind.MONEY, writable=False, base_of=column.name)
            for column in every
            if column.kind is ColumnKind.MONEY
        ]
    every += _HISTORY if history else []
    if owned or owner_of:
        every += [replace(_OWNER, writable=owner_of is None), *_OWNING]
    every.append(Column("versionnumber", ColumnKind.VERSION, writable=False))
    return Table(
        name, set_name, {c.name: c for c in every}, privilege, bool(owned or owner_of), primary_name, code
    )
