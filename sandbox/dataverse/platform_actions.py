"""The platform's messages: who the caller is, roles and privileges."""

from collections.abc import Mapping
from typing import Final

from sandbox.dataverse.columns import Row, guid
from sandbox.dataverse.errors import bad_payload, bad_request
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Depth, check_access, granted, load_caller, role_privileges
from sandbox.dataverse.service import Parameters, SdkMessage, Session


def who_am_i(session: Session, _: Parameters) -> dict[str, object]:
    """Return the caller's ids."""
    return {
        "BusinessUnitId": session.caller.business_unit_id,
        "UserId": session.caller.user_id,
        "OrganizationId": session.organization.id,
    }


def add_privileges_role(session: Session, role: Row, parameters: Parameters) -> None:
    """Grant privileges to a role. One that it has gets the new depth; this is not confirmed for Dataverse."""
    check_access(session.caller, TABLES["role"], "Write", role)
    privileges, table = parameters.get("Privileges"), TABLES["roleprivileges"]
    if not isinstance(privileges, list):
        raise bad_payload("role", "Privileges is a collection of RolePrivilege.")
    depths = {depth.word: depth for depth in Depth}
    for item in privileges:
        depth = depths.get(str(item.get("Depth"))) if isinstance(item, Mapping) else None
        if depth is None:
            raise bad_payload("role", "Depth is one of 'Basic', 'Local', 'Deep' and 'Global'.")
        privilege = session.find(TABLES["privilege"], guid(item.get("PrivilegeId")))
        row = granted(role["roleid"], privilege["privilegeid"], depth)
        found = session.transaction.rows(
            table, "roleid = ? AND privilegeid = ?", (row["roleid"], row["privilegeid"])
        )
        if found:
            session.transaction.update(table, found[0][table.key], row)
        else:
            session.add(table, row)


def retrieve_role_privileges(session: Session, parameters: Parameters) -> dict[str, object]:
    """List the privileges of a role."""
    role = session.retrieve(TABLES["role"], guid(parameters.get("RoleId")))
    return _privileges(session, role_privileges(session.transaction, role["roleid"]), role["businessunitid"])


def retrieve_user_privileges(session: Session, user: Row, parameters: Parameters) -> dict[str, object]:
    """List which of the named privileges a user has."""
    names = parameters.get("PrivilegeNames")
    if not isinstance(names, list):
        raise bad_request("PrivilegeNames is a collection of names.")
    depths = load_caller(session.transaction, user).depths
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


PLATFORM_FUNCTIONS: Final[Mapping[str, SdkMessage]] = {
    "WhoAmI": SdkMessage(who_am_i),
    "RetrieveRolePrivilegesRole": SdkMessage(retrieve_role_privileges, frozenset({"RoleId"})),
}
# By method, table and name.
BOUND_MESSAGES: Final[Mapping[tuple[str, str, str], SdkMessage]] = {
    ("POST", "role", "AddPrivilegesRole"): SdkMessage(add_privileges_role, frozenset({"Privileges"})),
    ("GET", "systemuser", "RetrieveUserSetOfPrivilegesByNames"): SdkMessage(
        retrieve_user_privileges, frozenset({"PrivilegeNames"})
    ),
}
