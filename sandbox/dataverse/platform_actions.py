"""The platform's messages: who the caller is, roles and privileges, the check of a service endpoint."""

import json
from collections.abc import Mapping
from typing import Final

from sandbox.dataverse.columns import Row, guid
from sandbox.dataverse.errors import bad_payload, bad_request, no_record
from sandbox.dataverse.messages import BoundMessage, Parameters, UnboundMessage
from sandbox.dataverse.payload import parse_reference
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Depth, check_access, load_caller, role_privileges
from sandbox.dataverse.service import Session, access_rights


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
    granted = parameters.get("Privileges")
    if not isinstance(granted, list):
        raise bad_payload("role", "Privileges is a collection of RolePrivilege.")
    depths = {depth.word: depth for depth in Depth}
    for item in granted:
        depth = depths.get(str(item.get("Depth"))) if isinstance(item, Mapping) else None
        if depth is None:
            raise bad_payload("role", "Depth is one of 'Basic', 'Local', 'Deep' and 'Global'.")
        privilege = session.find(TABLES["privilege"], guid(item.get("PrivilegeId")))
        grant(session, role["roleid"], privilege["privilegeid"], depth)


def grant(session: Session, role_id: str, privilege_id: str, depth: Depth) -> None:
    """Give a privilege to a role, or change its depth."""
    table = TABLES["roleprivileges"]
    found = session.transaction.rows(table, "roleid = ? AND privilegeid = ?", (role_id, privilege_id))
    if found:
        session.transaction.update(table, found[0][table.key], {"privilegedepthmask": int(depth)})
    else:
        session.add(table, {"roleid": role_id, "privilegeid": privilege_id, "privilegedepthmask": int(depth)})


def remove_privilege_role(session: Session, role: Row, parameters: Parameters) -> None:
    """Take a privilege from a role."""
    check_access(session.caller, TABLES["role"], "Write", role)
    table = TABLES["roleprivileges"]
    privilege_id = guid(parameters.get("PrivilegeId"))
    for row in session.transaction.rows(
        table, "roleid = ? AND privilegeid = ?", (role["roleid"], privilege_id)
    ):
        session.transaction.delete(table, row)


def retrieve_role_privileges(session: Session, parameters: Parameters) -> dict[str, object]:
    """List the privileges of a role."""
    role = session.retrieve(TABLES["role"], guid(parameters.get("RoleId")))
    return _privileges(session, role_privileges(session.transaction, role["roleid"]), role["businessunitid"])


def retrieve_user_privileges(session: Session, user: Row, parameters: Parameters) -> dict[str, object]:
    """List which of the named privileges a user has."""
    names = parameters.get("PrivilegeNames")
    if not isinstance(names, list):
        raise bad_request("PrivilegeNames is a collection of names.")
    depths = load_caller(session.transaction, user, session.organization.id).depths
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


def retrieve_principal_access(session: Session, user: Row, parameters: Parameters) -> dict[str, object]:
    """Return what a user may do with one row."""
    target = parameters.get("Target")
    if isinstance(target, str):
        target = json.loads(target.replace("'", '"'))
    table, record_id = parse_reference((target or {}).get("@odata.id"))
    row = session.transaction.get(table, record_id)
    if row is None:
        raise no_record(table.name, record_id)
    caller = load_caller(session.transaction, user, session.organization.id)
    return {"AccessRights": ", ".join(access_rights(caller, table, row)) or "None"}


def trigger_service_endpoint_check(session: Session, endpoint: Row, _: Parameters) -> None:
    """Have the test message posted to a service endpoint, asynchronously."""
    check_access(session.caller, TABLES["serviceendpoint"], "Read", endpoint)
    session.organization.pipeline.check_endpoint(session.transaction, endpoint, session.request_context)


PLATFORM_ACTIONS: Final[Mapping[str, BoundMessage]] = {
    "AddPrivilegesRole": BoundMessage("role", add_privileges_role, frozenset({"Privileges"})),
    "RemovePrivilegeRole": BoundMessage("role", remove_privilege_role, frozenset({"PrivilegeId"})),
    "TriggerServiceEndpointCheck": BoundMessage("serviceendpoint", trigger_service_endpoint_check),
}
PLATFORM_FUNCTIONS: Final[Mapping[str, UnboundMessage]] = {
    "WhoAmI": UnboundMessage(who_am_i),
    "RetrieveRolePrivilegesRole": UnboundMessage(retrieve_role_privileges, frozenset({"RoleId"})),
}
USER_FUNCTIONS: Final[Mapping[str, BoundMessage]] = {
    "RetrieveUserSetOfPrivilegesByNames": BoundMessage(
        "systemuser", retrieve_user_privileges, frozenset({"PrivilegeNames"})
    ),
    "RetrievePrincipalAccess": BoundMessage("systemuser", retrieve_principal_access, frozenset({"Target"})),
}
