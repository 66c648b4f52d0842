"""Spans over OTLP/HTTP, as exporters send them, and the trees that they form."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from sandbox.cloud import Cloud, CloudOptions
from sandbox.control.panel import ControlPanel
from sandbox.tracing import OtlpReceiver, Span, SpanStore

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
    (tree,) = receiver._store.trees()
    assert tree == {
        "traceId": TRACE,
        "spanId": "01" * 8,
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
        "children": [],
    }


def test_an_export_may_be_compressed(receiver: OtlpReceiver) -> None:
    body = gzip.compress(export(trace_pb2.Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="a")))
    assert post(receiver, body, Content_Encoding="gzip") == 200
    assert [tree["name"] for tree in receiver._store.trees()] == ["a"]


def test_metrics_and_logs_are_accepted_and_dropped(receiver: OtlpReceiver) -> None:
    assert [post(receiver, b"x", path) for path in ("/v1/metrics", "/v1/logs")] == [200, 200]
    assert receiver._store.trees() == []


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
    assert receiver._store.trees() == []


def span(number: int, parent: int | None = None, trace: str = TRACE, **attributes: object) -> Span:
    parent_id = "" if parent is None else f"{parent:016x}"
    return Span(trace, f"{number:016x}", parent_id, f"span {number}", "s", number, number + 1, attributes)


def names(tree: dict[str, Any]) -> list[Any]:
    return [tree["name"], [names(child) for child in tree["children"]]]


def test_a_tree_is_built_in_any_order_of_arrival() -> None:
    store = SpanStore()
    store.add(span(3, 1), span(4, 3), span(1), span(2, 1), span(2, 1))
    (tree,) = store.trees()
    assert names(tree) == ["span 1", [["span 2", []], ["span 3", [["span 4", []]]]]]


def test_a_span_without_its_parent_is_a_root() -> None:
    store = SpanStore()
    store.add(span(1), span(3, 2))
    assert [tree["name"] for tree in store.trees()] == ["span 1", "span 3"]


def test_traces_are_found_by_the_value_of_an_attribute_of_any_of_their_spans() -> None:
    store = SpanStore()
    store.add(span(1), span(2, 1, opportunity="ABC"), span(5, trace="f" * 32))
    (tree,) = store.trees("abc")
    assert names(tree) == ["span 1", [["span 2", []]]]
    assert store.trees("other") == []


def test_old_spans_are_dropped() -> None:
    store = SpanStore(max_spans=2)
    store.add(span(1), span(2), span(3))
    assert [tree["name"] for tree in store.trees()] == ["span 2", "span 3"]


def test_a_win_and_its_invocation_are_one_tree() -> None:
    options = CloudOptions(APP, opportunities=2, traces=True)
    with Cloud(options) as cloud, ControlPanel(cloud) as panel:
        endpoint = cloud.app_settings["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert requests.post(f"{endpoint}/v1/metrics", timeout=10).ok
        (row, other) = panel.win(count=2)
        deadline = time.monotonic() + 60
        while not (trees := panel.traces(row["id"])) or not trees[0]["children"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tree,) = trees
        assert (tree["name"], tree["service"]) == ("WinOpportunity", "salesperson")
        (invocation,) = tree["children"]
        assert (invocation["name"], invocation["service"]) == ("process opportunity-won", "functions-host")
        assert invocation["error"] == ""
        assert panel.traces(other["id"])[0]["traceId"] != tree["traceId"]
        assert panel.status()["tracing"] is True
