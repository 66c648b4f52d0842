"""One HTTP exchange over TLS that ends by its deadline: connection, request and the whole response.

Made for an API that is called again and again. The environment (proxies, trusted authorities) is read once and the
request goes straight to the adapter's pool, so redirects, cookies and ~/.netrc never come into play. The most recently
used connection is used first, and one that was idle for long is not used again: load balancers drop idle flows without
a sign, which is also why TCP keep-alive is on. Companies that inspect TLS set SSL_CERT_FILE or REQUESTS_CA_BUNDLE: both
work, behind a proxy (HTTPS_PROXY) too. Who calls what, and what a response means, is left to the caller.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import (
    DEFAULT_CA_BUNDLE_PATH,
    get_environ_proxies,
    requote_uri,
    select_proxy,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.poolmanager import PoolManager
from urllib3.util import parse_url

from shared.bounded_call import BoundedCalls
from shared.deadline_socket import (
    CallTimeout,
    DeadlineSocket,
    deadline_tls_context,
    seconds_left,
    thread_deadline,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

    from requests.adapters import BaseAdapter
    from urllib3.response import BaseHTTPResponse

# More than the host hands over at once; it bounds what name resolution can block.
_connecting = BoundedCalls("http connection", 32)
# Connections that are kept for reuse: one for each thread of a worker.
_MAX_KEPT = 64
# Seconds after which an idle connection is not used again, and to wait for a connection at most.
_MAX_IDLE = 60.0
_CONNECT_SECONDS = 10.0
# Seconds of silence before the first probe and between probes, and how many go unanswered: dead after a minute.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
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
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
}


@dataclass(frozen=True)
class Request:
    """What goes out. `path` is what follows the origin; its spaces are encoded here."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class HttpResponse:
    """What came back, whole. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoResponse(Exception):
    """No whole response came; whether the request was carried out is not known. The text names the cause."""


class ConnectionBroken(NoResponse):
    """Refused, reset or closed: what happens to a connection that died while it was idle."""


class HttpExchange:
    """Exchanges with one origin (`https://host` or `https://host:port`); safe under many threads."""

    def __init__(self, origin: str, *, adapter: BaseAdapter | None = None) -> None:
        self._origin = origin
        self._adapter = adapter or DeadlineAdapter()

    def send(self, request: Request, seconds: float) -> HttpResponse:
        """Return the response to a request within `seconds`; raises NoResponse or ConnectionBroken."""
        timeout = (min(seconds, _CONNECT_SECONDS), seconds)
        try:
            with thread_deadline(seconds):
                response = self._adapter.send(self._prepared(request), timeout=timeout)
                body = response.content or b""
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _failure(error) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status_code, headers, body)

    def close(self) -> None:
        """Close the connections that are not in use; the exchange can be used again."""
        self._adapter.close()

    def _prepared(self, request: Request) -> requests.PreparedRequest:
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = encoded(self._origin + request.path)
        prepared.headers = CaseInsensitiveDict({**_COMMON_HEADERS, **request.headers})
        if request.body or request.method not in _BODILESS:
            prepared.headers["Content-Length"] = str(len(request.body))
            prepared.body = request.body
        return prepared


def encoded(url: str) -> str:
    """Return a URL with what may not stand in one percent-encoded, as `requests` does it."""
    # Most URLs here have only spaces to encode.
    return url.replace(" ", "%20") if _PLAIN_URL.fullmatch(url) else requote_uri(url)


def _failure(error: Exception) -> NoResponse:
    if any(isinstance(each, CallTimeout | TimeoutError) for each in _causes(error)):
        return NoResponse("timeout")
    broken = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout)
    return (ConnectionBroken if broken else NoResponse)(type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class DeadlineAdapter(HTTPAdapter):
    """An adapter whose sockets keep the deadline of the calling thread.

    Trust and proxy are read from the environment at the first request to an origin: what is wrong with them is then an
    error of that request. A proxy is for TLS only: what has none is an endpoint on the same machine.
    `max_idle`: seconds after which a connection is not used again.
    """

    def __init__(self, *, max_idle: float = _MAX_IDLE) -> None:
        super().__init__(pool_maxsize=_MAX_KEPT)
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._pools: dict[str, HTTPConnectionPool] = {}

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        *_: Any,  # noqa: ANN401 - the signature is the library's
        **__: Any,  # noqa: ANN401
    ) -> HTTPConnectionPool:
        """Return the pool of the request's origin."""
        origin = "/".join((request.url or "").split("/", 3)[:3])
        with self._lock:
            pool = self._pools.get(origin)
            if pool is None:
                pool = self._pools[origin] = self._new_pool(origin)
            return pool

    def cert_verify(self, *_: Any) -> None:  # noqa: ANN401 - as above
        """Trust is the context's: the library would read its list of authorities for each connection."""

    def request_url(self, request: requests.PreparedRequest, *_: Any) -> str:  # noqa: ANN401 - as above
        """Return the path: an origin is reached directly, or through a tunnel."""
        return request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: BaseHTTPResponse) -> requests.Response:
        """Return the response without cookies: Dataverse's would bind all load to one web server."""
        response = requests.Response()
        response.status_code = resp.status
        response.headers = CaseInsensitiveDict(resp.headers)
        response.raw = resp
        response.reason = resp.reason or ""
        response.url = req.url or ""
        response.request = req
        return response

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _new_pool(self, origin: str) -> HTTPConnectionPool:
        url = parse_url(origin)
        manager = self._tls_manager(origin) if url.scheme == "https" else _manager()
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        pool = manager.connection_from_host(url.host, url.port, url.scheme)
        pool.max_idle = self._max_idle  # type: ignore[attr-defined]
        return pool

    def _tls_manager(self, origin: str) -> PoolManager:
        context = _tls_context()
        proxy = select_proxy(origin, get_environ_proxies(origin))
        if proxy is None:
            return _manager(ssl_context=context)
        self.proxy_manager.clear()
        try:
            manager: PoolManager = self.proxy_manager_for(
                proxy if "://" in proxy else f"http://{proxy}",
                ssl_context=context,
                proxy_ssl_context=context,
                socket_options=_SOCKET_OPTIONS,
            )
        except ValueError as error:
            raise requests.exceptions.InvalidProxyURL("HTTPS_PROXY is not a URL.") from error
        return manager


