"""Creating, changing and deleting rows, conditionally and not, and responses to a primary key that exists."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import DuplicateResponse

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
    changed = client.call("PATCH", path, {"name": "Larch & Co"})
    assert (changed.status_code, changed.headers["OData-EntityId"]) == (204, url)
    after = client.get(path)
    assert after["name"] == "Larch & Co"
    assert after["@odata.etag"] != created["@odata.etag"]
    assert client.call("DELETE", path).status_code == 204
    client.get(path, status=404)


def test_the_row_is_returned_on_request(world: World) -> None:
    headers = {"Prefer": "return=representation"}
    response = world.admin.call("POST", "accounts?$select=name", {"name": "A"}, headers)
    assert response.status_code == 201
    assert response.json()["name"] == "A"
    assert response.headers["Preference-Applied"] == "return=representation"
    path = f"accounts({response.json()['accountid']})?$select=name"
    changed = world.admin.call("PATCH", path, {"name": "B"}, headers)
    assert (changed.status_code, changed.json()["name"]) == (200, "B")


def test_patch_creates_unless_if_match_forbids_it(world: World) -> None:
    path = f"accounts({KEY})"
    refused = world.admin.call("PATCH", path, {"name": "A"}, {"If-Match": "*"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "0x80040217")
    assert world.admin.call("PATCH", path, {"name": "A"}).status_code == 204
    assert world.admin.call("PATCH", path, {"name": "B"}, {"If-Match": "*"}).status_code == 204
    assert world.admin.get(path)["name"] == "B"


def test_a_key_cannot_be_changed(world: World) -> None:
    path = f"accounts({world.admin.create('accounts', {'name': 'A'})})"
    assert world.admin.call("PATCH", path, {"accountid": KEY, "name": "B"}).status_code == 400
    assert world.admin.get(path)["name"] == "A"


def test_if_none_match_creates_and_never_changes(world: World) -> None:
    headers = {"If-None-Match": "*"}
    assert world.admin.call("PATCH", f"accounts({KEY})", {"name": "A"}, headers).status_code == 204
    refused = world.admin.call("PATCH", f"accounts({KEY})", {"name": "B"}, headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "0x80040237")
    assert world.admin.get(f"accounts({KEY})")["name"] == "A"


def test_an_outdated_etag_changes_and_deletes_nothing(world: World) -> None:
    path = f"accounts({world.admin.create('accounts', {'name': 'A'})})"
    etag = world.admin.get(path)["@odata.etag"]
    assert world.admin.call("PATCH", path, {"name": "B"}, {"If-Match": etag}).status_code == 204
    for method in ("PATCH", "DELETE"):
        refused = world.admin.call(method, path, {"name": "C"}, {"If-Match": etag})
        assert (refused.status_code, refused.json()["error"]["code"]) == (412, "0x80060882")
    assert world.admin.get(path)["name"] == "B"


def test_reads_may_be_conditional(world: World) -> None:
    path = f"accounts({world.admin.create('accounts', {'name': 'A'})})"
    etag = world.admin.get(path, If_None_Match="null")["@odata.etag"]
    unchanged = world.admin.call("GET", path, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    world.admin.call("PATCH", path, {"name": "B"})
    assert world.admin.call("GET", path, headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        (DuplicateResponse.DUPLICATE_412, 412, "0x80040237"),
        (DuplicateResponse.ALTERNATE_KEY_412, 412, "0x80060892"),
        (DuplicateResponse.DUPLICATE_500, 500, "0x80040237"),
        (DuplicateResponse.DEADLOCK_500, 500, "0x80044150"),
        (DuplicateResponse.THROTTLED_429, 429, "0x80072321"),
    ],
)
def test_an_existing_key_gets_each_of_the_reported_responses(
    world: World, response: DuplicateResponse, status: int, code: str
) -> None:
    note = {"annotationid": KEY, "subject": "first"}
    world.admin.create("annotations", note)
    world.app.organization.duplicate_response = response
    refused = world.admin.post("annotations", {**note, "subject": "second"}, status)
    assert refused.json()["error"]["code"] == code
    assert ("1205" in refused.text) == (response is DuplicateResponse.DEADLOCK_500)
    assert ("Retry-After" in refused.headers) == (response is DuplicateResponse.THROTTLED_429)
    assert world.admin.get(f"annotations({KEY})")["subject"] == "first"


def test_lookups_are_bound_by_navigation_property(world: World) -> None:
    contact = world.demo.contacts[0]
    body = {"name": "deal", "customerid_contact@odata.bind": f"/contacts({contact.upper()})"}
    opportunity = world.admin.create("opportunities", body)
    row = world.admin.get(f"opportunities({opportunity})", Prefer='odata.include-annotations="*"')
    assert row["_customerid_value"] == contact
    assert row["_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "contact"
    absolute = f"{world.admin.root}accounts({world.demo.accounts[0]})"
    path = f"opportunities({opportunity})"
    assert world.admin.call("PATCH", path, {"customerid_account@odata.bind": absolute}).status_code == 204
    assert world.admin.get(path)["_customerid_value"] == world.demo.accounts[0]
    assert world.admin.call("PATCH", path, {"customerid_account@odata.bind": None}).status_code == 204
    assert world.admin.get(path)["_customerid_value"] is None


def test_references_set_and_clear_a_lookup(world: World) -> None:
    path = f"opportunities({world.demo.opportunities[0]})"
    body = {"@odata.id": f"{world.admin.root}contacts({world.demo.contacts[0]})"}
    assert world.admin.call("PUT", f"{path}/customerid_contact/$ref", body).status_code == 204
    assert world.admin.get(path)["_customerid_value"] == world.demo.contacts[0]
    assert world.admin.call("DELETE", f"{path}/customerid_contact/$ref").status_code == 204
    assert world.admin.get(path)["_customerid_value"] is None


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
    refused = world.admin.post("opportunities", body, status)
    assert refused.json()["error"]["code"] == code
    assert len(world.app.database.commits) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(world: World, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {world.admin.token}", "Content-Type": "application/json"}
    refused = world.admin.session.post(world.admin.root + "accounts", data=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "0x80048d19")


def test_an_opportunity_with_invoices_cannot_be_deleted(world: World) -> None:
    opportunity = world.demo.opportunities[0]
    world.admin.win(opportunity)
    invoice = world.function.generate(opportunity)["invoiceid"]
    assert world.admin.call("DELETE", f"opportunities({opportunity})").status_code == 400
    assert world.admin.call("DELETE", f"invoices({invoice})").status_code == 204
    assert not world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice}")
    assert world.admin.call("DELETE", f"opportunities({opportunity})").status_code == 204
    assert not world.admin.rows(f"opportunityproducts?$filter=_opportunityid_value eq {opportunity}")


def test_notes_go_with_their_opportunity_and_orders_stay(world: World) -> None:
    opportunity = world.demo.opportunities[0]
    bind = f"/opportunities({opportunity})"
    note = world.admin.create("annotations", {"subject": "n", "objectid_opportunity@odata.bind": bind})
    order = world.admin.create("salesorders", {"name": "o", "opportunityid@odata.bind": bind})
    assert world.admin.call("DELETE", f"opportunities({opportunity})").status_code == 204
    world.admin.get(f"annotations({note})", status=404)
    assert world.admin.get(f"salesorders({order})")["_opportunityid_value"] is None


def test_the_log_shows_who_changed_what_in_which_request(world: World) -> None:
    start = len(world.app.database.commits)
    account = world.admin.create("accounts", {"name": "A"})
    world.admin.call(
        "PATCH", f"accounts({account})", {"name": "B"}, {"x-ms-client-request-id": str(uuid.UUID(int=7))}
    )
    world.admin.call("DELETE", f"accounts({account})")
    commits = world.app.database.commits[start:]
    assert [(change.kind, change.id) for commit in commits for change in commit.changes] == [
        ("create", account),
        ("update", account),
        ("delete", account),
    ]
    assert commits[1].changes[0].values["name"] == "B"
    request = world.app.requests[-2]
    assert (request.method, request.status, request.client_request_id) == (
        "PATCH",
        204,
        str(uuid.UUID(int=7)),
    )
    assert request.service_request_id == commits[1].request_id
    assert request.user_id == commits[1].user_id
    assert request.at == world.clock.now()
