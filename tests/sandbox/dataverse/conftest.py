"""An organization with customers and open opportunities, and clients that call it in-process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock
from sandbox.dataverse import (
    Database,
    DataverseApp,
    DataverseServer,
    Depth,
    ServiceEndpoint,
    WsgiAdapter,
    seed,
)
from sandbox.dataverse.seed import DemoOrganization
from sandbox.identity import Identity, TokenAuthority

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
        self.session = requests.Session()
        self.session.trust_env = False
        if bundle is None:
            self.session.mount(app.organization.url, WsgiAdapter(app))
        else:
            self.session.verify = bundle

    def call(
        self, method: str, path: str, json: object = None, headers: dict[str, str] | None = None
    ) -> requests.Response:
        every = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return self.session.request(method, self.root + path, json=json, headers=every)

    def get(self, path: str, status: int = 200, **headers: str) -> Json:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.call("GET", path, headers=named)
        assert response.status_code == status, response.text
        parsed: Json = response.json(parse_float=Decimal)
        return parsed

    def rows(self, path: str) -> list[Json]:
        rows: list[Json] = self.get(path)["value"]
        return rows

    def patch(self, path: str, json: object, status: int = 204) -> requests.Response:
        response = self.call("PATCH", path, json)
        assert response.status_code == status, response.text
        return response

    def post(self, path: str, json: object, status: int = 204) -> requests.Response:
        response = self.call("POST", path, json)
        assert response.status_code == status, response.text
        return response

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
        response = self.post("GenerateInvoiceFromOpportunity", parameters, status)
        parsed: Json = response.json(parse_float=Decimal)
        return parsed

    def batch(self, *items: str, prefer: str = "odata.continue-on-error") -> requests.Response:
        """Send a batch of parts, each made by `operation` or `change_set`."""
        body = "".join(f"--b\r\n{item}" for item in items) + "--b--\r\n"
        headers = {"Content-Type": "multipart/mixed; boundary=b", "Authorization": f"Bearer {self.token}"}
        if prefer:
            headers["Prefer"] = prefer
        return self.session.post(self.root + "$batch", data=body.encode(), headers=headers)


@dataclass
class World:
    """One organization and everybody who deals with it."""

    app: DataverseApp
    clock: MovableClock
    authority: TokenAuthority
    outside: Outside
    demo: DemoOrganization
    admin: Client
    function: Client
    function_user: str
    new_client: Callable[..., Client]


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
    """Give a fresh copy of it, in memory, with an administrator and the function's application user."""
    image, demo = seeded
    clock, outside = MovableClock(datetime(2026, 3, 1, tzinfo=UTC)), Outside()
    app = DataverseApp(_AUTHORITY.verify, clock=clock, image=image, post=outside.post)
    yield make_world(app, clock, outside, demo)
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
    clock, outside = MovableClock(datetime(2026, 3, 1, tzinfo=UTC)), Outside()
    app = DataverseApp(_AUTHORITY.verify, clock=clock, image=image, post=outside.post, directory=tmp_path)
    with DataverseServer(app, certificates.server_context("127.0.0.1"), threads=4):
        yield make_world(app, clock, outside, demo, str(certificates.bundle))
    app.close()


def make_world(
    app: DataverseApp,
    clock: MovableClock,
    outside: Outside,
    demo: DemoOrganization,
    bundle: str | None = None,
) -> World:
    """Add an administrator and the function's application user."""

    def new_client(
        privileges: Any = seed.INVOICING_PRIVILEGES,  # noqa: ANN401
        depth: Depth = Depth.GLOBAL,
        unit: str | None = None,
    ) -> Client:
        identity = Identity.named("somebody")
        role = seed.add_role(app, privileges, depth)
        seed.add_application_user(
            app, identity.client_id, identity.object_id, roles=[role], business_unit=unit
        )
        return Client(app, _AUTHORITY.issue(identity, app.organization.url), bundle)

    admin = Identity.named("administrator")
    seed.add_administrator(app, admin.client_id, admin.object_id)
    function = new_client()
    user = function.get("WhoAmI")["UserId"]
    return World(
        app,
        clock,
        _AUTHORITY,
        outside,
        demo,
        Client(app, _AUTHORITY.issue(admin, app.organization.url), bundle),
        function,
        user,
        new_client,
    )


@pytest.fixture
def database() -> Iterator[Database]:
    """Empty tables."""
    database = Database(MovableClock())
    yield database
    database.close()
