"""Over HTTPS: Microsoft's own Python SDK, many clients at once, and connections that fail."""

from __future__ import annotations

import json
import logging
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests
from azure.core.credentials import AccessToken

from sandbox.certificates import CertificateAuthority
from sandbox.dataverse import DataverseServer, DuplicateResponse, WsgiAdapter
from sandbox.dataverse.schema import TABLES
from sandbox.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PowerPlatform.Dataverse.client import DataverseClient

    from tests.sandbox.dataverse.conftest import Client, World

KEY = "11111111-2222-4333-8444-555555555555"


class Credential:
    """Gives the official SDK a token."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:  # noqa: ANN401 - the protocol's own
        assert scopes[0].endswith("/.default")
        return AccessToken(self.token, 2**31)


@pytest.fixture
def sdk(https_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataverseClient]:
    """Microsoft's Python SDK; it trusts what REQUESTS_CA_BUNDLE names."""
    # It imports pandas: more than a second, which only the process that runs these tests has to spend.
    from PowerPlatform.Dataverse.client import DataverseClient  # noqa: PLC0415
    from PowerPlatform.Dataverse.core.config import DataverseConfig  # noqa: PLC0415

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", https_world.bundle or "")
    url, credential = https_world.app.organization.url, Credential(https_world.admin.token)
    with DataverseClient(url, credential, DataverseConfig(http_retries=1)) as client:
        yield client


def value(sdk: DataverseClient, table: str, record_id: str, column: str) -> object:
    record = sdk.records.retrieve(table, record_id, select=[column])
    assert record is not None
    return record[column]


def test_the_official_sdk_creates_reads_changes_lists_and_deletes(sdk: DataverseClient) -> None:
    account = sdk.records.create("account", {"name": "Larch Optics", "numberofemployees": 7})
    assert value(sdk, "account", account, "name") == "Larch Optics"
    sdk.records.update("account", account, {"name": "Larch & Co"})
    pages = list(sdk.records.list_pages("account", filter="contains(name,'&')", select=["name"], page_size=1))
    assert [record["name"] for page in pages for record in page] == ["Larch & Co"]
    sdk.records.delete("account", account)
    assert sdk.records.retrieve("account", account) is None
    from PowerPlatform.Dataverse.core.errors import HttpError  # noqa: PLC0415 - as in the fixture

    with pytest.raises(HttpError) as missing:
        sdk.records.update("account", account, {"name": "gone"})
    assert (missing.value.status_code, missing.value.details["service_error_code"]) == (404, "0x80040217")


def test_the_official_sdk_expands_orders_and_pages(sdk: DataverseClient) -> None:
    pages = list(
        sdk.records.list_pages(
            "opportunity",
            select=["name"],
            expand=["transactioncurrencyid"],
            orderby=["name desc"],
            page_size=3,
            include_annotations="*",
        )
    )
    assert [len(page) for page in pages] == [3, 3, 2]
    first: Any = next(iter(pages[0]))
    assert first["transactioncurrencyid"]["isocurrencycode"]


def test_the_official_sdk_writes_labels_of_choices(sdk: DataverseClient) -> None:
    """It reads the table's choices from EntityDefinitions and sends the number."""
    endpoint = sdk.records.create("serviceendpoint", {"name": "e", "contract": "Topic"})
    assert value(sdk, "serviceendpoint", endpoint, "contract") == 5


def test_a_change_set_of_the_official_sdk_is_one_transaction(
    sdk: DataverseClient, https_world: World
) -> None:
    batch = sdk.batch.new()
    with batch.changeset() as changes:
        contact = changes.records.create("contact", {"lastname": "Ito"})
        account = changes.records.create("account", {"name": "A", "primarycontactid@odata.bind": contact})
        changes.records.update("account", account, {"accountnumber": "7"})
    batch.records.list("account", filter="accountnumber eq '7'")
    result = batch.execute()
    assert [response.status_code for response in result.responses] == [204, 204, 204, 200]
    assert result.responses[-1].data
    assert len(result.responses[-1].data["value"]) == 1
    before = len(https_world.app.database.commits)
    batch = sdk.batch.new()
    with batch.changeset() as changes:
        changes.records.create("account", {"name": "undone"})
        changes.records.create(
            "account", {"name": "of nobody", "primarycontactid@odata.bind": f"/contacts({KEY})"}
        )
    result = batch.execute(continue_on_error=True)
    assert [(response.status_code, response.error_code) for response in result.responses] == [
        (404, "0x80040217")
    ]
    assert len(https_world.app.database.commits) == before


