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
}
Json = dict[str, Any]


@contextmanager
def running(**settings: str) -> Iterator[tuple[Cloud, ControlPanel]]:
    """Run the sandbox with a collector, a plan without faults, and the sample consumer on a subscription of its own."""
    options = CloudOptions(
        APP,
        opportunities=1,
        traces=True,
        settings={**SETTINGS, **settings},
        faults=FaultPlan([]),
        extra_subscriptions=[(CREATED_TOPIC, "ledger")],
    )
    with Cloud(options) as cloud, ControlPanel(cloud) as panel:
        yield cloud, panel


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


def only_tree(panel: ControlPanel, opportunity: str, last: str, service: str) -> list[Json]:
    """Wait for a span, and for its parents, and return the spans of the one tree."""

    def is_complete() -> bool:
        spans = panel.traces(opportunity)
        return [span["depth"] for span in spans].count(0) == 1 and any(
            (span["name"], span["service"]) == (last, service) for span in spans
        )

    wait_until(is_complete, lambda: f"{last} of {service}: {outline(panel.traces(opportunity))}")
    return panel.traces(opportunity)


PUBLISHED = [
    "process opportunity-won",
    "published",
    ["POST $batch", 200],
    ["POST $batch", 200],
    ["POST $batch", 200],
    ["send invoice-created", ["process invoice-created"]],
]


def test_a_win_is_one_tree_from_the_salesperson_over_a_retry_to_the_consumer(tmp_path: Path) -> None:
    with running() as (cloud, panel), consumer(cloud, tmp_path):
        panel.add_fault("dataverse unavailable nth=1")
        (row,) = panel.win()
        spans = only_tree(panel, row["id"], "process invoice-created", "ledger")

        (tree,) = outline(spans)
        assert tree == [
            "WinOpportunity",
            [
                "process opportunity-won",
                [
                    "process opportunity-won",
                    "retry",
                    "ERROR DataverseUnavailable",
                    ["POST $batch", 503, "ERROR 503"],
                    ["send opportunity-won", ["process opportunity-won", PUBLISHED]],
                ],
            ],
        ]
        ours = [span for span in spans if "invoicing.root" in span["attributes"]]
        assert {span["attributes"]["invoicing.opportunity.id"] for span in ours} == {row["id"]}
        assert len({span["attributes"]["invoicing.root"] for span in ours}) == 1
        assert {span["attributes"]["invoicing.attempt"] for span in ours} == {0, 1}
        # Spans hold ids, and no names or tokens.
        text = str(spans)
        assert row["name"] not in text
        assert "Bearer" not in text


def test_a_parked_and_replayed_win_stays_in_its_tree() -> None:
    with running(RETRY_OUTAGE_SECONDS="0.1") as (cloud, panel):
        panel.add_fault("dataverse unavailable")
        (row,) = panel.win()
        wait_until(lambda: cloud.broker.counts(FAILED_QUEUE).active == 1, "the win is parked")
        panel.repair()
        run_operations(cloud.operator_settings, "failed", "replay", "--all", "--yes")
        (names,) = outline(only_tree(panel, row["id"], "send invoice-created", "invoice-from-opportunity"))
        path = []
        while True:
            path += [said for said in names if isinstance(said, str)]
            if "published" in path:
                break
            names = [child for child in names if isinstance(child, list)][-1]
        assert path == [
            "WinOpportunity",
            *("process opportunity-won", "process opportunity-won", "retry", "ERROR DataverseUnavailable"),
            "send opportunity-won",
            *("process opportunity-won", "process opportunity-won", "parked", "ERROR DataverseUnavailable"),
            "send opportunity-won-failed",
            *("process opportunity-won", "process opportunity-won", "published"),
        ]
