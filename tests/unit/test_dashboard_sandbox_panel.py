"""The sandbox's panel of the dashboard, over the control address of a sandbox."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from cheroot import wsgi

from operations.dashboard.sandbox_panel import SandboxPanel
from sandbox.http_server import HttpServer, StartResponse, respond_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class FakeSandbox(HttpServer):
    """Responds as the control address does, with so many open opportunities."""

    def __init__(self) -> None:
        super().__init__("control", wsgi.Server(("127.0.0.1", 0), self, numthreads=1, shutdown_timeout=1))
        self.open = 6
        self.asked: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            content: object = {"opportunities": {"open": self.open, "won": 1, "lost": 0}}
        else:
            self.asked.append(json.load(environ["wsgi.input"]))
            content = [{"name": "Pump for Alder 1"}] * self.asked[-1].get("count", 1)
        return respond_json(start_response, HTTPStatus.OK, content)

    @property
    def panel(self) -> SandboxPanel:
        return SandboxPanel(f"http://{self.address}", "token")


@pytest.fixture
def sandbox() -> Iterator[FakeSandbox]:
    with FakeSandbox() as server:
        yield server


@pytest.mark.parametrize(("is_open", "count"), [(6, 6), (80, 50), (0, 1)])
def test_fifty_means_all_where_fewer_are_open(sandbox: FakeSandbox, is_open: int, count: int) -> None:
    """Where none is open, the sandbox refuses to win one, and says why."""
    sandbox.open = is_open
    sandbox.panel.act("win", {"count": 50})
    assert sandbox.asked == [{"count": count}]


def test_a_name_is_passed_on(sandbox: FakeSandbox) -> None:
    assert sandbox.panel.act("win", {"search": " Alder 1 "}) == "Pump for Alder 1 is won."
    assert sandbox.asked == [{"opportunities": ["Alder 1"]}]
