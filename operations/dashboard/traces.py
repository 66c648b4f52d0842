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


def text_of(trees: Iterable[Mapping[str, Any]]) -> str:
    """Return trees of spans, as the sandbox's control endpoint returns them, as text; "" without any."""
    lines = []
    # Not by recursion: each retry is a child of the attempt before it, and there may be hundreds.
    waiting = [(0, tree) for tree in reversed(list(trees))]
    while waiting:
        depth, span = waiting.pop()
        lines.append("  " * depth + _line(span))
        waiting += [(depth + 1, child) for child in reversed(span["children"])]
    return "\n".join(lines)


def _line(span: Mapping[str, Any]) -> str:
    attributes = span["attributes"]
    shown = [f"{word}={attributes[name]}" for word, name in _SHOWN.items() if name in attributes]
    if span["error"]:
        shown.append(f"ERROR: {span['error']}")
    return printable("  ".join([span["name"], f"{span['milliseconds']:,.0f} ms", span["service"], *shown]))
