"""The Web API as a WSGI application: authentication, limits, one operation or a batch, and the log of requests."""

import logging
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from werkzeug.wrappers import Request

from sandbox.clock import Clock, SystemClock
from sandbox.dataverse.base_data import base_image
from sandbox.dataverse.batch import ChangeSet, ResponsePart, parse_batch, write_batch
from sandbox.dataverse.database import Database, Transaction
from sandbox.dataverse.errors import RequestRefused, no_segment
from sandbox.dataverse.events import EventPipeline, Post
from sandbox.dataverse.execution_context import NO_ID, RequestInfo
from sandbox.dataverse.limits import ServiceProtection
from sandbox.dataverse.operation import Operation, Reply
from sandbox.dataverse.organization import FailedChangeSet, Organization
from sandbox.dataverse.payload import included_annotations, write_json
from sandbox.dataverse.platform_rules import RULES as PLATFORM_RULES
from sandbox.dataverse.resources import execute
from sandbox.dataverse.sales_rules import RULES as SALES_RULES
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Caller, acting, application_user
from sandbox.dataverse.service import Session, TableRules
from sandbox.identity import Claims, InvalidToken

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log = logging.getLogger(__name__)

_JSON_TYPE: Final = "application/json; odata.metadata=minimal"
_SECURITY_TABLES: Final = (
    "systemuser", "role", "roleprivileges", "systemuserroles", "team", "teamroles", "teammembership", "businessunit",
    "privilege",
)  # fmt: skip
_CONTENT_REFERENCE = re.compile(rb'(@odata\.(?:bind|id)"\s*:\s*")(\$[\w-]+)')
_CREATED_IN_BATCH = re.compile(r"/?(\$[\w-]+)(?=[/?]|\Z)")
_AFFINITY: Final = "ARRAffinity"
_SERVER: Final = re.compile(r"[0-9a-f]{32}")
# The key of the WSGI environment under which a request may have another FailedChangeSet than the organization.
FAILED_CHANGE_SET: Final = "sandbox.failed_change_set"
_STATUS_OF_STOP: Final = {
    FailedChangeSet.CONTINUES: None,
    FailedChangeSet.STOPS_WITH_200: HTTPStatus.OK,
    FailedChangeSet.STOPS_WITH_400: HTTPStatus.BAD_REQUEST,
}
_RULES: Final[Mapping[str, TableRules]] = {**SALES_RULES, **PLATFORM_RULES}

VerifyToken = Callable[[str, Collection[str]], Claims]
"""Checks a bearer token for one of some audiences, or raises InvalidToken."""


@dataclass(frozen=True)
class RequestRecord:
    """A request as the server received it; `operations` of a batch: method, URL, status."""

    at: datetime
    method: str
    url: str
    status: int
    client_request_id: str | None
    service_request_id: str
    user_id: str | None
    server: int
    operations: tuple[tuple[str, str, int], ...] = ()


