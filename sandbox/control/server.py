"""The control panel as JSON over HTTP on 127.0.0.1, for requests that carry the token of this run."""

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from cheroot import wsgi

from sandbox.control.panel import ControlPanel, Refused
from sandbox.http_server import HttpServer, StartResponse, respond_json

_log = logging.getLogger(__name__)

_MAX_BODY = 1024 * 1024
# A request that waits for events takes a thread.
_THREADS = 16
_MAX_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class _Call:
    """The parameters of one request: of the query, as text, and of the JSON body."""

    query: Mapping[str, str]
    body: Mapping[str, Any]

    def number(self, name: str) -> int:
        return int(self._numeric(self.query.get(name, "0"), name))

    def wait(self) -> float:
        return max(0.0, min(self._numeric(self.query.get("wait", "0"), "wait"), _MAX_WAIT_SECONDS))

    def texts(self, name: str) -> list[str]:
        values = self.body.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise Refused(f"{name} must be a list of strings")
        return values

    def text(self, name: str) -> str:
        value = self.body.get(name)
        if not isinstance(value, str):
            raise Refused(f"{name} must be a string")
        return value

    def amount(self, name: str, default: float | None = None) -> float | None:
        value = self.body.get(name, default)
        return None if value is None else self._numeric(value, name)

    def _numeric(self, value: object, name: str) -> float:
        try:
            return float(str(value))
        except ValueError as error:
            raise Refused(f"{name} must be a number") from error


class ControlServer(HttpServer):
    """Serves a panel from `start` to `stop`; a context manager. `token` is random."""

    def __init__(self, panel: ControlPanel) -> None:
        self.token = secrets.token_urlsafe(24)
        self._routes = _routes(panel)
        server = wsgi.Server(("127.0.0.1", 0), self, numthreads=_THREADS, timeout=10, shutdown_timeout=1)
        server.max_request_body_size = _MAX_BODY
        super().__init__("control", server)

    @property
    def url(self) -> str:
        """The address; valid after `start`."""
        return f"http://{self.address}"

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Respond to one request."""
        try:
            status, content = HTTPStatus.OK, self._respond(environ)
        except _HttpRefused as refused:
            status, content = refused.status, {"error": str(refused)}
        except Refused as refused:
            status, content = HTTPStatus.CONFLICT, {"error": str(refused)}
        return respond_json(start_response, status, content)

    def _respond(self, environ: Mapping[str, Any]) -> object:
        self._authorize(environ)
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].rstrip("/") or "/"
        methods = {known_method for known_method, known_path in self._routes if known_path == path}
        if not methods:
            paths = ", ".join(f"{method} {path}" for method, path in self._routes)
            raise _HttpRefused(HTTPStatus.NOT_FOUND, f"there is no {path}; there is {paths}")
        if method not in methods:
            raise _HttpRefused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {', '.join(sorted(methods))}")
        query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        return self._routes[method, path](_Call(query, _body(environ)))

    def _authorize(self, environ: Mapping[str, Any]) -> None:
        host, port = self._server.bind_addr[:2]
        # A page in a browser may have made its own name resolve to this address.
        if environ.get("HTTP_HOST") not in (f"{host}:{port}", f"localhost:{port}"):
            raise _HttpRefused(HTTPStatus.FORBIDDEN, "this is not the host that was asked for")
        expected = f"Bearer {self.token}".encode()
        if not hmac.compare_digest(environ.get("HTTP_AUTHORIZATION", "").encode(), expected):
            raise _HttpRefused(HTTPStatus.UNAUTHORIZED, "the token of this sandbox is missing")


def _routes(panel: ControlPanel) -> dict[tuple[str, str], Callable[[_Call], object]]:
    return {
        ("GET", "/status"): lambda _: panel.status(),
        ("GET", "/opportunities"): lambda call: panel.opportunities(call.query.get("search", "")),
        ("GET", "/invoices"): lambda _: panel.invoices(),
        ("GET", "/events"): lambda call: panel.events(call.number("after"), call.wait()),
        ("GET", "/requests"): lambda call: panel.requests(call.number("after"), call.wait()),
        ("GET", "/messages"): lambda call: panel.messages(call.query.get("entity", "")),
        ("GET", "/traces"): lambda call: panel.traces(call.query.get("opportunity")),
        ("POST", "/win"): lambda call: panel.win(
            call.texts("opportunities"), int(call.amount("count", 1) or 0)
        ),
        ("POST", "/lose"): lambda call: panel.lose(call.texts("opportunities")),
        ("POST", "/reopen"): lambda call: panel.reopen(call.texts("opportunities")),
        ("POST", "/change"): lambda call: panel.change(call.texts("opportunities"), call.body),
        ("POST", "/messages"): lambda call: panel.send(call.text("entity"), call.text("body"), call.body),
        ("POST", "/faults"): lambda call: panel.add_fault(call.text("rule"), call.amount("seconds")),
        ("DELETE", "/faults"): lambda _: panel.repair(),
        ("POST", "/workers/kill"): lambda _: panel.kill_workers(),
        ("POST", "/clock"): lambda call: panel.advance(call.amount("hours") or 0.0),
    }


def _body(environ: Mapping[str, Any]) -> Mapping[str, Any]:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if not length:
        return {}
    try:
        content = json.loads(environ["wsgi.input"].read(length))
    except (ValueError, RecursionError) as error:
        raise _HttpRefused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error
    if not isinstance(content, dict):
        raise _HttpRefused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return content


class _HttpRefused(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
