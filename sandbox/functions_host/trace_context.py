"""The trace context of a message, and the span of an invocation.

Without a collector the function's spans become children of the sender's: the host passes the message's trace context
on. With one the host has a span of its own between the two and hands it to `SpanSink`.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
# The older name is Service Bus's own.
_PROPERTIES = ("traceparent", "Diagnostic-Id")


@dataclass(frozen=True)
class Span:
    """A finished span; ids are hexadecimal, `parent_id` "" for a root, times in nanoseconds since 1970.

    `error` is the status's text, "error" where it has none, and "" for a span without an error.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, object] = field(default_factory=dict)
    error: str = ""


SpanSink = Callable[[Span], None]


@dataclass(frozen=True)
class SpanContext:
    """A span that others may become children of."""

    trace_id: str
    span_id: str

    @classmethod
    def of(cls, properties: Mapping[str, object]) -> "SpanContext | None":
        """Return the sender's context in a message's application properties."""
        match = _TRACE_PARENT.fullmatch(sent_trace_parent(properties))
        return cls(match[1], match[2]) if match else None

    @classmethod
    def child_of(cls, parent: "SpanContext | None") -> "SpanContext":
        """Make up a context: in the parent's trace, or in a new one."""
        trace_id = parent.trace_id if parent else secrets.token_hex(16)
        return cls(trace_id, secrets.token_hex(8))

    @property
    def trace_parent(self) -> str:
        """The value of the traceparent header. It says that the trace is recorded."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def sent_trace_parent(properties: Mapping[str, object]) -> str:
    """Return the sender's trace context as it stands, or ""."""
    for name in _PROPERTIES:
        text = str(properties.get(name, ""))
        if _TRACE_PARENT.fullmatch(text):
            return text
    return ""
