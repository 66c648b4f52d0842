"""A client that sends exactly the frames that a test names, and shows those that it gets."""

import socket
import struct
from typing import Any, Self, TypeVar

from sandbox.service_bus.amqp.encoding import Described, ULong, decode, encode
from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    SENDER,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    Flow,
    Open,
    Performative,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Source,
    Target,
    Transfer,
    pack,
    unpack,
)

AMQP, SASL = b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00"
WITHIN = 10.0

P = TypeVar("P")


class Refused(Exception):
    """The server ended a link or refused the login."""


def frame(
    performative: Performative | bytes, payload: bytes = b"", *, channel: int = 0, kind: int = 0
) -> bytes:
    """Return a frame's bytes."""
    body = (performative if isinstance(performative, bytes) else pack(performative)) + payload
    return struct.pack(">IBBH", len(body) + 8, 2, kind, channel) + body


def section(code: int, value: object) -> bytes:
    """Return a section of a message, or another described value."""
    return encode(Described(ULong(code), value))


def sections(payload: bytes) -> dict[int, Any]:
    """Return a message's sections by their codes."""
    found, at = {}, 0
    while at < len(payload):
        value, at = decode(payload, at)
        found[int(value.descriptor)] = value.value
    return found


class AmqpClient:
    """A connection with one session on channel 0; a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=WITHIN)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._deliveries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # Beginning

    def log_in(self, mechanism: str = "ANONYMOUS", response: bytes = b"") -> SaslMechanisms:
        """Authenticate; return what the server offered."""
        self.socket.sendall(SASL + frame(SaslInit(mechanism, response), kind=1))
        assert self._take(8) == SASL
        mechanisms = self.expect(SaslMechanisms)
        if self.expect(SaslOutcome).code != 0:
            raise Refused("the login")
        return mechanisms

    def open(self, **fields: Any) -> Open:  # noqa: ANN401 - the fields of an open
        """Open the connection and begin a session."""
        self.socket.sendall(AMQP)
        assert self._take(8) == AMQP
        self.write(Open("test", **fields))
        opened = self.expect(Open)
        self.write(Begin(None, 0, 5000, 5000))
        self.expect(Begin)
        return opened

    def log_in_with_key(self, **fields: Any) -> Self:  # noqa: ANN401 - the fields of an open
        """Authenticate with the namespace's key, open, and begin a session."""
        self.log_in("PLAIN", b"\0RootManageSharedAccessKey\0SAS_KEY_VALUE")
        self.open(**fields)
        return self

    # Links

    def attach_sender(self, address: str, handle: int = 0, target: Any = None, **fields: Any) -> Attach:  # noqa: ANN401
        """Attach a link on which this client sends; raise Refused."""
        target = Target(address) if target is None else target
        self.write(
            Attach(
                f"out-{handle}",
                handle,
                SENDER,
                source=Source(),
                target=target,
                initial_delivery_count=0,
                **fields,
            )
        )
        return self._attached()

    def attach_receiver(self, address: str, handle: int = 0, **fields: Any) -> Attach:  # noqa: ANN401
        """Attach a link on which this client receives; raise Refused."""
        fields = {"source": Source(address), "target": Target(f"here-{handle}"), **fields}
        self.write(Attach(f"in-{handle}", handle, RECEIVER, **fields))
        return self._attached()

    def _attached(self) -> Attach:
        attach = self.expect(Attach)
        if (attach.target if attach.role else attach.source) is None:
            error = self.expect(Detach).error
            raise Refused(f"{error.name}: {error.description}" if error else "without a reason")
        return attach

    def send(self, payload: bytes, handle: int = 0, **fields: Any) -> Disposition:  # noqa: ANN401
        """Send a message in one frame; return what the server made of it."""
        self.write(
            Transfer(
                handle, self._deliveries, b"%d" % self._deliveries, fields.pop("message_format", 0), **fields
            ),
            payload,
        )
        self._deliveries += 1
        return self.expect(Disposition)

    def give_credit(self, credit: int, handle: int = 0, delivery_count: int = 0, **fields: Any) -> None:  # noqa: ANN401
        """Take so many messages."""
        self.write(Flow(0, 5000, 0, 5000, handle, delivery_count, credit, **fields))

    def attach_node(self, address: str) -> None:
        """Attach two links to a node that takes requests."""
        self.attach_sender(address, 10)
        self.attach_receiver(address, 11)
        self.give_credit(100, 11)

    def request(self, operation: str, body: object) -> tuple[dict[str, Any], Any]:
        """Send a request to the node; return the properties and the body of the response."""
        properties = section(0x73, ["id", None, None, None, "here-11"])
        properties += section(0x74, {"operation": f"com.microsoft:{operation}"})
        self.write(Transfer(10, 0, b"request", 0, settled=True), properties + section(0x77, body))
        found = sections(self.receive()[1])
        return found[0x74], found[0x77]

    # Frames

    def write(self, performative: Performative, payload: bytes = b"", channel: int = 0) -> None:
        """Send a frame."""
        self.socket.sendall(frame(performative, payload, channel=channel))

    def read(self) -> tuple[Any, bytes]:
        """Return the next frame's performative and payload; EOFError where the connection ended."""
        size, offset, _kind, _channel = struct.unpack(">IBBH", self._take(8))
        body = self._take(size - 8)[offset * 4 - 8 :]
        if not body:
            return self.read()  # a heartbeat
        performative, end = unpack(body)
        return performative, body[end:]

    def expect(self, kind: type[P]) -> P:
        """Return the next performative of a kind, and skip others; fail where the server closes instead."""
        while True:
            performative, _ = self.read()
            if isinstance(performative, kind):
                return performative
            assert not isinstance(performative, Close), performative

    def receive(self) -> tuple[Transfer, bytes]:
        """Return the next message; its frames are put together."""
        whole = b""
        while True:
            performative, payload = self.read()
            if isinstance(performative, Transfer):
                whole += payload
                if not performative.more:
                    return performative, whole

    def end(self) -> bytes:
        """Return what the server still sends until it closes the connection."""
        return self._buffer + b"".join(iter(lambda: self.socket.recv(4096), b""))

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken
