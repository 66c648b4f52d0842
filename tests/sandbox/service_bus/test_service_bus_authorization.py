"""Which tokens permit what."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from urllib.parse import quote_plus

import pytest

from sandbox.clock import MovableClock
from sandbox.identity import Claims, InvalidToken
from sandbox.service_bus import Authenticator, Configuration, Role, RoleAssignment
from sandbox.service_bus.authorization import Grant
from sandbox.service_bus.configuration import Right, SasRule
from sandbox.service_bus.errors import Unauthorized

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = (
    SasRule("root", ("root-key", "second-key"), Right.LISTEN | Right.SEND | Right.MANAGE),
    SasRule("sender", ("sender-key",), Right.SEND, "q"),
    SasRule("both", ("namespace-key",), Right.LISTEN),
    SasRule("both", ("entity-key",), Right.SEND, "q"),
)


def verify(token: str, audiences: object) -> Claims:
    assert audiences == ("https://servicebus.azure.net/",)
    if token != "good":
        raise InvalidToken("signature")
    return Claims("ID-1", "object", "tenant", "audience", NOW + timedelta(hours=1))


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(
        Configuration("n", sas_rules=RULES),
        clock=MovableClock(NOW),
        verify_token=verify,
        role_assignments=[RoleAssignment("id-1", Role.RECEIVER, "q"), RoleAssignment("id-2", Role.OWNER)],
    )


def sas(
    resource: str = "sb://host/q", name: str = "root", key: str = "root-key", expires: int | None = None
) -> str:
    """Sign as the SDKs do."""
    scope = quote_plus(resource)
    expiry = int((NOW + timedelta(hours=1)).timestamp()) if expires is None else expires
    digest = hmac.new(key.encode(), f"{scope}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = quote_plus(base64.b64encode(digest).decode())
    return f"SharedAccessSignature sr={scope}&sig={signature}&se={expiry}&skn={name}"


def may(grants: list[Grant], entity: str, right: Right, at: datetime = NOW) -> bool:
    return any(grant.covers(entity, right, at) for grant in grants)


@pytest.mark.parametrize("key", ["root-key", "second-key"])
def test_either_key_signs(authenticator: Authenticator, key: str) -> None:
    grants = authenticator.put_token("servicebus.windows.net:sastoken", sas(key=key), "amqp://host/q")
    assert may(grants, "Q", Right.LISTEN)
    assert may(grants, "q/$DeadLetterQueue", Right.LISTEN)
    assert not may(grants, "quite-another", Right.LISTEN)
    assert not may(grants, "q", Right.LISTEN, NOW + timedelta(hours=1))


def test_a_token_for_the_namespace_covers_all(authenticator: Authenticator) -> None:
    grants = authenticator.put_token("jwt", sas("sb://host"), "sb://host/anything/$management")
    assert may(grants, "anything", Right.SEND)


def test_an_entitys_rule_holds_there_only(authenticator: Authenticator) -> None:
    grants = authenticator.put_token("jwt", sas(name="sender", key="sender-key"), "sb://host/q")
    assert may(grants, "q", Right.SEND)
    assert not may(grants, "q", Right.LISTEN)
    for resource in ("sb://host", "sb://host/other"):
        with pytest.raises(Unauthorized, match="InvalidSignature"):
            authenticator.put_token("jwt", sas(resource, "sender", "sender-key"), resource)


def test_rules_of_one_name_are_distinguished_by_their_keys(authenticator: Authenticator) -> None:
    assert may(
        authenticator.put_token("jwt", sas(name="both", key="entity-key"), "sb://host/q"), "q", Right.SEND
    )
    listening = authenticator.put_token("jwt", sas(name="both", key="namespace-key"), "sb://host/q")
    assert may(listening, "q", Right.LISTEN)
    assert not may(listening, "q", Right.SEND)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (sas(key="wrong"), "InvalidSignature"),
        (sas(name="nobody"), "InvalidSignature"),
        (sas(expires=int(NOW.timestamp())), "ExpiredToken"),
        (sas().replace("host%2Fq", "host%2Fother"), "InvalidSignature"),
        (sas("sb://host/other"), "not for 'q'"),
        ("SharedAccessSignature sr=x", "with sr, sig, se and skn"),
        ("SharedAccessSignature ", "with sr, sig, se and skn"),
    ],
)
def test_a_signature_that_is_not_good(authenticator: Authenticator, token: str, reason: str) -> None:
    with pytest.raises(Unauthorized, match=reason) as caught:
        authenticator.put_token("servicebus.windows.net:sastoken", token, "sb://host/q")
    assert "root-key" not in str(caught.value)


def test_an_identity_has_the_rights_of_its_roles(authenticator: Authenticator) -> None:
    grants = authenticator.put_token("jwt", "good", "sb://host/q")
    assert may(grants, "q", Right.LISTEN)
    assert not may(grants, "q", Right.SEND)
    assert not may(grants, "other", Right.LISTEN)
    assert not may(grants, "q", Right.LISTEN, NOW + timedelta(hours=1))


def test_a_token_that_does_not_verify_is_refused_without_being_quoted(authenticator: Authenticator) -> None:
    with pytest.raises(Unauthorized, match="InvalidToken: the token is not valid: signature") as caught:
        authenticator.put_token("jwt", "secret-token", "sb://host/q")
    assert "secret-token" not in str(caught.value)


def test_what_is_not_supported_is_refused(authenticator: Authenticator) -> None:
    with pytest.raises(Unauthorized, match="type 'kerberos'"):
        authenticator.put_token("kerberos", "x", "sb://host/q")
    with pytest.raises(Unauthorized, match="no authority"):
        Authenticator(Configuration("n")).put_token("jwt", "x", "sb://host/q")


def test_a_key_as_password(authenticator: Authenticator) -> None:
    assert may(authenticator.plain("sender", "sender-key"), "q", Right.SEND)
    with pytest.raises(Unauthorized):
        authenticator.plain("sender", "root-key")
