"""Who the caller is, and what its roles permit: privileges with their depth, rows by owner and business unit.

An injected callable verifies tokens. This module finds the application user of a token's client id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from http import HTTPStatus
from typing import Final

from sandbox.dataverse.columns import ORGANIZATION_ID, Row, Table, stable_id
from sandbox.dataverse.database import Transaction
from sandbox.dataverse.errors import RequestRefused, privilege_denied, user_disabled
from sandbox.dataverse.filters import Condition
from sandbox.dataverse.schema import ACT_ON_BEHALF, TABLES

# The headers by which a request acts as another user, and the column that each names the user by.
_IMPERSONATION: Final = {"callerobjectid": "azureactivedirectoryobjectid", "mscrmcallerid": "systemuserid"}


class Depth(IntEnum):
    """How far a privilege reaches; the numbers are those of `privilegedepthmask`."""

    BASIC = 1
    LOCAL = 2
    DEEP = 4
    GLOBAL = 8

    @property
    def word(self) -> str:
        """The depth as the Web API's actions write it."""
        return self.name.capitalize()


@dataclass(frozen=True)
class Caller:
    """A user with the privileges of all of its roles; `units` is its business unit and those below."""

    user_id: str
    business_unit_id: str
    name: str = ""
    depths: Mapping[str, Depth] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    roles: int = 0
    # Whether a role of the user's own, not of a team, lets it act on behalf of others.
    acts_for_others: bool = False
    # The platform itself, which needs no privileges: it seeds rows and carries out the consequences of actions.
    is_platform: bool = False

    def depth(self, privilege: str) -> Depth | None:
        """Return how far the caller's privilege reaches; None if the caller lacks it."""
        return Depth.GLOBAL if self.is_platform else self.depths.get(privilege)

    @property
    def owners(self) -> tuple[str, ...]:
        """The owners whose rows count as the caller's own: itself and its teams."""
        return (self.user_id, *self.teams)

    def units_within(self, depth: Depth) -> tuple[str, ...]:
        """Return the business units whose rows a privilege of this depth, less than global, reaches."""
        return {Depth.BASIC: (), Depth.LOCAL: (self.business_unit_id,), Depth.DEEP: self.units}[depth]


def application_user(transaction: Transaction, client_id: str) -> Caller:
    """Return the application user of a client id. Raises RequestRefused (403) if there is none or it is disabled."""
    users = transaction.rows(TABLES["systemuser"], '"applicationid" = ?', (client_id.lower(),))
    if not users:
        raise _not_a_member()
    if users[0]["isdisabled"]:
        raise user_disabled(users[0]["systemuserid"])
    return load_caller(transaction, users[0])


def load_caller(transaction: Transaction, user: Row) -> Caller:
    """Collect a user's privileges from its roles and those of its teams."""
    user_id, unit = str(user["systemuserid"]), str(user["businessunitid"])
    memberships = transaction.rows(TABLES["teammembership"], "systemuserid = ?", (user_id,))
    teams = tuple(str(row["teamid"]) for row in memberships)
    roles = _roles(transaction, "systemuser", user_id)
    for team in teams:
        roles += _roles(transaction, "team", team)
    return Caller(
        user_id,
        unit,
        str(user["fullname"]),
        _depths(transaction, roles),
        _units_below(transaction, unit),
        teams,
        len(roles),
        ACT_ON_BEHALF in _depths(transaction, _roles(transaction, "systemuser", user_id)),
    )


def acting(transaction: Transaction, caller: Caller, headers: Mapping[str, str]) -> Caller:
    """Return the user as whom a request acts: the caller, or the user in a header, with the privileges of both.

    Raises RequestRefused (403) without the privilege, and for a user that does not exist.
    """
    named = [(column, headers[name]) for name, column in _IMPERSONATION.items() if headers.get(name)]
    if not named:
        return caller
    if not caller.acts_for_others:
        raise privilege_denied(
            f"Principal user (Id={caller.user_id}, type=8) is missing {ACT_ON_BEHALF} privilege "
            f"(Id={privilege_id(ACT_ON_BEHALF)})."
        )
    column, value = named[0]
    users = transaction.rows(TABLES["systemuser"], f'"{column}" = ?', (value.lower(),))
    if not users:
        raise _not_a_member()
    user = load_caller(transaction, users[0])
    common = user.depths.keys() & caller.depths.keys()
    return replace(
        user, depths={name: min(user.depths[name], caller.depths[name]) for name in sorted(common)}
    )


def _not_a_member() -> RequestRefused:
    return RequestRefused(HTTPStatus.FORBIDDEN, "0x80072560", "The user is not a member of the organization.")


