"""Links and their deliveries: credit, transfers over several frames, settlement.

`SenderLink` is a link on which this side sends, `ReceiverLink` one on which it receives.
"""

from typing import TYPE_CHECKING, Any

from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    SENDER,
    SERIAL,
    Attach,
    Condition,
    Coordinator,
    Detach,
    Flow,
    Rejected,
    Source,
    Target,
    Transfer,
    distance,
)
from sandbox.service_bus.amqp.violations import LinkViolation

if TYPE_CHECKING:
    from sandbox.service_bus.amqp.session import Session

_SETTLED = 1


class Link:
    """What both directions have in common. `context` is the owner's."""

    role: bool

    def __init__(self, session: "Session", attach: Attach) -> None:
        self.session = session
        self.handle = attach.handle
        self.source: Source | None = attach.source if isinstance(attach.source, Source) else None
        self.target: Target | Coordinator | None = (
            attach.target if isinstance(attach.target, Target | Coordinator) else None
        )
        self.sends_settled = attach.snd_settle_mode == _SETTLED
        self.credit = 0
        self.delivery_count = 0
        # Whether the peer wants its credit back where there is no message.
        self.drains = False
        self.context: Any = None
        # Whether this side has detached: what the peer still sends on the link is ignored then.
        self.is_detached = False
        self._attach = attach

    @property
    def source_address(self) -> str:
        """Return where the messages come from, or nothing."""
        return _address(self.source)

    @property
    def target_address(self) -> str:
        """Return where the messages go, or nothing."""
        return "" if isinstance(self.target, Coordinator) else _address(self.target)

    def accept(
        self, *, max_message_size: int | None = None, properties: dict[Any, Any] | None = None
    ) -> None:
        """Attach this side with what the peer asked for."""
        self._send_attach(max_message_size=max_message_size, properties=properties)

    def refuse(self, error: Condition) -> None:
        """Attach this side without a node, which announces the detach that follows with the reason."""
        self._send_attach(**{"source" if self.role is SENDER else "target": None})
        self.detach(error)

    def detach(self, error: Condition | None = None) -> None:
        """End the link."""
        if not self.is_detached:
            self.is_detached = True
            self.session.send(Detach(self.handle, closed=True, error=error))

    def state_flow(self, *, echo: bool = False) -> None:
        """Tell the peer this side's windows, and the link's credit."""
        self.session.send_flow(
            Flow(
                *self.session.windows(),
                handle=self.handle,
                delivery_count=self.delivery_count,
                link_credit=self.credit,
                available=0 if self.role is SENDER else None,
                drain=self.drains,
                echo=echo,
            )
        )

    def _send_attach(self, **fields: Any) -> None:  # noqa: ANN401 - the fields of an attach
        asked = self._attach
        attach = Attach(
            asked.name,
            self.handle,
            self.role,
            asked.snd_settle_mode,
            asked.rcv_settle_mode,
            asked.source,
            asked.target,
            initial_delivery_count=0 if self.role is SENDER else None,
        )
        self.session.send(attach._replace(**fields))


class SenderLink(Link):
    """A link on which this side sends."""

    role = SENDER

    @property
    def can_send(self) -> bool:
        """Return whether the peer takes a message now: credit on the link, and room in the session's window."""
        return self.credit > 0 and not self.is_detached and self.session.can_send

    def send(
        self,
        tag: bytes,
        payload: bytes,
        *,
        settled: bool = False,
        context: Any = None,  # noqa: ANN401
    ) -> "OutgoingDelivery":
        """Send a message; the owner gets it back with the outcome, unless it is sent settled."""
        self.credit -= 1
        self.delivery_count = (self.delivery_count + 1) % SERIAL
        return self.session.send_message(self, tag, payload, settled=settled, context=context)

    def receive_flow(self, flow: Flow) -> None:
        """Take the peer's credit: it is counted from the delivery count that the peer has seen."""
        seen = 0 if flow.delivery_count is None else flow.delivery_count
        # Less than nothing: the peer took credit back that was used meanwhile.
        self.credit = max(0, (flow.link_credit or 0) - distance(self.delivery_count, seen))
        self.drains = flow.drain

    def give_back_credit(self) -> None:
        """Use up the credit without messages, as a peer that drains demands."""
        if self.drains and self.credit:
            self.delivery_count = (self.delivery_count + self.credit) % SERIAL
            self.credit = 0
            self.state_flow()


