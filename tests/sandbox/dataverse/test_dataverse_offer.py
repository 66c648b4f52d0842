"""What is supported and what is refused, over HTTPS, as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import Depth, seed
from sandbox.dataverse.schema import ACT_ON_BEHALF
from sandbox.identity import Identity

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Client, World

PAGE = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()
REFUSALS = re.findall(r"^\| (`(?:GET|POST) [^|]*) \| `(\d{3}) ([^`|]*)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("request_cell", "status", "text"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_the_page_says_what_is_refused_and_how(
    https_world: World, request_cell: str, status: str, text: str
) -> None:
    world = https_world
    request, *headers = re.findall(r"`([^`]*)`", request_cell)
    filled = request.replace("{opportunity}", world.opportunity)
    method, path, *body = filled.split(" ", 2) if " {" in filled else filled.split(" ", 1)
    named = dict(header.split(": ") for header in headers if ": " in header)
    named = {name: value.replace("{user}", world.function_user) for name, value in named.items()}
    response = world.admin.call(method, path, json.loads(body[0]) if body else None, named)
    assert response.status_code == int(status)
    assert text.removeprefix("… ") in response.json()["error"]["message"]


def test_the_page_has_the_refusals() -> None:
    assert len(REFUSALS) > 20


def test_a_single_property_is_read_set_and_emptied(https_world: World) -> None:
    client = https_world.admin
    path = f"accounts({https_world.demo.accounts[0]})/telephone1"
    client.send("GET", path, None, 204)
    client.send("PUT", path, {"value": "555"}, 204)
    assert client.get(path)["value"] == "555"
    client.delete(path)
    client.send("GET", path, None, 204)


@pytest.mark.parametrize(
    ("method", "name", "body", "status"),
    [
        ("PUT", "name", {"value": 7}, 400),
        ("PUT", "name", {"name": "x"}, 400),
        ("PUT", "createdon", {"value": "2026-01-01"}, 400),
        ("PUT", "nothing", {"value": "x"}, 405),
        ("POST", "name", {"value": "x"}, 405),
        ("GET", "nothing", None, 404),
    ],
)
def test_a_property_takes_a_value_of_its_kind_only(
    world: World, method: str, name: str, body: object, status: int
) -> None:
    world.admin.refused(method, f"accounts({world.demo.accounts[0]})/{name}", body, status)


def test_rows_are_counted(https_world: World) -> None:
    client, count = https_world.admin, str(len(https_world.demo.opportunities))
    response = client.call("GET", "opportunities/$count")
    assert response.headers["Content-Type"] == "text/plain"
    assert response.text == count
    assert client.call("GET", "opportunities/$count?$filter=statecode eq 1").text == "0"
    path = f"{https_world.path}/product_opportunities"
    assert client.call("GET", f"{path}/$count").text == str(len(client.rows(path)))
    (part,) = client.parts(client.operation("GET", "opportunities/$count"))
    assert part.body == count


def test_the_columns_of_a_table_are_described(https_world: World) -> None:
    path = "EntityDefinitions(LogicalName='invoice')/Attributes"
    described = {row["LogicalName"]: row for row in https_world.admin.rows(path)}
    kinds = {
        "invoiceid": "Uniqueidentifier",
        "totalamount": "Money",
        "customerid": "Customer",
        "ownerid": "Owner",
        "statecode": "State",
        "statuscode": "Status",
        "duedate": "DateTime",
        "new_costcenter": "String",
        "new_channel": "Picklist",
        "new_project": "Lookup",
    }
    assert {name: described[name]["AttributeType"] for name in kinds} == kinds
    assert described["new_project"]["Targets"] == ["new_project"]
    assert not any(name.startswith("_") for name in described)
    (one,) = https_world.admin.rows(f"{path}?$filter=LogicalName eq 'new_project'")
    assert one == described["new_project"]
    assert https_world.admin.rows(f"{path}?$filter=LogicalName eq 'nothing'") == []


# --- on behalf of others ------------------------------------------------------------------------------------


@pytest.fixture
def gateway(world: World) -> Client:
    """Give a client that may act on behalf of others, and read opportunities and accounts itself."""
    names = ["prvReadOpportunity", "prvReadAccount", ACT_ON_BEHALF]
    return world.new_client(names)


@pytest.mark.parametrize("header", ["MSCRMCallerID", "CallerObjectId"])
def test_acting_for_others_is_refused_without_the_privilege(world: World, header: str) -> None:
    client, value = world.function, world.demo.sellers[0]
    alone = client.refused("GET", "WhoAmI", None, 403, **{header: value})
    assert alone["code"] == "0x80040220"
    assert ACT_ON_BEHALF in alone["message"]
    part = client.operation("GET", "WhoAmI", **{header: value})
    note = client.operation("POST", "annotations", "{}", **{header: value})
    refused, nested = client.parts(part, client.change_set(note))
    assert (refused.status, nested.nested[0].status) == (403, 403)


def test_with_the_privilege_both_users_limit_what_is_done(world: World, gateway: Client) -> None:
    seller = world.demo.sellers[0]
    assert gateway.get("WhoAmI", MSCRMCallerID=seller)["UserId"] == seller
    gateway.get("opportunities", MSCRMCallerID=seller)
    # The seller may read contacts, the gateway may not.
    gateway.refused("GET", "contacts", None, 403, MSCRMCallerID=seller)
    (part,) = gateway.parts(gateway.operation("GET", "WhoAmI", MSCRMCallerID=seller))
    assert json.loads(part.body)["UserId"] == seller


def test_a_user_is_named_by_its_object_id(world: World, gateway: Client) -> None:
    identity = Identity.named("colleague")
    user = seed.add_application_user(world.app, identity.client_id, identity.object_id)
    assert gateway.get("WhoAmI", CallerObjectId=identity.object_id)["UserId"] == user
    assert gateway.refused("GET", "WhoAmI", None, 403, CallerObjectId=user)["code"] == "0x80072560"


def test_the_privilege_of_a_team_does_not_count(world: World) -> None:
    client = world.new_client(["prvReadAccount"])
    role = seed.add_role(world.app, [ACT_ON_BEHALF], depth=Depth.GLOBAL, name="Delegate")
    member = client.get("WhoAmI")["UserId"]
    seed.add_team(world.app, "Delegates", roles=[role], members=[member])
    client.refused("GET", "WhoAmI", None, 403, MSCRMCallerID=world.demo.sellers[0])