def load_team(transaction: Transaction, team: Row) -> Caller:
    """Collect the privileges of a team that owns a row."""
    team_id, unit = str(team["teamid"]), str(team["businessunitid"])
    roles = _roles(transaction, "team", team_id)
    return Caller(team_id, unit, str(team["name"]), _depths(transaction, roles), roles=len(roles))


def _roles(transaction: Transaction, kind: str, principal_id: str) -> list[str]:
    rows = transaction.rows(TABLES[f"{kind}roles"], f"{kind}id = ?", (principal_id,))
    return [str(row["roleid"]) for row in rows]


def _depths(transaction: Transaction, roles: list[str]) -> dict[str, Depth]:
    depths: dict[str, Depth] = {}
    for role in roles:
        for name, depth in role_privileges(transaction, role).items():
            depths[name] = max(depth, depths.get(name, depth))
    return depths


def role_privileges(transaction: Transaction, role_id: str) -> dict[str, Depth]:
    """Return a role's privileges by name."""
    granted = {
        row["privilegeid"]: Depth(row["privilegedepthmask"])
        for row in transaction.rows(TABLES["roleprivileges"], "roleid = ?", (role_id,))
    }
    return {
        row["name"]: granted[row["privilegeid"]]
        for row in transaction.rows(
            TABLES["privilege"],
            "privilegeid IN (SELECT privilegeid FROM roleprivileges WHERE roleid = ?)",
            (role_id,),
        )
    }


def privilege_id(name: str) -> str:
    """Return the id of a privilege, which refusals name as well."""
    return stable_id(ORGANIZATION_ID, name)


def granted(role: str, privilege: str, depth: Depth) -> Row:
    """Return the row by which a role has a privilege."""
    return {"roleid": role, "privilegeid": privilege, "privilegedepthmask": int(depth)}


def _units_below(transaction: Transaction, unit: str) -> tuple[str, ...]:
    units = [unit]
    for above in units:
        units += [
            row["businessunitid"]
            for row in transaction.rows(TABLES["businessunit"], "parentbusinessunitid = ?", (above,))
        ]
    return tuple(units)


def require(caller: Caller, verb: str, table: Table) -> Depth:
    """Return how far the caller's privilege on a table reaches. Raises RequestRefused (403) if it lacks it."""
    return _require(
        caller,
        f"prv{verb}{table.privilege}",
        f" on OTC={table.code} for entity '{table.name}' (LocalizedName='{table.privilege}')",
    )


def require_metadata(caller: Caller, kind: str) -> None:
    """Refuse (403) a caller that may not read definitions of this kind, Entity or Attribute."""
    _require(caller, f"prvRead{kind}", "")


def _require(caller: Caller, privilege: str, about: str) -> Depth:
    depth = caller.depth(privilege)
    if depth is None:
        raise privilege_denied(
            f"Principal user (Id={caller.user_id}, type=8, roleCount={caller.roles}, "
            f"privilegeCount={len(caller.depths)}, accessMode='4 Non-interactive') is missing {privilege} "
            f"privilege (Id={privilege_id(privilege)}){about}. "
            f"context.Caller={caller.user_id}."
        )
    return depth


def visible(caller: Caller, table: Table, verb: str = "Read") -> Condition:
    """Return the condition under which the caller's privilege covers a row `t`. Raises 403 if it lacks it."""
    depth = require(caller, verb, table)
    if not table.owned or depth is Depth.GLOBAL:
        return Condition("1")
    owners, units = caller.owners, caller.units_within(depth)
    return Condition(
        f"(t.ownerid IN ({_places(owners)}) OR t.owningbusinessunit IN ({_places(units)}))", (*owners, *units)
    )


def _places(values: tuple[str, ...]) -> str:
    return ", ".join("?" * len(values))


def check_access(caller: Caller, table: Table, verb: str, row: Row) -> None:
    """Refuse (403) an operation that the caller may not do with this row."""
    depth = require(caller, verb, table)
    if not table.owned or depth is Depth.GLOBAL:
        return
    if row["ownerid"] not in caller.owners and row["owningbusinessunit"] not in caller.units_within(depth):
        raise privilege_denied(
            f"SecLib::AccessCheckEx failed. Returned hr = -2147187962, ObjectID: {row[table.key]}, "
            f"OwnerId: {row.get('ownerid')}, OwnerIdType: 8 and CallingUser: {caller.user_id}. "
            f"ObjectTypeCode: {table.code}, objectBusinessUnitId: {row.get('owningbusinessunit')}, "
            f"AccessRights: {verb}Access"
        )
