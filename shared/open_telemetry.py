"""Spans and metrics by OpenTelemetry's SDK; imported only where the setting TELEMETRY_EXPORTER asks for it.

Names follow the semantic conventions. Azure Monitor leaves `messaging.*`, `http.*` and `net.*` out of the properties
that people search, so ids and outcomes have names of ours besides. Exporters run in threads of their own: what a slow
collector does not take is dropped.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry.context import Context, attach, detach, get_value, set_value
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.errors import InvoicingFailure, RetryPolicy
from shared.settings import Namespace
from shared.tracing import InvocationSpan, RequestSpan, SendSpan, Span, TelemetryExporter, Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from opentelemetry import trace
    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from shared.errors import RetryLater
    from shared.message import Delivery
    from shared.settings import ServiceBusSettings

_NAME: Final = "invoice-from-opportunity"
# What the end of the process waits for the last export.
_FLUSH_SECONDS: Final = 2.0
# How long spans wait for others: a process that is killed loses as much. The SDK's default is 5 s.
_BATCH_MILLISECONDS: Final = 1000
# Without it, azure-core waits five minutes for a response.
_READ_SECONDS: Final = 10
# Azure Monitor's exporter reports about itself to Microsoft, and asks there for its configuration, in threads of its
# own that may delay the end of the process by half a minute. A value in the app settings wins.
_AZURE_STATISTICS: Final = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
)
# Ids in the path of a request: names of spans must be few.
_KEYS: Final = re.compile(r"\([^)]*\)")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
# Seconds. The boundaries for requests are those of the conventions, with some above for Dataverse's two minutes.
_REQUEST_SECONDS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    30,
    60,
    120,
)
_WIN_SECONDS: Final = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14400, 43200, 86400, 172800, 259200)
# Under this key the context has the attributes that an invocation's spans have in common.
_COMMON: Final = "invoicing-common-attributes"

OPPORTUNITY: Final = "invoicing.opportunity.id"
INVOICE: Final = "invoicing.invoice.id"
MESSAGE: Final = "invoicing.message.id"
ROOT: Final = "invoicing.root"
ATTEMPT: Final = "invoicing.attempt"
OUTCOME: Final = "invoicing.outcome"
REASON: Final = "invoicing.reason"
REQUEST: Final = "invoicing.request.id"

Attributes = dict[str, str | int | bool]


def start(exporter: TelemetryExporter, service_bus: ServiceBusSettings) -> OpenTelemetry:
    """Return what records for Azure Monitor or for an OTLP collector, and flush it when the process ends.

    The exporters read their own environment variables. Raises ImportError if they are not installed, and any
    exception of theirs.
    """
    resource = _resource()
    # Also within a trace that the host does not sample: spans are few, and a tree with gaps explains nothing.
    sampler = None if "OTEL_TRACES_SAMPLER" in os.environ else ALWAYS_ON
    traces = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    spans, metrics = _exporters(exporter, traces)
    delay = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _BATCH_MILLISECONDS
    traces.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=delay))
    # A collector may take traces only, such as Jaeger's.
    readers = (
        [] if os.environ.get("OTEL_METRICS_EXPORTER") == "none" else [PeriodicExportingMetricReader(metrics)]
    )
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)

    def end() -> None:
        traces.shutdown()
        meters.shutdown()

    atexit.register(Flush(end))
    return OpenTelemetry(traces, meters, service_bus)


class Flush:
    """Ends the exporters on a call, and waits `seconds` at most.

    The SDK itself waits for half a minute. The thread begins here, since a process that ends may start none.
    """

    def __init__(self, end: Callable[[], None], seconds: float = _FLUSH_SECONDS) -> None:
        self._end = end
        self._seconds = seconds
        self._called = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry flush", daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        """Export what is left; a second call does nothing."""
        self._called.set()
        self._thread.join(self._seconds)

    def _run(self) -> None:
        self._called.wait()
        self._end()


def _resource() -> Resource:
    resource = Resource.create()
    # The SDK's own name, which it uses where the standard variables name none.
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: os.environ.get("WEBSITE_SITE_NAME", _NAME)}))
    return resource


def _exporters(exporter: TelemetryExporter, traces: TracerProvider) -> tuple[SpanExporter, MetricExporter]:
    # A package contains one of the two.
    if exporter is TelemetryExporter.OTLP:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
            OTLPMetricExporter,
        )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        return OTLPSpanExporter(), OTLPMetricExporter()
    for name in _AZURE_STATISTICS:
        os.environ.setdefault(name, "true")
    from azure.monitor.opentelemetry.exporter import (  # noqa: PLC0415
        AzureMonitorMetricExporter,
        AzureMonitorTraceExporter,
    )

    # Without the provider each export logs a stack trace. What is not exported is not written to the disk.
    return (
        AzureMonitorTraceExporter(
            tracer_provider=traces, disable_offline_storage=True, read_timeout=_READ_SECONDS
        ),
        AzureMonitorMetricExporter(disable_offline_storage=True, read_timeout=_READ_SECONDS),
    )


class OpenTelemetry(Tracing):
    """Records with the SDK's providers."""

    def __init__(
        self, traces: TracerProvider, meters: MeterProvider, service_bus: ServiceBusSettings
    ) -> None:
        self._tracer = traces.get_tracer(_NAME)
        self._metrics = _Metrics(meters.get_meter(_NAME))
        self._queue = service_bus.opportunity_won_queue
        self._broker: Attributes = {"messaging.system": "servicebus"}
        if isinstance(service_bus.connection, Namespace):
            host = service_bus.connection.fully_qualified
            # Azure Monitor takes the target of a message from the older name.
            self._broker |= {"server.address": host, "net.peer.name": host}
        self._invocations = itertools.count()

    def invocation(self, delivery: Delivery, invocation_id: str | None) -> InvocationSpan:
        """See Tracing. INTERNAL, since CONSUMER becomes a second request beside the host's in Azure Monitor."""
        common: Attributes = {ROOT: delivery.state.root, ATTEMPT: delivery.state.attempt}
        attributes: Attributes = {
            **self._broker,
            **common,
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": self._queue,
            "faas.trigger": "pubsub",
            "faas.coldstart": next(self._invocations) == 0,
        }
        if delivery.message.message_id is not None:
            attributes |= {
                "messaging.message.id": delivery.message.message_id,
                MESSAGE: delivery.message.message_id,
            }
        if invocation_id is not None:
            attributes["faas.invocation_id"] = invocation_id
        # Not the thread's own context: which worker attaches one is not confirmed.
        parent = _PROPAGATOR.extract(delivery.trace_properties, Context())
        span = self._tracer.start_span(
            f"process {self._queue}", parent, kind=SpanKind.INTERNAL, attributes=attributes
        )
        return _Invocation(span, parent, common, self._metrics)

    def request(self, method: str, root: str, target: str, request_id: str) -> RequestSpan:
        """See Tracing."""
        server = _server(root)
        span = self._tracer.start_span(
            f"{method} {_KEYS.sub('', target)}",
            kind=SpanKind.CLIENT,
            attributes={
                **_common(),
                **server,
                "http.request.method": method,
                "url.full": root + target,
                REQUEST: request_id,
            },
        )
        return _Request(span, {**server, "http.request.method": method}, self._metrics)

    def send(self, entity: str, message_id: str, operation: str) -> SendSpan:
        """See Tracing."""
        span = self._tracer.start_span(
            f"send {entity}",
            kind=SpanKind.PRODUCER,
            attributes={
                **_common(),
                **self._broker,
                "messaging.operation.type": "send",
                "messaging.operation.name": operation,
                "messaging.destination.name": entity,
                "messaging.message.id": message_id,
                MESSAGE: message_id,
            },
        )
        return _Send(span)

    def invoice_generated(self) -> None:
        """See Tracing."""
        self._metrics.generated.add(1)

    def throttled(self) -> None:
        """See Tracing."""
        self._metrics.throttled.add(1)


