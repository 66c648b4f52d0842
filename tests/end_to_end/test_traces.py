"""One connected tree of spans from the win to the consumer: the deployed code exports over a socket to a collector."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.cloud import CREATED_TOPIC, FAILED_QUEUE, Cloud, CloudOptions
from sandbox.control.panel import ControlPanel
from sandbox.faults import FaultPlan
from tests.end_to_end.conftest import run_operations, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[2]
CONSUMER = APP / "examples" / "python" / "consumer.py"
SETTINGS = {
    "TELEMETRY_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "none",
    "RETRY_FIRST_DELAY_SECONDS": "0.2",
    "RETRY_MAX_DELAY_SECONDS": "0.5",
    "RETRY_OUTAGE_SECONDS": "0.1",
}
Json = dict[str, Any]


@contextmanager
def consumer(cloud: Cloud, folder: Path) -> Iterator[None]:
    """Run the sample consumer in a process of its own."""
    kept = ("ServiceBus", "SSL", "OTEL_EXPORTER", "OTEL_BSP")
    process = subprocess.Popen(  # noqa: S603 - arguments of our own
        [sys.executable, CONSUMER],
        env={
            "PATH": os.environ["PATH"],
            **{name: value for name, value in cloud.app_settings.items() if name.startswith(kept)},
            "OTEL_SERVICE_NAME": "ledger",
            "LEDGER_FILE": str(folder / "ledger.db"),
        },
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def outline(spans: list[Json]) -> list[Any]:
    """Return what is compared, nested: name, outcome or status, and the children."""
    root: list[Any] = []
    path = [root]
    for span in spans:
        attributes = span["attributes"]
        said = attributes.get("invoicing.outcome") or attributes.get("http.response.status_code")
        failure = [f"ERROR {span['error']}"] if span["error"] else []
        node = [span["name"], *([said] if said else []), *failure]
        path[span["depth"]].append(node)
        path[span["depth"] + 1 :] = [node]
    return root


def test_a_win_is_one_tree_from_the_salesperson_over_retry_and_replay_to_the_consumer(tmp_path: Path) -> None:
    options = CloudOptions(
        APP,
        opportunities=1,
        traces=True,
        settings=SETTINGS,
        faults=FaultPlan([]),
        extra_subscriptions=[(CREATED_TOPIC, "ledger")],
    )
    with Cloud(options) as cloud, ControlPanel(cloud) as panel, consumer(cloud, tmp_path):
        panel.add_fault("dataverse unavailable")
        (row,) = panel.win()
        wait_until(lambda: cloud.broker.counts(FAILED_QUEUE).active == 1, "the win is parked")
        panel.repair()
        run_operations(cloud.operator_settings, "failed", "replay", "--all", "--yes")

        def is_complete() -> bool:
            spans = panel.traces(row["id"])
            return [span["depth"] for span in spans].count(0) == 1 and any(
                (span["name"], span["service"]) == ("process invoice-created", "ledger") for span in spans
            )

        wait_until(is_complete, lambda: str(outline(panel.traces(row["id"]))))
        spans = panel.traces(row["id"])

    unavailable = ("ERROR DataverseUnavailable", ["POST $batch", 503, "ERROR 503"])
    published = [
        "process opportunity-won",
        "published",
        ["POST $batch", 200],
        ["POST $batch", 200],
        ["POST $batch", 200],
        ["send invoice-created", ["process invoice-created"]],
    ]
    replayed = ["send opportunity-won-failed", ["process opportunity-won", published]]
    parked = ["process opportunity-won", "parked", *unavailable, replayed]
    retried = ["send opportunity-won", ["process opportunity-won", parked]]
    first = ["process opportunity-won", "retry", *unavailable, retried]
    assert outline(spans) == [["WinOpportunity", ["process opportunity-won", first]]]
    ours = [span["attributes"] for span in spans if "invoicing.root" in span["attributes"]]
    assert {attributes["invoicing.opportunity.id"] for attributes in ours} == {row["id"]}
    # A replay is another root.
    assert len({attributes["invoicing.root"] for attributes in ours}) == 2
    assert {attributes["invoicing.attempt"] for attributes in ours} == {0, 1}
    # Spans hold ids, and no names or tokens.
    text = str(spans)
    assert row["name"] not in text
    assert "Bearer" not in text
