"""Sockets that enforce the deadline of the thread that uses them.

The timeouts of the libraries bound one read each, or nothing: a peer that stays silent or sends a byte now and then
blocks a call for minutes or without end. So `thread_deadline` sets the deadline of the calling thread, and the sockets
here set their timeout to what is left of it before each operation. `http_exchange.py` uses them in its pool,
azure-servicebus takes them through `ssl_context=`. Plain AMQP, which only the emulator's connection string uses, has no
such bound. Name resolution happens before there is a socket: `bounded_call.py` bounds it.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# For a thread without a deadline: no operation of a socket blocks for longer.
DEFAULT_SECONDS = 60.0
_TOLERANCE = 0.05


class CallTimeout(OSError):
    """The deadline has passed; whether the call was carried out is not known.

    Not a TimeoutError: azure-servicebus takes that for "no frame yet" and continues to read.
    """


class _Thread(threading.local):
    deadline: float | None = None
    created: list[socket.socket] | None = None


_thread = _Thread()


@contextmanager
def thread_deadline(seconds: float) -> Iterator[None]:
    """Let the socket operations of this thread end within `seconds`; an earlier deadline around it stays in force."""
    outer = _thread.deadline
    at = time.monotonic() + seconds
    _thread.deadline = at if outer is None else min(at, outer)
    try:
        yield
    finally:
        _thread.deadline = outer


@contextmanager
def created_sockets() -> Iterator[list[socket.socket]]:
    """Yield a list of the TLS sockets that this thread creates in the block: azure-servicebus forgets to close some."""
    created = _thread.created = []
    try:
        yield created
    finally:
        _thread.created = None


def seconds_left() -> float:
    """Return the seconds until the calling thread's deadline; raises CallTimeout if it has passed."""
    if _thread.deadline is None:
        return DEFAULT_SECONDS
    left = _thread.deadline - time.monotonic()
    if left <= 0:
        raise CallTimeout("The deadline of the call has passed.")
    return left


class _DeadlineMixin(socket.socket):
    """Reduces the timeout that a library has set to what is left of the deadline; non-blocking use stays so."""

    _chosen: float | None = None
    _actual = float("inf")

    def settimeout(self, value: float | None) -> None:
        """Remember what the library wants: it reads the timeout and restores it. Each operation applies it."""
        self._chosen = value
        if value == 0.0:
            super().settimeout(0.0)
            self._actual = 0.0

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the signature is the library's
        """Set the timeout to none or to zero."""
        self.settimeout(None if flag else 0.0)

    def gettimeout(self) -> float | None:
        """Return what the library has set."""
        return self._chosen

    def _limit(self) -> None:
        chosen = self._chosen
        if chosen != 0.0:
            left = seconds_left()
            timeout = left if chosen is None or chosen > left else chosen
            # Setting it is a system call, and the deadline need not be exact.
            if not 0.0 <= self._actual - timeout <= _TOLERANCE:
                super().settimeout(timeout)
                self._actual = timeout

    def recv(self, *args: Any) -> bytes:  # noqa: ANN401 - the signature is the library's
        """Receive within the deadline."""
        self._limit()
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:  # noqa: ANN401 - as above
        """Receive within the deadline."""
        self._limit()
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:  # noqa: ANN401 - as above
        """Send within the deadline."""
        self._limit()
        return super().send(*args)

    def sendall(self, *args: Any) -> None:  # noqa: ANN401 - as above
        """Send within the deadline."""
        self._limit()
        super().sendall(*args)


class DeadlineSocket(_DeadlineMixin):
    """A plain socket: for a proxy before TLS, and for the identity's endpoint."""

    @classmethod
    def of(cls, plain: socket.socket) -> DeadlineSocket:
        """Return a socket that replaces a connected one."""
        timeout = plain.gettimeout()
        taken = cls(plain.family, plain.type, plain.proto, fileno=plain.detach())
        taken.settimeout(timeout)
        return taken


class DeadlineTlsSocket(_DeadlineMixin, ssl.SSLSocket):
    """A TLS socket; `SSLContext.sslsocket_class` names it."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        """Shake hands within the deadline."""
        if _thread.created is not None:
            _thread.created.append(self)
        self._limit()
        super().do_handshake(block)

    def unwrap(self) -> socket.socket:
        """End TLS within the deadline."""
        self._limit()
        return super().unwrap()


def deadline_tls_context() -> ssl.SSLContext:
    """Return a client's context that trusts the system and SSL_CERT_FILE; its sockets enforce the deadline."""
    context = ssl.create_default_context()
    context.sslsocket_class = DeadlineTlsSocket
    return context
