"""`$batch`: order, change sets as transactions, and what ends a batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import DuplicateResponse, FailedChangeSet

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World

CUT_OFF_CHANGE_SET = (
    b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\nContent-Type: application/http\r\n\r\n"
    b'POST accounts HTTP/1.1\r\n\r\n{"name": "half"}\r\n--b--\r\n'
)
KEY = "11111111-2222-4333-8444-555555555555"


def claim(world: World) -> str:
    body = {
        "annotationid": KEY,
        "subject": "claim",
        "objectid_opportunity@odata.bind": f"/opportunities({world.opportunity})",
    }
    return world.function.operation("POST", "annotations", json.dumps(body), content_id="1")


def generate(world: World) -> str:
    columns = {"AllColumns": False, "Columns": ["invoicenumber"]}
    body = {"OpportunityId": world.opportunity, "ColumnSet": columns}
    return world.function.operation(
        "POST", "GenerateInvoiceFromOpportunity", json.dumps(body), content_id="2"
    )


def invoices(world: World) -> str:
    return f"invoices?$select=invoiceid&$filter=_opportunityid_value%20eq%20{world.opportunity}"


def items(world: World) -> tuple[str, ...]:
    """Return what the function sends: the claim and the action in a change set, and two reads."""
    return (
        world.function.change_set(claim(world), generate(world)),
        world.function.operation("GET", invoices(world)),
        world.function.operation("GET", f"annotations({KEY})?$select=subject"),
    )


def test_a_change_set_happens_once_and_its_reads_tell(world: World) -> None:
    client = world.function
    world.admin.win(world.opportunity)
    first = client.parts(*items(world))
    assert [part.status for part in first[0].nested] == [204, 200]
    assert f"annotations({KEY})" in first[0].nested[0].head
    assert json.loads(first[0].nested[1].body)["invoicenumber"].startswith("INV-01000-")
    again = client.parts(*items(world))
    assert [part.status for part in again[0].nested] == [412]
    assert [part.status for part in again[1:]] == [200, 200]
    for parts in (first, again):
        assert len(json.loads(parts[1].body)["value"]) == 1
        assert json.loads(parts[2].body)["subject"] == "claim"


@pytest.mark.parametrize("claim_first", [True, False])
def test_a_change_set_that_fails_leaves_nothing_behind(world: World, claim_first: bool) -> None:  # noqa: FBT001
    first = [claim(world), generate(world)] if claim_first else [generate(world), claim(world)]
    before = len(world.app.database.commits)
    (failed,) = world.function.parts(world.function.change_set(*first, claim(world)))
    assert [part.status for part in failed.nested] == [412]
    assert not world.admin.rows(invoices(world))
    world.admin.get(f"annotations({KEY})", status=404)
    assert len(world.app.database.commits) == before


def test_the_first_failure_ends_a_batch_unless_it_may_go_on(world: World) -> None:
    """What stands before the failure stays done."""
    client = world.admin
    items = (
        client.operation("POST", "accounts", '{"name": "first"}'),
        client.operation("GET", "nothings"),
        client.operation("POST", "accounts", '{"name": "third"}'),
    )
    names = "accounts?$filter=name eq 'first' or name eq 'third'"
    stopped = client.batch(*items, prefer="")
    assert stopped.status_code == 400
    assert [part.status for part in client.responses(stopped)] == [204, 404]
    assert [row["name"] for row in client.rows(names)] == ["first"]
    went_on = client.batch(*items)
    assert went_on.status_code == 200
    assert [part.status for part in client.responses(went_on)] == [204, 404, 204]
    assert "third" in [row["name"] for row in client.rows(names)]


@pytest.mark.parametrize(
    ("mode", "status", "parts"),
    [
        (FailedChangeSet.CONTINUES, 200, 3),
        (FailedChangeSet.STOPS_WITH_200, 200, 1),
        (FailedChangeSet.STOPS_WITH_400, 400, 1),
    ],
)
def test_a_failed_change_set_may_end_a_batch_that_asked_to_go_on(
    world: World, mode: FailedChangeSet, status: int, parts: int
) -> None:
    """The part that failed is nested; what stands behind it is carried out or missing."""
    client = world.function
    world.app.organization.failed_change_set = mode
    committed = client.batch(*items(world))
    assert (committed.status_code, len(client.responses(committed))) == (200, 3)
    refused = client.batch(*items(world))
    responses = client.responses(refused)
    assert (refused.status_code, len(responses)) == (status, parts)
    (nested,) = responses[0].nested
    assert nested.status == 412
    assert "Content-ID: 1" in refused.text


def test_other_failures_never_end_a_batch_that_asked_to_go_on(world: World) -> None:
    world.app.organization.failed_change_set = FailedChangeSet.STOPS_WITH_400
    client = world.admin
    response = client.batch(client.operation("GET", "nothings"), client.operation("GET", "WhoAmI"))
    assert response.status_code == 200
    assert [part.status for part in client.responses(response)] == [404, 200]


def test_content_ids_refer_to_rows_made_in_the_change_set(world: World) -> None:
    client = world.admin
    parts = client.change_set(
        client.operation("POST", "contacts", '{"lastname": "Ito"}', content_id="1"),
        client.operation(
            "POST", "accounts", '{"name": "A", "primarycontactid@odata.bind": "$1"}', content_id="2"
        ),
        client.operation("PATCH", "$2", '{"accountnumber": "7"}', content_id="3"),
        client.operation("PUT", "$2/primarycontactid/$ref", '{"@odata.id": "$1"}', content_id="4"),
    )
    (response,) = client.parts(parts)
    assert [part.status for part in response.nested] == [204, 204, 204, 204]
    (account,) = client.rows(
        "accounts?$filter=accountnumber eq '7'&$expand=primarycontactid($select=lastname)"
    )
    assert account["primarycontactid"]["lastname"] == "Ito"


def test_reads_are_barred_from_change_sets(world: World) -> None:
    client = world.admin
    refused = client.batch(client.change_set(client.operation("GET", "WhoAmI")))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "0x80048d19")


@pytest.mark.parametrize("duplicate", list(DuplicateResponse))
def test_the_response_to_a_duplicate_is_one_part(world: World, duplicate: DuplicateResponse) -> None:
    client = world.function
    client.batch(*items(world))
    world.app.organization.duplicate_response = duplicate
    response = client.batch(*items(world))
    refused, read, _ = client.responses(response)
    (loser,) = refused.nested
    assert response.status_code == 200
    assert f"{loser.status} {json.loads(loser.body)['error']['code']}" == duplicate.value
    assert ("1205" in loser.body) == (duplicate is DuplicateResponse.DEADLOCK_500)
    assert ("Retry-After: 1" in loser.head) == (duplicate is DuplicateResponse.THROTTLED_429)
    assert len(json.loads(read.body)["value"]) == 1


def test_urls_may_be_absolute_and_unencoded(world: World) -> None:
    client = world.admin
    items = [
        client.operation("GET", client.root + "accounts?$select=name&$filter=name eq 'nöne'"),
        client.operation("GET", "/api/data/v9.2/WhoAmI()"),
        client.operation("GET", "WhoAmI"),
    ]
    assert [part.status for part in client.parts(*items)] == [200, 200, 200]


def test_headers_of_a_part_count(world: World) -> None:
    client = world.admin
    account = client.create("accounts", {"name": "A"})
    items = [
        client.operation("PATCH", f"accounts({account})", '{"name": "B"}', If_Match='W/"1"'),
        client.operation("POST", "accounts", '{"name": "Ünï"}', Prefer="return=representation"),
    ]
    stale, created = client.parts(*items)
    assert stale.status == 412
    assert created.status == 201
    assert client.rows("accounts?$filter=name eq 'Ünï'")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/mixed", b"--b\r\n\r\n--b--\r\n"),
        ("multipart/mixed; boundary=b", b""),
        (
            "multipart/mixed; boundary=b",
            b"--b\r\nContent-Type: application/http\r\n\r\nGET WhoAmI HTTP/1.1\r\n",
        ),
        ("multipart/mixed; boundary=b", CUT_OFF_CHANGE_SET),
        ("multipart/mixed; boundary=b", b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n"),
        (
            "multipart/mixed; boundary=b",
            b"--b\r\nContent-Type: application/http\r\n\r\nanything\r\n--b--\r\n",
        ),
    ],
)
def test_a_malformed_batch_is_refused(world: World, content_type: str, body: bytes) -> None:
    refused = world.admin.call("POST", "$batch", headers={"Content-Type": content_type}, data=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "0x80048d19")


def test_a_batch_has_a_thousand_operations_at_most(world: World) -> None:
    client = world.admin
    read = client.operation("GET", "WhoAmI")
    assert len(client.parts(*[read] * 1000)) == 1000
    assert client.batch(*[read] * 1001).status_code == 400


def test_the_log_names_the_operations_of_a_batch(world: World) -> None:
    client = world.admin
    client.batch(client.operation("GET", "WhoAmI"), client.operation("GET", "nothings"))
    assert world.app.requests[-1].operations == (("GET", "WhoAmI", 200), ("GET", "nothings", 404))
