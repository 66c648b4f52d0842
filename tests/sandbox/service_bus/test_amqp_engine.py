"""The AMQP engine without sockets: frames in, frames and events out."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from amqp_client import AMQP, SASL, frame

from sandbox.service_bus.amqp import (
    Authenticating,
    Condition,
    Connection,
    CreditReceived,
    DeliveryUpdated,
    Event,
    ForeignProtocol,
    Limits,
    LinkAttached,
    LinkDetached,
    MessageReceived,
    Opened,
    ReceiverLink,
    SenderLink,
)
from sandbox.service_bus.amqp.encoding import Described, Symbol, ULong, encode
from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    Begin,
    Close,
    Coordinator,
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
    SaslMechanisms,
    SaslOutcome,
    Source,
    Target,
    Transfer,
    distance,
    unpack,
)

LIMITS = Limits(
    container_id="engine",
    max_frame_size=4096,
    channel_max=9,
    handle_max=9,
    window=10,
    idle_seconds=60.0,
    info={Symbol("product"): "test"},
)


class Peer:
    """The other side of a connection, and its owner: it accepts everything, and keeps what it got."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.connection = Connection(limits)
        self.events: list[Event] = []
        self.now = 0.0

    def send_bytes(self, data: bytes) -> list[tuple[Any, bytes]]:
        """Send bytes; return the performatives of the response, each with what is behind it."""
        for event in self.connection.receive(data, self.now):
            self.events.append(event)
            if isinstance(event, LinkAttached):
                event.link.accept(max_message_size=2000)
        return list(frames(self.connection.take_output(self.now)))

    def send(
        self, *performatives: Performative, payload: bytes = b"", channel: int = 0
    ) -> list[tuple[Any, bytes]]:
        """Send performatives, each in a frame; return those of the response."""
        return self.send_bytes(b"".join(frame(each, payload, channel=channel) for each in performatives))

    def open(self, **fields: Any) -> "Peer":  # noqa: ANN401 - the fields of an open
        """Open the connection and a session."""
        self.send_bytes(AMQP + frame(Open("peer", **fields)) + frame(Begin(None, 0, 5, 5)))
        self.events.clear()
        return self

    def receiver(self, credit: int = 0) -> SenderLink:
        """Attach a link on which the peer receives."""
        link = self.attach(Attach("in", 0, RECEIVER, source=Source("q"), target=Target("here")))
        assert isinstance(link, SenderLink)
        if credit:
            self.send(Flow(0, 5, 0, 5, 0, 0, credit))
            self.events.clear()
        return link

    def sender(self, credit: int = 100) -> ReceiverLink:
        """Attach a link on which the peer sends."""
        attach = Attach("out", 0, SENDER, source=Source("here"), target=Target("q"), initial_delivery_count=0)
        link = self.attach(attach)
        assert isinstance(link, ReceiverLink)
        if credit:
            link.keep_credit(credit)
            self.output()
        return link

    def attach(self, attach: Attach) -> SenderLink | ReceiverLink:
        """Attach a link."""
        self.send(attach)
        [attached] = self.events
        self.events.clear()
        assert isinstance(attached, LinkAttached)
        return attached.link

    def output(self) -> list[tuple[Any, bytes]]:
        """Return what the engine sends."""
        return list(frames(self.connection.take_output(self.now)))


@pytest.fixture
def peer() -> Peer:
    return Peer().open()


def frames(data: bytes) -> Iterator[tuple[Any, bytes]]:
    """Yield the performatives of frames, each with what is behind it; protocol headers are skipped."""
    while data:
        if data.startswith(b"AMQP"):
            data = data[8:]
            continue
        size, offset, _kind, _channel = struct.unpack_from(">IBBH", data)
        body, data = data[offset * 4 : size], data[size:]
        if body:
            performative, end = unpack(body)
            yield performative, body[end:]


def only(response: list[tuple[Any, bytes]]) -> Any:  # noqa: ANN401 - a performative
    [(performative, _)] = response
    return performative


# Beginning


