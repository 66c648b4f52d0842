"""Faults of HTTP applications: what was carried out, and what the caller gets, over sockets and in-process."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock
from sandbox.dataverse import DataverseApp, DataverseServer, seed
from sandbox.dataverse.schema import TABLES
from sandbox.faults import (
    Dependency,
    Fault,
    FaultKind,
    FaultPlan,
    FaultRule,
    FaultyAdapter,
    When,
    faulty_dataverse,
)
from sandbox.identity import Identity, TokenAuthority
from tests.sandbox.dataverse.conftest import Client, change_set, operation

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
URL = "https://sandbox.crm.dynamics.com"
KEY = "11111111-2222-4333-8444-555555555555"


@dataclass
class Service:
    """An application that counts what it carried out, and the plan before it; `waited` are the silences' seconds."""

    plan: FaultPlan = field(default_factory=lambda: FaultPlan(clock=MovableClock(NOW)))
    carried_out: int = 0
    waited: list[float] = field(default_factory=list)

    def __call__(self, _: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Respond with some JSON."""
        self.carried_out += 1
        body = json.dumps({"value": list(range(100))}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def get(self, fault: Fault, **headers: str) -> requests.Response:
        """Call it once, struck by `fault`."""
        self.plan.add(FaultRule(Dependency.DATAVERSE, fault, When.once()))
        session = requests.Session()
        session.mount("https://", FaultyAdapter(faulty_dataverse(self, self.plan, self.waited.append)))
        return session.get(f"{URL}/api/data/v9.2/accounts", headers=headers, allow_redirects=False)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.mark.parametrize(
    ("fault", "error", "carried_out"),
    [
        (Fault(FaultKind.REFUSE), requests.ConnectionError, 0),
        (Fault(FaultKind.RESET), requests.ConnectionError, 0),
        (Fault(FaultKind.RESET, after=True), requests.ConnectionError, 1),
        (Fault(FaultKind.SILENT, seconds=7), requests.ReadTimeout, 0),
        (Fault(FaultKind.SILENT, after=True, seconds=7), requests.ReadTimeout, 1),
        (Fault(FaultKind.SWALLOW), requests.ReadTimeout, 0),
        (Fault(FaultKind.CUT), requests.exceptions.ChunkedEncodingError, 1),
    ],
    ids=str,
)
def test_broken_connections(service: Service, fault: Fault, error: type[Exception], carried_out: int) -> None:
    """The caller cannot tell whether its call was carried out; the service can."""
    with pytest.raises(error):
        service.get(fault)
    assert service.carried_out == carried_out


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault(FaultKind.UNAUTHORIZED), 401, None),
        (Fault(FaultKind.FORBIDDEN), 403, "0x80072560"),
        (Fault(FaultKind.FORBIDDEN, code="0x80040220"), 403, "0x80040220"),
        (Fault(FaultKind.NOT_FOUND), 404, None),
        (Fault(FaultKind.NOT_FOUND, code="0x80040217"), 404, "0x80040217"),
        (Fault(FaultKind.CONFLICT), 412, "0x80040237"),
        (Fault(FaultKind.CONFLICT, code="0x80060882"), 412, "0x80060882"),
        (Fault(FaultKind.DEADLOCK), 500, "0x80044150"),
        (Fault(FaultKind.THROTTLED), 429, "0x80072322"),
        (Fault(FaultKind.UNAVAILABLE), 503, None),
        (Fault(FaultKind.UNAVAILABLE, status=502), 502, None),
        (Fault(FaultKind.UNAVAILABLE, status=504, after=True), 504, None),
        (Fault(FaultKind.ERROR), 400, "0x80040265"),
        (Fault(FaultKind.ERROR, code="0x80048d06", status=403), 403, "0x80048d06"),
        (Fault(FaultKind.ERROR, code="", status=409), 409, ""),
        (Fault(FaultKind.SQL_TIMEOUT), 500, "0x80044151"),
        (Fault(FaultKind.ADMIN_MODE), 403, "0x8004A113"),
        (Fault(FaultKind.EMPTY), 403, None),
        (Fault(FaultKind.EMPTY, status=502), 502, None),
        (Fault(FaultKind.HTML), 200, None),
        (Fault(FaultKind.REDIRECT), 302, None),
    ],
    ids=str,
)
def test_responses_of_faults(service: Service, fault: Fault, status: int, code: str | None) -> None:
    """The response is the fault's, and the call is carried out only where the fault says so."""
    response = service.get(fault)
    assert response.status_code == status
    if code is None:
        with pytest.raises(requests.exceptions.JSONDecodeError):
            response.json()
    else:
        assert response.json()["error"]["code"] == code
    assert service.carried_out == int(fault.after)


@pytest.mark.parametrize(
    ("form", "header"),
    [
        ("7", "7"),
        ("none", None),
        ("-5", "-5"),
        ("999999999", "999999999"),
        ("soon", "soon"),
        ("date+60", "Sun, 01 Mar 2026 12:01:00 GMT"),
        ("date-60", "Sun, 01 Mar 2026 11:59:00 GMT"),
    ],
)
def test_every_form_of_retry_after(service: Service, form: str, header: str | None) -> None:
    assert service.get(Fault(FaultKind.THROTTLED, retry_after=form)).headers.get("Retry-After") == header


def test_a_redirect_leads_to_a_page_that_looks_like_success(service: Service) -> None:
    """A client that follows the redirect with its token takes the page for a response."""
    session = requests.Session()
    session.mount("https://", FaultyAdapter(faulty_dataverse(service, service.plan)))
    service.plan.add(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.REDIRECT), When.once()))
    response = session.get(f"{URL}/api/data/v9.2/accounts")
    assert response.status_code == 200
    assert "Sign in" in response.text
    assert service.carried_out == 0