class ReceiverLink(Link):
    """A link on which this side receives. It gives credit again before what it gave is used up."""

    role = RECEIVER

    def __init__(self, session: "Session", attach: Attach) -> None:
        super().__init__(session, attach)
        self.delivery_count = attach.initial_delivery_count or 0
        self._max_message_size = 0
        self._full_credit = 0
        self._partial: IncomingDelivery | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def accept(
        self, *, max_message_size: int | None = None, properties: dict[Any, Any] | None = None
    ) -> None:
        """Attach this side; messages that are larger than `max_message_size` are rejected."""
        self._max_message_size = max_message_size or 0
        super().accept(max_message_size=max_message_size, properties=properties)

    def keep_credit(self, credit: int) -> None:
        """Let the peer send, so many messages at a time."""
        self._full_credit = self.credit = credit
        self.state_flow()

    def replenish_credit(self) -> None:
        """Give credit again once half of it is used."""
        if self.credit < self._full_credit // 2 and not self.is_detached:
            self.credit = self._full_credit
            self.state_flow()

    def receive_transfer(self, transfer: Transfer, payload: bytes) -> "IncomingDelivery | None":
        """Take a frame; return the delivery when it is complete. Raises LinkViolation.

        Delivery ids are not compared with one another: Microsoft's Python client, from several threads, sends them
        out of order, and Azure accepts that.
        """
        delivery = self._partial
        if delivery is None:
            if self.credit <= 0:
                raise LinkViolation(
                    "amqp:link:transfer-limit-exceeded", "the link has no credit for a message"
                )
            if transfer.delivery_id is None:
                raise LinkViolation("amqp:not-allowed", "a delivery begins without a delivery id")
            self.credit -= 1
            self.delivery_count = (self.delivery_count + 1) % SERIAL
            delivery = IncomingDelivery(self, transfer.delivery_id, transfer.message_format or 0)
        delivery.is_settled = delivery.is_settled or bool(transfer.settled)
        if transfer.aborted:
            self._finish_delivery()
            return None
        self._size += len(payload)
        is_too_large = 0 < self._max_message_size < self._size
        if transfer.more:
            self._partial = delivery
            if is_too_large:
                self._parts.clear()  # it is rejected at its end, and not kept until then
            else:
                self._parts.append(payload)
            return None
        if is_too_large:
            delivery.settle(Rejected(self._too_large()))
            self._finish_delivery()
            return None
        delivery.payload = b"".join([*self._parts, payload]) if self._parts else payload
        self._finish_delivery()
        return delivery

    def _too_large(self) -> Condition:
        return self.session.error(
            "amqp:link:message-size-exceeded",
            f"The message of {self._size} bytes exceeds the limit of {self._max_message_size}.",
        )

    def _finish_delivery(self) -> None:
        self._partial = None
        self._parts = []
        self._size = 0


class _Delivery:
    __slots__ = ("id", "is_settled", "link")

    def __init__(self, link: Link, delivery_id: int) -> None:
        self.link = link
        self.id = delivery_id
        self.is_settled = False

    def settle(self, state: Any) -> None:  # noqa: ANN401 - an outcome
        """State the outcome, or confirm the peer's; a peer that has settled expects nothing."""
        if not self.is_settled:
            self.is_settled = True
            self.link.session.settle(self.link.role, self.id, state)


class OutgoingDelivery(_Delivery):
    """A message that this side sent. `context` is the owner's."""

    __slots__ = ("context",)

    def __init__(self, link: SenderLink, delivery_id: int, context: Any) -> None:  # noqa: ANN401
        super().__init__(link, delivery_id)
        self.context = context


class IncomingDelivery(_Delivery):
    """A message that the peer sent."""

    __slots__ = ("message_format", "payload")

    def __init__(self, link: ReceiverLink, delivery_id: int, message_format: int) -> None:
        super().__init__(link, delivery_id)
        self.message_format = message_format
        self.payload = b""


def _address(terminus: Source | Target | None) -> str:
    address = terminus.address if terminus is not None else None
    return address if isinstance(address, str) else ""
