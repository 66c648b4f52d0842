"""A subscription's rules as `$management` carries them: maps in requests, described lists in responses.

The shapes are those of Microsoft's "AMQP request/response based operations" page and of its JavaScript client.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sandbox.service_bus.amqp.encoding import Described, Int, ULong
from sandbox.service_bus.codec import to_timestamp
from sandbox.service_bus.configuration import Rule
from sandbox.service_bus.errors import InvalidArgument, NotSupported
from sandbox.service_bus.filters import ConstantFilter, CorrelationFilter, Filter, InvalidFilter, SqlFilter

_RULE, _NO_ACTION = ULong(0x13700000004), ULong(0x13700000005)
_SQL, _TRUE, _FALSE = ULong(0x1370000006), ULong(0x1370000007), ULong(0x1370000008)
_CORRELATION = ULong(0x1370000009)
_COMPATIBILITY_LEVEL = Int(20)
# A correlation filter's system properties: their names in requests, which are also in the order of responses, and
# their names in filters.
_SYSTEM = {
    "correlation-id": "CorrelationId",
    "message-id": "MessageId",
    "to": "To",
    "reply-to": "ReplyTo",
    "label": "Label",
    "session-id": "SessionId",
    "reply-to-session-id": "ReplyToSessionId",
    "content-type": "ContentType",
}


def encode_rule(rule: Rule, created_at: datetime) -> Described:
    """Return a rule for a response."""
    action = Described(_NO_ACTION, [])
    return Described(_RULE, [_encode_filter(rule.filter), action, rule.name, to_timestamp(created_at)])


def decode_rule(name: object, description: object) -> Rule:
    """Return the rule of a request; raise InvalidArgument or NotSupported."""
    if not isinstance(name, str) or not isinstance(description, dict):
        raise InvalidArgument("a rule has a name and a description")
    if description.get("sql-rule-action"):
        raise NotSupported("The Service Bus emulator does not support actions of rules.")
    try:
        return Rule(name, _decode_filter(description))
    except InvalidFilter as error:
        raise InvalidArgument(str(error)) from error


def _encode_filter(rule_filter: Filter) -> Described:
    match rule_filter:
        case SqlFilter(expression):
            return Described(_SQL, [expression, _COMPATIBILITY_LEVEL])
        case CorrelationFilter(system, application_properties):
            # Filters from the entities file may write the names in any case.
            values = {key.lower(): value for key, value in system.items()}
            values.setdefault("label", values.get("subject"))
            fields: list[Any] = [values.get(each.lower()) for each in _SYSTEM.values()]
            return Described(_CORRELATION, [*fields, dict(application_properties)])
    return Described(_TRUE if rule_filter == ConstantFilter(value=True) else _FALSE, [])


def _decode_filter(description: Mapping[Any, Any]) -> Filter:
    if "true-filter" in description:
        return ConstantFilter(value=True)
    if "false-filter" in description:
        return ConstantFilter(value=False)
    if isinstance(sql := description.get("sql-filter"), dict):
        return SqlFilter(str(sql.get("expression", "")))
    if isinstance(correlation := description.get("correlation-filter"), dict):
        system = {name: correlation[key] for key, name in _SYSTEM.items() if correlation.get(key) is not None}
        return CorrelationFilter(system, dict(correlation.get("properties") or {}))
    raise InvalidArgument("a rule has a true, a false, an SQL or a correlation filter")
