"""Quotes and sales orders, over HTTPS: made from opportunities, their states, and invoices from orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Json, World

EVERYTHING = {"AllColumns": True}


def make_order(world: World, opportunity: str) -> Json:
    response = world.admin.post(
        "GenerateSalesOrderFromOpportunity", {"OpportunityId": opportunity, "ColumnSet": EVERYTHING}, 200
    )
    order: Json = response.json()
    return order


def close_order(world: World, how: str, order: str, status: int = 204) -> Json:
    body = {"OrderClose": {"salesorderid@odata.bind": f"/salesorders({order})"}, "Status": -1}
    response = world.admin.post(f"{how}SalesOrder", body, status)
    parsed: Json = response.json() if response.content else {}
    return parsed


def state(world: World, order: str) -> tuple[int, int]:
    row = world.admin.get(f"salesorders({order})?$select=statecode,statuscode")
    return row["statecode"], row["statuscode"]


def test_an_order_is_made_of_an_opportunity_with_lines_and_totals(world: World) -> None:
    opportunity = world.opportunity
    world.admin.win(opportunity)
    order = make_order(world, opportunity)
    assert order["ordernumber"].startswith("ORD-01000-")
    assert (order["statecode"], order["_opportunityid_value"]) == (0, opportunity)
    source = world.admin.get(f"opportunities({opportunity})")
    assert order["totalamount"] == pytest.approx(float(source["totalamount"]))
    found = world.admin.rows(f"salesorders?$filter=_opportunityid_value eq {opportunity}")
    assert [row["salesorderid"] for row in found] == [order["salesorderid"]]
    lines = world.admin.rows(f"salesorderdetails?$filter=_salesorderid_value eq {order['salesorderid']}")
    copied = world.admin.rows(f"opportunityproducts?$filter=_opportunityid_value eq {opportunity}")
    assert sorted(line["extendedamount"] for line in lines) == sorted(
        line["extendedamount"] for line in copied
    )


def test_an_order_is_canceled_once(world: World) -> None:
    order = make_order(world, world.opportunity)["salesorderid"]
    close_order(world, "Cancel", order)
    assert state(world, order) == (2, 4)
    (close,) = world.admin.rows(f"salesorders({order})/SalesOrder_OrderClose")
    assert close["statecode"] == 1
    assert "already closed" in close_order(world, "Fulfill", order, 400)["error"]["message"]


def test_an_order_is_fulfilled(world: World) -> None:
    order = make_order(world, world.opportunity)["salesorderid"]
    close_order(world, "Fulfill", order)
    assert state(world, order) == (3, 100001)


def test_an_orders_state_takes_its_own_reason(world: World) -> None:
    order = make_order(world, world.opportunity)["salesorderid"]
    world.admin.patch(f"salesorders({order})", {"statecode": 1})
    assert state(world, order) == (1, 3)
    refused = world.admin.patch(f"salesorders({order})", {"statecode": 2, "statuscode": 3}, 400)
    assert refused.json()["error"]["code"] == "0x80048408"


def test_an_invoice_of_an_order_names_both_and_closes_the_order(world: World) -> None:
    opportunity = world.opportunity
    order = make_order(world, opportunity)["salesorderid"]
    response = world.admin.post(
        "ConvertSalesOrderToInvoice", {"SalesOrderId": order, "ColumnSet": EVERYTHING}, 200
    )
    invoice = response.json()
    assert (invoice["_salesorderid_value"], invoice["_opportunityid_value"]) == (order, opportunity)
    assert state(world, order) == (4, 100003)
    lines = world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice['invoiceid']}")
    ordered = world.admin.rows(f"salesorderdetails?$filter=_salesorderid_value eq {order}")
    assert {line["_salesorderdetailid_value"] for line in lines} == {
        line["salesorderdetailid"] for line in ordered
    }


def test_a_quote_becomes_an_order(world: World) -> None:
    opportunity = world.opportunity
    parameters = {"OpportunityId": opportunity, "ColumnSet": EVERYTHING}
    quote = world.admin.post("GenerateQuoteFromOpportunity", parameters, 200).json()
    assert (quote["statecode"], quote["_opportunityid_value"]) == (0, opportunity)
    parameters = {"QuoteId": quote["quoteid"], "ColumnSet": EVERYTHING}
    order = world.admin.post("ConvertQuoteToSalesOrder", parameters, 200).json()
    assert (order["_quoteid_value"], order["_opportunityid_value"]) == (quote["quoteid"], opportunity)
    assert order["totalamount"] == quote["totalamount"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"OrderClose": {"subject": "of nothing"}},
        {"OrderClose": {"salesorderid@odata.bind": "/salesorders({0})"}, "Status": 3},
        {"OrderClose": {"salesorderid@odata.bind": "/salesorders({0})"}, "Status": True},
    ],
)
def test_a_cancelation_that_makes_no_sense_changes_nothing(world: World, body: Json) -> None:
    order = make_order(world, world.opportunity)["salesorderid"]
    for value in body.values():
        if isinstance(value, dict) and "salesorderid@odata.bind" in value:
            value["salesorderid@odata.bind"] = f"/salesorders({order})"
    world.admin.post("CancelSalesOrder", body, 400)
    assert state(world, order) == (0, 1)
