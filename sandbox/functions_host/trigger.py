"""A Service Bus message as the Functions host hands it to a worker: one InvocationRequest.

Names and encodings are those of Azure's host: strings as strings; numbers, dates and dictionaries as JSON; nothing at
all for what a message does not have. The body is bytes, or a string where the trigger's dataType says so, which has a
side effect in Azure as well: the members of a JSON body overwrite the message's metadata (`_overwritten_by`).
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import ModuleType
from typing import Any, cast

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType

from sandbox.functions_host.functions import DataType, Function

# .NET's latest date, in its seven digits: what a message without a time to live says of its end.
_NEVER = "9999-12-31T23:59:59.9999999"


class UnsupportedBody(Exception):
    """The message's body cannot be bound to the trigger's data type; Azure's host fails such an invocation, too."""


def invocation_request(
    protocol: ModuleType, message: ServiceBusReceivedMessage, function: Function, trace_parent: str
) -> object:
    """Return the InvocationRequest for one message; raises UnsupportedBody.

    `trace_parent` is what the function gets as its trace context, or "" for none.
    """
    metadata = _trigger_metadata(protocol, message, application_properties(message))
    if function.trigger.data_type is DataType.STRING:
        text = _text_body(message)
        metadata = _overwritten_by(text, metadata, protocol)
        data = protocol.TypedData(string=text)
    else:
        data = protocol.TypedData(bytes=_binary_body(message))
    return protocol.InvocationRequest(
        invocation_id=str(uuid.uuid4()),
        function_id=function.declaration.function_id,
        input_data=[protocol.ParameterBinding(name=function.trigger.parameter, data=data)],
        trigger_metadata=metadata,
        trace_context={"trace_parent": trace_parent},
    )


def application_properties(message: ServiceBusReceivedMessage) -> dict[str, object]:
    """Return the message's application properties; the client library leaves names and strings as bytes."""
    return {str(_text(name)): _text(value) for name, value in (message.application_properties or {}).items()}


def _trigger_metadata(
    protocol: ModuleType, message: ServiceBusReceivedMessage, properties: Mapping[str, object]
) -> dict[str, object]:
    # The library returns AMQP's count, of earlier deliveries; .NET's counts this one.
    numbers = {"DeliveryCount": (message.delivery_count or 0) + 1, "SequenceNumber": message.sequence_number}
    dates = {
        "EnqueuedTimeUtc": _date(message.enqueued_time_utc) if message.enqueued_time_utc else None,
        "ExpiresAtUtc": _date(message.expires_at_utc) if message.expires_at_utc else _NEVER,
    }
    dictionaries = {"ApplicationProperties": properties, "UserProperties": properties}
    texts = {
        "ContentType": message.content_type,
        "CorrelationId": message.correlation_id,
        "DeadLetterSource": message.dead_letter_source,
        "Label": message.subject,
        "LockToken": message.lock_token,
        "MessageId": message.message_id,
        "PartitionKey": message.partition_key,
        "ReplyTo": message.reply_to,
        "ReplyToSessionId": message.reply_to_session_id,
        "SessionId": message.session_id,
        "Subject": message.subject,
        "To": message.to,
    }
    metadata: dict[str, object] = {
        name: protocol.TypedData(json=json.dumps(value, default=_json_value, ensure_ascii=False))
        for name, value in (numbers | dates | dictionaries).items()
        if value is not None
    }
    for name, text in texts.items():
        if text is not None:
            metadata[name] = protocol.TypedData(string=str(_text(text)))
    return metadata


def _binary_body(message: ServiceBusReceivedMessage) -> bytes:
    if message.body_type != AmqpMessageBodyType.DATA:
        raise UnsupportedBody(f"the body is an AMQP {message.body_type.name.lower()}, not data")
    return b"".join(cast("Iterable[bytes]", message.body))


def _text_body(message: ServiceBusReceivedMessage) -> str:
    if message.body_type == AmqpMessageBodyType.VALUE:
        value = _text(message.body)
        if isinstance(value, str):
            return value
        raise UnsupportedBody(f"an AMQP value of type {type(value).__name__} cannot be bound to a string")
    body = _binary_body(message)
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Azure's host first tries binary XML, a string that .NET's DataContractSerializer wrote. This one does not.
        return body.decode(errors="replace")


def _overwritten_by(text: str, metadata: Mapping[str, object], protocol: ModuleType) -> dict[str, object]:
    """Return the metadata with the top-level members of a JSON body, which overwrite it.

    Names are compared without regard to case, and a name that exists keeps its spelling. Null and lists are left out,
    objects stay JSON, anything else becomes a string. Source: ApplyBindingData in azure-functions-host.
    """
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return dict(metadata)
    if not isinstance(members, dict):
        return dict(metadata)
    spelling = {name.lower(): name for name in metadata}
    overwritten = dict(metadata)
    for name, value in members.items():
        if value is not None and not isinstance(value, list):
            known = spelling.setdefault(name.lower(), name)
            overwritten[known] = _member(value, protocol)
    return overwritten


def _member(value: object, protocol: ModuleType) -> Any:  # noqa: ANN401 - protobuf classes are made at run time
    if isinstance(value, dict):
        return protocol.TypedData(json=json.dumps(value, ensure_ascii=False))
    # .NET writes True and False with a capital letter, like Python.
    return protocol.TypedData(string=str(value))


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _date(moment: datetime) -> str:
    # Without a zone: .NET hands over the date alone. Its serialiser writes no zeros at the end.
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".")


def _json_value(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
