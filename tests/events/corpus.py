"""Reads the corpus of incoming events beside it; the format is in README.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EventCase:
    """One file: a message, and what it must be read as."""

    name: str
    source: str
    confirmed: str
    body: bytes
    properties: dict[str, object]
    content_type: str | None
    organization_setting: str | None
    expect: str
    organization: str | None
    correlation: str | None
    says: tuple[str, ...]


def event_cases() -> list[EventCase]:
    """Return all cases, by name."""
    return [_read(path) for path in sorted(Path(__file__).parent.glob("*.event"))]


def _read(path: Path) -> EventCase:
    head, _, body = path.read_bytes().partition(b"\n\n")
    headers: dict[str, list[str]] = {}
    for line in head.decode().splitlines():
        name, _, value = line.partition(": ")
        headers.setdefault(name, []).append(value)
    case = EventCase(
        name=path.stem,
        source=headers.pop("From")[0],
        confirmed=headers.pop("Confirmed")[0],
        body=body,
        properties={
            **dict(_property(line) for line in headers.pop("Property", [])),
            **{name: text.encode() for name, text in map(_property, headers.pop("Property-Bytes", []))},
        },
        content_type=_optional(headers, "Content-Type"),
        organization_setting=_optional(headers, "Setting"),
        expect=headers.pop("Expect")[0],
        organization=_optional(headers, "Organization"),
        correlation=_optional(headers, "Correlation"),
        says=tuple(headers.pop("Says", [])),
    )
    if headers:
        raise ValueError(f"{path.name} has headers that nobody knows: {', '.join(headers)}.")
    return case


def _optional(headers: dict[str, list[str]], name: str) -> str | None:
    return headers.pop(name, [None])[0]


def _property(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" = ")
    return name, value
