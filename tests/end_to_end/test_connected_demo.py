"""What the demonstration shows is what `operations connect` set up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox import demo
from sandbox.cloud import CannotStart, Cloud, CloudOptions, Mode
from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

ROOT = Path(__file__).parents[2]
CONNECT = (sys.executable, "-m", "operations", "connect", "--application-id", "{function}", "--yes")


@pytest.mark.parametrize("mode", Mode)
def test_after_connect_wins_become_invoices_and_events(
    mode: Mode, watch_topic: Callable[[Broker], list[Message]]
) -> None:
    with Cloud(CloudOptions(ROOT, mode=mode, opportunities=2, connect_with=CONNECT)) as cloud:
        watch_topic(cloud.broker)
        with cloud.dataverse.session() as session:
            (endpoint,) = session.transaction.rows(TABLES["serviceendpoint"])
        assert endpoint["name"] == "Opportunity Invoicing queue"
        outcome = demo.run(cloud, cloud.demo.opportunities)
    assert outcome.is_good, outcome


def test_without_it_a_win_stays_a_win() -> None:
    """A command that does nothing leaves Dataverse as it is before anybody set it up: nothing is posted."""
    nothing = (sys.executable, "-c", "")
    with Cloud(CloudOptions(ROOT, opportunities=1, connect_with=nothing)) as cloud:
        outcome = demo.run(cloud, cloud.demo.opportunities, patience=0)
        with cloud.dataverse.session() as session:
            assert session.transaction.rows(TABLES["asyncoperation"]) == []
    assert (outcome.invoices, outcome.events, outcome.failed) == (0, 0, 1)


def test_the_output_of_the_command_is_shown() -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('The role could not be made.')")
    with pytest.raises(CannotStart, match="ended with 1: The role could not be made"):
        Cloud(CloudOptions(ROOT, connect_with=broken)).start()
