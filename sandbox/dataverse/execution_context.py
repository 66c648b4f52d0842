"""What a service endpoint receives: a RemoteExecutionContext as JSON, and its properties."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from sandbox.dataverse.columns import ColumnKind, Row, Table, parse_datetime
from sandbox.dataverse.security import Caller

CLAIMS: Final = "http://schemas.microsoft.com/xrm/2011/Claims/"
_CONTRACTS: Final = "http://schemas.microsoft.com/xrm/2011/Contracts"
MAX_BODY: Final = 192 * 1024
NO_ID: Final = "00000000-0000-0000-0000-000000000000"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MessageExecution:
    """A message that was executed: on which row, with which parameters, and within which other message."""

    message: str
    table: str
    record_id: str | None
    inputs: Sequence[tuple[str, object]]
    parent: "MessageExecution | None" = None


@dataclass(frozen=True)
class Entity:
    """A row as a parameter of a message: the columns that the caller gave."""

    table: Table
    id: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Reference:
    """A reference to a row."""

    table: str
    id: str
    name: str | None = None


@dataclass(frozen=True)
class OptionSet:
    """A choice."""

    value: int


@dataclass(frozen=True)
class RequestInfo:
    """What the events of a request contain about the request; `object_id` is the caller's in the directory."""

    request_id: str
    correlation_id: str
    user_agent: str = ""
    object_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class RequestContext:
    """The request that an event comes from: who made it, and in which organization."""

    organization_id: str
    organization_name: str
    caller: Caller
    info: RequestInfo


@dataclass(frozen=True)
class ExecutionContext:
    """An event as one step posts it."""

    event: MessageExecution
    request: RequestContext
    step: Row
    operation_id: str
    at: datetime

    def message(self) -> tuple[bytes, dict[str, str]]:
        """Return body and application properties; a body that is too large is written without parameters."""
        properties = self._properties()
        body = _encode(self._fields(self.event))
        if len(body) > MAX_BODY:
            cut = replace(self.event, inputs=(), parent=None)
            body = _encode(self._fields(cut))
            properties[f"{CLAIMS}MessageMaxSizeExceeded"] = "True"
        return body, properties

    def _properties(self) -> dict[str, str]:
        user = self.request.caller.user_id
        trace = self.request.info.traceparent
        return {
            # Dataverse is not known to send a trace context; this is for a client that sends one on purpose.
            **({"Diagnostic-Id": trace, "traceparent": trace} if trace else {}),
            f"{CLAIMS}Organization": self.request.organization_name,
            f"{CLAIMS}User": user,
            f"{CLAIMS}InitiatingUser": user,
            f"{CLAIMS}EntityLogicalName": self.event.table,
            f"{CLAIMS}RequestName": self.event.message,
            f"{CLAIMS}InitiatingUserAgent": self.request.info.user_agent,
        }

    def _fields(self, event: MessageExecution) -> dict[str, object]:
        request, info, user = self.request, self.request.info, self.request.caller.user_id
        return {
            "BusinessUnitId": request.caller.business_unit_id,
            "CorrelationId": info.correlation_id,
            "Depth": 2 if event.parent else 1,
            "InitiatingUserAgent": info.user_agent,
            "InitiatingUserAzureActiveDirectoryObjectId": info.object_id or NO_ID,
            "InitiatingUserId": user,
            "InputParameters": _pairs(event.inputs),
            "IsExecutingOffline": False,
            "IsInTransaction": self.step["mode"] == 0,
            "IsOfflinePlayback": False,
            "IsolationMode": 1,
            "MessageName": event.message,
            "Mode": self.step["mode"],
            "OperationCreatedOn": _date(self.at),
            "OperationId": self.operation_id,
            "OrganizationId": request.organization_id,
            "OrganizationName": request.organization_name,
            "OutputParameters": [],
            "OwningExtension": _value(
                Reference(
                    "sdkmessageprocessingstep", self.step["sdkmessageprocessingstepid"], self.step["name"]
                )
            ),
            "ParentContext": self._fields(event.parent) if event.parent else None,
            "PostEntityImages": [],
            "PreEntityImages": [],
            "PrimaryEntityId": event.record_id or NO_ID,
            "PrimaryEntityName": event.table,
            "RequestId": info.request_id,
            "SecondaryEntityName": "none",
            "SharedVariables": [],
            "Stage": self.step["stage"],
            "UserAzureActiveDirectoryObjectId": info.object_id or NO_ID,
            "UserId": user,
        }


def _encode(fields: Mapping[str, object]) -> bytes:
    # DataContractJsonSerializer escapes every slash.
    return json.dumps(fields, ensure_ascii=False).replace("/", "\\/").encode()


def _typed(kind: str, **fields: object) -> dict[str, object]:
    return {"__type": f"{kind}:{_CONTRACTS}", **fields}


def _pairs(items: Sequence[tuple[str, object]]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in items]


def _value(value: object) -> object:
    match value:
        case Entity():
            return _typed(
                "Entity",
                Attributes=[
                    {"key": name, "value": _attribute(value.table, name, item)}
                    for name, item in value.values.items()
                    if not value.table.columns[name].secret
                ],
                EntityState=None,
                FormattedValues=[],
                Id=value.id,
                KeyAttributes=[],
                LogicalName=value.table.name,
                RelatedEntities=[],
                RowVersion=None,
            )
        case Reference():
            return _typed(
                "EntityReference",
                Id=value.id,
                KeyAttributes=[],
                LogicalName=value.table,
                Name=value.name,
                RowVersion=None,
            )
        case OptionSet():
            return _typed("OptionSetValue", Value=value.value)
        case _:
            return value


def _attribute(table: Table, name: str, value: object) -> object:
    column = table.columns[name]
    match value:
        case str() if column.lookup:
            return _value(Reference(next(iter(column.lookup.targets)), value))
        case str() if column.kind in (ColumnKind.DATE, ColumnKind.DATETIME):
            return _date(datetime.fromisoformat(parse_datetime(value)))
        case int() if column.kind is ColumnKind.CHOICE:
            return _value(OptionSet(value))
        case Decimal():
            return _typed("Money", Value=float(value)) if column.kind is ColumnKind.MONEY else float(value)
        case _:
            return _value(value)


def _date(moment: datetime) -> str:
    return f"/Date({(moment - _EPOCH) // timedelta(milliseconds=1)})/"
