from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import AzureCliCredential, CredentialUnavailableError
from azure.servicebus._common.constants import JWT_TOKEN_SCOPE

from shared.clock import Deadline, SystemClock
from shared.credential import SERVICE_BUS_SCOPE, Identities, Identity, build_credential
from shared.deadline_socket import CallTimeout, thread_deadline
from shared.errors import TokenUnavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure.core.credentials import TokenCredential

    from tests.unit.conftest import TlsServer

SCOPE = "https://contoso.crm4.dynamics.com/.default"
CLIENT = "11111111-2222-3333-4444-555555555555"
TOKEN = "the-token-nobody-may-see"
SECRETS = (TOKEN, "header-secret")
BOUND = 20.0
HOUR = 3600.0


# ---------------------------------------------------------------------------------------------- the cache


class Authority:
    """Gives tokens in order, each valid for `lifetime` seconds; time passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.lifetime = 24 * HOUR
        self.requests: list[str] = []
        self.built = 0
        self.error: Exception | None = None
        self.on_request: Callable[[], None] = lambda: None

    def build(self, _: object) -> TokenCredential:
        self.built += 1
        return cast("TokenCredential", self)

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        self.requests.append(scopes[0])
        number = len(self.requests)
        self.on_request()
        if self.error is not None:
            raise self.error
        return AccessToken(f"token-{number}", int(self.now + self.lifetime))


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def identity(authority: Authority) -> Identity:
    return Identity(authority.build, now=lambda: authority.now)


class Silence:
    """An endpoint that says nothing until it is released."""

    def __init__(self, authority: Authority) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        authority.on_request = self._wait

    def _wait(self) -> None:
        self.begun.set()
        self.released.wait(BOUND)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()


@pytest.fixture(autouse=True)
def no_secret_is_ever_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check all that every test here logs."""
    # As the process does: the SDK's own warnings quote the response.
    caplog.set_level(logging.ERROR, "azure.identity")
    # After it, since the last level is also that of what is captured.
    caplog.set_level(logging.INFO, "shared")
    yield
    for record in caplog.get_records("call"):
        assert not any(secret in caplog.handler.format(record) for secret in SECRETS)


def failure(identity: Identity, scope: str = SCOPE, seconds: float = BOUND) -> str:
    """Return what the error says that a call for a token raises; neither it nor its causes contain a secret."""
    with pytest.raises(TokenUnavailable) as raised:
        identity.token(scope, seconds)
    error: BaseException | None = raised.value
    while error is not None:
        assert not any(secret in f"{error}{error!r}" for secret in SECRETS)
        error = error.__cause__ or error.__context__
    return str(raised.value)


def no_fetch_is_left() -> bool:
    return "token" not in {thread.name for thread in threading.enumerate()}


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_token_is_fetched_once_and_kept(identity: Identity, authority: Authority) -> None:
    with ThreadPoolExecutor(16) as pool:
        given = set(pool.map(lambda _: identity.token(SCOPE, BOUND), range(64)))
    assert given == {"token-1"}
    assert authority.requests == [SCOPE]
    assert identity.token(SERVICE_BUS_SCOPE, BOUND) == "token-2", "each scope has its own"


def test_a_token_that_another_thread_has_fetched_meanwhile_is_used(authority: Authority) -> None:
    """The first check is made without the lock, so the second may find a token."""
    with ThreadPoolExecutor(1) as other:

        def now() -> float:
            # Asked for by the check of the expired token, before the lock is taken.
            if expired.pop("token", False):
                other.submit(identity.token, SCOPE, BOUND).result()
                return authority.now + HOUR
            return authority.now

        expired: dict[str, bool] = {}
        identity = Identity(authority.build, now=now)
        identity.token(SCOPE, BOUND)
        authority.now += authority.lifetime
        expired["token"] = True
        assert identity.token(SCOPE, BOUND) == "token-2"
    assert len(authority.requests) == 2


def test_the_sdk_takes_its_tokens_from_the_same_cache(identity: Identity, authority: Authority) -> None:
    """So that an idle link which is closed and opened again asks for none."""
    token = identity.token(SERVICE_BUS_SCOPE, BOUND)
    expires_on = int(authority.now + authority.lifetime)
    given = identity.get_token(SERVICE_BUS_SCOPE, enable_cae=True)
    assert (given.token, given.expires_on) == (token, expires_on)
    info = identity.get_token_info(SERVICE_BUS_SCOPE, options={})
    assert (info.token, info.expires_on) == (token, expires_on)
    assert len(authority.requests) == 1


