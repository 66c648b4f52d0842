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
    response = world.admin.send("GET", "WhoAmI", None, 401, Authorization=authorization)
    assert response.headers["WWW-Authenticate"].startswith("Bearer authorization_uri=https://")


def test_an_identity_without_application_user_is_no_member(world: World) -> None:
    client = world.client(Identity.named("x"))
    assert client.refused("GET", "WhoAmI", None, 403)["code"] == "0x80072560"


def test_a_trailing_slash_of_the_audience_makes_no_difference(world: World) -> None:
    identity = Identity.named("x")
    seed.add_application_user(world.app, identity.client_id.upper())
    token = world.authority.issue(identity, world.app.organization.url + "/")
    world.admin.get("WhoAmI", Authorization=f"Bearer {token}")


def test_a_disabled_user_is_refused_at_once(world: World) -> None:
    world.function.get("WhoAmI")
    world.admin.patch(f"systemusers({world.function_user})", {"isdisabled": True})
    assert "disabled" in world.function.refused("GET", "WhoAmI", None, 403)["message"]


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
    body = {
        "name": "of a contact",
        "customerid_contact@odata.bind": f"/contacts({world.demo.contacts[0]})",
        "pricelevelid@odata.bind": f"/pricelevels({world.demo.price_lists['EUR']})",
    }
    contact = world.admin.create("opportunities", body)
    opportunity = contact if missing == "prvAppendToContact" else world.opportunity
    client = world.new_client([name for name in seed.INVOICING_PRIVILEGES if name != missing])
    error = client.generate(opportunity, 403)["error"]
    assert error["code"] == "0x80040220"
    assert missing in error["message"]
    if missing.startswith("prvAppendTo") and missing not in GENERATE:
        client.generate(world.opportunity if opportunity == contact else contact)


@pytest.mark.parametrize(
    ("missing", "path"),
    [
        ("prvReadSalesOrder", "salesorders"),
        ("prvReadTransactionCurrency", "transactioncurrencies?$top=1"),
        ("prvReadTransactionCurrency", "opportunities?$expand=transactioncurrencyid"),
        ("prvReadTransactionCurrency", "opportunities({0})/transactioncurrencyid"),
        ("prvReadNote", "annotations"),
        ("prvReadActivity", "opportunitycloses"),
        ("prvReadProduct", "invoicedetails?$expand=productid($select=name)"),
        ("prvReadProduct", "invoicedetails?$expand=uomid($select=name)"),
        ("prvReadProduct", "uoms"),
        ("prvReadAccount", "invoices?$expand=customerid_account($select=accountnumber)"),
        ("prvReadContact", "invoices?$expand=customerid_contact($select=fullname)"),
        ("prvReadEntity", "EntityDefinitions(LogicalName='invoice')/Attributes"),
        ("prvReadAttribute", "EntityDefinitions(LogicalName='invoice')/Attributes"),
    ],
)
def test_each_read_needs_its_privilege_which_the_refusal_names(world: World, missing: str, path: str) -> None:
    path = path.replace("{0}", world.opportunity)
    world.function.generate(world.opportunity)
    world.function.get(path)
    client = world.new_client([name for name in seed.INVOICING_PRIVILEGES if name != missing])
    error = client.refused("GET", path, None, 403)
    assert error["code"] == "0x80040220"
    assert f"is missing {missing} privilege" in error["message"]


@pytest.mark.parametrize("missing", ["prvCreateNote", "prvAppendNote", "prvAppendToOpportunity"])
def test_notes_need_their_privileges(world: World, missing: str) -> None:
    client = world.new_client([name for name in seed.INVOICING_PRIVILEGES if name != missing])
    error = client.refused("POST", "annotations", {"objectid_opportunity@odata.bind": f"/{world.path}"}, 403)
    assert error["code"] == "0x80040220"
    assert missing in error["message"]


def test_the_function_may_not_do_what_its_role_does_not_say(world: World) -> None:
    for method in ("PATCH", "DELETE"):
        world.function.refused(method, world.path, {"name": "mine"}, 403)
    world.function.win(world.opportunity, 403)
    world.function.post("roles", {"name": "mine"}, 403)


