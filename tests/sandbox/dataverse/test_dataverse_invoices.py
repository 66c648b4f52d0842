"""Invoices that can be booked: header amounts, lines of every kind, custom columns, annotations."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

import pytest

from sandbox.dataverse import base_data
from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from tests.sandbox.dataverse.conftest import Json, World

ANNOTATIONS = 'odata.include-annotations="*"'
FORMATTED = "@OData.Community.Display.V1.FormattedValue"
DIGITS = {currency.code: currency.precision for currency in base_data.CURRENCIES}


def invoice_of(world: World, number: int) -> Json:
    """Generate an invoice and read it as a client does that books it."""
    invoice = world.function.generate(world.demo.opportunities[number])["invoiceid"]
    return world.function.get(
        f"invoices({invoice})?$expand=transactioncurrencyid($select=isocurrencycode),"
        "customerid_account($select=accountnumber,name),customerid_contact($select=fullname)",
        Prefer=ANNOTATIONS,
    )


def lines_of(world: World, invoice: Json) -> list[Json]:
    lines: list[Json] = world.function.get(
        f"invoicedetails?$filter=_invoiceid_value eq {invoice['invoiceid']}"
        "&$expand=productid($select=productnumber,name),uomid($select=name)&$orderby=lineitemnumber",
        Prefer=ANNOTATIONS,
    )["value"]
    return lines


def add_line(world: World, number: int, **columns: object) -> Json:
    """Add a line to an opportunity: a write-in, unless it has a product; return its row."""
    body = {"quantity": 1, "opportunityid@odata.bind": f"/opportunities({world.demo.opportunities[number]})"}
    line = world.admin.create("opportunityproducts", body | columns)
    return world.admin.get(f"opportunityproducts({line})?$expand=uomid($select=name)")


def set_organization(world: World, **values: object) -> None:
    with world.app.session() as session:
        session.transaction.update(TABLES["organization"], world.app.organization.id, values)


@pytest.mark.parametrize("number", range(8))
def test_the_amounts_of_every_invoice_agree(world: World, number: int) -> None:
    invoice = invoice_of(world, number)
    lines = [line for line in lines_of(world, invoice) if line["producttypecode"] != 3]
    unit = Decimal(1).scaleb(-DIGITS[invoice["transactioncurrencyid"]["isocurrencycode"]])

    def amount(row: Json, name: str) -> Decimal:
        return Decimal(row[name] or 0)

    for line in lines:
        net = amount(line, "priceperunit") - amount(line, "volumediscountamount")
        assert line["baseamount"] == (net * amount(line, "quantity")).quantize(unit, ROUND_HALF_EVEN)
        assert line["extendedamount"] == (
            amount(line, "baseamount") - amount(line, "manualdiscountamount") + amount(line, "tax")
        )
    items = sum(amount(line, "extendedamount") - amount(line, "tax") for line in lines)
    manual = sum(amount(line, "manualdiscountamount") for line in lines)
    tax = sum(amount(line, "tax") for line in lines)
    percentage = items * amount(invoice, "discountpercentage") / 100
    discount = (amount(invoice, "discountamount") + percentage).quantize(unit, ROUND_HALF_EVEN)
    assert invoice["totallineitemamount"] == items
    assert invoice["totallineitemdiscountamount"] == manual
    assert invoice["totaldiscountamount"] == manual + discount
    assert invoice["totalamountlessfreight"] == items - discount
    assert invoice["totaltax"] == tax
    assert invoice["totalamount"] == items - discount + amount(invoice, "freightamount") + tax
    assert invoice["totalamount_base"] == (invoice["totalamount"] / invoice["exchangerate"]).quantize(
        Decimal("0.01"), ROUND_HALF_EVEN
    )
    assert invoice["pricingerrorcode"] == 0


def test_the_seed_has_lines_of_every_kind(world: World) -> None:
    with world.app.database.reading() as transaction:
        lines = transaction.rows(TABLES["opportunityproduct"])
    assert {line["producttypecode"] for line in lines} == {1, 2, 3, 4}
    assert {line["isproductoverridden"] for line in lines} == {True, False}
    for column in ("manualdiscountamount", "volumediscountamount", "tax"):
        assert any(line[column] for line in lines)
    assert any(line["priceperunit"] % Decimal("0.001") for line in lines)


def test_a_bundle_is_copied_with_its_parts(world: World) -> None:
    lines = lines_of(world, invoice_of(world, 1))
    (bundle,) = [line for line in lines if line["producttypecode"] == 2]
    parts = [line for line in lines if line["parentbundleid"]]
    assert [part["producttypecode"] for part in parts] == [3, 3, 4]
    for part in parts:
        assert part["parentbundleid"] == bundle["invoicedetailid"]
        assert part["_parentbundleidref_value"] == bundle["invoicedetailid"]
        assert part["productassociationid"]


def test_a_write_in_has_a_description_and_no_product(world: World) -> None:
    (line,) = [line for line in lines_of(world, invoice_of(world, 0)) if line["isproductoverridden"]]
    assert line["productname"] == line["productdescription"]
    assert (line["productid"], line["uomid"], line["_uomid_value"]) == (None, None, None)


def test_products_and_units_are_expanded(world: World) -> None:
    line = lines_of(world, invoice_of(world, 0))[0]
    assert line["productid"]["name"] == line["productname"]
    assert line["productid"]["productnumber"]
    assert line["uomid"]["name"] in ("piece", "hour", "metre")
    assert line[f"_productid_value{FORMATTED}"] == line["productname"]
    assert line["_productid_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "product"


def test_the_customers_number_is_expanded(world: World) -> None:
    account = invoice_of(world, 0)
    assert account["customerid_account"]["accountnumber"] == "A-00000"
    assert account["customerid_contact"] is None
    assert account["_accountid_value"] == account["_customerid_value"]
    assert account["_contactid_value"] is None
    numberless = invoice_of(world, 5)
    assert numberless["customerid_account"]["accountnumber"] is None


def test_columns_that_an_opportunity_has_not_are_null(world: World) -> None:
    invoice = invoice_of(world, 0)
    for column in ("duedate", "paymenttermscode", "billto_name", "shipto_name", "_salesorderid_value"):
        assert invoice[column] is None
    assert invoice["_pricelevelid_value"] == world.demo.price_lists["EUR"]


def test_choices_money_dates_and_lookups_are_annotated(world: World) -> None:
    invoice = invoice_of(world, 2)["invoiceid"]
    world.admin.patch(
        f"invoices({invoice})",
        {"paymenttermscode": 2, "duedate": "2026-03-31", "datedelivered": "2026-03-02T15:04:00Z"},
    )
    row = world.function.get(f"invoices({invoice})", Prefer=ANNOTATIONS)
    assert row[f"paymenttermscode{FORMATTED}"] == "2% 10, Net 30"
    assert row[f"statecode{FORMATTED}"] == "Active"
    assert row[f"duedate{FORMATTED}"] == "3/31/2026"
    assert row[f"datedelivered{FORMATTED}"] == "3/2/2026 3:04 PM"
    assert row[f"totalamount{FORMATTED}"] == f"¥{row['totalamount']:,.0f}"
    assert row[f"totalamount_base{FORMATTED}"] == f"€{row['totalamount_base']:,.2f}"
    assert row[f"ispricelocked{FORMATTED}"] == "No"
    assert row[f"_transactioncurrencyid_value{FORMATTED}"] == "Yen"


def test_custom_columns_are_carried_from_the_opportunity(world: World) -> None:
    invoice = world.function.generate(world.demo.opportunities[1])["invoiceid"]
    row = world.function.get(f"invoices({invoice})", Prefer=ANNOTATIONS)
    assert row["new_costcenter"] == "CC-1001"
    assert row["new_commission"] == Decimal("27.10")
    assert (row["new_channel"], row[f"new_channel{FORMATTED}"]) == (100000001, "Partner")
    assert row["new_handoverdate"] == "2026-05-31"
    assert row["new_approvedon"] == "2026-03-01T00:00:00Z"
    assert (row["new_isrenewal"], row["new_warrantymonths"]) == (False, 24)
    assert row["_new_project_value"] == world.demo.projects[1]
    assert row["_new_project_value@Microsoft.Dynamics.CRM.lookuplogicalname"] == "new_project"
    assert row[f"_new_project_value{FORMATTED}"] == "Water treatment"


@pytest.mark.parametrize("column", ["new_nothing", "new_project"])
def test_a_column_that_does_not_exist_is_named(world: World, column: str) -> None:
    """The logical name of a lookup is no property of the Web API."""
    invoice = world.function.generate(world.opportunity)["invoiceid"]
    error = world.function.refused("GET", f"invoices({invoice})?$select=name,{column}", None, 400)
    assert error == {
        "code": "0x80060888",
        "message": f"Could not find a property named '{column}' on type 'Microsoft.Dynamics.CRM.invoice'.",
    }


def test_a_line_without_a_price_is_a_pricing_error(world: World) -> None:
    add_line(world, 0, productdescription="Later")
    invoice = invoice_of(world, 0)
    assert (invoice["pricingerrorcode"], invoice[f"pricingerrorcode{FORMATTED}"]) == (1, "Detail Error")
    assert {line["pricingerrorcode"] for line in lines_of(world, invoice)} == {0, 5}


def test_a_product_brings_its_name_unit_and_price(world: World) -> None:
    product = {"productid@odata.bind": f"/products({world.demo.products['CBL-250']})"}
    row = add_line(world, 2, quantity=3, **product)
    assert (row["productname"], row["uomid"]["name"]) == ("Signal cable, shielded", "metre")
    # 1.3475 EUR are 219.979375 JPY, with four digits; a line has whole yen.
    assert (row["priceperunit"], row["baseamount"]) == (Decimal("219.9794"), Decimal(660))


def test_what_is_typed_in_gets_the_digits_of_the_currency(world: World) -> None:
    line = add_line(
        world, 2, productdescription="Hose", priceperunit=100.4, tax=9.5, manualdiscountamount=0.7
    )
    assert (line["baseamount"], line["tax"], line["manualdiscountamount"]) == (100, 10, 1)
    assert line["extendedamount"] == 109
    path = f"opportunities({world.demo.opportunities[2]})"
    world.admin.patch(path, {"freightamount": 12.6})
    row = world.admin.get(path)
    assert (row["freightamount"], row["totalamount"] % 1) == (13, 0)


def test_a_discount_may_be_for_each_unit(world: World) -> None:
    set_organization(world, discountcalculationmethod=1)
    line = add_line(world, 0, productdescription="Hose", quantity=3, priceperunit=10, manualdiscountamount=1)
    assert line["extendedamount"] == 27


def test_without_the_systems_pricing_the_stored_amounts_are_copied(world: World) -> None:
    """A plug-in of the organization decides, so nothing is calculated on retrieval."""
    set_organization(world, oobpricecalculationenabled=False)
    with world.app.session() as session:
        amounts = {"totalamount": Decimal(77), "totaltax": Decimal(7)}
        session.transaction.update(TABLES["opportunity"], world.opportunity, amounts)
    invoice = invoice_of(world, 0)
    assert (invoice["totalamount"], invoice["totaltax"]) == (77, 7)
