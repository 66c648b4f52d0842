"""The comparison in docs/alternatives.md, with the commands and the results that the page shows."""

from __future__ import annotations

import re
import shlex
from dataclasses import astuple

import pytest
from proofs import ROOT

from sandbox import demo
from sandbox.cloud import FAILED_QUEUE, WON_QUEUE, Cloud, CloudOptions
from sandbox.faults import FaultPlan
from sandbox.faults.syntax import parse_rule

PAGE = (ROOT / "docs" / "alternatives.md").read_text()
COMMANDS = re.findall(r"^\$ \.venv/bin/python -m sandbox demo (.+)\n(?:…\n)?(.+)$", PAGE, re.MULTILINE)


def options(arguments: str) -> CloudOptions:
    """Read a command of the page."""
    words = shlex.split(arguments.replace("\\\n", ""))
    values: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(name, []).append(value)
    return CloudOptions(
        ROOT / values.get("--app", ["."])[0],
        opportunities=int(values["--count"][0]),
        settings=dict(setting.split("=", 1) for setting in values.get("--set", [])),
        faults=FaultPlan(parse_rule(rule) for rule in values["--fault"]),
    )


@pytest.mark.parametrize(("arguments", "shown"), COMMANDS, ids=["claim first", "this project"])
def test_the_page_shows_what_happens(arguments: str, shown: str) -> None:
    with Cloud(options(arguments)) as cloud:
        outcome = demo.run(cloud, cloud.demo.opportunities, patience=10)
        left = [count for queue in (WON_QUEUE, FAILED_QUEUE) for count in astuple(cloud.broker.counts(queue))]
    assert str(outcome) == shown
    # What is missing waits nowhere and was reported nowhere: it is lost.
    assert not any(left)
