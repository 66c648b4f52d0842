from collections.abc import Iterator

import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential

from sandbox.identity import Identity, IdentityServer, TokenAuthority

SCOPE = "https://org.crm.dynamics.com/.default"
AUDIENCE = "https://org.crm.dynamics.com"
FIRST, SECOND, SYSTEM = (Identity.named(name) for name in ("first", "second", "system"))


@pytest.fixture(scope="module")
def authority() -> TokenAuthority:
    return TokenAuthority()


@pytest.fixture(scope="module")
def server(authority: TokenAuthority) -> Iterator[IdentityServer]:
    with IdentityServer(authority, [FIRST, SECOND], SYSTEM) as running:
        yield running


@pytest.fixture
def _environment(server: IdentityServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.settings.items():
        monkeypatch.setenv(name, value)


def ask(server: IdentityServer, header: str | None = None, **query: str) -> requests.Response:
    parameters = {"api-version": "2019-08-01", "resource": AUDIENCE} | query
    headers = {"X-IDENTITY-HEADER": server.header if header is None else header}
    return requests.get(server.endpoint, params=parameters, headers=headers, timeout=5)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        (ManagedIdentityCredential, SYSTEM),
        (lambda: ManagedIdentityCredential(client_id=FIRST.client_id), FIRST),
        (lambda: ManagedIdentityCredential(client_id=SECOND.client_id.upper()), SECOND),
        (
            lambda: ManagedIdentityCredential(identity_config={"object_id": SECOND.object_id}),
            SECOND,
        ),
    ],
    ids=["system-assigned", "user-assigned", "other case", "by object id"],
)
def test_azure_identity_gets_the_token_of_the_identity_that_it_names(
    authority: TokenAuthority, credential: type[ManagedIdentityCredential], expected: Identity
) -> None:
    with credential() as managed:
        token = managed.get_token(SCOPE)
    claims = authority.verify(token.token, [AUDIENCE])
    assert claims.client_id == expected.client_id
    assert token.expires_on == int(claims.expires_at.timestamp())


@pytest.mark.usefixtures("_environment")
def test_an_unknown_identity_gets_no_token() -> None:
    with (
        ManagedIdentityCredential(client_id=Identity.named("unknown").client_id) as managed,
        pytest.raises((CredentialUnavailableError, ClientAuthenticationError), match="No User Assigned"),
    ):
        managed.get_token(SCOPE)


def test_the_response_has_app_services_fields(server: IdentityServer) -> None:
    response = ask(server, client_id=FIRST.client_id)
    content = response.json()
    assert response.status_code == 200
    assert content.keys() == {"access_token", "expires_on", "resource", "token_type", "client_id"}
    assert isinstance(content["expires_on"], str)
    assert content["expires_on"].isdigit()
    assert (content["token_type"], content["resource"]) == ("Bearer", AUDIENCE)


@pytest.mark.parametrize(
    ("status", "query"),
    [
        (400, {"client_id": "00000000-0000-0000-0000-000000000000"}),
        (400, {"client_id": FIRST.client_id, "object_id": SECOND.object_id}),
        (400, {"mi_res_id": "/subscriptions/none"}),
        (400, {"api-version": "2017-09-01"}),
        (400, {"resource": ""}),
    ],
    ids=["unknown", "two identities", "resource id", "old version", "no resource"],
)
def test_what_it_does_not_know_is_refused_in_json(
    server: IdentityServer, status: int, query: dict[str, str]
) -> None:
    response = ask(server, **query)
    assert response.status_code == status
    assert response.json()["statusCode"] == status
    assert response.json()["message"]
    assert "access_token" not in response.text


@pytest.mark.parametrize("header", ["", "wrong", "ключ".encode()])
def test_only_the_app_gets_tokens(server: IdentityServer, header: str) -> None:
    """The header is a secret that only the app's processes know."""
    assert ask(server, header=header).status_code == 401


def test_a_system_assigned_identity_is_there_only_if_given(authority: TokenAuthority) -> None:
    with IdentityServer(authority, [FIRST]) as server:
        assert ask(server).status_code == 400


def test_it_responds_at_its_path_and_to_get_only(server: IdentityServer) -> None:
    headers = {"X-IDENTITY-HEADER": server.header}
    assert requests.post(server.endpoint, headers=headers, timeout=5).status_code == 405
    assert requests.get(server.endpoint + "/else", headers=headers, timeout=5).status_code == 404
    assert server.endpoint.startswith("http://127.0.0.1:")
