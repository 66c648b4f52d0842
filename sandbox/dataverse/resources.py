"""The Web API's URLs: a method on a path with options → what a session does, and the answer.

Covers what clients of sales data and the set-up of service endpoints need; whatever is beyond is refused with
an error that names it.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from sandbox.dataverse.actions import SALES_ACTIONS
from sandbox.dataverse.columns import InvalidValue, Kind, Row, Table, guid
from sandbox.dataverse.errors import (
    RequestRefused,
    bad_request,
    no_property,
    no_record,
    no_segment,
    not_supported,
)
from sandbox.dataverse.filters import Condition, parse_filter, parse_orderby
from sandbox.dataverse.messages import BoundMessage, EntityResult, Result, check_known_parameters
from sandbox.dataverse.payload import (
    Expansion,
    Shape,
    check_select,
    included_annotations,
    parse_entity,
    parse_reference,
    read_json,
    represent,
)
from sandbox.dataverse.platform_actions import PLATFORM_ACTIONS, PLATFORM_FUNCTIONS, USER_FUNCTIONS
from sandbox.dataverse.sales_rules import INVOICE, reprice
from sandbox.dataverse.schema import BY_SET, COLLECTIONS, TABLES
from sandbox.dataverse.service import Query, Session, check_version, collection_of, etag

ROOT: Final = "/api/data/v9.2"
_SERVICE_ROOT = re.compile(r"/api/data/v9\.[0-2](?=/|\Z)")
_SEGMENT = re.compile(r"([\w.$]+)(?:\((.*)\))?\Z", re.DOTALL)
_NAMESPACE: Final = "Microsoft.Dynamics.CRM."
_PAGE: Final = 5000
_OPTIONS: Final = frozenset({"$select", "$filter", "$orderby", "$top", "$expand", "$count", "$skiptoken"})


@dataclass(frozen=True)
class Operation:
    """One request, whether it came alone or within a batch; `url` is absolute or from the service's root."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_id: str | None = None

    def header(self, name: str) -> str | None:
        """Return a header; names of `headers` are in lower case."""
        return self.headers.get(name)

    @property
    def is_read(self) -> bool:
        """Whether it is barred from change sets: retrieves and functions."""
        return self.method == "GET"


@dataclass(frozen=True)
class Reply:
    """What one operation is answered: `content` becomes JSON, None means no body."""

    status: HTTPStatus
    content: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    # The URL of the row that was made or changed, for content-ID references.
    entity_url: str | None = None


@dataclass(frozen=True)
class _Segment:
    name: str
    key: str | None


@dataclass(frozen=True)
class _Preferences:
    representation: bool
    annotations: tuple[str, ...]
    page_size: int


def execute(session: Session, operation: Operation) -> Reply:
    """Carry out one operation. Raises RequestRefused."""
    return _Execution(session, operation).run()


def may_write(operation: Operation) -> bool:
    """Tell whether an operation needs a transaction that may change rows; a retrieved invoice is calculated."""
    return operation.method != "GET" or "/invoices(" in operation.url or operation.url.startswith("invoices(")


