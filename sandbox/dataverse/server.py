"""Access to the application: HTTPS on a loopback address, and in-process through a requests adapter."""

import errno
import io
import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from cheroot import wsgi
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse
from werkzeug.test import EnvironBuilder, run_wsgi_app

from sandbox.dataverse.events import Poster
from sandbox.dataverse.web_api import DataverseApp
from sandbox.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable

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


class WsgiAdapter(HTTPAdapter):
    """A transport for `requests` that calls a WSGI application instead of opening a socket.

    `session.mount("https://…", WsgiAdapter(app))`. If the application raises `ResponseLost`, the client
    gets the ConnectionError of a reset connection.
    """

    def __init__(self, app: "WSGIApplication") -> None:
        super().__init__()
        self._app = app

    def send(self, request: requests.PreparedRequest, *_args: Any, **_kwargs: Any) -> requests.Response:  # noqa: ANN401
        """Call the application and wrap its response."""
        url = urlsplit(request.url or "")
        builder = EnvironBuilder(
            method=request.method or "",
            base_url=f"{url.scheme}://{url.netloc}",
            path=url.path,
            query_string=url.query,
            headers=list(request.headers.items()),
            data=request.body,
        )
        try:
            body, status, headers = run_wsgi_app(self._app, builder.get_environ(), buffered=True)
        except ResponseLost as error:
            raise requests.ConnectionError(error, request=request) from error
        code, _, reason = status.partition(" ")
        raw = HTTPResponse(
            body=io.BytesIO(b"".join(body)),
            headers=HTTPHeaderDict(headers),
            status=int(code),
            reason=reason,
            preload_content=False,
        )
        return self.build_response(request, raw)
