"""What the maker of a history knows of each opportunity in it, and what the checker may expect of them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proofs.checker import Cause, Expectations

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass
class Scenario:
    """What is done to one opportunity, to say what must become of it; see `Expectations` for the words.

    `changed_by_user`: a user ordered, or deleted or canceled the invoice. `is_owner_fixed`: nobody but the function
    assigns opportunity or invoice.
    """

    id: str
    won: bool = False
    changed_by_user: bool = False
    concurrent: bool = False
    never: bool = False
    claim_deleted_under_way: bool = False
    won_again: bool = False
    ordered: bool = False
    is_owner_fixed: bool = True
    reasons: set[str] = field(default_factory=set)

    @property
    def must_be_invoiced(self) -> bool:
        """Whether it must have an invoice and an event."""
        return self.won and not self.changed_by_user


def expected_of(scenarios: Collection[Scenario], causes: Sequence[Cause] = ()) -> Expectations:
    """Return what must become of these opportunities; `causes` are those that belong to none of them."""
    must = [scenario for scenario in scenarios if scenario.must_be_invoiced]
    return Expectations(
        invoiced=[scenario.id for scenario in must if not scenario.concurrent],
        concurrent=[scenario.id for scenario in must if scenario.concurrent],
        never=[scenario.id for scenario in scenarios if scenario.never],
        causes=[
            *causes,
            *(Cause(each.id.encode(), frozenset(each.reasons)) for each in scenarios if each.reasons),
        ],
        claim_deleted_under_way={each.id for each in scenarios if each.claim_deleted_under_way},
        won_again={each.id for each in scenarios if each.won_again},
        ordered={each.id for each in scenarios if each.ordered},
    )
