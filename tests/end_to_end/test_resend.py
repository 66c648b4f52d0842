"""`python -m operations events resend`, over sockets against the whole sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from sandbox.actors import Consumer, Salesperson
from sandbox.cloud import Cloud, CloudOptions, Mode
from tests.end_to_end.conftest import run_operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

ROOT = Path(__file__).parents[2]


def test_resend_publishes_the_same_event_as_another_message(
    watch_topic: Callable[[Broker], list[Message]],
) -> None:
    """A consumer that has the event's id drops it; the topic, which compares message ids, does not."""
    options = CloudOptions(ROOT, mode=Mode.IDENTITY, opportunities=1)
    with Cloud(options) as cloud, Consumer(cloud) as consumer:
        published = watch_topic(cloud.broker)
        with Salesperson(cloud) as seller:
            seller.win(cloud.demo.opportunities[0])
        assert consumer.wait_for(1, timeout=40)
        (event,) = consumer.events
        invoice = event.content["data"]["invoiceId"]
        done = run_operations(cloud.operator_settings, "events", "resend", invoice.upper(), "--json")
        assert consumer.wait_for(2, timeout=40)

        unknown = str(UUID(int=1))
        output = run_operations(cloud.operator_settings, "events", "resend", unknown, code=1).output
        assert f"There is no invoice {unknown}" in output
    assert len(published) == 2
    again = consumer.events[1]
    assert again.body == event.body
    # The trace is the win's own.
    attributes = {
        name: value for name, value in event.application_properties.items() if name != "traceparent"
    }
    assert again.application_properties == attributes
    assert again.content_type == event.content_type
    assert again.message_id not in (None, event.message_id)
    (row,) = json.loads(done.stdout)
    assert row == {
        "invoice": invoice,
        "number": event.content["data"]["invoiceNumber"],
        "event": event.content["id"],
        "message": again.message_id,
    }
