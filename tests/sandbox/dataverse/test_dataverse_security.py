"""Tokens, application users, privileges and their depth."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import Depth, base_data, seed
from sandbox.dataverse.schema import TABLES
from sandbox.identity import Identity, TokenAuthority

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World


@pytest.mark.parametrize("kind", ["none", "basic", "garbage", "expired", "audience", "unknown"])
def test_an_invalid_token_gets_401(world: World, kind: str) -> None:
    identity, url = Identity.named("x"), world.app.organization.url
    authorization = {
        "none": "",
        "basic": "Basic eDp5",
        "garbage": "Bearer garbage",
        "expired": "Bearer " + world.authority.issue(identity, url, timedelta()),
        "audience": "Bearer " + world.authority.issue(identity, "https://other.crm.dynamics.com"),
        "unknown": "Bearer " + TokenAuthority(world.clock).issue(identity, url),
    }[kind]
    response = world.admin.session.get(world.admin.root + "WhoAmI", headers={"Authorization": authorization})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer authorization_uri=https://")


def test_an_identity_without_application_user_is_no_member(world: World) -> None:
    token = world.authority.issue(Identity.named("x"), world.app.organization.url)
    response = world.admin.session.get(
        world.admin.root + "WhoAmI", headers={"Authorization": f"Bearer {token}"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (403, "0x80072560")


def test_a_trailing_slash_of_the_audience_makes_no_difference(world: World) -> None:
    identity = Identity.named("x")
    seed.add_application_user(world.app, identity.client_id.upper())
    token = world.authority.issue(identity, world.app.organization.url + "/")
    response = world.admin.session.get(
        world.admin.root + "WhoAmI", headers={"Authorization": f"Bearer {token}"}
    )
    assert response.status_code == 200


def test_a_disabled_user_is_refused_at_once(world: World) -> None:
    world.function.get("WhoAmI")
    world.admin.call("PATCH", f"systemusers({world.function_user})", {"isdisabled": True})
    assert "disabled" in world.function.get("WhoAmI", status=403)["error"]["message"]


def test_who_am_i(world: World) -> None:
    response = world.function.get("WhoAmI")
    (unit,) = world.admin.rows("businessunits")
    assert response["UserId"] == world.function_user
    assert response["BusinessUnitId"] == unit["businessunitid"]
    assert response["OrganizationId"] == world.app.organization.id


GENERATE = (
    "prvCreateInvoice",
    "prvReadInvoice",
    "prvAppendInvoice",
    "prvAppendToInvoice",
    "prvReadOpportunity",
    "prvAppendToOpportunity",
)


@pytest.mark.parametrize("missing", [*GENERATE, "prvAppendToAccount", "prvAppendToContact"])
def test_each_documented_privilege_of_the_action_is_needed(world: World, missing: str) -> None:
    """The refusal names the privilege; a customer of the other kind does not need its AppendTo."""
    customers = {
        world.admin.get(f"opportunities({o})")["_customerid_value"]: o for o in world.demo.opportunities
    }
    contact = world.admin.create(
        "opportunities",
        {
            "name": "of a contact",
            "customerid_contact@odata.bind": f"/contacts({world.demo.contacts[0]})",
            "pricelevelid@odata.bind": f"/pricelevels({world.demo.price_lists['EUR']})",
        },
    )
    opportunity = contact if missing == "prvAppendToContact" else next(iter(customers.values()))
    client = world.new_client([name for name in seed.INVOICING_PRIVILEGES if name != missing])
    error = client.generate(opportunity, 403)["error"]
    assert error["code"] == "0x80040220"
    assert missing in error["message"]
    if missing.startswith("prvAppendTo") and missing not in GENERATE:
        client.generate(next(iter(customers.values())) if opportunity == contact else contact)


@pytest.mark.parametrize(
    ("missing", "path", "body"),
    [
        ("prvReadSalesOrder", "salesorders?$top=1", None),
        ("prvReadTransactionCurrency", "transactioncurrencies?$top=1", None),
        ("prvReadTransactionCurrency", "opportunities?$expand=transactioncurrencyid", None),
        ("prvReadTransactionCurrency", "opportunities({0})/transactioncurrencyid", None),
        ("prvReadNote", "annotations", None),
        ("prvReadEntity", "EntityDefinitions(LogicalName='invoice')/Attributes", None),
        ("prvReadAttribute", "EntityDefinitions(LogicalName='invoice')/Attributes", None),
        ("prvCreateNote", "annotations", {}),
        ("prvAppendNote", "annotations", {}),
        ("prvAppendToOpportunity", "annotations", {}),
    ],
)
def test_reads_and_notes_need_their_privileges(
    world: World, missing: str, path: str, body: dict[str, object] | None
) -> None:
    client = world.new_client([name for name in seed.INVOICING_PRIVILEGES if name != missing])
    bind = {"objectid_opportunity@odata.bind": f"/opportunities({world.opportunity})"}
    path = path.replace("{0}", world.opportunity)
    response = client.call("GET" if body is None else "POST", path, None if body is None else bind)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "0x80040220"
    assert missing in response.json()["error"]["message"]


def test_the_function_may_not_do_what_its_role_does_not_say(world: World) -> None:
    path = world.path
    for method in ("PATCH", "DELETE"):
        assert world.function.call(method, path, {"name": "mine"}).status_code == 403
    world.function.win(world.opportunity, 403)
    world.function.post("roles", {"name": "mine"}, 403)


@pytest.mark.parametrize(
    "missing", ["prvWriteOpportunity", "prvCreateActivity", "prvAppendActivity", "prvAppendToOpportunity"]
)
def test_winning_needs_the_opportunity_and_the_activity(world: World, missing: str) -> None:
    needed = ["prvWriteOpportunity", "prvCreateActivity", "prvAppendActivity", "prvAppendToOpportunity"]
    refused = world.new_client([name for name in needed if name != missing]).win(world.opportunity, 403)
    assert missing in refused.json()["error"]["message"]
    world.new_client(needed).win(world.opportunity)


def make_unit(world: World, name: str, parent: str) -> str:
    body = {"name": name, "parentbusinessunitid@odata.bind": f"/businessunits({parent})"}
    return world.admin.create("businessunits", body)


def salesperson(world: World) -> str:
    return seed.find_role(world.app, base_data.SALESPERSON_ROLE)


def test_rows_outside_of_the_depth_are_missing_without_an_error(world: World) -> None:
    """Root owns the demo's opportunities; a child and its own child own one each."""
    (root,) = [row["businessunitid"] for row in world.admin.rows("businessunits")]
    child = make_unit(world, "child", root)
    grandchild = make_unit(world, "grandchild", child)
    owners = {}
    for name, unit in (("child", child), ("grandchild", grandchild)):
        owners[name] = seed.add_application_user(
            world.app, Identity.named(name).client_id, business_unit=unit, roles=[salesperson(world)]
        )
        world.admin.create(
            "opportunities", {"name": name, "ownerid@odata.bind": f"/systemusers({owners[name]})"}
        )

    def seen(depth: Depth) -> list[str]:
        privileges = {"prvReadOpportunity": depth, "prvCreateOpportunity": Depth.BASIC}
        client = world.new_client(privileges, unit=child)
        client.create("opportunities", {"name": "own"})
        rows = client.rows("opportunities?$select=name")
        client.session.close()
        found = sorted(row["name"] for row in rows)
        world.admin.call("DELETE", f"opportunities({own(rows)})")
        return found

    def own(rows: list[dict[str, str]]) -> str:
        return next(row["opportunityid"] for row in rows if row["name"] == "own")

    assert seen(Depth.BASIC) == ["own"]
    assert seen(Depth.LOCAL) == ["child", "own"]
    assert seen(Depth.DEEP) == ["child", "grandchild", "own"]
    assert len(seen(Depth.GLOBAL)) == len(world.demo.opportunities) + 3