def _manager(**options: Any) -> PoolManager:  # noqa: ANN401 - the library's options
    return PoolManager(maxsize=_MAX_KEPT, socket_options=_SOCKET_OPTIONS, **options)


def _tls_context() -> ssl.SSLContext:
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
    _pieces: list[bytes] | None = None

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the signature is the library's
        """Send head and body at once: each piece would be a TLS record, a system call and a packet of its own."""
        pieces: list[bytes] = []
        self._pieces = pieces
        try:
            super().request(*args, **options)
        finally:
            self._pieces = None
        self.send(b"".join(pieces))

    def send(self, data: Any) -> None:  # noqa: ANN401 - as above
        """Send a piece of a request, or keep it until the request is complete."""
        if self._pieces is None:
            super().send(data)
        else:
            self._pieces.append(data)

    def _new_conn(self) -> socket.socket:
        plain = _connecting.run(super()._new_conn, seconds_left(), discard=socket.socket.close)
        return DeadlineSocket.of(plain)


class _Connection(_BoundedConnect):
    pass


class _TlsConnection(_BoundedConnect, HTTPSConnection):
    pass


class _FreshConnections(HTTPConnectionPool):
    """Hands out the most recently used connection, connected anew if it was idle for long."""

    max_idle: float = _MAX_IDLE

    def _get_conn(self, timeout: float | None = None) -> Any:  # noqa: ANN401 - the signature is the library's
        connection: Any = super()._get_conn(timeout)
        if time.monotonic() - connection.used_at > self.max_idle:
            connection.close()
        return connection

    def _put_conn(self, conn: Any) -> None:  # noqa: ANN401 - as above
        if conn is not None:
            conn.used_at = time.monotonic()
        super()._put_conn(conn)


class _Pool(_FreshConnections):
    ConnectionCls = _Connection


class _TlsPool(_FreshConnections, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection
