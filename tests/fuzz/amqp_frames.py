"""Fuzzes the Service Bus server with AMQP frames: input ends its own connection and nothing else.

    python tests/fuzz/amqp_frames.py --frames 1000000 --seed 1

Each connection begins properly, with a key, a session and links; then it sends frames: proper ones in any order, ones
with fields of any value and type, ones with bytes changed, cut off or added, and noise. The output must be whole AMQP
frames; a connection that ends has stated why, with a condition; no exception may be raised; and another client must be
able to send and receive as before. The server runs as it does behind its sockets, without the sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/sandbox/service_bus/client")]

from amqp_client import AMQP, SASL, frame, section  # noqa: E402 - the path comes first

from sandbox.service_bus import Authenticator, Broker, Configuration  # noqa: E402
from sandbox.service_bus.amqp import Limits  # noqa: E402
from sandbox.service_bus.amqp.encoding import (  # noqa: E402
    Array,
    Described,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
)
from sandbox.service_bus.amqp.performatives import (  # noqa: E402
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Modified,
    Open,
    Performative,
    Rejected,
    Released,
    SaslInit,
    SaslOutcome,
    Source,
    Target,
    Transfer,
    pack,
    unpack,
)
from sandbox.service_bus.client import Client, Services  # noqa: E402
from sandbox.service_bus.client_socket import ClientSocket, ConnectedClients  # noqa: E402
from sandbox.service_bus.codec import BATCH_FORMAT  # noqa: E402
from sandbox.service_bus.dispatch import Dispatcher  # noqa: E402
from sandbox.service_bus.interception import CarryOut  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTITIES = """{"UserConfig": {"Namespaces": [{"Name": "fuzz",
  "Queues": [{"Name": "q", "Properties": {"MaxDeliveryCount": 2}}, {"Name": "healthy"}],
  "Topics": [{"Name": "t", "Subscriptions": [{"Name": "s"}]}]}]}}"""
ADDRESSES = ["q", "t", "t/Subscriptions/s", "q/$DeadLetterQueue", "q/$management", "$cbs", "missing", ""]
OPERATIONS = [
    "renew-lock", "peek-message", "receive-by-sequence-number", "update-disposition", "schedule-message",
    "cancel-scheduled-message", "enumerate-rules", "add-rule", "remove-rule", "get-message-sessions",
]  # fmt: skip
_MAX_FRAMES_PER_CONNECTION = 200
_CHECK_HEALTH_EVERY = 500  # connections


class Failed(AssertionError):
    """The server did something that no client may cause."""


class FuzzedTransport(asyncio.Transport):
    """Keeps what the server sends; nothing is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.output = bytearray()
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.output += data

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's
        return default


