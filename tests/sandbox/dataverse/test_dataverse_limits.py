"""Service protection: 6,000 requests, 1,200 s of execution and 52 at once, per user and web server."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
import requests

from sandbox.clock import MovableClock
from sandbox.dataverse import DataverseApp, ServiceProtection, ServiceProtectionLimits, WsgiAdapter, seed
from sandbox.dataverse.errors import RequestRefused
from sandbox.identity import Identity, TokenAuthority

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock(datetime(2026, 3, 1, tzinfo=UTC))


def ask(protection: ServiceProtection, user: str = "u", server: int = 0) -> dict[str, str]:
    with protection.admitted(user, server) as headers:
        return headers


def refusal(protection: ServiceProtection) -> tuple[str, int]:
    with pytest.raises(RequestRefused) as refused:
        ask(protection)
    assert refused.value.status is HTTPStatus.TOO_MANY_REQUESTS
    return refused.value.code, int(refused.value.headers["Retry-After"])


def test_the_window_of_requests_slides(clock: MovableClock) -> None:
    protection = ServiceProtection(clock, ServiceProtectionLimits(requests=3))
    for _ in range(3):
        ask(protection)
        clock.advance(timedelta(seconds=100))
    assert ask(protection)["x-ms-ratelimit-burst-remaining-xrm-requests"] == "0"
    assert refusal(protection) == ("0x80072322", 100)
    clock.advance(timedelta(seconds=100))
    ask(protection)


def test_the_default_lets_6000_in(clock: MovableClock) -> None:
    protection = ServiceProtection(clock)
    for _ in range(6000):
        ask(protection)
    assert refusal(protection) == ("0x80072322", 300)


def test_going_on_prolongs_the_wait(clock: MovableClock) -> None:
    """A refused request counts like one that was admitted; those of one moment count once."""
    protection = ServiceProtection(clock, ServiceProtectionLimits(requests=2))
    ask(protection)
    clock.advance(timedelta(seconds=100))
    ask(protection)
    clock.advance(timedelta(seconds=100))
    assert refusal(protection)[1] == 100
    assert refusal(protection)[1] == 200
    assert refusal(protection)[1] == 200
    clock.advance(timedelta(seconds=50))
    assert refusal(protection)[1] == 150
    clock.advance(timedelta(seconds=150))
    assert refusal(protection)[1] == 100
    clock.advance(timedelta(seconds=150))
    ask(protection)


def test_who_obeys_is_served_whatever_others_do(clock: MovableClock) -> None:
    """Two clients with one identity know nothing of each other: the first is not punished for the second for long."""
    protection = ServiceProtection(clock, ServiceProtectionLimits(requests=10))
    for _ in range(10):
        ask(protection)
    clock.advance(timedelta(seconds=10))
    assert refusal(protection)[1] == 290
    clock.advance(timedelta(seconds=20))
    assert refusal(protection)[1] == 270
    clock.advance(timedelta(seconds=270))
    ask(protection)


def test_execution_time_adds_up(clock: MovableClock) -> None:
    readings = iter([0, 1199, 1199, 1199, 1199, 1200])
    protection = ServiceProtection(clock, timer=lambda: next(readings))
    ask(protection)
    assert ask(protection)["x-ms-ratelimit-time-remaining-xrm-requests"] == "1.00"
    ask(protection)
    assert refusal(protection) == ("0x80072321", 300)


def test_so_many_at_once(clock: MovableClock) -> None:
    protection = ServiceProtection(clock)
    with ExitStack() as stack:
        for _ in range(52):
            stack.enter_context(protection.admitted("u", 0))
        assert refusal(protection) == ("0x80072326", 1)
        ask(protection, user="another")
        ask(protection, server=1)
    clock.advance(timedelta(seconds=1))
    ask(protection)


def test_a_request_that_fails_is_over_too(clock: MovableClock) -> None:
    protection = ServiceProtection(clock, ServiceProtectionLimits(concurrent=1))
    for _ in range(3):
        with pytest.raises(KeyError), protection.admitted("u", 0):
            raise KeyError
    ask(protection)


def test_a_refused_request_was_not_executed(world: World) -> None:
    world.app.protection = ServiceProtection(world.clock, ServiceProtectionLimits(requests=1))
    done = world.admin.post("accounts", {"name": "first"})
    assert done.headers["x-ms-ratelimit-burst-remaining-xrm-requests"] == "0"
    assert done.headers["x-ms-dop-hint"]
    refused = world.admin.post("accounts", {"name": "second"}, 429)
    assert refused.headers["Retry-After"] == "300"
    assert refused.json()["error"]["code"] == "0x80072322"
    world.app.protection = None
    assert [row["name"] for row in world.admin.rows("accounts?$filter=address1_city eq null")] == ["first"]


def test_a_batch_is_one_request(world: World) -> None:
    world.app.protection = ServiceProtection(world.clock, ServiceProtectionLimits(requests=1))
    client = world.admin
    parts = client.parts(*[client.operation("GET", "WhoAmI")] * 5)
    assert [part.status for part in parts] == [200] * 5
    assert client.call("GET", "WhoAmI").status_code == 429


def test_without_the_affinity_cookie_requests_spread_over_the_servers(seeded: tuple[bytes, object]) -> None:
    """A client that keeps the cookie stays on one server, and has only the limits of that one."""
    authority, identity = TokenAuthority(), Identity.named("x")
    app = DataverseApp(authority.verify, image=seeded[0], servers=3)
    seed.add_application_user(app, identity.client_id)
    authorization = {"Authorization": f"Bearer {authority.issue(identity, app.organization.url)}"}
    authorization["Cookie"] = "ARRAffinity=another"
    for keeps_cookie, servers in ((False, {0, 1, 2}), (True, {1})):
        before = len(app.requests)
        with requests.Session() as session:
            session.trust_env = False
            session.mount(app.organization.url, WsgiAdapter(app))
            for _ in range(6):
                response = session.get(f"{app.organization.url}/api/data/v9.2/WhoAmI", headers=authorization)
                cookie = response.headers["Set-Cookie"].partition(";")[0]
                assert cookie.startswith("ARRAffinity=")
                if keeps_cookie:
                    authorization["Cookie"] = cookie
        assert {request.server for request in app.requests[before:]} == servers
    app.close()
