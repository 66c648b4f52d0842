from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import requests

from shared.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.conftest import Certificates, TlsServer

BOUND = 20.0


@pytest.fixture
def session() -> Iterator[Session]:
    with Session() as session:
        yield session


@pytest.fixture(params=["directly", "by a proxy", "by a proxy with TLS"])
def way(
    request: pytest.FixtureRequest,
    plain_server: TlsServer,
    certificates: Certificates,
    trusted: None,  # noqa: ARG001 - it comes first, and takes REQUESTS_CA_BUNDLE away
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Let requests take a way, and see that they have taken it."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "directly":
        yield
        return
    proxy = plain_server if request.param == "by a proxy" else type(plain_server)(certificates.server)
    proxy.serve = proxy.tunnel
    scheme = "http" if proxy is plain_server else "https"
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authority))
    yield
    proxy.stop()
    assert {told.line.partition(" ")[0] for told in proxy.requests} == {"CONNECT"}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("way", ["directly", "by a proxy"], indirect=True)
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_trust_comes_from_the_environment(
    variable: str, tls_server: TlsServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Companies that inspect TLS set one or the other."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(certificates.authority))
    with Session() as session:
        assert session.get(tls_server.url, timeout=BOUND).json() == {}


def test_who_is_not_trusted_gets_no_request(
    tls_server: TlsServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(requests.exceptions.SSLError):
        session.get(tls_server.url, timeout=BOUND)
    assert tls_server.requests == []


@pytest.mark.usefixtures("trusted")
class TestTrusted:
    @pytest.fixture
    def session(self) -> Iterator[Session]:
        """Make the session after trust has been set up."""
        with Session() as session:
            yield session

    def test_cookies_are_refused(self, tls_server: TlsServer, session: Session) -> None:
        """Dataverse's affinity cookie would bind all load to one web server."""
        tls_server.serve = lambda connection: tls_server.answer(
            connection, b"{}", "Set-Cookie: ARRAffinity=web-1; Path=/; Secure; HttpOnly"
        )
        for _ in range(2):
            session.get(tls_server.url, timeout=BOUND)
        assert not session.cookies
        assert [request.headers.get("cookie") for request in tls_server.requests] == [None, None]

    @pytest.mark.usefixtures("way")
    def test_connections_are_reused_and_ask_whether_the_peer_is_alive(
        self, tls_server: TlsServer, session: Session
    ) -> None:
        """Load balancers drop idle flows without a word."""
        for _ in range(3):
            session.get(tls_server.url, timeout=BOUND)
        assert tls_server.connections == 1
        sock = session._adapter._socket
        assert sock is not None
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "the library's own option stays"
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 4 * 60

    @pytest.mark.usefixtures("way")
    @pytest.mark.parametrize("header", ["X: y", "Connection: close"])
    def test_a_reader_that_waits_for_more_is_freed_from_another_thread(
        self, header: str, tls_server: TlsServer, session: Session
    ) -> None:
        """Whether the connection is kept or ends with the answer."""
        half_sent = threading.Event()

        def serve(connection: socket.socket) -> None:
            tls_server.read(connection)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n{header}\r\n\r\nhalf".encode())
            half_sent.set()
            tls_server.wait()

        tls_server.serve = serve
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(session.get, tls_server.url, timeout=(BOUND, None))
            assert half_sent.wait(BOUND)
            # Again and again: the reader may not have come as far as to read.
            end = time.monotonic() + BOUND
            while not reading.done() and time.monotonic() < end:
                session.cut()
                time.sleep(0.01)
            freed = reading.done()
            tls_server.cut_off()
            with pytest.raises(requests.RequestException):
                reading.result(BOUND)
        assert freed, "nothing but the server's end freed the reader"

    def test_cutting_what_is_not_open_does_nothing(self, tls_server: TlsServer, session: Session) -> None:
        session.cut()
        session.get(tls_server.url, timeout=BOUND)
        session.close()
        session.cut()
        assert session.get(tls_server.url, timeout=BOUND).json() == {}, "it connects anew"

    def test_netrc_does_not_take_the_place_of_an_auth_object(
        self,
        tls_server: TlsServer,
        session: Session,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password else")
        os.chmod(netrc, 0o600)  # noqa: PTH101 - as the shell would
        monkeypatch.setenv("NETRC", str(netrc))

        def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = "Bearer ours"
            return request

        session.get(tls_server.url, timeout=BOUND)
        session.get(tls_server.url, timeout=BOUND, auth=bearer)
        theirs, ours = (request.headers["authorization"] for request in tls_server.requests)
        assert theirs.startswith("Basic "), "the file is read, so the next line proves something"
        assert ours == "Bearer ours"
