"""Some cells of the matrix, on real sockets; `make faults` runs them all, and docs/faults-matrix.md has the table."""

from __future__ import annotations

import gc
import re
from typing import TYPE_CHECKING

import pytest
from proofs import ROOT
from proofs.matrix import Boundary, Matrix, cells, short
from proofs.sockets import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proofs.matrix import Cell

# Microsoft's client, with which the host receives, leaves sockets that were reset to the garbage collection.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

_TABLE = ROOT / "docs" / "faults-matrix.md"
_SHORT = short()


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    """One sandbox for all cells: each has a win of its own."""
    with Stage(len(_SHORT)) as stage:
        yield Matrix(stage)
    # While the warnings about them are still expected.
    gc.collect()


@pytest.mark.parametrize("cell", _SHORT, ids=str)
def test_a_fault_at_a_boundary_loses_and_doubles_nothing(matrix: Matrix, cell: Cell) -> None:
    """One invoice, one event, nothing waiting, nothing parked but what fails for good."""
    result = matrix.run(cell)
    problems = "\n".join(result.problems)
    assert not result.problems, f'{problems}\nAgain, alone: python tests/faults/run_matrix.py --only "{cell}"'


def test_every_boundary_has_cells_and_every_cell_is_another() -> None:
    every = cells()
    assert {cell.boundary for cell in every} == set(Boundary)
    assert {cell.boundary for cell in _SHORT} == set(Boundary)
    assert len({(cell.boundary, cell.rule) for cell in every}) == len(every)


def test_the_table_that_is_kept_has_all_cells() -> None:
    """A new cell needs a run of the matrix, which writes the table."""
    kept = re.findall(r"^\| (?!fault |---)(.+?) \| .+ \|$", _TABLE.read_text("utf-8"), re.MULTILINE)
    assert sorted(kept) == sorted(cell.what for cell in cells())
