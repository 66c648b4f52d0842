"""A Service Bus message as the Functions host hands it to a worker: one InvocationRequest.

Names and encodings are those of Azure's host: strings as strings; numbers, dates and dictionaries as JSON; the body as
bytes; nothing at all for what a message does not have.
"""

import base64
import json
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import ModuleType
from typing import cast

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType

# .NET's latest date, in its seven digits: what a message without a time to live says of its end.
_NEVER = "9999-12-31T23:59:59.9999999"
_TRACE_PARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


class UnsupportedBodyError(Exception):
    """The message's body is not binary data; Azure's host fails such an invocation, too."""


def invocation_request(
    protocol: ModuleType, message: ServiceBusReceivedMessage, function_id: str, parameter: str
) -> object:
    """Return the InvocationRequest for one message; raises UnsupportedBodyError."""
    if message.body_type != AmqpMessageBodyType.DATA:
        raise UnsupportedBodyError(f"the body is an AMQP {message.body_type.name.lower()}, not data")
    body = b"".join(cast("Iterable[bytes]", message.body))
    properties = application_properties(message)
    return protocol.InvocationRequest(
        invocation_id=str(uuid.uuid4()),
        function_id=function_id,
        input_data=[protocol.ParameterBinding(name=parameter, data=protocol.TypedData(bytes=body))],
        trigger_metadata=_trigger_metadata(protocol, message, properties),
        trace_context={"trace_parent": _trace_parent(properties)},
    )


def application_properties(message: ServiceBusReceivedMessage) -> dict[str, object]:
    """Return the message's application properties; the client library leaves names and strings as bytes."""
    return {str(_text(name)): _text(value) for name, value in (message.application_properties or {}).items()}


def _trigger_metadata(
    protocol: ModuleType, message: ServiceBusReceivedMessage, properties: Mapping[str, object]
) -> dict[str, object]:
    # The library shows the count as AMQP has it, of earlier deliveries; .NET's counts this one.
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


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _date(moment: datetime) -> str:
    # Without a zone: .NET hands over the date alone. Its serialiser writes no zeros at the end.
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".")


def _json_value(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case _:
            return str(value)


def _trace_parent(properties: Mapping[str, object]) -> str:
    # The invocation continues the trace of whoever sent the message; the older name is Service Bus's own.
    for name in ("traceparent", "Diagnostic-Id"):
        match = _TRACE_PARENT.fullmatch(str(properties.get(name, "")))
        if match is not None:
            return f"00-{match[1]}-{secrets.token_hex(8)}-{match[2]}"
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
