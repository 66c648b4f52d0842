"""The server itself: who may connect, how it stops and starts again, and many clients at once."""

import gc
import socket
import ssl
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import trustme
from amqp_client import Refused, section
from azure.servicebus import ServiceBusMessage
from azure.servicebus.exceptions import (
    MessageLockLostError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
)

from sandbox.service_bus import Broker, EventKind, ServiceBusServer
from sandbox.service_bus import Message as OurMessage
from sandbox.service_bus.amqp.performatives import Flow

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access


# Who may connect


def test_a_key_that_is_wrong_is_refused(access: "Access") -> None:
    wrong = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=WRONG"
    with pytest.raises(ServiceBusAuthenticationError):
        access.sender(client=access.client(key=wrong))


def test_a_connection_string_works_over_tls(tls: "Access") -> None:
    key = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE"
    tls.sender(client=tls.client(key=key)).send_messages(ServiceBusMessage("hello"))
    assert tls.broker.counts("plain").active == 1


def test_a_key_gives_its_rights_and_no_others(plain: "Access") -> None:
    client = plain.client(key="SharedAccessKeyName=listener;SharedAccessKey=bGlzdGVu")
    plain.broker.send("plain", OurMessage(b"for listeners"))
    assert str(plain.receive(plain.receiver(client=client))[0]) == "for listeners"
    with pytest.raises(ServiceBusAuthorizationError, match="'Send' claim"):
        plain.sender(client=client)


@pytest.mark.parametrize(
    ("token", "error"),
    [("bad", ServiceBusAuthenticationError), ("without-role", ServiceBusAuthorizationError)],
)
def test_a_token_that_is_not_good_or_has_no_role_is_refused(
    tls: "Access", token: str, error: type[ServiceBusError]
) -> None:
    with pytest.raises(error):
        tls.sender(client=tls.client(token=token))


def test_without_a_token_no_link_is_attached(plain: "Access") -> None:
    with plain.amqp_client() as client:
        client.log_in()
        client.open()
        for handle, attach in enumerate((client.attach_sender, client.attach_receiver)):
            with pytest.raises(Refused, match="unauthorized-access"):
                attach("plain", handle)


def test_a_key_may_come_as_user_name_and_password(plain: "Access") -> None:
    with plain.amqp_client() as client:
        client.log_in_with_key().attach_sender("plain")
        client.send(section(0x75, b"hello"))
    assert plain.broker.peek("plain")[0].message.body == b"hello"
    with plain.amqp_client() as client, pytest.raises(Refused):
        client.log_in("PLAIN", b"\0RootManageSharedAccessKey\0WRONG")


def test_credit_that_cannot_be_used_is_given_back(plain: "Access") -> None:
    """A client that drains knows afterwards that nothing more is coming."""
    plain.broker.send("plain", OurMessage(b"the only one"))
    with plain.amqp_client() as client:
        client.log_in_with_key().attach_receiver("plain")
        client.give_credit(5, drain=True)
        assert b"the only one" in client.receive()[1]
        flow = client.expect(Flow)
    assert (flow.handle, flow.link_credit, flow.delivery_count, flow.drain) == (0, 0, 5, True)


# What is refused


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"AMQP\x03\x01\x00\x00\xff\xff\xff\xff\x02\x01\x00\x00",
        b"AMQP\x03\x01\x00\x00\x00\x00\x00\x0c\x02\x01\x00\x00\x00\x53\x41\xc0",
        b"AMQP\x00\x01\x00\x00" + b"\xff" * 64,
    ],
)
def test_noise_ends_the_connection_and_nothing_else(plain: "Access", noise: bytes) -> None:
    with plain.amqp_client() as client:
        client.socket.sendall(noise)
        assert len(client.end()) < 1000
    plain.sender().send_messages(ServiceBusMessage("still there"))


def test_other_than_loopback_addresses_are_refused(broker: Broker) -> None:
    for host in ("0.0.0.0", "192.168.0.1", "::"):  # noqa: S104 - that it is refused is the point
        with pytest.raises(ValueError, match="loopback"):
            ServiceBusServer(broker, host=host)


def test_a_port_that_is_taken_is_an_error(broker: Broker, plain: "Access") -> None:
    with pytest.raises(OSError, match="in use"):
        ServiceBusServer(broker, port=plain.server.port).start()


