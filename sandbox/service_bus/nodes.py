"""The nodes of a client that take requests and send responses: `$cbs` for tokens, an entity's `$management`."""

from collections.abc import Callable
from typing import Any

from sandbox.service_bus.amqp import IncomingDelivery, ReceiverLink, SenderLink
from sandbox.service_bus.amqp.encoding import Int
from sandbox.service_bus.amqp.performatives import Accepted
from sandbox.service_bus.authorization import ClientRights, entity_path
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.codec import decode_message, encode_reply
from sandbox.service_bus.configuration import Right
from sandbox.service_bus.errors import InvalidArgument, Refusal
from sandbox.service_bus.links import rejected
from sandbox.service_bus.management import Management, Response
from sandbox.service_bus.messages import AmqpValue, Message

_CBS = "$cbs"
_MANAGEMENT = "$management"
_ACCEPTED = 202
_CREDIT = 1000
# Like Azure's largest batch.
_MAX_REQUEST = 1024 * 1024


def is_node(path: str) -> bool:
    """Return whether a path is that of a node for requests."""
    return path.rpartition("/")[2].lower() in (_CBS, _MANAGEMENT)


class RequestNodes:
    """One client's requests and responses."""

    def __init__(self, broker: Broker, rights: ClientRights) -> None:
        self._broker = broker
        self._rights = rights
        self._management = Management(broker)
        self._response_links: dict[SenderLink, str] = {}

    def attach_responses(self, link: SenderLink, path: str) -> None:
        """Attach a link on which the client receives responses."""
        self._check(path)
        self._response_links[link] = path
        link.accept()

    def attach_requests(self, link: ReceiverLink, path: str) -> Callable[[IncomingDelivery], None]:
        """Attach a link on which the client sends requests; return what responds to one."""
        self._check(path)
        link.accept(max_message_size=_MAX_REQUEST)
        link.keep_credit(_CREDIT)
        return lambda delivery: self._receive(path, delivery)

    def detached(self, link: SenderLink) -> None:
        """Forget a link for responses."""
        self._response_links.pop(link, None)

    def _receive(self, path: str, delivery: IncomingDelivery) -> None:
        try:
            self._respond(path, decode_message(delivery.payload))
        except Refusal as error:
            delivery.settle(rejected(error))
        else:
            delivery.settle(Accepted())

    def _respond(self, path: str, request: Message) -> None:
        """Respond to a request on the link that the client opened for responses; raise InvalidArgument without one."""
        link = self._link_for(path, request.reply_to)
        properties, body = self._response(path, request)
        payload = encode_reply(body, correlation_id=request.message_id, properties=properties)
        link.send(b"response", payload)

    def _check(self, path: str) -> None:
        entity = path.rpartition("/")[0]
        if entity:
            self._broker.path_of(entity)
            self._rights.require(entity, Right.LISTEN | Right.SEND)

    def _response(self, path: str, request: Message) -> Response:
        entity, _, node = path.rpartition("/")
        if node.lower() == _CBS:
            return self._put_token(request), None
        return self._management.respond(entity, request, lambda right: self._rights.require(entity, right))

    def _put_token(self, request: Message) -> dict[str, Any]:
        properties = request.application_properties
        token = request.body.value if isinstance(request.body, AmqpValue) else request.body
        try:
            if properties.get("operation") != "put-token" or not isinstance(token, str):
                raise InvalidArgument("$cbs takes put-token with a token as text")
            resource = str(properties.get("name", ""))
            self._rights.put_token(str(properties.get("type")), token, resource)
            # Like Azure: a good token for an entity that does not exist is refused here already, with 404.
            if entity := entity_path(resource).removesuffix(f"/{_MANAGEMENT}"):
                self._broker.path_of(entity)
        except Refusal as error:
            return {"status-code": Int(error.status), "status-description": str(error)}
        return {"status-code": Int(_ACCEPTED), "status-description": "Accepted"}

    def _link_for(self, path: str, reply_to: str | None) -> SenderLink:
        for link in self._response_links:
            if reply_to and link.target_address == reply_to:
                return link
        for link, node in self._response_links.items():
            if node == path:
                return link
        raise InvalidArgument(f"there is no link for responses to {reply_to!r}")