def test_the_sdk_waits_for_a_token_no_longer_than_its_thread_may(
    identity: Identity, authority: Authority
) -> None:
    with Silence(authority), thread_deadline(0.1):
        with pytest.raises(TokenUnavailable, match="in time"):
            identity.get_token(SERVICE_BUS_SCOPE)
        with pytest.raises(CallTimeout):
            identity.get_token_info(SERVICE_BUS_SCOPE)


@pytest.mark.parametrize("left", [12 * HOUR, HOUR, 301, 61])
def test_a_valid_token_is_used_while_the_endpoint_is_silent(
    left: float, identity: Identity, authority: Authority
) -> None:
    identity.token(SCOPE, BOUND)
    authority.now += 24 * HOUR - left
    with Silence(authority) as silence:
        with ThreadPoolExecutor(16) as pool:
            given = set(pool.map(lambda _: identity.token(SCOPE, 0.0), range(64)))
        assert given == {"token-1"}
        assert silence.begun.wait(BOUND)
        assert len(authority.requests) == 2, (
            "one request in the background, however many threads want a token"
        )
    eventually(lambda: identity.token(SCOPE, 0.0) == "token-2")


def test_a_valid_token_is_used_while_the_endpoint_fails_and_it_is_not_asked_all_the_time(
    identity: Identity, authority: Authority
) -> None:
    identity.token(SCOPE, BOUND)
    authority.error = ClientAuthenticationError("down")
    authority.now += 13 * HOUR
    for expected in (2, 3):
        for _ in range(10):
            assert identity.token(SCOPE, BOUND) == "token-1"
            eventually(lambda: not identity._fetches)
        assert len(authority.requests) == expected
        authority.now += 30
    authority.error = None
    identity.token(SCOPE, BOUND)
    eventually(lambda: identity.token(SCOPE, BOUND) == "token-4")


def test_before_half_of_its_lifetime_nothing_is_fetched(identity: Identity, authority: Authority) -> None:
    identity.token(SCOPE, BOUND)
    authority.now += 12 * HOUR - 1
    identity.token(SCOPE, BOUND)
    assert not identity._fetches
    authority.now += 1
    identity.token(SCOPE, BOUND)
    eventually(lambda: len(authority.requests) == 2)


def test_a_token_that_was_renewed_in_this_very_moment_is_not_renewed_again(authority: Authority) -> None:
    """Another thread has been faster since this one looked at the token."""
    calls: list[None] = []

    def now() -> float:
        calls.append(None)
        if calls == [None, None]:
            renewing._tokens[SCOPE] = replace(renewing._tokens[SCOPE], value="renewed")
        return authority.now

    renewing = Identity(authority.build, now=now)
    assert renewing.token(SCOPE, BOUND) == "token-1"
    authority.now += 13 * HOUR
    calls.clear()
    assert renewing.token(SCOPE, BOUND) == "token-1"
    assert not renewing._fetches
    assert len(authority.requests) == 1


def test_a_token_is_not_used_in_its_last_minute(identity: Identity, authority: Authority) -> None:
    """The call that it is for takes time, too."""
    identity.token(SCOPE, BOUND)
    authority.error = ClientAuthenticationError("down")
    authority.now += authority.lifetime - 60
    failure(identity)
    authority.error = None
    assert identity.token(SCOPE, BOUND) == "token-3"


def test_threads_that_wait_for_a_token_share_its_failure(identity: Identity, authority: Authority) -> None:
    authority.error = ClientAuthenticationError("down")
    with Silence(authority) as silence, ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(identity.token, SCOPE, BOUND) for _ in range(16)]
        assert silence.begun.wait(BOUND)
        time.sleep(0.05)
        silence.released.set()
        errors = [future.exception(BOUND) for future in waiting]
    assert all(isinstance(error, TokenUnavailable) for error in errors)
    assert len({id(error) for error in errors}) == 16, "an exception has one traceback"
    assert len(authority.requests) < 16


