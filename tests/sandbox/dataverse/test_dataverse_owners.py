"""Who owns a row: assigning to users and teams, alone and in a batch, and every refusal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import Depth, base_data, seed
from sandbox.identity import Identity

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Client, World

LOOKUP_NAME = "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"
FORMATTED = "_ownerid_value@OData.Community.Display.V1.FormattedValue"


@pytest.fixture
def invoice(world: World) -> str:
    return str(world.function.generate(world.opportunity)["invoiceid"])


def to(kind: str, owner: str) -> dict[str, str]:
    return {"ownerid@odata.bind": f"/{kind}({owner})"}


def owner_of(world: World, invoice: str) -> tuple[str, str]:
    row = world.admin.get(
        f"invoices({invoice})?$select=_ownerid_value", Prefer='odata.include-annotations="*"'
    )
    return row["_ownerid_value"], row[LOOKUP_NAME]


def refusal(client: Client, invoice: str, body: dict[str, str], status: int = 403) -> tuple[str, str]:
    error = client.patch(f"invoices({invoice})", body, status).json()["error"]
    return error["code"], error["message"]


def make_team(world: World, *roles: str, kind: int = 0) -> str:
    return seed.add_team(world.app, "Key accounts", roles=roles, kind=kind)


def salesperson(world: World) -> str:
    return seed.find_role(world.app, base_data.SALESPERSON_ROLE)


def make_user(world: World, *roles: str) -> str:
    return seed.add_application_user(world.app, Identity.named("new owner").client_id, roles=roles)


def test_an_invoice_is_assigned_to_a_user_and_again(world: World, invoice: str) -> None:
    seller = world.demo.sellers[0]
    for _ in range(2):
        world.function.patch(f"invoices({invoice})", to("systemusers", seller))
        assert owner_of(world, invoice) == (seller, "systemuser")


def test_an_invoice_is_assigned_to_a_team(world: World, invoice: str) -> None:
    team = make_team(world, salesperson(world))
    world.function.patch(f"invoices({invoice})", to("teams", team))
    assert owner_of(world, invoice) == (team, "team")
    row = world.admin.get(f"invoices({invoice})", Prefer='odata.include-annotations="*"')
    assert (row["_owningteam_value"], row["_owninguser_value"]) == (team, None)
    assert row[FORMATTED] == "Key accounts"


def test_an_invoice_is_assigned_in_a_batch_alone_and_in_a_change_set(world: World, invoice: str) -> None:
    client, (first, second, *_) = world.function, world.demo.sellers

    def assign(owner: str) -> str:
        return client.operation("PATCH", f"invoices({invoice})", json.dumps(to("systemusers", owner)))

    (alone,) = client.parts(assign(first))
    assert alone.status == 204
    assert owner_of(world, invoice)[0] == first
    (together,) = client.parts(client.change_set(assign(second)))
    assert [part.status for part in together.nested] == [204]
    assert owner_of(world, invoice)[0] == second


def test_a_failed_assignment_of_a_batch_leaves_the_rest(world: World, invoice: str) -> None:
    client = world.function
    body = json.dumps(to("systemusers", make_user(world)))
    refused, read = client.parts(
        client.operation("PATCH", f"invoices({invoice})", body),
        client.operation("GET", f"invoices({invoice})?$select=name"),
    )
    assert (refused.status, read.status) == (403, 200)


def test_an_owner_without_read_is_refused(world: World, invoice: str) -> None:
    nothing = seed.add_role(world.app, ["prvReadAccount"], name="Reads accounts")
    for kind, owner in (
        ("teams", make_team(world)),
        ("teams", make_team(world, nothing)),
        ("systemusers", make_user(world, nothing)),
    ):
        code, message = refusal(world.function, invoice, to(kind, owner))
        assert code == "0x80040299"
        assert message.startswith("Read Privilege Check For Owner failed")
    assert owner_of(world, invoice)[0] == world.function_user


def test_users_without_roles_and_disabled_users_are_refused(world: World, invoice: str) -> None:
    assert refusal(world.function, invoice, to("systemusers", make_user(world)))[0] == "0x80042f09"
    seller = world.demo.sellers[0]
    world.admin.patch(f"systemusers({seller})", {"isdisabled": True})
    assert refusal(world.function, invoice, to("systemusers", seller))[0] == "0x80040225"


def test_an_owner_must_exist_and_access_teams_own_nothing(world: World, invoice: str) -> None:
    nowhere = "00000000-0000-4000-8000-000000000000"
    assert refusal(world.function, invoice, to("teams", nowhere), 404)[0] == "0x80040217"
    team = make_team(world, salesperson(world), kind=1)
    refusal(world.function, invoice, to("teams", team), 400)
    refusal(world.function, invoice, to("accounts", world.demo.accounts[0]), 400)
    world.function.patch(f"invoices({invoice})", {"ownerid@odata.bind": None}, 400)


@pytest.mark.parametrize("missing", ["prvAssignInvoice", "prvWriteInvoice", "prvReadUser"])
def test_each_privilege_is_needed_and_named(world: World, invoice: str, missing: str) -> None:
    names = ["prvReadInvoice", "prvWriteInvoice", "prvAssignInvoice", "prvReadUser"]
    client = world.new_client([name for name in names if name != missing])
    code, message = refusal(client, invoice, to("systemusers", world.demo.sellers[0]))
    assert code == "0x80040220"
    assert missing in message


def test_the_depth_concerns_the_present_owner(world: World) -> None:
    """User depth suffices for the caller's own invoice, and not once it has been assigned."""
    own = dict.fromkeys(seed.INVOICING_PRIVILEGES, Depth.GLOBAL) | {"prvAssignInvoice": Depth.BASIC}
    client = world.new_client(own)
    invoice = str(client.generate(world.opportunity)["invoiceid"])
    first, second, *_ = world.demo.sellers
    client.patch(f"invoices({invoice})", to("systemusers", first))
    code, message = refusal(client, invoice, to("systemusers", second))
    assert (code, "AssignAccess" in message) == ("0x80040220", True)


