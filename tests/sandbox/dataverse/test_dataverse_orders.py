"""Quotes and sales orders: made from opportunities, their states, and invoices from orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Json, World


def convert(world: World, message: str, **source: str) -> Json:
    """Convert the row with this id; return all columns of the new one."""
    new: Json = world.admin.post(message, {**source, "ColumnSet": {"AllColumns": True}}, 200).json()
    return new


def make_order(world: World) -> Json:
    return convert(world, "GenerateSalesOrderFromOpportunity", OpportunityId=world.opportunity)


@pytest.fixture
def order(world: World) -> str:
    return str(make_order(world)["salesorderid"])


def closing(order: str) -> Json:
    return {"OrderClose": {"salesorderid@odata.bind": f"/salesorders({order})"}, "Status": -1}


def state(world: World, order: str) -> tuple[int, int]:
    row = world.admin.get(f"salesorders({order})?$select=statecode,statuscode")
    return row["statecode"], row["statuscode"]


def test_an_order_is_made_of_an_opportunity_with_lines_and_totals(world: World) -> None:
    opportunity = world.opportunity
    world.admin.win(opportunity)
    order = make_order(world)
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


def test_an_order_is_canceled_once(world: World, order: str) -> None:
    world.admin.post("CancelSalesOrder", closing(order))
    assert state(world, order) == (2, 4)
    (close,) = world.admin.rows(f"salesorders({order})/SalesOrder_OrderClose")
    assert close["statecode"] == 1
    error = world.admin.refused("POST", "FulfillSalesOrder", closing(order), 400)
    assert error["message"] == "The sales order is already closed."


def test_an_order_is_fulfilled(world: World, order: str) -> None:
    world.admin.post("FulfillSalesOrder", closing(order))
    assert state(world, order) == (3, 100001)


def test_an_orders_state_takes_its_own_reason(world: World, order: str) -> None:
    path = f"salesorders({order})"
    world.admin.patch(path, {"statecode": 1})
    assert state(world, order) == (1, 3)
    error = world.admin.refused("PATCH", path, {"statecode": 2, "statuscode": 3}, 400)
    assert error["code"] == "0x80048408"


def test_an_invoice_of_an_order_names_both_and_closes_the_order(world: World, order: str) -> None:
    invoice = convert(world, "ConvertSalesOrderToInvoice", SalesOrderId=order)
    assert (invoice["_salesorderid_value"], invoice["_opportunityid_value"]) == (order, world.opportunity)
    assert state(world, order) == (4, 100003)
    lines = world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice['invoiceid']}")
    ordered = world.admin.rows(f"salesorderdetails?$filter=_salesorderid_value eq {order}")
    assert {line["_salesorderdetailid_value"] for line in lines} == {
        line["salesorderdetailid"] for line in ordered
    }


def test_a_quote_becomes_an_order(world: World) -> None:
    quote = convert(world, "GenerateQuoteFromOpportunity", OpportunityId=world.opportunity)
    assert (quote["statecode"], quote["_opportunityid_value"]) == (0, world.opportunity)
    order = convert(world, "ConvertQuoteToSalesOrder", QuoteId=quote["quoteid"])
    assert (order["_quoteid_value"], order["_opportunityid_value"]) == (quote["quoteid"], world.opportunity)
    assert order["totalamount"] == quote["totalamount"]


@pytest.mark.parametrize(
    "change",
    [{"OrderClose": None}, {"OrderClose": {"subject": "of nothing"}}, {"Status": 3}, {"Status": True}],
)
def test_a_cancelation_that_makes_no_sense_changes_nothing(world: World, order: str, change: Json) -> None:
    world.admin.post("CancelSalesOrder", closing(order) | change, 400)
    assert state(world, order) == (0, 1)
