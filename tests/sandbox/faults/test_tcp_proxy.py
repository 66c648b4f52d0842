"""The TCP proxy: what becomes of a connection, byte by byte."""

import gc
import socket
import socketserver
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.proxy import TcpProxy
from tests.sandbox.conftest import wait_until

GREETING = bytes(range(256)) * 4


class _Echo(socketserver.BaseRequestHandler):
    """Responds to each piece with a greeting and the piece."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.server.received.append(data)  # type: ignore[attr-defined]
            self.request.sendall(GREETING + data)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 16


class World:
    """A server behind a proxy."""

    def __init__(self, server: _Server, plan: FaultPlan, proxy: TcpProxy) -> None:
        self.plan = plan
        self.proxy = proxy
        self.received: list[bytes] = server.received  # type: ignore[attr-defined]

    @contextmanager
    def connected(self, timeout: float = 5) -> Iterator[socket.socket]:
        """Open a connection through the proxy."""
        with socket.create_connection((self.proxy.host, self.proxy.port), timeout=timeout) as connection:
            yield connection

    def fault(self, kind: FaultKind, **fields: float) -> None:
        """Let the next connection be struck."""
        self.plan.add(FaultRule(Dependency.DATAVERSE, Fault(kind, **fields), When.once(), "connect"))  # type: ignore[arg-type]

    def asked(self, timeout: float = 5) -> bytes:
        """Send a word; return what comes until the connection ends or is silent for a moment."""
        with self.connected(timeout) as connection:
            connection.sendall(b"hello")
            return _read(connection)


def _read(connection: socket.socket, enough: int = len(GREETING) + 5) -> bytes:
    got = b""
    while len(got) < enough and (data := connection.recv(4096)):
        got += data
    return got


@pytest.fixture
def world() -> Iterator[World]:
    plan = FaultPlan()
    with _Server(("127.0.0.1", 0), _Echo) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        host, port = server.server_address[:2]
        with TcpProxy((str(host), port), plan, Dependency.DATAVERSE) as proxy:
            yield World(server, plan, proxy)
            plan.clear()
        server.shutdown()
        thread.join()


def test_bytes_pass_both_ways(world: World) -> None:
    assert world.asked() == GREETING + b"hello"


@pytest.mark.parametrize(
    ("kind", "fields", "received"),
    [
        (FaultKind.REFUSE, {}, []),
        (FaultKind.RESET, {}, []),
        (FaultKind.RESET, {"after": True}, [b"hello"]),
        (FaultKind.SILENT, {"seconds": 0.05}, []),
    ],
)
def test_a_connection_breaks_before_or_after_the_server_acts(
    world: World, kind: FaultKind, fields: dict[str, float], received: list[bytes]
) -> None:
    world.fault(kind, **fields)
    with pytest.raises(ConnectionResetError):
        world.asked()
    assert world.received == received
    assert world.asked() == GREETING + b"hello"


def test_a_response_is_cut_after_so_many_bytes(world: World) -> None:
    world.fault(FaultKind.CUT, bytes=100)
    assert world.asked() == GREETING[:100]
    assert world.received == [b"hello"]


@pytest.mark.parametrize(
    ("kind", "after", "heard"),
    [(FaultKind.SILENT, False, 0), (FaultKind.SILENT, True, 1), (FaultKind.SWALLOW, False, 0)],
)
def test_a_silent_peer_keeps_the_connection(world: World, kind: FaultKind, after: bool, heard: int) -> None:  # noqa: FBT001 - pytest's
    world.fault(kind, after=after)
    with pytest.raises(TimeoutError):
        world.asked(timeout=0.3)
    assert len(world.received) == heard


def test_late_and_dribbled_responses_are_complete(world: World) -> None:
    for kind in (FaultKind.DELAY, FaultKind.DRIBBLE):
        world.fault(kind, seconds=0.05)
        assert world.asked() == GREETING + b"hello"
    assert [entry.fault.kind for entry in world.plan.log] == [FaultKind.DELAY, FaultKind.DRIBBLE]


def test_open_connections_are_cut_and_new_ones_taken(world: World) -> None:
    with world.connected() as connection:
        connection.sendall(b"hello")
        _read(connection)
        world.proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert world.asked() == GREETING + b"hello"


@pytest.mark.parametrize("kind", [None, FaultKind.SILENT, FaultKind.DRIBBLE, FaultKind.SWALLOW])
@pytest.mark.parametrize("way", ["stop", "cut"])
def test_connections_that_end_with_the_proxy_are_no_error_of_it(
    world: World, kind: FaultKind | None, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In any state: asyncio reports the exception of a task to standard error."""
    if kind is not None:
        world.fault(kind, after=True)
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(world.connected())
            connection.sendall(b"hello")
        # All three: one that comes after a cut is let in, and stays.
        wait_until(lambda: len(world.received) >= (2 if kind is FaultKind.SWALLOW else 3))
        getattr(world.proxy, way)()
        with pytest.raises(ConnectionResetError):
            _read(connection, enough=10**6)
    world.proxy.stop()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_who_is_let_in_in_the_moment_of_the_end_is_cut_off(world: World) -> None:
    """The proxy receives new clients and the request to stop at the same time."""
    busy, goes_on = threading.Event(), threading.Event()
    assert world.proxy._loop is not None
    world.proxy._loop.call_soon_threadsafe(busy.set)
    world.proxy._loop.call_soon_threadsafe(goes_on.wait, 10)
    assert busy.wait(10)
    with ExitStack() as opened, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        clients = [opened.enter_context(world.connected()) for _ in range(5)]
        ending = threading.Thread(target=world.proxy.stop)
        ending.start()
        goes_on.set()
        ending.join(10)
        assert [_is_over(client) for client in clients] == [True] * 5
        gc.collect()
    assert [str(each.message) for each in caught if "transport" in str(each.message)] == []


def _is_over(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = unused.getsockname()[:2]
    # The reset may come while the client is still connecting.
    with (
        TcpProxy(nowhere, FaultPlan(), Dependency.DATAVERSE) as proxy,
        pytest.raises(ConnectionResetError),
        socket.create_connection((proxy.host, proxy.port), timeout=5) as connection,
    ):
        connection.recv(1)


def test_a_proxy_listens_on_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback"):
        TcpProxy(("127.0.0.1", 1), FaultPlan(), Dependency.DATAVERSE, host="0.0.0.0")  # noqa: S104 - it is refused
