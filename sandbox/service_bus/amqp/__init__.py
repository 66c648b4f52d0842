"""An AMQP 1.0 engine for servers, without sockets: bytes in, bytes and events out.

    connection = Connection(Limits())
    for event in connection.receive(data, now):     # what arrived
        match event:                                # react by calling methods of connection, session, link, delivery
            case LinkAttached(link): link.accept()
    data = connection.take_output(now)              # what to send
    if connection.is_closed: ...                    # hang up once it is sent

The owner handles each event before the next frame is processed. It calls `tick` at the time that `tick` last returned,
which sends heartbeats and ends a connection that is silent for too long. Nothing here knows Service Bus; what AMQP
leaves to the application (who may attach, what an address is) is the owner's. Malformed input never raises: it ends
the link, the session or the connection with the condition that AMQP defines.

The modules: `encoding` (types), `performatives` (what frames say), `connection` (framing, SASL, connection), `session`
(windows, delivery ids, handles), `link` (credit, deliveries).
"""

from sandbox.service_bus.amqp.connection import Connection, Limits
from sandbox.service_bus.amqp.events import (
    Authenticating,
    CreditReceived,
    DeliveryUpdated,
    Event,
    ForeignProtocol,
    LinkAttached,
    LinkDetached,
    MessageReceived,
    Opened,
)
from sandbox.service_bus.amqp.link import IncomingDelivery, OutgoingDelivery, ReceiverLink, SenderLink
from sandbox.service_bus.amqp.performatives import Condition

__all__ = [
    "Authenticating",
    "Condition",
    "Connection",
    "CreditReceived",
    "DeliveryUpdated",
    "Event",
    "ForeignProtocol",
    "IncomingDelivery",
    "Limits",
    "LinkAttached",
    "LinkDetached",
    "MessageReceived",
    "Opened",
    "OutgoingDelivery",
    "ReceiverLink",
    "SenderLink",
]
