"""One client: what its links and messages mean to the broker.

Links to entities send and receive; links to `$cbs` bring tokens, and those to an entity's `$management` ask for
what is neither. What a client may not do, or the stand-in does not offer, ends the link with the condition that
Azure gives. Sessions and transactions are refused here.
"""

import asyncio
from typing import Any
from uuid import UUID

from proton import Condition, Delivery, Endpoint, Event, Link, Receiver, Sender, Terminus, symbol

from sandbox.service_bus.authorization import Authenticator, Grant, entity_path
from sandbox.service_bus.broker import Broker, ReceiveMode
from sandbox.service_bus.codec import decode_message, decode_transfer, encode_reply, owned
from sandbox.service_bus.configuration import Right
from sandbox.service_bus.dispatch import Dispatcher, Outlet
from sandbox.service_bus.engine import PRODUCT, Engine
from sandbox.service_bus.errors import BrokerError, InvalidArgument, NotOffered, Unauthorized
from sandbox.service_bus.management import Answer, Management, bad_request
from sandbox.service_bus.messages import AmqpValue, Message

_CBS = "$cbs"
_MANAGEMENT = "$management"
_SESSION_FILTER = "com.microsoft:session-filter"
# As Azure: what a sender may have under way, and when its credit is topped up.
_CREDIT = 1000
_LOW_CREDIT = 500


