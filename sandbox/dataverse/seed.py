"""Sets up an organization: users, teams, roles, service endpoints, steps, and the demo organization."""

from collections.abc import Iterable, Mapping
from typing import Final

from sandbox.dataverse.base_data import ADMINISTRATOR_ROLE
from sandbox.dataverse.columns import ORGANIZATION_ID as ORGANIZATION_ID  # noqa: PLC0414 - of all that is seeded
from sandbox.dataverse.demo_organization import DemoOrganization as DemoOrganization  # noqa: PLC0414
from sandbox.dataverse.demo_organization import demo_organization as demo_organization  # noqa: PLC0414
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Depth, granted, privilege_id
from sandbox.dataverse.web_api import DataverseApp

# The privileges of the deployed function's role: those documented for GenerateInvoiceFromOpportunity, and those for the
# claim, for reading the event's contents and the definitions of its columns, and for assigning the invoice.
INVOICING_PRIVILEGES: Final = (
    "prvCreateInvoice", "prvReadInvoice", "prvAppendInvoice", "prvAppendToInvoice",
    "prvReadOpportunity", "prvAppendToOpportunity", "prvAppendToAccount", "prvAppendToContact",
    "prvReadEntityMap", "prvReadAttributeMap", "prvReadTransactionCurrency", "prvReadSalesOrder",
    "prvCreateNote", "prvReadNote", "prvAppendNote",
    "prvReadActivity", "prvReadProduct", "prvReadAccount", "prvReadContact",
    "prvWriteInvoice", "prvAssignInvoice", "prvReadUser", "prvReadTeam",
    "prvReadEntity", "prvReadAttribute",
)  # fmt: skip


# --- users, roles, endpoints --------------------------------------------------------------------------------


def add_administrator(app: DataverseApp, client_id: str, object_id: str | None = None) -> str:
    """Create an application user that may do everything; return its id."""
    return add_application_user(app, client_id, object_id, roles=[find_role(app, ADMINISTRATOR_ROLE)])


def find_role(app: DataverseApp, name: str) -> str:
    """Return the id of the role with this name."""
    with app.database.reading() as transaction:
        return str(transaction.rows(TABLES["role"], "name = ?", (name,))[0]["roleid"])


def add_application_user(
    app: DataverseApp,
    client_id: str,
    object_id: str | None = None,
    *,
    roles: Iterable[str] = (),
    business_unit: str | None = None,
) -> str:
    """Create an application user with these roles, by default in the root business unit; return its id."""
    with app.session() as session:
        user = session.add(
            TABLES["systemuser"],
            {
                "applicationid": client_id.lower(),
                "azureactivedirectoryobjectid": object_id.lower() if object_id else None,
                "fullname": f"# {client_id[:8]}",
                "businessunitid": business_unit or session.caller.business_unit_id,
            },
        )["systemuserid"]
        for role in roles:
            session.add(TABLES["systemuserroles"], {"systemuserid": user, "roleid": role})
    return str(user)


def add_team(
    app: DataverseApp, name: str, *, roles: Iterable[str] = (), members: Iterable[str] = (), kind: int = 0
) -> str:
    """Create a team (kind 0 owns rows, 1 does not) with roles and members in the root business unit; return its id."""
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
    """Create a role with privileges of one depth, or of a depth for each; return its id."""
    depths = dict(privileges) if isinstance(privileges, Mapping) else dict.fromkeys(privileges, depth)
    with app.session() as session:
        unit = session.caller.business_unit_id
        role = session.add(TABLES["role"], {"name": name, "businessunitid": unit})["roleid"]
        for privilege, reach in depths.items():
            grant = granted(role, privilege_id(privilege), reach)
            session.add(TABLES["roleprivileges"], grant)
    return str(role)


def add_service_endpoint(
    app: DataverseApp,
    *,
    namespace_address: str,
    path: str,
    sas_key_name: str = "dataverse",
    sas_key: str = "",
) -> str:
    """Register a queue to post to; return the service endpoint's id."""
    with app.session() as session:
        values = {
            "name": path,
            "namespaceaddress": namespace_address,
            "path": path,
            "saskeyname": sas_key_name,
            "saskey": sas_key,
            "contract": 6,
            "authtype": 2,
            "namespaceformat": 2,
            "messageformat": 2,
        }
        return str(session.create(TABLES["serviceendpoint"], values)["serviceendpointid"])


def add_step(
    app: DataverseApp,
    endpoint: str,
    message: str = "Win",
    table: str = "opportunity",
    *,
    mode: int = 1,
    auto_delete: bool = True,
) -> str:
    """Register a step (mode 1 asynchronous, 0 synchronous) that posts to an endpoint; return its id."""
    with app.session() as session:
        (message_filter,) = session.transaction.rows(
            TABLES["sdkmessagefilter"],
            "primaryobjecttypecode = ? AND sdkmessageid IN (SELECT sdkmessageid FROM sdkmessage WHERE name = ?)",
            (table, message),
        )
        values = {
            "name": f"{message} of {table}",
            "mode": mode,
            "stage": 40,
            "asyncautodelete": auto_delete,
            "eventhandler": endpoint,
            "sdkmessageid": message_filter["sdkmessageid"],
            "sdkmessagefilterid": message_filter["sdkmessagefilterid"],
        }
        return str(session.create(TABLES["sdkmessageprocessingstep"], values)["sdkmessageprocessingstepid"])
