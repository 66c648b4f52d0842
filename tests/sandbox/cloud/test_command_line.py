"""`python -m sandbox` as a user and a script see it: in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.sandbox.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    CheckEvent = Callable[[bytes, Mapping[str, object], str | None], None]

APP = Path(__file__).parents[3]
PATIENCE = 100.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


class _Terminal:
    """Runs the command line and knows what is left of it by a folder that only its processes know.

    In the end every event that a demonstration published is judged by the contract.
    """

    def __init__(self, folder: Path, check_event: CheckEvent) -> None:
        self._check_event = check_event
        self._events = folder / "events"
        self._events.mkdir()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.settings = folder / "local.settings.json"
        self._started: list[subprocess.Popen[str]] = []

    def demo(self) -> tuple[str, ...]:
        """Return the arguments of a demonstration whose events are kept."""
        return ("demo", "--events", str(self._events / f"{len(self._started)}.jsonl"))

    def events(self) -> list[dict[str, Any]]:
        """Return the events of all demonstrations, once they have ended."""
        lines = [line for file in self._events.iterdir() for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "sandbox", *arguments],
            cwd=APP,
            env=os.environ | {"TMPDIR": str(self.temporary)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, error = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def start_for_scripts(self, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = self.start("start", "--json", "--local-settings", str(self.settings), *arguments)
        return process, self.document(process)

    def document(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Read the JSON document, which is more than one line and ends with a brace of its own."""
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                content: dict[str, Any] = json.loads("".join(lines))
                return content
        raise AssertionError(f"no document: {process.communicate(timeout=PATIENCE)}")

    def end(self, process: subprocess.Popen[str], by: int = signal.SIGTERM) -> tuple[str, str]:
        """Ask a process to stop; returns the rest of what it prints, on standard output and standard error."""
        process.send_signal(by)
        return process.communicate(timeout=PATIENCE)

    def processes(self) -> list[int]:
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def assert_nothing_is_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert not self.settings.exists()
        assert self.processes() == []

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=PATIENCE)
        for event in self.events():
            self._check_event(event["body"].encode(), event["applicationProperties"], event["contentType"])


@pytest.fixture
def terminal(tmp_path: Path, published_event_checker: CheckEvent) -> Iterator[_Terminal]:
    running = _Terminal(tmp_path, published_event_checker)
    yield running
    running.close()


def test_start_for_scripts_until_it_is_terminated(terminal: _Terminal) -> None:
    process, document = terminal.start_for_scripts()
    assert document["pid"] == process.pid
    for endpoint in document["endpoints"].values():
        parts = urlsplit(endpoint)
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5).close()
    assert document["workers"]
    assert len(document["opportunities"]) == 20
    written = json.loads(terminal.settings.read_text())
    assert written["Values"]["DATAVERSE_URL"] == document["settings"]["DATAVERSE_URL"]
    assert terminal.settings.stat().st_mode & 0o077 == 0
    assert document["localSettings"] == str(terminal.settings)
    assert_loopback_only(terminal.processes())

    rest, error = terminal.end(process)

    assert (process.returncode, rest, error) == (0, "", "")
    terminal.assert_nothing_is_left()


def assert_loopback_only(pids: list[int]) -> None:
    addresses = set()
    for pid in pids:
        inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                listens = fields[3] == "0A" or table.startswith("udp")
                if listens and f"socket:[{fields[9]}]" in inodes:
                    addresses.add((table, fields[1].partition(":")[0]))
    assert addresses
    # The kernel writes 127.0.0.1 backwards, in hexadecimal.
    assert [entry for entry in addresses if entry[0] != "tcp" or not entry[1].endswith("7F")] == []


def test_start_for_people_until_ctrl_c(terminal: _Terminal) -> None:
    arguments = ("--local-settings", str(terminal.settings), "--mode", "connection-string")
    process = terminal.start("start", *arguments)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    _, error = terminal.end(process, signal.SIGINT)
    text = "".join(lines)
    assert "ServiceBusConnection=Endpoint=" in text, error
    assert "Try this in another terminal" in text
    assert "Service Bus, TLS" not in text
    assert "\x1b" not in text
    assert process.returncode == 0
    terminal.assert_nothing_is_left()


