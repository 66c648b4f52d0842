"""Managed identity: App Service's token endpoint, and the authority whose tokens the other servers check.

`TokenAuthority` stands for Microsoft Entra ID: it signs and verifies access tokens. `IdentityServer` stands
for the endpoint that App Service and Functions give to an app (IDENTITY_ENDPOINT, IDENTITY_HEADER). What a
token *allows* is not decided here but by whom it is shown to.
"""

import hmac
import json
import logging
import secrets
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

import jwt
from cheroot import wsgi
from cryptography.hazmat.primitives.asymmetric import rsa

from sandbox.clock import Clock, SystemClock

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

API_VERSION = "2019-08-01"
# The longest that a token of a managed identity lives; Azure caches it for as long.
_LIFETIME = timedelta(days=1)
_ALGORITHM = "RS256"
_IDENTITY_PATH = "/msi/token"

_StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True)
class Identity:
    """A managed identity, or any other service principal; the ids are GUID strings, `name` is for people."""

    client_id: str
    object_id: str
    tenant_id: str
    name: str

    @classmethod
    def named(cls, name: str, tenant_id: str | None = None) -> Self:
        """Make up an identity; its ids are random."""
        return cls(str(uuid.uuid4()), str(uuid.uuid4()), tenant_id or str(uuid.uuid4()), name)


@dataclass(frozen=True)
class Claims:
    """What a valid token says; `audience` is without a trailing slash, `expires_at` is aware."""

    client_id: str
    object_id: str
    tenant_id: str
    audience: str
    expires_at: datetime


class InvalidToken(Exception):
    """The token is not to be trusted. `reason` is one word; the token itself is never in the text."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the token is not valid: {reason}")
        self.reason = reason


class TokenAuthority:
    """Signs access tokens (RS256) with a key of its own and verifies them; thread-safe."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key_id = secrets.token_urlsafe(8)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} key {self._key_id}>"

    def issue(self, identity: Identity, audience: str, lifetime: timedelta = _LIFETIME) -> str:
        """Return a token for `identity`, with the claims that Entra ID gives to a managed identity's."""
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
        """Return what `token` says if it is signed here, in its time, and meant for one of `audiences`.

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


class IdentityServer:
    """App Service's managed-identity endpoint (api-version 2019-08-01) on a loopback address.

    `identities` are the user-assigned ones, chosen by `client_id`, `principal_id` or `object_id` in the
    query; requests that name none get `system_assigned`. Port 0 takes any free one. `middleware` wraps the
    application, for faults. `lifetime` is that of the tokens: clients fetch another one for every call once less than
    five minutes are left.
    """

    def __init__(
        self,
        authority: TokenAuthority,
        identities: Sequence[Identity] = (),
        system_assigned: Identity | None = None,
        header: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        middleware: "Callable[[WSGIApplication], WSGIApplication] | None" = None,
        lifetime: timedelta = _LIFETIME,
    ) -> None:
        self._authority = authority
        self._lifetime = lifetime
        self._identities = tuple(identities)
        self._system_assigned = system_assigned
        self.header = header or secrets.token_hex(16)
        # One thread per waiting client is plenty: a process asks once a day.
        application: WSGIApplication = middleware(self) if middleware else self
        self._server = wsgi.Server((host, port), application, numthreads=4, timeout=5, shutdown_timeout=1)
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint} {len(self._identities)} user-assigned>"

    @property
    def endpoint(self) -> str:
        """The value of IDENTITY_ENDPOINT; valid after `start`."""
        host, port = self._server.bind_addr[:2]
        return f"http://{host}:{port}{_IDENTITY_PATH}"

    @property
    def settings(self) -> Mapping[str, str]:
        """The two environment variables by which an app finds the endpoint."""
        return {"IDENTITY_ENDPOINT": self.endpoint, "IDENTITY_HEADER": self.header}

    def start(self) -> None:
        """Listen; returns when connections are accepted. Raises OSError where the port is taken."""
        self._server.prepare()
        self._thread = threading.Thread(target=self._server.serve, name="identity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and wait for the threads, for a few seconds at most."""
        self._server.stop()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __call__(self, environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        """Answer one request, as WSGI has it."""
        try:
            status, answer = HTTPStatus.OK, self._answer(environ)
        except _RefusedError as refused:
            status, answer = refused.status, refused.answer
        body = json.dumps(answer).encode()
        start_response(
            f"{status.value} {status.phrase}",
            [
                ("Content-Type", "application/json; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]

    def _answer(self, environ: dict[str, Any]) -> dict[str, object]:
        if environ["PATH_INFO"].rstrip("/") != _IDENTITY_PATH:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here but the token endpoint.")
        if environ["REQUEST_METHOD"] != "GET":
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "The token endpoint answers GET only.")
        if not hmac.compare_digest(environ.get("HTTP_X_IDENTITY_HEADER", "").encode(), self.header.encode()):
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "The X-IDENTITY-HEADER is missing or not the app's.")
        fields = parse_qs(environ.get("QUERY_STRING", ""))
        query = {name.lower(): values[0] for name, values in fields.items()}
        if query.get("api-version") != API_VERSION:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"The api-version must be {API_VERSION}.")
        if "resource" not in query:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The resource parameter is missing.")
        return self._token(self._choose(query), query["resource"])

    def _choose(self, query: Mapping[str, str]) -> Identity:
        wanted = {name: query[name].lower() for name in _SELECTORS if name in query}
        candidates = self._identities if wanted else (self._system_assigned,)
        for identity in candidates:
            if identity is not None and wanted.items() <= _selectable(identity).items():
                return identity
        raise _RefusedError(
            HTTPStatus.BAD_REQUEST,
            "No User Assigned or Delegated Managed Identity found for specified "
            "ClientId/ResourceId/PrincipalId.",
        )

    def _token(self, identity: Identity, resource: str) -> dict[str, object]:
        token = self._authority.issue(identity, resource, self._lifetime)
        expires_at = self._authority.verify(token, [resource]).expires_at
        _log.info("A token for %s was given to %s.", resource, identity.name)
        return {
            "access_token": token,
            # Seconds since 1970, as a string: so does App Service, and clients rely on either.
            "expires_on": str(int(expires_at.timestamp())),
            "resource": resource,
            "token_type": "Bearer",
            "client_id": identity.client_id,
        }


# `mi_res_id` names an ARM resource; nothing here is one, so it finds none, as a wrong one would in Azure.
_SELECTORS = ("client_id", "principal_id", "object_id", "mi_res_id")


def _selectable(identity: Identity) -> dict[str, str]:
    return {
        "client_id": identity.client_id.lower(),
        "principal_id": identity.object_id.lower(),
        "object_id": identity.object_id.lower(),
    }


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.answer: dict[str, object] = {
            "statusCode": status.value,
            "message": message,
            "correlationId": str(uuid.uuid4()),
        }
