"""Faults of the managed-identity endpoint, over a socket, as the deployed code's client meets them."""

from collections.abc import Iterator

import pytest
import requests

from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.identity import faulty_identity
from sandbox.faults.plan import KINDS
from sandbox.identity import Identity, IdentityServer, TokenAuthority

IDENTITY = Identity.named("function")


class World:
    """An endpoint with faults before it."""

    def __init__(self) -> None:
        self.plan = FaultPlan()
        self.server = IdentityServer(
            TokenAuthority(),
            [IDENTITY],
            middleware=lambda application: faulty_identity(application, self.plan),
        )

    def ask(self, fault: Fault | None = None) -> requests.Response:
        """Ask for a token, struck by `fault`."""
        if fault is not None:
            self.plan.add(FaultRule(Dependency.IDENTITY, fault, When.once()))
        return requests.get(
            self.server.endpoint,
            params={
                "resource": "https://x",
                "api-version": "2019-08-01",
                "client_id": IDENTITY.client_id,
            },
            headers={"X-IDENTITY-HEADER": self.server.header},
            timeout=2,
            allow_redirects=False,
        )


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.server:
        yield world
        world.plan.clear()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(FaultKind.UNAUTHORIZED), 401),
        (Fault(FaultKind.FORBIDDEN), 403),
        (Fault(FaultKind.NOT_FOUND), 404),
        (Fault(FaultKind.THROTTLED, retry_after="3"), 429),
        (Fault(FaultKind.UNAVAILABLE, status=500), 500),
        (Fault(FaultKind.UNAVAILABLE), 503),
        (Fault(FaultKind.REDIRECT), 302),
    ],
    ids=str,
)
def test_a_refusal_has_no_token(world: World, fault: Fault, status: int) -> None:
    refused = world.ask(fault)
    assert refused.status_code == status
    assert "access_token" not in refused.text
    assert refused.headers.get("Retry-After") == ("3" if fault.kind is FaultKind.THROTTLED else None)
    assert world.ask().json()["access_token"]


@pytest.mark.parametrize("kind", [FaultKind.HTML, FaultKind.TRUNCATED])
def test_a_response_that_is_not_json(world: World, kind: FaultKind) -> None:
    response = world.ask(Fault(kind))
    assert response.status_code == 200
    with pytest.raises(requests.exceptions.JSONDecodeError):
        response.json()


@pytest.mark.parametrize(
    "fault", [Fault(FaultKind.REFUSE), Fault(FaultKind.RESET), Fault(FaultKind.RESET, after=True)], ids=str
)
def test_a_connection_that_breaks(world: World, fault: Fault) -> None:
    with pytest.raises(requests.ConnectionError):
        world.ask(fault)


def test_silence_ends_with_the_plan(world: World) -> None:
    with pytest.raises(requests.ReadTimeout):
        world.ask(Fault(FaultKind.SILENT))
    world.plan.clear()
    assert world.ask().status_code == 200


def test_every_fault_of_the_connection_can_be_caused(world: World) -> None:
    """Each kind ends in a response or in an exception of the client, and never in a crash."""
    world.plan.provide(FaultKind.KILL, lambda: None)
    for kind, description in KINDS.items():
        if Dependency.IDENTITY in description.dependencies:
            fault = Fault(kind, seconds=0.05)
            try:
                assert world.ask(fault).status_code
            except requests.RequestException:
                continue
    assert len(world.plan.log) == sum(
        Dependency.IDENTITY in description.dependencies for description in KINDS.values()
    )
