"""An OTLP/HTTP receiver on 127.0.0.1: protobuf, traces only.

Metrics and logs are accepted and dropped, so that an exporter of all three signals does not report errors.
"""

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from cheroot import wsgi
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from sandbox.functions_host.trace_context import Span
from sandbox.http_server import HttpServer, StartResponse
from sandbox.tracing.spans import SpanStore

_log = logging.getLogger(__name__)

_MAX_BODY = 16 * 1024 * 1024
_PROTOBUF = "application/x-protobuf"
_DROPPED = ("/v1/metrics", "/v1/logs")


class OtlpReceiver(HttpServer):
    """Receives spans into a store from `start` to `stop`; a context manager."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store
        server = wsgi.Server(("127.0.0.1", 0), self, numthreads=4, timeout=10, shutdown_timeout=1)
        server.max_request_body_size = _MAX_BODY
        super().__init__("otlp", server)

    @property
    def endpoint(self) -> str:
        """The value of OTEL_EXPORTER_OTLP_ENDPOINT; valid after `start`."""
        return f"http://{self.address}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables by which OpenTelemetry's SDKs find it."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            # Spans are shown soon; the default is 5 s.
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Respond to one export."""
        status = self._receive(environ)
        # An empty response message says that everything was accepted.
        start_response(
            f"{status.value} {status.phrase}", [("Content-Type", _PROTOBUF), ("Content-Length", "0")]
        )
        return [b""]

    def _receive(self, environ: dict[str, Any]) -> HTTPStatus:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "POST" or path not in ("/v1/traces", *_DROPPED):
            return HTTPStatus.NOT_FOUND
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if path in _DROPPED:
            return HTTPStatus.OK
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip() != _PROTOBUF:
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        try:
            if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
        except (DecodeError, OSError, EOFError, zlib.error) as error:
            _log.warning("An export is not OTLP: %s", error)
            return HTTPStatus.BAD_REQUEST
        self._store.add(*_spans(request))
        return HTTPStatus.OK


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = next(
            (each.value.string_value for each in resource.resource.attributes if each.key == "service.name"),
            "",
        )
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    service=service or "unknown",
                    started_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    attributes={each.key: _value(each.value) for each in span.attributes},
                    error=_error(span.status),
                )


def _error(status: trace_pb2.Status) -> str:
    return (status.message or "error") if status.code == trace_pb2.Status.STATUS_CODE_ERROR else ""


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: _value(each.value) for each in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None
