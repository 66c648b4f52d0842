"""Faults of a WSGI application: connections that break, responses that are lost, late, cut or a fault's own.

The same middleware serves sockets and callers in the same process. A broken connection is an exception, `Broken`, that
ends the connection under a server and is one of `requests`' own under `FaultyAdapter`. A `Service` makes the
responses of the wrapped application.
"""

import io
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import requests

from sandbox.dataverse.server import SOCKET, ResponseLost, WsgiAdapter
from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Where a redirect leads: a page with the status 200, which a client that follows it takes for a response.
SIGN_IN = "/sign-in"

_DROPS = 40
_NO_LINGER = struct.pack("ii", 1, 0)


class Broken(ResponseLost):
    """The connection ends here, without a response or in the middle of one, because of a fault of this kind."""

    def __init__(self, kind: FaultKind) -> None:
        super().__init__()
        self.kind = kind


@dataclass(frozen=True)
class Response:
    """A complete HTTP response."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def status_line(self) -> str:
        """The status with its phrase."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return f"{self.status} Unknown"


@dataclass(frozen=True)
class Request:
    """A call that has been read; `again` returns an environment to read it again."""

    environ: "WSGIEnvironment"
    body: bytes

    @property
    def about(self) -> str:
        """Method and path, for logs."""
        return f"{self.environ['REQUEST_METHOD']} {self.environ['PATH_INFO']}"

    def again(self, body: bytes | None = None) -> "WSGIEnvironment":
        """Return an environment with this request's body, or another one."""
        body = self.body if body is None else body
        return {**self.environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


class Service:
    """What is specific to the service behind the middleware; a base class."""

    dependency: Dependency

    def operation(self, request: Request) -> str:
        """Return the operation of a request."""
        raise NotImplementedError

    def respond(self, fault: Fault, plan: FaultPlan, request: Request) -> Response:
        """Return the service's response for a response fault."""
        match fault.kind:
            case FaultKind.HTML:
                return PAGE
            case FaultKind.REDIRECT:
                return Response(302, {"Location": fault.location or SIGN_IN})
            case FaultKind.EMPTY:
                return Response(fault.http_status)
            case _:
                return self.refuse(fault, plan, request)

    def refuse(self, fault: Fault, plan: FaultPlan, request: Request) -> Response:
        """Return an error as the service words it."""
        raise NotImplementedError

    def changed(self, fault: Fault, request: Request) -> "WSGIEnvironment | None":  # noqa: ARG002 - for those that do
        """Return the request that the service receives, for a fault that changes only the request; None for others."""
        return None

    def partly(self, fault: Fault, plan: FaultPlan, request: Request, run: "Run") -> Response:  # noqa: ARG002 - likewise
        """Return the response to a batch of which one part is struck; without batches, the whole request is."""
        return self.respond(fault, plan, request)


Run = Callable[["WSGIEnvironment"], Response]


class FaultyApplication:
    """A WSGI application in which the plan's faults strike.

    `wait` is called with the seconds of a silence or delay; by default they pass. `concerns` says which requests may be
    struck; others are served without a fault, and not counted.
    """

    def __init__(
        self,
        application: "WSGIApplication",
        plan: FaultPlan,
        service: Service,
        wait: Callable[[float], None] | None = None,
        concerns: "Callable[[WSGIEnvironment], bool]" = lambda _: True,
    ) -> None:
        self._application = application
        self._concerns = concerns
        self._plan = plan
        self._service = service
        self._wait = wait or plan.pause

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Respond to one request, or raise Broken."""
        if not self._concerns(environ):
            return self._application(environ, start_response)
        request = Request(environ, _body(environ))
        if environ["PATH_INFO"] == SIGN_IN:
            return _respond(PAGE, start_response)
        fault = self._plan.strike(self._service.dependency, self._service.operation(request), request.about)
        if fault is None:
            return self._application(request.again(), start_response)
        return self._strike(fault, request, start_response)

    def _strike(self, fault: Fault, request: Request, start_response: "StartResponse") -> Iterable[bytes]:
        changed = self._service.changed(fault, request)
        if changed is not None:
            return self._application(changed, start_response)
        if fault.kind in _SPOILING:
            return self._spoil(fault, request, start_response)
        if fault.part is not None:
            return _respond(self._service.partly(fault, self._plan, request, self._carry_out), start_response)
        if fault.after:
            self._carry_out(request.again())
        if fault.kind in _BREAKING:
            self._break(fault, request)
        return _respond(self._service.respond(fault, self._plan, request), start_response)

    def _spoil(self, fault: Fault, request: Request, start_response: "StartResponse") -> Iterable[bytes]:
        if fault.kind is FaultKind.DELAY:
            self._wait(fault.seconds)
        response = self._carry_out(request.again())
        match fault.kind:
            case FaultKind.DRIBBLE:
                return self._dribble(response, start_response, fault.seconds)
            case FaultKind.CUT:
                return _cut(response, start_response)
            case FaultKind.TRUNCATED:
                response = replace(response, body=_half(response))
        return _respond(response, start_response)

    def _carry_out(self, environ: "WSGIEnvironment") -> Response:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _: object = None
        ) -> Callable[[bytes], object]:
            started.append((status, headers))
            return lambda _: None

        body = b"".join(self._application(environ, start_response))
        status, headers = started[-1]
        return Response(int(status.split(" ")[0]), dict(headers), body)

    def _break(self, fault: Fault, request: Request) -> None:
        if fault.kind is FaultKind.KILL:
            self._plan.carry_out(FaultKind.KILL)
        elif fault.kind in _SILENT:
            self._wait(fault.seconds)
        connection = request.environ.get(SOCKET)
        if isinstance(connection, socket.socket):
            # With this option the peer gets a reset and not an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        raise Broken(fault.kind)

    def _dribble(
        self, response: Response, start_response: "StartResponse", seconds: float
    ) -> Iterator[bytes]:
        start_response(response.status_line, list(response.headers.items()))
        size = max(1, len(response.body) // _DROPS)
        for position in range(0, len(response.body), size):
            self._wait(seconds / _DROPS)
            yield response.body[position : position + size]


_SILENT = frozenset({FaultKind.SILENT, FaultKind.SWALLOW})
_BREAKING = frozenset({FaultKind.REFUSE, FaultKind.RESET, FaultKind.KILL}) | _SILENT
# The service carries the call out, and its own response is late or not whole.
_SPOILING = frozenset({FaultKind.DELAY, FaultKind.DRIBBLE, FaultKind.CUT, FaultKind.TRUNCATED})

PAGE = Response(
    200,
    {"Content-Type": "text/html; charset=utf-8"},
    b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in to your account.</body></html>",
)


class FaultyAdapter(WsgiAdapter):
    """A transport for `requests` that calls a faulty application and raises what a socket would have led to."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        """Call the application; raises ConnectionError, ReadTimeout or ChunkedEncodingError."""
        try:
            return super().send(request, *args, **kwargs)
        except requests.ConnectionError as error:
            broken = error.__cause__
            if isinstance(broken, Broken) and broken.kind in _SILENT:
                raise requests.ReadTimeout(broken, request=request) from broken
            if isinstance(broken, Broken) and broken.kind is FaultKind.CUT:
                raise requests.exceptions.ChunkedEncodingError(broken, request=request) from broken
            raise


def retry_after(fault: Fault, plan: FaultPlan) -> Mapping[str, str]:
    """Return the header in the form that the fault asks for."""
    value = fault.retry_after or "2"
    if value == "none":
        return {}
    if value.startswith("date"):
        moment = plan.clock.now() + timedelta(seconds=float(value.removeprefix("date") or "0"))
        value = format_datetime(moment.replace(microsecond=0), usegmt=True)
    return {"Retry-After": value}


def _body(environ: "WSGIEnvironment") -> bytes:
    return bytes(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))


def _respond(response: Response, start_response: "StartResponse") -> list[bytes]:
    headers = {**response.headers, "Content-Length": str(len(response.body))}
    start_response(response.status_line, list(headers.items()))
    return [response.body]


def _cut(response: Response, start_response: "StartResponse") -> Iterator[bytes]:
    headers = {**response.headers, "Content-Length": str(len(response.body))}
    start_response(response.status_line, list(headers.items()))
    yield _half(response)
    raise Broken(FaultKind.CUT)


def _half(response: Response) -> bytes:
    return response.body[: len(response.body) // 2]
