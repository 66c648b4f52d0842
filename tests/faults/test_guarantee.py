"""The page about the guarantee is right about the proofs, and its diagrams can be rendered."""

from __future__ import annotations

import re

import pytest
from proofs import ROOT
from proofs.matrix import cells
from proofs.mutants import MUTANTS

_PAGE = (ROOT / "docs" / "guarantee.md").read_text("utf-8")
_DIAGRAMS = re.findall(r"^```mermaid\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("diagram", _DIAGRAMS, ids=range(len(_DIAGRAMS)))
def test_no_text_of_a_diagram_ends_before_its_line_does(diagram: str) -> None:
    """Mermaid takes a semicolon for the end of a statement, and a number sign for the beginning of an entity."""
    assert not re.findall(r"^.*[;#].*$", diagram, re.MULTILINE)


def test_the_figures_are_of_this_list_and_this_matrix() -> None:
    """A new safeguard or cell needs a run of the proof, and its figure in the page."""
    assert _DIAGRAMS
    every = len(MUTANTS)
    assert f"{every} of {every} found" in _PAGE
    assert f"[{len(cells())} cells](faults-matrix.md)" in _PAGE