def test_a_fetch_that_is_stuck_is_left_behind_with_its_credential(authority: Authority) -> None:
    identity = Identity(authority.build, now=lambda: authority.now, fetch_seconds=0.1)
    with Silence(authority):
        assert "in time" in failure(identity)
        authority.on_request = lambda: None
        eventually(lambda: time.monotonic() >= identity._fetches[SCOPE].until)
        assert identity.token(SCOPE, BOUND) == "token-2"
        assert authority.built == 2
    eventually(no_fetch_is_left)
    assert identity.token(SCOPE, BOUND) in {"token-1", "token-2"}


def test_without_a_thread_there_is_no_new_token_and_a_valid_one_is_used(
    identity: Identity, authority: Authority
) -> None:
    identity.token(SCOPE, BOUND)

    class Exhausted:
        def start(self, *_: object) -> None:
            raise OSError("No thread could be started for token.")

    calls = identity._calls
    identity._calls = cast("type(calls)", Exhausted())  # type: ignore[valid-type]
    authority.now += 13 * HOUR
    assert identity.token(SCOPE, BOUND) == "token-1"
    authority.now += 12 * HOUR
    assert "No thread could be started" in failure(identity)
    identity._calls = calls
    assert identity.token(SCOPE, BOUND) == "token-2"


# ---------------------------------------------------------------------------------------------- refused tokens


def test_a_refused_token_is_replaced_once_for_all_threads(identity: Identity, authority: Authority) -> None:
    refused = identity.token(SCOPE, BOUND)
    with ThreadPoolExecutor(16) as pool:
        renewed = set(pool.map(lambda _: identity.renewed(SCOPE, refused, BOUND), range(16)))
    assert renewed == {"token-2"} == {identity.renewed(SCOPE, refused, BOUND)}
    assert len(authority.requests) == 2
    assert authority.built == 2, "the SDK's own cache has the refused one"
    assert identity.token(SCOPE, BOUND) == "token-2"


def test_where_the_new_token_is_refused_too_the_endpoint_is_not_asked_all_the_time(
    identity: Identity, authority: Authority
) -> None:
    refused = identity.renewed(SCOPE, identity.token(SCOPE, BOUND), BOUND)
    assert refused == "token-2"
    for _ in range(5):
        assert identity.renewed(SCOPE, refused, BOUND) is None
    assert len(authority.requests) == 2
    authority.now += 60
    assert identity.renewed(SCOPE, refused, BOUND) == "token-3"


@pytest.mark.parametrize("seconds", [BOUND, 0.0])
def test_a_refused_token_stays_in_use_while_there_is_no_other(
    seconds: float, identity: Identity, authority: Authority
) -> None:
    refused = identity.token(SCOPE, BOUND)
    authority.error = ClientAuthenticationError("down")
    assert identity.renewed(SCOPE, refused, seconds) is None
    assert identity.token(SCOPE, BOUND) == refused


def test_the_scope_for_service_bus_is_the_one_that_the_sdk_asks_for() -> None:
    assert SERVICE_BUS_SCOPE == JWT_TOKEN_SCOPE


def test_a_token_that_service_bus_refuses_is_replaced_once(identity: Identity, authority: Authority) -> None:
    """Many links may be refused at the same time."""
    identity.renew(SERVICE_BUS_SCOPE, BOUND)
    assert authority.requests == [], "there is no token that could have been refused"
    refused = identity.get_token(SERVICE_BUS_SCOPE).token
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: identity.renew(SERVICE_BUS_SCOPE, BOUND), range(16)))
    assert identity.get_token(SERVICE_BUS_SCOPE).token != refused
    assert len(authority.requests) == 2


def test_a_refused_token_waits_for_the_fetch_that_is_on_its_way(
    identity: Identity, authority: Authority
) -> None:
    refused = identity.token(SCOPE, BOUND)
    authority.now += 13 * HOUR
    with Silence(authority) as silence, ThreadPoolExecutor(1) as pool:
        assert identity.token(SCOPE, BOUND) == refused
        assert silence.begun.wait(BOUND)
        waiting = pool.submit(identity.renewed, SCOPE, refused, BOUND)
        silence.released.set()
        assert waiting.result(BOUND) == "token-2"
    assert len(authority.requests) == 2


def test_the_same_token_again_is_not_a_new_one(identity: Identity, authority: Authority) -> None:
    refused = identity.token(SCOPE, BOUND)
    authority.on_request = authority.requests.clear
    authority.requests.clear()
    assert identity.renewed(SCOPE, refused, BOUND) is None


def test_tokens_of_a_scope_have_a_deadline(identity: Identity, authority: Authority) -> None:
    tokens = identity.tokens(SCOPE)
    deadline = Deadline.after(SystemClock(), BOUND)
    assert tokens.token(deadline) == "token-1"
    assert tokens.renewed("token-1", deadline) == "token-2"
    authority.now += 25 * HOUR
    began = time.monotonic()
    with Silence(authority):
        assert tokens.renewed("token-2", Deadline.after(SystemClock(), 0.05)) is None
        with pytest.raises(TokenUnavailable, match="in time"):
            tokens.token(Deadline.after(SystemClock(), 0.05))
    assert time.monotonic() - began < BOUND / 2


def test_silent_endpoints_block_few_threads(identity: Identity, authority: Authority) -> None:
    with Silence(authority):
        for number in range(4):
            assert "in time" in failure(identity, f"scope-{number}", 0.05)
        with pytest.raises(TokenUnavailable) as raised:
            identity.token("scope-4", BOUND)
    assert str(raised.value.__cause__) == "All threads for token are blocked."


def test_the_process_has_one_identity_for_a_client_id() -> None:
    identities = Identities({})
    assert identities.of(CLIENT) is identities.of(CLIENT)
    assert identities.of(None) is not identities.of(CLIENT)


# ---------------------------------------------------------------------------------------------- managed identity


