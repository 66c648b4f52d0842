"""One HTTP exchange over TLS that ends by its deadline: connection, request and the whole response.

Made for an API that is called often. The environment (proxies, trusted authorities) is read once. `urllib3` has the
pool, the connections and their TLS; `http_message.py` has the bytes that they carry, so redirects, cookies and ~/.netrc
have no effect. The most recently used connection is used first, and one that was idle for long is not used again: load
balancers drop idle flows silently, which is also why TCP keep-alive is on. Companies that inspect TLS set SSL_CERT_FILE
or REQUESTS_CA_BUNDLE: both work, behind a proxy (HTTPS_PROXY) too. What a response means is left to the caller.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from http.client import IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, requote_uri, select_proxy
from urllib3 import Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import DecodeError, HTTPError, ProxySchemeUnknown
from urllib3.poolmanager import PoolManager, proxy_from_url
from urllib3.util import parse_url

from shared.bounded_call import BoundedCalls
from shared.deadline_socket import (
    CallTimeout,
    DeadlineSocket,
    deadline_tls_context,
    seconds_left,
    thread_deadline,
)
from shared.http_message import read_response, request_bytes

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

    from shared.http_message import HttpResponse

# More than the host delivers at once; it bounds what name resolution can block.
_connecting = BoundedCalls("http connection", 32)
# Connections that are kept for reuse: one for each thread of a worker.
_MAX_KEPT = 64
# Seconds after which an idle connection is not used again, and to wait for a connection at most.
_MAX_IDLE = 60.0
_TIMEOUT = Timeout(connect=10.0)
# Seconds of silence before the first probe and between probes, and how many without a response: dead after a minute.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, True),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEP_ALIVE
        # Not every system names all three.
        if hasattr(socket, name)
    ),
]
_PLAIN_URL = re.compile(r"[A-Za-z0-9\-._~!#$&'()*+,/:;=?@\[\] ]*")
_BODILESS = frozenset({"GET", "HEAD"})
_COMMON_HEADERS = {
    "User-Agent": "invoice-from-opportunity",
    "Accept-Encoding": "gzip",
}
# Repeating is the caller's decision: it raises at once what went wrong.
_NO_RETRIES = Retry(total=False)


class Request(NamedTuple):
    """A request. `path` is what follows the origin; its spaces are encoded here."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


class NoResponse(Exception):
    """There is no complete response; whether the request was carried out is not known. The text names the cause."""


class ConnectionBroken(NoResponse):
    """Refused, reset or closed: what happens to a connection that died while it was idle."""


class Exchange(Protocol):
    """Requests and their responses; safe under many threads."""

    def send(self, request: Request, seconds: float) -> HttpResponse:
        """Return the response to a request within `seconds`; raises NoResponse or ConnectionBroken."""

    def close(self) -> None:
        """Close the connections that are not in use; the exchange can be used again."""


