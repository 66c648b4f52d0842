"""Opportunities that are reopened, changed and won again, over HTTPS: closes, totals, posts."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.dataverse import seed

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Json, World


def closes(world: World, opportunity: str) -> list[Json]:
    return world.admin.rows(
        f"opportunitycloses?$filter=_opportunityid_value eq {opportunity}&$orderby=createdon"
    )


def reopen(world: World, opportunity: str) -> None:
    world.admin.patch(f"opportunities({opportunity})", {"statecode": 0, "statuscode": 1})


def total(world: World, opportunity: str) -> Decimal:
    amount = world.admin.get(f"opportunities({opportunity})?$select=totalamount")["totalamount"]
    return Decimal(amount)


def lines(world: World, opportunity: str) -> list[Json]:
    return world.admin.rows(f"opportunities({opportunity})/product_opportunities?$orderby=lineitemnumber")


def test_a_win_writes_a_close(world: World) -> None:
    opportunity = world.opportunity
    world.admin.win(opportunity)
    (close,) = closes(world, opportunity)
    assert close["createdon"] == "2026-03-01T00:00:00Z"
    assert close["actualend"] == "2026-03-01"
    assert close["actualrevenue"] == total(world, opportunity)
    assert (close["opportunitystatecode"], close["opportunitystatuscode"]) == (1, 3)
    assert (close["statecode"], close["statuscode"]) == (1, 2)
    assert close["_opportunityid_value"] == opportunity


def test_a_loss_writes_a_close(world: World) -> None:
    opportunity = world.opportunity
    world.admin.close(opportunity, "Lose", 5, 204)
    (close,) = closes(world, opportunity)
    assert (close["opportunitystatecode"], close["opportunitystatuscode"], close["statecode"]) == (2, 5, 1)
    assert close["actualrevenue"] is None


def test_reopening_cancels_the_close_and_winning_again_writes_another(world: World) -> None:
    opportunity = world.opportunity
    world.admin.win(opportunity)
    world.clock.advance(timedelta(hours=1))
    reopen(world, opportunity)
    (close,) = closes(world, opportunity)
    assert (close["statecode"], close["statuscode"]) == (2, 3)
    row = world.admin.get(f"opportunities({opportunity})")
    assert (row["statecode"], row["statuscode"]) == (0, 1)
    assert (row["actualclosedate"], row["actualvalue"]) == (None, None)
    world.admin.win(opportunity)
    first, second = closes(world, opportunity)
    assert (first["statecode"], second["statecode"]) == (2, 1)
    assert (first["createdon"], second["createdon"]) == ("2026-03-01T00:00:00Z", "2026-03-01T01:00:00Z")


def test_a_lost_opportunity_is_reopened_without_a_reason(world: World) -> None:
    opportunity = world.opportunity
    world.admin.close(opportunity, "Lose", 4, 204)
    world.admin.patch(f"opportunities({opportunity})", {"statecode": 0})
    row = world.admin.get(f"opportunities({opportunity})?$select=statecode,statuscode")
    assert (row["statecode"], row["statuscode"]) == (0, 1)
    assert [close["statecode"] for close in closes(world, opportunity)] == [2]


def test_a_reason_of_another_state_is_refused(world: World) -> None:
    opportunity = world.opportunity
    world.admin.win(opportunity)
    refused = world.admin.patch(f"opportunities({opportunity})", {"statecode": 0, "statuscode": 3}, 400)
    assert refused.json()["error"]["code"] == "0x80048408"
    assert [close["statecode"] for close in closes(world, opportunity)] == [1]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"freightamount": 7.5}, Decimal("7.5")),
        ({"discountamount": 3}, Decimal(-3)),
        ({"description": "nothing that counts"}, Decimal(0)),
    ],
)
def test_a_change_of_the_terms_changes_the_totals(
    world: World, change: dict[str, object], difference: Decimal
) -> None:
    opportunity = world.opportunity
    world.admin.patch(f"opportunities({opportunity})", {"discountpercentage": 0, "freightamount": 0})
    before = total(world, opportunity)
    world.admin.win(opportunity)
    world.clock.advance(timedelta(minutes=1))
    reopen(world, opportunity)
    world.admin.patch(f"opportunities({opportunity})", change)
    world.admin.win(opportunity)
    assert total(world, opportunity) == before + difference
    assert closes(world, opportunity)[-1]["actualrevenue"] == before + difference


def test_a_change_of_lines_changes_the_totals(world: World) -> None:
    opportunity = world.opportunity
    world.admin.patch(f"opportunities({opportunity})", {"discountpercentage": 0, "discountamount": 0})
    before = total(world, opportunity)
    added = world.admin.create(
        "opportunityproducts",
        {
            "opportunityid@odata.bind": f"/opportunities({opportunity})",
            "productdescription": "Transport",
            "quantity": 2,
            "priceperunit": 10.005,
            "tax": 3.8,
        },
    )
    line = world.admin.get(f"opportunityproducts({added})")
    assert (line["productname"], line["isproductoverridden"]) == ("Transport", True)
    assert (line["baseamount"], line["extendedamount"]) == (Decimal("20.01"), Decimal("23.81"))
    assert line["lineitemnumber"] == max(row["lineitemnumber"] for row in lines(world, opportunity))
    assert total(world, opportunity) == before + Decimal("23.81")
    world.admin.patch(f"opportunityproducts({added})", {"priceperunit": 11, "manualdiscountamount": 1})
    assert total(world, opportunity) == before + Decimal("24.8")
    world.admin.call("DELETE", f"opportunityproducts({added})")
    assert total(world, opportunity) == before


def test_a_line_needs_its_opportunity(world: World) -> None:
    refused = world.admin.post("opportunityproducts", {"productdescription": "of nothing"}, 400)
    assert "opportunityid" in refused.json()["error"]["message"]


def test_every_win_is_posted_with_the_id_of_its_close(world: World) -> None:
    endpoint = seed.add_service_endpoint(world.app, namespace_address="sb://sandbox/", path="opportunity-won")
    seed.add_step(world.app, endpoint)
    opportunity = world.opportunity
    world.admin.win(opportunity)
    world.clock.advance(timedelta(minutes=1))
    reopen(world, opportunity)
    world.admin.win(opportunity)
    world.app.run_due_jobs()
    posted = [_close_of(json.loads(post.body)) for post in world.outside.posted]
    assert [close["Id"] for close in posted] == [close["activityid"] for close in closes(world, opportunity)]
    assert all({"key": "activityid", "value": close["Id"]} in close["Attributes"] for close in posted)


def _close_of(context: dict[str, Any]) -> dict[str, Any]:
    (value,) = [item["value"] for item in context["InputParameters"] if item["key"] == "OpportunityClose"]
    assert isinstance(value, dict)
    return value
