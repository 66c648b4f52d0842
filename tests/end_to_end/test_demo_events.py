from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import demo
from sandbox.cloud import CREATED_TOPIC, Cloud, CloudOptions
from sandbox.service_bus import Happened, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandbox.service_bus import Message

    CheckEvent = Callable[[bytes, Mapping[str, object], str | None], None]


def test_every_event_that_the_demo_publishes_keeps_the_contract(published_event_checker: CheckEvent) -> None:
    with Cloud(CloudOptions(Path(__file__).parents[2], opportunities=3)) as cloud:
        published: list[Message] = []

        def keep(observation: Observation) -> None:
            # The topic's copies for its subscriptions are as they were sent.
            if observation.happened is Happened.ENQUEUED and observation.entity.startswith(CREATED_TOPIC):
                published.append(observation.message.message)

        cloud.broker.observe(keep)
        outcome = demo.run(cloud, cloud.demo.opportunities)

    assert outcome.is_good, str(outcome)
    assert len(published) == 3
    for message in published:
        assert isinstance(message.body, bytes)
        published_event_checker(message.body, message.application_properties, message.content_type)
