"""What the dashboard shows at one moment; built by `collector`, rendered by the templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from operations.messages import MessageInfo
    from operations.names import OpportunityName


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
class MessageRow:
    """A failed or scheduled message. `id` names it to the actions; `name` is None where it is not known."""

    id: str
    seen: MessageInfo
    name: OpportunityName | None


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

    figures: Figures = field(default_factory=Figures)
    connections: Mapping[str, ConnectionState] = field(default_factory=dict)
    failures: Sequence[MessageRow] = ()
    retries: Sequence[MessageRow] = ()
    troubles: Mapping[str, str] = field(default_factory=dict)

    def by_reason(self) -> list[tuple[str, list[MessageRow]]]:
        """Return the failed messages by reason, the most frequent first."""
        groups: dict[str, list[MessageRow]] = {}
        for failure in self.failures:
            groups.setdefault(failure.seen.reason, []).append(failure)
        return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
