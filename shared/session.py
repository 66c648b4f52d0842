"""A `requests` session without the traps: no cookies, TCP keep-alive, the default TLS context, and it can be cut.

Dataverse wants the affinity cookie refused, so that load spreads over its web servers. Load balancers drop idle flows
without a word, so the sockets ask. Companies that inspect TLS set SSL_CERT_FILE or REQUESTS_CA_BUNDLE: both work. All
of it holds behind a proxy too (HTTPS_PROXY); one that is itself reached by TLS is trusted by REQUESTS_CA_BUNDLE only.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

if TYPE_CHECKING:
    from urllib3.poolmanager import PoolManager

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


class Session(requests.Session):
    """For one thread at a time, except `cut`."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._adapter = _Adapter()
        self.mount("https://", self._adapter)

    def cut(self) -> None:
        """Shut the socket down, from any thread: whoever waits for an answer on it is freed."""
        self._adapter.cut()


class Bearer(requests.auth.AuthBase):
    """A token for a request: an auth object, since ~/.netrc would override a header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into the request."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Adapter(HTTPAdapter):
    def __init__(self) -> None:
        self._context = ssl.create_default_context()
        # One thread at a time has one connection at a time. Its socket, not the connection: that one lets go of
        # the socket before an answer which ends with the connection has been read.
        self._socket: socket.socket | None = None
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the signature is the library's
        super().init_poolmanager(*args, ssl_context=self._context, socket_options=_SOCKET_OPTIONS, **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - the signature is the library's
        if proxy not in self.proxy_manager:
            manager = super().proxy_manager_for(
                proxy, ssl_context=self._context, socket_options=_SOCKET_OPTIONS, **kwargs
            )
            self._watch(manager)
        return self.proxy_manager[proxy]

    def _watch(self, manager: PoolManager) -> None:
        """Let the connections of a manager, direct ones or a proxy's, tell their sockets."""
        adapter = self

        class Connection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                # TLS within a proxy's TLS is no socket itself.
                adapter._socket = getattr(self.sock, "socket", self.sock)

        class Pool(HTTPSConnectionPool):
            ConnectionCls = Connection

        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "https": Pool}

    def cut(self) -> None:
        if self._socket is not None:
            # Closed already is what was wanted.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
