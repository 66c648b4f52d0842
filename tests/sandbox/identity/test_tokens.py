import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.clock import MovableClock
from sandbox.identity import Identity, InvalidToken, TokenAuthority

AUDIENCE = "https://servicebus.azure.net"


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.named("invoicing")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock(datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def authority(clock: MovableClock) -> TokenAuthority:
    return TokenAuthority(clock)


def reason(authority: TokenAuthority, token: str, *audiences: str) -> str:
    with pytest.raises(InvalidToken) as caught:
        authority.verify(token, audiences or (AUDIENCE,))
    assert token not in str(caught.value)
    return caught.value.reason


def test_a_token_says_who_and_for_what(
    authority: TokenAuthority, identity: Identity, clock: MovableClock
) -> None:
    claims = authority.verify(authority.issue(identity, AUDIENCE), [AUDIENCE, "https://other.test"])
    assert (claims.client_id, claims.object_id, claims.tenant_id) == (
        identity.client_id,
        identity.object_id,
        identity.tenant_id,
    )
    assert claims.audience == AUDIENCE
    assert claims.expires_at == clock.now() + timedelta(days=1)


@pytest.mark.parametrize("issued", [AUDIENCE, AUDIENCE + "/"])
@pytest.mark.parametrize("accepted", [AUDIENCE, AUDIENCE + "/"])
def test_a_trailing_slash_of_the_audience_makes_no_difference(
    authority: TokenAuthority, identity: Identity, issued: str, accepted: str
) -> None:
    assert authority.verify(authority.issue(identity, issued), [accepted]).audience == AUDIENCE


def test_a_token_is_for_its_audience_only(authority: TokenAuthority, identity: Identity) -> None:
    token = authority.issue(identity, "https://org.crm.dynamics.com")
    assert reason(authority, token) == "audience"


def test_a_token_expires(authority: TokenAuthority, identity: Identity, clock: MovableClock) -> None:
    token = authority.issue(identity, AUDIENCE, timedelta(hours=1))
    clock.advance(timedelta(minutes=59))
    authority.verify(token, [AUDIENCE])
    clock.advance(timedelta(minutes=1))
    assert reason(authority, token) == "expired"


def test_a_token_from_the_future_is_not_valid_yet(identity: Identity, authority: TokenAuthority) -> None:
    later = MovableClock(datetime(2027, 1, 1, tzinfo=UTC))
    early = TokenAuthority(later)
    early._key = authority._key
    assert reason(authority, early.issue(identity, AUDIENCE)) == "not-yet-valid"


def test_another_authoritys_token_is_refused(authority: TokenAuthority, identity: Identity) -> None:
    assert reason(authority, TokenAuthority().issue(identity, AUDIENCE)) == "signature"


def test_a_changed_or_unsigned_token_is_refused(authority: TokenAuthority, identity: Identity) -> None:
    """Neither somebody else's claims under a genuine signature nor the algorithm `none` get through."""

    def encode(part: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

    header, payload, signature = authority.issue(identity, AUDIENCE).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert (
        reason(authority, f"{header}.{encode(claims | {'appid': 'somebody-else'})}.{signature}")
        == "signature"
    )
    assert reason(authority, f"{encode({'alg': 'none', 'typ': 'JWT'})}.{payload}.") == "malformed"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "Bearer abc"])
def test_what_is_no_token_is_refused(authority: TokenAuthority, token: str) -> None:
    with pytest.raises(InvalidToken, match="malformed"):
        authority.verify(token, [AUDIENCE])