class _Metrics:
    """The instruments."""

    def __init__(self, meter: Meter) -> None:
        self.generated = meter.create_counter(
            "invoicing.invoices.generated", "{invoice}", "Invoices that Dataverse generated for the function."
        )
        self.published = meter.create_counter(
            "invoicing.events.published", "{event}", "Events that were sent to the topic."
        )
        self.retried = meter.create_counter("invoicing.retries", "{message}", "Scheduled retries, by reason.")
        self.parked = meter.create_counter(
            "invoicing.parked", "{message}", "Messages sent to the failed queue, by reason."
        )
        self.win_to_event = meter.create_histogram(
            "invoicing.win_to_event.duration",
            "s",
            "From the win's message to its event.",
            explicit_bucket_boundaries_advisory=_WIN_SECONDS,
        )
        self.request = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of requests to Dataverse.",
            explicit_bucket_boundaries_advisory=_REQUEST_SECONDS,
        )
        self.throttled = meter.create_counter(
            "invoicing.dataverse.throttled",
            "{response}",
            "Responses by which Dataverse throttled the process.",
        )


class _Recorded(Span):
    """A span that is the thread's current one within its block."""

    def __init__(self, span: trace.Span, context: Context | None = None) -> None:
        self._span = span
        self._context = set_span_in_context(span, context)

    def __enter__(self) -> Self:
        self._token: Token[Context] = attach(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(_reason(error))
        detach(self._token)
        self._span.end()

    def _fail(self, reason: str) -> None:
        # Not the text of the error: the log has it, and it may quote what a plug-in says.
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR, reason))


