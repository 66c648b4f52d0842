"""Spans and metrics: recorded by OpenTelemetry's SDK in memory, or not at all."""

from __future__ import annotations

import atexit
import gc
import gzip
import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode
from requests import ReadTimeout
from requests.adapters import HTTPAdapter

from shared import multipart
from shared.bootstrap import build, start_tracing
from shared.clock import Deadline, SystemClock
from shared.dataverse import Dataverse, Read
from shared.errors import DataverseThrottled, InvoiceOutdated, OpportunityStillOpen, ServiceBusUnavailable
from shared.message import Delivery, Ignored, RetryState
from shared.open_telemetry import Flush, OpenTelemetry
from shared.service_bus import NotSent
from shared.settings import ConnectionString, ServiceBusSettings
from shared.tracing import OFF, TelemetryExporter, Tracing
from tests.unit.conftest import APP_SETTINGS, INVOICE, OPPORTUNITY, ROOT, SERVICE_BUS, URL, WIN, Reply, Stage

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from requests import PreparedRequest, Response

    from tests.unit.conftest import FakeServer, FixedTokens, RecordingSender, TlsServer

TRACE = "0af7651916cd43dd8448eb211c80319c"
HOSTS_SPAN = "b7ad6b7169203331"
HOSTS = f"00-{TRACE}-{HOSTS_SPAN}-00"
BOUND = 20.0


class Recorder:
    """A tracing whose spans and metrics stay in memory."""

    def __init__(self, settings: ServiceBusSettings = SERVICE_BUS) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        traces = TracerProvider(shutdown_on_exit=False, sampler=ALWAYS_ON)
        traces.add_span_processor(SimpleSpanProcessor(self._spans))
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracing = OpenTelemetry(traces, self._meters, settings)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The finished spans, in the order of their ends."""
        return list(self._spans.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """Return the only span with a name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def instruments(self) -> list[Any]:
        """Return the metrics that have data."""
        data = self._reader.get_metrics_data()
        assert data is not None
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]

    def metrics(self) -> dict[str, list[Any]]:
        """Return the data points of each metric."""
        return {metric.name: list(metric.data.data_points) for metric in self.instruments()}

    def counts(self) -> dict[tuple[str, str | None], float]:
        """Return the value of each counter by name and reason."""
        return {
            (name, point.attributes.get("invoicing.reason")): point.value
            for name, points in self.metrics().items()
            for point in points
            if hasattr(point, "value")
        }


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def tracing(recorder: Recorder) -> Tracing:
    return recorder.tracing


@pytest.fixture
def stage(stage: Stage, tracing: Tracing, server: FakeServer, tokens: FixedTokens) -> Iterator[Stage]:
    """Ask Dataverse in between."""
    dataverse = Dataverse(
        URL, tokens=tokens, clock=stage.clock, random=lambda: 0.0, exchange=server.exchange, tracing=tracing
    )
    stage.on_ensure_invoice = lambda opportunity_id, deadline: dataverse.read(
        Read(f"opportunities({opportunity_id})?$select=name"), deadline
    )
    yield stage
    dataverse.close()


def delivery(traceparent: str | None = None) -> Delivery:
    deadline = Deadline.after(SystemClock(), BOUND)
    return Delivery(WIN, RetryState.of(WIN), deadline, traceparent=traceparent)


