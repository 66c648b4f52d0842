"""The sandbox's panel of the dashboard, over the control address of a sandbox."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from cheroot import wsgi

from operations.dashboard.sandbox_panel import SandboxPanel, traces_text
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


# --- traces ---


def span(
    depth: int, name: str, *, error: str = "", attributes: dict[str, object] | None = None
) -> dict[str, Any]:
    return {
        "depth": depth,
        "name": name,
        "service": "s",
        "milliseconds": 1234.5,
        "attributes": attributes or {},
        "error": error,
    }


def test_each_span_is_a_line_below_the_one_that_caused_it() -> None:
    attempt = {"invoicing.attempt": 1, "invoicing.outcome": "retry", "invoicing.root": "not shown"}
    spans = [
        span(0, "win"),
        span(1, "process", attributes=attempt),
        span(2, "POST $batch", error="503", attributes={"http.response.status_code": 503}),
        span(2, "send"),
        span(1, "other"),
        span(0, "second"),
    ]

    assert traces_text(spans).splitlines() == [
        "win  1,234 ms  s",
        "  process  1,234 ms  s  attempt=1  outcome=retry",
        "    POST $batch  1,234 ms  s  status=503  ERROR: 503",
        "    send  1,234 ms  s",
        "  other  1,234 ms  s",
        "second  1,234 ms  s",
    ]
    assert traces_text([]) == ""


def test_a_span_is_one_line() -> None:
    assert len(traces_text([span(0, "a\nb\x1b", error="c\nd")]).splitlines()) == 1


def test_three_days_of_retries_can_be_shown() -> None:
    """Hundreds of levels; the indentation ends where nobody could read the line."""
    shown = traces_text(span(depth, "retry") for depth in range(2001))

    assert len(shown.splitlines()) == 2001
    assert len(shown) < 400_000
