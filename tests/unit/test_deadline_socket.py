from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from shared.deadline_socket import (
    DEFAULT_SECONDS,
    CallTimeout,
    DeadlineSocket,
    DeadlineTlsSocket,
    created_sockets,
    deadline_tls_context,
    seconds_left,
    thread_deadline,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.conftest import TlsServer

BOUND = 20.0
# Far above what the machine needs, far below what a library would wait.
SOON = 0.3


@pytest.fixture
def plain(plain_server: TlsServer) -> Iterator[DeadlineSocket]:
    """Connect to a server without TLS; it stays silent."""
    plain_server.serve = lambda _: plain_server.wait()
    with DeadlineSocket.of(socket.create_connection(("127.0.0.1", plain_server.port))) as connected:
        yield connected


@pytest.fixture
def tls(tls_server: TlsServer, trusted: None) -> Iterator[DeadlineTlsSocket]:  # noqa: ARG001 - trust comes first
    """Connect to a server with TLS; it stays silent."""
    tls_server.serve = lambda _: tls_server.wait()
    connection = socket.create_connection(("127.0.0.1", tls_server.port))
    with deadline_tls_context().wrap_socket(connection, server_hostname="127.0.0.1") as connected:
        assert isinstance(connected, DeadlineTlsSocket)
        yield connected


def test_an_inner_deadline_ends_with_its_block_and_never_extends_the_outer_one() -> None:
    assert seconds_left() == DEFAULT_SECONDS
    with thread_deadline(100):
        assert 90 < seconds_left() <= 100
        with thread_deadline(10):
            assert 0 < seconds_left() <= 10
        with thread_deadline(1000):
            assert seconds_left() <= 100
        assert 90 < seconds_left() <= 100
    assert seconds_left() == DEFAULT_SECONDS


def test_after_the_deadline_nothing_is_begun() -> None:
    with thread_deadline(0), pytest.raises(CallTimeout):
        seconds_left()


def fill(connected: socket.socket) -> None:
    """Send until nothing more fits: the peer does not read."""
    while True:
        connected.send(bytes(65536))


OPERATIONS: dict[str, Callable[[socket.socket], object]] = {
    "recv": lambda connected: connected.recv(1),
    "recv_into": lambda connected: connected.recv_into(bytearray(1)),
    "send": fill,
    "sendall": lambda connected: connected.sendall(bytes(1 << 26)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("chosen", [None, BOUND])
def test_an_operation_ends_by_the_deadline(
    operation: Callable[[socket.socket], object],
    kind: str,
    chosen: float | None,
    request: pytest.FixtureRequest,
) -> None:
    """With any timeout of the library, or none."""
    connected: socket.socket = request.getfixturevalue(kind)
    connected.settimeout(chosen)
    with thread_deadline(SOON):
        with pytest.raises(TimeoutError):
            operation(connected)
        with pytest.raises(CallTimeout):
            operation(connected)
    assert connected.gettimeout() == chosen, "the library finds what it has set"


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_shorter_timeout_of_the_library_stays_in_force(kind: str, request: pytest.FixtureRequest) -> None:
    """The AMQP client waits for a frame for a fifth of a second, and then does other things."""
    connected: socket.socket = request.getfixturevalue(kind)
    connected.settimeout(0.01)
    with thread_deadline(BOUND):
        with pytest.raises(TimeoutError):
            connected.recv(1)
        assert seconds_left() > BOUND / 2


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_non_blocking_use_stays_so(kind: str, request: pytest.FixtureRequest) -> None:
    connected: socket.socket = request.getfixturevalue(kind)
    connected.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connected.recv(1)
    connected.setblocking(False)  # noqa: FBT003 - the signature is the library's
    assert connected.gettimeout() == 0.0
    # It blocks nobody, so it is no matter of deadlines.
    for seconds in (BOUND, 0):
        with thread_deadline(seconds), pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
            connected.recv(1)
    connected.setblocking(True)  # noqa: FBT003 - as above
    assert connected.gettimeout() is None
    with thread_deadline(1), pytest.raises(TimeoutError):
        connected.recv(1)


def test_a_handshake_ends_by_the_deadline(plain: DeadlineSocket) -> None:
    # Made before: on a busy machine it can take longer than the deadline.
    context = deadline_tls_context()
    with thread_deadline(SOON), pytest.raises((TimeoutError, CallTimeout)):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_end_of_tls_ends_by_the_deadline(tls: DeadlineTlsSocket) -> None:
    with thread_deadline(SOON), pytest.raises((TimeoutError, CallTimeout)):
        tls.unwrap()


def test_a_thread_without_a_deadline_is_bounded_too(plain: DeadlineSocket) -> None:
    plain.send(b"x")
    # The timeout of the system, not the one that a library has set.
    assert socket.socket.gettimeout(plain) == DEFAULT_SECONDS <= 60


def test_what_comes_in_time_is_received_and_sent(tls_server: TlsServer, trusted: None) -> None:  # noqa: ARG001 - as above
    def echo(connection: socket.socket) -> None:
        connection.sendall(connection.recv(5))

    tls_server.serve = echo
    connection = socket.create_connection(("127.0.0.1", tls_server.port))
    with (
        thread_deadline(BOUND),
        created_sockets() as created,
        deadline_tls_context().wrap_socket(connection, server_hostname="127.0.0.1") as connected,
    ):
        assert created == [connected]
        connected.sendall(b"hello")
        assert connected.recv(5) == b"hello"


def test_a_socket_that_takes_anothers_place_keeps_its_timeout(plain_server: TlsServer) -> None:
    with DeadlineSocket.of(socket.create_connection(("127.0.0.1", plain_server.port), timeout=7)) as taken:
        assert taken.gettimeout() == 7