class HttpExchange:
    """Exchanges with one origin: `https://host`, with or without a port.

    Trust and proxy are read from the environment at the first request: what is wrong with them is then an error of
    that request. `max_idle`: seconds after which a connection is not used again.
    """

    def __init__(self, origin: str, *, max_idle: float = _MAX_IDLE) -> None:
        self._origin = origin
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._pool: _Pool | None = None

    def send(self, request: Request, seconds: float) -> HttpResponse:
        """See Exchange."""
        try:
            with thread_deadline(seconds):
                pool = self._pool or self._new_pool()
                received: Any = pool.urlopen(
                    request.method,
                    encoded(request.path),
                    request.body,
                    _headers(request, pool.netloc),
                    _NO_RETRIES,
                    redirect=False,
                    # The sockets keep the deadline themselves.
                    timeout=_TIMEOUT,
                )
        except (HTTPError, OSError) as error:
            raise _failure(error) from error
        return cast("_Received", received).response

    def close(self) -> None:
        """See Exchange."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _new_pool(self) -> _Pool:
        with self._lock:
            if self._pool is None:
                self._pool = _new_pool(self._origin)
                self._pool.max_idle = self._max_idle
            return self._pool


def _headers(request: Request, host: str) -> dict[str, str]:
    headers = {"Host": host, **_COMMON_HEADERS, **request.headers}
    if request.body or request.method not in _BODILESS:
        headers["Content-Length"] = str(len(request.body))
    return headers


def encoded(url: str) -> str:
    """Return a URL whose invalid characters are percent-encoded, as `requests` does it."""
    # Most URLs here have only spaces to encode.
    return url.replace(" ", "%20") if _PLAIN_URL.fullmatch(url) else requote_uri(url)


def _failure(error: Exception) -> NoResponse:
    causes = list(_causes(error))
    if any(isinstance(each, CallTimeout | TimeoutError) for each in causes):
        return NoResponse("timeout")
    # A body that breaks off has another cause than a connection that died while it was idle.
    partial = isinstance(error, DecodeError) or any(isinstance(each, IncompleteRead) for each in causes)
    broken = isinstance(error, HTTPError) and not partial
    return (ConnectionBroken if broken else NoResponse)(type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# ---------------------------------------------------------------------------------------------- connections


class DeadlineAdapter(HTTPAdapter):
    """For `requests` itself, where an SDK uses it without TLS: its sockets keep the deadline of the calling thread."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the signature is the library's
        """Use our connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS


def _new_pool(origin: str) -> _Pool:
    url = parse_url(origin)
    options: dict[str, Any] = {"maxsize": _MAX_KEPT, "socket_options": _SOCKET_OPTIONS}
    # Without TLS there is no proxy: such an endpoint is on the same machine.
    proxy = select_proxy(origin, get_environ_proxies(origin)) if url.scheme == "https" else None
    if url.scheme == "https":
        options["ssl_context"] = tls_context()
    if proxy is None:
        manager = PoolManager(**options)
    else:
        manager = _proxy_manager(proxy if "://" in proxy else f"http://{proxy}", options)
    manager.pool_classes_by_scheme = _POOLS
    pool = cast("_Pool", manager.connection_from_host(url.host, url.port, url.scheme))
    pool.ConnectionCls = _TlsConnection if url.scheme == "https" else _Connection
    pool.netloc = cast("str", url.netloc)
    return pool


def _proxy_manager(proxy: str, options: dict[str, Any]) -> PoolManager:
    try:
        headers = HTTPAdapter().proxy_headers(proxy)
        return proxy_from_url(
            proxy, proxy_headers=headers, proxy_ssl_context=options["ssl_context"], **options
        )
    except ValueError as error:
        # The text may hold the proxy's password.
        raise ProxySchemeUnknown("HTTPS_PROXY is not a URL.") from error


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts what SSL_CERT_FILE and what REQUESTS_CA_BUNDLE name."""
    context = deadline_tls_context()
    bundle = (
        os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    )
    is_folder = Path(bundle).is_dir()
    context.load_verify_locations(None if is_folder else bundle, bundle if is_folder else None)
    return context


class _BoundedConnect(HTTPConnection):
    """Resolves the name and connects in a thread of its own: nothing else bounds name resolution."""

    used_at = 0.0

    def _new_conn(self) -> socket.socket:
        plain = _connecting.run(super()._new_conn, seconds_left(), discard=socket.socket.close)
        return DeadlineSocket.of(plain)


class _BoundedTlsConnect(_BoundedConnect, HTTPSConnection):
    pass


class _Connection(_BoundedConnect):
    """Sends a request at once and reads the response whole."""

    _sent_method: str

    def request(self, method: str, url: str, body: Any, headers: Any, **_: Any) -> None:  # type: ignore[override]  # noqa: ANN401 - the signature is the library's
        """Send head and body at once: each piece would be a TLS record, a system call and a packet of its own."""
        if self.sock is None:
            self.connect()
        self._sent_method = method
        self.sock.sendall(request_bytes(method, url, headers, body))

    def getresponse(self) -> Any:  # noqa: ANN401 - as above
        """Return the response; close the connection if it cannot be used again."""
        # That of the connect is over: only the deadline counts.
        self.sock.settimeout(None)
        with self.sock.makefile("rb") as stream:
            response, keeps_connection = read_response(stream, self._sent_method)
        if not keeps_connection:
            self.close()
        return _Received(response)


class _TlsConnection(_Connection, _BoundedTlsConnect):
    pass


class _Received:
    """A response with the attributes that the pool reads. It sets others, which have no effect."""

    # For its debug log.
    version_string = length_remaining = None

    def __init__(self, response: HttpResponse) -> None:
        self.response = response
        self.status = response.status
        self.headers = response.headers


class _Pool(HTTPConnectionPool):
    """Hands out the most recently used connection, connected anew if it was idle for long."""

    ConnectionCls = _BoundedConnect
    max_idle: float = _MAX_IDLE
    # The host of the requests, with its port if the origin has one.
    netloc: str

    def _get_conn(self, timeout: float | None = None) -> Any:  # noqa: ANN401 - the signature is the library's
        connection: Any = super()._get_conn(timeout)
        if time.monotonic() - connection.used_at > self.max_idle:
            connection.close()
        return connection

    def _put_conn(self, conn: Any) -> None:  # noqa: ANN401 - as above
        if conn is not None:
            conn.used_at = time.monotonic()
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _BoundedTlsConnect


_POOLS = {"http": _Pool, "https": _TlsPool}
