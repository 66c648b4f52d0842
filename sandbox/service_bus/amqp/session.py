"""One session: windows, delivery ids, handles, and the deliveries whose outcome is open."""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sandbox.service_bus.amqp.events import (
    CreditReceived,
    DeliveryUpdated,
    Event,
    LinkAttached,
    LinkDetached,
    MessageReceived,
)
from sandbox.service_bus.amqp.link import OutgoingDelivery, ReceiverLink, SenderLink
from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    SERIAL,
    Attach,
    Begin,
    Condition,
    Detach,
    Disposition,
    End,
    Flow,
    Performative,
    Transfer,
    distance,
)
from sandbox.service_bus.amqp.violations import ConnectionViolation, LinkViolation, SessionViolation

if TYPE_CHECKING:
    from sandbox.service_bus.amqp.connection import Connection

# The transfer's own fields and its frame's header, at their largest.
_TRANSFER_OVERHEAD = 128


class Session:
    """A session of a connection, begun by the peer."""

    def __init__(self, connection: "Connection", channel: int, begin: Begin) -> None:
        self._connection = connection
        self.channel = channel
        self._links: dict[int, SenderLink | ReceiverLink] = {}
        self._unsettled: dict[int, OutgoingDelivery] = {}
        self._next_incoming_id = begin.next_outgoing_id
        self._incoming_window = connection.limits.window
        self._next_outgoing_id = 0
        self._next_delivery_id = 0
        self._remote_incoming_window = begin.incoming_window
        # Transfers that wait for the peer's window.
        self._waiting: deque[tuple[Transfer, bytes]] = deque()
        # Outcomes of consecutive deliveries, stated together.
        self._outcomes: _Outcomes | None = None
        # Whether this side has ended: what the peer still sends is ignored then.
        self.is_ended = False

    # For links

    @property
    def can_send(self) -> bool:
        """Return whether the peer's window takes a message's first frame now."""
        return self._remote_incoming_window > 0 and not self._waiting

    def send(self, performative: Performative) -> None:
        """Send a performative on this session."""
        self.flush_outcomes()
        if not self.is_ended:
            self._connection.send(self.channel, performative)

    def send_flow(self, flow: Flow) -> None:
        """Send a flow."""
        self._incoming_window = self._connection.limits.window
        self.send(flow)

    def error(self, condition: str, description: str) -> Condition:
        """Return an error with all its fields."""
        return self._connection.error(condition, description)

    def windows(self) -> tuple[int, int, int, int]:
        """Return a flow's first four fields."""
        window = self._connection.limits.window
        return self._next_incoming_id, window, self._next_outgoing_id, window

    def send_message(
        self, link: SenderLink, tag: bytes, payload: bytes, *, settled: bool, context: object
    ) -> OutgoingDelivery:
        """Send a message in as many frames as the peer's frame size demands, when the peer's window permits."""
        delivery = OutgoingDelivery(link, self._next_delivery_id, context)
        self._next_delivery_id = (delivery.id + 1) % SERIAL
        if settled:
            delivery.is_settled = True
        else:
            self._unsettled[delivery.id] = delivery
        size = self._connection.max_payload - _TRANSFER_OVERHEAD
        transfer = Transfer(link.handle, delivery.id, tag, 0, settled, len(payload) > size)
        self._send_transfer(transfer, payload[:size] if transfer.more else payload)
        for start in range(size, len(payload), size):
            more = start + size < len(payload)
            self._send_transfer(Transfer(link.handle, more=more), payload[start : start + size])
        return delivery

    def settle(self, role: bool, delivery_id: int, state: Any) -> None:  # noqa: ANN401, FBT001 - AMQP's names
        """State the outcome of a delivery."""
        if role is not RECEIVER:
            self._unsettled.pop(delivery_id, None)
        pending = self._outcomes
        if pending is not None and pending.includes_next(role, delivery_id, state):
            self._outcomes = pending._replace(last=delivery_id)
            return
        self.flush_outcomes()
        self._outcomes = _Outcomes(role, delivery_id, delivery_id, state)
        self._connection.note_outcomes(self)

    def flush_outcomes(self) -> None:
        """Send the outcomes that were collected."""
        pending, self._outcomes = self._outcomes, None
        if pending is not None and not self.is_ended:
            disposition = Disposition(
                pending.role, pending.first, pending.last, settled=True, state=pending.state
            )
            self._connection.send(self.channel, disposition)

    def end(self, error: Condition | None = None) -> list[Event]:
        """End the session; return what its links' owner has to know."""
        if not self.is_ended:
            self.send(End(error))
            self.is_ended = True
        links, self._links = list(self._links.values()), {}
        self._waiting.clear()
        self._unsettled.clear()
        for link in links:
            link.is_detached = True
        return [LinkDetached(link) for link in links]

    # From the peer

    def receive_attach(self, attach: Attach) -> Iterable[Event]:
        """Attach a link."""
        if attach.handle > self._connection.limits.handle_max:
            raise ConnectionViolation(
                "amqp:connection:framing-error",
                f"handle {attach.handle} is greater than the handle-max of {self._connection.limits.handle_max}",
            )
        if attach.handle in self._links:
            raise SessionViolation("amqp:session:handle-in-use", f"handle {attach.handle} is in use")
        link: SenderLink | ReceiverLink
        link = SenderLink(self, attach) if attach.role is RECEIVER else ReceiverLink(self, attach)
        self._links[attach.handle] = link
        return (LinkAttached(link),)

    def receive_detach(self, detach: Detach) -> Iterable[Event]:
        """End a link."""
        link = self._link(detach.handle)
        del self._links[detach.handle]
        self._waiting = deque(each for each in self._waiting if each[0].handle != detach.handle)
        self._unsettled = {key: each for key, each in self._unsettled.items() if each.link is not link}
        if link.is_detached:
            return ()
        link.is_detached = True
        self.send(Detach(detach.handle, closed=detach.closed))
        return (LinkDetached(link),)

    def receive_flow(self, flow: Flow) -> Iterable[Event]:
        """Take the peer's windows, and a link's credit."""
        was_closed = not self.can_send
        seen = 0 if flow.next_incoming_id is None else flow.next_incoming_id
        self._remote_incoming_window = max(0, flow.incoming_window - distance(self._next_outgoing_id, seen))
        while self._waiting and self._remote_incoming_window > 0:
            self._write_transfer(*self._waiting.popleft())
        link = None if flow.handle is None else self._link(flow.handle)
        if isinstance(link, SenderLink):
            link.receive_flow(flow)
        if flow.echo and link is not None:
            link.state_flow()
        elif flow.echo:
            self.send_flow(Flow(*self.windows()))
        # A window that opens lets every link send again.
        concerned = self._links.values() if was_closed else (link,)
        return [
            CreditReceived(each)
            for each in concerned
            if isinstance(each, SenderLink) and not each.is_detached
        ]

    def receive_transfer(self, transfer: Transfer, payload: bytes) -> Iterable[Event]:
        """Take a message's frame."""
        self._next_incoming_id = (self._next_incoming_id + 1) % SERIAL
        self._incoming_window -= 1
        if self._incoming_window < 0:
            raise SessionViolation(
                "amqp:session:window-violation", "the session's incoming window is exceeded"
            )
        if self._incoming_window < self._connection.limits.window // 2:
            self.send_flow(Flow(*self.windows()))
        link = self._link(transfer.handle)
        if link.is_detached:
            return ()
        if not isinstance(link, ReceiverLink):
            raise SessionViolation("amqp:not-allowed", f"the peer receives on handle {transfer.handle}")
        delivery = link.receive_transfer(transfer, payload)
        link.replenish_credit()
        return () if delivery is None else (MessageReceived(delivery),)

    def receive_disposition(self, disposition: Disposition) -> Iterable[Event]:
        """Take the peer's outcomes. This side settles what it receives at once, so nothing is open there."""
        if disposition.role is not RECEIVER:
            return ()
        last = disposition.first if disposition.last is None else disposition.last
        count = (last - disposition.first) % SERIAL
        return [
            DeliveryUpdated(delivery, disposition.state)
            for delivery in self._between(disposition.first, count)
            if self._take(delivery, disposition)
        ]

    def _take(self, delivery: OutgoingDelivery, disposition: Disposition) -> bool:
        """Note that the peer settled; return whether there is an outcome to act on."""
        if disposition.settled:
            delivery.is_settled = True
            del self._unsettled[delivery.id]
        return disposition.state is not None

    def _between(self, first: int, count: int) -> list[OutgoingDelivery]:
        """Return the open deliveries from one id on, without counting through a wide range."""
        if count < len(self._unsettled):
            ids = ((first + offset) % SERIAL for offset in range(count + 1))
            return [self._unsettled[each] for each in ids if each in self._unsettled]
        return [each for key, each in self._unsettled.items() if (key - first) % SERIAL <= count]

    # Inside

    def _link(self, handle: int) -> SenderLink | ReceiverLink:
        link = self._links.get(handle)
        if link is None:
            raise SessionViolation(
                "amqp:session:unattached-handle", f"no link is attached to handle {handle}"
            )
        return link

    def _send_transfer(self, transfer: Transfer, payload: bytes) -> None:
        if self.can_send:
            self._write_transfer(transfer, payload)
        else:
            self._waiting.append((transfer, payload))

    def _write_transfer(self, transfer: Transfer, payload: bytes) -> None:
        self._remote_incoming_window -= 1
        self._next_outgoing_id = (self._next_outgoing_id + 1) % SERIAL
        self.flush_outcomes()
        self._connection.send(self.channel, transfer, payload)

    def detach_for(self, violation: LinkViolation, handle: int) -> Iterable[Event]:
        """End the link on which the peer broke the protocol."""
        link = self._links[handle]
        link.detach(self.error(violation.condition, violation.description))
        return (LinkDetached(link),)


class _Outcomes(NamedTuple):
    """The same outcome of consecutive deliveries."""

    role: bool
    first: int
    last: int
    state: Any

    def includes_next(self, role: bool, delivery_id: int, state: Any) -> bool:  # noqa: ANN401, FBT001
        return (
            role is self.role
            and delivery_id == (self.last + 1) % SERIAL
            and type(state) is type(self.state)
            and not any(state)
            and not any(self.state)
        )
