"""An organization with customers and open opportunities, and clients that call it in-process."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock
from sandbox.dataverse import (
    Database,
    DataverseApp,
    DataverseServer,
    Depth,
    ResponseLost,
    ServiceEndpoint,
    WsgiAdapter,
    seed,
)
from sandbox.dataverse.seed import DemoOrganization
from sandbox.identity import Identity, TokenAuthority

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

Json = dict[str, Any]

_AUTHORITY = TokenAuthority(MovableClock(datetime(2026, 3, 1, tzinfo=UTC)))


@dataclass(frozen=True)
class Posted:
    """What was posted to a service endpoint."""

    endpoint: ServiceEndpoint
    body: bytes
    properties: dict[str, str]
    content_type: str


@dataclass
class Outside:
    """The other end of the service endpoints; raises `failure` while one is set."""

    posted: list[Posted] = field(default_factory=list)
    failure: Exception | None = None

    def post(self, endpoint: ServiceEndpoint, body: bytes, properties: Any, content_type: str) -> None:  # noqa: ANN401
        if self.failure:
            raise self.failure
        self.posted.append(Posted(endpoint, body, dict(properties), content_type))


def operation(method: str, url: str, body: str = "", content_id: str = "", **headers: str) -> str:
    """Write one part of a batch."""
    lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    lines += [f"Content-ID: {content_id}"] if content_id else []
    lines += ["", f"{method} {url} HTTP/1.1", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]) + "\r\n"


def change_set(*operations: str) -> str:
    """Write a change set of parts."""
    inner = "".join(f"--c\r\n{item}" for item in operations)
    return f"Content-Type: multipart/mixed; boundary=c\r\n\r\n{inner}--c--\r\n"


@dataclass(frozen=True)
class PartResponse:
    """One part of a batch's response; `nested` are those of a change set that was committed."""

    status: int
    head: str
    body: str
    nested: tuple["PartResponse", ...] = ()


def responses(response: requests.Response) -> list[PartResponse]:
    """Read a batch's response with the standard library's parser."""
    head = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + response.content)
    assert not message.defects
    return [_part_response(part) for part in message.get_payload()]


def _part_response(part: Any) -> PartResponse:  # noqa: ANN401 - the parser's own types are of little help
    if part.is_multipart():
        nested = tuple(_part_response(inner) for inner in part.get_payload())
        return PartResponse(200, "", "", nested)
    head, _, body = part.get_payload().partition("\r\n\r\n")
    return PartResponse(int(head.split()[1]), head, body.strip())