def test_lines_stay_with_their_maker_and_cannot_be_assigned(world: World, invoice: str) -> None:
    seller = world.demo.sellers[0]
    world.function.patch(f"invoices({invoice})", to("systemusers", seller))
    lines = world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice}")
    assert {line["_ownerid_value"] for line in lines} == {world.function_user}
    path = f"invoicedetails({lines[0]['invoicedetailid']})"
    world.admin.patch(path, to("systemusers", seller), 400)


def test_members_of_a_team_see_its_rows(world: World) -> None:
    client = world.new_client({"prvReadOpportunity": Depth.BASIC})
    user = client.get("WhoAmI")["UserId"]
    role = seed.add_role(world.app, ["prvReadOpportunity"], depth=Depth.BASIC, name="Reads its own")
    team = seed.add_team(world.app, "Owners", roles=[role], members=[user])
    world.admin.patch(world.path, to("teams", team))
    client.get(world.path)
    assert [row["opportunityid"] for row in client.rows("opportunities")] == [world.opportunity]


def test_an_assignment_is_a_message_of_its_own(world: World, invoice: str) -> None:
    world.listen("Assign", "invoice")
    for _ in range(2):
        world.function.patch(f"invoices({invoice})", to("systemusers", world.demo.sellers[0]))
    (context,) = world.posted()
    assert {item["key"]: item["value"]["Id"] for item in context["InputParameters"]} == {
        "Target": invoice,
        "Assignee": world.demo.sellers[0],
    }


def test_an_update_names_the_table_of_its_owner(world: World, invoice: str) -> None:
    world.listen("Update", "invoice")
    world.function.patch(f"invoices({invoice})", to("teams", world.demo.teams[0]))
    (context,) = world.posted()
    ((_, target),) = [item.values() for item in context["InputParameters"]]
    (owner,) = [item["value"] for item in target["Attributes"] if item["key"] == "ownerid"]
    assert (owner["LogicalName"], owner["Id"]) == ("team", world.demo.teams[0])


def test_opportunities_have_different_owners(world: World) -> None:
    owners = {row["_ownerid_value"] for row in world.admin.rows("opportunities")}
    assert len(owners) > 1
