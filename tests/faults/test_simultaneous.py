from __future__ import annotations

from proofs.simultaneous import THREADS, run


def test_the_same_win_on_50_threads_of_four_processes_is_invoiced_once() -> None:
    """All 50 have checked and found nothing when the first one commits; `make faults` has 100 rounds of it."""
    outcome = run(10)

    assert outcome.problems == ()
    assert (outcome.invoices, outcome.events, outcome.met) == (10, 10, sum(THREADS))
