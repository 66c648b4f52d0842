"""A salesperson who works on opportunities over HTTPS, and what Dataverse posts of it over AMQP."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.actors import LineChange, OpportunityChange, Salesperson, SalesRefused
from sandbox.cloud import WON_QUEUE, Cloud, CloudOptions
from sandbox.dataverse.schema import TABLES
from tests.sandbox.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[3]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(CloudOptions(APP, opportunities=5, functions_host=False)) as cloud:
        yield cloud


@pytest.fixture
def salesperson(cloud: Cloud) -> Iterator[Salesperson]:
    with Salesperson(cloud) as salesperson:
        yield salesperson


def row(cloud: Cloud, table: str, record_id: str) -> dict[str, Any]:
    with cloud.dataverse.database.reading() as transaction:
        found = transaction.get(TABLES[table], record_id)
    assert found is not None
    return found


def test_terms_and_lines_are_changed(cloud: Cloud, salesperson: Salesperson) -> None:
    opportunity = cloud.demo.opportunities[0]
    line = LineChange(1, price=Decimal("1.25"), quantity=Decimal(4))
    salesperson.change(
        opportunity, OpportunityChange(freight=Decimal(5), discount_percentage=Decimal(10), lines=[line])
    )
    changed = row(cloud, "opportunity", opportunity)
    assert (changed["freightamount"], changed["discountpercentage"]) == (5, 10)
    with cloud.dataverse.database.reading() as transaction:
        lines = transaction.rows(TABLES["opportunityproduct"], "opportunityid = ?", (opportunity,))
    (first,) = (each for each in lines if each["lineitemnumber"] == 1)
    assert (first["priceperunit"], first["quantity"]) == (Decimal("1.25"), 4)


def test_a_currency_is_changed_with_its_lines(cloud: Cloud, salesperson: Salesperson) -> None:
    opportunity = cloud.demo.opportunities[1]
    yen = cloud.demo.currencies["JPY"]
    salesperson.change(opportunity, OpportunityChange(currency=yen))
    assert row(cloud, "opportunity", opportunity)["totalamount"] % 1 == 0
    with cloud.dataverse.database.reading() as transaction:
        lines = transaction.rows(TABLES["opportunityproduct"], "opportunityid = ?", (opportunity,))
    assert {line["transactioncurrencyid"] for line in lines} == {yen}


def test_an_order_is_made_and_canceled(cloud: Cloud, salesperson: Salesperson) -> None:
    order = salesperson.order(cloud.demo.opportunities[2])
    assert row(cloud, "salesorder", order)["opportunityid"] == cloud.demo.opportunities[2]
    salesperson.cancel_order(order)
    assert row(cloud, "salesorder", order)["statecode"] == 2


def test_a_line_that_does_not_exist_is_refused(cloud: Cloud, salesperson: Salesperson) -> None:
    with pytest.raises(SalesRefused, match="no line 99"):
        salesperson.change(cloud.demo.opportunities[3], OpportunityChange(lines=[LineChange(99)]))


def test_a_win_carries_on_a_trace_if_asked(cloud: Cloud, salesperson: Salesperson) -> None:
    opportunity = cloud.demo.opportunities[4]
    salesperson.win(opportunity)
    salesperson.reopen(opportunity)
    salesperson.win(opportunity, traceparent=TRACE)

    def traces() -> list[tuple[object, object]]:
        found = [stored.message for stored in cloud.broker.peek(WON_QUEUE, 0, 1000)]
        properties = [each.application_properties for each in found if opportunity in str(each.body)]
        return [(each.get("traceparent"), each.get("Diagnostic-Id")) for each in properties]

    wait_until(lambda: len(traces()) == 2)
    assert sorted(traces(), key=str) == [(TRACE, TRACE), (None, None)]