@pytest.mark.parametrize(
    "missing", ["prvWriteOpportunity", "prvCreateActivity", "prvAppendActivity", "prvAppendToOpportunity"]
)
def test_winning_needs_the_opportunity_and_the_activity(world: World, missing: str) -> None:
    needed = ["prvWriteOpportunity", "prvCreateActivity", "prvAppendActivity", "prvAppendToOpportunity"]
    client = world.new_client([name for name in needed if name != missing])
    assert missing in client.win(world.opportunity, 403).json()["error"]["message"]
    world.new_client(needed).win(world.opportunity)


def make_unit(world: World, name: str, parent: str) -> str:
    body = {"name": name, "parentbusinessunitid@odata.bind": f"/businessunits({parent})"}
    return world.admin.create("businessunits", body)


def make_salesperson(world: World, unit: str) -> str:
    role = seed.find_role(world.app, base_data.SALESPERSON_ROLE)
    client_id = Identity.named("salesperson").client_id
    return seed.add_application_user(world.app, client_id, business_unit=unit, roles=[role])


def test_rows_outside_of_the_depth_are_missing_without_an_error(world: World) -> None:
    """Root owns the demo's opportunities; a child and its own child own one each."""
    child = make_unit(world, "child", world.root_unit)
    for name, unit in (("child", child), ("grandchild", make_unit(world, "grandchild", child))):
        owner = f"/systemusers({make_salesperson(world, unit)})"
        world.admin.create("opportunities", {"name": name, "ownerid@odata.bind": owner})

    def seen(depth: Depth) -> list[str]:
        privileges = {"prvReadOpportunity": depth, "prvCreateOpportunity": Depth.BASIC}
        client = world.new_client(privileges, unit=child)
        own = client.create("opportunities", {"name": "own"})
        names = sorted(row["name"] for row in client.rows("opportunities?$select=name"))
        world.admin.delete(f"opportunities({own})")
        return names

    assert seen(Depth.BASIC) == ["own"]
    assert seen(Depth.LOCAL) == ["child", "own"]
    assert seen(Depth.DEEP) == ["child", "grandchild", "own"]
    assert len(seen(Depth.GLOBAL)) == len(world.demo.opportunities) + 3


def test_another_ones_invoice_is_invisible_to_a_lesser_depth(world: World) -> None:
    """The reason for organization depth: "no invoice" would be wrong."""
    invoice = world.function.generate(world.opportunity)["invoiceid"]
    lesser = world.new_client(dict.fromkeys(seed.INVOICING_PRIVILEGES, Depth.BASIC))
    path = f"invoices?$select=invoiceid&$count=true&$filter=_opportunityid_value eq {world.opportunity}"
    assert len(world.function.rows(path)) == 1
    response = lesser.get(path)
    assert (response["value"], response["@odata.count"]) == ([], 0)
    assert lesser.refused("GET", f"invoices({invoice})", None, 403)["code"] == "0x80040220"
    assert lesser.generate(world.opportunity, 403)["error"]["code"] == "0x80040220"


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
    child = make_unit(world, "child", world.root_unit)
    reader = world.new_client({"prvReadOpportunity": Depth.LOCAL}, unit=child)
    reader.get(world.path, status=403)
    owner = f"/systemusers({make_salesperson(world, child)})"
    world.admin.patch(world.path, {"ownerid@odata.bind": owner})
    assert reader.get(world.path)["_owningbusinessunit_value"] == child


def test_refusals_name_the_id_of_the_privilege(world: World) -> None:
    (privilege,) = world.admin.rows("privileges?$select=privilegeid,name&$filter=name eq 'prvDeleteInvoice'")
    invoice = world.function.generate(world.opportunity)["invoiceid"]
    refused = world.function.call("DELETE", f"invoices({invoice})")
    assert privilege["privilegeid"] in refused.text


def test_what_a_role_says_counts_from_the_next_request(world: World) -> None:
    world.function.rows("opportunities")
    with world.app.session() as session:
        for row in session.transaction.rows(TABLES["roleprivileges"]):
            session.transaction.delete(TABLES["roleprivileges"], row)
    world.function.get("opportunities", status=403)
