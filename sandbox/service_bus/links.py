"""Links to entities: messages that a client sends, and messages that are delivered to it.

Every rule is the broker's; here AMQP's deliveries and outcomes become calls of the broker and the other way round.
"""

from typing import Any
from uuid import UUID

from sandbox.service_bus.amqp import Condition, IncomingDelivery, OutgoingDelivery, ReceiverLink, SenderLink
from sandbox.service_bus.amqp.encoding import Symbol
from sandbox.service_bus.amqp.performatives import Accepted, Modified, Received, Rejected, Released
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.client_socket import ClientSocket
from sandbox.service_bus.codec import decode_transfer, encode_message, with_text_keys
from sandbox.service_bus.errors import NotSupported, Refusal
from sandbox.service_bus.interception import Call, Direction, Interceptor, Operation
from sandbox.service_bus.messages import BrokeredMessage, Message, ReceiveMode

# Like Azure: how many messages a client may send before it gets credit again.
_CREDIT = 1000
# What is collected before it is sent: a client that asks for much and reads nothing becomes congested after it.
_MAX_PENDING_OUTPUT = 64 * 1024
PRODUCT = {Symbol("product"): "Service Bus emulator"}
_ACCEPTED = Accepted()


def amqp_error(error: Refusal) -> Condition:
    """Return a refusal as AMQP states it. Microsoft's Python library reads the third field without checking."""
    return Condition(error.condition, str(error), PRODUCT)


def rejected(error: Refusal) -> Rejected:
    """Return a refusal as an outcome."""
    return Rejected(amqp_error(error))


class EntityReceiver:
    """Receives what a client sends to an entity."""

    def __init__(
        self,
        link: ReceiverLink,
        path: str,
        broker: Broker,
        socket: ClientSocket,
        interceptor: Interceptor,
    ) -> None:
        self.path = path
        self._broker = broker
        self._socket = socket
        self._interceptor = interceptor
        link.keep_credit(_CREDIT)

    def receive(self, delivery: IncomingDelivery) -> None:
        """Send a transfer's messages to the entity, and state the outcome."""
        try:
            messages = decode_transfer(delivery.payload, delivery.message_format)
        except Refusal as error:
            delivery.settle(rejected(error))
            return
        is_scheduled = any(message.scheduled_enqueue_time for message in messages)
        self._interceptor.intercept(
            Call(
                Operation.SCHEDULE if is_scheduled else Operation.SEND,
                Direction.SENDS,
                self.path,
                f"message {', '.join(str(message.message_id) for message in messages)}",
                self._socket,
                carry_out=lambda: delivery.settle(self._send(delivery, messages)),
                carry_out_unconfirmed=lambda: self._send(delivery, messages),
                refuse=lambda error: delivery.settle(rejected(error)),
            )
        )

    def _send(self, delivery: IncomingDelivery, messages: list[Message]) -> Accepted | Rejected:
        """Send a transfer's messages; return the outcome."""
        try:
            self._broker.send(self.path, *messages, size=len(delivery.payload))
        except Refusal as error:
            return rejected(error)
        return _ACCEPTED


class EntitySender:
    """Delivers an entity's messages to a client, and carries out what the client decides about them."""

    def __init__(
        self,
        link: SenderLink,
        path: str,
        mode: ReceiveMode,
        broker: Broker,
        socket: ClientSocket,
        interceptor: Interceptor,
    ) -> None:
        self.path = path
        self.mode = mode
        self._link = link
        self._broker = broker
        self._socket = socket
        self._interceptor = interceptor

    def wants(self) -> bool:
        """Return whether the client takes a message now."""
        return self._link.can_send and not self._socket.is_congested

    def fail(self, error: Refusal) -> None:
        """End the link with an error."""
        self._link.detach(amqp_error(error))

    def flush(self) -> None:
        """Send what was delivered."""
        self._socket.flush()

    def deliver(self, brokered: BrokeredMessage) -> None:
        """Send a message."""
        self._interceptor.intercept(
            Call(
                Operation.DELIVER,
                Direction.RECEIVES,
                self.path,
                f"message {brokered.message.message_id}, delivery {brokered.delivery_count + 1}",
                self._socket,
                carry_out=lambda: self._deliver(brokered),
                carry_out_unconfirmed=lambda: self._deliver(brokered),
                refuse=self.fail,
                lock_token=brokered.lock_token,
            )
        )

    def _deliver(self, brokered: BrokeredMessage) -> None:
        """Send a message; its delivery tag is the lock token, as the SDKs expect, and empty without a lock."""
        token = brokered.lock_token
        tag = b"" if token is None else token.bytes_le
        self._link.send(tag, encode_message(brokered), settled=token is None, context=token)
        if self._socket.amqp.pending_output > _MAX_PENDING_OUTPUT:
            self._socket.flush()

    def settle(self, delivery: OutgoingDelivery, state: Any) -> None:  # noqa: ANN401 - what the client states
        """Carry out what the client decided about a message, and confirm it, or state why not."""
        token = delivery.context
        if isinstance(state, Received):
            return  # no outcome yet
        self._interceptor.intercept(
            Call(
                Operation.SETTLE,
                Direction.RECEIVES,
                self.path,
                f"outcome {type(state).__name__.lower()}",
                self._socket,
                carry_out=lambda: delivery.settle(self._settle(token, state)),
                carry_out_unconfirmed=lambda: self._settle(token, state),
                refuse=lambda error: delivery.settle(rejected(error)),
                lock_token=token,
            )
        )

    def _settle(self, token: UUID, state: Any) -> Any:  # noqa: ANN401 - an outcome
        """Carry out an outcome; return the one to confirm."""
        try:
            self._decide(token, state)
        except Refusal as error:
            return rejected(error)
        # Without the client's own details: the SDKs take an error there for a refusal.
        return type(state)()

    def _decide(self, token: UUID, state: Any) -> None:  # noqa: ANN401
        match state:
            case Accepted():
                self._broker.complete(self.path, token)
            case Released():
                self._broker.release(self.path, token)
            case Rejected(error):
                info = with_text_keys(error.info if error is not None else None)
                reason = info.pop("DeadLetterReason", None)
                description = info.pop("DeadLetterErrorDescription", None)
                self._broker.dead_letter(self.path, token, reason, description, info)
            case Modified(_, undeliverable_here, annotations):
                act = self._broker.defer if undeliverable_here else self._broker.abandon
                act(self.path, token, with_text_keys(annotations))
            case _:
                raise NotSupported("The Service Bus emulator does not support transactions.")