def test_a_running_sandbox_is_controlled_by_commands(terminal: _Terminal) -> None:
    """As a person, and as a script that reads JSON and exit codes."""
    process, document = terminal.start_for_scripts("--traces")

    won = terminal.run("win")
    assert (won.returncode, won.stderr) == (0, "")
    assert won.stdout.startswith("won: ")
    assert won.stdout.count("\n") == 1
    wait_until(lambda: json.loads(terminal.run("invoices", "--json").stdout))
    opportunity = json.loads(terminal.run("invoices", "--json").stdout)[0]["opportunity"]
    assert opportunity in won.stdout
    by_id = terminal.run("win", document["opportunities"][-1], "--json")
    assert [each["id"] for each in json.loads(by_id.stdout)] == [document["opportunities"][-1]]

    wait_until(lambda: "process opportunity-won" in terminal.run("traces", opportunity).stdout)
    root, invocation = terminal.run("traces", opportunity).stdout.splitlines()
    assert re.fullmatch(r"WinOpportunity  [\d.]+ ms  salesperson", root)
    assert re.fullmatch(r"  process opportunity-won  [\d.]+ ms  functions-host", invocation)
    assert json.loads(terminal.run("status", "--json").stdout)["tracing"] is True

    last = document["opportunities"][-2]
    assert f"lost: {last}" in terminal.run("lose", last).stdout
    assert f"open: {last}" in terminal.run("reopen", last).stdout
    assert f"changed: {last}" in terminal.run("change", last, "--price", "5.25").stdout

    broken = terminal.run("break", "dataverse reset", "--for", "10m")
    assert broken.stdout == "broken: dataverse reset for=600s\n"
    assert "Broken: dataverse reset for=600s until " in terminal.run("status").stdout
    assert terminal.run("repair").stdout == "Nothing is broken.\n"
    killed = json.loads(terminal.run("kill", "--json").stdout)["killed"]
    assert set(killed) <= set(document["workers"])
    assert "shows 20" in terminal.run("pass-time", "90m").stdout
    assert "Service Bus's clock is 1.5 h ahead" in terminal.run("status").stdout
    assert "WinOpportunity" in terminal.run("requests").stdout
    assert "sent: sequence number" in terminal.run("send", "invoice-created", "{}").stdout
    assert "  active  " in terminal.run("messages", "invoice-created/Subscriptions/audit").stdout
    assert f"won   {opportunity}" in terminal.run("opportunities").stdout

    refused = terminal.run("win", "nobody", "--pid", str(process.pid))
    assert (refused.returncode, refused.stderr) == (1, "Error: no opportunity is called 'nobody'\n")
    other = terminal.run("status", "--pid", "1")
    assert (other.returncode, other.stderr) == (3, "Error: no sandbox runs with the process id 1\n")
    terminal.end(process)
    terminal.assert_nothing_is_left()
    gone = terminal.run("status")
    assert gone.returncode == 3
    assert "start one with" in gone.stderr


def test_events_are_followed_until_ctrl_c(terminal: _Terminal) -> None:
    process, document = terminal.start_for_scripts()
    following = terminal.start("events", "--follow", "--json", "--pid", str(process.pid))
    terminal.run("win", document["opportunities"][0])
    assert following.stdout is not None
    event = json.loads(following.stdout.readline())
    assert (event["topic"], document["opportunities"][0] in event["body"]) == ("invoice-created", True)
    _, error = terminal.end(following, signal.SIGINT)
    assert (following.returncode, error) == (0, "")
    terminal.end(process)


# Somewhere in the imports, the start, the running and the stop; a failing moment can be run again by its number.
@pytest.mark.parametrize("seed", range(4))
def test_an_interruption_at_any_time_leaves_nothing(terminal: _Terminal, seed: int) -> None:
    delay = random.Random(seed).uniform(0.3, 4.0)  # noqa: S311 - to be repeatable, not secret
    process = terminal.start(*terminal.demo(), "--count", "40")
    threading.Event().wait(delay)
    process.send_signal(signal.SIGINT)
    out, error = terminal.end(process, signal.SIGINT)
    # The very first moments are Python's own: there it dies of the signal, with nothing started.
    assert process.returncode in (130, -signal.SIGINT), (delay, out, error)
    terminal.assert_nothing_is_left()


