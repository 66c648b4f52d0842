"""Fixtures of the end-to-end tests: a namespace as an operator sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from click.testing import CliRunner

from operations.__main__ import operations
from sandbox.clock import SystemClock
from sandbox.cloud import FAILED_QUEUE, WON_QUEUE
from sandbox.cloud.settings import entity_settings
from sandbox.service_bus import Authenticator, Broker, Configuration, Message, ServiceBusServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from click.testing import Result


PATIENCE = 100.0


def wait_until(condition: Callable[[], object], what: str | Callable[[], object]) -> None:
    """Wait for a condition. `what`: what has not happened, if it fails; a function if it changes meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def run_operations(environment: Mapping[str, str], *arguments: str, code: int = 0) -> Result:
    """Run a command of the operators; it must end with this exit code."""
    result = CliRunner().invoke(operations, arguments, env=environment)
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


# A shell lets what it runs in the background ignore SIGINT, and this test run may be such a program.
COMMAND_LINE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('operations', run_name='__main__', alter_sys=True)"
)


@contextmanager
def started(environment: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command of the operators in a process of its own; at the end it is killed."""
    with subprocess.Popen(  # noqa: S603 - our own command, no shell
        [sys.executable, "-u", "-c", COMMAND_LINE, *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Namespace:
    """A broker, and the command line pointed at it."""

    broker: Broker
    environment: dict[str, str]

    def run(self, *arguments: str, code: int = 0) -> Result:
        return run_operations(self.environment, *arguments, code=code)

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.run(*arguments, "--json").stdout)
        return rows

    def messages(self, entity: str) -> list[Message]:
        """Return what is in a queue; nothing is moved."""
        return [each.message for each in self.broker.peek(entity, 0, 1000)]

    def park(
        self, *about: int | str, reason: str = "InvoiceRefused", text: str = "What was wrong. What to do."
    ) -> None:
        """Send messages as the function parks them."""
        properties = {
            "http://schemas.microsoft.com/xrm/2011/Claims/Organization": "contoso",
            "DeadLetterReason": reason,
            "DeadLetterErrorDescription": text,
            "InvoicingRoot": "root",
            "InvoicingAttempt": 3,
            "InvoicingFirstSeen": "2026-11-01T12:00:00+00:00",
            "InvoicingOriginalMessageId": "original",
        }
        for each in about:
            message = Message(
                event(each),
                message_id=f"parked-{each}",
                content_type="application/json",
                correlation_id="correlation",
                application_properties=properties,
            )
            self.broker.send(FAILED_QUEUE, message)

    def schedule(
        self, *about: int | str, reason: str = "DataverseUnreachable", text: str = "What was wrong."
    ) -> None:
        """Send messages as the function schedules them."""
        now = datetime.now(UTC)
        properties = {
            "InvoicingRoot": "root",
            "InvoicingAttempt": 2,
            "InvoicingFirstSeen": (now - timedelta(hours=2)).isoformat(),
            "InvoicingReason": reason,
            "InvoicingDescription": text,
        }
        for each in about:
            message = Message(
                event(each),
                message_id=f"copy-{each}",
                scheduled_enqueue_time=now + timedelta(minutes=10),
                application_properties=properties,
            )
            self.broker.send(WON_QUEUE, message)


def opportunity(number: int) -> str:
    return str(UUID(int=number))


def event(about: int | str) -> bytes:
    """Return the event of a win: `about` is an opportunity's id, or the number of an invented one."""
    about = opportunity(about) if isinstance(about, int) else about
    return json.dumps({"opportunityId": about}).encode()


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """Serve a namespace; commands write their files into `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    configuration = Configuration.load()
    broker = Broker(configuration, SystemClock())
    with ServiceBusServer(broker, authenticator=Authenticator(configuration)) as server:
        connection_string = (
            f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )
        yield Namespace(broker, {"ServiceBusConnection": connection_string, **entity_settings(configuration)})
