"""The trace context of a message, and the span of an invocation.

Without a collector the function's spans become children of the sender's: the host passes the message's trace context
on. With one the host has a span of its own between the two and hands it to `SpanSink`.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
# The older name is Service Bus's own.
_PROPERTIES = ("traceparent", "Diagnostic-Id")


@dataclass(frozen=True)
class InvocationSpan:
    """A finished invocation as a span; ids are hexadecimal, `parent_id` "" for a root, times in nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    failure: str = ""


SpanSink = Callable[[InvocationSpan], None]


@dataclass(frozen=True)
class SpanContext:
    """A span that others may become children of."""

    trace_id: str
    span_id: str

    @classmethod
    def of(cls, properties: Mapping[str, object]) -> "SpanContext | None":
        """Return the sender's context in a message's application properties."""
        for name in _PROPERTIES:
            match = _TRACE_PARENT.fullmatch(str(properties.get(name, "")))
            if match is not None:
                return cls(match[1], match[2])
        return None

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


def now_ns() -> int:
    """Return the time of spans."""
    return time.time_ns()