def test_another_ones_invoice_is_invisible_to_a_lesser_depth(world: World) -> None:
    """The reason for organization depth: "no invoice" would be wrong."""
    opportunity = world.opportunity
    invoice = world.function.generate(opportunity)["invoiceid"]
    lesser = world.new_client(dict.fromkeys(seed.INVOICING_PRIVILEGES, Depth.BASIC))
    path = f"invoices?$select=invoiceid&$count=true&$filter=_opportunityid_value eq {opportunity}"
    assert len(world.function.rows(path)) == 1
    response = lesser.get(path)
    assert (response["value"], response["@odata.count"]) == ([], 0)
    assert lesser.get(f"invoices({invoice})", status=403)["error"]["code"] == "0x80040220"
    assert lesser.generate(opportunity, 403)["error"]["code"] == "0x80040220"


def test_a_reassigned_invoice_is_invisible_to_its_maker(world: World) -> None:
    client = world.new_client(
        dict.fromkeys(seed.INVOICING_PRIVILEGES, Depth.GLOBAL) | {"prvReadInvoice": Depth.BASIC}
    )
    invoice = client.generate(world.opportunity)["invoiceid"]
    assert client.rows("invoices")
    owner = {"ownerid@odata.bind": f"/systemusers({world.demo.sellers[0]})"}
    world.admin.patch(f"invoices({invoice})", owner)
    assert not client.rows("invoices")


