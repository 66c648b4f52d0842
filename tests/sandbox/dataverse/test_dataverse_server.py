"""Over HTTPS: Microsoft's own Python SDK, many clients at once, and connections that fail."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import requests
import trustme
from azure.core.credentials import AccessToken

from sandbox.clock import SystemClock
from sandbox.dataverse import (
    DataverseApp,
    DataverseServer,
    DuplicateResponse,
    ResponseLost,
    WsgiAdapter,
    seed,
)
from sandbox.dataverse.schema import TABLES
from sandbox.identity import Identity, TokenAuthority

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from PowerPlatform.Dataverse.client import DataverseClient

    from sandbox.dataverse.seed import DemoOrganization

KEY = "11111111-2222-4333-8444-555555555555"


class Faults:
    """A middleware that breaks a connection off before or after the application is called."""

    def __init__(self) -> None:
        self.lose_before = self.lose_after = 0

    def __call__(self, app: WSGIApplication) -> WSGIApplication:
        def faulty(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if self.lose_before:
                self.lose_before -= 1
                raise ResponseLost
            response = app(environ, start_response)
            if self.lose_after:
                self.lose_after -= 1
                raise ResponseLost
            return response

        return faulty


@dataclass
class Served:
    """A served organization, its trust, and an administrator's and the function's tokens."""

    app: DataverseApp
    server: DataverseServer
    demo: DemoOrganization
    faults: Faults
    bundle: str
    admin: str
    function: str

    def session(self, token: str) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = self.bundle
        session.headers["Authorization"] = f"Bearer {token}"
        return session

    @property
    def root(self) -> str:
        return f"{self.server.url}/api/data/v9.2/"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    authority, clock = TokenAuthority(), SystemClock()
    ca = trustme.CA()
    bundle = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    app, faults = DataverseApp(authority.verify, clock=clock, directory=tmp_path), Faults()
    demo = seed.demo_organization(app, 20)
    admin, function = Identity.named("administrator"), Identity.named("function")
    seed.add_administrator(app, admin.client_id)
    seed.add_application_user(app, function.client_id, roles=[seed.add_role(app)])
    with DataverseServer(app, context, middleware=faults) as server:
        yield Served(
            app,
            server,
            demo,
            faults,
            str(bundle),
            authority.issue(admin, server.url),
            authority.issue(function, server.url),
        )
    app.close()


class Credential:
    """Gives the official SDK a token."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:  # noqa: ANN401 - the protocol's own
        assert scopes[0].endswith("/.default")
        return AccessToken(self.token, 2**31)


@pytest.fixture
def sdk(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataverseClient]:
    """Microsoft's Python SDK; it trusts what REQUESTS_CA_BUNDLE names."""
    # It imports pandas: more than a second, which only the process that runs these tests has to spend.
    from PowerPlatform.Dataverse.client import DataverseClient  # noqa: PLC0415
    from PowerPlatform.Dataverse.core.config import DataverseConfig  # noqa: PLC0415

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", served.bundle)
    config = DataverseConfig(http_retries=1)
    with DataverseClient(served.server.url, Credential(served.admin), config) as client:
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
            page_size=7,
            include_annotations="*",
        )
    )
    assert [len(page) for page in pages] == [7, 7, 6]
    first: Any = next(iter(pages[0]))
    assert first["transactioncurrencyid"]["isocurrencycode"]


def test_the_official_sdk_writes_labels_of_choices(sdk: DataverseClient) -> None:
    """It reads the table's choices from EntityDefinitions and sends the number."""
    endpoint = sdk.records.create("serviceendpoint", {"name": "e", "contract": "Topic"})
    assert value(sdk, "serviceendpoint", endpoint, "contract") == 5


def test_a_change_set_of_the_official_sdk_is_one_transaction(sdk: DataverseClient, served: Served) -> None:
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
    before = len(served.app.database.commits)
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
    assert len(served.app.database.commits) == before