def test_workers_end_with_a_sandbox_that_is_killed(terminal: _Terminal) -> None:
    process, document = terminal.start_for_scripts()
    terminal.end(process, signal.SIGKILL)
    wait_until(lambda: not terminal.processes(), f"{document['workers']} are still there")
    left = list(terminal.temporary.glob("*/*"))
    assert left
    # Its settings are those of a sandbox that is gone, so the next one takes their place, and removes what it left.
    second, _ = terminal.start_for_scripts()
    assert not [folder for folder in left if folder.exists()]
    terminal.end(second)
    assert second.returncode == 0
    assert not terminal.settings.exists()


def test_two_starts_side_by_side(terminal: _Terminal) -> None:
    """The second one leaves the first one's settings alone, and says so if that file was requested."""
    first, one = terminal.start_for_scripts()
    refused = terminal.run("start", "--local-settings", str(terminal.settings))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    elsewhere = terminal.settings.with_name("elsewhere.json")
    second = terminal.start("start", "--json", "--local-settings", str(elsewhere))
    other = terminal.document(second)
    assert not set(one["endpoints"].values()) & set(other["endpoints"].values())
    for process in (first, second):
        terminal.end(process, signal.SIGINT)
        assert process.returncode == 0
    assert not elsewhere.exists()
    terminal.assert_nothing_is_left()


@pytest.mark.parametrize("content", ['{"IsEncrypted": false, "Values": {}}', "not JSON", "[]"])
def test_settings_that_somebody_wrote_are_kept(terminal: _Terminal, content: str) -> None:
    terminal.settings.write_text(content)
    refused = terminal.run("start", "--local-settings", str(terminal.settings))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert terminal.settings.read_text() == content


def test_force_overwrites_them(terminal: _Terminal) -> None:
    terminal.settings.write_text("{}")
    process, document = terminal.start_for_scripts("--force", "--no-functions-host")
    assert json.loads(terminal.settings.read_text())["Values"]
    assert document["workers"] == []
    terminal.end(process)
    terminal.assert_nothing_is_left()


def test_the_demonstration_shows_what_came_of_each_win(terminal: _Terminal) -> None:
    done = terminal.run(*terminal.demo())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "5 opportunities won · 5 invoices · 5 events · 0 failed"
    header = next(index for index, line in enumerate(lines) if line.startswith("opportunity"))
    assert lines[header].split() == ["opportunity", "invoice", "total", "ms"]
    assert max(map(len, lines[header:])) <= 80
    assert len(lines[header + 1 : -1]) == 5
    assert all("INV-" in line for line in lines[header + 1 : -1])
    assert "events 5" in done.stderr
    assert len(terminal.events()) == 5
    assert "\x1b" not in done.stdout + done.stderr
    terminal.assert_nothing_is_left()


