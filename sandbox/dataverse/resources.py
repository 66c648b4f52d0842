"""The Web API's resources: maps a method and a path to calls of a session, and returns the reply.

Supports what clients of sales data and the set-up of service endpoints need; refuses everything else with an error that
names it.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from sandbox.dataverse.actions import SALES_ACTIONS
from sandbox.dataverse.columns import ColumnKind, Row, Table
from sandbox.dataverse.definitions import definitions
from sandbox.dataverse.errors import (
    RequestRefused,
    bad_payload,
    bad_request,
    no_property,
    no_record,
    no_segment,
    not_supported,
)
from sandbox.dataverse.filters import Condition
from sandbox.dataverse.operation import Operation, Reply, Segment, literal, method_not_allowed, record_id
from sandbox.dataverse.payload import parse_entity, parse_reference, read_json
from sandbox.dataverse.platform_actions import BOUND_MESSAGES, PLATFORM_FUNCTIONS
from sandbox.dataverse.reading import NAMESPACE, Reader
from sandbox.dataverse.schema import BY_SET, COLLECTIONS, TABLES
from sandbox.dataverse.service import EntityResult, SdkMessage, Session
from sandbox.dataverse.unsupported import MESSAGES as UNSUPPORTED_MESSAGES
from sandbox.dataverse.unsupported import TABLES as UNSUPPORTED_TABLES

_USER_ROLES: Final = "systemuserroles_association"
_INTERSECTION: Final = {"systemuser": "role", "role": "systemuser"}


def execute(session: Session, operation: Operation) -> Reply:
    """Carry out one operation. Raises RequestRefused."""
    return _Execution(session, operation).run()


class _Execution:
    """One operation that is being carried out: finds the resource of the path and applies the method."""

    def __init__(self, session: Session, operation: Operation) -> None:
        self._session = session
        self._operation = operation
        self._method = operation.method
        self._reader = Reader(session, operation)

    def run(self) -> Reply:
        first, *rest = self._operation.segments
        if first.name in BY_SET:
            table = BY_SET[first.name]
            if first.key is None:
                return self._collection(table, rest)
            return self._record(table, record_id(table, first.key), rest)
        if first.name == "EntityDefinitions":
            return definitions(self._session.caller, self._operation, first, rest)
        messages = SALES_ACTIONS if self._method == "POST" else PLATFORM_FUNCTIONS
        if not rest and first.name in messages:
            return self._message(first, messages[first.name])
        if first.name in SALES_ACTIONS or first.name in PLATFORM_FUNCTIONS:
            raise method_not_allowed(self._method)
        raise _unknown(first.name)

    # --- collections ---

    def _collection(self, table: Table, rest: Sequence[Segment]) -> Reply:
        names = [segment.name for segment in rest]
        if names == ["$count"] and self._method == "GET":
            return self._reader.count(table)
        if names:
            raise not_supported(f"'{names[0]}' on a collection")
        if self._method == "GET":
            return self._reader.list(table)
        if self._method == "POST":
            return self._create(table, None)
        raise method_not_allowed(self._method)

    def _create(self, table: Table, new_id: str | None) -> Reply:
        values = parse_entity(table, read_json(self._operation.body, table.name))
        if new_id:
            values[table.key] = new_id
        row = self._session.create(table, values)
        return self._reader.changed(table, row[table.key], HTTPStatus.CREATED)

    # --- one row ---

    def _record(self, table: Table, row_id: str, rest: Sequence[Segment]) -> Reply:
        if rest:
            return self._beneath(table, row_id, rest)
        match self._method:
            case "GET":
                return self._reader.retrieve(table, row_id)
            case "PATCH":
                return self._patch(table, row_id)
            case "DELETE":
                self._session.delete(table, row_id, self._operation.headers.get("if-match"))
                return Reply(HTTPStatus.NO_CONTENT)
        raise method_not_allowed(self._method)

    def _patch(self, table: Table, row_id: str) -> Reply:
        """Update or create: If-Match forbids creating, If-None-Match: * forbids updating."""
        exists = self._session.transaction.get(table, row_id) is not None
        if_match = self._operation.headers.get("if-match")
        if not exists:
            if if_match is not None:
                raise no_record(table.name, row_id)
            return self._create(table, row_id)
        if self._operation.headers.get("if-none-match") == "*":
            raise self._session.organization.duplicate_response.error(table)
        values = parse_entity(table, read_json(self._operation.body, table.name))
        if values.pop(table.key, row_id) != row_id:
            raise bad_request("The key in the body is not that of the URL.", "0x80048d19")
        self._session.update(table, row_id, values, if_match)
        return self._reader.changed(table, row_id, HTTPStatus.NO_CONTENT)

    # --- below a row: navigation, properties, references, bound messages ---

    def _beneath(self, table: Table, row_id: str, rest: Sequence[Segment]) -> Reply:
        first, *further = rest
        if first.name.startswith(NAMESPACE):
            return self._bound(table, row_id, first)
        names = [segment.name for segment in further]
        if names == ["$ref"]:
            return self._reference(table, row_id, first)
        collection = COLLECTIONS[table.name].get(first.name)
        if collection and self._method == "GET" and names in ([], ["$count"]):
            self._session.retrieve(table, row_id)
            read = self._reader.count if names else self._reader.list
            return read(collection.table, Condition(f't."{collection.lookup.name}" = ?', (row_id,)))
        if names:
            raise not_supported("paths that go on behind a navigation property or a property")
        if first.name == _USER_ROLES and table.name in _INTERSECTION and self._method == "GET":
            return self._list_associated(table, row_id)
        if self._method == "GET":
            return self._reader.follow(table, row_id, first.name)
        return self._change_property(table, row_id, first.name)

    def _change_property(self, table: Table, row_id: str, name: str) -> Reply:
        """Set a single property, or set it to null."""
        column = table.by_property.get(name)
        if column is None or self._method not in ("PUT", "DELETE") or column.kind is ColumnKind.LOOKUP:
            raise method_not_allowed(self._method)
        value = None
        if self._method == "PUT":
            body = read_json(self._operation.body, table.name)
            if "value" not in body:
                raise bad_payload(table.name, "The body of a property is an object with its value.")
            value = body["value"]
        values = parse_entity(table, {name: value})
        self._session.update(table, row_id, values, self._operation.headers.get("if-match"))
        return Reply(HTTPStatus.NO_CONTENT)

    def _list_associated(self, table: Table, row_id: str) -> Reply:
        self._session.retrieve(table, row_id)
        other = TABLES[_INTERSECTION[table.name]]
        condition = f't."{other.key}" IN (SELECT "{other.key}" FROM systemuserroles WHERE "{table.key}" = ?)'  # noqa: S608
        return self._reader.list(other, Condition(condition, (row_id,)))

    def _reference(self, table: Table, row_id: str, segment: Segment) -> Reply:
        if segment.name == _USER_ROLES and table.name in _INTERSECTION:
            return self._associate(table, row_id, segment)
        if segment.name not in table.navigation:
            raise not_supported(f"references through '{segment.name}'")
        column, targets = table.navigation[segment.name]
        if self._method not in ("PUT", "DELETE") or not column.writable:
            raise method_not_allowed(self._method)
        value = self._referred(segment.name, targets) if self._method == "PUT" else None
        self._session.update(table, row_id, {column.name: value})
        return Reply(HTTPStatus.NO_CONTENT)

    def _referred(self, name: str, targets: tuple[str, ...]) -> str:
        """Return the row that a body refers to; it must be in one of these tables."""
        referred, other_id = parse_reference(read_json(self._operation.body).get("@odata.id"))
        if referred.name not in targets:
            raise bad_request(
                f"'{name}' leads to {' or '.join(targets)}, not to {referred.name}.", "0x80048d19"
            )
        return other_id

    def _associate(self, table: Table, row_id: str, segment: Segment) -> Reply:
        other = TABLES[_INTERSECTION[table.name]]
        if self._method == "POST":
            self._session.associate(table, row_id, other, self._referred(segment.name, (other.name,)))
        elif self._method == "DELETE" and segment.key:
            self._session.disassociate(table, row_id, other, record_id(other, segment.key))
        else:
            raise method_not_allowed(self._method)
        return Reply(HTTPStatus.NO_CONTENT)

    def _bound(self, table: Table, row_id: str, segment: Segment) -> Reply:
        message = BOUND_MESSAGES.get((self._method, table.name, segment.name.removeprefix(NAMESPACE)))
        if message is None:
            raise _unknown(segment.name)
        return self._message(segment, message, self._session.retrieve(table, row_id))

    # --- actions and functions ---

    def _message(self, segment: Segment, message: SdkMessage, *bound: Row) -> Reply:
        message_name = segment.name.removeprefix(NAMESPACE)
        if self._method == "POST":
            parameters = read_json(self._operation.body or b"{}", message_name)
        else:
            parameters = self._parameters(segment, message.parameters)
        for name in parameters:
            if name not in message.parameters and not name.startswith("@odata."):
                raise no_property(name, message_name)
        result = message.run(self._session, *bound, parameters)
        if result is None:
            return Reply(HTTPStatus.NO_CONTENT)
        if isinstance(result, EntityResult):
            return self._reader.result(result)
        context = {"@odata.context": f"{self._reader.root}/$metadata#{NAMESPACE}ComplexType"}
        return Reply(HTTPStatus.OK, context | result)

    def _parameters(self, segment: Segment, known: frozenset[str]) -> dict[str, object]:
        """Read a function's parameters, `Name=value` or `Name=@alias`; all of `known` must have a value."""
        parameters: dict[str, object] = {}
        for item in filter(None, (segment.key or "").split(",")):
            name, _, value = item.partition("=")
            if value.startswith("@"):
                if value not in self._operation.aliases:
                    raise bad_request(f"The parameter alias '{value}' has no value.")
                value = self._operation.aliases[value]
            parameters[name.strip()] = literal(value)
        if missing := known - parameters.keys():
            raise bad_request(f"The parameter '{min(missing)}' of '{segment.name}' is missing.")
        return parameters


def _unknown(name: str) -> RequestRefused:
    """Refuse a segment: with 501 if Dataverse supports it and the sandbox does not, otherwise with 404."""
    if name == "$metadata":
        return not_supported("$metadata")
    if name in UNSUPPORTED_TABLES:
        return not_supported(f"the table '{name}'")
    if name.removeprefix(NAMESPACE) in UNSUPPORTED_MESSAGES:
        return not_supported(f"the message '{name.removeprefix(NAMESPACE)}'")
    return no_segment(name)