class Fuzzer:
    """Sends frames, and judges what comes back."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - nothing is kept secret
        self._loop = asyncio.new_event_loop()
        self._broker = Broker(Configuration.parse(ENTITIES))
        dispatcher = Dispatcher(self._broker, self._loop)
        authenticator = Authenticator(self._broker.configuration)
        self._services = Services(self._broker, dispatcher, authenticator, CarryOut())
        self.ended: Counter[str] = Counter()
        self.frames = 0

    def close(self) -> None:
        self._services.dispatcher.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def run(self, frames: int) -> None:
        """Send so many frames; raise Failed."""
        connections = 0
        while self.frames < frames:
            self._connection()
            connections += 1
            if connections % _CHECK_HEALTH_EVERY == 0:
                self._check_health()
            # What the server does later, and by time.
            self._loop.run_until_complete(asyncio.sleep(0))
        self._check_health()

    def _connect(self) -> tuple[ClientSocket, FuzzedTransport]:
        transport = FuzzedTransport()
        client = ClientSocket(
            self._loop, Limits(), lambda socket: Client(socket, self._services), ConnectedClients()
        )
        client.connection_made(transport)
        return client, transport

    def _connection(self) -> None:
        client, transport = self._connect()
        client.data_received(self._beginning())
        for _ in range(self._random.randrange(1, _MAX_FRAMES_PER_CONNECTION)):
            data = self._frame()
            self.frames += 1
            try:
                client.data_received(data)
            except Exception as error:
                raise Failed(f"{data.hex()} raised {error!r}") from error
            if transport.is_aborted:
                raise Failed(f"{data.hex()} broke the server")
            if client.amqp.is_closed:
                break
        self.ended[_judge(bytes(transport.output), is_closed=client.amqp.is_closed)] += 1
        client.connection_lost(None)

    def _check_health(self) -> None:
        """Let a well-behaved client send and receive."""
        client, transport = self._connect()
        client.data_received(_login() + _attach("healthy", SENDER, 0) + _attach("healthy", RECEIVER, 1))
        message = section(0x75, b"still works")
        client.data_received(frame(Transfer(0, 0, b"0", 0), message) + frame(Flow(0, 50, 0, 50, 1, 0, 1)))
        client.data_received(frame(Disposition(RECEIVER, 0, settled=True, state=Accepted())))
        if b"still works" not in transport.output or self._broker.counts("healthy").active:
            raise Failed("a well-behaved client cannot send and receive any more")
        client.connection_lost(None)
        for queue in ("q", "t/Subscriptions/s", "q/$DeadLetterQueue"):
            while received := self._broker.receive(queue, 100):
                for each in received:
                    assert each.lock_token is not None
                    self._broker.complete(queue, each.lock_token)

    # What is sent

    def _beginning(self) -> bytes:
        choose = self._random.random
        if choose() < 0.02:
            return self._random.choice([AMQP, SASL, b"", b"GET / HT", self._random.randbytes(8)])
        data = _login()
        for handle, address in enumerate(ADDRESSES):
            data += _attach(address, self._random.choice([SENDER, RECEIVER]), handle)
        return data

    def _frame(self) -> bytes:
        kind = self._random.random()
        if kind < 0.003:
            return self._random.randbytes(self._random.randrange(1, 64))
        data = self._improper() if kind < 0.05 else self._proper()
        return self._damage(data) if self._random.random() < 0.05 else data

    def _proper(self) -> bytes:
        """Return a frame that a client might send, at a time when it may be wrong."""
        # Ending on a handle that is not attached ends the session; the beginning attached these.
        handle = self._random.randrange(len(ADDRESSES) + (self._random.random() < 0.05))
        count = self._random.choice([0, 1, 5, 1000, 2**31, 2**32 - 1])
        delivery = self._random.randrange(20)
        outcome = self._random.choice(
            [
                Accepted(),
                Released(),
                Rejected(),
                Modified(delivery_failed=True),
                Modified(undeliverable_here=True),
                None,
            ]
        )
        performatives: list[Performative] = [
            Transfer(handle, delivery, b"tag", 0, self._random.random() < 0.3, self._random.random() < 0.1),
            Transfer(handle, delivery, b"tag", BATCH_FORMAT),
            Flow(0, 5000, 0, 5000, handle, 0, count, drain=self._random.random() < 0.2, echo=delivery < 3),
            Disposition(RECEIVER, delivery, delivery + self._random.randrange(3), delivery < 10, outcome),
            Disposition(RECEIVER, 0, 2**32 - 1, delivery < 10, outcome),
            Detach(handle, closed=True),
            Attach(f"l{handle}", handle, self._random.random() < 0.5, source=Source("q"), target=Target("q")),
        ]
        if self._random.random() < 0.01:
            performatives = [End(), Begin(None, 0, 5000, 5000), Close(), Open("again")]
        performative = self._random.choice(performatives)
        payload = self._message() if isinstance(performative, Transfer) else b""
        return frame(performative, payload, channel=0 if self._random.random() < 0.995 else 7)

    def _message(self) -> bytes:
        if self._random.random() < 0.2:
            return self._random.randbytes(self._random.randrange(100))
        sections = self._random.sample(range(0x6F, 0x7A), self._random.randrange(6))
        if self._random.random() < 0.5:
            operation = "com.microsoft:" + self._random.choice(OPERATIONS)
            body = {
                name: self._value()
                for name in (
                    "lock-tokens",
                    "sequence-numbers",
                    "messages",
                    "rule-name",
                    "rule-description",
                    "top",
                )
                if self._random.random() < 0.5
            }
            return section(0x74, {"operation": operation}) + section(0x77, body)
        return b"".join(section(code, self._value()) for code in sections)

    def _improper(self) -> bytes:
        """Return a performative with fields of any value."""
        code = self._random.choice([*range(0x10, 0x19), 0x14, 0x12, 0x13, 0x15, 0x1D, 0x24, 0x28, 0x41, 0x99])
        fields = [self._value() for _ in range(self._random.randrange(15))]
        if self._random.random() < 0.5 and fields:
            fields[0] = UInt(self._random.randrange(10))
        return frame(section(code, fields), self._random.randbytes(self._random.randrange(20)))

    def _value(self, depth: int = 0) -> Any:  # noqa: ANN401 - any AMQP value
        make = self._random.choice(_SIMPLE if depth > 2 else [*_SIMPLE, *_COMPOUND])
        return make(self._random, lambda: self._value(depth + 1))

    def _damage(self, data: bytes) -> bytes:
        """Change, cut off or add bytes; a frame's size stays true more often than not."""
        damaged = bytearray(data)
        for _ in range(self._random.randrange(1, 4)):
            damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        if self._random.random() < 0.3:
            damaged = damaged[: self._random.randrange(len(damaged)) + 1]
        if len(damaged) >= 8 and self._random.random() < 0.8:
            damaged[:4] = struct.pack(">I", len(damaged))
        return bytes(damaged)


