"""From a win to its event: the deployed code, unchanged, over real connections."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from proofs.matrix import Matrix, cells
from proofs.sockets import Stage

from sandbox import demo
from sandbox.cloud import FAILED_QUEUE, WON_QUEUE, Cloud, CloudOptions, Mode
from sandbox.service_bus import EventKind, Observation
from sandbox.service_bus.messages import Counts
from tests.end_to_end.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

APP = Path(__file__).parents[2]
# These take seconds each, and are therefore not among the cells of tests/faults/test_matrix.py.
SLOW = {
    "check: kill",
    "claim and generate: kill",
    "… after the commit: kill",
    "token: silent",
    "check: connect: silent",
    "publish: connect: silent",
}


def test_with_an_identity_the_function_holds_no_key() -> None:
    with Cloud(CloudOptions(APP, mode=Mode.IDENTITY, opportunities=1, functions_host=False)) as cloud:
        keys = {key for rule in cloud.configuration.sas_rules for key in rule.keys}
        assert not [value for value in cloud.app_settings.values() if any(key in value for key in keys)]


@pytest.mark.timeout(300)
# Microsoft's client leaves sockets that were reset to the garbage collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_that_is_killed_and_a_peer_that_is_silent_lose_and_double_nothing() -> None:
    """A message comes again when its lock expires, and no call waits for longer than its deadline."""
    slow = [cell for cell in cells() if str(cell) in SLOW]
    assert len(slow) == len(SLOW)
    with Stage(len(slow)) as stage:
        matrix = Matrix(stage)
        problems = {str(cell): matrix.run(cell).problems for cell in slow}
    # While the warnings are still expected.
    gc.collect()
    assert problems == dict.fromkeys(SLOW, ())


# This test does not measure the time.
@pytest.mark.timeout(400)
def test_200_opportunities_with_16_at_once(watch_topic: Callable[[Broker], list[Message]]) -> None:
    """Each win comes to one invoice and one event, which equals the invoice and keeps the contract."""
    with Cloud(CloudOptions(APP, mode=Mode.IDENTITY, opportunities=200)) as cloud:
        watch_topic(cloud.broker)
        running: set[int] = set()
        most = 0

        def count(observation: Observation) -> None:
            nonlocal most
            if observation.entity == WON_QUEUE:
                number = observation.message.sequence_number
                if observation.kind is EventKind.LOCKED:
                    running.add(number)
                elif observation.kind in (EventKind.COMPLETED, EventKind.RELEASED, EventKind.ABANDONED):
                    running.discard(number)
                most = max(most, len(running))

        cloud.broker.observe(count)
        outcome = demo.run(cloud, cloud.demo.opportunities, patience=200)

        assert outcome.is_good, (str(outcome), [win.problems for win in outcome.wins])
        assert most == 16
        wait_until(
            lambda: all(cloud.broker.counts(queue) == Counts() for queue in (WON_QUEUE, FAILED_QUEUE)),
            "both queues are empty",
        )
