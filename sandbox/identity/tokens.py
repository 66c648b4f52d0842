"""Access tokens: the part of Microsoft Entra ID that signs them, and that the other servers verify them with.

What a token *allows* is decided by the server that it is presented to.
"""

import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from sandbox.clock import Clock, SystemClock

# The lifetime of a managed identity's tokens; Azure caches them for as long.
LIFETIME = timedelta(days=1)
_ALGORITHM = "RS256"


@dataclass(frozen=True)
class Identity:
    """A managed identity, or any other service principal; the ids are GUID strings, `name` is for people."""

    client_id: str
    object_id: str
    tenant_id: str
    name: str

    @classmethod
    def named(cls, name: str, tenant_id: str | None = None) -> Self:
        """Return an identity with random ids."""
        return cls(str(uuid.uuid4()), str(uuid.uuid4()), tenant_id or str(uuid.uuid4()), name)


@dataclass(frozen=True)
class Claims:
    """The claims of a valid token; `audience` is without a trailing slash, `expires_at` is aware."""

    client_id: str
    object_id: str
    tenant_id: str
    audience: str
    expires_at: datetime


class InvalidToken(Exception):
    """The token is not valid. `reason` is one word; the token itself is never in the text."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the token is not valid: {reason}")
        self.reason = reason


class TokenAuthority:
    """Signs access tokens (RS256) with a key of its own and verifies them; thread-safe."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key_id = secrets.token_urlsafe(8)

    def issue(self, identity: Identity, audience: str, lifetime: timedelta = LIFETIME) -> str:
        """Return a token for `identity`, with the claims that Entra ID gives to managed identities."""
        now = self._clock.now()
        return jwt.encode(
            {
                "aud": audience,
                "iss": f"https://sts.windows.net/{identity.tenant_id}/",
                "iat": now,
                "nbf": now,
                "exp": now + lifetime,
                "appid": identity.client_id,
                "appidacr": "2",
                "idtyp": "app",
                "oid": identity.object_id,
                "sub": identity.object_id,
                "tid": identity.tenant_id,
                "uti": secrets.token_urlsafe(16),
                "ver": "1.0",
            },
            self._key,
            algorithm=_ALGORITHM,
            headers={"kid": self._key_id},
        )

    def verify(self, token: str, audiences: Collection[str]) -> Claims:
        """Return the claims of `token` if it is signed here, valid now, and issued for one of `audiences`.

        A trailing slash of an audience makes no difference. Raises InvalidToken with a reason: malformed,
        signature, expired, not-yet-valid or audience.
        """
        claims = self._decode(token)
        now = self._clock.now()
        expires_at = datetime.fromtimestamp(claims["exp"], UTC)
        if now >= expires_at:
            raise InvalidToken("expired")
        if now < datetime.fromtimestamp(claims["nbf"], UTC):
            raise InvalidToken("not-yet-valid")
        audience = str(claims["aud"]).rstrip("/")
        if audience not in {accepted.rstrip("/") for accepted in audiences}:
            raise InvalidToken("audience")
        return Claims(claims["appid"], claims["oid"], claims["tid"], audience, expires_at)

    def _decode(self, token: str) -> dict[str, Any]:
        try:
            # `verify` checks time, by the injected clock, and audience, with trailing slashes ignored.
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key.public_key(),
                algorithms=[_ALGORITHM],
                options={
                    "verify_aud": False,
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "require": ["exp", "nbf", "aud", "appid", "oid", "tid"],
                },
            )
        except jwt.InvalidSignatureError as error:
            raise InvalidToken("signature") from error
        except jwt.InvalidTokenError as error:
            raise InvalidToken("malformed") from error
        return claims
