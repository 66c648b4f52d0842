"""`python -m operations events resend`, over sockets against the whole sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from click.testing import CliRunner

from operations.__main__ import operations
from sandbox.actors import Consumer, Salesperson
from sandbox.cloud import Cloud, CloudOptions, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", Mode)
def test_resend_publishes_the_same_event_as_another_message(
    mode: Mode, watch_topic: Callable[[Broker], list[Message]]
) -> None:
    """A consumer that has the event's id drops it; the topic, which compares message ids, does not."""
    with Cloud(CloudOptions(ROOT, mode=mode, opportunities=1)) as cloud, Consumer(cloud) as consumer:
        published = watch_topic(cloud.broker)
        with Salesperson(cloud) as seller:
            seller.win(cloud.demo.opportunities[0])
        assert consumer.wait_for(1, timeout=40)
        (event,) = consumer.events
        environment = {**cloud.app_settings, "OPERATIONS_CLIENT_ID": cloud.operator.client_id}

        invoice = event.content["data"]["invoiceId"]
        done = CliRunner().invoke(
            operations, ["events", "resend", invoice.upper(), "--json"], env=environment
        )

        assert done.exit_code == 0, (done.output, done.exception)
        assert consumer.wait_for(2, timeout=40)
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
    number = event.content["data"]["invoiceNumber"]
    assert row == {
        "invoice": invoice,
        "number": number,
        "event": event.content["id"],
        "message": again.message_id,
    }
    assert len(published) == 2


def test_resend_of_an_invoice_that_is_not_there_publishes_nothing() -> None:
    with Cloud(CloudOptions(ROOT, opportunities=1, functions_host=False)) as cloud:
        environment = {**cloud.app_settings, "OPERATIONS_CLIENT_ID": cloud.operator.client_id}
        done = CliRunner().invoke(operations, ["events", "resend", str(UUID(int=1))], env=environment)
        assert done.exit_code == 1
        assert f"There is no invoice {UUID(int=1)}" in done.output
        assert cloud.broker.counts("invoice-created/Subscriptions/audit").active == 0