class _Execution:
    """One operation on its way: parsed URL, preferences, session."""

    def __init__(self, session: Session, operation: Operation) -> None:
        self.session = session
        self.operation = operation
        self.preferences = _preferences(operation.header("prefer") or "")
        parts = urlsplit(operation.url)
        self.segments = _segments(parts.path)
        self.options, self.aliases = _options(parts.query)

    def run(self) -> Reply:
        first, *rest = self.segments
        method = self.operation.method
        if first.name in BY_SET:
            table = BY_SET[first.name]
            if first.key is None:
                return self._collection(table, rest)
            return self._record(table, _record_id(table, first.key), rest)
        if first.name in PLATFORM_FUNCTIONS and method == "GET" and not rest:
            function = PLATFORM_FUNCTIONS[first.name]
            return self._answer(function.run(self.session, self._parameters(first, function.parameters)))
        if first.name in SALES_ACTIONS and method == "POST" and not rest:
            action = SALES_ACTIONS[first.name]
            body = read_json(self.operation.body, first.name)
            check_known_parameters(first.name, action.parameters, body)
            return self._answer(action.run(self.session, body))
        if first.name == "EntityDefinitions":
            return self._definitions(first, rest)
        if first.name in SALES_ACTIONS or first.name in PLATFORM_FUNCTIONS:
            raise _method_not_allowed(method)
        raise no_segment(first.name)

    # --- collections ---

    def _collection(self, table: Table, rest: Sequence[_Segment]) -> Reply:
        if rest:
            raise not_supported(f"'{rest[0].name}' on a collection")
        if self.operation.method == "GET":
            return self._list(table, [])
        if self.operation.method == "POST":
            return self._create(table, None)
        raise _method_not_allowed(self.operation.method)

    def _list(self, table: Table, conditions: list[Condition]) -> Reply:
        shape = self._shape(table)
        if "$filter" in self.options:
            conditions = [*conditions, parse_filter(self.options["$filter"], table)]
        order = parse_orderby(self.options["$orderby"], table) if "$orderby" in self.options else ()
        top = _whole(self.options["$top"], "$top") if "$top" in self.options else None
        offset = _read_token(self.options.get("$skiptoken"))
        size = self.preferences.page_size
        left = size if top is None else min(size, max(top - offset, 0))
        rows = self.session.query(table, Query(conditions, order, left + 1, offset))
        content: dict[str, object] = {"@odata.context": self._context(table)}
        if self.options.get("$count") == "true":
            content["@odata.count"] = min(self.session.count(table, conditions), _PAGE)
        content["value"] = [self._represent(table, row, shape) for row in rows[:left]]
        if len(rows) > left and (top is None or offset + left < top):
            content["@odata.nextLink"] = self._next_link(offset + left)
        return Reply(HTTPStatus.OK, content, self._applied())

    def _create(self, table: Table, record_id: str | None) -> Reply:
        values = parse_entity(table, read_json(self.operation.body, table.name))
        if record_id:
            values[table.key] = record_id
        row = self.session.create(table, values)
        return self._changed(table, row[table.key], HTTPStatus.CREATED)

    # --- one row ---

    def _record(self, table: Table, record_id: str, rest: Sequence[_Segment]) -> Reply:
        if rest:
            return self._beneath(table, record_id, rest)
        match self.operation.method:
            case "GET":
                return self._retrieve(table, record_id)
            case "PATCH":
                return self._patch(table, record_id)
            case "DELETE":
                self.session.delete(table, record_id, self.operation.header("if-match"))
                return Reply(HTTPStatus.NO_CONTENT)
        raise _method_not_allowed(self.operation.method)

    def _retrieve(self, table: Table, record_id: str) -> Reply:
        shape = self._shape(table)
        row = self._fresh(table, record_id)
        check_version(table, row, self.operation.header("if-match"))
        if self.operation.header("if-none-match") == etag(row):
            return Reply(HTTPStatus.NOT_MODIFIED)
        context = {"@odata.context": f"{self._context(table)}/$entity"}
        return Reply(HTTPStatus.OK, context | self._represent(table, row, shape), self._applied())

    def _fresh(self, table: Table, record_id: str) -> Row:
        """Retrieve a row by itself: that is when an invoice's totals are calculated."""
        row = self.session.retrieve(table, record_id)
        if not row.get("_totalspending"):
            return row
        reprice(self.session, INVOICE, row)
        return self.session.find(table, record_id)

    def _patch(self, table: Table, record_id: str) -> Reply:
        """Update or create: If-Match forbids creating, If-None-Match: * forbids updating."""
        exists = self.session.transaction.get(table, record_id) is not None
        if_match, if_none_match = self.operation.header("if-match"), self.operation.header("if-none-match")
        if not exists:
            if if_match is not None:
                raise no_record(table.name, record_id)
            return self._create(table, record_id)
        if if_none_match == "*":
            raise self.session.organization.loser_answer.error(table)
        values = parse_entity(table, read_json(self.operation.body, table.name))
        if values.pop(table.key, record_id) != record_id:
            raise bad_request("The key in the body is not that of the URL.", "0x80048d19")
        self.session.update(table, record_id, values, if_match)
        return self._changed(table, record_id, HTTPStatus.NO_CONTENT)

    def _changed(self, table: Table, record_id: str, status: HTTPStatus) -> Reply:
        url = f"{self._root}/{table.set_name}({record_id})"
        if not self.preferences.representation:
            return Reply(HTTPStatus.NO_CONTENT, None, {"OData-EntityId": url, "Location": url}, url)
        shape = self._shape(table)
        context = {"@odata.context": f"{self._context(table)}/$entity"}
        content = context | self._represent(table, self.session.retrieve(table, record_id), shape)
        status = HTTPStatus.OK if status is HTTPStatus.NO_CONTENT else status
        return Reply(status, content, {"OData-EntityId": url, "Location": url, **self._applied()}, url)

    # --- beneath a row: navigation, references, bound operations ---

    def _beneath(self, table: Table, record_id: str, rest: Sequence[_Segment]) -> Reply:
        first = rest[0]
        if first.name.startswith(_NAMESPACE):
            return self._bound(table, record_id, first)
        if len(rest) == 2 and rest[1].name == "$ref":  # noqa: PLR2004 - a property and $ref
            return self._reference(table, record_id, first)
        if len(rest) > 1:
            raise not_supported("paths that go on behind a navigation property")
        if self.operation.method != "GET":
            raise _method_not_allowed(self.operation.method)
        if first.name == _USER_ROLES and table.name in _INTERSECTION:
            return self._list_associated(table, record_id)
        collection = collection_of(table, first.name)
        if collection:
            self.session.retrieve(table, record_id)
            related, column = collection
            return self._list(related, [Condition(f't."{column.name}" = ?', (record_id,))])
        return self._follow(table, record_id, first.name)

    def _follow(self, table: Table, record_id: str, name: str) -> Reply:
        if name not in table.navigation:
            if name in table.by_wire_name:
                raise not_supported("reading a single property")
            raise no_segment(name)
        column, _ = table.navigation[name]
        value = self.session.retrieve(table, record_id)[column.name]
        found = self.session.target(column, value) if value else None
        if found is None or column.lookup is None or column.lookup.targets[found[0].name] != name:
            return Reply(HTTPStatus.NO_CONTENT)
        target, row = found
        self.session.retrieve(target, row[target.key])
        context = {"@odata.context": f"{self._context(target)}/$entity"}
        return Reply(
            HTTPStatus.OK, context | self._represent(target, row, self._shape(target)), self._applied()
        )

    def _list_associated(self, table: Table, record_id: str) -> Reply:
        self.session.retrieve(table, record_id)
        other = TABLES[_INTERSECTION[table.name]]
        condition = f't."{other.key}" IN (SELECT "{other.key}" FROM systemuserroles WHERE "{table.key}" = ?)'  # noqa: S608
        return self._list(other, [Condition(condition, (record_id,))])

    def _reference(self, table: Table, record_id: str, segment: _Segment) -> Reply:
        if segment.name == _USER_ROLES and table.name in _INTERSECTION:
            return self._associate(table, record_id, segment)
        if segment.name not in table.navigation:
            raise not_supported(f"references through '{segment.name}'")
        column, targets = table.navigation[segment.name]
        if self.operation.method == "DELETE":
            self.session.update(table, record_id, {column.name: None})
        elif self.operation.method == "PUT":
            referred, other_id = parse_reference(read_json(self.operation.body).get("@odata.id"))
            if referred.name not in targets:
                raise bad_request(
                    f"'{segment.name}' leads to {' or '.join(targets)}, not to {referred.name}.", "0x80048d19"
                )
            self.session.update(table, record_id, {column.name: other_id})
        else:
            raise _method_not_allowed(self.operation.method)
        return Reply(HTTPStatus.NO_CONTENT)

    def _associate(self, table: Table, record_id: str, segment: _Segment) -> Reply:
        other = TABLES[_INTERSECTION[table.name]]
        if self.operation.method == "POST":
            referred, other_id = parse_reference(read_json(self.operation.body).get("@odata.id"))
            if referred is not other:
                raise bad_request(
                    f"{_USER_ROLES} associates {other.name}, not {referred.name}.", "0x80048d19"
                )
            self.session.associate(table, record_id, other, other_id)
        elif self.operation.method == "DELETE" and segment.key:
            self.session.disassociate(table, record_id, other, _record_id(other, segment.key))
        else:
            raise _method_not_allowed(self.operation.method)
        return Reply(HTTPStatus.NO_CONTENT)

    def _bound(self, table: Table, record_id: str, segment: _Segment) -> Reply:
        name = segment.name.removeprefix(_NAMESPACE)
        is_function = self.operation.method == "GET"
        known: Mapping[str, BoundMessage] = USER_FUNCTIONS if is_function else PLATFORM_ACTIONS
        bound = known.get(name)
        if bound is None or bound.table != table.name:
            raise no_segment(segment.name)
        if is_function:
            parameters = self._parameters(segment, bound.parameters)
        else:
            parameters = read_json(self.operation.body or b"{}", name)
            check_known_parameters(name, bound.parameters, parameters)
        row = self.session.retrieve(table, record_id)
        return self._answer(bound.run(self.session, row, parameters))

    # --- actions and functions ---

    def _parameters(self, segment: _Segment, known: frozenset[str]) -> dict[str, Any]:
        """Read a function's parameters, `Name=value` or `Name=@alias`."""
        parameters: dict[str, Any] = {}
        for item in filter(None, (segment.key or "").split(",")):
            name, _, value = item.partition("=")
            if value.startswith("@"):
                if value not in self.aliases:
                    raise bad_request(f"The parameter alias '{value}' has no value.")
                value = self.aliases[value]
            parameters[name.strip()] = _literal(value)
        check_known_parameters(segment.name, known, parameters)
        if missing := known - parameters.keys():
            raise bad_request(f"The parameter '{min(missing)}' of '{segment.name}' is missing.")
        return parameters

    def _answer(self, answer: Result) -> Reply:
        if answer is None:
            return Reply(HTTPStatus.NO_CONTENT)
        if isinstance(answer, EntityResult):
            table = answer.table
            select = tuple(table.columns[name].wire_name for name in answer.columns)
            shape = Shape(select, (), self.preferences.annotations)
            content: dict[str, object] = {
                "@odata.context": f"{self._context(table)}/$entity",
                "@odata.type": f"#{_NAMESPACE}{table.name}",
            }
            return Reply(
                HTTPStatus.OK, content | represent(self.session, table, answer.row, shape), self._applied()
            )
        context = {"@odata.context": f"{self._root}/$metadata#{_NAMESPACE}ComplexType"}
        return Reply(HTTPStatus.OK, context | answer)

    # --- metadata, as little of it as clients ask for ---

    def _definitions(self, first: _Segment, rest: Sequence[_Segment]) -> Reply:
        if self.operation.method != "GET":
            raise not_supported("changing tables")
        if first.key is None and not rest:
            match = re.fullmatch(r"LogicalName eq '(\w+)'", self.options.get("$filter", ""))
            if match is None:
                raise not_supported("EntityDefinitions without a filter on LogicalName")
            found = [TABLES[match[1]]] if match[1] in TABLES else []
            return Reply(HTTPStatus.OK, {"value": [_definition(table) for table in found]})
        match = re.fullmatch(r"LogicalName='(\w+)'", first.key or "")
        names = [segment.name for segment in rest]
        if match is None or match[1] not in TABLES:
            raise no_segment("EntityDefinitions")
        if not names:
            return Reply(HTTPStatus.OK, _definition(TABLES[match[1]]))
        if names == ["Attributes", f"{_NAMESPACE}PicklistAttributeMetadata"]:
            return Reply(HTTPStatus.OK, {"value": _picklists(TABLES[match[1]])})
        raise not_supported("this part of EntityDefinitions")

    # --- shapes ---

    def _shape(self, table: Table) -> Shape:
        unknown = self.options.keys() - _OPTIONS
        if unknown:
            raise not_supported(f"the query option {min(unknown)}")
        select = _select(table, self.options.get("$select"))
        expand = _expansions(table, self.options.get("$expand", ""), self.preferences.annotations)
        return Shape(select, expand, self.preferences.annotations)

    def _represent(self, table: Table, row: Row, shape: Shape) -> dict[str, object]:
        entity = represent(self.session, table, row, shape)
        for expansion in shape.expand:
            entity[expansion.name] = self._expand(table, row, expansion)
        return entity

    def _expand(self, table: Table, row: Row, expansion: Expansion) -> object:
        collection = collection_of(table, expansion.name)
        if collection:
            related, column = collection
            conditions = [Condition(f't."{column.name}" = ?', (row[table.key],))]
            if expansion.filter:
                conditions.append(parse_filter(expansion.filter, related))
            rows = self.session.query(related, Query(conditions))
            return [self._represent(related, other, expansion.shape) for other in rows]
        column, targets = table.navigation[expansion.name]
        target = TABLES[targets[0]]
        value = row[column.name]
        conditions = [Condition(f't."{target.key}" = ?', (value,))]
        found = self.session.query(target, Query(conditions))
        return self._represent(target, found[0], expansion.shape) if found else None

    # --- links and headers ---

    @property
    def _root(self) -> str:
        return f"{self.session.organization.url}{ROOT}"

    def _context(self, table: Table) -> str:
        select = self.options.get("$select")
        return f"{self._root}/$metadata#{table.set_name}" + (f"({select})" if select else "")

    def _next_link(self, offset: int) -> str:
        token = base64.urlsafe_b64encode(json.dumps({"skip": offset}).encode()).decode()
        path = urlsplit(self.operation.url).path
        options = {name: value for name, value in self.options.items() if name != "$skiptoken"}
        query = "&".join(f"{name}={quote(value)}" for name, value in {**options, "$skiptoken": token}.items())
        return f"{self.session.organization.url}{path}?{query}"

    def _applied(self) -> dict[str, str]:
        """Name the preferences that were honoured."""
        applied = []
        if self.preferences.annotations:
            applied.append(f'odata.include-annotations="{",".join(self.preferences.annotations)}"')
        if self.preferences.representation:
            applied.append("return=representation")
        if self.preferences.page_size < _PAGE:
            applied.append(f"odata.maxpagesize={self.preferences.page_size}")
        return {"Preference-Applied": ",".join(applied)} if applied else {}


