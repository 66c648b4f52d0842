"""The set-up that an administrator does through the Web API, in the order in which it is documented."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sandbox.dataverse import seed
from sandbox.identity import Identity

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Client, World

NAMESPACE = "Microsoft.Dynamics.CRM."
ENDPOINT = "22222222-2222-4333-8444-555555555555"


def create_user(admin: Client, client_id: str, unit: str) -> str:
    body = {"applicationid": client_id, "businessunitid@odata.bind": f"/businessunits({unit})"}
    return admin.create("systemusers", body)


def create_role(admin: Client, unit: str) -> str:
    body = {"name": "Invoicing", "description": "d", "businessunitid@odata.bind": f"/businessunits({unit})"}
    return admin.create("roles", body)


def grant(
    admin: Client, role: str, names: tuple[str, ...], depth: object = "Global", status: int = 204
) -> None:
    condition = " or ".join(f"name eq '{name}'" for name in names)
    privileges = admin.rows(f"privileges?$select=privilegeid,name&$filter={condition}")
    assert {row["name"] for row in privileges} == set(names)
    granted = [{"PrivilegeId": row["privilegeid"], "Depth": depth} for row in privileges]
    admin.post(f"roles({role})/{NAMESPACE}AddPrivilegesRole", {"Privileges": granted}, status)


def create_endpoint(admin: Client) -> None:
    body = {
        "serviceendpointid": ENDPOINT,
        "name": "Opportunity won",
        "description": "d",
        "contract": 6,
        "connectionmode": 1,
        "authtype": 2,
        "namespaceformat": 2,
        "namespaceaddress": "sb://sandbox.servicebus.windows.net/",
        "solutionnamespace": "sandbox",
        "path": "opportunity-won",
        "saskeyname": "dataverse",
        "saskey": "k" * 44,
        "messageformat": 2,
        "userclaim": 1,
    }
    admin.post("serviceendpoints", body)


def create_step(admin: Client) -> str:
    (message,) = admin.rows(
        "sdkmessages?$select=sdkmessageid,name&$filter=name eq 'Win'&$expand=sdkmessageid_sdkmessagefilter("
        "$select=sdkmessagefilterid,primaryobjecttypecode,iscustomprocessingstepallowed;"
        "$filter=primaryobjecttypecode eq 'opportunity')"
    )
    (message_filter,) = message["sdkmessageid_sdkmessagefilter"]
    assert message_filter["primaryobjecttypecode"] == "opportunity"
    assert message_filter["iscustomprocessingstepallowed"] is True
    body = {
        "name": "Opportunity won",
        "description": "d",
        "mode": 1,
        "stage": 40,
        "rank": 1,
        "supporteddeployment": 0,
        "asyncautodelete": True,
        "eventhandler_serviceendpoint@odata.bind": f"/serviceendpoints({ENDPOINT})",
        "sdkmessageid@odata.bind": f"/sdkmessages({message['sdkmessageid']})",
        "sdkmessagefilterid@odata.bind": f"/sdkmessagefilters({message_filter['sdkmessagefilterid']})",
    }
    return admin.create("sdkmessageprocessingsteps", body)


def test_after_the_set_up_a_win_is_posted_and_the_function_may_invoice_it(world: World) -> None:
    admin, identity = world.admin, Identity.named("function")
    user = create_user(admin, identity.client_id, world.root_unit)
    role = create_role(admin, world.root_unit)
    grant(admin, role, seed.INVOICING_PRIVILEGES)
    admin.post(
        f"systemusers({user})/systemuserroles_association/$ref", {"@odata.id": f"{admin.root}roles({role})"}
    )
    create_endpoint(admin)
    create_step(admin)
    admin.win(world.opportunity)
    assert world.app.run_due_jobs() == 1
    assert world.outside.posted[0].endpoint.sas_key == "k" * 44
    assert world.outside.posted[0].endpoint.namespace_address == "sb://sandbox.servicebus.windows.net/"
    assert world.client(identity).generate(world.opportunity)["_ownerid_value"] == user


def test_a_second_application_user_for_a_client_id_is_refused(world: World) -> None:
    identity = Identity.named("function")
    create_user(world.admin, identity.client_id, world.root_unit)
    body = {
        "applicationid": identity.client_id.upper(),
        "businessunitid@odata.bind": f"/businessunits({world.root_unit})",
    }
    assert world.admin.refused("POST", "systemusers", body, 412)["code"] == "0x80040237"
    assert len(world.admin.rows(f"systemusers?$filter=applicationid eq {identity.client_id}")) == 1


def test_a_depth_is_a_word_and_a_greater_one_replaces_a_lesser(world: World) -> None:
    role = create_role(world.admin, world.root_unit)
    names = ("prvReadInvoice", "prvReadOpportunity")
    grant(world.admin, role, names, depth=8, status=400)
    grant(world.admin, role, names, depth="Basic")
    grant(world.admin, role, names[:1])
    response = world.admin.get(f"RetrieveRolePrivilegesRole(RoleId={role})")
    assert {p["PrivilegeName"]: p["Depth"] for p in response["RolePrivileges"]} == {
        "prvReadInvoice": "Global",
        "prvReadOpportunity": "Basic",
    }
    assert {p["BusinessUnitId"] for p in response["RolePrivileges"]} == {world.root_unit}


def test_only_who_may_write_roles_changes_them(world: World) -> None:
    (role,) = world.admin.rows("roles?$filter=name eq 'Opportunity Invoicing'")
    client = world.new_client(["prvReadRole", "prvReadPrivilege", "prvReadUser"])
    (privilege,) = client.rows("privileges?$filter=name eq 'prvDeleteInvoice'")
    body = {"Privileges": [{"PrivilegeId": privilege["privilegeid"], "Depth": "Global"}]}
    path = f"roles({role['roleid']})"
    error = client.refused("POST", f"{path}/{NAMESPACE}AddPrivilegesRole", body, 403)
    assert "prvWriteRole" in error["message"]
    user = f"systemusers({world.function_user})/systemuserroles_association/$ref"
    error = client.refused("POST", user, {"@odata.id": client.root + path}, 403)
    assert "prvWriteUser" in error["message"]


def test_a_user_has_what_its_roles_give_and_nothing_after_they_are_taken(world: World) -> None:
    admin = world.admin
    user, role = (
        create_user(admin, Identity.named("f").client_id, world.root_unit),
        create_role(admin, world.root_unit),
    )
    grant(admin, role, ("prvReadInvoice",))
    association = f"systemusers({user})/systemuserroles_association"

    def held() -> list[str]:
        names = json.dumps(["prvReadInvoice", "prvReadNote"])
        path = f"systemusers({user})/{NAMESPACE}RetrieveUserSetOfPrivilegesByNames(PrivilegeNames=@p1)?@p1={names}"
        return [privilege["PrivilegeName"] for privilege in admin.get(path)["RolePrivileges"]]

    assert held() == []
    for _ in range(2):
        admin.post(f"{association}/$ref", {"@odata.id": f"{admin.root}roles({role})"})
    assert [row["roleid"] for row in admin.rows(f"{association}?$select=roleid")] == [role]
    assert [row["systemuserid"] for row in admin.rows(f"roles({role})/systemuserroles_association")] == [user]
    assert held() == ["prvReadInvoice"]
    admin.delete(f"{association}({role})/$ref")
    assert held() == []
    assert admin.rows(association) == []


def test_the_sas_key_goes_in_and_never_out(world: World) -> None:
    create_endpoint(world.admin)
    path = f"serviceendpoints({ENDPOINT})"
    response = world.admin.call("GET", path)
    assert response.json()["issaskeyset"] is True
    assert "k" * 44 not in response.text
    assert "saskey" not in response.json()
    world.admin.get(f"{path}?$select=saskey", status=400)
    world.admin.get("serviceendpoints?$filter=saskey eq 'k'", status=400)
    world.admin.patch(path, {"saskey": "n" * 44}, If_Match="*")
    world.admin.patch(path, {"saskey": None}, If_Match="*")
    assert world.admin.get(path)["issaskeyset"] is False


def test_the_steps_of_an_endpoint_are_found_and_hold_it(world: World) -> None:
    create_endpoint(world.admin)
    step = create_step(world.admin)
    (found,) = world.admin.rows(
        f"serviceendpoints({ENDPOINT})/serviceendpoint_sdkmessageprocessingstep"
        "?$select=name,statecode,mode&$expand=sdkmessageid($select=name)"
    )
    assert (found["sdkmessageprocessingstepid"], found["statecode"], found["mode"]) == (step, 0, 1)
    assert found["sdkmessageid"]["name"] == "Win"
    world.admin.delete(f"serviceendpoints({ENDPOINT})", 400)
    world.admin.delete(f"sdkmessageprocessingsteps({step})")
    world.admin.delete(f"serviceendpoints({ENDPOINT})")