class Client:
    """Calls the Web API as one identity; what writes and reads batches is at hand."""

    operation = staticmethod(operation)
    change_set = staticmethod(change_set)
    responses = staticmethod(responses)

    def __init__(self, app: DataverseApp, token: str, bundle: str | None = None) -> None:
        """Call in-process, or over HTTPS with the certificates in `bundle`."""
        self.root = f"{app.organization.url}/api/data/v9.2/"
        self.token = token
        self._made_with = (app, token, bundle)
        self.session = requests.Session()
        self.session.trust_env = False
        if bundle is None:
            self.session.mount(app.organization.url, WsgiAdapter(app))
        else:
            self.session.verify = bundle

    def again(self) -> "Client":
        """Return another client with the same identity and a connection of its own."""
        return Client(*self._made_with)

    def call(
        self,
        method: str,
        path: str,
        json: object = None,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> requests.Response:
        """Send a request, with `json` or the bytes of a body."""
        every = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return self.session.request(method, self.root + path, json=json, headers=every, data=data, timeout=60)

    def send(self, method: str, path: str, json: object, status: int, **headers: str) -> requests.Response:
        """Send a request that gets this status; headers are named with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.call(method, path, json, named)
        assert response.status_code == status, response.text
        return response

    def get(self, path: str, status: int = 200, **headers: str) -> Json:
        return _parsed(self.send("GET", path, None, status, **headers))

    def rows(self, path: str) -> list[Json]:
        rows: list[Json] = self.get(path)["value"]
        return rows

    def patch(self, path: str, json: object, status: int = 204, **headers: str) -> requests.Response:
        return self.send("PATCH", path, json, status, **headers)

    def post(self, path: str, json: object, status: int = 204, **headers: str) -> requests.Response:
        return self.send("POST", path, json, status, **headers)

    def delete(self, path: str, status: int = 204, **headers: str) -> requests.Response:
        return self.send("DELETE", path, None, status, **headers)

    def refused(self, method: str, path: str, json: object, status: int, **headers: str) -> Json:
        """Send a request that is refused; return the error."""
        error: Json = _parsed(self.send(method, path, json, status, **headers))["error"]
        assert error["message"]
        return error

    def create(self, entity_set: str, json: object) -> str:
        """Create a row and return its id."""
        return self.post(entity_set, json).headers["OData-EntityId"].rpartition("(")[2].rstrip(")")

    def win(self, opportunity: str, status: int = 204, **close: object) -> requests.Response:
        return self.close(opportunity, "Win", 3, status, **close)

    def close(
        self, opportunity: str, how: str, reason: int, status: int, **close: object
    ) -> requests.Response:
        body = {"subject": "closed", "opportunityid@odata.bind": f"/opportunities({opportunity})", **close}
        return self.post(f"{how}Opportunity", {"Status": reason, "OpportunityClose": body}, status)

    def generate(self, opportunity: str, status: int = 200) -> Json:
        parameters = {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": True, "Columns": []}}
        return _parsed(self.post("GenerateInvoiceFromOpportunity", parameters, status))

    def batch(self, *items: str, prefer: str = "odata.continue-on-error") -> requests.Response:
        """Send a batch of parts, each made by `operation` or `change_set`."""
        body = "".join(f"--b\r\n{item}" for item in items) + "--b--\r\n"
        headers = {"Content-Type": "multipart/mixed; boundary=b"} | ({"Prefer": prefer} if prefer else {})
        return self.call("POST", "$batch", headers=headers, data=body.encode())

    def parts(self, *items: str) -> list[PartResponse]:
        """Send a batch that continues after an error; return the responses of its parts."""
        return responses(self.batch(*items))


def _parsed(response: requests.Response) -> Json:
    parsed: Json = response.json(parse_float=Decimal)
    return parsed


class Faults:
    """A middleware that breaks a connection off before or after the application is called."""

    def __init__(self) -> None:
        self.lose_before = self.lose_after = False

    def __call__(self, app: "WSGIApplication") -> "WSGIApplication":
        def faulty(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            if self.lose_before:
                self.lose_before = False
                raise ResponseLost
            response = app(environ, start_response)
            if self.lose_after:
                self.lose_after = False
                raise ResponseLost
            return response

        return faulty


@dataclass
class World:
    """One organization and everybody who deals with it; `bundle` has the certificates if it is served over HTTPS."""

    app: DataverseApp
    clock: MovableClock
    outside: Outside
    demo: DemoOrganization
    bundle: str | None = None
    faults: Faults = field(default_factory=Faults)
    authority: TokenAuthority = _AUTHORITY

    def __post_init__(self) -> None:
        """Add an administrator and the function's application user."""
        administrator = Identity.named("administrator")
        seed.add_administrator(self.app, administrator.client_id, administrator.object_id)
        self.admin = self.client(administrator)
        self.function = self.new_client()
        self.function_user: str = self.function.get("WhoAmI")["UserId"]

    @property
    def opportunity(self) -> str:
        """The first opportunity: of an account, in euros, with taxed lines and a write-in."""
        return self.demo.opportunities[0]

    @property
    def root_unit(self) -> str:
        """The business unit of the administrator."""
        return str(self.admin.get("WhoAmI")["BusinessUnitId"])

    @property
    def path(self) -> str:
        return f"opportunities({self.opportunity})"

    def client(self, identity: Identity) -> Client:
        return Client(self.app, self.authority.issue(identity, self.app.organization.url), self.bundle)

    def new_client(
        self,
        privileges: Any = seed.INVOICING_PRIVILEGES,  # noqa: ANN401
        depth: Depth = Depth.GLOBAL,
        unit: str | None = None,
    ) -> Client:
        """Make a client with a user and a role of its own."""
        identity = Identity.named("somebody")
        role = seed.add_role(self.app, privileges, depth)
        seed.add_application_user(
            self.app, identity.client_id, identity.object_id, roles=[role], business_unit=unit
        )
        return self.client(identity)

    def listen(self, message: str = "Win", table: str = "opportunity", **options: Any) -> str:  # noqa: ANN401
        """Register a step that posts; return its id."""
        endpoint = seed.add_service_endpoint(
            self.app,
            namespace_address="sb://sandbox/",
            path="opportunity-won",
            sas_key_name="send",
            sas_key="secret",
        )
        return seed.add_step(self.app, endpoint, message, table, **options)

    def posted(self) -> list[Json]:
        """Return the bodies of what was posted, after all due posts."""
        self.app.run_due_jobs()
        return [json.loads(posted.body) for posted in self.outside.posted]


@pytest.fixture(scope="session")
def seeded() -> tuple[bytes, DemoOrganization]:
    """Make the demo organization once, as a database."""
    clock = MovableClock(datetime(2026, 3, 1, tzinfo=UTC))
    app = DataverseApp(_AUTHORITY.verify, clock=clock)
    demo = seed.demo_organization(app, 8)
    image = app.database.image()
    app.close()
    return image, demo


@pytest.fixture
def world(seeded: tuple[bytes, DemoOrganization]) -> Iterator[World]:
    """Give a fresh copy of it, in memory."""
    image, demo = seeded
    clock, outside = MovableClock(datetime(2026, 3, 1, tzinfo=UTC)), Outside()
    app = DataverseApp(_AUTHORITY.verify, clock=clock, image=image, post=outside.post)
    yield World(app, clock, outside, demo)
    app.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make certificates once."""
    return CertificateAuthority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def https_world(
    seeded: tuple[bytes, DemoOrganization], certificates: CertificateAuthority, tmp_path: Path
) -> Iterator[World]:
    """Give a fresh copy of it, on disk, served over HTTPS."""
    image, demo = seeded
    clock, outside, faults = MovableClock(datetime(2026, 3, 1, tzinfo=UTC)), Outside(), Faults()
    app = DataverseApp(_AUTHORITY.verify, clock=clock, image=image, post=outside.post, directory=tmp_path)
    with DataverseServer(app, certificates.server_context("127.0.0.1"), middleware=faults):
        yield World(app, clock, outside, demo, str(certificates.bundle), faults)
    app.close()


@pytest.fixture
def database() -> Iterator[Database]:
    """Empty tables."""
    database = Database(MovableClock())
    yield database
    database.close()