_SIMPLE: list[Any] = [
    lambda _random, _inner: None,
    lambda random, _inner: random.random() < 0.5,
    lambda random, _inner: UInt(random.choice([0, 1, 7, 2**31, 2**32 - 1])),
    lambda random, _inner: ULong(random.choice([0, 0x24, 2**64 - 1])),
    lambda random, _inner: random.choice([0, -1, 1, 2**62, -(2**63)]),
    lambda random, _inner: UByte(random.randrange(256)),
    lambda random, _inner: Timestamp(random.choice([0, -1, 2**62, 1_700_000_000_000])),
    lambda random, _inner: random.choice([0.0, float("inf"), float("nan")]),
    lambda random, _inner: random.choice(["", "q", "ü" * 200, "x" * 5000]),
    lambda random, _inner: Symbol(random.choice(["com.microsoft:session-filter", "DeadLetterReason", ""])),
    lambda random, _inner: random.randbytes(random.randrange(20)),
    lambda random, _inner: UUID(int=random.randrange(2**128)),
]
_COMPOUND: list[Any] = [
    lambda random, inner: [inner() for _ in range(random.randrange(5))],
    lambda random, inner: {random.choice(["expression", b"key", Symbol("s")]): inner() for _ in range(3)},
    lambda random, inner: Described(ULong(random.choice([0x1D, 0x23, 0x24, 0x25, 0x27, 0x28, 0x30, 0x34])), inner()),
    lambda random, _inner: Described(ULong(random.choice([0x25, 0x27, 0x28])), [None] * random.randrange(12)),
    lambda random, _inner: Array.of(UUID, [UUID(int=random.randrange(9)) for _ in range(random.randrange(3))]),
    lambda random, _inner: Array.of(int, [random.randrange(9) for _ in range(random.randrange(3))]),
]  # fmt: skip


def _login() -> bytes:
    key = b"\0RootManageSharedAccessKey\0SAS_KEY_VALUE"
    return (
        SASL
        + frame(SaslInit("PLAIN", key), kind=1)
        + AMQP
        + frame(Open("fuzz"))
        + frame(Begin(None, 0, 5000, 5000))
    )


def _attach(address: str, role: bool, handle: int) -> bytes:  # noqa: FBT001 - AMQP's name
    source, target = (Source(address), Target("here")) if role else (Source("here"), Target(address))
    count = None if role else 0
    return frame(
        Attach(f"l{handle}", handle, role, source=source, target=target, initial_delivery_count=count)
    )


def _judge(output: bytes, *, is_closed: bool) -> str:
    """Return how a connection ended; raise Failed unless all of it is AMQP, and an end has a reason."""
    last: Any = None
    for last in _performatives(output):  # noqa: B007 - the last one counts
        pass
    if not is_closed:
        return "still open"
    if isinstance(last, Close):
        return "closed by the client" if last.error is None else last.error.name
    if isinstance(last, SaslOutcome):
        return "login refused"
    if last in (SASL, "HTTP"):
        return "not AMQP"
    raise Failed(f"a connection ended with {last!r}")


def _performatives(output: bytes) -> Iterator[Any]:
    while output:
        if output.startswith(b"HTTP"):
            yield "HTTP"
            return
        if output.startswith(b"AMQP"):
            yield output[:8]
            output = output[8:]
            continue
        size, offset, _kind, _channel = struct.unpack_from(">IBBH", output)
        if not 8 <= offset * 4 <= size <= len(output):
            raise Failed(f"the server sent something else than frames: {output[:64].hex()}")
        body, output = output[offset * 4 : size], output[size:]
        if body:
            performative, _ = unpack(body)
            if pack(performative) != body[: len(pack(performative))]:
                raise Failed(f"the server sent a frame that is read back differently: {body[:64].hex()}")
            yield performative


class _Raise(logging.Handler):
    """The server logs a mistake of its own and ends the connection: here it is a failure."""

    def emit(self, record: logging.LogRecord) -> None:
        raise Failed(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)


def fuzz(frames: int, seed: int) -> Counter[str]:
    """Send so many frames; return how the connections ended. Raises Failed."""
    logger = logging.getLogger("sandbox.service_bus.client_socket")
    handler = _Raise(logging.ERROR)
    logger.addHandler(handler)
    fuzzer = Fuzzer(seed)
    try:
        fuzzer.run(frames)
    finally:
        logger.removeHandler(handler)
        fuzzer.close()
    return fuzzer.ended


def main() -> int:
    """Fuzz, and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    ended = fuzz(arguments.frames, arguments.seed)
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{arguments.frames} frames in {seconds:.0f} s on {ended.total()} connections, which ended:\n"
    )
    for how, count in ended.most_common():
        sys.stdout.write(f"{count:8} {how}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