@pytest.fixture
def endpoint(plain_server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> TlsServer:
    """Return App Service's endpoint; it responds with a token."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{plain_server.port}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header-secret")
    token = {
        "access_token": TOKEN,
        "expires_on": str(int(time.time()) + 86400),
        "resource": SCOPE,
        "token_type": "Bearer",
    }
    body = json.dumps(token).encode()
    plain_server.serve = lambda connection: plain_server.respond(connection, body)
    return plain_server


def managed(client_id: str | None = None) -> Identity:
    return Identities({"IDENTITY_ENDPOINT": "set"}).of(client_id)


@pytest.mark.parametrize("client_id", [None, CLIENT])
def test_a_managed_identity_is_asked_for_a_token_directly(
    client_id: str | None, endpoint: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a proxy nor ~/.netrc concerns the endpoint, which is on the same machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert managed(client_id).token(SCOPE, BOUND) == TOKEN
    (request,) = endpoint.requests
    assert request.headers["x-identity-header"] == "header-secret"
    query = parse_qs(urlsplit(request.line.split()[1]).query)
    assert query["resource"] == ["https://contoso.crm4.dynamics.com"]
    assert query.get("client_id") == ([client_id] if client_id else None)
    assert "authorization" not in request.headers


def test_elsewhere_it_is_the_developers_own_login() -> None:
    assert isinstance(build_credential({}, CLIENT), AzureCliCredential)


@pytest.mark.parametrize(
    "dribbled", [b"", b"HTTP/1.1 200 OK\r\nX: " + 60_000 * b"x"], ids=["silent", "dribbles"]
)
def test_an_endpoint_that_hangs_is_an_error_at_the_deadline_and_its_thread_ends(
    dribbled: bytes, endpoint: TlsServer
) -> None:
    """The SDK alone would wait for minutes."""
    identity = Identity(
        lambda hook: build_credential({"IDENTITY_ENDPOINT": "set"}, None, hook), fetch_seconds=0.3
    )

    def serve(connection: socket.socket) -> None:
        endpoint.dribble(connection, dribbled)
        endpoint.wait()

    endpoint.serve = serve
    assert "in time" in failure(identity, seconds=0.2)
    eventually(no_fetch_is_left)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            400,
            b'{"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found.\\nTrace"}',
            "400: No User Assigned or Delegated Managed Identity found.",
        ),
        (403, b'{"error": "unauthorized_client", "error_description": "Not for you."}', "403: Not for you."),
        (404, b'{"error": {"message": "Identity not found"}}', "404: Identity not found."),
        (400, b'{"error": "invalid_request"}', "400: invalid_request."),
        (400, b'{"message": 7}', "400 without a token that can be used."),
        (400, b'{"message": "no\\u001b[2J"}', "400: no\N{REPLACEMENT CHARACTER}[2J."),
        (400, b'{"message": "' + 999 * b"x" + b'"}', f"400: {300 * 'x'}."),
        (500, b"", "500 with an empty body."),
        (400, b" \r\n", "400 with an empty body."),
        (502, b"<html>%s</html>" % TOKEN.encode(), "502 with a body that is not JSON."),
        (200, b"<html>the page of a proxy</html>", "200 with a body that is not JSON."),
        (200, b"[" * 100_000, "200 with a body that is not JSON."),
        (200, b"\xff\xfe", "200 with a body that is not JSON."),
        (200, b'{"access_token": "%s"}' % TOKEN.encode(), "200 without a token that can be used."),
        (
            200,
            b'{"access_token": "%s", "expires_on": "soon"}' % TOKEN.encode(),
            "200 without a token that can be used.",
        ),
        (200, b'{"message": "%s"}' % TOKEN.encode(), "200 without a token that can be used."),
        (200, b'"no object"', "200 without a token that can be used."),
    ],
)
def test_an_error_says_status_and_message_of_the_endpoint_and_no_secret(
    status: int, body: bytes, said: str, endpoint: TlsServer
) -> None:
    """For any exception of the SDK, an identity without a token is an outage and never a bug."""
    endpoint.serve = lambda connection: endpoint.respond(connection, body, status=f"{status} Reason")
    assert failure(managed()) == f"The identity gave no token for {SCOPE}: its endpoint responded {said}"


@pytest.mark.parametrize("token", ["", f"{TOKEN}\r\nX: 1", f"{TOKEN}\n", f"{TOKEN} 1", f"{TOKEN}€", 7, None])
def test_a_token_that_no_header_can_hold_is_an_outage(token: object, endpoint: TlsServer) -> None:
    """A request with it would fail like a bug, and the broker would dead-letter the backlog."""
    body = json.dumps({"access_token": token, "expires_on": str(int(time.time() + HOUR))}).encode()
    endpoint.serve = lambda connection: endpoint.respond(connection, body)
    says = f"gave a token for {SCOPE} that no header can hold" if token else f"gave no token for {SCOPE}"
    assert says in failure(managed())


def test_an_endpoint_that_fails_is_asked_again_twice(endpoint: TlsServer) -> None:
    endpoint.serve = lambda connection: endpoint.respond(connection, b"", status="503 Service Unavailable")
    failure(managed())
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_is_silent_once_is_asked_again_before_the_time_for_a_token_ends(
    endpoint: TlsServer,
) -> None:
    responds = endpoint.serve
    endpoint.serve = lambda connection: responds(connection) if endpoint.connections > 1 else endpoint.wait()
    assert managed().token(SCOPE, BOUND) == TOKEN


def test_an_endpoint_that_refuses_connections_is_an_outage(endpoint: TlsServer) -> None:
    endpoint.stop()
    assert "refused" in failure(managed())


# ---------------------------------------------------------------------------------------------- the SDK's errors


def test_the_innermost_cause_is_reported_in_one_line(identity: Identity, authority: Authority) -> None:
    """The SDK reports a failing endpoint as "no identity found"."""
    authority.error = CredentialUnavailableError(message="No identity found.")
    authority.error.__cause__ = ConnectionError("\nrefused\nContent: " + TOKEN)
    assert failure(identity) == f"The identity gave no token for {SCOPE}: ConnectionError: refused"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Azure CLI not found on path"),
        ("ERROR: Please run 'az login' to setup account.", "Please run 'az login' to set up an account"),
        (
            "ERROR: AADSTS700082: The refresh token has expired due to inactivity.\nTrace ID: 1",
            "ERROR: AADSTS700082: The refresh token has expired due to inactivity.",
        ),
    ],
)
def test_a_missing_or_expired_login_says_what_to_run_in_one_sentence(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    if text is not None:
        az = tmp_path / "az"
        az.write_text(f"#!/bin/sh\ncat >&2 <<'TEXT'\n{text}\nTEXT\nexit 1\n")
        az.chmod(0o755)
    message = failure(Identities({}).of(None))
    assert message == f"Run az login: the Azure CLI gave no token for {SCOPE} ({said})."