def test_the_demonstration_survives_faults_and_reports_what_struck(terminal: _Terminal) -> None:
    """A response that is lost after the commit, and a link that breaks: still one invoice and one event."""
    done = terminal.run(
        *(*terminal.demo(), "--count", "2", "--set", "RETRY_FIRST_DELAY_SECONDS=0.2"),
        *("--fault", "dataverse/change-set reset after=yes nth=1"),
        *("--fault", "service-bus-out/send:* reset nth=1"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 opportunities won · 2 invoices · 2 events · 0 failed" in done.stdout
    assert "dataverse/change-set reset after=yes: struck 1 time" in done.stderr
    assert "service-bus-out/send:invoice-created reset: struck 1 time" in done.stderr
    assert len(terminal.events()) == 2


def test_what_can_fail_is_listed(terminal: _Terminal) -> None:
    listed = terminal.run("faults")
    assert listed.returncode == 0
    for word in ("dataverse", "change-set", "lock-lost", "retry_after", "chance"):
        assert word in listed.stdout


def test_on_a_terminal_there_is_a_progress_bar_and_no_colour_that_is_not_wanted(terminal: _Terminal) -> None:
    controller, side = pty.openpty()
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "sandbox", *terminal.demo(), "--count", "2"],
        cwd=APP,
        env=os.environ
        | {"TMPDIR": str(terminal.temporary), "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b""
    # At the end of the program the other side is closed, which Linux reports as an error.
    with suppress(OSError):
        while chunk := os.read(controller, 4096):
            shown += chunk
    os.close(controller)
    text = shown.decode()
    assert process.wait(PATIENCE) == 0
    assert "━" in text
    assert "2/2" in text
    # Bold and cursor movements are no colours; 30 to 37 and 90 to 97 are.
    assert re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", text) is None
    assert "2 opportunities won · 2 invoices · 2 events · 0 failed" in text
    assert len(terminal.events()) == 2


def test_the_demonstration_fails_when_an_event_is_missing(terminal: _Terminal) -> None:
    """Nobody runs the function: the wins are there, and nothing comes of them."""
    disabled = "AzureWebJobs.GenerateInvoiceFunction.Disabled=true"
    done = terminal.run("demo", "--count", "1", "--patience", "1", "--set", disabled)
    assert done.returncode == 1
    assert (
        done.stdout.splitlines()[-1]
        == "1 opportunity won · 0 invoices · 0 events · 1 being retried (not processed yet) · 0 failed"
    )
    assert "is being retried: not processed yet" in done.stderr


def test_what_is_missing_after_an_interruption_is_no_failure(terminal: _Terminal) -> None:
    disabled = "AzureWebJobs.GenerateInvoiceFunction.Disabled=true"
    process = terminal.start("demo", "--count", "1", "--patience", "60", "--set", disabled)
    assert process.stdout is not None
    process.stdout.readline()
    out, error = terminal.end(process, signal.SIGINT)
    assert process.returncode == 130
    assert "Interrupted before the end" in error
    assert "0 invoices" not in error
    assert " won · " in out
    terminal.assert_nothing_is_left()


CONSUMER = """
import json, os, ssl, sys
from azure.servicebus import ServiceBusClient

trust = ssl.create_default_context()
with (
    ServiceBusClient.from_connection_string(os.environ["ServiceBusConnection"], ssl_context=trust) as client,
    client.get_subscription_receiver("invoice-created", os.environ["LEDGER_SUBSCRIPTION"]) as receiver,
):
    for message in receiver:
        with open(os.environ["LEDGER_FILE"], "a") as ledger:
            ledger.write(json.dumps({"event_id": message.message_id}) + chr(10))
        receiver.complete_message(message)
"""


def test_the_demonstration_ends_in_the_ledger_of_a_consumer(terminal: _Terminal, tmp_path: Path) -> None:
    consumer = tmp_path / "consumer.py"
    consumer.write_text(CONSUMER)
    command = f"{sys.executable} {consumer}"
    arguments = ("--count", "2", "--mode", "connection-string", "--consumer", command)
    done = terminal.run(*terminal.demo(), *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "2 opportunities won · 2 invoices · 2 events · 2 booked · 0 failed"
    header = next(index for index, line in enumerate(lines) if line.startswith("opportunity"))
    assert lines[header].split() == ["opportunity", "invoice", "total", "booked", "ms"]
    assert all(" yes " in line for line in lines[header + 1 : -1])
    terminal.assert_nothing_is_left()


def test_a_consumer_that_books_nothing_fails_the_demonstration(terminal: _Terminal) -> None:
    arguments = ("--count", "1", "--patience", "5", "--consumer", f"{sys.executable} -c pass", "--json")
    done = terminal.run(*terminal.demo(), *arguments)
    assert done.returncode == 1
    assert "The consumer ended with 0." in done.stderr
    document = json.loads(done.stdout)
    assert (document["booked"], document["failed"], document["events"]) == (0, 0, 1)
    assert document["lines"][0]["event_id"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("demo", "--count", "0"), 2, "--count"),
        (("demo", "--consumer", "/no/such/program"), 1, "the consumer does not start"),
        (("demo", "--mode", "sideways"), 2, "'auto', 'connection-string', 'identity'"),
        (("demo", "--entities", "host.json"), 1, "host.json: the Service Bus configuration has problems"),
        (("start", "--opportunities", "-1"), 2, "--opportunities"),
        (("start", "--settings", "host.json"), 2, "host.json is not a settings file"),
        (("break", "dataverse reset", "--for", "soon"), 2, "'soon' is not a duration such as 30s"),
        (("events",), 3, "no sandbox runs here"),
        (("start", "--local-settings", "/proc/nowhere/x.json"), 1, "/proc/nowhere/x.json cannot be written"),
        (("demo", "--set", "nonsense"), 2, "NAME=VALUE"),
        (("demo", "--fault", "dataverse hiccup"), 2, "no fault on the connection dataverse called 'hiccup'"),
        (("demo", "--app", "tests"), 1, "host.json is missing"),
        (("nonsense",), 2, "No such command"),
        (("--help",), 0, ""),
    ],
)
def test_exit_codes(terminal: _Terminal, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = terminal.run(*arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    terminal.assert_nothing_is_left()