def claim_and_call(client: Client, opportunity: str) -> str:
    note = {"annotationid": KEY, "objectid_opportunity@odata.bind": f"/opportunities({opportunity})"}
    call = {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": False, "Columns": []}}
    return client.change_set(
        client.operation("POST", "annotations", json.dumps(note)),
        client.operation("POST", "GenerateInvoiceFromOpportunity", json.dumps(call)),
    )


@pytest.mark.parametrize("response", [DuplicateResponse.DUPLICATE_412, DuplicateResponse.DEADLOCK_500])
def test_of_many_simultaneous_claims_one_commits(https_world: World, response: DuplicateResponse) -> None:
    https_world.app.organization.duplicate_response = response
    start = threading.Barrier(16)

    def attempt(_: int) -> int:
        client = https_world.function.again()
        client.get("WhoAmI")
        start.wait(timeout=20)
        (change_set,) = client.parts(claim_and_call(client, https_world.opportunity))
        client.session.close()
        return change_set.nested[0].status

    with ThreadPoolExecutor(16) as threads:
        statuses = sorted(threads.map(attempt, range(16)))
    assert statuses == [204] + [int(response.value.split()[0])] * 15
    changes = [change for commit in https_world.app.database.commits for change in commit.changes]
    assert len([change for change in changes if (change.table, change.kind) == ("invoice", "create")]) == 1


def test_52_threads_read_and_write_at_once_without_a_loss(https_world: World) -> None:
    def work(number: int) -> None:
        client = https_world.admin.again()
        for turn in range(3):
            client.create("accounts", {"name": f"{number}/{turn}"})
            client.rows("accounts?$top=1")
        client.session.close()

    with ThreadPoolExecutor(52) as threads:
        list(threads.map(work, range(52)))
    assert len(https_world.admin.rows("accounts?$filter=contains(name,'/')")) == 52 * 3


def test_readers_see_what_is_committed_while_a_writer_is_at_work(https_world: World) -> None:
    client, path = https_world.admin, https_world.path
    before = client.get(path)["name"]
    with https_world.app.session() as writer:
        writer.transaction.update(TABLES["opportunity"], https_world.opportunity, {"name": "under way"})
        assert client.get(path)["name"] == before
    assert client.get(path)["name"] == "under way"


def test_connections_are_kept_alive(https_world: World) -> None:
    client, peers = https_world.admin, set()
    for _ in range(3):
        headers = {"Authorization": f"Bearer {client.token}"}
        response = client.session.get(f"{client.root}WhoAmI", headers=headers, stream=True)
        connection: Any = response.raw.connection
        peers.add(connection.sock.getsockname())
        assert response.json()["UserId"]
    assert len(peers) == 1


@pytest.mark.parametrize("in_process", [False, True])
def test_a_response_lost_after_the_commit_breaks_the_connection(https_world: World, in_process: bool) -> None:  # noqa: FBT001
    """Over a socket and through the adapter in the same way."""
    client, faults = https_world.admin, https_world.faults
    if in_process:
        client.session.mount(https_world.app.organization.url, WsgiAdapter(faults(https_world.app)))
    faults.lose_before = True
    with pytest.raises(requests.ConnectionError):
        client.create("accounts", {"name": "before"})
    faults.lose_after = True
    with pytest.raises(requests.ConnectionError):
        client.create("accounts", {"name": "after"})
    rows = client.rows("accounts?$filter=name eq 'before' or name eq 'after'")
    assert [row["name"] for row in rows] == ["after"]


def address(world: World) -> tuple[str, int]:
    host, port = world.app.organization.url.removeprefix("https://").split(":")
    return host, int(port)


def test_a_client_that_says_nothing_does_not_keep_others_waiting(https_world: World) -> None:
    silent = [socket.create_connection(address(https_world), timeout=5) for _ in range(3)]
    assert https_world.admin.again().get("WhoAmI")
    for connection in silent:
        connection.close()


def test_plain_http_and_clients_without_its_authority_get_no_response(https_world: World) -> None:
    url = https_world.app.organization.url
    with pytest.raises(requests.ConnectionError):
        requests.get(url.replace("https", "http"), timeout=5)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(url, timeout=5)


def test_stopping_leaves_no_thread_and_no_port(world: World, tmp_path: Path) -> None:
    context = CertificateAuthority(tmp_path).server_context("127.0.0.1")
    with DataverseServer(world.app, context):
        socket.create_connection(address(world), timeout=5).close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dataverse")]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(world), timeout=5)


def test_tokens_and_bodies_are_not_logged(https_world: World, caplog: pytest.LogCaptureFixture) -> None:
    secret = str(uuid.uuid4())
    client = https_world.client(Identity.named("x"))
    client.token = f"not-a-token-{secret}"
    with caplog.at_level(logging.DEBUG, logger="sandbox"):
        assert client.call("POST", "accounts", {"name": secret}).status_code == 401
    assert caplog.text
    assert secret not in caplog.text
