"""Faults from the command line, as a user asks for them."""

import subprocess
import sys
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


def test_the_demonstration_survives_faults_and_says_what_struck() -> None:
    """An answer that is lost after the commit, and a link that breaks: one invoice and one event all the same."""
    demo = sandbox(
        *("demo", "--count", "2", "--set", "RETRY_FIRST_DELAY_SECONDS=0.2"),
        *("--fault", "dataverse/change-set reset after=yes nth=1"),
        *("--fault", "service-bus-out/send:* reset nth=1"),
    )
    assert demo.returncode == 0, demo.stderr
    assert "2 opportunities won · 2 invoices · 2 events · 0 failed" in demo.stdout
    assert "dataverse/change-set reset after=yes: struck 1 time" in demo.stderr
    assert "service-bus-out/send:invoice-created reset: struck 1 time" in demo.stderr


def test_what_is_no_rule_is_refused_before_anything_starts() -> None:
    refused = sandbox("demo", "--fault", "dataverse hiccup")
    assert refused.returncode == 2
    assert "there is no fault on the wire dataverse called 'hiccup'" in refused.stderr