def test_a_connection_without_sasl_begins_with_amqp() -> None:
    peer = Peer()
    assert peer.connection.take_output(0) == b""
    [(opened, _)] = peer.send_bytes(AMQP + frame(Open("peer", properties={"product": "x"})))
    assert (opened.container_id, opened.max_frame_size, opened.channel_max) == ("engine", 4096, 9)
    assert opened.idle_time_out == 60_000
    assert peer.events == [Opened({"product": "x"})]


def test_bytes_may_come_one_by_one() -> None:
    peer = Peer()
    data = AMQP + frame(Open("peer")) + frame(Begin(None, 0, 5, 5))
    responses = [each for index in range(len(data)) for each in peer.send_bytes(data[index : index + 1])]
    assert [type(performative) for performative, _ in responses] == [Open, Begin]


def test_sasl_offers_mechanisms_and_asks_the_owner() -> None:
    peer = Peer()
    assert only(peer.send_bytes(SASL)).mechanisms.items == ("PLAIN", "ANONYMOUS", "EXTERNAL")
    peer.send_bytes(frame(SaslInit("PLAIN", b"\0user\0key"), kind=1))
    assert peer.events == [Authenticating("PLAIN", b"\0user\0key")]
    peer.connection.accept_login()
    assert only(peer.output()) == SaslOutcome(0)
    assert isinstance(only(peer.send_bytes(AMQP + frame(Open("peer")))), Open)


@pytest.mark.parametrize(
    "data",
    [
        frame(SaslInit("UNKNOWN"), kind=1),
        frame(Open("peer")),
        frame(SaslInit("PLAIN"), kind=0),
        frame(b"\x00\x53\x41\xc0\x00", kind=1),
        b"\xff" * 16,
    ],
    ids=["unknown mechanism", "not SASL", "AMQP frame", "malformed", "noise"],
)
def test_an_invalid_login_is_refused(data: bytes) -> None:
    peer = Peer()
    response = peer.send_bytes(SASL + data)
    assert isinstance(response[0][0], SaslMechanisms)
    assert response[1][0] == SaslOutcome(1)
    assert peer.connection.is_closed


def test_a_foreign_protocol_is_refused_with_what_is_spoken_or_in_the_owners_words() -> None:
    connection = Connection(LIMITS)
    assert list(connection.receive(b"AMQP\x02\x01\x00\x00", 0)) == [ForeignProtocol(b"AMQP\x02\x01\x00\x00")]
    assert (connection.is_closed, connection.take_output(0)) == (True, SASL)
    connection = Connection(LIMITS)
    for event in connection.receive(b"GET / HTTP/1.1", 0):
        assert event == ForeignProtocol(b"GET / HT")
        connection.reject(b"no")
    assert (connection.is_closed, connection.take_output(0)) == (True, b"no")


# Sending


def test_a_message_is_sent_and_settled(peer: Peer) -> None:
    link = peer.receiver(credit=2)
    delivery = link.send(b"tag", b"payload", context="mine")
    [(transfer, payload)] = peer.output()
    assert (transfer.handle, transfer.delivery_id, transfer.delivery_tag) == (0, 0, b"tag")
    assert (transfer.settled, transfer.more, payload) == (False, False, b"payload")
    assert (link.credit, link.can_send) == (1, True)
    peer.send(Disposition(RECEIVER, 0, state=Accepted()))
    assert peer.events == [DeliveryUpdated(delivery, Accepted())]
    delivery.settle(Accepted())
    delivery.settle(Released())
    disposition = only(peer.output())
    assert (disposition.role, disposition.first, disposition.last) == (SENDER, 0, 0)
    assert disposition.settled
    assert isinstance(disposition.state, Accepted)


def test_a_peer_that_has_settled_expects_nothing(peer: Peer) -> None:
    delivery = peer.receiver(credit=2).send(b"tag", b"payload")
    peer.send(Disposition(RECEIVER, 0, settled=True, state=Modified(undeliverable_here=True)))
    [updated] = peer.events
    assert isinstance(updated, DeliveryUpdated)
    assert updated.state.undeliverable_here is True
    delivery.settle(Accepted())
    assert peer.output()[1:] == []


