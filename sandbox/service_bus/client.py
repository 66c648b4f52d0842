"""One client: what its links mean to the broker.

Links to entities send and receive; links to `$cbs` bring tokens, and those to an entity's `$management` ask for
what is neither. What a client has no right to, or the emulator does not support, ends the link with the condition
that Azure states. Sessions and transactions are refused here.
"""

from dataclasses import dataclass

from sandbox.service_bus.amqp import (
    Authenticating,
    CreditReceived,
    DeliveryUpdated,
    Event,
    ForeignProtocol,
    LinkAttached,
    LinkDetached,
    MessageReceived,
    Opened,
    ReceiverLink,
    SenderLink,
)
from sandbox.service_bus.amqp.encoding import Symbol
from sandbox.service_bus.amqp.performatives import Coordinator
from sandbox.service_bus.authorization import Authenticator, ClientRights, entity_path
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.client_socket import ClientSocket
from sandbox.service_bus.configuration import Right
from sandbox.service_bus.dispatch import Dispatcher
from sandbox.service_bus.errors import NotSupported, Refusal, Unauthorized
from sandbox.service_bus.http_refusal import RESPONSE, is_http
from sandbox.service_bus.interception import Call, Direction, Interceptor, Operation
from sandbox.service_bus.links import EntityReceiver, EntitySender, amqp_error
from sandbox.service_bus.messages import ReceiveMode
from sandbox.service_bus.nodes import RequestNodes, is_node

_SESSION_FILTER = "com.microsoft:session-filter"
_JAVASCRIPT_CLIENT = "MSJSClient"
_LINK_PROPERTIES = {Symbol("com.microsoft:max-message-batch-size"): 256 * 1024}


@dataclass(frozen=True)
class Services:
    """What all clients of a server share."""

    broker: Broker
    dispatcher: Dispatcher
    authenticator: Authenticator
    interceptor: Interceptor