def test_a_redirect_may_lead_elsewhere(service: Service) -> None:
    elsewhere = "https://contoso-new.crm4.dynamics.com/"
    assert service.get(Fault(FaultKind.REDIRECT, location=elsewhere)).headers["Location"] == elsewhere


def test_a_plug_ins_error_names_it_where_asked(service: Service) -> None:
    fault = Fault(FaultKind.ERROR, text="Not so much.", source="Plugin/Contoso.CreditCheck")
    assert service.get(fault).json() == {"error": {"code": "0x80040265", "message": "Not so much."}}
    details = "Microsoft.PowerApps.CDS.ErrorDetails*"
    error = service.get(fault, Prefer=f'odata.include-annotations="{details}"').json()["error"]
    assert (
        error["@Microsoft.PowerApps.CDS.ErrorDetails.ApiExceptionSourceKey"] == "Plugin/Contoso.CreditCheck"
    )
    assert "@Microsoft.PowerApps.CDS.TraceText" not in error
    error = service.get(fault, Prefer='odata.include-annotations="*"').json()["error"]
    assert "@Microsoft.PowerApps.CDS.TraceText" in error


def test_a_plug_ins_429_has_no_retry_after_unless_it_is_asked_for(service: Service) -> None:
    assert "Retry-After" not in service.get(Fault(FaultKind.ERROR, status=429)).headers
    assert service.get(Fault(FaultKind.ERROR, status=429, retry_after="7")).headers["Retry-After"] == "7"


def test_late_responses_are_whole(service: Service) -> None:
    for fault in (Fault(FaultKind.DELAY, seconds=3), Fault(FaultKind.DRIBBLE, seconds=4)):
        assert len(service.get(fault).json()["value"]) == 100
    assert service.waited[0] == 3
    assert sum(service.waited[1:]) == pytest.approx(4, rel=0.2)


def test_a_truncated_response_is_whole_for_http_only(service: Service) -> None:
    response = service.get(Fault(FaultKind.TRUNCATED))
    assert int(response.headers["Content-Length"]) == len(response.content)
    with pytest.raises(requests.exceptions.JSONDecodeError):
        response.json()


# ---------------------------------------------------------------------------------------------- Dataverse


@dataclass
class World:
    """An organization behind faults, with an administrator who calls it."""

    app: DataverseApp
    plan: FaultPlan
    admin: Client
    opportunity: str

    @property
    def notes(self) -> int:
        """How many notes there are."""
        with self.app.database.reading() as transaction:
            return transaction.count(TABLES["annotation"])

    def claim(self, content_id: str = "", **values: str) -> str:
        """Write a change set that adds a note to the opportunity."""
        note = {"objectid_opportunity@odata.bind": f"/opportunities({self.opportunity})", **values}
        return change_set(operation("POST", "annotations", json.dumps(note), content_id))


def administrator(app: DataverseApp, authority: TokenAuthority, bundle: str | None = None) -> Client:
    identity = Identity.named("administrator")
    seed.add_administrator(app, identity.client_id)
    return Client(app, authority.issue(identity, app.organization.url), bundle)


@pytest.fixture
def world() -> Iterator[World]:
    clock = MovableClock(NOW)
    authority = TokenAuthority(clock)
    app = DataverseApp(authority.verify, clock=clock)
    demo = seed.demo_organization(app, 1)
    plan = FaultPlan(clock=clock)
    admin = administrator(app, authority)
    admin.session.mount(app.organization.url, FaultyAdapter(faulty_dataverse(app, plan, lambda _: None)))
    yield World(app, plan, admin, demo.opportunities[0])
    app.close()