def test_a_range_of_deliveries_is_settled_at_once_however_wide(peer: Peer) -> None:
    link = peer.receiver(credit=5)
    deliveries = [link.send(b"%d" % number, b"x") for number in range(3)]
    peer.send(Disposition(RECEIVER, 1, 2**32 - 1, state=Accepted()))
    assert [each.delivery for each in peer.events if isinstance(each, DeliveryUpdated)] == deliveries[1:]


def test_outcomes_of_consecutive_deliveries_are_stated_together(peer: Peer) -> None:
    peer.sender()
    transfers = [Transfer(0, number, b"%d" % number, 0) for number in (5, 6, 7, 3)]
    peer.send(*transfers, payload=b"x")
    for event in peer.events:
        assert isinstance(event, MessageReceived)
        event.delivery.settle(Accepted())
    assert [(each.first, each.last) for each, _ in peer.output() if isinstance(each, Disposition)] == [
        (5, 7),
        (3, 3),
    ]


def test_outcomes_with_details_are_stated_each_by_itself(peer: Peer) -> None:
    peer.sender()
    peer.send(Transfer(0, 0, b"0", 0), Transfer(0, 1, b"1", 0), payload=b"x")
    for event in peer.events:
        assert isinstance(event, MessageReceived)
        event.delivery.settle(Rejected(Condition("test:refused", "no")))
    dispositions = [each for each, _ in peer.output() if isinstance(each, Disposition)]
    assert [each.first for each in dispositions] == [0, 1]
    assert dispositions[1].state.error.name == "test:refused"


def test_a_large_message_is_sent_in_frames_that_the_peer_can_take() -> None:
    peer = Peer().open(max_frame_size=512)
    link = peer.receiver(credit=1)
    whole = bytes(range(256)) * 4
    link.send(b"t" * 32, whole)
    response = peer.output()
    assert [transfer.more for transfer, _ in response] == [True, True, False]
    assert [transfer.delivery_id for transfer, _ in response] == [0, None, None]
    assert b"".join(payload for _, payload in response) == whole
    assert all(len(frame(*each)) <= 512 for each in response)


def test_the_peers_window_holds_frames_back_until_it_opens(peer: Peer) -> None:
    link = peer.receiver(credit=100)
    for number in range(5):
        link.send(b"%d" % number, b"x")
    assert not link.can_send
    link.send(b"5", b"x")
    assert len(peer.output()) == 5
    peer.events.clear()
    response = peer.send(Flow(5, 3, 0, 5))
    assert [transfer.delivery_id for transfer, _ in response] == [5]
    assert peer.events == [CreditReceived(link)]
    assert link.can_send


def test_frames_that_the_peer_has_not_seen_count_against_its_window(peer: Peer) -> None:
    link = peer.receiver(credit=100)
    for number in range(4):
        link.send(b"%d" % number, b"x")
    peer.send(Flow(2, 3, 0, 5))
    link.send(b"4", b"x")
    assert not link.can_send


def test_a_window_as_wide_as_it_can_be_stays_open(peer: Peer) -> None:
    link = peer.receiver(credit=2**32 - 1)
    peer.send(Flow(0, 2**32 - 1, 0, 5))
    assert (link.credit, link.can_send) == (2**32 - 1, True)


def test_credit_is_counted_from_what_the_peer_has_seen(peer: Peer) -> None:
    link = peer.receiver(credit=5)
    link.send(b"0", b"x")
    peer.send(Flow(0, 5, 0, 5, 0, 0, 3))
    assert link.credit == 2
    peer.send(Flow(1, 5, 0, 5, 0, 1, 0))
    assert link.credit == 0


def test_a_peer_that_drains_gets_its_credit_back(peer: Peer) -> None:
    link = peer.receiver(credit=5)
    link.send(b"0", b"x")
    peer.output()
    peer.send(Flow(1, 5, 0, 5, 0, 1, 4, drain=True))
    link.give_back_credit()
    flow = only(peer.output())
    assert (flow.handle, flow.delivery_count, flow.link_credit, flow.drain) == (0, 5, 0, True)
    link.give_back_credit()
    assert peer.output() == []


