"""The spans of an opportunity as text: a line for each, indented below the span that caused it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from operations.console import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The attributes that are shown, by the word that stands for each.
_SHOWN = {
    "attempt": "invoicing.attempt",
    "outcome": "invoicing.outcome",
    "status": "http.response.status_code",
}
# Each retry is a child of the attempt before it, and there may be hundreds.
_MAX_INDENT = 60


def text_of(spans: Iterable[Mapping[str, Any]]) -> str:
    """Return spans, as the sandbox's control endpoint returns them, as text; "" without any."""
    return "\n".join("  " * min(span["depth"], _MAX_INDENT) + _line(span) for span in spans)


def _line(span: Mapping[str, Any]) -> str:
    attributes = span["attributes"]
    shown = [f"{word}={attributes[name]}" for word, name in _SHOWN.items() if name in attributes]
    if span["error"]:
        shown.append(f"ERROR: {span['error']}")
    return printable("  ".join([span["name"], f"{span['milliseconds']:,.0f} ms", span["service"], *shown]))