_USER_ROLES: Final = "systemuserroles_association"
_INTERSECTION: Final = {"systemuser": "role", "role": "systemuser"}


def _segments(path: str) -> list[_Segment]:
    path = _SERVICE_ROOT.sub("", path, count=1).strip("/")
    segments = []
    for text in _split(path, "/"):
        match = _SEGMENT.match(unquote(text))
        if match is None:
            raise no_segment(unquote(text))
        segments.append(_Segment(match[1], match[2]))
    return segments


def _split(text: str, separator: str) -> list[str]:
    """Split outside of parentheses and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _options(query: str) -> tuple[dict[str, str], dict[str, str]]:
    options: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        (aliases if name.startswith("@") else options)[name] = value
    return options, aliases


def _record_id(table: Table, key: str) -> str:
    name, _, value = key.rpartition("=")
    if name not in ("", table.key):
        raise not_supported("alternate keys")
    try:
        return guid(value)
    except InvalidValue as error:
        raise bad_request(f"Error in query syntax: {error}", "0x8006088a") from error


def _select(table: Table, text: str | None) -> tuple[str, ...] | None:
    names = [name.strip() for name in text.split(",") if name.strip()] if text else []
    return check_select(table, names) if names and names != ["*"] else None


def _expansions(table: Table, text: str, annotations: tuple[str, ...]) -> tuple[Expansion, ...]:
    return tuple(_expansion(table, item.strip(), annotations) for item in _split(text, ",") if item.strip())


def _expansion(table: Table, text: str, annotations: tuple[str, ...]) -> Expansion:
    match = _SEGMENT.match(text)
    name = match[1] if match else text
    options = dict(
        option.strip().partition("=")[::2] for option in _split((match and match[2]) or "", ";") if option
    )
    if name in table.navigation:
        targets = table.navigation[name][1]
        if len(targets) > 1:
            raise not_supported(f"expanding '{name}', which leads to several tables")
        related, allowed = TABLES[targets[0]], {"$select", "$expand"}
    elif name in _EXPANDABLE_COLLECTIONS:
        found = collection_of(table, name)
        if found is None:
            raise no_property(name, table.name)
        related, allowed = found[0], {"$select", "$filter"}
    elif name in COLLECTIONS[table.name]:
        raise not_supported(f"expanding the collection '{name}': list it by a filter")
    else:
        raise no_property(name, table.name)
    if unknown := options.keys() - allowed:
        raise not_supported(f"the option {min(unknown)} within $expand={name}")
    nested = _expansions(related, options.get("$expand", ""), annotations)
    shape = Shape(_select(related, options.get("$select")), nested, annotations)
    return Expansion(name, shape, options.get("$filter"))


# Expanded collections of the real service may be stale, and few need them.
_EXPANDABLE_COLLECTIONS: Final = frozenset({"sdkmessageid_sdkmessagefilter"})


def _preferences(text: str) -> _Preferences:
    size = re.search(r"odata\.maxpagesize\s*=\s*(\d+)", text)
    return _Preferences(
        "return=representation" in text.replace(" ", ""),
        included_annotations(text),
        min(max(int(size[1]), 1), _PAGE) if size else _PAGE,
    )


def _whole(text: str, option: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise bad_request(f"Invalid value '{text}' for {option}.")
    return int(text)


def _read_token(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(json.loads(base64.urlsafe_b64decode(token))["skip"])
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise bad_request("The paging cookie is not valid.") from error


def _literal(text: str) -> object:
    """Read a function's parameter: JSON, a quoted string, or the bare text of a GUID."""
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    try:
        return json.loads(text)
    except ValueError:
        # Microsoft's examples write objects with single quotes.
        return text


def _method_not_allowed(method: str) -> RequestRefused:
    return RequestRefused(
        HTTPStatus.METHOD_NOT_ALLOWED, "0x80060880", f"The requested resource does not support {method}."
    )


def _definition(table: Table) -> dict[str, object]:
    return {
        "LogicalName": table.name,
        "EntitySetName": table.set_name,
        "PrimaryIdAttribute": table.key,
        "PrimaryNameAttribute": table.primary_name,
        "ObjectTypeCode": table.code,
    }


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
        if column.kind is Kind.CHOICE and column.name not in ("statecode", "statuscode")
    ]
