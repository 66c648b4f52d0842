from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from requests.utils import requote_uri

from shared import http_exchange
from shared.http_exchange import ConnectionBroken, HttpExchange, NoResponse, Request, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.conftest import Certificates, TlsServer

BOUND = 20.0
SOON = 0.4
GET = Request("GET", "/path", {})
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["directly", "by a proxy", "by a proxy with TLS"])
def way(
    request: pytest.FixtureRequest,
    plain_server: TlsServer,
    certificates: Certificates,
    trusted: None,  # noqa: ARG001 - it comes first, and takes REQUESTS_CA_BUNDLE away
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Let requests take one of three connections, and check that they did."""
    if request.param == "directly":
        yield
        return
    proxy = plain_server if request.param == "by a proxy" else type(plain_server)(certificates.server)
    proxy.serve = proxy.tunnel
    scheme = "http" if proxy is plain_server else "https"
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
    yield
    proxy.stop()
    assert {received.line.partition(" ")[0] for received in proxy.requests} == {"CONNECT"}


@pytest.fixture
def exchange(tls_server: TlsServer, request: pytest.FixtureRequest) -> Iterator[HttpExchange]:
    """Return the exchange with the server, made after trust and proxy have been set up."""
    for fixture in ("trusted", "way"):
        if fixture in request.fixturenames:
            request.getfixturevalue(fixture)
    exchange = HttpExchange(tls_server.url)
    yield exchange
    exchange.close()


# ---------------------------------------------------------------------------------------------- trust


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_trust_comes_from_the_environment(
    variable: str, tls_server: TlsServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Companies that inspect TLS set one or the other; it holds for the proxy, too."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(certificates.authority))
    exchange = HttpExchange(tls_server.url)
    assert exchange.send(GET, BOUND).body == b"{}"
    exchange.close()


def test_a_folder_of_authorities_is_trusted_too(
    tls_server: TlsServer, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    exchange = HttpExchange(tls_server.url)
    exchange.close()
    with pytest.raises(ConnectionBroken, match="SSLError"):
        exchange.send(GET, BOUND)
    assert tls_server.requests == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authority))
    exchange.close()
    assert exchange.send(GET, BOUND).status == 200, "the environment is read again after closing"
    exchange.close()


def test_a_peer_that_is_not_trusted_gets_no_request(
    tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(ConnectionBroken, match="SSLError"):
        HttpExchange(tls_server.url).send(GET, BOUND)
    assert tls_server.requests == []


def test_authorities_that_cannot_be_read_are_an_error_of_the_request(
    tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the process: a message waits until the setting is corrected."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(NoResponse, match="FileNotFoundError"):
        HttpExchange(tls_server.url).send(GET, BOUND)


# ---------------------------------------------------------------------------------------------- what is sent


@pytest.mark.usefixtures("trusted")
def test_a_request_is_sent_as_it_is(exchange: HttpExchange, tls_server: TlsServer) -> None:
    body = '{"name": "Müller"}'.encode()
    response = exchange.send(Request("POST", "/a?$filter=b eq 'c'", {"X-Own": "1"}, body), BOUND)
    assert (response.status, response.body) == (200, b"{}")
    assert response.headers["content-length"] == "2"
    (received,) = tls_server.requests
    assert received.line == "POST /a?$filter=b%20eq%20'c' HTTP/1.1"
    assert received.body == body
    assert received.headers == {
        "host": f"127.0.0.1:{tls_server.port}",
        "user-agent": "invoice-from-opportunity",
        "accept-encoding": "gzip",
        "content-length": str(len(body)),
        "x-own": "1",
    }


@given(st.text(st.characters(codec="utf-8")) | st.text("aZ09-._~!#$&'()*+,/:;=?@[] %2C"))
def test_urls_are_encoded_as_by_the_library(text: str) -> None:
    assert encoded(text) == requote_uri(text)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("method", "length"), [("GET", None), ("HEAD", None), ("POST", "0"), ("DELETE", "0")]
)
def test_a_request_without_a_body_says_so_where_one_could_be_expected(
    method: str, length: str | None, exchange: HttpExchange, tls_server: TlsServer
) -> None:
    tls_server.serve = lambda connection: tls_server.respond(connection, b"")
    exchange.send(Request(method, "/x", {}), BOUND)
    assert tls_server.requests[0].headers.get("content-length") == length


@pytest.mark.usefixtures("trusted")
def test_cookies_redirects_and_netrc_do_not_come_into_play(
    exchange: HttpExchange,
    tls_server: TlsServer,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An affinity cookie would bind all load to one web server; a redirect would take the token elsewhere."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else")
    os.chmod(netrc, 0o600)  # noqa: PTH101 - as the shell would
    monkeypatch.setenv("NETRC", str(netrc))
    tls_server.serve = lambda connection: tls_server.respond(
        connection,
        b"{}",
        "Set-Cookie: ARRAffinity=web-1; Path=/; Secure; HttpOnly",
        f"Location: {tls_server.url}/elsewhere",
        status="302 Found",
    )
    requests.get(tls_server.url, timeout=BOUND, allow_redirects=False, verify=str(certificates.authority))
    assert tls_server.requests.pop().headers["authorization"].startswith("Basic "), "the file is read"
    for _ in range(2):
        assert exchange.send(GET, BOUND).status == 302
    assert [(received.line, received.headers.get("cookie")) for received in tls_server.requests] == [
        ("GET /path HTTP/1.1", None)
    ] * 2
    assert not any("authorization" in received.headers for received in tls_server.requests)


@pytest.mark.usefixtures("way")
def test_head_and_body_are_sent_at_once(exchange: HttpExchange, tls_server: TlsServer) -> None:
    """Each piece would be a TLS record, a system call and a packet of its own."""
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        # One read returns one record at most.
        while data := connection.recv(65536):
            received.append(data)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    tls_server.serve = serve
    for _ in range(2):
        assert exchange.send(Request("POST", "/path", {}, b"body"), BOUND).status == 200
    assert [data.partition(b"\r\n\r\n")[2] for data in received] == [b"body", b"body"]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("head", "body", "kind", "said"),
    [
        ("", b"", ConnectionBroken, "ProtocolError"),
        ("nonsense\r\n\r\n", b"", ConnectionBroken, "ProtocolError"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"half", NoResponse, "ProtocolError"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nab", NoResponse, "ProtocolError"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"x\r\n", NoResponse, "ProtocolError"),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n",
            b"half",
            NoResponse,
            "DecodeError",
        ),
    ],
)
def test_what_is_not_a_whole_response_is_none(
    head: str, body: bytes, kind: type[NoResponse], said: str, exchange: HttpExchange, tls_server: TlsServer
) -> None:
    """Only what a connection that died while it was idle looks like is worth a repeat at once."""

    def serve(connection: socket.socket) -> None:
        tls_server.read(connection)
        connection.sendall(head.encode() + body)

    tls_server.serve = serve
    with pytest.raises(NoResponse, match=said) as raised:
        exchange.send(GET, BOUND)
    assert type(raised.value) is kind


# ---------------------------------------------------------------------------------------------- connections


@pytest.mark.usefixtures("way")
def test_connections_are_reused_and_probe_whether_the_peer_is_alive(tls_server: TlsServer) -> None:
    """Load balancers drop idle flows without a sign: a peer that is gone is noticed after a minute."""
    exchange = HttpExchange(tls_server.url)
    for _ in range(3):
        exchange.send(GET, BOUND)
    assert tls_server.connections == 1
    assert exchange._pool is not None
    connection: Any = exchange._pool._get_conn()
    # TLS within a proxy's TLS is not a socket itself.
    connected: socket.socket = getattr(connection.sock, "socket", connection.sock)
    assert connected.gettimeout() is None, "only the deadline bounds a response"
    assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "the library's own option stays"
    if hasattr(socket, "TCP_KEEPIDLE"):
        idle, interval, probes = (
            connected.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * probes == 60
    connection.close()
    exchange.close()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("head", "connections"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 1),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", 2),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 2),
    ],
)
def test_a_connection_is_left_if_the_peer_asks_for_it(
    head: str, connections: int, exchange: HttpExchange, tls_server: TlsServer
) -> None:
    """The peer itself keeps it open here: what it asked for counts, not what happens to be seen of it."""

    def serve(connection: socket.socket) -> None:
        while tls_server.read(connection) is not None:
            connection.sendall(head.encode())

    tls_server.serve = serve
    for _ in range(2):
        assert exchange.send(GET, BOUND).body == b"x"
    assert tls_server.connections == connections


@pytest.mark.usefixtures("trusted")
def test_the_most_recently_used_connection_is_used_first(
    exchange: HttpExchange, tls_server: TlsServer
) -> None:
    """So that those of a peak become idle and are closed; until then they are kept for the next peak."""
    both = threading.Barrier(2)
    used: list[int] = []

    def serve(connection: socket.socket) -> None:
        number = tls_server.connections
        while tls_server.read(connection) is not None:
            if len(tls_server.requests) not in (3, 4, 5):
                both.wait(BOUND)
            used.append(number)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    tls_server.serve = serve
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: exchange.send(GET, BOUND), range(2)))
    for _ in range(3):
        exchange.send(GET, BOUND)
    assert len(set(used[2:])) == 1
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: exchange.send(GET, BOUND), range(2)))
    assert tls_server.connections == 2


@pytest.mark.usefixtures("way")
def test_a_connection_that_was_idle_for_long_is_not_used_again(tls_server: TlsServer) -> None:
    assert HttpExchange("https://host.example")._max_idle == 60, (
        "load balancers drop idle flows after some four minutes"
    )
    for max_idle, connections in ((BOUND, 1), (0.0, 3)):
        exchange = HttpExchange(tls_server.url, max_idle=max_idle)
        tls_server.connections = 0
        for _ in range(3):
            exchange.send(GET, BOUND)
        assert tls_server.connections == connections
        exchange.close()


# ---------------------------------------------------------------------------------------------- deadlines


LONG = 60_000 * b"x"


@dataclass(frozen=True)
class Peer:
    """Reads a request unless `reads` is false, sends something at once, then bytes one by one, and then nothing."""

    at_once: bytes = b""
    dribbled: bytes = b""
    reads: bool = True

    def __call__(self, server: TlsServer, connection: socket.socket) -> None:
        if self.reads:
            server.read(connection)
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(self.at_once)
        server.dribble(connection, self.dribbled)
        server.wait()


SILENT = Peer()
DRIBBLES_HEAD = Peer(dribbled=b"HTTP/1.1 200 OK\r\nX: " + LONG)
NEVER_READS = Peer(reads=False)
PEERS = {
    "silent": SILENT,
    "dribbles head": DRIBBLES_HEAD,
    "dribbles headers": Peer(
        dribbled=b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(9000))
    ),
    "dribbles body": Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", LONG),
    "dribbles last body": Peer(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", LONG),
    "never reads": NEVER_READS,
}
# The header of a long handshake record, and then its bytes one by one.
DRIBBLES_HANDSHAKE = Peer(dribbled=b"\x16\x03\x03\x3f\xff" + bytes(16383), reads=False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_response_ends_by_the_deadline(peer: Peer, exchange: HttpExchange, tls_server: TlsServer) -> None:
    """Each read is in time, the whole is not: the library's own timeouts would let it go on for minutes."""
    tls_server.serve = lambda connection: peer(tls_server, connection)
    started = time.monotonic()
    with pytest.raises(NoResponse, match=r"^timeout$"):
        exchange.send(Request("POST", "/path", {}, bytes(1 << 25)), SOON)
    assert time.monotonic() - started < BOUND
    tls_server.serve = lambda connection: tls_server.respond(connection, b'{"a": 1}')
    assert exchange.send(GET, BOUND).body == b'{"a": 1}', "the next request is served"


@pytest.mark.parametrize("peer", [NEVER_READS, DRIBBLES_HANDSHAKE], ids=["silent", "dribbles"])
def test_a_handshake_ends_by_the_deadline(peer: Peer, plain_server: TlsServer) -> None:
    plain_server.serve = lambda connection: peer(plain_server, connection)
    with pytest.raises(NoResponse, match="timeout"):
        HttpExchange(f"https://127.0.0.1:{plain_server.port}").send(GET, SOON)
    plain_server.cut_off()


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    "peer", [SILENT, DRIBBLES_HEAD, NEVER_READS], ids=["silent", "dribbles", "never reads"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_hangs_is_left_at_the_deadline(
    peer: Peer, scheme: str, plain_server: TlsServer, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = plain_server if scheme == "http" else tls_server
    proxy.serve = lambda connection: peer(proxy, connection)
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
    with pytest.raises(NoResponse, match="timeout"):
        HttpExchange("https://host.example").send(GET, SOON)
    proxy.cut_off()


@pytest.mark.usefixtures("trusted")
def test_a_proxy_without_a_scheme_is_one_without_tls(
    plain_server: TlsServer, exchange: HttpExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_server.serve = plain_server.tunnel
    monkeypatch.setenv("HTTPS_PROXY", f"name:secret@127.0.0.1:{plain_server.port}")
    assert exchange.send(GET, BOUND).status == 200
    assert plain_server.requests[0].line.startswith("CONNECT ")
    assert plain_server.requests[0].headers["proxy-authorization"] == "Basic bmFtZTpzZWNyZXQ="


def test_an_endpoint_without_tls_is_asked_directly(
    plain_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity's is on the same machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    exchange = HttpExchange(f"http://127.0.0.1:{plain_server.port}")
    assert exchange.send(GET, BOUND).status == 200
    plain_server.serve = lambda connection: SILENT(plain_server, connection)
    exchange.close()
    with pytest.raises(NoResponse, match="timeout"):
        exchange.send(GET, SOON)
    exchange.close()


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_hundred_hung_requests_do_not_keep_the_next_one_from_being_served(
    peer: Peer, exchange: HttpExchange, tls_server: TlsServer
) -> None:
    tls_server.serve = lambda connection: peer(tls_server, connection)
    before = threading.active_count()

    def hang(_: int) -> None:
        with pytest.raises(NoResponse):
            exchange.send(Request("POST", "/path", {}, bytes(1 << 22)), SOON)

    with ThreadPoolExecutor(25) as pool:
        list(pool.map(hang, range(100)))
    tls_server.cut_off()
    tls_server.serve = lambda connection: tls_server.respond(connection, b"{}")
    assert exchange.send(GET, BOUND).status == 200
    ours = [thread for thread in threading.enumerate() if thread.name == "http connection"]
    assert len(ours) <= 1, f"{before} threads before"


class HangingResolver:
    """Name resolution that does not end before it is released; every name is one of this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.asked = 0
        self._original = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the signature is the library's
        if host != "127.0.0.1":
            self.asked += 1
            self.released.wait(BOUND)
        return self._original("127.0.0.1", *args, **kwargs)


@pytest.mark.usefixtures("trusted")
def test_hanging_name_resolution_blocks_a_bounded_number_of_threads_and_no_caller(
    exchange: HttpExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = HangingResolver(monkeypatch)
    hanging = HttpExchange("https://host.example")

    def hang(_: int) -> None:
        with pytest.raises(NoResponse, match="timeout"):
            hanging.send(GET, SOON)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(hang, range(100)))
    blocked = [thread for thread in threading.enumerate() if thread.name == "http connection"]
    assert 0 < len(blocked) == resolver.asked <= 32
    resolver.released.set()
    assert exchange.send(GET, BOUND).status == 200


def test_a_connection_that_comes_too_late_is_closed(
    plain_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert connection.recv(1) == b""
        closed.set()

    plain_server.serve = serve
    resolver = HangingResolver(monkeypatch)
    with pytest.raises(NoResponse, match="timeout"):
        HttpExchange(f"http://host.example:{plain_server.port}").send(GET, 0.1)
    resolver.released.set()
    assert closed.wait(BOUND)


def test_a_host_that_does_not_exist_or_does_not_listen_is_a_broken_connection(tls_server: TlsServer) -> None:
    nobody_listens = tls_server.url
    tls_server.stop()
    for origin, said in (
        ("https://no-such-host.invalid", "NameResolutionError"),
        (nobody_listens, "NewConnectionError"),
    ):
        with pytest.raises(ConnectionBroken, match=said):
            HttpExchange(origin).send(GET, BOUND)


def test_a_proxy_that_cannot_be_one_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://[broken")
    with pytest.raises(NoResponse, match="ProxySchemeUnknown"):
        HttpExchange("https://host.example").send(GET, BOUND)


def test_the_connections_that_are_kept_suffice_for_a_worker() -> None:
    assert http_exchange._MAX_KEPT >= 32