def test_operations_are_distinguished(world: World) -> None:
    """A read, a write, a batch of reads and one with a change set are operations of their own."""
    for name in ("read", "write", "batch", "change-set", "update"):
        world.plan.add(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.RESET), operation=name))
    for call in (
        partial(world.admin.call, "GET", "accounts"),
        partial(world.admin.call, "POST", "annotations", {"subject": "x"}),
        partial(world.admin.batch, operation("GET", "accounts")),
        partial(world.admin.batch, world.claim()),
        partial(world.admin.batch, change_set(operation("PATCH", "accounts(1)", '{"name": "x"}'))),
    ):
        with pytest.raises(requests.ConnectionError):
            call()
    assert [entry.operation for entry in world.plan.log] == ["read", "write", "batch", "change-set", "update"]


@pytest.mark.parametrize("after", [False, True])
def test_one_part_of_a_batch_is_struck(world: World, after: bool) -> None:  # noqa: FBT001 - pytest's
    """The others get their own responses; without after the part that is struck is not carried out."""
    world.plan.add(
        FaultRule(Dependency.DATAVERSE, Fault(FaultKind.THROTTLED, part=0, after=after, retry_after="9"))
    )
    notes = operation("GET", "annotations?$select=annotationid")
    response = world.admin.batch(world.claim(), notes)
    assert response.status_code == 200
    assert "HTTP/1.1 429" in response.text
    assert "Retry-After: 9" in response.text
    assert response.text.count("HTTP/1.1 ") == 2
    assert response.text.count('"annotationid":') == (1 if after else 0)
    assert world.notes == (1 if after else 0)
    assert response.text.index("429") < response.text.index("200 OK")


@pytest.mark.parametrize("stop", [None, 200, 400])
def test_a_refused_change_set_is_nested_and_may_end_the_batch(world: World, stop: int | None) -> None:
    fault = Fault(FaultKind.ERROR, status=429, part=0, stop=stop, text="The tax service is busy.")
    world.plan.add(FaultRule(Dependency.DATAVERSE, fault))
    response = world.admin.batch(world.claim("1", annotationid=KEY), operation("GET", "annotations"))
    assert response.status_code == (stop or 200)
    assert "multipart/mixed; boundary=changesetresponse" in response.text
    assert "Content-ID: 1" in response.text
    assert "HTTP/1.1 429" in response.text
    assert "Retry-After" not in response.text
    assert ("HTTP/1.1 200" in response.text) == (stop is None)
    assert world.notes == 0


@pytest.mark.parametrize("stop", [200, 400])
def test_a_change_set_that_fails_by_itself_may_end_the_batch(world: World, stop: int) -> None:
    world.plan.add(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.BATCH_STOPS, status=stop)))
    items = (world.claim("1", annotationid=KEY), operation("GET", "annotations?$select=annotationid"))
    assert world.admin.batch(*items).text.count("HTTP/1.1 ") == 2
    refused = world.admin.batch(*items)
    assert (refused.status_code, refused.text.count("HTTP/1.1 ")) == (stop, 1)
    assert "HTTP/1.1 412" in refused.text
    assert world.admin.batch(items[1]).status_code == 200
    assert [entry.operation for entry in world.plan.log] == ["change-set", "change-set"]


def test_a_missing_part_strikes_the_whole_batch(world: World) -> None:
    world.plan.add(FaultRule(Dependency.DATAVERSE, Fault(FaultKind.THROTTLED, part=5)))
    assert world.admin.batch(operation("GET", "accounts")).status_code == 429


def test_a_batch_that_a_second_plan_strikes_has_no_part_to_replace(world: World) -> None:
    inner = FaultPlan([FaultRule(Dependency.DATAVERSE, Fault(FaultKind.REDIRECT))])
    outer = FaultPlan([FaultRule(Dependency.DATAVERSE, Fault(FaultKind.THROTTLED, part=0, after=True))])
    redirecting = faulty_dataverse(world.app, inner, lambda _: None)
    world.admin.session.mount(URL, FaultyAdapter(faulty_dataverse(redirecting, outer, lambda _: None)))
    world.admin.session.max_redirects = 0
    with pytest.raises(requests.TooManyRedirects):
        world.admin.batch(operation("GET", "accounts"))


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.CUT, FaultKind.REFUSE])
def test_broken_connections_over_sockets(kind: FaultKind, tmp_path: Path) -> None:
    """Under the server, a fault ends the connection, and the next call is carried out on a new one."""
    certificates = CertificateAuthority(tmp_path)
    authority = TokenAuthority()
    app = DataverseApp(authority.verify)
    plan = FaultPlan()

    def middleware(application: "WSGIApplication") -> "WSGIApplication":
        return faulty_dataverse(application, plan)

    with DataverseServer(app, certificates.server_context("127.0.0.1"), middleware=middleware):
        admin = administrator(app, authority, str(certificates.bundle))
        plan.add(FaultRule(Dependency.DATAVERSE, Fault(kind), When.once()))
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            admin.call("GET", "WhoAmI")
        assert admin.call("GET", "WhoAmI").status_code == 200
        admin.session.close()
    app.close()
