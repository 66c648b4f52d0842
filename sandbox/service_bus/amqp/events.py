"""What the engine reports to its owner."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.service_bus.amqp.link import IncomingDelivery, OutgoingDelivery, ReceiverLink, SenderLink


@dataclass(frozen=True, slots=True)
class ForeignProtocol:
    """The peer does not speak AMQP 1.0; `start` is how it began. The owner may `reject` with bytes of its own."""

    start: bytes


@dataclass(frozen=True, slots=True)
class Authenticating:
    """The peer selected a SASL mechanism: the owner calls `accept_login` or `refuse_login`."""

    mechanism: str
    response: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection is open on both sides; `properties` are what the peer states about itself."""

    properties: dict[Any, Any]


@dataclass(frozen=True, slots=True)
class LinkAttached:
    """The peer attaches a link: the owner calls its `accept` or `refuse`."""

    link: "SenderLink | ReceiverLink"


@dataclass(frozen=True, slots=True)
class LinkDetached:
    """A link has ended: detached by the peer, or with its session."""

    link: "SenderLink | ReceiverLink"


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """The peer stated its credit on a link that sends to it."""

    link: "SenderLink"


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A whole message arrived: the owner settles the delivery."""

    delivery: "IncomingDelivery"


@dataclass(frozen=True, slots=True)
class DeliveryUpdated:
    """The peer stated an outcome for a delivery that was sent to it: the owner settles it."""

    delivery: "OutgoingDelivery"
    state: Any


Event = (
    ForeignProtocol
    | Authenticating
    | Opened
    | LinkAttached
    | LinkDetached
    | CreditReceived
    | MessageReceived
    | DeliveryUpdated
)
