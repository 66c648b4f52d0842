"""A debugger at the worker: the worker waits for it, stops at a breakpoint, and completes the invocation."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.functions_host import FunctionsHost
from sandbox.service_bus import Broker, Configuration, Message, ServiceBusServer
from tests.sandbox.conftest import PATIENCE, connection_string, wait_until
from tests.sandbox.functions_host.conftest import add_breakpoint

ENTITIES = '{"UserConfig": {"Namespaces": [{"Name": "test", "Queues": [{"Name": "work"}]}]}}'


class _Debugger:
    """A client of the Debug Adapter Protocol, as small as this test needs it."""

    def __init__(self, port: int) -> None:
        self._socket = self._connect(port)
        self._stream = self._socket.makefile("rb")
        self._number = 0
        self._events: list[dict[str, Any]] = []

    @staticmethod
    def _connect(port: int) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return connection

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, command: str, **arguments: object) -> int:
        self._number += 1
        body = json.dumps(
            {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        ).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._number

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        number = self.send(command, **arguments)
        while True:
            message = self._read()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                body: dict[str, Any] = message.get("body") or {}
                return body
            self._events.append(message)

    def wait_for(self, event: str) -> dict[str, Any]:
        while True:
            message = self._events.pop(0) if self._events else self._read()
            if message.get("event") == event:
                body: dict[str, Any] = message.get("body") or {}
                return body

    def _read(self) -> dict[str, Any]:
        length = 0
        while (line := self._stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"Content-Length" else length
        message: dict[str, Any] = json.loads(self._stream.read(length))
        return message

    def attach(self) -> None:
        self.ask("initialize", adapterID="test", clientID="test")
        self.send("attach", connect={}, justMyCode=True)
        self.wait_for("initialized")
        self.ask("configurationDone")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def server() -> Iterator[ServiceBusServer]:
    with ServiceBusServer(Broker(Configuration.parse(ENTITIES))) as running:
        yield running


def settings(server: ServiceBusServer, records: Path) -> dict[str, str]:
    return {"QUEUE": "work", "Bus": connection_string(server), "RECORDS": str(records)}


def test_a_debugger_stops_at_a_breakpoint_and_the_invocation_goes_on(
    server: ServiceBusServer, app: Path, tmp_path: Path, port: int
) -> None:
    """The time limit of the function does not end an invocation in the debugger."""
    add_breakpoint(app)
    limit = {"AzureFunctionsJobHost__functionTimeout": "00:00:00.2"}
    with FunctionsHost(app, settings(server, tmp_path) | limit, debug_port=port) as host:
        server.broker.send("work", Message(body=b"x"))
        assert host.worker_pids == ()
        debugger = _Debugger(port)
        try:
            debugger.attach()
            stopped = debugger.wait_for("stopped")
            (frame, *_) = debugger.ask("stackTrace", threadId=stopped["threadId"])["stackFrames"]
            assert frame["source"]["path"] == str(app / "record" / "__init__.py")
            threading.Event().wait(0.5)
            assert list(tmp_path.glob("*.json")) == []
            debugger.ask("continue", threadId=stopped["threadId"])
            wait_until(lambda: not server.broker.counts("work").active)
            assert len(list(tmp_path.glob("*.json"))) == 1
        finally:
            debugger.close()


def test_a_stop_does_not_wait_for_a_debugger(
    server: ServiceBusServer, app: Path, tmp_path: Path, port: int
) -> None:
    host = FunctionsHost(app, settings(server, tmp_path), debug_port=port)
    host.start()
    host.stop()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_start_prints_where_the_worker_waits(tmp_path: Path, port: int) -> None:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [
            sys.executable,
            "-m",
            "sandbox",
            "start",
            "--debug",
            str(port),
            "--local-settings",
            str(tmp_path / "l.json"),
        ],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "Ctrl-C" in line:
            break
    process.terminate()
    process.communicate(timeout=60)
    assert f"waits for a debugger on 127.0.0.1:{port}" in shown
    assert process.returncode == 0
