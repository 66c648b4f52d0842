"""App Service's managed-identity endpoint, which a function app finds by IDENTITY_ENDPOINT and IDENTITY_HEADER."""

import hmac
import logging
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from cheroot import wsgi

from sandbox.http_server import HttpServer, StartResponse, respond_json
from sandbox.identity.tokens import LIFETIME, Identity, TokenAuthority

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

API_VERSION = "2019-08-01"
_IDENTITY_PATH = "/msi/token"
# `mi_res_id` names an ARM resource; the sandbox has none, so it finds none, like a wrong one in Azure.
_SELECTORS = ("client_id", "principal_id", "object_id", "mi_res_id")


class IdentityServer(HttpServer):
    """App Service's managed-identity endpoint (api-version 2019-08-01) on a loopback address.

    `identities` are the user-assigned ones, chosen by `client_id`, `principal_id` or `object_id` in the
    query; requests that name none get `system_assigned`. `middleware` wraps the
    application, for faults. `lifetime` is that of the tokens: clients fetch another one for every call once less than
    five minutes are left.
    """

    def __init__(
        self,
        authority: TokenAuthority,
        identities: Sequence[Identity] = (),
        system_assigned: Identity | None = None,
        header: str | None = None,
        middleware: "Callable[[WSGIApplication], WSGIApplication] | None" = None,
        lifetime: timedelta = LIFETIME,
    ) -> None:
        self._authority = authority
        self._lifetime = lifetime
        self._identities = tuple(identities)
        self._system_assigned = system_assigned
        self.header = header or secrets.token_hex(16)
        # A process asks for a token once a day, so a few threads suffice.
        application: WSGIApplication = middleware(self) if middleware else self
        super().__init__(
            "identity",
            wsgi.Server(("127.0.0.1", 0), application, numthreads=4, timeout=5, shutdown_timeout=1),
        )

    @property
    def endpoint(self) -> str:
        """The value of IDENTITY_ENDPOINT; valid after `start`."""
        return f"http://{self.address}{_IDENTITY_PATH}"

    @property
    def settings(self) -> Mapping[str, str]:
        """The two environment variables by which an app finds the endpoint."""
        return {"IDENTITY_ENDPOINT": self.endpoint, "IDENTITY_HEADER": self.header}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Respond to one request."""
        try:
            status, content = HTTPStatus.OK, self._respond(environ)
        except _Refused as refused:
            status, content = refused.status, refused.content
        return respond_json(start_response, status, content)

    def _respond(self, environ: dict[str, Any]) -> dict[str, object]:
        if environ["PATH_INFO"].rstrip("/") != _IDENTITY_PATH:
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here but the token endpoint.")
        if environ["REQUEST_METHOD"] != "GET":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "The token endpoint takes GET only.")
        if not hmac.compare_digest(environ.get("HTTP_X_IDENTITY_HEADER", "").encode(), self.header.encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, "The X-IDENTITY-HEADER is missing or not the app's.")
        fields = parse_qs(environ.get("QUERY_STRING", ""))
        query = {name.lower(): values[0] for name, values in fields.items()}
        if query.get("api-version") != API_VERSION:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"The api-version must be {API_VERSION}.")
        if "resource" not in query:
            raise _Refused(HTTPStatus.BAD_REQUEST, "The resource parameter is missing.")
        return self._token(self._select(query), query["resource"])

    def _select(self, query: Mapping[str, str]) -> Identity:
        wanted = {name: query[name].lower() for name in _SELECTORS if name in query}
        candidates = self._identities if wanted else (self._system_assigned,)
        for identity in candidates:
            if identity is not None and wanted.items() <= _selectable(identity).items():
                return identity
        raise _Refused(
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
            # Seconds since 1970, as a string, like App Service.
            "expires_on": str(int(expires_at.timestamp())),
            "resource": resource,
            "token_type": "Bearer",
            "client_id": identity.client_id,
        }


def _selectable(identity: Identity) -> dict[str, str]:
    return {
        "client_id": identity.client_id.lower(),
        "principal_id": identity.object_id.lower(),
        "object_id": identity.object_id.lower(),
    }


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.content: dict[str, object] = {
            "statusCode": status.value,
            "message": message,
            "correlationId": str(uuid.uuid4()),
        }
