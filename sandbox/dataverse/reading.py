"""Retrieves a list, a row, a related row, one property or a count, and writes the requested parts as JSON."""

from http import HTTPStatus
from typing import Final

from sandbox.dataverse.columns import Row, Table
from sandbox.dataverse.errors import no_property, no_segment, not_supported
from sandbox.dataverse.filters import Condition, parse_filter, parse_orderby
from sandbox.dataverse.operation import MAX_PAGE, ROOT, Operation, Reply, named_with_options, split
from sandbox.dataverse.payload import Expansion, Shape, represent
from sandbox.dataverse.sales_rules import INVOICE, reprice
from sandbox.dataverse.schema import COLLECTIONS, TABLES
from sandbox.dataverse.service import EntityResult, Session, check_version, etag

NAMESPACE: Final = "Microsoft.Dynamics.CRM."
_OPTIONS: Final = frozenset({"$select", "$filter", "$orderby", "$top", "$expand", "$count", "$skiptoken"})
# Dataverse may return stale rows for an expanded collection, and few clients need one.
_EXPANDABLE_COLLECTIONS: Final = frozenset({"sdkmessageid_sdkmessagefilter"})


class Reader:
    """The retrieves of one operation, and the representation of rows for all others."""

    def __init__(self, session: Session, operation: Operation) -> None:
        self._session = session
        self._operation = operation
        self._options = operation.options
        self._preferences = operation.preferences

    # --- retrieves ---

    def list(self, table: Table, *conditions: Condition) -> Reply:
        """List the rows that match the conditions and the query options."""
        shape = self._shape(table)
        wanted = self._conditions(table, conditions)
        order = parse_orderby(self._options["$orderby"], table) if "$orderby" in self._options else ()
        top, offset, size = self._operation.top, self._operation.offset, self._preferences.page_size
        left = size if top is None else min(size, max(top - offset, 0))
        rows = self._session.query(table, wanted, order, f"LIMIT {left + 1} OFFSET {offset}")
        content: dict[str, object] = {"@odata.context": self._context(table)}
        if self._options.get("$count") == "true":
            content["@odata.count"] = min(self._session.count(table, wanted), MAX_PAGE)
        content["value"] = [self._represent(table, row, shape) for row in rows[:left]]
        if len(rows) > left and (top is None or offset + left < top):
            next_page = self._operation.next_page(offset + left)
            content["@odata.nextLink"] = f"{self._session.organization.url}{next_page}"
        return Reply(HTTPStatus.OK, content, self._preferences.applied)

    def count(self, table: Table, *conditions: Condition) -> Reply:
        """Count the rows, up to the maximum that Dataverse counts."""
        count = self._session.count(table, self._conditions(table, conditions))
        return Reply(HTTPStatus.OK, text=str(min(count, MAX_PAGE)))

    def retrieve(self, table: Table, record_id: str) -> Reply:
        """Retrieve a row by its id."""
        shape = self._shape(table)
        row = self._fresh(table, record_id)
        check_version(table, row, self._operation.headers.get("if-match"))
        if self._operation.headers.get("if-none-match") == etag(row):
            return Reply(HTTPStatus.NOT_MODIFIED)
        return Reply(HTTPStatus.OK, self._entity(table, row, shape), self._preferences.applied)

    def follow(self, table: Table, record_id: str, name: str) -> Reply:
        """Retrieve the row of a single-valued navigation property, or one property."""
        if name not in table.navigation:
            return self._property(table, record_id, name)
        column, _ = table.navigation[name]
        value = self._session.retrieve(table, record_id)[column.name]
        found = self._session.target(column, value) if value else None
        if found is None or column.lookup is None or column.lookup.targets[found[0].name] != name:
            return Reply(HTTPStatus.NO_CONTENT)
        target, row = found
        self._session.retrieve(target, row[target.key])
        return Reply(HTTPStatus.OK, self._entity(target, row, self._shape(target)), self._preferences.applied)

    def _property(self, table: Table, record_id: str, name: str) -> Reply:
        column = table.by_property.get(name)
        if column is None:
            raise no_segment(name)
        value = column.of(self._fresh(table, record_id))
        if value is None:
            return Reply(HTTPStatus.NO_CONTENT)
        context = f"{self.root}/$metadata#{table.set_name}({record_id})/{name}"
        return Reply(HTTPStatus.OK, {"@odata.context": context, "value": value})

    def _fresh(self, table: Table, record_id: str) -> Row:
        """Retrieve a row by its id; this calculates an invoice's totals."""
        row = self._session.retrieve(table, record_id)
        if not row.get("_totalspending"):
            return row
        reprice(self._session, INVOICE, row)
        return self._session.find(table, record_id)

    def _conditions(self, table: Table, conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        if "$filter" not in self._options:
            return conditions
        return (*conditions, parse_filter(self._options["$filter"], table))

    # --- representation ---

    def changed(self, table: Table, record_id: str, status: HTTPStatus) -> Reply:
        """Reply with the URL of a changed row, and with the row if the request prefers that."""
        url = f"{self.root}/{table.set_name}({record_id})"
        if not self._preferences.representation:
            return Reply(HTTPStatus.NO_CONTENT, None, {"OData-EntityId": url, "Location": url})
        shape = self._shape(table)
        content = self._entity(table, self._session.retrieve(table, record_id), shape)
        headers = {"OData-EntityId": url, "Location": url, **self._preferences.applied}
        return Reply(HTTPStatus.OK if status is HTTPStatus.NO_CONTENT else status, content, headers)

    def result(self, result: EntityResult) -> Reply:
        """Reply with the row that an action returns."""
        table = result.table
        select = tuple(table.columns[name].property_name for name in result.columns)
        content: dict[str, object] = {
            "@odata.context": f"{self._context(table)}/$entity",
            "@odata.type": f"#{NAMESPACE}{table.name}",
            **represent(
                self._session.target, table, result.row, Shape(select, (), self._preferences.annotations)
            ),
        }
        return Reply(HTTPStatus.OK, content, self._preferences.applied)

    @property
    def root(self) -> str:
        """The service's root, absolute."""
        return f"{self._session.organization.url}{ROOT}"

    def _context(self, table: Table) -> str:
        select = self._options.get("$select")
        return f"{self.root}/$metadata#{table.set_name}" + (f"({select})" if select else "")

    def _entity(self, table: Table, row: Row, shape: Shape) -> dict[str, object]:
        return {"@odata.context": f"{self._context(table)}/$entity", **self._represent(table, row, shape)}

    def _shape(self, table: Table) -> Shape:
        unknown = self._options.keys() - _OPTIONS
        if unknown:
            raise not_supported(f"the query option {min(unknown)}")
        annotations = self._preferences.annotations
        select = _select(table, self._options.get("$select"))
        return Shape(select, _expansions(table, self._options.get("$expand", ""), annotations), annotations)

    def _represent(self, table: Table, row: Row, shape: Shape) -> dict[str, object]:
        entity = represent(self._session.target, table, row, shape)
        for expansion in shape.expand:
            entity[expansion.name] = self._expand(table, row, expansion)
        return entity

    def _expand(self, table: Table, row: Row, expansion: Expansion) -> object:
        collection = COLLECTIONS[table.name].get(expansion.name)
        if collection:
            related = collection.table
            conditions = [Condition(f't."{collection.lookup.name}" = ?', (row[table.key],))]
            if expansion.filter:
                conditions.append(parse_filter(expansion.filter, related))
            rows = self._session.query(related, conditions)
            return [self._represent(related, other, expansion.shape) for other in rows]
        column, targets = table.navigation[expansion.name]
        target = TABLES[targets[0]]
        conditions = [Condition(f't."{target.key}" = ?', (row[column.name],))]
        found = self._session.query(target, conditions)
        return self._represent(target, found[0], expansion.shape) if found else None


def _select(table: Table, text: str | None) -> tuple[str, ...] | None:
    names = [name.strip() for name in text.split(",") if name.strip()] if text else []
    if names in ([], ["*"]):
        return None
    for name in names:
        if name not in table.by_property:
            raise no_property(name, table.name)
    return tuple(names)


def _expansions(table: Table, text: str, annotations: tuple[str, ...]) -> tuple[Expansion, ...]:
    return tuple(_expansion(table, item.strip(), annotations) for item in split(text, ",") if item.strip())


def _expansion(table: Table, text: str, annotations: tuple[str, ...]) -> Expansion:
    name, options = named_with_options(text)
    related, allowed = _expanded(table, name)
    if unknown := options.keys() - allowed:
        raise not_supported(f"the option {min(unknown)} within $expand={name}")
    nested = _expansions(related, options.get("$expand", ""), annotations)
    shape = Shape(_select(related, options.get("$select")), nested, annotations)
    return Expansion(name, shape, options.get("$filter"))


def _expanded(table: Table, name: str) -> tuple[Table, frozenset[str]]:
    """Return the target table of an expansion, and the options that it may have."""
    if name in table.navigation:
        targets = table.navigation[name][1]
        if len(targets) > 1:
            raise not_supported(f"expanding '{name}', which leads to several tables")
        return TABLES[targets[0]], frozenset({"$select", "$expand"})
    collection = COLLECTIONS[table.name].get(name)
    if collection and name in _EXPANDABLE_COLLECTIONS:
        return collection.table, frozenset({"$select", "$filter"})
    if collection:
        raise not_supported(f"expanding the collection '{name}': list it by a filter")
    raise no_property(name, table.name)
