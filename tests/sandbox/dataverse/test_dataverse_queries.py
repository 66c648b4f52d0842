"""Reading: options, paging, expansion, annotations, and clear refusals beyond."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import World

NOWHERE = "00000000-0000-4000-8000-000000000000"


def test_a_row_has_the_selected_columns_its_key_and_an_etag(world: World) -> None:
    opportunity = world.opportunity
    row = world.function.get(f"opportunities({opportunity})?$select=name,_customerid_value")
    assert row.keys() == {"@odata.context", "@odata.etag", "name", "_customerid_value", "opportunityid"}
    assert row["opportunityid"] == opportunity
    assert row["@odata.etag"].startswith('W/"')
    assert row["@odata.context"].endswith("#opportunities(name,_customerid_value)/$entity")


def test_without_select_every_column_is_given_but_never_a_hidden_one(world: World) -> None:
    world.admin.win(world.opportunity)
    invoice = world.function.generate(world.opportunity)
    assert {"totalamount", "_ownerid_value", "versionnumber"} <= invoice.keys()
    assert not any(name.startswith("_totals") for name in invoice)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("isocurrencycode eq 'JPY'", {"JPY"}),
        ("isocurrencycode eq 'jpy'", {"JPY"}),
        ("currencyprecision ge 2 and isocurrencycode ne 'EUR'", {"USD", "KWD"}),
        ("currencyprecision lt 2 or currencyprecision gt 2", {"JPY", "KWD"}),
        ("not (currencyprecision eq 2)", {"JPY", "KWD"}),
        ("not currencyprecision eq 2 and isocurrencycode eq 'KWD'", {"KWD"}),
        ("exchangerate le 1.0842 and currencyprecision eq 2", {"EUR", "USD"}),
        ("exchangerate lt 1.0842", {"EUR", "KWD"}),
        ("contains(currencyname,'Dinar')", {"KWD"}),
        ("startswith(currencyname, 'US') or endswith(currencyname,'ro')", {"USD", "EUR"}),
        ("contains(currencyname,'%')", set()),
        ("createdon lt 2026-02-01T00:00:00Z", {"EUR", "USD", "JPY", "KWD"}),
        ("createdon gt 2026-01-01", set()),
        ("modifiedby/fullname eq 'SYSTEM'", {"EUR", "USD", "JPY", "KWD"}),
        ("createdby/businessunitid/name eq 'elsewhere'", set()),
        ("statuscode eq null", set()),
        ("statuscode ne null and (currencyprecision eq 0)", {"JPY"}),
    ],
)
def test_filter(world: World, condition: str, expected: set[str]) -> None:
    rows = world.admin.rows(f"transactioncurrencies?$select=isocurrencycode&$filter={condition}")
    assert {row["isocurrencycode"] for row in rows} == expected


def test_not_equal_finds_rows_without_a_value(world: World) -> None:
    rows = world.admin.rows("businessunits?$filter=_parentbusinessunitid_value eq null")
    assert [row["name"] for row in rows] == ["sandbox"]
    assert world.admin.rows(f"businessunits?$filter=_parentbusinessunitid_value ne {NOWHERE}")


def test_a_quote_in_a_string_is_doubled(world: World) -> None:
    account = world.admin.create("accounts", {"name": "O'Neill & Söhne"})
    found = world.admin.rows("accounts?$select=name&$filter=name eq 'O''Neill %26 Söhne'")
    assert [row["accountid"] for row in found] == [account]


def test_order_has_several_terms_and_the_key_decides_in_the_end(world: World) -> None:
    rows = world.admin.rows(
        "transactioncurrencies?$select=isocurrencycode&$orderby=currencyprecision desc,exchangerate"
    )
    assert [row["isocurrencycode"] for row in rows] == ["KWD", "EUR", "USD", "JPY"]


def test_amounts_order_as_numbers(world: World) -> None:
    for amount in (9, 10, 100):
        world.admin.create("products", {"name": "p", "price": amount})
    prices = [row["price"] for row in world.admin.rows("products?$filter=name eq 'p'&$orderby=price desc")]
    assert prices == [100, 10, 9]


def test_pages_follow_the_next_link_until_there_is_none(world: World) -> None:
    client, url, found = world.function, "opportunities?$select=name&$orderby=name desc", []
    pages = 0
    while url:
        page = client.get(url, Prefer="odata.maxpagesize=3")
        found += [row["name"] for row in page["value"]]
        pages += 1
        url = page.get("@odata.nextLink", "").removeprefix(client.root)
    assert pages == 3
    assert len(found) == 8
    assert found == sorted(found, key=str.lower, reverse=True)


def test_top_and_count(world: World) -> None:
    page = world.function.get("opportunities?$select=name&$top=3&$count=true")
    assert (len(page["value"]), page["@odata.count"]) == (3, 8)
    assert "@odata.nextLink" not in page


def test_top_holds_across_pages(world: World) -> None:
    page = world.function.get("opportunities?$select=name&$top=5", Prefer="odata.maxpagesize=4")
    rest = world.function.get(
        page["@odata.nextLink"].removeprefix(world.function.root), Prefer="odata.maxpagesize=4"
    )
    assert (len(page["value"]), len(rest["value"])) == (4, 1)
    assert "@odata.nextLink" not in rest


def test_a_lookup_is_expanded_with_its_own_columns(world: World) -> None:
    row = world.admin.get(
        f"opportunities({world.demo.opportunities[2]})?$select=name"
        "&$expand=transactioncurrencyid($select=isocurrencycode;$expand=createdby($select=fullname)),"
        "customerid_contact($select=fullname)"
    )
    assert row["transactioncurrencyid"]["isocurrencycode"] == "JPY"
    assert row["transactioncurrencyid"]["createdby"]["fullname"] == "SYSTEM"
    assert row["customerid_contact"] is None


def test_annotations_are_given_on_request(world: World) -> None:
    path = f"opportunities({world.opportunity})?$select=statecode,_customerid_value,estimatedvalue"
    plain = world.function.get(path)
    assert not [name for name in plain if "@OData" in name or "@Microsoft" in name]
    full = world.admin.get(path, Prefer='odata.include-annotations="*"')
    assert full["_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "account"
    assert (
        full["_customerid_value@Microsoft.Dynamics.CRM.associatednavigationproperty"] == "customerid_account"
    )
    assert full["statecode@OData.Community.Display.V1.FormattedValue"] == "Open"
    some = world.admin.get(path, Prefer='odata.include-annotations="OData.Community.Display.V1.*"')
    assert "statecode@OData.Community.Display.V1.FormattedValue" in some
    assert "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname" not in some


def test_amounts_are_exact_numbers_with_the_scale_of_their_kind(world: World) -> None:
    for written in ("0.1", "922337203685477.5807", "-1.0050", "1E+2"):
        account = world.admin.create("accounts", {"name": "a"})
        body = f'{{"revenue":{written}}}'.encode()
        assert world.admin.call("PATCH", f"accounts({account})", data=body).status_code == 204
        text = world.admin.call("GET", f"accounts({account})?$select=revenue").text
        assert f'"revenue":{Decimal(written):.4f},' in text


def test_collections_and_lookups_are_paths_too(world: World) -> None:
    opportunity = world.opportunity
    lines = world.admin.rows(f"opportunities({opportunity})/product_opportunities?$select=lineitemnumber")
    assert lines
    currency = world.admin.get(f"opportunities({opportunity})/transactioncurrencyid?$select=isocurrencycode")
    assert currency["isocurrencycode"] == "EUR"
    assert world.admin.call("GET", f"opportunities({opportunity})/customerid_contact").status_code == 204


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nothings?$select=x", 404, "0x8006088a"),
        ("opportunities?$select=nothing", 400, "0x80060888"),
        ("opportunities?$select=customerid", 400, "0x80060888"),
        ("opportunities?$filter=nothing eq 1", 400, "0x80060888"),
        ("opportunities?$filter=name eq", 400, "0x80060888"),
        ("opportunities?$filter=name", 400, "0x80060888"),
        ("opportunities?$filter=statecode eq 'x'", 400, "0x80060888"),
        ("opportunities?$filter=_customerid_value eq 7", 400, "0x80060888"),
        ("opportunities?$filter=statecode gt null", 400, "0x80060888"),
        ("opportunities?$filter=contains(statecode,'1')", 400, "0x80060888"),
        ("opportunities?$orderby=nothing", 400, "0x80060888"),
        ("opportunities?$orderby=name upwards", 400, "0x80060888"),
        ("opportunities?$top=many", 400, "0x80060888"),
        ("opportunities?$skiptoken=stale", 400, "0x80060888"),
        ("opportunities?$skiptoken=99999999999999999999", 400, "0x80060888"),
        ("opportunities?$expand=nothing", 400, "0x80060888"),
        ("opportunities?$expand=customerid_account($orderby=name)", 501, "0x80060888"),
        ("opportunities?$search=x", 501, "0x80060888"),
        ("opportunities(7)", 400, "0x8006088a"),
        (f"opportunities({NOWHERE})", 404, "0x80040217"),
        (f"opportunities({NOWHERE})/name", 404, "0x80040217"),
        (f"opportunities({NOWHERE})/opportunity_invoices", 404, "0x80040217"),
        ("WinOpportunity", 405, "0x80060880"),
        ("RetrieveRolePrivilegesRole()", 400, "0x80060888"),
    ],
)
def test_what_is_wrong_or_beyond_is_refused_with_a_code(
    world: World, path: str, status: int, code: str
) -> None:
    assert world.admin.refused("GET", path, None, status)["code"] == code


def test_a_path_outside_of_the_web_api_leads_nowhere(world: World) -> None:
    response = world.admin.session.get(world.app.organization.url + "/main.aspx")
    assert response.status_code == 404