class _Invocation(_Recorded, InvocationSpan):
    def __init__(self, span: trace.Span, parent: Context, common: Attributes, metrics: _Metrics) -> None:
        super().__init__(span, set_value(_COMMON, common, parent))
        self._common = common
        self._metrics = metrics

    def concerns(self, opportunity_id: str) -> None:
        self._span.set_attribute(OPPORTUNITY, opportunity_id)
        self._common[OPPORTUNITY] = opportunity_id

    def published(self, invoice_id: str, seconds: float) -> None:
        self._span.set_attributes({OUTCOME: "published", INVOICE: invoice_id})
        self._metrics.published.add(1)
        self._metrics.win_to_event.record(seconds)

    def ignored(self) -> None:
        self._span.set_attribute(OUTCOME, "ignored")

    def retried(self, error: RetryLater) -> None:
        self._span.set_attributes({OUTCOME: "retry", REASON: error.reason})
        self._metrics.retried.add(1, {REASON: error.reason})
        # An opportunity that is still open is the normal course where a synchronous step posts.
        if error.policy is not RetryPolicy.OPEN:
            self._fail(error.reason)

    def parked(self, error: InvoicingFailure) -> None:
        self._span.set_attributes({OUTCOME: "parked", REASON: error.reason})
        self._metrics.parked.add(1, {REASON: error.reason})
        self._fail(error.reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._span.set_attributes({OUTCOME: "failed", REASON: _reason(error)})
        super().__exit__(kind, error, traceback)


class _Request(_Recorded, RequestSpan):
    def __init__(self, span: trace.Span, measured: Attributes, metrics: _Metrics) -> None:
        super().__init__(span)
        self._measured = measured
        self._metrics = metrics
        self._started = time.perf_counter()

    def responded(self, status: int) -> None:
        self._measured["http.response.status_code"] = status
        self._span.set_attribute("http.response.status_code", status)
        if status >= 400:  # noqa: PLR2004 - where HTTP's errors begin
            self._fail(str(status))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._metrics.request.record(time.perf_counter() - self._started, self._measured)

    def _fail(self, reason: str) -> None:
        self._measured["error.type"] = reason
        super()._fail(reason)


class _Send(_Recorded, SendSpan):
    def __init__(self, span: trace.Span) -> None:
        super().__init__(span)
        context = span.get_span_context()
        # Of the flags only the one that every receiver knows.
        sampled = int(context.trace_flags.sampled)
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled:02x}"


def _common() -> Attributes:
    """Return the attributes of the present invocation; a new dictionary outside of one."""
    common = get_value(_COMMON)
    return common if isinstance(common, dict) else {}


@lru_cache(maxsize=8)
def _server(root: str) -> Mapping[str, str | int]:
    address = urlsplit(root)
    # Azure Monitor shows "host:None" without a port.
    return {"server.address": address.hostname or "", "server.port": address.port or 443}


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, InvoicingFailure) else type(error).__name__
