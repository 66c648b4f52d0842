from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise
from random import Random

import pytest
from proofs.histories import run_history
from proofs.refusals import OUTAGES, REFUSALS, REJECTIONS
from proofs.rig import START
from proofs.simulation import Simulation
from proofs.situations import SITUATIONS, draw_situation

from shared.response import _DECISION_OF_CODE

# Other seeds than those of `make faults`, so that the two run different histories.
_FIRST = 1_000_000
_CHUNKS, _EACH = 8, 25


@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_random_histories_keep_the_promise(chunk: int) -> None:
    """At most one invoice, nothing lost, nothing stuck: with any fault, and any change by a user."""
    counts: Counter[str] = Counter()
    for seed in range(_FIRST + chunk * _EACH, _FIRST + (chunk + 1) * _EACH):
        outcome = run_history(seed)
        counts.update(outcome.counts)
        violations = "\n".join(map(str, outcome.violations))
        assert not outcome.violations, (
            f"{violations}\nAgain, alone: python tests/faults/run_histories.py --replay {seed}"
        )
    # A history in which nothing happens proves nothing.
    assert counts["opportunities that must be invoiced"] >= _EACH / 2
    assert counts["invoices generated"] >= _EACH / 2
    assert sum(count for name, count in counts.items() if name.startswith("fault:")) >= _EACH / 4
    assert counts["wins when the faults had ended"] <= _EACH / 4


def test_the_histories_know_every_code_by_which_the_function_decides() -> None:
    drawn = {error.code.lower() for error in (*REFUSALS, *OUTAGES, *REJECTIONS)}
    # Not found, a plug-in's 429 and the codes of an existing claim have situations of their own.
    elsewhere = {
        f"0x{code}" for code in ["80040217", "80060888", "80048d04", "80040237", "80060892", "80073002"]
    }

    assert drawn - {""} == _DECISION_OF_CODE.keys() - elsewhere


def test_every_situation_is_drawn_often() -> None:
    drawn = Counter(draw_situation(Random(seed)).name for seed in range(2_000))  # noqa: S311 - to be repeatable

    assert drawn.keys() == {situation.name for situation in SITUATIONS}
    assert min(drawn.values()) >= 2_000 / 50


def test_a_seed_is_a_history() -> None:
    """The same seed happens again turn for turn, so that a failure can be replayed alone; another one differs."""
    digests = [(run_history(seed).digest, run_history(seed).digest) for seed in range(_FIRST, _FIRST + 5)]

    assert all(first == second for first, second in digests)
    assert all(one != other for (one, _), (other, _) in pairwise(digests))


def test_an_event_between_two_ticks_is_waited_for() -> None:
    """Time goes on though the broker's schedules have no ticks: no history stands still."""
    simulation = Simulation(Random(1), START)  # noqa: S311 - to be repeatable, not secret
    due = START + timedelta(seconds=1, microseconds=1)

    assert simulation.run(lambda: None, lambda: due if simulation.now() < due else None, turns=10)
