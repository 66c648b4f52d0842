"""The runbook against the sandbox: its commands work, and a healthy sandbox is healthy for `doctor`."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from operations.diagnosis.check import State
from sandbox.actors import Salesperson
from sandbox.cloud import CREATED_TOPIC, FAILED_QUEUE, Cloud, CloudOptions
from sandbox.dataverse.schema import TABLES
from sandbox.service_bus import Message
from tests.end_to_end.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
OK, FOUND = 0, 3
# Commands that ask, where the page leaves the question to the reader.
ASKS = ("discard",)


def commands() -> list[list[str]]:
    """Return the commands of `operations` in the page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", RUNBOOK, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("operations ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


class Sandbox:
    """A sandbox with its local.settings.json, and commands that read nothing but that file."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud = cloud
        self.settings = folder / "local.settings.json"
        self.settings.write_text(json.dumps(cloud.local_settings()))
        self._folder = folder

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "operations", "--settings", str(self.settings), *arguments]
        return subprocess.run(  # noqa: S603 - our own command, no shell
            command,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    @property
    def operator(self) -> dict[str, str]:
        return {"OPERATIONS_CLIENT_ID": self.cloud.operator.client_id}

    def win(self, opportunity: str) -> None:
        """Win it, and wait until its event is published."""
        audit = f"{CREATED_TOPIC}/Subscriptions/audit"
        before = self.cloud.broker.counts(audit).active
        with Salesperson(self.cloud) as salesperson:
            salesperson.win(opportunity)
        wait_until(lambda: self.cloud.broker.counts(audit).active > before, "the event is published")

    def park(self, opportunity: str, reason: str) -> None:
        self.cloud.broker.send(
            FAILED_QUEUE,
            Message(
                json.dumps({"opportunityId": opportunity}).encode(),
                message_id=str(uuid4()),
                content_type="application/json",
                application_properties={"DeadLetterReason": reason, "DeadLetterErrorDescription": "Why."},
            ),
        )


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Cloud(CloudOptions(ROOT, opportunities=5)) as cloud:
        yield Sandbox(cloud, tmp_path)


@pytest.mark.parametrize("login", ["operator", "function"])
def test_a_healthy_sandbox_is_healthy_for_doctor(sandbox: Sandbox, login: str) -> None:
    """Only local.settings.json is read, by the operator and as the function."""
    done = sandbox.run("doctor", "--json", **(sandbox.operator if login == "operator" else {}))
    rows = json.loads(done.stdout)
    assert {row["state"] for row in rows} <= {State.OK.value, State.CANNOT_SEE.value}, rows
    assert done.returncode == OK
    assert done.stderr == ""


def test_every_command_of_the_runbook_works(sandbox: Sandbox) -> None:
    first, second, third, fourth, fifth = sandbox.cloud.demo.opportunities
    with sandbox.cloud.dataverse.session() as session:
        session.change(TABLES["opportunity"], first, {"name": "50 chairs for the town hall"})
    for opportunity in (first, second, third):
        sandbox.win(opportunity)
    for opportunity, reason in (
        (first, "InvoiceRefused"),
        (second, "InvoiceRefused"),
        (third, "DataverseUnavailable"),
    ):
        sandbox.park(opportunity, reason)
    # Won without an event: as if the step had been disabled.
    with sandbox.cloud.dataverse.session() as session:
        session.transaction.update(
            TABLES["opportunity"], fourth, {"statecode": 1, "statuscode": 3, "actualclosedate": "2026-11-20"}
        )
    tried = commands()
    assert len(tried) > 12
    for command in tried:
        arguments = [fifth if each == "OPPORTUNITY" else each for each in command]
        if fifth in arguments:
            with Salesperson(sandbox.cloud) as salesperson:
                salesperson.win(fifth)
        asked = ["--yes"] if set(ASKS) & set(arguments) else []
        done = sandbox.run(*arguments, *asked, **sandbox.operator)
        allowed = (OK, FOUND) if arguments[0] == "reconcile" else (OK,)
        assert done.returncode in allowed, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    left = json.loads(sandbox.run("failed", "list", "--json", **sandbox.operator).stdout)
    assert left == []


def test_every_inline_command_of_the_runbook_exists() -> None:
    """Those that need Azure, or ids that only the reader knows: their names and options are right."""
    inline = set(re.findall(r"`operations ([a-z][^`]*)`", RUNBOOK))
    assert len(inline) > 6
    for text in sorted(inline):
        words = [word for word in text.split() if word.islower() and not word.startswith("--")]
        command = [sys.executable, "-m", "operations", *words[:2], "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        assert done.returncode == OK, (text, done.stderr)
        for option in re.findall(r"--[a-z-]+", text):
            assert option in done.stdout, text