def test_a_client_gets_heartbeats_within_its_own_limit(plain: "Access") -> None:
    with plain.amqp_client() as client:
        client.open(idle_time_out=400)
        assert client.socket.recv(8) == b"\x00\x00\x00\x08\x02\x00\x00\x00"


# Stopping and starting again


def test_a_stop_waits_for_no_client_and_leaves_nothing(broker: Broker) -> None:
    server = ServiceBusServer(broker)
    before = set(threading.enumerate())
    server.start()
    [thread] = set(threading.enumerate()) - before
    with socket.create_connection((server.host, server.port)):
        server.stop()  # raises where a client delays it
    assert not thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    server.stop()


@contextmanager
def everything_closed() -> Iterator[None]:
    """Fail where asyncio had to close a connection that no code owned any more."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(each.message) for each in caught if "transport" in str(each.message)] == []


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, broker: Broker, authority: trustme.CA) -> ServiceBusServer:
    if request.param == "plain":
        return ServiceBusServer(broker)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return ServiceBusServer(broker, ssl_context=context)


def has_ended(client: socket.socket) -> bool:
    """Return whether the server ended the connection, rather than leaving the client on it."""
    try:
        while client.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_client_that_is_accepted_while_the_server_stops_is_disconnected(server: ServiceBusServer) -> None:
    with everything_closed(), ExitStack() as opened:
        server.start()
        occupied, goes_on = threading.Event(), threading.Event()
        assert server._loop is not None
        server._loop.call_soon_threadsafe(occupied.set)
        server._loop.call_soon_threadsafe(goes_on.wait, 10)
        assert occupied.wait(10)
        # The server handles both in one turn when it goes on: these clients and the request to stop.
        clients = [
            opened.enter_context(socket.create_connection((server.host, server.port), 5)) for _ in range(5)
        ]
        stop = threading.Thread(target=server.stop)
        stop.start()
        goes_on.set()
        stop.join(10)
        assert not stop.is_alive()
        assert all(has_ended(client) for client in clients)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
def test_a_client_that_has_not_sent_its_first_frame_is_disconnected(
    server: ServiceBusServer, said: bytes
) -> None:
    """Neither a client that sends nothing nor one in the middle of a TLS handshake delays a stop."""
    with everything_closed(), ExitStack() as opened:
        server.start()
        clients = [
            opened.enter_context(socket.create_connection((server.host, server.port), 5)) for _ in range(5)
        ]
        for client in clients:
            client.sendall(said)
        for _ in range(10):
            server.waiting_receivers("plain")  # the server has run so often, and has accepted every client
        server.stop()  # raises where a client delays it
        assert all(has_ended(client) for client in clients)


def test_a_stop_leaves_nothing_while_clients_keep_connecting(server: ServiceBusServer) -> None:
    over = threading.Event()

    def keep_coming() -> None:
        while not over.is_set():
            with suppress(ConnectionError), socket.create_connection((server.host, server.port), 5) as client:
                client.sendall(b"AMQP\x03\x01\x00\x00")

    with everything_closed(), ThreadPoolExecutor(4) as pool:
        server.start()
        clients = [pool.submit(keep_coming) for _ in range(4)]
        try:
            for _ in range(25):
                server.stop()
                server.start()
        finally:
            over.set()
            server.stop()
        for each in clients:
            each.result(10)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_new_server_has_the_messages_and_locks_of_the_old_one(severed: "Access") -> None:
    severed.sender().send_messages([ServiceBusMessage("locked"), ServiceBusMessage("free")])
    first = severed.receiver(prefetch_count=0)  # with credit for one
    [locked] = severed.receive(first)
    port = severed.server.port
    severed.server.stop()
    severed.server = severed.opened.enter_context(
        ServiceBusServer(severed.broker, port=port, authenticator=severed.server.authenticator)
    )
    second = severed.receiver(client=severed.client())
    assert [str(message) for message in severed.receive(second)] == ["free"]
    severed.advance(seconds=31)
    again = severed.receive(second, 2)
    assert {(str(message), message.delivery_count) for message in again} == {("locked", 1), ("free", 1)}
    with pytest.raises((MessageLockLostError, ServiceBusError)):
        first.complete_message(locked)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sender_survives_cut_connections(severed: "Access") -> None:
    sender = severed.sender(client=severed.client(retry_total=2))
    sender.send_messages(ServiceBusMessage("before"))
    severed.server.drop_connections()
    sender.send_messages(ServiceBusMessage("after"))
    assert severed.broker.counts("plain").active == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_message_can_be_settled_on_another_link(severed: "Access") -> None:
    """A lock belongs to its token, not to the link on which the message came."""
    severed.broker.send("plain", OurMessage(b"a"), OurMessage(b"b"))
    receiver = severed.receiver(client=severed.client(retry_total=2))
    complete, dead_letter = severed.receive(receiver, 2)
    severed.server.drop_connections()
    receiver.complete_message(complete)
    severed.server.drop_connections()
    receiver.dead_letter_message(dead_letter, reason="Bad")
    counts = severed.broker.counts("plain")
    assert (counts.active, counts.dead_letter) == (0, 1)


def test_plain_and_tls_share_a_broker(plain: "Access", tls: "Access") -> None:
    assert plain.broker is tls.broker
    receiver = tls.receiver()
    plain.sender().send_messages(ServiceBusMessage("across"))
    assert str(tls.receive(receiver)[0]) == "across"


# Many at once


def test_receivers_take_turns(plain: "Access") -> None:
    received: Counter[int] = Counter()
    everyone_waits = threading.Barrier(3, timeout=20)

    def work(worker: int) -> None:
        with plain.new_client() as client, client.get_queue_receiver("plain", prefetch_count=100) as receiver:
            everyone_waits.wait()
            while messages := receiver.receive_messages(1, max_wait_time=1):
                received[worker] += 1
                receiver.complete_message(messages[0])

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work, worker) for worker in range(2)]
        everyone_waits.wait()
        plain.eventually(lambda: plain.server.waiting_receivers("plain") == 2)
        plain.broker.send("plain", *(OurMessage(b"x") for _ in range(20)))
        for each in workers:
            each.result(30)
    assert received[0] + received[1] == 20
    assert min(received[0], received[1]) >= 5


def test_hundreds_of_messages_flow_through_many_workers(plain: "Access") -> None:
    """500 messages, 16 receivers, each message once, and no stall: a stall would take a lock's 30 seconds."""
    settled: Counter[int] = Counter()
    plain.broker.observe(
        lambda each: (
            settled.update([each.message.sequence_number]) if each.kind is EventKind.COMPLETED else None
        )
    )

    def work() -> None:
        with plain.new_client() as client, client.get_queue_receiver("plain") as receiver:
            while messages := receiver.receive_messages(1, max_wait_time=2):
                receiver.complete_message(messages[0])

    with (
        ThreadPoolExecutor(16) as pool,
        plain.new_client() as client,
        client.get_queue_sender("plain") as sender,
    ):
        workers = [pool.submit(work) for _ in range(16)]
        for _ in range(50):
            sender.send_messages([ServiceBusMessage(b"x" * 1000) for _ in range(10)])
        for each in workers:
            each.result(25)
    assert len(settled) == 500
    assert set(settled.values()) == {1}


def test_a_clock_that_is_moved_by_hand_is_noticed(plain: "Access") -> None:
    receiver = plain.receiver()
    plain.broker.send(
        "plain", OurMessage(b"due", scheduled_enqueue_time=plain.clock.now() + timedelta(hours=1))
    )
    thread = threading.Timer(0.1, plain.clock.advance, [timedelta(hours=2)])
    thread.start()
    # One call only: each further call would make the broker check its clock, too.
    assert [str(message) for message in receiver.receive_messages(1, max_wait_time=20)] == ["due"]
    thread.join()


def test_a_slow_reader_does_not_hold_up_others(plain: "Access") -> None:
    """One client asks for a thousand large messages and reads none; another one still receives its own."""
    for _ in range(60):
        plain.broker.send("other", OurMessage(b"x" * 200_000))
    plain.receive(plain.receiver("other", prefetch_count=1000))
    plain.sender().send_messages(ServiceBusMessage("quick"))
    assert str(plain.receive(plain.receiver())[0]) == "quick"
