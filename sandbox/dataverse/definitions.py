"""EntityDefinitions: the part of the metadata that clients of these tables request."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from sandbox.dataverse.columns import Column, ColumnKind, Table
from sandbox.dataverse.errors import no_segment, not_supported
from sandbox.dataverse.operation import Operation, Reply, Segment
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.security import Caller, require_metadata

_NAMESPACE: Final = "Microsoft.Dynamics.CRM."
_TYPES_OF: Final = {
    "statecode": "State",
    "statuscode": "Status",
    "ownerid": "Owner",
    "customerid": "Customer",
}


def definitions(caller: Caller, operation: Operation, first: Segment, rest: Sequence[Segment]) -> Reply:
    """Describe a table, its columns or its choices. Raises RequestRefused (403, 404, 501)."""
    if operation.method != "GET":
        raise not_supported("changing tables")
    require_metadata(caller, "Entity")
    if rest:
        require_metadata(caller, "Attribute")
    condition = operation.options.get("$filter", "")
    if first.key is None and not rest:
        return _reply([_definition(table) for table in _tables(condition)])
    match = re.fullmatch(r"LogicalName='(\w+)'", first.key or "")
    if match is None or match[1] not in TABLES:
        raise no_segment("EntityDefinitions")
    table = TABLES[match[1]]
    names = [segment.name for segment in rest]
    if not names:
        return Reply(HTTPStatus.OK, _definition(table))
    if names == ["Attributes"]:
        return _reply([_attribute(table, column) for column in _columns(table, condition)])
    if names == ["Attributes", f"{_NAMESPACE}PicklistAttributeMetadata"]:
        return _reply(_picklists(table))
    raise not_supported("this part of EntityDefinitions")


def _reply(rows: list[dict[str, object]]) -> Reply:
    return Reply(HTTPStatus.OK, {"value": rows})


def _tables(condition: str) -> list[Table]:
    match = re.fullmatch(r"LogicalName eq '(\w+)'", condition)
    if match is None:
        raise not_supported("EntityDefinitions without a filter on LogicalName")
    return [TABLES[match[1]]] if match[1] in TABLES else []


def _columns(table: Table, condition: str) -> list[Column]:
    if not re.fullmatch(r"(LogicalName eq '\w+'( or LogicalName eq '\w+')*)?", condition):
        raise not_supported("conditions on Attributes other than those on LogicalName")
    names = set(re.findall(r"'(\w+)'", condition))
    return [
        column
        for column in table.columns.values()
        if not column.secret and (not condition or column.name in names)
    ]


def _definition(table: Table) -> dict[str, object]:
    return {
        "LogicalName": table.name,
        "EntitySetName": table.set_name,
        "PrimaryIdAttribute": table.key,
        "PrimaryNameAttribute": table.primary_name,
        "ObjectTypeCode": table.code,
    }


def _attribute(table: Table, column: Column) -> dict[str, object]:
    kind = ColumnKind.DATETIME if column.kind is ColumnKind.DATE else column.kind
    described: dict[str, object] = {
        "LogicalName": column.name,
        "EntityLogicalName": table.name,
        "AttributeType": _TYPES_OF.get(column.name, kind.value),
        "IsPrimaryId": column.name == table.key,
        "IsCustomAttribute": column.name.startswith("new_"),
    }
    if column.lookup:
        described["Targets"] = list(column.lookup.targets)
    return described


def _picklists(table: Table) -> list[dict[str, object]]:
    return [
        {
            "LogicalName": column.name,
            "OptionSet": {
                "Options": [
                    {"Value": value, "Label": {"LocalizedLabels": [{"Label": label, "LanguageCode": 1033}]}}
                    for value, label in column.labels.items()
                ]
            },
        }
        for column in table.columns.values()
        if column.kind is ColumnKind.CHOICE and column.name not in ("statecode", "statuscode")
    ]