def test_the_greatest_depth_of_all_roles_counts(world: World) -> None:
    """Independent of the order in which the roles are read."""
    identity, names = Identity.named("two roles"), ("prvReadOpportunity", "prvReadInvoice")
    depths = ((Depth.BASIC, Depth.GLOBAL), (Depth.GLOBAL, Depth.BASIC))
    roles = [seed.add_role(world.app, dict(zip(names, pair, strict=True))) for pair in depths]
    user = seed.add_application_user(world.app, identity.client_id, roles=roles)
    response = world.admin.get(
        f"systemusers({user})/Microsoft.Dynamics.CRM.RetrieveUserSetOfPrivilegesByNames(PrivilegeNames=@p1)"
        '?@p1=["prvReadOpportunity","prvReadInvoice","prvReadNote"]'
    )
    held = {privilege["PrivilegeName"]: privilege["Depth"] for privilege in response["RolePrivileges"]}
    assert held == dict.fromkeys(names, "Global")


def test_a_row_moves_to_its_new_owners_business_unit(world: World) -> None:
    (root,) = [row["businessunitid"] for row in world.admin.rows("businessunits")]
    child = make_unit(world, "child", root)
    owner = seed.add_application_user(
        world.app, Identity.named("owner").client_id, business_unit=child, roles=[salesperson(world)]
    )
    reader = world.new_client({"prvReadOpportunity": Depth.LOCAL}, unit=child)
    path = world.path
    reader.get(path, status=403)
    moved = world.admin.call("PATCH", path, {"ownerid@odata.bind": f"/systemusers({owner})"})
    assert moved.status_code == 204
    assert reader.get(path)["_owningbusinessunit_value"] == child


def test_giving_a_row_away_needs_the_privilege_to_assign(world: World) -> None:
    names = ["prvReadOpportunity", "prvWriteOpportunity", "prvReadUser"]
    path = world.path
    body = {"ownerid@odata.bind": f"/systemusers({world.demo.sellers[0]})"}
    refused = world.new_client(names).call("PATCH", path, body)
    assert refused.status_code == 403
    assert "prvAssignOpportunity" in refused.json()["error"]["message"]
    assert world.new_client([*names, "prvAssignOpportunity"]).call("PATCH", path, body).status_code == 204


def test_the_access_to_one_row_is_returned(world: World) -> None:
    def access(record: str) -> set[str]:
        response = world.admin.get(
            f"systemusers({world.function_user})/Microsoft.Dynamics.CRM.RetrievePrincipalAccess(Target=@p1)"
            f"?@p1={{'@odata.id':'{record}'}}"
        )
        return set(response["AccessRights"].split(", "))

    assert access(world.path) == {"ReadAccess", "AppendToAccess"}
    assert access(f"products({world.demo.accounts[0]})".replace("products", "accounts")) == {
        "ReadAccess",
        "AppendToAccess",
    }
    (unit,) = world.admin.rows("businessunits")
    assert access(f"businessunits({unit['businessunitid']})") == {"None"}


def test_ids_of_privileges_differ_between_environments_and_refusals_name_them(world: World) -> None:
    (privilege,) = world.admin.rows("privileges?$select=privilegeid,name&$filter=name eq 'prvDeleteInvoice'")
    other = base_data.base_image("00000000-0000-4000-8000-00000000000f")
    assert privilege["privilegeid"].encode() not in other
    invoice = world.function.generate(world.opportunity)["invoiceid"]
    refused = world.function.call("DELETE", f"invoices({invoice})")
    assert privilege["privilegeid"] in refused.text


def test_what_a_role_says_counts_from_the_next_request(world: World) -> None:
    role = world.admin.rows("roles?$filter=name eq 'Opportunity Invoicing'")[0]["roleid"]
    (privilege,) = world.admin.rows("privileges?$filter=name eq 'prvReadOpportunity'")
    world.function.rows("opportunities")
    world.admin.post(
        f"roles({role})/Microsoft.Dynamics.CRM.RemovePrivilegeRole", {"PrivilegeId": privilege["privilegeid"]}
    )
    world.function.get("opportunities", status=403)
    with world.app.session() as session:
        assert not session.transaction.rows(
            TABLES["roleprivileges"], "roleid = ? AND privilegeid = ?", (role, privilege["privilegeid"])
        )
