"""What the SDKs ask of an entity's `$management` node, beside sending and receiving.

One request, one response, in the shapes of Microsoft's "AMQP request/response based operations" page. Sessions
and bulk deletion exist in Azure and are refused here by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from sandbox.service_bus.amqp.encoding import Array, Int, Symbol, Timestamp
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.codec import decode_message, encode_message, to_timestamp, with_text_keys
from sandbox.service_bus.configuration import Right
from sandbox.service_bus.errors import InvalidArgument, NotSupported, Refusal
from sandbox.service_bus.messages import AmqpValue, BrokeredMessage, Message, ReceiveMode
from sandbox.service_bus.rules import decode_rule, encode_rule

_PREFIX = "com.microsoft:"
_NO_CONTENT = 204
_OK = 200
_PEEK_LOCK = 1
_MAX_MESSAGES = 250
_OF_SESSIONS = {
    f"{_PREFIX}{each}"
    for each in ("renew-session-lock", "set-session-state", "get-session-state", "get-message-sessions")
}

Response = tuple[Mapping[str, Any], Any]
Body = Mapping[str, Any]


class Management:
    """Responds to management requests out of a broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._operations: Mapping[str, tuple[Right, Callable[[str, Body], tuple[int, Any]]]] = {
            "renew-lock": (Right.LISTEN, self._renew_lock),
            "peek-message": (Right.LISTEN, self._peek),
            "receive-by-sequence-number": (Right.LISTEN, self._receive_deferred),
            "update-disposition": (Right.LISTEN, self._settle),
            "schedule-message": (Right.SEND, self._schedule),
            "cancel-scheduled-message": (Right.SEND, self._cancel_scheduled),
            # Listen is enough for them, like in Azure.
            "enumerate-rules": (Right.LISTEN, self._enumerate_rules),
            "add-rule": (Right.LISTEN, self._add_rule),
            "remove-rule": (Right.LISTEN, self._remove_rule),
        }

    def respond(self, entity: str, request: Message, require: Callable[[Right], None]) -> Response:
        """Return a response's application properties and body; `require` raises where a right is missing."""
        try:
            status, body = self._carry_out(entity, request, require)
        except Refusal as error:
            condition = Symbol(error.condition)
            return _status(error.status, str(error)) | {"errorCondition": condition}, None
        return _status(status, "OK"), body

    def _carry_out(self, entity: str, request: Message, require: Callable[[Right], None]) -> tuple[int, Any]:
        name = str(request.application_properties.get("operation", ""))
        right, operation = self._operations.get(name.removeprefix(_PREFIX), (None, None))
        if right is None or operation is None or not name.startswith(_PREFIX):
            what = "sessions" if name in _OF_SESSIONS else f"the management operation {name!r}"
            raise NotSupported(f"The Service Bus emulator does not support {what}.")
        require(right)
        body = request.body.value if isinstance(request.body, AmqpValue) else None
        if not isinstance(body, dict):
            raise InvalidArgument(f"the body of {name} must be a map")
        try:
            return operation(entity, with_text_keys(body))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(
                f"the body of {name} has another shape than it should: {error!r}"
            ) from error

    def _renew_lock(self, entity: str, body: Body) -> tuple[int, Any]:
        until = [self._broker.renew_lock(entity, token) for token in _tokens(body)]
        return _OK, {"expirations": Array.of(Timestamp, map(to_timestamp, until))}

    def _peek(self, entity: str, body: Body) -> tuple[int, Any]:
        start, count = int(body.get("from-sequence-number", 0)), int(body.get("message-count", 1))
        messages = self._broker.peek(entity, start, min(max(count, 0), _MAX_MESSAGES))
        # A peeked message may be locked by another receiver: that lock is not shown.
        unlocked = (replace(each, lock_token=None, locked_until=None) for each in messages)
        return _messages([{"message": encode_message(each, with_state=True)} for each in unlocked])

    def _receive_deferred(self, entity: str, body: Body) -> tuple[int, Any]:
        lock = int(body.get("receiver-settle-mode", _PEEK_LOCK)) == _PEEK_LOCK
        mode = ReceiveMode.PEEK_LOCK if lock else ReceiveMode.RECEIVE_AND_DELETE
        messages = self._broker.receive_deferred(entity, _numbers(body), mode)
        return _messages([_with_lock(each) for each in messages])

    def _settle(self, entity: str, body: Body) -> tuple[int, Any]:
        changed = with_text_keys(body.get("properties-to-modify"))
        reason, description = body.get("deadletter-reason"), body.get("deadletter-description")
        for token in _tokens(body):
            match body.get("disposition-status"):
                case "completed":
                    self._broker.complete(entity, token)
                case "abandoned":
                    self._broker.abandon(entity, token, changed)
                case "defered":
                    self._broker.defer(entity, token, changed)
                case "suspended":
                    self._broker.dead_letter(entity, token, reason, description, changed)
                case status:
                    raise InvalidArgument(f"there is no disposition status {status!r}")
        return _OK, None

    def _schedule(self, entity: str, body: Body) -> tuple[int, Any]:
        encoded = [bytes(each["message"]) for each in body.get("messages", [])]
        size = sum(len(each) for each in encoded)
        numbers = self._broker.schedule(entity, *(decode_message(each) for each in encoded), size=size)
        return _OK, {"sequence-numbers": Array.of(int, numbers)}

    def _cancel_scheduled(self, entity: str, body: Body) -> tuple[int, Any]:
        self._broker.cancel_scheduled(entity, _numbers(body))
        return _OK, None

    def _enumerate_rules(self, entity: str, body: Body) -> tuple[int, Any]:
        skip, top = int(body.get("skip", 0)), int(body.get("top", _MAX_MESSAGES))
        rules = self._broker.rules(entity)[max(skip, 0) :][: max(top, 0)]
        if not rules:
            return _NO_CONTENT, None
        return _OK, {"rules": [{"rule-description": encode_rule(*each)} for each in rules]}

    def _add_rule(self, entity: str, body: Body) -> tuple[int, Any]:
        self._broker.add_rule(entity, decode_rule(body.get("rule-name"), body.get("rule-description")))
        return _OK, None

    def _remove_rule(self, entity: str, body: Body) -> tuple[int, Any]:
        self._broker.remove_rule(entity, str(body.get("rule-name")))
        return _OK, None


def _status(code: int, description: str) -> dict[str, Any]:
    return {"statusCode": Int(code), "statusDescription": description}


def _messages(maps: list[dict[str, Any]]) -> tuple[int, Any]:
    return (_OK, {"messages": maps}) if maps else (_NO_CONTENT, None)


def _with_lock(message: BrokeredMessage) -> dict[str, Any]:
    encoded = {"message": encode_message(message, with_state=True)}
    return {**encoded, "lock-token": message.lock_token} if message.lock_token is not None else encoded


def _tokens(body: Body) -> list[UUID]:
    return [each for each in _elements(body, "lock-tokens") if isinstance(each, UUID)]


def _numbers(body: Body) -> list[int]:
    return [int(each) for each in _elements(body, "sequence-numbers")]


def _elements(body: Body, name: str) -> list[Any]:
    """Return a member that the SDKs send as an array, or as a list."""
    value = body.get(name)
    elements = value.items if isinstance(value, Array) else value
    if not isinstance(elements, list | tuple) or not elements:
        raise InvalidArgument(f"{name} must be an array with something in it")
    return list(elements)
