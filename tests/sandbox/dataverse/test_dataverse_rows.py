"""Creating, changing and deleting rows, conditionally and not."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World

KEY = "11111111-2222-4333-8444-555555555555"


def test_a_row_is_created_changed_read_and_deleted(world: World) -> None:
    client = world.admin
    response = client.post("accounts", {"name": "Larch Optics", "numberofemployees": 12})
    url = response.headers["OData-EntityId"]
    assert response.headers["Location"] == url
    path = url.removeprefix(client.root)
    created = client.get(path)
    assert (created["name"], created["numberofemployees"], created["statecode"]) == ("Larch Optics", 12, 0)
    assert created["createdon"] == "2026-03-01T00:00:00Z"
    assert created["_ownerid_value"] == client.get("WhoAmI")["UserId"]
    assert client.patch(path, {"name": "Larch & Co"}).headers["OData-EntityId"] == url
    after = client.get(path)
    assert after["name"] == "Larch & Co"
    assert after["@odata.etag"] != created["@odata.etag"]
    client.delete(path)
    client.get(path, status=404)


def test_the_row_is_returned_on_request(world: World) -> None:
    prefer = "return=representation"
    response = world.admin.post("accounts?$select=name", {"name": "A"}, 201, Prefer=prefer)
    assert response.json()["name"] == "A"
    assert response.headers["Preference-Applied"] == prefer
    path = f"accounts({response.json()['accountid']})?$select=name"
    assert world.admin.patch(path, {"name": "B"}, 200, Prefer=prefer).json()["name"] == "B"


@pytest.fixture
def account(world: World) -> str:
    return f"accounts({world.admin.create('accounts', {'name': 'A'})})"


def test_patch_creates_unless_if_match_forbids_it(world: World) -> None:
    path = f"accounts({KEY})"
    assert world.admin.refused("PATCH", path, {"name": "A"}, 404, If_Match="*")["code"] == "0x80040217"
    world.admin.patch(path, {"name": "A"})
    world.admin.patch(path, {"name": "B"}, If_Match="*")
    assert world.admin.get(path)["name"] == "B"


def test_a_key_cannot_be_changed(world: World, account: str) -> None:
    world.admin.patch(account, {"accountid": KEY, "name": "B"}, 400)
    assert world.admin.get(account)["name"] == "A"


def test_if_none_match_creates_and_never_changes(world: World) -> None:
    path = f"accounts({KEY})"
    world.admin.patch(path, {"name": "A"}, If_None_Match="*")
    assert world.admin.refused("PATCH", path, {"name": "B"}, 412, If_None_Match="*")["code"] == "0x80040237"
    assert world.admin.get(path)["name"] == "A"


def test_an_outdated_etag_changes_and_deletes_nothing(world: World, account: str) -> None:
    etag = world.admin.get(account)["@odata.etag"]
    world.admin.patch(account, {"name": "B"}, If_Match=etag)
    for method in ("PATCH", "DELETE"):
        error = world.admin.refused(method, account, {"name": "C"}, 412, If_Match=etag)
        assert error["code"] == "0x80060882"
    assert world.admin.get(account)["name"] == "B"


def test_reads_may_be_conditional(world: World, account: str) -> None:
    etag = world.admin.get(account, If_None_Match="null")["@odata.etag"]
    assert world.admin.send("GET", account, None, 304, If_None_Match=etag).content == b""
    world.admin.patch(account, {"name": "B"})
    world.admin.get(account, If_None_Match=etag)


def test_lookups_are_bound_by_navigation_property(world: World) -> None:
    contact = world.demo.contacts[0]
    body = {"name": "deal", "customerid_contact@odata.bind": f"/contacts({contact.upper()})"}
    opportunity = world.admin.create("opportunities", body)
    row = world.admin.get(f"opportunities({opportunity})", Prefer='odata.include-annotations="*"')
    assert row["_customerid_value"] == contact
    assert row["_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "contact"
    absolute = f"{world.admin.root}accounts({world.demo.accounts[0]})"
    path = f"opportunities({opportunity})"
    world.admin.patch(path, {"customerid_account@odata.bind": absolute})
    assert world.admin.get(path)["_customerid_value"] == world.demo.accounts[0]
    world.admin.patch(path, {"customerid_account@odata.bind": None})
    assert world.admin.get(path)["_customerid_value"] is None


def test_references_set_and_clear_a_lookup(world: World) -> None:
    reference = f"{world.path}/customerid_contact/$ref"
    body = {"@odata.id": f"{world.admin.root}contacts({world.demo.contacts[0]})"}
    world.admin.send("PUT", reference, body, 204)
    assert world.admin.get(world.path)["_customerid_value"] == world.demo.contacts[0]
    world.admin.delete(reference)
    assert world.admin.get(world.path)["_customerid_value"] is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"nothing": 1}, 400, "0x80048d19"),
        ({"name": 7}, 400, "0x80048d19"),
        ({"name": "\ud800"}, 400, "0x80048d19"),
        ({"statecode": 9}, 400, "0x80048d19"),
        ({"statecode": "Open"}, 400, "0x80048d19"),
        ({"estimatedvalue": "12"}, 400, "0x80048d19"),
        ({"estimatedvalue": 10**18}, 400, "0x80048d19"),
        ({"isrevenuesystemcalculated": 1}, 400, "0x80048d19"),
        ({"estimatedclosedate": "tomorrow"}, 400, "0x80048d19"),
        ({"createdon": "2026-01-01T00:00:00Z"}, 400, "0x80048d19"),
        ({"totalamount": 5}, 400, "0x80048d19"),
        ({"_customerid_value": KEY}, 400, "0x80048d19"),
        ({"customerid@odata.bind": f"/accounts({KEY})"}, 400, "0x80048d19"),
        ({"customerid_account@odata.bind": f"/accounts({KEY})"}, 404, "0x80040217"),
        ({"customerid_account@odata.bind": f"/contacts({KEY})"}, 400, "0x80048d19"),
        ({"customerid_account@odata.bind": "accounts"}, 400, "0x80048d19"),
        ({"product_opportunities": [{"quantity": 1}]}, 501, "0x80060888"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_and_nothing_is_made(
    world: World, body: dict[str, object], status: int, code: str
) -> None:
    before = len(world.app.database.commits)
    assert world.admin.refused("POST", "opportunities", body, status)["code"] == code
    assert len(world.app.database.commits) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(world: World, body: bytes) -> None:
    refused = world.admin.call("POST", "accounts", data=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "0x80048d19")


def test_an_opportunity_with_invoices_cannot_be_deleted(world: World) -> None:
    world.admin.win(world.opportunity)
    invoice = world.function.generate(world.opportunity)["invoiceid"]
    world.admin.delete(world.path, 400)
    world.admin.delete(f"invoices({invoice})")
    assert not world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice}")
    world.admin.delete(world.path)
    assert not world.admin.rows(f"opportunityproducts?$filter=_opportunityid_value eq {world.opportunity}")


def test_notes_go_with_their_opportunity_and_orders_stay(world: World) -> None:
    bind = f"/{world.path}"
    note = world.admin.create("annotations", {"subject": "n", "objectid_opportunity@odata.bind": bind})
    order = world.admin.create("salesorders", {"name": "o", "opportunityid@odata.bind": bind})
    world.admin.delete(world.path)
    world.admin.get(f"annotations({note})", status=404)
    assert world.admin.get(f"salesorders({order})")["_opportunityid_value"] is None


def test_the_log_shows_who_changed_what_in_which_request(world: World) -> None:
    start, request_id = len(world.app.database.commits), str(uuid.UUID(int=7))
    account = world.admin.create("accounts", {"name": "A"})
    world.admin.patch(f"accounts({account})", {"name": "B"}, x_ms_client_request_id=request_id)
    world.admin.delete(f"accounts({account})")
    commits = world.app.database.commits[start:]
    assert [(change.kind, change.id) for commit in commits for change in commit.changes] == [
        ("create", account),
        ("update", account),
        ("delete", account),
    ]
    assert commits[1].changes[0].values["name"] == "B"
    request = world.app.requests[-2]
    assert (request.method, request.status, request.client_request_id) == ("PATCH", 204, request_id)
    assert request.service_request_id == commits[1].request_id
    assert request.user_id == commits[1].user_id
    assert request.at == world.clock.now()