@pytest.mark.parametrize("handle", [0, None])
def test_an_echo_is_confirmed_with_the_state(peer: Peer, handle: int | None) -> None:
    peer.receiver(credit=5)
    flow = only(peer.send(Flow(0, 5, 0, 5, handle, None if handle is None else 0, 7, echo=True)))
    assert (flow.handle, flow.link_credit) == (handle, None if handle is None else 7)
    assert (flow.next_incoming_id, flow.incoming_window, flow.echo) == (0, 10, False)


# Receiving


def test_a_message_of_several_frames_is_put_together(peer: Peer) -> None:
    peer.sender()
    peer.send_bytes(
        frame(Transfer(0, 3, b"tag", 0x80013700, more=True), b"one ")
        + frame(Transfer(0, more=True), b"two ")
        + frame(Transfer(0, settled=True), b"three")
    )
    [received] = peer.events
    assert isinstance(received, MessageReceived)
    assert received.delivery.payload == b"one two three"
    assert (received.delivery.id, received.delivery.message_format) == (3, 0x80013700)
    received.delivery.settle(Accepted())
    assert peer.output() == []  # it was sent settled


def test_an_aborted_message_is_discarded(peer: Peer) -> None:
    peer.sender()
    peer.send(Transfer(0, 0, b"0", 0, more=True), Transfer(0, aborted=True), payload=b"half")
    peer.send(Transfer(0, 1, b"1", 0), payload=b"whole")
    [received] = peer.events
    assert isinstance(received, MessageReceived)
    assert received.delivery.payload == b"whole"


def test_a_message_that_is_too_large_is_rejected_and_not_kept(peer: Peer) -> None:
    peer.sender()
    for _ in range(3):
        peer.send(Transfer(0, 0, b"0", 0, more=True), payload=b"x" * 1000)
    disposition = only(peer.send(Transfer(0), payload=b"x"))
    assert disposition.state.error == (
        "amqp:link:message-size-exceeded",
        "The message of 3001 bytes exceeds the limit of 2000.",
        {"product": "test"},
    )
    peer.send(Transfer(0, 1, b"1", 0), payload=b"x" * 2000)
    assert [type(event) for event in peer.events] == [MessageReceived]


def test_credit_is_given_again_before_it_is_used_up(peer: Peer) -> None:
    peer.sender(credit=4)
    first = peer.send(*(Transfer(0, number, b"x", 0) for number in range(2)))
    assert first == []
    [(flow, _)] = peer.send(Transfer(0, 2, b"x", 0))
    assert (flow.handle, flow.delivery_count, flow.link_credit, flow.next_incoming_id) == (0, 3, 4, 3)


def test_the_window_is_opened_again_before_it_is_used_up(peer: Peer) -> None:
    peer.sender(credit=100)
    response = peer.send(*(Transfer(0, number, b"x", 0) for number in range(6)))
    assert [(flow.incoming_window, flow.next_incoming_id) for flow, _ in response] == [(10, 6)]


# Ending


def test_a_link_is_refused_with_an_attach_without_a_node_and_a_detach() -> None:
    for role, node in ((RECEIVER, "source"), (SENDER, "target")):
        connection = Peer().open().connection
        attach = Attach("l", 0, role, source=Source("q"), target=Target("q"), initial_delivery_count=0)
        for event in connection.receive(frame(attach), 0):
            assert isinstance(event, LinkAttached)
            event.link.refuse(Condition("test:no", "no"))
        [(attached, _), (detached, _)] = frames(connection.take_output(0))
        assert getattr(attached, node) is None
        assert (detached.closed, detached.error.name) == (True, "test:no")


def test_what_comes_on_a_link_that_this_side_detached_is_ignored(peer: Peer) -> None:
    link = peer.sender()
    link.detach(Condition("test:gone"))
    assert only(peer.output()).error.name == "test:gone"
    assert peer.send(Transfer(0, 0, b"0", 0), payload=b"x") == []
    assert peer.send(Detach(0, closed=True)) == []
    assert peer.events == []


def test_a_link_that_the_peer_detaches_is_detached_and_its_handle_is_free(peer: Peer) -> None:
    link = peer.receiver()
    assert only(peer.send(Detach(0, closed=True))) == Detach(0, closed=True)
    assert peer.events == [LinkDetached(link)]
    peer.events.clear()
    peer.receiver()