class ClientConnection(Engine):
    """One client's connection."""

    def __init__(self, dispatcher: Dispatcher, authenticator: Authenticator) -> None:
        super().__init__(dispatcher.loop)
        self._dispatcher = dispatcher
        self._authenticator = authenticator
        self._broker: Broker = dispatcher.broker
        self._management = Management(dispatcher.broker)
        self._grants: list[Grant] = []
        self._outlets: dict[Link, Outlet] = {}
        self._nodes: dict[Link, str] = {}
        self._replies: dict[str, Sender] = {}

    # The engine's

    def check_plain(self, user: str, password: str) -> None:
        """Take a key that came as user name and password."""
        self._grants += self._authenticator.plain(user, password)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be known to the dispatcher."""
        super().connection_made(transport)
        self._dispatcher.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Be forgotten. Locks last until they expire, as in Azure."""
        for outlet in self._outlets.values():
            self._dispatcher.remove(outlet)
        self._outlets.clear()
        self._nodes.clear()
        self._replies.clear()
        super().connection_lost(exc)
        self._dispatcher.gone(self)

    def input_done(self) -> None:
        """See whether something is due earlier now."""
        self._dispatcher.arm()

    def decongested(self) -> None:
        """Deliver what was held back."""
        for path in {outlet.path for outlet in self._outlets.values()}:
            self._dispatcher.hand_out(path)

    # Rights

    def _require(self, path: str, right: Right) -> None:
        now = self._authenticator.now()
        if not any(grant.covers(path, right, now) for grant in self._grants):
            names = " or ".join(str(each.name).capitalize() for each in Right if each & right)
            raise Unauthorized(
                f"Unauthorized access. '{names}' claim(s) are required to perform this operation. "
                f"Resource: '{path}'."
            )

    # Proton's events

    def on_connection_remote_open(self, event: Event) -> None:
        """Open this side, with every field."""
        connection: Any = event.connection
        connection.container = "sandbox-service-bus"
        # The Python SDK reads the last fields of an open without looking whether they are there.
        connection.offered_capabilities = ["sandbox"]
        connection.desired_capabilities = ["sandbox"]
        connection.properties = {"product": PRODUCT}
        connection.open()

    def on_session_remote_open(self, event: Event) -> None:
        """Open this side."""
        session: Any = event.session
        session.open()

    def on_link_remote_open(self, event: Event) -> None:
        """Attach a link, or refuse it with the reason."""
        link: Any = event.link
        address = (link.remote_source if link.is_sender else link.remote_target).address or ""
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.properties = {"com.microsoft:max-message-batch-size": 256 * 1024}
        try:
            if link.is_receiver and link.remote_target.type == Terminus.COORDINATOR:
                raise NotOffered("transactions are not offered by the stand-in")
            path = entity_path(address)
            if path.lower() == _CBS or path.lower().split("/")[-1] == _MANAGEMENT:
                self._open_node(link, path)
            elif link.is_sender:
                self._open_outlet(link, path)
            else:
                self._open_inlet(link, path)
        except BrokerError as error:
            # A link that does not come to be has nothing on the service's side: the SDKs look for that.
            (link.source if link.is_sender else link.target).type = Terminus.UNSPECIFIED
            link.open()
            self.refuse(link, error)

    def _open_node(self, link: Any, path: str) -> None:  # noqa: ANN401 - Proton's objects carry no types
        if path.lower() != _CBS:
            entity = path.rpartition("/")[0]
            self._broker.path_of(entity)
            self._require(entity, Right.LISTEN | Right.SEND)
        self._nodes[link] = path
        if link.is_sender:
            self._replies[link.remote_target.address or path] = link
            link.open()
        else:
            link.open()
            link.flow(_CREDIT)

    def _open_outlet(self, link: Any, path: str) -> None:  # noqa: ANN401
        path = self._broker.path_of(path)
        self._require(path, Right.LISTEN)
        filters = link.remote_source.filter
        filters.rewind()
        if filters.next() and _SESSION_FILTER in (filters.get_object() or {}):
            raise NotOffered("sessions are not offered by the stand-in")
        # A receive of nothing tells whether the entity can be received from at all.
        self._broker.receive(path, 0)
        settled = link.remote_snd_settle_mode == Link.SND_SETTLED
        mode = ReceiveMode.RECEIVE_AND_DELETE if settled else ReceiveMode.PEEK_LOCK
        outlet = self._outlets[link] = self._outlet(link, path, mode)
        self._dispatcher.add(outlet)
        link.max_message_size = self._broker.max_message_size(path)
        link.open()

    def _outlet(self, link: Any, path: str, mode: ReceiveMode) -> Outlet:  # noqa: ANN401
        return Outlet(self, link, path, mode)

    def _open_inlet(self, link: Any, path: str) -> None:  # noqa: ANN401
        path = self._broker.path_of(path)
        self._require(path, Right.SEND)
        # A send of nothing tells whether the entity can be sent to at all.
        self._broker.send(path)
        self._nodes[link] = path
        link.max_message_size = self._broker.max_message_size(path)
        link.open()
        link.flow(_CREDIT)

    def refuse(self, link: Any, error: BrokerError) -> None:  # noqa: ANN401
        """End a link with an error."""
        link.condition = _condition(error)
        link.close()
        self._forget(link)

    def on_link_flow(self, event: Event) -> None:
        """Use the credit that a client gave; give it back where the client drains."""
        link: Any = event.link
        if (outlet := self._outlets.get(link)) is not None:
            self._dispatcher.hand_out(outlet.path)
            if link.drain_mode:
                link.drained()

    def on_link_remote_close(self, event: Event) -> None:
        """Stop using the link."""
        self._forget(event.link)
        _close(event.link)

    def on_link_remote_detach(self, event: Event) -> None:
        """Stop using the link."""
        self._forget(event.link)
        _close(event.link)

    def on_session_remote_close(self, event: Event) -> None:
        """Stop using the session's links."""
        for link in [*self._outlets, *self._nodes]:
            if link.session == event.session:
                self._forget(link)
        _close(event.session)

    def on_connection_remote_close(self, event: Event) -> None:
        """Close this side."""
        _close(event.connection)

    def _forget(self, link: Any) -> None:  # noqa: ANN401
        """Stop using a link. The locks of what was delivered on it last until they expire, as in Azure."""
        outlet = self._outlets.pop(link, None)
        if outlet is not None:
            self._dispatcher.remove(outlet)
        self._nodes.pop(link, None)
        self._replies = {address: each for address, each in self._replies.items() if each != link}

    def on_delivery(self, event: Event) -> None:
        """Take a message that was sent, or the decision about one that was received."""
        delivery: Any = event.delivery
        link: Any = event.link
        if link.is_sender:
            if delivery.updated and link in self._outlets:
                self._settle(self._outlets[link].path, delivery)
            elif delivery.updated:
                delivery.settle()
        elif delivery.aborted:
            delivery.settle()
        elif delivery.readable and not delivery.partial:
            encoded = link.recv(delivery.pending) or b""
            link.advance()
            self._received(link, delivery, encoded)
            if link.credit < _LOW_CREDIT:
                link.flow(_CREDIT - link.credit)

    def _received(self, link: Receiver, delivery: Any, encoded: bytes) -> None:  # noqa: ANN401
        """Take what a client sent: to an entity, or as a request to a node."""
        path = self._nodes.get(link)
        if path is None:
            delivery.settle()
            return
        try:
            last = path.rpartition("/")[2].lower()
            if last in (_CBS, _MANAGEMENT):
                self._answer(path, decode_message(encoded))
            else:
                self._broker.send(path, *decode_transfer(encoded), size=len(encoded))
        except BrokerError as error:
            finish(delivery, Delivery.REJECTED, error)
        else:
            finish(delivery, Delivery.ACCEPTED)

    def _settle(self, path: str, delivery: Any) -> None:  # noqa: ANN401
        """Carry out what a client decided about a message, and confirm it, or say why not."""
        token = delivery.lock_token
        state = delivery.remote_state
        if token is None or not state:
            if delivery.settled:
                delivery.settle()
            return
        try:
            self._decide(path, token, state, delivery.remote)
        except BrokerError as error:
            finish(delivery, Delivery.REJECTED, error)
        else:
            finish(delivery, state)
        delivery.lock_token = None

    def _decide(self, path: str, token: UUID, state: int, remote: Any) -> None:  # noqa: ANN401
        if state == Delivery.ACCEPTED:
            self._broker.complete(path, token)
        elif state == Delivery.RELEASED:
            self._broker.release(path, token)
        elif state == Delivery.REJECTED:
            condition = remote.condition
            info = {str(key): owned(value) for key, value in ((condition and condition.info) or {}).items()}
            reason = info.pop("DeadLetterReason", None)
            description = info.pop("DeadLetterErrorDescription", None)
            self._broker.dead_letter(path, token, reason, description, info)
        elif state == Delivery.MODIFIED:
            annotations = remote.annotations
            changed = {str(key): owned(value) for key, value in (annotations or {}).items()}
            if remote.undeliverable:
                self._broker.defer(path, token, changed)
            else:
                self._broker.abandon(path, token, changed)
        else:
            raise InvalidArgument(f"there is no outcome {state}")

    def _answer(self, node: str, request: Message) -> None:
        """Answer a request on the link that the client opened for answers."""
        if node.lower() == _CBS:
            answer: Answer = self._put_token(request), None
        else:
            entity = node.rpartition("/")[0]
            try:
                answer = self._management.answer(entity, request, lambda right: self._require(entity, right))
            except BrokerError as error:
                answer = bad_request(error), None
        link = self._replies.get(request.reply_to or "") or next(
            (each for each in self._replies.values() if self._nodes.get(each) == node), None
        )
        if link is None:
            raise InvalidArgument(f"there is no link for answers to {request.reply_to!r}")
        link.delivery(link.delivery_tag())
        properties, body = answer
        link.stream(encode_reply(body, correlation_id=request.message_id, properties=properties))
        link.advance()

    def _put_token(self, request: Message) -> dict[str, Any]:
        properties = request.application_properties
        token = request.body.value if isinstance(request.body, AmqpValue) else request.body
        try:
            if properties.get("operation") != "put-token" or not isinstance(token, str):
                raise InvalidArgument("$cbs takes put-token with a token as text")
            self._grants += self._authenticator.put_token(
                str(properties.get("type")), token, str(properties.get("name", ""))
            )
        except BrokerError as error:
            return bad_request(error, prefix="status-")
        return bad_request(None, prefix="status-")


def _condition(error: BrokerError) -> Condition:
    # The Python SDK reads the third field of an error without looking whether it is there.
    return Condition(error.condition, str(error), {symbol("product"): PRODUCT})


def finish(delivery: Any, state: int, error: BrokerError | None = None) -> None:  # noqa: ANN401
    """Confirm what a client sent or decided, or say why not."""
    if error is not None:
        delivery.local.condition = _condition(error)
    delivery.update(state)
    delivery.settle()


def _close(endpoint: Any) -> None:  # noqa: ANN401
    if not endpoint.state & Endpoint.LOCAL_CLOSED:
        endpoint.close()
