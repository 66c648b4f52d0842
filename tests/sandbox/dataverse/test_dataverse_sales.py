"""Winning opportunities, and the invoices that are generated from them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World

NOWHERE = "00000000-0000-4000-8000-000000000000"


def test_winning_closes_the_opportunity_with_an_activity(world: World) -> None:
    response = world.admin.win(world.opportunity, actualrevenue=12.5, actualend="2026-03-02")
    assert response.content == b""
    row = world.admin.get(world.path)
    assert (row["statecode"], row["statuscode"], row["actualvalue"]) == (1, 3, Decimal("12.5"))
    assert row["actualclosedate"] == "2026-03-02"
    for condition, found in (("ge 2026-03-02", 1), ("gt 2026-03-02", 0), ("lt 2026-03-03T00:00:00Z", 1)):
        wins = world.admin.rows(
            f"opportunities?$select=name&$filter=statecode eq 1 and actualclosedate {condition}"
        )
        assert len(wins) == found
    (close,) = world.admin.rows(f"{world.path}/opportunity_OpportunityClose")
    assert (close["subject"], close["actualrevenue"], close["statecode"]) == ("closed", Decimal("12.5"), 1)


def test_a_closed_opportunity_is_not_closed_again(world: World) -> None:
    world.admin.win(world.opportunity)
    for how, reason in (("Win", 3), ("Lose", 4)):
        refused = world.admin.close(world.opportunity, how, reason, 400)
        assert refused.json()["error"]["message"] == "The opportunity is already closed."


def test_a_plain_update_does_not_close_it(world: World) -> None:
    for state, message in ((1, "WinOpportunity"), (2, "LoseOpportunity")):
        assert message in world.admin.refused("PATCH", world.path, {"statecode": state}, 400)["message"]
    assert world.admin.get(world.path)["statecode"] == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"Status": 3}, 400),
        ({"Status": 3, "OpportunityClose": {"subject": "of nothing"}}, 400),
        ({"Status": 4, "OpportunityClose": "{}"}, 400),
        ({"Status": 3, "OpportunityClose": {"opportunityid@odata.bind": f"/opportunities({NOWHERE})"}}, 404),
        ({"Status": 4, "OpportunityClose": {"opportunityid@odata.bind": "/opportunities({0})"}}, 400),
        ({"Status": "3", "OpportunityClose": {"opportunityid@odata.bind": "/opportunities({0})"}}, 400),
        ({"Reason": 3, "OpportunityClose": {"opportunityid@odata.bind": "/opportunities({0})"}}, 400),
    ],
)
def test_a_win_that_makes_no_sense_changes_nothing(
    world: World, body: dict[str, object], status: int
) -> None:
    filled = json.loads(json.dumps(body).replace("{0}", world.opportunity))
    world.admin.post("WinOpportunity", filled, status)
    assert world.admin.get(world.path)["statecode"] == 0


def test_the_invoice_copies_customer_currency_terms_and_lines(world: World) -> None:
    opportunity = world.demo.opportunities[3]
    world.admin.win(opportunity)
    invoice = world.function.generate(opportunity)
    assert invoice["@odata.type"] == "#Microsoft.Dynamics.CRM.invoice"
    source = world.admin.get(f"opportunities({opportunity})")
    for column in ("_customerid_value", "_transactioncurrencyid_value", "_pricelevelid_value", "name"):
        assert invoice[column] == source[column]
    assert invoice["_opportunityid_value"] == opportunity
    assert invoice["_ownerid_value"] == world.function_user
    assert (invoice["statecode"], invoice["pricingerrorcode"]) == (0, 0)
    lines = world.admin.rows(f"opportunityproducts?$filter=_opportunityid_value eq {opportunity}")
    copies = world.admin.rows(f"invoicedetails?$filter=_invoiceid_value eq {invoice['invoiceid']}")
    assert lines
    assert sorted((line["productname"], line["quantity"], line["priceperunit"]) for line in lines) == sorted(
        (copy["productname"], copy["quantity"], copy["priceperunit"]) for copy in copies
    )


def test_the_column_set_chooses_by_logical_name(world: World) -> None:
    def generate(column_set: object, status: int = 200) -> dict[str, object]:
        parameters = {"OpportunityId": world.opportunity, "ColumnSet": column_set}
        response = world.function.post("GenerateInvoiceFromOpportunity", parameters, status)
        return {name: value for name, value in response.json().items() if not name.startswith("@")}

    some = generate({"AllColumns": False, "Columns": ["transactioncurrencyid", "invoicenumber"]})
    assert some.keys() == {"invoiceid", "invoicenumber", "_transactioncurrencyid_value"}
    assert generate({"AllColumns": False, "Columns": []}).keys() == {"invoiceid"}
    assert "totalamount" in generate({"AllColumns": True})
    assert "totalamount" in generate(None)
    for wrong in ({"Columns": ["_transactioncurrencyid_value"]}, {"Columns": "name"}, {"All": True}, "name"):
        generate(wrong, 400)


def test_asked_twice_it_makes_two_invoices_with_numbers_in_sequence(world: World) -> None:
    """The opportunity is open: what Dataverse does then is undocumented, so a caller must not rely on a refusal."""
    numbers = [world.function.generate(world.opportunity)["invoicenumber"] for _ in range(3)]
    assert [number[:9] for number in numbers] == ["INV-01000", "INV-01001", "INV-01002"]
    assert all(len(number) == len("INV-01000-XXXXXX") for number in numbers)
    assert len(world.admin.rows(f"opportunities({world.opportunity})/opportunity_invoices")) == 3


@pytest.mark.parametrize(("number", "precision"), [(0, 2), (1, 2), (2, 0), (3, 3)])
def test_totals_are_nothing_until_the_invoice_is_retrieved_by_its_id(
    world: World, number: int, precision: int
) -> None:
    """A retrieve calculates the totals, a list does not; the amount has no more digits than the currency."""
    opportunity = world.demo.opportunities[number]
    invoice = world.function.generate(opportunity)
    assert invoice["totalamount"] == 0
    listed = f"invoices?$filter=invoiceid eq {invoice['invoiceid']}&$select=totalamount"
    assert world.function.rows(listed)[0]["totalamount"] == 0
    total = world.function.get(f"invoices({invoice['invoiceid']})?$select=totalamount")["totalamount"]
    source = world.admin.get(f"opportunities({opportunity})?$expand=transactioncurrencyid")
    assert source["transactioncurrencyid"]["currencyprecision"] == precision
    assert total == source["totalamount"]
    assert total == total.quantize(Decimal(1).scaleb(-precision))
    assert total > 0
    assert world.function.rows(listed)[0]["totalamount"] == total


def test_a_retrieve_within_a_batch_calculates_too(world: World) -> None:
    client = world.function
    invoice = client.generate(world.opportunity)["invoiceid"]
    (part,) = client.parts(client.operation("GET", f"invoices({invoice})?$select=totalamount"))
    total = json.loads(part.body, parse_float=Decimal)["totalamount"]
    assert total > 0
    assert client.rows("invoices?$select=totalamount")[0]["totalamount"] == total


def test_discount_freight_and_tax_count(world: World) -> None:
    terms = {"discountpercentage": 10, "discountamount": 1, "freightamount": 4.2}
    price_list = f"/pricelevels({world.demo.price_lists['EUR']})"
    opportunity = world.admin.create("opportunities", {**terms, "pricelevelid@odata.bind": price_list})
    line = {"quantity": 2.5, "priceperunit": 10.01, "manualdiscountamount": 0.5, "tax": 1.25}
    header = {"opportunityid@odata.bind": f"/opportunities({opportunity})"}
    world.admin.create("opportunityproducts", {**line, **header})
    invoice = world.function.generate(opportunity)["invoiceid"]
    row = world.function.get(f"invoices({invoice})")
    # 2.5 x 10.01 = 25.025, less 0.5, is 24.52 (half to even); 10 % of it and 1 are 3.45
    assert row["totallineitemamount"] == Decimal("24.52")
    assert row["totaldiscountamount"] == Decimal("3.95")
    assert row["totalamountlessfreight"] == Decimal("21.07")
    assert row["totaltax"] == Decimal("1.25")
    assert row["totalamount"] == Decimal("26.52")


def test_no_price_list_no_invoice(world: World) -> None:
    world.admin.patch(world.path, {"pricelevelid@odata.bind": None})
    assert world.function.generate(world.opportunity, 400)["error"]["code"] == "0x80100010"
    assert not world.admin.rows(f"{world.path}/opportunity_invoices")


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [
        ({"OpportunityId": NOWHERE}, 404, "0x80040217"),
        ({"OpportunityId": "7"}, 400, "0x80048d19"),
        ({}, 400, "0x80048d19"),
        ({"OpportunityId": NOWHERE, "InvoiceId": NOWHERE}, 400, "0x80060888"),
    ],
)
def test_without_an_opportunity_there_is_no_invoice(
    world: World, parameters: dict[str, object], status: int, code: str
) -> None:
    error = world.function.refused("POST", "GenerateInvoiceFromOpportunity", parameters, status)
    assert error["code"] == code
