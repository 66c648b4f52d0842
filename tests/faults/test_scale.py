"""Several processes with the same limits; `python tests/faults/scale.py` has the whole backlog."""

from __future__ import annotations

from scale import Load, run

from sandbox.dataverse import ServiceProtectionLimits


def test_processes_that_share_the_limits_do_not_keep_each_other_throttled() -> None:
    """64 threads, and 4 requests at once: if all of them went on after each 429, 38 % would be refused."""
    result = run(Load(wins=300, processes=4), ServiceProtectionLimits(concurrent=4))
    assert result.left_behind == 0
    assert result.refused < 0.2
    assert result.deliveries_per_invoice < 2
