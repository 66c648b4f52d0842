"""Traces as text, as the dashboard shows them."""

from __future__ import annotations

from typing import Any

from operations.dashboard.traces import text_of


def span(
    name: str, *children: dict[str, Any], error: str = "", attributes: dict[str, object] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "service": "s",
        "milliseconds": 1234.5,
        "attributes": attributes or {},
        "error": error,
        "children": list(children),
    }


def test_each_span_is_a_line_below_the_one_that_caused_it() -> None:
    attempt = {"invoicing.attempt": 1, "invoicing.outcome": "retry", "invoicing.root": "not shown"}
    request = span("POST $batch", error="503", attributes={"http.response.status_code": 503})
    tree = span("win", span("process", request, span("send"), attributes=attempt), span("other"))

    assert text_of([tree, span("second")]).splitlines() == [
        "win  1,234 ms  s",
        "  process  1,234 ms  s  attempt=1  outcome=retry",
        "    POST $batch  1,234 ms  s  status=503  ERROR: 503",
        "    send  1,234 ms  s",
        "  other  1,234 ms  s",
        "second  1,234 ms  s",
    ]
    assert text_of([]) == ""


def test_a_span_is_one_line() -> None:
    assert len(text_of([span("a\nb\x1b", error="c\nd")]).splitlines()) == 1


def test_three_days_of_retries_can_be_shown() -> None:
    tree = span("last")
    for _ in range(2000):
        tree = span("retry", tree)

    assert len(text_of([tree]).splitlines()) == 2001
