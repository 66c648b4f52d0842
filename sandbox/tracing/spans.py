"""Finished spans, and the trees that they form."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from sandbox.functions_host.trace_context import Span, SpanContext

_MAX_SPANS = 50_000

Json = dict[str, Any]


class SpanStore:
    """The newest spans; safe under many threads."""

    def __init__(self, max_spans: int = _MAX_SPANS) -> None:
        self._spans: deque[Span] = deque(maxlen=max_spans)
        self._lock = threading.Lock()

    def add(self, *spans: Span) -> None:
        """Keep spans."""
        with self._lock:
            self._spans.extend(spans)

    @contextmanager
    def recording(self, name: str, service: str, attributes: Mapping[str, object]) -> Iterator[SpanContext]:
        """Record the block as a root span; its context goes to those who shall be its children."""
        context = SpanContext.child_of(None)
        started = time.time_ns()
        error = ""
        try:
            yield context
        except Exception as failure:
            error = type(failure).__name__
            raise
        finally:
            ended = time.time_ns()
            self.add(
                Span(context.trace_id, context.span_id, "", name, service, started, ended, attributes, error)
            )

    def outline(self, about: str | None = None) -> list[Json]:
        """Return the spans of the traces in which a span has `about` as an attribute's value, or of all traces.

        Each span stands below its parent and has its `depth`; siblings are sorted by time. The spans are not nested: a
        trace has hundreds of levels where a win is retried for days, and JSON's readers and writers recurse. A span
        whose parent is missing is a root, of depth 0, so a trace with gaps has several roots.
        """
        with self._lock:
            spans = list(self._spans)
        by_trace: dict[str, dict[str, Span]] = defaultdict(dict)
        for span in spans:
            # An exporter that got no response sends a span again.
            by_trace[span.trace_id][span.span_id] = span
        return [
            _json(span, depth)
            for trace in by_trace.values()
            if about is None or any(_mentions(span, about) for span in trace.values())
            for span, depth in _ordered(trace)
        ]


def _mentions(span: Span, text: str) -> bool:
    return any(str(value).lower() == text.lower() for value in span.attributes.values())


def _ordered(trace: Mapping[str, Span]) -> Iterator[tuple[Span, int]]:
    """Yield each span after its parent, with its depth."""
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(trace.values(), key=attrgetter("started_ns"), reverse=True):
        children[span.parent_id if span.parent_id in trace else ""].append(span)
    waiting = [(root, 0) for root in children[""]]
    while waiting:
        span, depth = waiting.pop()
        yield span, depth
        waiting += [(child, depth + 1) for child in children[span.span_id]]


def _json(span: Span, depth: int) -> Json:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentId": span.parent_id,
        "depth": depth,
        "name": span.name,
        "service": span.service,
        "startedAt": datetime.fromtimestamp(span.started_ns / 1e9, UTC).isoformat(),
        "milliseconds": round((span.ended_ns - span.started_ns) / 1e6, 1),
        "attributes": dict(span.attributes),
        "error": span.error,
    }
