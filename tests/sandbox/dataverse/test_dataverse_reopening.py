"""Opportunities that are reopened, changed and won again: closes, totals, posts."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Json, World


def closes(world: World) -> list[Json]:
    return world.admin.rows(
        f"opportunitycloses?$filter=_opportunityid_value eq {world.opportunity}&$orderby=createdon"
    )


def reopen(world: World) -> None:
    world.clock.advance(timedelta(hours=1))
    world.admin.patch(world.path, {"statecode": 0, "statuscode": 1})


def total(world: World) -> Decimal:
    return Decimal(world.admin.get(world.path)["totalamount"])


def test_a_win_writes_a_close(world: World) -> None:
    """Without a reason (-1) the first reason of the state counts."""
    world.admin.close(world.opportunity, "Win", -1, 204)
    (close,) = closes(world)
    assert close["createdon"] == "2026-03-01T00:00:00Z"
    assert close["actualend"] == "2026-03-01"
    assert close["actualrevenue"] == total(world)
    assert (close["opportunitystatecode"], close["opportunitystatuscode"]) == (1, 3)
    assert (close["statecode"], close["statuscode"]) == (1, 2)
    assert world.admin.get(world.path)["statuscode"] == 3


def test_a_loss_writes_a_close(world: World) -> None:
    world.admin.close(world.opportunity, "Lose", 5, 204)
    row = world.admin.get(world.path)
    assert (row["statecode"], row["statuscode"]) == (2, 5)
    (close,) = closes(world)
    assert (close["opportunitystatecode"], close["opportunitystatuscode"], close["statecode"]) == (2, 5, 1)
    assert close["actualrevenue"] is None


def test_reopening_cancels_the_close_and_winning_again_writes_another(world: World) -> None:
    world.admin.win(world.opportunity)
    reopen(world)
    (close,) = closes(world)
    assert (close["statecode"], close["statuscode"]) == (2, 3)
    row = world.admin.get(world.path)
    assert (row["statecode"], row["statuscode"]) == (0, 1)
    assert (row["actualclosedate"], row["actualvalue"]) == (None, None)
    world.admin.win(world.opportunity)
    first, second = closes(world)
    assert (first["statecode"], second["statecode"]) == (2, 1)
    assert (first["createdon"], second["createdon"]) == ("2026-03-01T00:00:00Z", "2026-03-01T01:00:00Z")


def test_a_lost_opportunity_is_reopened_without_a_reason(world: World) -> None:
    world.admin.close(world.opportunity, "Lose", 4, 204)
    world.admin.patch(world.path, {"statecode": 0})
    row = world.admin.get(world.path)
    assert (row["statecode"], row["statuscode"]) == (0, 1)
    assert [close["statecode"] for close in closes(world)] == [2]


def test_a_reason_of_another_state_is_refused(world: World) -> None:
    world.admin.win(world.opportunity)
    error = world.admin.refused("PATCH", world.path, {"statecode": 0, "statuscode": 3}, 400)
    assert error["code"] == "0x80048408"
    assert [close["statecode"] for close in closes(world)] == [1]


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
    world.admin.patch(world.path, {"discountpercentage": 0, "freightamount": 0})
    before = total(world)
    world.admin.win(world.opportunity)
    reopen(world)
    world.admin.patch(world.path, change)
    world.admin.win(world.opportunity)
    assert total(world) == before + difference
    assert closes(world)[-1]["actualrevenue"] == before + difference


def test_a_change_of_lines_changes_the_totals(world: World) -> None:
    world.admin.patch(world.path, {"discountpercentage": 0, "discountamount": 0})
    before = total(world)
    body = {
        "opportunityid@odata.bind": f"/{world.path}",
        "productdescription": "Transport",
        "quantity": 2,
        "priceperunit": 10.005,
        "tax": 3.8,
    }
    path = f"opportunityproducts({world.admin.create('opportunityproducts', body)})"
    line = world.admin.get(path)
    assert (line["productname"], line["isproductoverridden"]) == ("Transport", True)
    assert (line["baseamount"], line["extendedamount"]) == (Decimal("20.01"), Decimal("23.81"))
    lines = world.admin.rows(f"{world.path}/product_opportunities")
    assert line["lineitemnumber"] == max(row["lineitemnumber"] for row in lines)
    assert total(world) == before + Decimal("23.81")
    world.admin.patch(path, {"priceperunit": 11, "manualdiscountamount": 1})
    assert total(world) == before + Decimal("24.8")
    world.admin.delete(path)
    assert total(world) == before


def test_a_line_needs_its_opportunity(world: World) -> None:
    error = world.admin.refused("POST", "opportunityproducts", {"productdescription": "of nothing"}, 400)
    assert "opportunityid" in error["message"]


def test_every_win_is_posted_with_the_id_of_its_close(world: World) -> None:
    world.listen()
    world.admin.win(world.opportunity)
    reopen(world)
    world.admin.win(world.opportunity)
    posted = [
        item["value"]
        for context in world.posted()
        for item in context["InputParameters"]
        if item["key"] == "OpportunityClose"
    ]
    assert [close["Id"] for close in posted] == [close["activityid"] for close in closes(world)]
    assert all({"key": "activityid", "value": close["Id"]} in close["Attributes"] for close in posted)
