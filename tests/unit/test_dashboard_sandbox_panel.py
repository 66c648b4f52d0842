"""The sandbox's panel of the dashboard, over the control address of a sandbox."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from operations.dashboard.sandbox_panel import SandboxPanel

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeSandbox(ThreadingHTTPServer):
    """Responds as the control address does, with so many open opportunities."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.open = 6
        self.asked: list[Any] = []


class _Handler(BaseHTTPRequestHandler):
    server: FakeSandbox

    def do_GET(self) -> None:
        self._respond({"opportunities": {"open": self.server.open, "won": 1, "lost": 0}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self._respond([{"name": "Pump for Alder 1"}] * asked.get("count", 1))

    def _respond(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sandbox() -> Iterator[FakeSandbox]:
    with FakeSandbox() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("is_open", "count"), [(6, 6), (80, 50), (0, 1)])
def test_fifty_means_all_where_fewer_are_open(sandbox: FakeSandbox, is_open: int, count: int) -> None:
    """Where none is open, the sandbox refuses to win one, and says why."""
    sandbox.open = is_open
    panel = SandboxPanel(f"http://127.0.0.1:{sandbox.server_port}", "token")
    panel.act("win", {"count": 50})
    assert sandbox.asked == [{"count": count}]


def test_a_name_is_passed_on(sandbox: FakeSandbox) -> None:
    panel = SandboxPanel(f"http://127.0.0.1:{sandbox.server_port}", "token")
    assert panel.act("win", {"search": " Alder 1 "}) == "Pump for Alder 1 is won."
    assert sandbox.asked == [{"opportunities": ["Alder 1"]}]