class Client:
    """One client."""

    def __init__(self, socket: ClientSocket, services: Services) -> None:
        self._socket = socket
        self._services = services
        self._broker = services.broker
        self._rights = ClientRights(services.authenticator)
        self._nodes = RequestNodes(services.broker, self._rights)
        self._senders: set[EntitySender] = set()
        self._product = ""

    # For the socket

    def handle(self, event: Event) -> None:
        """Handle one event of the protocol engine."""
        match event:
            case MessageReceived(delivery):
                delivery.link.context(delivery)
            case DeliveryUpdated(delivery, state):
                if isinstance(delivery.link.context, EntitySender):
                    delivery.link.context.settle(delivery, state)
                else:
                    delivery.settle(state)
            case CreditReceived(link):
                self._use_credit(link)
            case LinkAttached(link):
                self._attach(link)
            case LinkDetached(link):
                self._forget(link)
            case _:
                self._handle_beginning(event)

    def input_done(self) -> None:
        """Wake earlier if something is due earlier now."""
        self._services.dispatcher.arm()

    def output_possible(self) -> None:
        """Deliver what waited."""
        for path in {sender.path for sender in self._senders}:
            self._services.dispatcher.hand_out(path)

    def disconnected(self) -> None:
        """Forget the links. Locks last until they expire, like in Azure."""
        for sender in self._senders:
            self._services.dispatcher.remove(sender)
        self._senders.clear()

    # Events

    def _handle_beginning(self, event: Event) -> None:
        match event:
            case Authenticating(mechanism, response):
                self._authenticate(mechanism, response)
            case Opened(properties):
                self._product = str(properties.get("product", ""))
            case ForeignProtocol(start) if is_http(start):
                self._socket.amqp.reject(RESPONSE)

    def _authenticate(self, mechanism: str, response: bytes) -> None:
        """Check a key that comes as user name and password; with other mechanisms tokens follow by `$cbs`."""
        if mechanism == "PLAIN":
            _, user, password = (*response.decode("utf-8", "replace").split("\0"), "", "", "")[:3]
            try:
                self._rights.put_key(user, password)
            except Unauthorized:
                self._socket.amqp.refuse_login()
                return
        self._socket.amqp.accept_login()

    def _use_credit(self, link: SenderLink) -> None:
        if isinstance(link.context, EntitySender):
            self._services.dispatcher.hand_out(link.context.path)
            link.give_back_credit()

    def _forget(self, link: SenderLink | ReceiverLink) -> None:
        """Stop using a link. The locks of what was delivered on it last until they expire, like in Azure."""
        if isinstance(link.context, EntitySender):
            self._services.dispatcher.remove(link.context)
            self._senders.discard(link.context)
        elif isinstance(link, SenderLink):
            self._nodes.detached(link)

    def _attach(self, link: SenderLink | ReceiverLink) -> None:
        path = entity_path(link.source_address if isinstance(link, SenderLink) else link.target_address)
        if is_node(path) or isinstance(link.target, Coordinator):
            self._accept(link, path)
            return
        self._services.interceptor.intercept(
            Call(
                Operation.ATTACH,
                Direction.RECEIVES if isinstance(link, SenderLink) else Direction.SENDS,
                path,
                f"a link to {path}",
                self._socket,
                carry_out=lambda: self._accept(link, path),
                carry_out_unconfirmed=lambda: self._accept(link, path),
                refuse=lambda error: link.refuse(amqp_error(error)),
            )
        )

    def _accept(self, link: SenderLink | ReceiverLink, path: str) -> None:
        """Attach a link, or refuse it with the reason."""
        if link.is_detached:
            return
        try:
            if isinstance(link.target, Coordinator):
                raise NotSupported("The Service Bus emulator does not support transactions.")
            if isinstance(link, SenderLink):
                self._attach_sender(link, path)
            elif is_node(path):
                link.context = self._nodes.attach_requests(link, path)
            else:
                self._attach_receiver(link, path)
        except Refusal as error:
            link.refuse(amqp_error(error))

    def _attach_sender(self, link: SenderLink, path: str) -> None:
        if is_node(path):
            self._nodes.attach_responses(link, path)
            return
        path = self._broker.path_of(path)
        self._rights.require(path, Right.LISTEN)
        filters = (link.source.filter if link.source is not None else None) or {}
        if _SESSION_FILTER in filters:
            self._refuse_session(filters[_SESSION_FILTER])
        # A receive of nothing shows whether the entity can be received from at all.
        self._broker.receive(path, 0)
        mode = ReceiveMode.RECEIVE_AND_DELETE if link.sends_settled else ReceiveMode.PEEK_LOCK
        link.accept(max_message_size=self._broker.max_message_size(path), properties=_LINK_PROPERTIES)
        sender = EntitySender(link, path, mode, self._broker, self._socket, self._services.interceptor)
        link.context = sender
        self._senders.add(sender)
        self._services.dispatcher.add(sender)

    def _attach_receiver(self, link: ReceiverLink, path: str) -> None:
        path = self._broker.path_of(path)
        self._rights.require(path, Right.SEND)
        # A send of nothing shows whether the entity can be sent to at all.
        self._broker.send(path)
        link.accept(max_message_size=self._broker.max_message_size(path), properties=_LINK_PROPERTIES)
        receiver = EntityReceiver(link, path, self._broker, self._socket, self._services.interceptor)
        link.context = receiver.receive

    def _refuse_session(self, session_id: object) -> None:
        """Refuse a session with a text that the client shows.

        Microsoft's JavaScript client takes a refused link for a session with an id as a lock that another receiver
        holds, and hides the text. It shows the text of a connection that is closed with this condition.
        """
        text = "The Service Bus emulator does not support sessions."
        if session_id is not None and self._product == _JAVASCRIPT_CLIENT:
            self._socket.amqp.close(self._socket.amqp.error("amqp:connection:forced", text))
        raise NotSupported(text)
