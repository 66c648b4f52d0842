from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import demo
from sandbox.cloud import Cloud, CloudOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message


def test_every_event_that_the_demo_publishes_keeps_the_contract(
    watch_topic: Callable[[Broker], list[Message]],
) -> None:
    with Cloud(CloudOptions(Path(__file__).parents[2], opportunities=3)) as cloud:
        published = watch_topic(cloud.broker)
        outcome = demo.run(cloud, cloud.demo.opportunities)

    assert outcome.is_good, str(outcome)
    # Each of them is judged when the test ends.
    assert len(published) == 3