def test_a_session_that_ends_ends_its_links(peer: Peer) -> None:
    link = peer.receiver()
    assert isinstance(only(peer.send(End())), End)
    assert peer.events == [LinkDetached(link)]
    assert isinstance(only(peer.send(Begin(None, 0, 5, 5))), Begin)


def test_a_close_is_confirmed(peer: Peer) -> None:
    assert only(peer.send(Close())) == Close(None)
    assert peer.connection.is_closed
    assert peer.connection.is_closed_by_peer


def test_what_the_owner_closes_is_closed_with_its_reason(peer: Peer) -> None:
    peer.connection.close(Condition("test:over", "over"))
    peer.connection.close()
    assert only(peer.output()).error.name == "test:over"
    assert peer.send(Begin(None, 0, 5, 5)) == []


# Silence


def test_a_silent_connection_is_closed(peer: Peer) -> None:
    assert peer.connection.tick(59.9) == 60.0
    peer.now = 30.0
    peer.send_bytes(frame(b""))
    assert peer.connection.tick(60.0) == 90.0
    peer.connection.tick(90.0)
    closed = only(peer.output())
    assert closed.error.name == "amqp:connection:forced"
    assert "inactive for more than the allowed 60000 milliseconds" in closed.error.description


def test_a_peer_with_a_limit_of_its_own_gets_heartbeats_in_time() -> None:
    peer = Peer().open(idle_time_out=10_000)
    assert peer.connection.heartbeat_seconds == 5.0
    assert peer.connection.tick(4.0) == 5.0
    assert peer.connection.take_output(4.0) == b""
    assert peer.connection.tick(5.0) == 10.0
    assert peer.connection.take_output(5.0) == b"\x00\x00\x00\x08\x02\x00\x00\x00"


# What breaks the protocol


def described(code: int | str, *fields: object) -> bytes:
    return encode(Described(Symbol(code) if isinstance(code, str) else ULong(code), list(fields)))


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (struct.pack(">IBBH", 5000, 2, 0, 0), "amqp:connection:framing-error"),
        (struct.pack(">IBBH", 7, 2, 0, 0), "amqp:connection:framing-error"),
        (struct.pack(">IBBH", 8, 1, 0, 0), "amqp:connection:framing-error"),
        (frame(b"", kind=7), "amqp:connection:framing-error"),
        (frame(b"\x00\x53"), "amqp:decode-error"),
        (frame(b"\x40"), "amqp:decode-error"),
        (frame(described(0x99)), "amqp:decode-error"),
        (frame(described(0x14)), "amqp:decode-error"),
        (frame(described(0x14, "handle")), "amqp:decode-error"),
        (frame(described(0x14, b"handle")), "amqp:decode-error"),
        (frame(described(0x14, -1)), "amqp:decode-error"),
        (frame(described(0x14, *[None] * 12)), "amqp:decode-error"),
        (frame(encode(Described(ULong(0x14), {}))), "amqp:decode-error"),
        (frame(described("amqp:transfer:list", None)), "amqp:decode-error"),
        (frame(described(0x17, "no error")), "amqp:decode-error"),
        (frame(described(0x24)), "amqp:not-allowed"),
        (frame(Open("again")), "amqp:not-allowed"),
        (frame(Begin(None, 0, 5, 5)), "amqp:not-allowed"),
        (frame(Begin(None, 0, 5, 5), channel=10), "amqp:connection:framing-error"),
        (frame(Flow(0, 5, 0, 5), channel=3), "amqp:not-allowed"),
        (frame(Attach("x", 10, RECEIVER)), "amqp:connection:framing-error"),
    ],
)  # fmt: skip
def test_what_breaks_the_connection_ends_it_with_a_condition(peer: Peer, data: bytes, condition: str) -> None:
    peer.receiver()
    closed = peer.send_bytes(data)[-1][0]
    assert isinstance(closed, Close)
    assert closed.error is not None
    assert closed.error.name == condition
    assert closed.error.description
    assert closed.error.info == {"product": "test"}
    assert peer.connection.is_closed


@pytest.mark.parametrize("first", [Begin(None, 0, 5, 5), Close()])
def test_a_connection_that_does_not_begin_with_an_open_is_closed(first: Performative) -> None:
    [(opened, _), (closed, _)] = Peer().send_bytes(AMQP + frame(first))
    assert isinstance(opened, Open)
    assert closed.error.name == "amqp:illegal-state"


