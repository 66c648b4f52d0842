"""What the dashboard shows at one moment; built by `collector`, rendered by the templates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta


class Light(Enum):
    """How a connection is; the value is its class in the style sheet."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ConnectionState:
    """One arrow of the picture: `name` is its id there, `sentence` says what is wrong and what to do."""

    name: str
    light: Light
    sentence: str


@dataclass(frozen=True)
class Failure:
    """A failed message as a row."""

    id: str
    reason: str
    opportunity_id: str | None
    opportunity: str | None
    customer: str | None
    amount: str | None
    age: timedelta | None
    text: str


@dataclass(frozen=True)
class Retry:
    """A scheduled message as a row."""

    number: int
    reason: str
    opportunity_id: str | None
    opportunity: str | None
    attempt: int
    age: timedelta | None
    due: datetime | None
    text: str


@dataclass(frozen=True)
class Figures:
    """The numbers in the picture. None: not known yet, or not readable with this login."""

    active: int | None = None
    scheduled: int | None = None
    failed: int | None = None
    events_per_minute: float | None = None
    seconds_to_event: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the page shows by itself. `troubles` has a sentence for each source that cannot be read."""

    taken_at: datetime
    figures: Figures = field(default_factory=Figures)
    connections: Mapping[str, ConnectionState] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    retries: Sequence[Retry] = ()
    troubles: Mapping[str, str] = field(default_factory=dict)

    def by_reason(self) -> list[tuple[str, list[Failure]]]:
        """Return the failed messages by reason, the most frequent first."""
        groups: dict[str, list[Failure]] = {}
        for failure in self.failures:
            groups.setdefault(failure.reason, []).append(failure)
        return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))

    def with_trouble(self, source: str, sentence: str | None) -> Snapshot:
        """Return the snapshot with what is wrong with a source, or without it."""
        troubles = {name: text for name, text in self.troubles.items() if name != source}
        return replace(self, troubles=troubles if sentence is None else {**troubles, source: sentence})
