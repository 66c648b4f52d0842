"""Sending over sockets with azure-servicebus as it is, before peers that hang at every stage of a connection."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from azure.servicebus import ServiceBusClient, TransportType

from sandbox.clock import MovableClock
from sandbox.service_bus import Broker, Configuration, ServiceBusServer
from shared.clock import Deadline, SystemClock
from shared.deadline_socket import deadline_tls_context
from shared.service_bus import _OLD_LINK_SECONDS, AmqpSender, NotSent, Outgoing

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from tests.unit.conftest import Certificates, TlsServer

BOUND = 20.0
SOON = 0.6
# What the SDK may need beyond the deadline to notice it, on a slow machine.
SLACK = 5.0
# Frames from the broker for a first send: SASL header, mechanisms, outcome, AMQP header, open, begin, two attaches
# and a flow for $cbs, its response and disposition, attach and flow of the sender, disposition of the message.
FRAMES = range(15)
QUEUES = [f"q{number}" for number in range(25)]
ENTITIES = {
    "UserConfig": {
        "Namespaces": [
            {
                "Name": "n",
                "Queues": [{"Name": name} for name in ("won", *QUEUES)],
                "AuthorizationRules": [
                    {"Name": "all", "PrimaryKey": "bm90LWEtcmVhbC1rZXk=", "Rights": ["Manage"]}
                ],
            }
        ]
    }
}
KEY = "Endpoint=sb://127.0.0.1/;SharedAccessKeyName=all;SharedAccessKey=bm90LWEtcmVhbC1rZXk="


class Peer:
    """Passes connections on to a broker, and hangs from some frame of the broker's on.

    `frames`: how many frames pass; None for all, -1 for not even TLS. `trickles`: what follows comes byte by byte,
    else not at all. `silent`: how many connections, counted from the first, pass nothing more from now on.
    """

    def __init__(self, server: TlsServer, context: ssl.SSLContext, broker: ServiceBusServer) -> None:
        self._server = server
        self._context = context
        self._broker = broker
        self.frames: int | None = None
        self.trickles = False
        self.silent = 0
        self.passed = 0
        server.serve = self._serve

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def connections(self) -> int:
        return self._server.connections

    def _serve(self, plain: socket.socket) -> None:
        frames, connection = self.frames, self.connections
        if frames == -1:
            if self.trickles:
                # The header of a long handshake record, and then its bytes one by one.
                self._server.dribble(plain, b"\x16\x03\x03\x3f\xff" + bytes(16383))
            self._server.wait()
            return
        with (
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._broker.port)) as broker,
            broker.makefile("rb") as stream,
        ):
            threading.Thread(target=self._pump, args=(client, broker), daemon=True).start()
            self._pass_frames(stream, client, frames, connection)

    def _pump(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError):
            while received := client.recv(65536):
                broker.sendall(received)
        with suppress(OSError):
            broker.shutdown(socket.SHUT_RDWR)

    def _pass_frames(
        self, stream: BinaryIO, client: socket.socket, frames: int | None, connection: int
    ) -> None:
        number = 0
        while frame := _frame(stream):
            if connection <= self.silent:
                continue
            if frames is not None and number >= frames:
                if self.trickles:
                    self._server.dribble(client, frame)
                    continue
                self._server.wait()
                return
            client.sendall(frame)
            number += 1
            self.passed = max(self.passed, number)


def _frame(stream: BinaryIO) -> bytes:
    """Return a frame, or the header of a protocol; nothing after the end of the connection."""
    head = stream.read(8)
    if not head or head.startswith(b"AMQP"):
        return head
    return head + stream.read(struct.unpack(">I", head[:4])[0] - 8)


@pytest.fixture
def broker() -> Broker:
    return Broker(Configuration.parse(json.dumps(ENTITIES)), MovableClock())


@pytest.fixture
def peer(broker: Broker, plain_server: TlsServer, certificates: Certificates) -> Iterator[Peer]:
    # The end of the broker's server ends what passes frames on.
    with ServiceBusServer(broker) as server:
        yield Peer(plain_server, certificates.server, server)


@pytest.fixture
def sender(peer: Peer, trusted: None) -> Iterator[AmqpSender]:  # noqa: ARG001 - trust comes first
    def connect() -> ServiceBusClient:
        options: dict[str, Any] = {
            "retry_total": 0,
            "ssl_context": deadline_tls_context(),
            # The option for a network appliance: no other one sets the port.
            "custom_endpoint_address": f"sb://127.0.0.1:{peer.port}",
            "transport_type": TransportType.Amqp,
        }
        return ServiceBusClient.from_connection_string(KEY, **options)

    sender = AmqpSender(connect)
    yield sender
    sender.close()


def within(seconds: float) -> Deadline:
    return Deadline.after(SystemClock(), seconds)


def none_left() -> None:
    """Wait until no thread of a sender is left."""
    ours = {"service bus connection", "service bus closing"}
    end = time.monotonic() + BOUND
    while left := ours & {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def test_a_send_takes_as_many_frames_as_these_tests_assume(
    sender: AmqpSender, peer: Peer, broker: Broker
) -> None:
    sender.send("won", Outgoing(b"body", "m-1"), within(BOUND))
    assert broker.counts("won").active == 1
    assert len(FRAMES) - 3 <= peer.passed <= len(FRAMES) + 3


@pytest.mark.parametrize("how", ["silent", "trickling"])
@pytest.mark.parametrize("frames", [-1, *FRAMES])
def test_a_send_ends_by_its_deadline_and_the_next_one_succeeds(
    frames: int, how: str, sender: AmqpSender, peer: Peer, broker: Broker
) -> None:
    peer.frames, peer.trickles = frames, how == "trickling"
    started = time.monotonic()
    with suppress(NotSent):
        sender.send("won", Outgoing(b"", "m-1"), within(SOON))
    assert time.monotonic() - started < SOON + SLACK
    peer.frames = None
    sender.send("won", Outgoing(b"", "m-2"), within(BOUND))
    assert broker.counts("won").active >= 1
    none_left()


def test_a_link_that_falls_silent_after_a_good_send_is_waited_for_once_and_then_replaced(
    sender: AmqpSender, peer: Peer, broker: Broker
) -> None:
    """Nothing tells a silent broker from a slow one but time; those who wait for the same link wait no longer."""
    sender.send("won", Outgoing(b"", "first"), within(BOUND))
    peer.silent = peer.connections
    started = time.monotonic()
    ids = [f"m-{number}" for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda each: sender.send("won", Outgoing(b"", each), within(BOUND)), ids))
    assert time.monotonic() - started < _OLD_LINK_SECONDS + SLACK
    assert {message.message.message_id for message in broker.peek("won", 0, 99)} == {"first", *ids}


@pytest.mark.parametrize(
    ("frames", "how"),
    [
        *((frames, "silent") for frames in (-1, *FRAMES[:-1])),
        *((frames, "trickling") for frames in (-1, 0, 2, 4, 7, 12)),
    ],
)
def test_after_a_hundred_hung_connections_the_next_send_succeeds_at_once(
    frames: int, how: str, sender: AmqpSender, peer: Peer, broker: Broker
) -> None:
    peer.frames, peer.trickles = frames, how == "trickling"

    def hang(number: int) -> None:
        with pytest.raises(NotSent):
            sender.send(QUEUES[number % len(QUEUES)], Outgoing(b"", f"m-{number}"), within(SOON))

    with ThreadPoolExecutor(len(QUEUES)) as pool:
        list(pool.map(hang, range(100)))
    peer.frames = None
    for queue in ("won", QUEUES[0]):
        started = time.monotonic()
        sender.send(queue, Outgoing(b"", "next"), within(BOUND))
        assert time.monotonic() - started < SLACK, "it waited for the hung connections"
        assert broker.counts(queue).active >= 1
    none_left()