def claim_and_call(opportunity: str) -> bytes:
    note = {"annotationid": KEY, "objectid_opportunity@odata.bind": f"/opportunities({opportunity})"}
    call = {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": False, "Columns": []}}
    head = "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
    lines = ["--b\r\nContent-Type: multipart/mixed; boundary=c\r\n"]
    for number, (path, body) in enumerate((("annotations", note), ("GenerateInvoiceFromOpportunity", call))):
        lines.append(
            f"--c\r\n{head}Content-ID: {number}\r\n\r\nPOST {path} HTTP/1.1\r\n"
            f"Content-Type: application/json\r\n\r\n{json.dumps(body)}"
        )
    lines.append("--c--\r\n--b--\r\n")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("response", [DuplicateResponse.DUPLICATE_412, DuplicateResponse.DEADLOCK_500])
def test_of_many_simultaneous_claims_one_commits(served: Served, response: DuplicateResponse) -> None:
    served.app.organization.duplicate_response = response
    opportunity, start = served.demo.opportunities[0], threading.Barrier(16)

    def attempt(_: int) -> str:
        session = served.session(served.function)
        headers = {"Content-Type": "multipart/mixed; boundary=b", "Prefer": "odata.continue-on-error"}
        session.get(served.root + "WhoAmI", timeout=20)
        start.wait(timeout=20)
        response = session.post(
            served.root + "$batch", data=claim_and_call(opportunity), headers=headers, timeout=20
        )
        session.close()
        return response.text

    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(attempt, range(16)))
    assert sum("HTTP/1.1 204" in text for text in texts) == 1
    assert sum(f"HTTP/1.1 {response.value.split()[0]}" in text for text in texts) == 15
    made = [
        change
        for commit in served.app.database.commits
        for change in commit.changes
        if change.table == "invoice" and change.kind == "create"
    ]
    assert len(made) == 1


def test_52_threads_read_and_write_at_once_without_a_loss(served: Served) -> None:
    def work(number: int) -> list[int]:
        session = served.session(served.admin)
        statuses = []
        for turn in range(3):
            body = {"name": f"{number}/{turn}"}
            statuses.append(session.post(served.root + "accounts", json=body, timeout=60).status_code)
            statuses.append(session.get(served.root + "accounts?$top=1", timeout=60).status_code)
        session.close()
        return statuses

    with ThreadPoolExecutor(52) as threads:
        assert list(threads.map(work, range(52))) == [[204, 200] * 3] * 52
    rows = served.session(served.admin).get(served.root + "accounts?$filter=contains(name,'/')", timeout=20)
    assert len(rows.json()["value"]) == 52 * 3


def test_readers_see_what_is_committed_while_a_writer_is_at_work(served: Served) -> None:
    session = served.session(served.admin)
    path = f"{served.root}opportunities({served.demo.opportunities[0]})?$select=name"
    before = session.get(path, timeout=10).json()["name"]
    with served.app.session() as writer:
        writer.transaction.update(TABLES["opportunity"], served.demo.opportunities[0], {"name": "under way"})
        assert session.get(path, timeout=10).json()["name"] == before
    assert session.get(path, timeout=10).json()["name"] == "under way"
    session.close()


def test_connections_are_kept_alive(served: Served) -> None:
    with served.session(served.admin) as session:
        peers = set()
        for _ in range(3):
            response = session.get(served.root + "WhoAmI", timeout=10, stream=True)
            connection: Any = response.raw.connection
            peers.add(connection.sock.getsockname())
            assert response.json()["UserId"]
    assert len(peers) == 1


def test_a_response_lost_after_the_commit_breaks_the_connection(served: Served) -> None:
    session = served.session(served.admin)
    served.faults.lose_before = 1
    with pytest.raises(requests.ConnectionError):
        session.post(served.root + "accounts", json={"name": "before"}, timeout=10)
    served.faults.lose_after = 1
    with pytest.raises(requests.ConnectionError):
        session.post(served.root + "accounts", json={"name": "after"}, timeout=10)
    rows = session.get(
        served.root + "accounts?$filter=name eq 'before' or name eq 'after'", timeout=10
    ).json()
    assert [row["name"] for row in rows["value"]] == ["after"]
    session.close()


def test_the_adapter_loses_responses_in_the_same_way(served: Served) -> None:
    with served.session(served.admin) as session:
        session.mount(served.server.url, WsgiAdapter(served.faults(served.app)))
        served.faults.lose_after = 1
        with pytest.raises(requests.ConnectionError):
            session.post(served.root + "accounts", json={"name": "after"})
        rows = session.get(served.root + "accounts?$filter=name eq 'after'").json()["value"]
        assert len(rows) == 1


def test_a_client_that_says_nothing_does_not_keep_others_waiting(served: Served) -> None:
    host, port = served.server.url.removeprefix("https://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(3)]
    with served.session(served.admin) as session:
        assert session.get(served.root + "WhoAmI", timeout=5).status_code == 200
    for connection in silent:
        connection.close()


def test_plain_http_and_clients_without_its_authority_get_no_response(served: Served) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.get(served.root.replace("https", "http"), timeout=5)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(served.root, timeout=5)


def test_stopping_leaves_no_thread_and_no_port(served: Served) -> None:
    url = served.server.url
    served.server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dataverse")]
    host, port = url.removeprefix("https://").split(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_tokens_and_bodies_are_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    secret = str(uuid.uuid4())
    with caplog.at_level(logging.DEBUG, logger="sandbox"), served.session("not-a-token-" + secret) as session:
        response = session.post(served.root + "accounts", json={"name": secret}, timeout=10)
    assert response.status_code == 401
    assert caplog.text
    assert secret not in caplog.text
