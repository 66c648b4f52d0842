"""Faults from the command line, as a user asks for them."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

APP = Path(__file__).parents[3]


def sandbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=APP,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_what_can_go_wrong_is_listed() -> None:
    listed = sandbox("faults")
    assert listed.returncode == 0
    for word in ("dataverse", "change-set", "lock-lost", "retry_after", "chance"):
        assert word in listed.stdout


def test_the_demonstration_survives_faults_and_says_what_struck(
    tmp_path: Path, published_event_checker: Callable[[bytes, Mapping[str, object], str | None], None]
) -> None:
    """A response that is lost after the commit, and a link that breaks: still one invoice and one event."""
    file = tmp_path / "events.jsonl"
    demo = sandbox(
        *("demo", "--count", "2", "--events", str(file), "--set", "RETRY_FIRST_DELAY_SECONDS=0.2"),
        *("--fault", "dataverse/change-set reset after=yes nth=1"),
        *("--fault", "service-bus-out/send:* reset nth=1"),
    )
    assert demo.returncode == 0, demo.stderr
    assert "2 opportunities won · 2 invoices · 2 events · 0 failed" in demo.stdout
    assert "dataverse/change-set reset after=yes: struck 1 time" in demo.stderr
    assert "service-bus-out/send:invoice-created reset: struck 1 time" in demo.stderr
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) == 2
    for event in events:
        published_event_checker(event["body"].encode(), event["applicationProperties"], event["contentType"])


def test_what_is_no_rule_is_refused_before_anything_starts() -> None:
    refused = sandbox("demo", "--fault", "dataverse hiccup")
    assert refused.returncode == 2
    assert "there is no fault on the connection dataverse called 'hiccup'" in refused.stderr
