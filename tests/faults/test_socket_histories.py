"""A few random histories on real sockets; `make faults` has 300."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from proofs.socket_histories import OPPORTUNITIES_EACH, SETTINGS, Histories
from proofs.sockets import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

# Microsoft's client, with which the host receives, leaves sockets that were reset to the garbage collection.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Other seeds than those of `make faults`, so that the two do not draw the same.
_SEEDS = range(1_000_000, 1_000_006)


@pytest.fixture(scope="module")
def histories() -> Iterator[Histories]:
    with Stage(OPPORTUNITIES_EACH * len(_SEEDS), settings=SETTINGS) as stage:
        yield Histories(stage)
    # While the warnings about them are still expected.
    gc.collect()


@pytest.mark.parametrize("seed", _SEEDS)
def test_random_histories_on_real_sockets_keep_the_promise(histories: Histories, seed: int) -> None:
    """At most one invoice, nothing lost, nothing stuck: with any fault, and any change by a user."""
    outcome = histories.run(seed)
    found = "\n".join((*outcome.violations, *outcome.log))
    assert not outcome.violations, (
        f"{found}\nAgain, alone: python tests/faults/run_socket_histories.py --replay {seed}"
    )
