"""Access to the application: HTTPS on a loopback address, and in-process through a requests adapter."""

import errno
import io
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import requests
from cheroot import wsgi
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection
from requests.adapters import BaseAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse

from sandbox.dataverse.events import Poster
from sandbox.dataverse.web_api import DataverseApp
from sandbox.http_server import HttpServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

# The key of the WSGI environment under which an application finds the socket of its connection.
SOCKET = "sandbox.socket"

_MAX_BODY = 16 * 1024 * 1024
_MAX_HEADERS = 64 * 1024


class ResponseLost(ConnectionResetError):
    """Raised by a WSGI application to break the connection without a response."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the response is lost")


class DataverseServer(HttpServer):
    """Serves a `DataverseApp` over HTTPS (HTTP/1.1, keep-alive) and posts its events in the background.

    Starting sets the URL of the application. `middleware` wraps the application; faults use it. `port` 0 takes a free
    port.
    """

    def __init__(
        self,
        app: DataverseApp,
        ssl_context: ssl.SSLContext,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        threads: int = 64,
        middleware: "Callable[[WSGIApplication], WSGIApplication] | None" = None,
    ) -> None:
        self.app = app
        application: WSGIApplication = middleware(app) if middleware else app
        # A connection that is kept alive uses no thread while it is idle.
        server = _Server(
            (host, port),
            application,
            numthreads=threads,
            timeout=60,
            shutdown_timeout=2,
            request_queue_size=256,
        )
        server.ssl_adapter = _TlsAdapter(ssl_context)
        server.gateway = _Gateway
        server.max_request_body_size = _MAX_BODY
        server.max_request_header_size = _MAX_HEADERS
        super().__init__("dataverse", server)
        self._poster = Poster(app.organization.pipeline, app.database)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.app!r}>"

    @property
    def url(self) -> str:
        """The address of the server; valid after `start`."""
        return f"https://{self.address}"

    def start(self) -> None:
        """Listen and post; return when the server accepts connections. Raises OSError if the port is taken."""
        super().start()
        self._poster.start()

    def _listening(self) -> None:
        self.app.organization.url = self.url

    def stop(self) -> None:
        """Stop posting, close the socket and wait for the threads, for some seconds at most."""
        self._poster.stop()
        super().stop()


class _Gateway(wsgi.Gateway_10):
    """Gives the application its connection, so that a fault can break it."""

    def __init__(self, req: Any) -> None:  # noqa: ANN401 - cheroot's types
        super().__init__(req)
        self.env = {**self.env, SOCKET: req.conn.socket}


class _Connection(HTTPConnection):
    """A connection that ends without a traceback if TLS fails."""

    def communicate(self) -> bool:
        try:
            self.socket.do_handshake()
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except OSError as error:
            _log.debug("A connection ended: %s", type(error).__name__)
            return False


class _Server(wsgi.Server):
    ConnectionClass = _Connection

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:  # noqa: FBT001, FBT002
        _log.log(level, "%s", msg, exc_info=traceback)


class _TlsAdapter:
    """Cheroot's TLS with a given context, and with the handshake in the worker's thread.

    Cheroot's own adapter does the handshake in the accepting thread, where one silent client blocks all others.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def bind(self, sock: Any) -> Any:  # noqa: ANN401 - cheroot's types
        return sock

    def wrap(self, sock: Any) -> tuple[ssl.SSLSocket, dict[str, str]]:  # noqa: ANN401
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:  # noqa: ANN401
        return (StreamReader if "r" in mode else StreamWriter)(sock, mode, bufsize)


class WsgiAdapter(BaseAdapter):
    """A transport for `requests` that calls a WSGI application instead of opening a socket.

    `session.mount("https://…", WsgiAdapter(app))`. If the application raises `ResponseLost`, the client
    gets the ConnectionError of a reset connection.
    """

    def __init__(self, app: "WSGIApplication") -> None:
        super().__init__()
        self._app = app

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002, FBT001, FBT002
        timeout: object = None,  # noqa: ARG002
        verify: object = True,  # noqa: ARG002, FBT002
        cert: object = None,  # noqa: ARG002
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> requests.Response:
        """Call the application and wrap its response."""
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _: object = None
        ) -> Callable[[bytes], object]:
            started.append((status, headers))
            return lambda _: None

        try:
            body = b"".join(_call(self._app, _environ(request), start_response))
        except ResponseLost as error:
            raise requests.ConnectionError(error, request=request) from error
        status, headers = started[-1]
        return _response(request, status, headers, body)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def _call(app: "WSGIApplication", environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
    return app(environ, start_response)


def _environ(request: requests.PreparedRequest) -> dict[str, Any]:
    parts = urlsplit(request.url or "")
    body = request.body or b""
    data = body.encode() if isinstance(body, str) else bytes(body)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path).encode().decode("latin-1"),
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname,
        "SERVER_PORT": str(parts.port or 443),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": parts.netloc,
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    return environ


def _response(
    request: requests.PreparedRequest, status: str, headers: list[tuple[str, str]], body: bytes
) -> requests.Response:
    code, _, reason = status.partition(" ")
    raw = HTTPResponse(
        body=io.BytesIO(body),
        headers=HTTPHeaderDict(headers),
        status=int(code),
        reason=reason,
        preload_content=False,
    )
    response = requests.Response()
    response.status_code = int(code)
    response.reason = reason
    response.headers.update(headers)
    response.url = request.url or ""
    response.request = request
    response.raw = raw
    response.encoding = requests.utils.get_encoding_from_headers(response.headers)
    return response
