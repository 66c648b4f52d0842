"""Traces as text, as the dashboard shows them."""

from __future__ import annotations

from typing import Any

from operations.dashboard.traces import text_of


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

    assert text_of(spans).splitlines() == [
        "win  1,234 ms  s",
        "  process  1,234 ms  s  attempt=1  outcome=retry",
        "    POST $batch  1,234 ms  s  status=503  ERROR: 503",
        "    send  1,234 ms  s",
        "  other  1,234 ms  s",
        "second  1,234 ms  s",
    ]
    assert text_of([]) == ""


def test_a_span_is_one_line() -> None:
    assert len(text_of([span(0, "a\nb\x1b", error="c\nd")]).splitlines()) == 1


def test_three_days_of_retries_can_be_shown() -> None:
    """Hundreds of levels; the indentation ends where nobody could read the line."""
    shown = text_of(span(depth, "retry") for depth in range(2001))

    assert len(shown.splitlines()) == 2001
    assert len(shown) < 400_000
