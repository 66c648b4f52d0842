"""Every safeguard is removed in turn from a staged copy of the deployed code: the histories find each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proofs.mutants import MUTANTS, Edit, Mutant, hunt, stage

if TYPE_CHECKING:
    from pathlib import Path

# Several times what the slowest took when this was written.
_MAX_HISTORIES = 800
_INTACT = Mutant("nothing taken away")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.partition(":")[0])
def test_mutant_is_found(mutant: Mutant, tmp_path: Path) -> None:
    found = hunt(mutant, tmp_path, count=_MAX_HISTORIES)

    assert found.violations, f"{mutant.name!r} was not found in {found.histories} histories."
    assert any(violation.startswith(mutant.found_by) for violation in found.violations), found.violations


def test_the_staged_copy_itself_keeps_the_promise(tmp_path: Path) -> None:
    """What finds the mutants finds nothing in the code itself: the missing line is found, not the staging."""
    assert hunt(_INTACT, tmp_path, count=40).violations == ()


def test_a_mutant_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    stale = Mutant("stale", (Edit("shared/message.py", "a line that does not exist", ""),))

    with pytest.raises(AssertionError, match="does not apply"):
        stage(stale, tmp_path)
