"""The control address: what a script or the dashboard can do with it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from sandbox.cloud import CREATED_TOPIC, WON_QUEUE, Cloud, CloudOptions
from sandbox.control.client import CallFailed, Control, NoSandbox
from sandbox.control.panel import ControlPanel
from sandbox.control.server import ControlServer
from sandbox.faults import FaultPlan
from tests.sandbox.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[3]


@dataclass(frozen=True)
class _Running:
    cloud: Cloud
    control: Control

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.control.token}"}

    def get(self, path: str, **query: str | int) -> Any:  # noqa: ANN401 - JSON
        return self.control.call("GET", path, query=query)

    def post(self, path: str, **body: object) -> Any:  # noqa: ANN401 - JSON
        return self.control.call("POST", path, body)


@contextmanager
def serving(options: CloudOptions) -> Iterator[_Running]:
    with Cloud(options) as cloud, ControlPanel(cloud) as panel, ControlServer(panel) as server:
        yield _Running(cloud, Control(server.url, server.token, 1))


@pytest.fixture(scope="module")
def running() -> Iterator[_Running]:
    options = CloudOptions(
        APP,
        opportunities=12,
        faults=FaultPlan(),
        settings={"RETRY_FIRST_DELAY_SECONDS": "0.1", "RETRY_MAX_DELAY_SECONDS": "0.2"},
    )
    with serving(options) as served:
        yield served


def test_it_wins_by_count_name_part_and_id(running: _Running) -> None:
    before = len(running.get("/invoices"))
    opened = [row for row in running.get("/opportunities") if row["state"] == "open"]
    whole, part, by_id = opened[-3:]
    # The number in the end makes each name the only one with it.
    won = running.post("/win", count=1)
    won += running.post("/win", opportunities=[whole["name"].upper()])
    won += running.post("/win", opportunities=[part["name"][5:].lower(), by_id["id"]])
    assert [row["id"] for row in won] == [opened[0]["id"], whole["id"], part["id"], by_id["id"]]
    wait_until(lambda: len(running.get("/invoices")) == before + 4)
    states = {row["id"]: (row["state"], row["invoices"]) for row in running.get("/opportunities")}
    assert {states[row["id"]] for row in won} == {("won", 1)}


def test_an_opportunity_is_lost_reopened_changed_and_won(running: _Running) -> None:
    (row, *_) = [row for row in running.get("/opportunities") if row["state"] == "open"][-4:]
    wanted = [row["id"]]
    assert running.post("/lose", opportunities=wanted)[0]["state"] == "lost"
    assert running.post("/reopen", opportunities=wanted)[0]["state"] == "open"
    (changed,) = running.post("/change", opportunities=wanted, price=100, quantity=2, freight=1)
    assert changed["total"] != row["total"]
    running.post("/win", opportunities=wanted)
    wait_until(lambda: row["id"] in {each["opportunity"] for each in running.get("/invoices")})
    with pytest.raises(CallFailed, match=f"{row['name']}: 4.."):
        running.post("/lose", opportunities=wanted)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/lose", {}, "name at least one opportunity"),
        ("/change", {"opportunities": ["x"]}, "nothing changes"),
        ("/change", {"opportunities": ["x"], "price": "much"}, "price must be a number"),
        ("/change", {"opportunities": ["x"], "currency": "XXX"}, "there is no currency 'XXX'; there is EUR"),
        ("/win", {"opportunities": ["nobody"]}, "no opportunity is called 'nobody'"),
        ("/win", {"opportunities": [""]}, "12 opportunities match '', such as "),
        ("/win", {"count": 1000}, "1000 is not between 1 and "),
        ("/win", {"count": 0}, "0 is not between"),
        ("/win", {"count": "many"}, "count must be a number"),
        ("/win", {"opportunities": "one"}, "opportunities must be a list of strings"),
        ("/faults", {"rule": "nonsense"}, "there is no connection"),
        ("/faults", {"rule": "dataverse reset", "seconds": 0}, "more than 0"),
        ("/faults", {}, "rule must be a string"),
        ("/clock", {"hours": -1}, "hours must be more than 0"),
        ("/messages", {"entity": "nowhere", "body": ""}, "nowhere"),
        ("/messages", {"entity": CREATED_TOPIC}, "body must be a string"),
    ],
)
def test_it_refuses_with_a_reason(
    running: _Running, path: str, body: dict[str, object], message: str
) -> None:
    with pytest.raises(CallFailed, match=message):
        running.post(path, **body)


def test_events_are_numbered_and_can_be_waited_for(running: _Running) -> None:
    last = max((event["number"] for event in running.get("/events")), default=0)
    (row,) = running.post("/win", count=1)
    bodies = ""
    # Events of earlier wins may still come.
    while row["id"] not in bodies:
        events = running.get("/events", after=last, wait=20)
        assert events, "no event within 20 s"
        assert [event["number"] for event in events] == list(range(last + 1, last + 1 + len(events)))
        last += len(events)
        bodies = "".join(event["body"] for event in events)
    assert events[-1]["topic"] == CREATED_TOPIC
    assert events[-1]["applicationProperties"]["cloudEvents_specversion"] == "1.0"
    assert running.get("/events", after=last) == []


def test_requests_name_the_client_and_what_a_batch_holds(running: _Running) -> None:
    last = len(running.get("/requests"))
    running.post("/win", count=1)
    wait_until(lambda: "function" in {each["client"] for each in running.get("/requests", after=last)})
    requests_ = running.get("/requests", after=last)
    assert requests_[0]["client"] == "operator"
    assert requests_[0]["url"].endswith("/WinOpportunity")
    assert [each["number"] for each in requests_] == list(range(last + 1, last + 1 + len(requests_)))
    assert any(each["operations"] for each in requests_)


def test_a_connection_breaks_for_a_time_or_until_it_is_repaired(running: _Running) -> None:
    broken = running.post("/faults", rule="dataverse unavailable", seconds=600)["faults"]
    assert [each["rule"] for each in broken] == ["dataverse unavailable for=600s"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", broken[0]["until"])
    (row,) = running.post("/win", count=1)
    wait_until(lambda: bool(running.cloud.options.faults and running.cloud.options.faults.log))
    assert row["id"] not in {each["opportunity"] for each in running.get("/invoices")}
    assert running.get("/status")["faults"] == broken
    assert running.control.call("DELETE", "/faults") == {"faults": []}
    wait_until(lambda: row["id"] in {each["opportunity"] for each in running.get("/invoices")})


def test_a_rule_that_has_struck_for_the_last_time_is_no_longer_active(running: _Running) -> None:
    running.post("/faults", rule="dataverse unavailable nth=1")
    running.post("/win", count=1)
    wait_until(lambda: running.get("/status")["faults"] == [])


def test_workers_are_killed_and_replaced(running: _Running) -> None:
    killed = running.post("/workers/kill")["killed"]
    assert killed
    wait_until(lambda: bool(set(running.get("/status")["workers"]) - set(killed)))


def test_time_passes_for_service_bus(running: _Running) -> None:
    before = running.get("/status")["clockAheadSeconds"]
    assert "." not in running.post("/clock", hours=2)["now"]
    assert running.get("/status")["clockAheadSeconds"] == pytest.approx(before + 7200, abs=2)


def test_messages_are_sent_and_shown(running: _Running) -> None:
    audit = f"{CREATED_TOPIC}/Subscriptions/audit"
    before = len(running.get("/messages", entity=audit))
    running.post(
        "/messages",
        entity=CREATED_TOPIC,
        body="ä",
        contentType="text/plain",
        messageId="one",
        applicationProperties={"kind": "test"},
    )
    shown = running.get("/messages", entity=audit)
    assert len(shown) == before + 1
    assert (shown[-1]["body"], shown[-1]["messageId"], shown[-1]["state"]) == ("ä", "one", "active")
    assert shown[-1]["applicationProperties"] == {"kind": "test"}
    with pytest.raises(CallFailed, match="nowhere"):
        running.get("/messages", entity="nowhere")


def test_the_status_has_the_queues_and_the_functions(running: _Running) -> None:
    status = running.get("/status")
    assert status["entities"][0]["path"] == WON_QUEUE
    assert status["functions"] == [
        {"name": "GenerateInvoiceFunction", "source": WON_QUEUE, "disabled": False}
    ]
    assert sum(status["opportunities"].values()) == 12


def test_traces_are_refused_where_none_are_collected(running: _Running) -> None:
    with pytest.raises(CallFailed, match="start it with --traces"):
        running.get("/traces")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "right", "Host": "evil.example:80"}, 403),
        ({"Authorization": "right"}, 200),
    ],
)
def test_only_requests_with_the_token_and_to_this_host_are_served(
    running: _Running, headers: dict[str, str], status: int
) -> None:
    if headers.get("Authorization") == "right":
        headers = headers | running.authorization
    response = requests.get(f"{running.control.url}/status", headers=headers, timeout=10)
    assert response.status_code == status
    assert running.control.token not in response.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", b"", 404),
        ("GET", "/win", b"", 405),
        ("POST", "/win", b"{", 400),
        ("POST", "/win", b"[]", 400),
        ("GET", "/events?after=x", b"", 409),
    ],
)
def test_other_requests_are_refused(
    running: _Running, method: str, path: str, body: bytes, status: int
) -> None:
    response = requests.request(
        method,
        f"{running.control.url}{path}",
        data=body,
        headers=running.authorization,
        timeout=10,
    )
    assert response.status_code == status
    assert response.json()["error"]


def test_the_documentation_lists_every_endpoint(running: _Running) -> None:
    page = (APP / "docs" / "sandbox.md").read_text()
    with pytest.raises(CallFailed, match="there is no /nowhere; there is ") as refused:
        running.get("/nowhere")
    endpoints = str(refused.value).removeprefix("there is no /nowhere; there is ")
    listed = [endpoint for endpoint in endpoints.split(", ") if f"`{endpoint}`" in page]
    assert listed == endpoints.split(", ")
    status = running.get("/status")
    assert [name for name in status if f"`{name}`" not in page] == []


def test_without_dataverse_selling_is_refused() -> None:
    options = CloudOptions(APP, dataverse=False, functions_host=False)
    with serving(options) as served:
        assert served.get("/status")["opportunities"] is None
        for method, path in (("POST", "/win"), ("GET", "/invoices"), ("GET", "/requests")):
            with pytest.raises(CallFailed, match="runs without Dataverse"):
                served.control.call(method, path)
        for path, message in (("/faults", "no fault plan"), ("/workers/kill", "no functions host")):
            with pytest.raises(CallFailed, match=message):
                served.post(path, rule="identity reset")


def test_where_no_opportunity_is_open_none_can_be_won() -> None:
    options = CloudOptions(APP, opportunities=0, functions_host=False)
    with serving(options) as served, pytest.raises(CallFailed, match="no opportunity is open"):
        served.post("/win", count=1)


def test_a_sandbox_is_found_by_its_run_folder(running: _Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_CONTROL", raising=False)
    Control(running.control.url, running.control.token, 4711).write(running.cloud.folder)
    assert (running.cloud.folder / "control.json").stat().st_mode & 0o077 == 0
    assert Control.find(4711).token == running.control.token
    with pytest.raises(NoSandbox, match="no sandbox runs with the process id 4712"):
        Control.find(4712)
    monkeypatch.setenv("SANDBOX_CONTROL", "http://127.0.0.1:1/")
    monkeypatch.setenv("SANDBOX_CONTROL_TOKEN", "t")
    assert Control.find() == Control("http://127.0.0.1:1", "t")
    with pytest.raises(CallFailed, match="does not respond"):
        Control.find().call("GET", "/status")
