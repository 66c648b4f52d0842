"""What telemetry costs: its import, and a span.

    python -m benchmarks.telemetry off|azure-monitor|otlp

Prints one JSON object, in seconds of CPU: `import`, in a process that has imported the product already, and `span`, the
mean of many. `off` imports nothing: its span is an empty block.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

_SPANS = 20_000
_MODULES = {
    "off": (),
    "azure-monitor": ("shared.open_telemetry", "azure.monitor.opentelemetry.exporter"),
    "otlp": (
        "shared.open_telemetry",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    ),
}
URL = "https://contoso.crm4.dynamics.com/api/data/v9.2/"


def measure(exporter: str) -> dict[str, float]:
    """Return the figures of an exporter."""
    importlib.import_module("shared.bootstrap")
    importlib.import_module("azure.identity")
    began = time.process_time()
    for module in _MODULES[exporter]:
        importlib.import_module(module)
    imported = time.process_time() - began
    tracing = _tracing(exporter)
    began = time.process_time()
    for _ in range(_SPANS):
        with tracing.request("POST", URL, "$batch", "a-request") as span:
            span.responded(200)
    return {"import": imported, "span": (time.process_time() - began) / _SPANS}


def _tracing(exporter: str) -> Any:  # noqa: ANN401 - imported where it is measured
    """Return what records; without an exporter, whose thread would count too."""
    if exporter == "off":
        from shared.tracing import OFF

        return OFF
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from shared.open_telemetry import OpenTelemetry
    from shared.settings import Namespace, ServiceBusSettings

    settings = ServiceBusSettings(
        Namespace("contoso.servicebus.windows.net", None), "won", "failed", "created", 240
    )
    return OpenTelemetry(
        TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False), settings
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("exporter", choices=list(_MODULES))
    print(json.dumps(measure(parser.parse_args().exporter)))  # noqa: T201 - the figures are its output
