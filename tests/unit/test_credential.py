from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.identity import AzureCliCredential, CredentialUnavailableError

from shared.clock import Deadline, SystemClock
from shared.credential import TokenSource, build_credential
from shared.errors import TokenUnavailable

if TYPE_CHECKING:
    from typing import Any

    from azure.core.credentials import AccessToken, TokenCredential

    from tests.unit.conftest import TlsServer

SCOPE = "https://contoso.crm4.dynamics.com/.default"
CLIENT = "11111111-2222-3333-4444-555555555555"
TOKEN = "the-token-nobody-may-see"
BOUND = 20.0


def in_time() -> Deadline:
    return Deadline.after(SystemClock(), BOUND)


@pytest.fixture
def endpoint(plain_server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> TlsServer:
    """Return App Service's endpoint; it answers with a token."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{plain_server.port}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header-secret")
    token = {
        "access_token": TOKEN,
        "expires_on": str(int(time.time()) + 86400),
        "resource": SCOPE,
        "token_type": "Bearer",
    }
    body = json.dumps(token).encode()
    plain_server.serve = lambda connection: plain_server.answer(connection, body)
    return plain_server


def source(client_id: str | None = None) -> TokenSource:
    return TokenSource(SCOPE, lambda: build_credential({"IDENTITY_ENDPOINT": "set"}, client_id))


def secrets_in(error: BaseException | None, logs: pytest.LogCaptureFixture) -> list[str]:
    """Return every secret that an error, its causes or the log tell."""
    told = logs.text
    while error is not None:
        told += f"{error}{error!r}"
        error = error.__cause__ or error.__context__
    return [secret for secret in (TOKEN, "header-secret") if secret in told]


@pytest.mark.parametrize("client_id", [None, CLIENT])
def test_a_managed_identity_is_asked_for_a_token_once(client_id: str | None, endpoint: TlsServer) -> None:
    tokens = source(client_id)
    with ThreadPoolExecutor(8) as pool:
        given = set(pool.map(lambda _: tokens.token(in_time()), range(32)))
    assert given == {TOKEN}
    (request,) = endpoint.requests
    assert request.headers["x-identity-header"] == "header-secret"
    query = parse_qs(urlsplit(request.line.split()[1]).query)
    assert query["resource"] == ["https://contoso.crm4.dynamics.com"]
    assert query.get("client_id") == ([client_id] if client_id else None)


def test_elsewhere_it_is_the_developers_own_login() -> None:
    assert isinstance(build_credential({}, CLIENT), AzureCliCredential)


def test_a_silent_endpoint_is_an_error_at_the_deadline(
    endpoint: TlsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It accepts and says nothing: the SDK alone would wait for minutes."""
    endpoint.serve = lambda _: endpoint.wait()
    tokens = source()
    with pytest.raises(TokenUnavailable, match="in time") as raised:
        tokens.token(Deadline.after(SystemClock(), 0.2))
    assert secrets_in(raised.value, caplog) == []
    endpoint.cut_off()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            "400 Bad Request",
            b'{"statusCode": 400, "message": "No identity of this id"}',
            "No identity of this id",
        ),
        ("200 OK", b'{"access_token": "%s"}' % TOKEN.encode(), "invalid_scope"),
        (
            "200 OK",
            b'{"access_token": "%s", "expires_on": "soon"}' % TOKEN.encode(),
            "ValueError in its answer",
        ),
        ("200 OK", b"<html>the page of a proxy</html>", "JSONDecodeError"),
        ("200 OK", b'"no object"', "AttributeError in its answer"),
    ],
)
def test_the_cause_is_told_and_no_secret(
    status: str, body: bytes, said: str, endpoint: TlsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the SDK lets out, an identity without a token is an outage and never a bug."""
    caplog.set_level(logging.INFO)
    endpoint.serve = lambda connection: endpoint.answer(connection, body, status=status)
    with pytest.raises(TokenUnavailable, match=SCOPE) as raised:
        source().token(in_time())
    assert said in str(raised.value)
    assert secrets_in(raised.value, caplog) == []


def test_an_endpoint_that_refuses_connections_is_an_outage(endpoint: TlsServer) -> None:
    endpoint.stop()
    with pytest.raises(TokenUnavailable, match="refused"):
        source().token(in_time())


class Failing:
    """A credential that fails as the SDK does: with what it met as the cause."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:  # noqa: ANN401 - as the protocol has it
        raise CredentialUnavailableError(message="No identity found.") from ConnectionError(
            "refused\nContent: " + TOKEN
        )


def test_the_innermost_cause_is_told_in_one_line() -> None:
    tokens = TokenSource(SCOPE, lambda: cast("TokenCredential", Failing()))
    with pytest.raises(TokenUnavailable) as raised:
        tokens.token(in_time())
    assert str(raised.value) == f"The identity gave no token for {SCOPE}: ConnectionError: refused"