@dataclass
class _Exchange:
    """One request that is being processed."""

    request: Request
    service_request_id: str
    server: int
    at: datetime
    user_id: str | None = None
    operations: list[tuple[str, str, int]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


class _OperationRefused(RequestRefused):
    """An operation of a batch was refused; `part` is its response."""

    def __init__(self, error: RequestRefused, operation: Operation, prefer: str) -> None:
        super().__init__(error.status, error.code, error.message, error.headers, error.source)
        # Whether the batch's own header applies to its parts is not confirmed.
        self.part = _refusal(error, f"{operation.headers.get('prefer', '')},{prefer}", operation.content_id)


class DataverseApp:
    """The Dataverse of one organization as a WSGI application, for `DataverseServer` or for calls in-process.

    `verify_token` decides which tokens are valid for `url`. Rows are in memory, or in a file in `directory`. With an
    `image` (from `Database.image`) it need not be seeded again. `post` sends events; without it every job fails.
    `protection` switches service-protection limits on, counted per user on each of `servers`. `new_id` creates ids;
    histories replace it so that every run has the same ids. Thread-safe. Close it after use.
    """

    def __init__(  # noqa: PLR0913 - the composition root: each part may be replaced
        self,
        verify_token: VerifyToken,
        *,
        url: str = "https://sandbox.crm.dynamics.com",
        clock: Clock | None = None,
        image: bytes | None = None,
        directory: Path | None = None,
        post: Post | None = None,
        protection: ServiceProtection | None = None,
        servers: int = 1,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        clock = clock or SystemClock()
        database = Database(clock, image or base_image(), directory)
        with database.reading() as transaction:
            row = transaction.rows(TABLES["organization"])[0]
        pipeline = EventPipeline(clock, new_id, post)
        self.organization = Organization(
            row["organizationid"], row["uniquename"], url, clock, database, pipeline, new_id
        )
        self.protection = protection
        self._verify_token = verify_token
        self._servers = servers
        self._requests: list[RequestRecord] = []
        self._lock = threading.Lock()
        self._turn = 0
        self._callers: dict[str, tuple[tuple[int, ...], Caller]] = {}

    @property
    def database(self) -> Database:
        """The rows, and the log of commits."""
        return self.organization.database

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """Every request so far, in the order of the responses; the list only grows."""
        return self._requests

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session on the rows, in one transaction, as the platform itself, which needs no privileges."""
        with self.database.writing() as transaction:
            user = transaction.rows(TABLES["systemuser"], "fullname = 'SYSTEM'")[0]
            caller = Caller(user["systemuserid"], user["businessunitid"], "SYSTEM", is_platform=True)
            yield self._session(transaction, caller, RequestInfo(NO_ID, NO_ID))

    def run_due_jobs(self) -> int:
        """Run the jobs that are due now; return how many succeeded. Not while a DataverseServer runs them."""
        return self.organization.pipeline.run_due_jobs(self.database)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Respond to one request."""
        exchange = self._exchange(environ)
        try:
            response = self._handle(exchange)
        except RequestRefused as error:
            response = _refusal(error, exchange.request.headers.get("Prefer", ""))
        self._record(exchange, response.status)
        headers = {
            **response.headers,
            **exchange.headers,
            "OData-Version": "4.0",
            "REQ_ID": exchange.service_request_id,
            "x-ms-service-request-id": exchange.service_request_id,
            "Set-Cookie": f"{_AFFINITY}={exchange.server:032x}; Path=/; Secure; HttpOnly",
            "Cache-Control": "no-cache",
        }
        if response.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            headers["Content-Length"] = str(len(response.body))
        start_response(f"{response.status} {response.status.phrase}", list(headers.items()))
        return [response.body]

    # --- one request ---

    def _exchange(self, environ: "WSGIEnvironment") -> _Exchange:
        request = Request(environ)
        affinity = request.cookies.get(_AFFINITY, "")
        if _SERVER.fullmatch(affinity):
            server = int(affinity, 16) % self._servers
        else:
            with self._lock:
                self._turn += 1
                server = self._turn % self._servers
        return _Exchange(request, str(uuid.uuid4()), server, self.organization.clock.now())

    def _handle(self, exchange: _Exchange) -> ResponsePart:
        request = exchange.request
        if not request.path.startswith("/api/data/v9."):
            raise no_segment(request.path.strip("/").split("/")[0])
        claims = self._authenticate(request)
        if claims is None:
            return _unauthorized(self.organization.url)
        caller = self._caller(claims.client_id)
        exchange.user_id = caller.user_id
        info = RequestInfo(
            exchange.service_request_id,
            _correlation(request),
            request.headers.get("User-Agent", ""),
            claims.object_id,
            request.headers.get("traceparent"),
        )
        if self.protection is None:
            return self._respond(exchange, caller, info)
        with self.protection.admitted(caller.user_id, exchange.server) as headers:
            exchange.headers = {**headers, "x-ms-dop-hint": "4"}
            return self._respond(exchange, caller, info)

    def _authenticate(self, request: Request) -> Claims | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            return self._verify_token(token, [self.organization.url])
        except InvalidToken as error:
            _log.info("A token was refused: %s.", error.reason)
            return None

    def _caller(self, client_id: str) -> Caller:
        """Return the application user; read its roles again if any have changed."""
        version = self.database.version(_SECURITY_TABLES)
        known = self._callers.get(client_id)
        if known is None or known[0] != version:
            with self.database.reading() as transaction:
                known = version, application_user(transaction, client_id)
            self._callers[client_id] = known
        return known[1]

    def _respond(self, exchange: _Exchange, caller: Caller, info: RequestInfo) -> ResponsePart:
        request = exchange.request
        headers = {name.lower(): value for name, value in request.headers.items()}
        if request.path.endswith("/$batch"):
            if request.method != "POST":
                raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "0x80060880", "$batch takes POST only.")
            return self._batch(exchange, headers, caller, info)
        url = request.path + (f"?{request.query_string.decode('latin-1')}" if request.query_string else "")
        return _part(self._execute(Operation(request.method, url, headers, request.get_data()), caller, info))

    def _execute(self, operation: Operation, caller: Caller, info: RequestInfo) -> Reply:
        transaction = self.database.writing if operation.may_write else self.database.reading
        with transaction() as opened:
            user = acting(opened, caller, operation.headers)
            return execute(self._session(opened, user, info), operation)

    def _session(self, transaction: Transaction, caller: Caller, info: RequestInfo) -> Session:
        return Session(self.organization, transaction, caller, info, _RULES)

    # --- a batch ---

    def _batch(
        self, exchange: _Exchange, headers: Mapping[str, str], caller: Caller, info: RequestInfo
    ) -> ResponsePart:
        items = parse_batch(headers.get("content-type", ""), exchange.request.get_data())
        with self.database.reading() as transaction:
            caller = acting(transaction, caller, headers)
        prefer = headers.get("prefer", "")
        stopped = None
        parts: list[ResponsePart | Sequence[ResponsePart]] = []
        for item in items:
            operations = item.operations if isinstance(item, ChangeSet) else (item,)
            try:
                done = self._item(item, caller, info, prefer)
                statuses = [part.status for part in done]
            except _OperationRefused as refused:
                done = [refused.part]
                statuses = [refused.part.status] * len(operations)
                stopped = self._status_of_stop(exchange, item, prefer)
            exchange.operations += [
                (operation.method, operation.url, status)
                for operation, status in zip(operations, statuses, strict=True)
            ]
            parts.append(done if isinstance(item, ChangeSet) else done[0])
            if stopped is not None:
                break
        boundary = f"batchresponse_{uuid.uuid4()}"
        body = write_batch(parts, boundary, f"changesetresponse_{uuid.uuid4()}")
        headers = {"Content-Type": f"multipart/mixed; boundary={boundary}"}
        return ResponsePart(stopped or HTTPStatus.OK, headers, body)

    def _status_of_stop(
        self, exchange: _Exchange, item: Operation | ChangeSet, prefer: str
    ) -> HTTPStatus | None:
        """Return the batch's status if a failure ends the batch, None if the batch continues."""
        if "odata.continue-on-error" not in prefer:
            return HTTPStatus.BAD_REQUEST
        if not isinstance(item, ChangeSet):
            return None
        mode = exchange.request.environ.get(FAILED_CHANGE_SET, self.organization.failed_change_set)
        return _STATUS_OF_STOP[mode]

    def _item(
        self, item: Operation | ChangeSet, caller: Caller, info: RequestInfo, prefer: str
    ) -> list[ResponsePart]:
        if isinstance(item, ChangeSet):
            return self._change_set(item, caller, info, prefer)
        try:
            return [_part(self._execute(item, caller, info), item.content_id)]
        except RequestRefused as error:
            raise _OperationRefused(error, item, prefer) from error

    def _change_set(
        self, change_set: ChangeSet, caller: Caller, info: RequestInfo, prefer: str
    ) -> list[ResponsePart]:
        """Carry out a change set in one transaction; the first refusal rolls it back."""
        made: dict[str, str] = {}
        parts = []
        with self.database.writing() as transaction:
            for operation in change_set.operations:
                try:
                    user = acting(transaction, caller, operation.headers)
                    reply = execute(self._session(transaction, user, info), _resolved(operation, made))
                except RequestRefused as error:
                    raise _OperationRefused(error, operation, prefer) from error
                if operation.content_id and "OData-EntityId" in reply.headers:
                    made[f"${operation.content_id}"] = reply.headers["OData-EntityId"]
                parts.append(_part(reply, operation.content_id))
        return parts

    def _record(self, exchange: _Exchange, status: int) -> None:
        request = exchange.request
        with self._lock:
            self._requests.append(
                RequestRecord(
                    exchange.at,
                    request.method,
                    request.full_path.rstrip("?"),
                    status,
                    request.headers.get("x-ms-client-request-id"),
                    exchange.service_request_id,
                    exchange.user_id,
                    exchange.server,
                    tuple(exchange.operations),
                )
            )


def _resolved(operation: Operation, made: Mapping[str, str]) -> Operation:
    """Replace each `$content-id` with the URL of the row that an earlier operation of the change set created."""
    match = _CREATED_IN_BATCH.match(operation.url)
    url = operation.url
    if match and match[1] in made:
        url = made[match[1]] + url[match.end() :]

    def url_of(found: re.Match[bytes]) -> bytes:
        return found[1] + made.get(found[2].decode(), found[2].decode()).encode()

    return replace(operation, url=url, body=_CONTENT_REFERENCE.sub(url_of, operation.body))


def _part(reply: Reply, content_id: str | None = None) -> ResponsePart:
    headers = {**reply.headers, "OData-Version": "4.0"}
    body = b""
    if reply.text is not None:
        headers["Content-Type"] = "text/plain"
        body = reply.text.encode()
    elif reply.content is not None:
        headers["Content-Type"] = _JSON_TYPE
        body = write_json(reply.content)
        if isinstance(reply.content, Mapping) and isinstance(reply.content.get("@odata.etag"), str):
            headers["ETag"] = reply.content["@odata.etag"]
    return ResponsePart(reply.status, headers, body, content_id)


def _refusal(error: RequestRefused, prefer: str, content_id: str | None = None) -> ResponsePart:
    headers = {**error.headers, "OData-Version": "4.0", "Content-Type": _JSON_TYPE}
    body = write_json(error.body(included_annotations(prefer)))
    return ResponsePart(error.status, headers, body, content_id)


def _unauthorized(url: str) -> ResponsePart:
    challenge = (
        "Bearer authorization_uri=https://login.microsoftonline.com/common/oauth2/authorize, "
        f"resource_id={url}/"
    )
    # Without a JSON body, like Dataverse.
    return ResponsePart(HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": challenge})


def _correlation(request: Request) -> str:
    given = request.headers.get("x-ms-client-request-id", "")
    try:
        return str(uuid.UUID(given))
    except ValueError:
        return str(uuid.uuid4())
