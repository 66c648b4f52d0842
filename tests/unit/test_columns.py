"""Further columns of the invoice: what their metadata says, and what their values become."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from shared.columns import Columns, ColumnType, ColumnValue, attributes_of_invoice
from shared.dataverse import Read
from shared.record import Record

INVOICE = "0f8fad5b-d9cb-469f-a165-70867728950e"
FORMATTED = "@OData.Community.Display.V1.FormattedValue"
TABLE = "@Microsoft.Dynamics.CRM.lookuplogicalname"


def attribute(name: str, attribute_type: str, **columns: object) -> Record:
    return Record({"LogicalName": name, "AttributeType": attribute_type, **columns}, "r-1")


def described(**types: str) -> Columns:
    """Return columns of these types of Dataverse."""
    attributes = [
        attribute(name, "Virtual", AttributeTypeName={"Value": its_type})
        if its_type.endswith("Type")
        else attribute(name, its_type)
        for name, its_type in types.items()
    ]
    return Columns.of(types, attributes)


def test_the_names_of_types_are_golden() -> None:
    """They are a contract with the consumers of the event."""
    names = {column_type.name.lower(): column_type.value for column_type in ColumnType}
    assert names == {
        **{name: name for name in ("text", "number", "money", "boolean", "choice", "choices", "date")},
        **{name: name for name in ("lookup", "id", "unknown")},
        "date_time": "dateTime",
    }


def test_the_metadata_is_read_in_one_query() -> None:
    assert attributes_of_invoice(["new_a", "billto_city"]) == Read(
        "EntityDefinitions(LogicalName='invoice')/Attributes"
        "?$select=LogicalName,AttributeType,AttributeTypeName,IsValidForRead"
        "&$filter=LogicalName eq 'new_a' or LogicalName eq 'billto_city'"
    )


def test_a_name_that_dataverse_does_not_know_has_an_error_and_stops_no_other() -> None:
    columns = Columns.of(["new_typo", "new_text"], [attribute("new_text", "String")])
    assert columns.read(INVOICE) == Read(f"invoices({INVOICE})?$select=new_text")
    assert columns.values(Record({"new_text": "x"}, "r-1")) == {
        "new_text": ColumnValue(ColumnType.TEXT, "x"),
        "new_typo": ColumnValue(
            ColumnType.UNKNOWN, None, error="The table invoice has no column of this name."
        ),
    }


@pytest.mark.parametrize(
    "unsupported",
    [
        attribute("new_a", "Virtual"),
        attribute("new_a", "Virtual", AttributeTypeName={"Value": "ImageType"}),
        attribute("new_a", "PartyList"),
        attribute("new_a", "String", IsValidForRead=False),
        Record({"LogicalName": "new_a"}, "r-1"),
    ],
)
def test_a_column_that_cannot_be_published_has_an_error(unsupported: Record) -> None:
    columns = Columns.of(["new_a"], [unsupported])
    assert columns.read(INVOICE) is None
    assert columns.values(Record({}, "")) == {
        "new_a": ColumnValue.unknown("Columns of this type cannot be published.")
    }


def test_names_are_compared_in_lower_case() -> None:
    assert Columns.of(["new_a"], [attribute("New_A", "String")]).errors == {}


def test_metadata_without_a_name_is_ignored() -> None:
    assert Columns.of(["new_a"], [Record({}, "r-1")]).errors.keys() == {"new_a"}


def test_a_lookup_is_read_by_the_property_that_the_web_api_has_for_it() -> None:
    columns = described(new_project="Lookup", ownerid="Owner", customerid="Customer", new_a="String")
    read = columns.read(INVOICE)
    assert read == Read(
        f"invoices({INVOICE})?$select=_new_project_value,_ownerid_value,_customerid_value,new_a"
    )


@pytest.mark.parametrize(
    ("attribute_type", "columns", "expected"),
    [
        ("String", {"a": "x"}, ColumnValue(ColumnType.TEXT, "x")),
        ("Memo", {"a": "x\ny"}, ColumnValue(ColumnType.TEXT, "x\ny")),
        ("EntityName", {"a": None}, ColumnValue(ColumnType.TEXT, None)),
        ("Money", {"a": Decimal("12.5000")}, ColumnValue(ColumnType.MONEY, Decimal("12.5"))),
        ("Decimal", {"a": 12}, ColumnValue(ColumnType.NUMBER, Decimal(12))),
        ("Double", {"a": Decimal("0.1")}, ColumnValue(ColumnType.NUMBER, Decimal("0.1"))),
        ("Integer", {"a": 0}, ColumnValue(ColumnType.NUMBER, Decimal(0))),
        ("BigInt", {"a": None}, ColumnValue(ColumnType.NUMBER, None)),
        ("Uniqueidentifier", {"a": INVOICE.upper()}, ColumnValue(ColumnType.ID, INVOICE)),
        (
            "Boolean",
            {"a": False, f"a{FORMATTED}": "No"},
            ColumnValue(ColumnType.BOOLEAN, value=False, label="No"),
        ),
        ("Boolean", {}, ColumnValue(ColumnType.BOOLEAN, None)),
        ("Picklist", {"a": 3, f"a{FORMATTED}": "Web"}, ColumnValue(ColumnType.CHOICE, 3, label="Web")),
        ("State", {"a": 0}, ColumnValue(ColumnType.CHOICE, 0)),
        ("Status", {"a": None}, ColumnValue(ColumnType.CHOICE, None)),
        ("DateTime", {"a": "2026-03-01"}, ColumnValue(ColumnType.DATE, "2026-03-01")),
        (
            "DateTime",
            {"a": "2026-03-01T12:00:00+01:00"},
            ColumnValue(ColumnType.DATE_TIME, datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ),
        ("DateTime", {"a": None}, ColumnValue(ColumnType.DATE_TIME, None)),
        (
            "Lookup",
            {
                "_a_value": INVOICE.upper(),
                f"_a_value{TABLE}": "new_project",
                f"_a_value{FORMATTED}": "Bridge",
            },
            ColumnValue(ColumnType.LOOKUP, INVOICE, table="new_project", name="Bridge"),
        ),
        ("Customer", {"_a_value": None}, ColumnValue(ColumnType.LOOKUP, None)),
        (
            "MultiSelectPicklistType",
            {"a": "3,1", f"a{FORMATTED}": "C; A"},
            ColumnValue(ColumnType.CHOICES, (3, 1), label="C; A"),
        ),
        ("MultiSelectPicklistType", {"a": None}, ColumnValue(ColumnType.CHOICES, None)),
    ],
)
def test_values_are_typed(attribute_type: str, columns: dict[str, Any], expected: ColumnValue) -> None:
    assert described(a=attribute_type).values(Record(columns, "r-1")) == {"a": expected}


@pytest.mark.parametrize(
    ("attribute_type", "value"),
    [
        ("Double", Decimal("1E+20")),
        ("BigInt", 2**63 - 1),
        ("Money", "12"),
        ("String", 7),
        ("Boolean", 1),
        ("Picklist", "1"),
        ("DateTime", "yesterday"),
        ("Uniqueidentifier", "x"),
        ("MultiSelectPicklistType", "1,x"),
    ],
)
def test_a_value_that_cannot_be_published_stops_nothing(attribute_type: str, value: object) -> None:
    columns = described(a=attribute_type, b="String")
    assert columns.values(Record({"a": value, "b": "x"}, "r-1")) == {
        "a": ColumnValue.unknown("The value cannot be published."),
        "b": ColumnValue(ColumnType.TEXT, "x"),
    }


def test_columns_that_were_not_read_say_why() -> None:
    columns = Columns.of(["a", "b"], [attribute("a", "String")])
    assert columns.unreadable("Why.") == dict.fromkeys("ab", ColumnValue.unknown("Why."))