@pytest.mark.parametrize(
    ("performative", "condition"),
    [
        (Attach("y", 0, RECEIVER), "amqp:session:handle-in-use"),
        (Transfer(5, 0, b"0", 0), "amqp:session:unattached-handle"),
        (Transfer(0, 0, b"0", 0), "amqp:not-allowed"),
        (Flow(0, 5, 0, 5, 5, 0, 1), "amqp:session:unattached-handle"),
        (Detach(5), "amqp:session:unattached-handle"),
    ],
)
def test_what_breaks_a_session_ends_it_with_a_condition(
    peer: Peer, performative: Performative, condition: str
) -> None:
    link = peer.receiver()
    ended = only(peer.send(performative))
    assert isinstance(ended, End)
    assert ended.error is not None
    assert ended.error.name == condition
    assert LinkDetached(link) in peer.events
    assert peer.send(Transfer(0, 1, b"1", 0), payload=b"late") == []
    assert peer.send(End()) == []
    assert isinstance(only(peer.send(Begin(None, 0, 5, 5))), Begin)


def test_more_frames_than_the_window_end_the_session() -> None:
    connection = Connection(Limits(window=0))
    data = AMQP + frame(Open("p")) + frame(Begin(None, 0, 5, 5)) + frame(Transfer(0, 0, b"0", 0))
    list(connection.receive(data, 0))
    *_, (ended, _) = frames(connection.take_output(0))
    assert ended.error.name == "amqp:session:window-violation"


@pytest.mark.parametrize(
    ("credit", "transfer", "condition"),
    [
        (0, Transfer(0, 0, b"0", 0), "amqp:link:transfer-limit-exceeded"),
        (1, Transfer(0), "amqp:not-allowed"),
    ],
)
def test_what_breaks_a_link_detaches_it_with_a_condition(
    peer: Peer, credit: int, transfer: Transfer, condition: str
) -> None:
    link = peer.sender(credit=credit)
    detached = only(peer.send(transfer, payload=b"x"))
    assert (detached.closed, detached.error.name) == (True, condition)
    assert peer.events == [LinkDetached(link)]


# Leniency and details


def test_descriptors_may_be_names() -> None:
    peer = Peer()
    opened = frame(described("amqp:open:list", "peer"))
    begun = frame(described("amqp:begin:list", None, 0, 5, 5))
    assert [type(each) for each, _ in peer.send_bytes(AMQP + opened + begun)] == [Open, Begin]


def test_fields_that_are_left_out_or_null_have_their_defaults() -> None:
    opened, _ = unpack(described(0x10, "peer", None, None))
    assert opened == Open("peer")
    assert opened.max_frame_size == 2**32 - 1


def test_what_a_link_asks_for_is_kept(peer: Peer) -> None:
    filters = {Symbol("filter"): Described(Symbol("name"), "value")}
    source = Source("q", filter=filters, outcomes=[Symbol("amqp:accepted:list")])
    attach = Attach("l", 1, RECEIVER, 1, 1, source, Target("t"), properties={"k": 1})
    attached = only(peer.send(attach))
    assert attached.source == source
    assert (attached.snd_settle_mode, attached.rcv_settle_mode) == (1, 1)
    assert attached.initial_delivery_count == 0
    [event] = peer.events
    assert isinstance(event, LinkAttached)
    assert (event.link.source_address, event.link.target_address) == ("q", "t")
    assert event.link.sends_settled


def test_a_coordinator_has_no_address() -> None:
    link = Peer().open().attach(Attach("l", 1, SENDER, target=Coordinator(), initial_delivery_count=0))
    assert isinstance(link.target, Coordinator)
    assert link.target_address == ""


@pytest.mark.parametrize(
    ("ahead", "behind", "apart"),
    [(5, 3, 2), (3, 5, -2), (0, 2**32 - 1, 1), (2**32 - 1, 0, -1)],
)
def test_serial_numbers_begin_again_after_the_last_one(ahead: int, behind: int, apart: int) -> None:
    assert distance(ahead, behind) == apart
