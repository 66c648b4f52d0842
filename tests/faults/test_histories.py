from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise
from random import Random

import pytest
from histories import run_history
from rig import START
from simulation import Simulation

# Other seeds than those of `make faults`, so that the two do not look at the same histories.
_FIRST = 1_000_000
_CHUNKS, _EACH = 8, 25


@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_random_histories_keep_the_promise(chunk: int) -> None:
    """Whatever fails and whoever interferes: at most one invoice, nothing lost, nothing stuck."""
    counts: Counter[str] = Counter()
    for seed in range(_FIRST + chunk * _EACH, _FIRST + (chunk + 1) * _EACH):
        outcome = run_history(seed)
        counts.update(outcome.counts)
        told = "\n".join(str(violation) for violation in outcome.violations)
        assert not outcome.violations, (
            f"{told}\nAgain, alone: python tests/faults/run_histories.py --replay {seed}"
        )
    # A history in which nothing happens proves nothing.
    assert counts["opportunities won and not meddled with"] >= _EACH / 2
    assert counts["invoices generated"] >= _EACH / 2
    assert sum(count for name, count in counts.items() if name.startswith("fault:")) >= _EACH / 4
    assert counts["wins when the faults had ended"] <= _EACH / 4


def test_a_seed_is_a_history() -> None:
    """The same seed happens again turn for turn, so that a failure can be replayed alone; another one differs."""
    digests = [(run_history(seed).digest, run_history(seed).digest) for seed in range(_FIRST, _FIRST + 5)]

    assert all(first == second for first, second in digests)
    assert all(one != other for (one, _), (other, _) in pairwise(digests))


def test_what_is_due_a_hair_after_a_tick_is_waited_for() -> None:
    """Time goes on though the broker's schedules know no ticks: no history stands still."""
    simulation = Simulation(Random(1), START)  # noqa: S311 - to be repeatable, not secret
    due = START + timedelta(seconds=1, microseconds=1)

    assert simulation.run(lambda: None, lambda: due if simulation.now() < due else None, turns=10)
