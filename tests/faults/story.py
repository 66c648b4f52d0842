"""What a maker of histories knows of each opportunity in one, and what the judge may expect of them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from checker import Cause, Expectations

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass
class Story:
    """What is known of one opportunity, to say what must become of it; see `Expectations` for the words."""

    id: str
    won: bool = False
    meddled: bool = False
    crowded: bool = False
    never: bool = False
    claim_deleted_under_way: bool = False
    reasons: set[str] = field(default_factory=set)

    @property
    def serves(self) -> bool:
        """Whether it must have an invoice and an event."""
        return self.won and not self.meddled


def expected_of(stories: Collection[Story], causes: Sequence[Cause] = ()) -> Expectations:
    """Return what must become of these opportunities; `causes` are those of nobody's in particular."""
    return Expectations(
        invoiced=[story.id for story in stories if story.serves and not story.crowded],
        crowded=[story.id for story in stories if story.serves and story.crowded],
        never=[story.id for story in stories if story.never],
        causes=[
            *causes,
            *(Cause(story.id.encode(), frozenset(story.reasons)) for story in stories if story.reasons),
        ],
        claim_deleted_under_way={story.id for story in stories if story.claim_deleted_under_way},
    )
