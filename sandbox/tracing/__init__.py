"""Traces on this machine: a receiver that collects spans over OTLP/HTTP, and the trees that they form.

store = SpanStore()
with OtlpReceiver(store) as receiver:           # OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint
    store.outline(opportunity_id)               # JSON: the spans that belong together, each below its parent
"""

from sandbox.tracing.receiver import OtlpReceiver
from sandbox.tracing.spans import SpanStore

__all__ = ["OtlpReceiver", "SpanStore"]