def parent(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


def own_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# ---------------------------------------------------------------------------------------------- the tree


def test_requests_and_messages_are_children_of_the_invocation_and_that_of_the_hosts(
    stage: Stage, recorder: Recorder
) -> None:
    """And the message carries the context of its own span. Also where the host does not sample: its flag is 00."""
    stage.handle(traceparent=HOSTS, invocation_id="i-1")
    request, send, invocation = recorder.spans
    assert [(span.name, span.kind) for span in (request, send, invocation)] == [
        ("GET opportunities", SpanKind.CLIENT),
        ("send created", SpanKind.PRODUCER),
        ("process won", SpanKind.INTERNAL),
    ]
    assert parent(invocation) == HOSTS_SPAN
    assert parent(request) == parent(send) == own_id(invocation)
    assert {f"{span.context.trace_id:032x}" for span in recorder.spans if span.context} == {TRACE}
    assert {span.status.status_code for span in recorder.spans} == {StatusCode.UNSET}
    event = stage.the_only_one_sent("created")
    assert event.properties["traceparent"] == f"00-{TRACE}-{own_id(send)}-01"


def test_spans_have_the_names_of_the_conventions_and_names_to_search_by(
    stage: Stage, recorder: Recorder, server: FakeServer
) -> None:
    stage.handle(traceparent=HOSTS, invocation_id="i-1")
    request, send, invocation = recorder.spans
    scopes = {span.instrumentation_scope.name for span in recorder.spans if span.instrumentation_scope}
    assert scopes == {"invoice-from-opportunity"}
    common = {"invoicing.root": ROOT, "invoicing.attempt": 0, "invoicing.opportunity.id": OPPORTUNITY}
    broker = {
        "messaging.system": "servicebus",
        "server.address": "contoso.servicebus.windows.net",
        "net.peer.name": "contoso.servicebus.windows.net",
    }
    assert attributes(invocation) == {
        **common,
        **broker,
        "faas.trigger": "pubsub",
        "faas.coldstart": True,
        "faas.invocation_id": "i-1",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "won",
        "messaging.message.id": "win-1",
        "invoicing.message.id": "win-1",
        "invoicing.outcome": "published",
        "invoicing.invoice.id": INVOICE.id,
    }
    assert attributes(request) == {
        **common,
        "invoicing.request.id": server.requests[0].headers["x-ms-client-request-id"],
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "server.address": "contoso.crm4.dynamics.com",
        "server.port": 443,
        "url.full": f"{URL}/api/data/v9.2/opportunities({OPPORTUNITY})",
    }
    event = stage.the_only_one_sent("created")
    assert attributes(send) == {
        **common,
        **broker,
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": "created",
        "messaging.message.id": event.message_id,
        "invoicing.message.id": event.message_id,
    }


def test_a_retry_is_a_child_of_the_attempt_that_scheduled_it(stage: Stage, recorder: Recorder) -> None:
    stage.outcome = DataverseThrottled("x", retry_after=3)
    stage.handle(properties={"Diagnostic-Id": HOSTS}, traceparent=HOSTS)
    copy = stage.the_only_one_sent("won")
    assert "Diagnostic-Id" not in copy.properties
    first = recorder.named("process won")
    stage.outcome = INVOICE
    stage.handle(properties=copy.properties)
    second = recorder.spans[-1]
    schedule = recorder.named("send won")
    assert attributes(schedule)["messaging.operation.name"] == "schedule"
    assert parent(schedule) == own_id(first)
    assert parent(second) == own_id(schedule)
    assert attributes(second)["invoicing.attempt"] == 1
    assert attributes(second)["faas.coldstart"] is False


def test_a_retry_in_a_trace_that_begins_here_has_no_older_id_of_another(
    stage: Stage, recorder: Recorder
) -> None:
    """The sender's id has the form that is older than W3C's, and the host traces nothing."""
    stage.outcome = DataverseThrottled("x", retry_after=3)
    stage.handle(properties={"Diagnostic-Id": "|9d6c1f7e0b9a11.1.", "kept": "x"})
    copy = stage.the_only_one_sent("won")
    schedule = recorder.named("send won")
    assert own_id(schedule) in str(copy.properties["traceparent"])
    assert copy.properties["kept"] == "x"
    assert "Diagnostic-Id" not in copy.properties


def test_without_a_trace_one_begins(stage: Stage, recorder: Recorder) -> None:
    stage.handle(message_id=None)
    invocation = recorder.named("process won")
    assert parent(invocation) is None
    assert not {"messaging.message.id", "invoicing.message.id", "faas.invocation_id"} & set(
        attributes(invocation)
    )


def test_invocations_in_other_threads_have_trees_of_their_own(stage: Stage, recorder: Recorder) -> None:
    threads = [
        threading.Thread(target=stage.handle, kwargs={"sequence_number": number}) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    spans = recorder.spans
    invocations = {own_id(span): span for span in spans if span.name == "process won"}
    assert len(invocations) == 8
    for span in spans:
        if span.name != "process won":
            owner = invocations[str(parent(span))]
            assert attributes(span)["invoicing.root"] == attributes(owner)["invoicing.root"]


def test_a_connection_string_has_no_address_to_show() -> None:
    """It may hold anything, and a key."""
    recorder = Recorder(
        replace(SERVICE_BUS, connection=ConnectionString("Endpoint=sb://x/;SharedAccessKey=k"))
    )
    with recorder.tracing.send("created", "m-1", "send"):
        pass
    (span,) = recorder.spans
    assert "server.address" not in attributes(span)
    assert "invoicing.root" not in attributes(span), "outside of an invocation"


def test_names_of_spans_hold_no_ids(recorder: Recorder) -> None:
    root = "https://contoso.example:8443/api/data/v9.2/"
    for target in ("invoices(0f8fad5b)", "EntityDefinitions(LogicalName='invoice')/Attributes", "$batch"):
        with recorder.tracing.request("GET", root, target, "r-1"):
            pass
    assert [span.name for span in recorder.spans] == [
        "GET invoices",
        "GET EntityDefinitions/Attributes",
        "GET $batch",
    ]
    assert {attributes(span)["server.port"] for span in recorder.spans} == {8443}


# ---------------------------------------------------------------------------------------------- outcomes and errors


@pytest.mark.parametrize(
    ("outcome", "recorded", "error", "counter"),
    [
        (DataverseThrottled("Jane", retry_after=3), "retry", "DataverseThrottled", "invoicing.retries"),
        # The normal course where a synchronous step posts.
        (OpportunityStillOpen("Jane"), "retry", None, "invoicing.retries"),
        (InvoiceOutdated("Jane"), "parked", "InvoiceOutdated", "invoicing.parked"),
        (ZeroDivisionError("Jane"), "failed", "ZeroDivisionError", None),
        (Ignored("the opportunity is not won"), "ignored", None, None),
    ],
)
def test_an_invocation_has_its_outcome_and_the_reason_without_its_text(
    outcome: Exception | Ignored,
    recorded: str,
    error: str | None,
    counter: str | None,
    stage: Stage,
    recorder: Recorder,
) -> None:
    """The text may quote what a plug-in says."""
    stage.outcome = outcome
    with suppress(ZeroDivisionError):
        stage.handle()
    invocation = recorder.named("process won")
    reason = type(outcome).__name__ if isinstance(outcome, Exception) else None
    assert attributes(invocation)["invoicing.outcome"] == recorded
    assert attributes(invocation).get("invoicing.reason") == reason
    assert attributes(invocation).get("error.type") == invocation.status.description == error
    assert (invocation.status.status_code is StatusCode.ERROR) == (error is not None)
    assert recorder.counts() == ({} if counter is None else {(counter, reason): 1})
    assert "Jane" not in "".join(span.to_json() for span in recorder.spans)


def test_a_message_that_cannot_be_read_has_no_opportunity(stage: Stage, recorder: Recorder) -> None:
    stage.handle(body=b"unreadable")
    invocation = recorder.named("process won")
    assert attributes(invocation)["invoicing.outcome"] == "parked"
    assert "invoicing.opportunity.id" not in attributes(invocation)
    assert parent(recorder.named("send failed")) == own_id(invocation)


def test_a_win_that_was_withdrawn_is_no_error_nor_is_an_event_that_is_none(
    stage: Stage, recorder: Recorder
) -> None:
    stage.outcome = OpportunityStillOpen("withdrawn")
    stage.handle(properties={"InvoicingFirstSeen": (WIN.enqueued_at - timedelta(days=4)).isoformat()})
    stage.handle(body=b'{"MessageName": "Lose", "PrimaryEntityName": "opportunity", "InputParameters": []}')
    invocations = [span for span in recorder.spans if span.name == "process won"]
    assert [attributes(span)["invoicing.outcome"] for span in invocations] == ["ignored", "ignored"]
    assert {span.status.status_code for span in invocations} == {StatusCode.UNSET}


def test_a_message_that_cannot_be_sent_is_an_error_of_each_try(stage: Stage, recorder: Recorder) -> None:
    stage.sender.always = NotSent("x")
    with pytest.raises(ServiceBusUnavailable):
        stage.handle(body=b"unreadable")
    sends = [span for span in recorder.spans if span.name == "send failed"]
    assert len(sends) == len(stage.sender.tries) > 1
    assert {span.status.description for span in sends} == {"NotSent"}
    assert attributes(recorder.named("process won"))["error.type"] == "ServiceBusUnavailable"


def test_a_failed_request_is_an_error_and_measured(
    stage: Stage, recorder: Recorder, server: FakeServer
) -> None:
    server.replies.clear()
    server.replies.extend([Reply(status=400), Reply(error=ReadTimeout("x"))])
    stage.handle()
    stage.handle()
    requests = [span for span in recorder.spans if span.name == "GET opportunities"]
    assert [attributes(span)["error.type"] for span in requests] == ["400", "DataverseUnreachable"]
    assert {span.status.status_code for span in requests} == {StatusCode.ERROR}
    points = recorder.metrics()["http.client.request.duration"]
    assert {(point.attributes.get("http.response.status_code"), point.count) for point in points} == {
        (400, 1),
        (None, 1),
    }
    assert {point.attributes["error.type"] for point in points} == {"400", "DataverseUnreachable"}


# ---------------------------------------------------------------------------------------------- metrics


def test_an_event_is_counted_with_the_time_since_the_win(stage: Stage, recorder: Recorder) -> None:
    stage.handle()
    assert recorder.counts() == {("invoicing.events.published", None): 1}
    (point,) = recorder.metrics()["invoicing.win_to_event.duration"]
    assert point.sum == 2, "the message was enqueued two seconds ago"
    (point,) = recorder.metrics()["http.client.request.duration"]
    assert 0 < point.sum < BOUND
    assert point.attributes == {
        "server.address": "contoso.crm4.dynamics.com",
        "server.port": 443,
        "http.request.method": "GET",
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize(
    ("histogram", "seconds"),
    [
        # Those of the semantic conventions, and longer ones.
        (
            "http.client.request.duration",
            (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120),
        ),
        (
            "invoicing.win_to_event.duration",
            (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14400, 43200, 86400, 172800, 259200),
        ),
    ],
)
def test_the_boundaries_of_a_histogram_never_change(
    histogram: str, seconds: tuple[float, ...], stage: Stage, recorder: Recorder
) -> None:
    """With others, a percentile over a time with both versions would be wrong."""
    stage.handle()
    (point,) = recorder.metrics()[histogram]
    assert point.explicit_bounds == seconds


def test_throttling_of_the_process_is_counted(stage: Stage, recorder: Recorder, server: FakeServer) -> None:
    server.replies.clear()
    server.replies.append(Reply(status=429, headers={"Retry-After": "1"}))
    stage.handle()
    assert recorder.counts()["invoicing.dataverse.throttled", None] == 1


def test_metrics_have_the_units_of_the_conventions(stage: Stage, recorder: Recorder) -> None:
    stage.handle()
    stage.handle(body=b"unreadable")
    stage.outcome = OpportunityStillOpen("x")
    stage.handle()
    recorder.tracing.invoice_generated()
    recorder.tracing.throttled()
    assert {metric.name: metric.unit for metric in recorder.instruments()} == {
        "http.client.request.duration": "s",
        "invoicing.dataverse.throttled": "{response}",
        "invoicing.events.published": "{event}",
        "invoicing.invoices.generated": "{invoice}",
        "invoicing.parked": "{message}",
        "invoicing.retries": "{message}",
        "invoicing.win_to_event.duration": "s",
    }


# ---------------------------------------------------------------------------------------------- off


def test_switched_off_nothing_is_recorded_or_changed() -> None:
    with OFF.invocation(delivery(), None) as invocation:
        invocation.concerns(OPPORTUNITY)
        invocation.published(INVOICE.id, 1.0)
        invocation.ignored()
        invocation.retried(OpportunityStillOpen("x"))
        invocation.parked(OpportunityStillOpen("x"))
    with OFF.request("GET", URL, "x", "r-1") as request:
        request.responded(500)
    with OFF.send("won", "m-1", "send") as send:
        assert send.traceparent is None
    OFF.invoice_generated()
    OFF.throttled()
    with pytest.raises(ZeroDivisionError), OFF.send("won", "m-1", "send"):
        raise ZeroDivisionError


def test_switched_off_the_sdk_is_not_imported() -> None:
    """In a process of its own: this one has imported it."""
    assert start_tracing(TelemetryExporter.OFF, SERVICE_BUS) is OFF
    code = (
        "import sys\n"
        "from shared.bootstrap import build\n"
        f"build({APP_SETTINGS})\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------------------------------------- starting


@dataclass
class Process:
    """A process that exports from its start to its end; the environment says nothing else about telemetry."""

    environment: pytest.MonkeyPatch
    server: TlsServer
    at_exit: list[Flush] = field(default_factory=list)

    def start(self, exporter: TelemetryExporter = TelemetryExporter.OTLP, /, **variables: str) -> Tracing:
        for name, value in variables.items():
            self.environment.setenv(name, value)
        return start_tracing(exporter, SERVICE_BUS)

    def end(self) -> list[tuple[str, bytes]]:
        """Return the path and the body of each request."""
        (flush,) = self.at_exit
        flush()
        # For longer where the machine is slow.
        flush._thread.join(BOUND)
        return [(request.line.split(" ")[1], request.body) for request in self.server.requests]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, plain_server: TlsServer) -> Iterator[Process]:
    """Keep what is to be done at the end of the process, and do it at the end of the test."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "APPLICATIONINSIGHTS_", "WEBSITE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{plain_server.port}")
    process = Process(monkeypatch, plain_server)
    register = atexit.register

    def collect(function: Callable[[], None]) -> object:
        """Leave to the process what the libraries register."""
        if not isinstance(function, Flush):
            return register(function)
        process.at_exit.append(function)
        return None

    monkeypatch.setattr("atexit.register", collect)
    yield process
    if process.at_exit:
        process.end()
    # Here, where it is known whose connections are left.
    gc.collect()


# The exporters leave their connections to the garbage collector.
exports = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def export_one(tracing: Tracing) -> None:
    with tracing.send("won", "m-1", "send"):
        pass


@exports
def test_spans_of_the_last_moment_reach_an_otlp_collector(process: Process) -> None:
    tracing = process.start(WEBSITE_SITE_NAME="func-invoicing-prod")
    export_one(tracing)
    tracing.invoice_generated()
    received = dict(process.end())
    assert b"send won" in received["/v1/traces"]
    assert b"invoicing.invoices.generated" in received["/v1/metrics"]
    assert all(b"func-invoicing-prod" in body for body in received.values())


@exports
@pytest.mark.parametrize(
    ("variables", "exported"), [({}, True), ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, False)]
)
def test_a_trace_that_the_host_does_not_sample_is_exported_unless_a_variable_says_otherwise(
    variables: dict[str, str],
    exported: bool,  # noqa: FBT001 - pytest passes it
    process: Process,
) -> None:
    tracing = process.start(**variables)
    with tracing.invocation(delivery(traceparent=HOSTS), None):
        tracing.invoice_generated()
    received = dict(process.end())
    assert ("/v1/traces" in received) == exported
    assert "/v1/metrics" in received


@exports
def test_nothing_of_the_sdks_own_is_done_at_the_end_of_the_process(process: Process) -> None:
    """It would wait for half a minute."""
    registered = atexit._ncallbacks()
    process.start()
    assert len(process.at_exit) == 1
    assert atexit._ncallbacks() == registered


@exports
def test_the_standard_variables_count(process: Process) -> None:
    tracing = process.start(OTEL_SERVICE_NAME="my-name", OTEL_METRICS_EXPORTER="none")
    export_one(tracing)
    tracing.invoice_generated()
    ((_, body),) = process.end()
    assert b"my-name" in body


@exports
@pytest.mark.parametrize(("variables", "milliseconds"), [({}, 1000), ({"OTEL_BSP_SCHEDULE_DELAY": "20"}, 20)])
def test_spans_wait_for_others_for_a_second_or_as_long_as_a_variable_says(
    variables: dict[str, str], milliseconds: int, process: Process
) -> None:
    """A process that is killed loses as much."""
    tracing: Any = process.start(**variables)
    (processor,) = tracing._tracer.span_processor._span_processors
    assert processor._batch_processor._schedule_delay_millis == milliseconds


@exports
def test_azure_monitor_receives_spans_and_metrics(
    process: Process, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process.environment.setattr("tempfile.tempdir", str(tmp_path))
    send = HTTPAdapter.send
    timeouts: list[Any] = []

    def send_and_note(adapter: HTTPAdapter, request: PreparedRequest, **options: Any) -> Response:  # noqa: ANN401 - the library's signature
        timeouts.append(options["timeout"])
        return send(adapter, request, **options)

    process.environment.setattr(HTTPAdapter, "send", send_and_note)
    accepted = b'{"itemsReceived": 1, "itemsAccepted": 1, "errors": []}'
    process.server.serve = lambda connection: process.server.respond(
        connection, accepted, "Content-Type: application/json"
    )
    tracing = process.start(
        TelemetryExporter.AZURE_MONITOR,
        APPLICATIONINSIGHTS_CONNECTION_STRING="InstrumentationKey=00000000-0000-0000-0000-000000000001;"
        f"IngestionEndpoint=http://127.0.0.1:{process.server.port}/",
    )
    # What the exporter would report about itself, and ask for.
    for name in ("STATSBEAT_DISABLED_ALL", "SDKSTATS_DISABLED", "CONTROLPLANE_DISABLED"):
        assert os.environ[f"APPLICATIONINSIGHTS_{name}"] == "true"
    export_one(tracing)
    tracing.invoice_generated()
    # The exporter compresses what is large.
    bodies = [gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body for _, body in process.end()]
    assert any(b"send won" in body and b"contoso.servicebus.windows.net" in body for body in bodies)
    assert any(b"invoicing.invoices.generated" in body for body in bodies)
    assert {read for _, read in timeouts} == {10}, "a silent service would be waited for for five minutes"
    assert list(tmp_path.iterdir()) == [], "nothing is written to the disk"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_without_the_package_invoicing_goes_on_and_the_log_says_how_to_build_it(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    process.environment.delitem(sys.modules, "shared.open_telemetry")
    process.environment.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert process.start() is OFF
    (line,) = caplog.messages
    assert line == (
        "settings: TELEMETRY_EXPORTER is otlp, and the package was built without it. Nothing is exported. "
        "Build it with: make package TELEMETRY=otlp"
    )


@exports
def test_an_exporter_that_cannot_be_set_up_stops_nothing(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    started = process.start(TelemetryExporter.AZURE_MONITOR, APPLICATIONINSIGHTS_CONNECTION_STRING="secret")
    assert started is OFF
    (line,) = [line for line in caplog.messages if line.startswith("settings: ")]
    assert line == (
        "settings: TELEMETRY_EXPORTER is azure-monitor, and the exporter cannot be set up (ValueError). "
        "Nothing is exported."
    )
    assert "secret" not in caplog.text


def test_a_collector_that_is_silent_delays_the_end_within_a_bound() -> None:
    """And the work not at all: the end is asked for in the caller's thread, and waits in another."""
    released = threading.Event()
    flush = Flush(lambda: cast("None", released.wait(BOUND)), seconds=0.2)
    began = time.monotonic()
    flush()
    assert time.monotonic() - began < BOUND / 2
    assert flush._thread.daemon, "Python waits for other threads, and for this one before it is called"
    released.set()


def test_the_end_waits_for_the_last_export() -> None:
    returned = threading.Event()
    seen: list[bool] = []
    flush = Flush(lambda: seen.append(returned.wait(0.1)), seconds=BOUND)
    flush()
    returned.set()
    assert seen == [False]


@exports
@pytest.mark.parametrize("how", ["silent", "gone"])
def test_a_collector_that_does_not_respond_delays_no_span(how: str, process: Process) -> None:
    process.server.serve = lambda _: process.server.wait()
    if how == "gone":
        process.server.stop()
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    tracing = process.start(OTEL_EXPORTER_OTLP_TIMEOUT="3", OTEL_BSP_SCHEDULE_DELAY="1")
    began = time.monotonic()
    for _ in range(5000):
        export_one(tracing)
    # Ten batches, each of which would wait for three seconds.
    assert time.monotonic() - began < BOUND


# ---------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize(
    ("changes", "started"),
    [
        ({}, [TelemetryExporter.OFF]),
        ({"TELEMETRY_EXPORTER": "OTLP"}, [TelemetryExporter.OTLP]),
        ({"TELEMETRY_EXPORTER": "azure-monitor"}, [TelemetryExporter.AZURE_MONITOR]),
        # With invalid settings: retries are still counted by reason.
        ({"TELEMETRY_EXPORTER": "otlp", "DATAVERSE_URL": ""}, [TelemetryExporter.OTLP]),
        ({"TELEMETRY_EXPORTER": "jaeger"}, []),
    ],
)
def test_the_setting_decides_what_is_recorded(
    changes: dict[str, str], started: list[TelemetryExporter], sender: RecordingSender, recorder: Recorder
) -> None:
    asked: list[TelemetryExporter] = []

    def start(exporter: TelemetryExporter, service_bus: ServiceBusSettings) -> Tracing:
        asked.append(exporter)
        assert service_bus.opportunity_won_queue == "won"
        return recorder.tracing

    handler = build({**APP_SETTINGS, **changes}, sender=sender, start_tracing=start)
    assert asked == started
    handler.handle(replace(WIN, body=b"unreadable"))
    assert [span.name for span in recorder.spans] == (["send failed", "process won"] if started else [])


def batch_response(*documents: object) -> bytes:
    head = b"Content-Type: application/http\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    return multipart.join("b", [head + json.dumps(document).encode() for document in documents])


@pytest.mark.usefixtures("trusted")
def test_what_is_built_records_its_requests_and_the_invoice_that_it_generates(
    tls_server: TlsServer,
    plain_server: TlsServer,
    sender: RecordingSender,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none: dict[str, object] = {"value": []}
    found = {"invoiceid": INVOICE.id, "statecode": 0, "createdon": "2026-03-01T11:59:00Z"}
    invoice = {**found, "_opportunityid_value": OPPORTUNITY}
    responses = iter(
        [
            batch_response({"statecode": 1}, none, none, none, none),
            batch_response(found, none, {"value": [found]}),
            batch_response(invoice, none),
        ]
    )

    def serve(connection: socket.socket) -> None:
        while tls_server.read(connection) is not None:
            body = next(responses)
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Type: multipart/mixed; boundary=b"
            )
            connection.sendall(f"{head}\r\n\r\n".encode() + body)

    tls_server.serve = serve
    token = json.dumps({"access_token": "x.y", "expires_on": "9999999999", "token_type": "Bearer"}).encode()
    plain_server.serve = lambda connection: plain_server.respond(connection, token)
    environment = {
        **APP_SETTINGS,
        "DATAVERSE_URL": tls_server.url,
        "IDENTITY_ENDPOINT": f"http://127.0.0.1:{plain_server.port}/msi/token",
        "IDENTITY_HEADER": "secret",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    build(environment, sender=sender, start_tracing=lambda *_: recorder.tracing).handle(WIN)
    assert [span.name for span in recorder.spans] == [*["POST $batch"] * 3, "send created", "process won"]
    assert recorder.counts()["invoicing.invoices.generated", None] == 1
