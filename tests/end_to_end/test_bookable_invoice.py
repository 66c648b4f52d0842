"""From a win to a booking: lines, owner and columns of the invoice, over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import demo
from sandbox.cloud import Cloud, CloudOptions
from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

ROOT = Path(__file__).parents[2]
COUNT = 8
COLUMNS = (
    "new_costcenter new_commission new_channel new_handoverdate new_isrenewal new_project ownerid new_typo"
)


def rows(cloud: Cloud, table: str) -> dict[str, dict[str, Any]]:
    with cloud.dataverse.database.reading() as transaction:
        return {str(row[TABLES[table].key]): dict(row) for row in transaction.rows(TABLES[table])}


def test_an_event_can_be_booked_and_the_invoice_belongs_to_the_salesperson(
    watch_topic: Callable[[Broker], list[Message]],
) -> None:
    """One of the salespeople is disabled meanwhile, so that the assignment is refused."""
    options = CloudOptions(ROOT, opportunities=COUNT, settings={"INVOICE_COLUMNS": COLUMNS})
    with Cloud(options) as cloud:
        published = watch_topic(cloud.broker)
        with cloud.dataverse.session() as session:
            row = session.find(TABLES["opportunity"], cloud.demo.opportunities[0])
            session.transaction.update(TABLES["systemuser"], row["ownerid"], {"isdisabled": True})
        outcome = demo.run(cloud, cloud.demo.opportunities)
        assert outcome.is_good, [win.problems for win in outcome.wins]
        assert len(published) == COUNT
        invoices, details, opportunities, users = (
            rows(cloud, table) for table in ("invoice", "invoicedetail", "opportunity", "systemuser")
        )
    disabled, assigned, priced = 0, 0, 0
    for event in outcome.received:
        data = event.content["data"]
        invoice, opportunity = invoices[data["invoiceId"]], opportunities[data["opportunityId"]]

        lines = [row for row in details.values() if row["invoiceid"] == data["invoiceId"]]
        assert data["totalsAgree"]
        assert {line["id"] for line in data["lines"]} == {row["invoicedetailid"] for row in lines}
        priced += sum(line["isPriced"] for line in data["lines"])

        owner = opportunity["ownerid"]
        if users.get(owner, {}).get("isdisabled"):
            disabled += 1
            assert invoice["ownerid"] == invoice["createdby"], "the refusal did not stop the event"
        else:
            assigned += 1
            assert invoice["ownerid"] == owner != invoice["createdby"]

        columns = data["columns"]
        assert columns["ownerid"]["value"] == invoice["ownerid"]
        assert columns["new_costcenter"] == {"type": "text", "value": invoice["new_costcenter"]}
        assert columns["new_channel"]["type"] == "choice"
        assert columns["new_project"]["value"] == invoice["new_project"]
        assert columns["new_typo"] == {
            "type": "unknown",
            "value": None,
            "error": "The table invoice has no column of this name.",
        }
    assert disabled >= 1
    assert assigned >= 1
    assert priced >= COUNT
