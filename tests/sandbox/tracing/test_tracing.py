"""Spans over OTLP/HTTP, as exporters send them, and the trees that they form."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from sandbox.cloud import Cloud, CloudOptions
from sandbox.command_line.play import traces_command
from sandbox.control.panel import ControlPanel
from sandbox.control.server import ControlServer
from sandbox.functions_host.trace_context import Span
from sandbox.tracing import OtlpReceiver, SpanStore

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[3]
TRACE = "0af7651916cd43dd8448eb211c80319c"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(SpanStore()) as running:
        yield running


def export(*spans: trace_pb2.Span, service: str = "function") -> bytes:
    name = KeyValue(key="service.name", value=AnyValue(string_value=service))
    resource = trace_pb2.ResourceSpans(
        resource=Resource(attributes=[name]), scope_spans=[trace_pb2.ScopeSpans(spans=spans)]
    )
    return ExportTraceServiceRequest(resource_spans=[resource]).SerializeToString()


def post(receiver: OtlpReceiver, body: bytes, path: str = "/v1/traces", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = requests.post(f"{receiver.endpoint}{path}", data=body, headers=PROTOBUF | named, timeout=10)
    assert response.content == b""
    return response.status_code


def test_spans_arrive_with_all_that_they_say(receiver: OtlpReceiver) -> None:
    values = {
        "text": AnyValue(string_value="x"),
        "number": AnyValue(int_value=7),
        "list": AnyValue(array_value=ArrayValue(values=[AnyValue(bool_value=True)])),
        "map": AnyValue(
            kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(double_value=0.5))])
        ),
        "bytes": AnyValue(bytes_value=b"\x01"),
        "nothing": AnyValue(),
    }
    span = trace_pb2.Span(
        trace_id=bytes.fromhex(TRACE),
        span_id=b"\x01" * 8,
        name="POST $batch",
        start_time_unix_nano=1_000_000_000,
        end_time_unix_nano=1_500_000_000,
        attributes=[KeyValue(key=name, value=value) for name, value in values.items()],
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message="503"),
    )
    assert post(receiver, export(span)) == 200
    (listed,) = receiver._store.outline()
    assert listed == {
        "traceId": TRACE,
        "spanId": "01" * 8,
        "parentId": "",
        "depth": 0,
        "name": "POST $batch",
        "service": "function",
        "startedAt": "1970-01-01T00:00:01+00:00",
        "milliseconds": 500.0,
        "attributes": {
            "text": "x",
            "number": 7,
            "list": [True],
            "map": {"k": 0.5},
            "bytes": "01",
            "nothing": None,
        },
        "error": "503",
    }


def test_an_export_may_be_compressed(receiver: OtlpReceiver) -> None:
    body = gzip.compress(export(trace_pb2.Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="a")))
    assert post(receiver, body, Content_Encoding="gzip") == 200
    assert [each["name"] for each in receiver._store.outline()] == ["a"]


def test_metrics_and_logs_are_accepted_and_dropped(receiver: OtlpReceiver) -> None:
    assert [post(receiver, b"x", path) for path in ("/v1/metrics", "/v1/logs")] == [200, 200]
    assert receiver._store.outline() == []


@pytest.mark.parametrize(
    ("body", "path", "headers", "status"),
    [
        (b"\xff\xff", "/v1/traces", {}, 400),
        (b"not gzip", "/v1/traces", {"Content_Encoding": "gzip"}, 400),
        (b"{}", "/v1/traces", {"Content_Type": "application/json"}, 415),
        (b"", "/elsewhere", {}, 404),
    ],
)
def test_what_is_not_otlp_is_refused(
    receiver: OtlpReceiver, body: bytes, path: str, headers: dict[str, str], status: int
) -> None:
    assert post(receiver, body, path, **headers) == status
    assert receiver._store.outline() == []


def span(number: int, parent: int | None = None, trace: str = TRACE, **attributes: object) -> Span:
    parent_id = "" if parent is None else f"{parent:016x}"
    return Span(trace, f"{number:016x}", parent_id, f"span {number}", "s", number, number + 1, attributes)


def outline(store: SpanStore, about: str | None = None) -> list[tuple[int, str]]:
    return [(span["depth"], span["name"]) for span in store.outline(about)]


def test_a_tree_is_built_in_any_order_of_arrival() -> None:
    store = SpanStore()
    store.add(span(5, 1), span(4, 3), span(1), span(3, 1), span(2, 1), span(2, 1))
    assert outline(store) == [(0, "span 1"), (1, "span 2"), (1, "span 3"), (2, "span 4"), (1, "span 5")]
    assert [each["parentId"][-1:] for each in store.outline()] == ["", "1", "1", "3", "1"]


def test_a_span_without_its_parent_is_a_root() -> None:
    store = SpanStore()
    store.add(span(1), span(3, 2))
    assert outline(store) == [(0, "span 1"), (0, "span 3")]


def test_traces_are_found_by_the_value_of_an_attribute_of_any_of_their_spans() -> None:
    store = SpanStore()
    store.add(span(1), span(2, 1, opportunity="ABC"), span(5, trace="f" * 32))
    assert outline(store, "abc") == [(0, "span 1"), (1, "span 2")]
    assert outline(store, "other") == []


def test_old_spans_are_dropped() -> None:
    store = SpanStore(max_spans=2)
    store.add(span(1), span(2), span(3))
    assert outline(store) == [(0, "span 2"), (0, "span 3")]


def test_a_trace_of_thousands_of_nested_spans_is_returned_and_shown() -> None:
    """A win that is retried for days: each retry is a descendant of the attempt before it."""
    options = CloudOptions(APP, dataverse=False, functions_host=False, traces=True)
    with Cloud(options) as cloud, ControlPanel(cloud) as panel, ControlServer(panel) as server:
        assert cloud.spans is not None
        cloud.spans.add(*(span(number, number - 1 or None) for number in range(1, 5001)))
        environment = {"SANDBOX_CONTROL": server.url, "SANDBOX_CONTROL_TOKEN": server.token}
        shown = CliRunner().invoke(traces_command, env=environment)
        assert shown.exit_code == 0, shown.output
        assert [line.split("  ")[-3] for line in shown.output.splitlines()] == [
            f"span {number}" for number in range(1, 5001)
        ]
        assert max(map(len, shown.output.splitlines())) < 200
