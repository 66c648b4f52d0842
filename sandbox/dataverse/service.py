"""Creates, retrieves, queries, updates and deletes rows for a caller; checks its privileges and fires events.

`Session` is one caller within one transaction. `actions` builds the messages of Sales (win, generate an invoice, …) on
it. The rules of the tables are injected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from sandbox.dataverse.columns import Column, Row, Table, format_datetime
from sandbox.dataverse.database import DuplicateKey, Transaction
from sandbox.dataverse.errors import (
    RequestRefused,
    bad_payload,
    invalid_argument,
    no_record,
    user_disabled,
)
from sandbox.dataverse.execution_context import (
    Entity,
    MessageExecution,
    OptionSet,
    Reference,
    RequestContext,
    RequestInfo,
)
from sandbox.dataverse.filters import Condition
from sandbox.dataverse.organization import DuplicateResponse, Organization
from sandbox.dataverse.schema import REFERENCES, TABLES
from sandbox.dataverse.security import (
    Caller,
    check_access,
    load_caller,
    load_team,
    require,
    visible,
)

_ACCESS_TEAM = 1


@dataclass(frozen=True)
class EntityResult:
    """A row as the result of an action: these columns of it."""

    table: Table
    row: Row
    columns: tuple[str, ...]


Parameters = Mapping[str, Any]
Result = EntityResult | dict[str, object] | None


@dataclass(frozen=True)
class SdkMessage:
    """An action (POST, may change things) or a function (GET), and the parameters that it takes.

    `run` takes a session, the row if the message is bound to one, and the Parameters.
    """

    run: Callable[..., Result]
    parameters: frozenset[str] = frozenset()


class TableRules:
    """The rules that a table applies when its rows change; by default none."""

    def on_create(self, session: "Session", values: Row) -> Row:  # noqa: ARG002 - for those that need it
        """Return columns of a new row that add to the given ones or replace them. Raises RequestRefused."""
        return {}

    def on_update(self, session: "Session", row: Row, values: Row) -> Row:  # noqa: ARG002 - for those that need it
        """Return columns to change that add to the given ones or replace them. Raises RequestRefused."""
        return {}

    def after(self, session: "Session", row: Row, changed: Mapping[str, object]) -> None:
        """React to a row that was created or changed, or that was deleted (`changed` is empty)."""


_NO_RULES = TableRules()


@dataclass
class Session:
    """A caller within a transaction; every refusal is a RequestRefused."""

    organization: Organization
    transaction: Transaction
    caller: Caller
    request: RequestInfo
    # The rules of the tables, by the tables' names.
    rules: Mapping[str, TableRules]
    # The messages that are being executed: an Update that a Win causes has the Win as its parent.
    parents: list[MessageExecution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transaction.user_id = self.caller.user_id
        self.transaction.request_id = self.request.request_id

    @property
    def now(self) -> str:
        """The time as columns hold it."""
        return format_datetime(self.organization.clock.now())

    # --- reading ---

    def find(self, table: Table, record_id: str) -> Row:
        """Return a row without checking privileges. Raises 404."""
        row = self.transaction.get(table, record_id)
        if row is None:
            raise no_record(table.name, record_id)
        return row

    def retrieve(self, table: Table, record_id: str) -> Row:
        """Return a row that the caller may read. Raises 404, 403."""
        require(self.caller, "Read", table)
        row = self.find(table, record_id)
        check_access(self.caller, table, "Read", row)
        return row

    def query(
        self, table: Table, conditions: Sequence[Condition], order: Sequence[str] = (), window: str = ""
    ) -> list[Row]:
        """Return the rows that the caller may read; others are missing without an error.

        `order` has terms of ORDER BY, `window` is LIMIT and OFFSET.
        """
        where, parameters = self._condition(table, conditions)
        terms = ", ".join([*order, f't."{table.key}"'])
        return self.transaction.rows(table, where, parameters, f"ORDER BY {terms} {window}")

    def count(self, table: Table, conditions: Sequence[Condition]) -> int:
        """Count the rows that the caller may read."""
        return self.transaction.count(table, *self._condition(table, conditions))

    def target(self, column: Column, record_id: str) -> tuple[Table, Row] | None:
        """Return table and row to which a lookup refers; if it has several tables, search them."""
        for name in column.lookup.targets if column.lookup else ():
            row = self.transaction.get(TABLES[name], record_id)
            if row is not None:
                return TABLES[name], row
        return None

    def _condition(self, table: Table, conditions: Sequence[Condition]) -> tuple[str, tuple[object, ...]]:
        every = [visible(self.caller, table), *conditions]
        return (
            " AND ".join(f"({condition.sql})" for condition in every),
            tuple(value for condition in every for value in condition.parameters),
        )

    # --- writing ---

    def create(self, table: Table, values: Mapping[str, object]) -> Row:
        """Add a row for the caller. Raises 403, 404 for a lookup to no row, or the response to a duplicate."""
        require(self.caller, "Create", table)
        self._check_values(table, values)
        if values.get("ownerid") not in (None, self.caller.user_id):
            self._check_new_owner(table, str(values["ownerid"]))
        given = {**values, **_state(table, {}, values)}
        rules = self._rules(table)
        row = self.add(table, {**given, **rules.on_create(self, given)})
        rules.after(self, row, row)
        target = self.entity(table, row[table.key], values)
        self.fire(MessageExecution("Create", table.name, row[table.key], [("Target", target)]))
        return row

    def add(self, table: Table, values: Mapping[str, object]) -> Row:
        """Add a row as part of an operation whose privileges were checked already."""
        full = {**self._stamps(table), **{k: v for k, v in values.items() if v is not None}}
        full[table.key] = full.get(table.key) or self.organization.new_id()
        if table.owned:
            full |= self._ownership(str(full["ownerid"]))
        try:
            return self.transaction.insert(table, full)
        except DuplicateKey as error:
            raise self.organization.duplicate_response.error(table) from error

    def update(
        self, table: Table, record_id: str, values: Mapping[str, object], if_match: str | None = None
    ) -> None:
        """Change columns of a row. Raises 403, 404, 412 if `if_match` is not the row's etag."""
        row = self.find(table, record_id)
        check_access(self.caller, table, "Write", row)
        check_version(table, row, if_match)
        self._check_values(table, values)
        owner = values.get("ownerid")
        if "ownerid" in values:
            self._check_assign(table, row, owner)
        given = {**values, **_state(table, row, values)}
        rules = self._rules(table)
        entailed = rules.on_update(self, row, given)
        self.change(table, record_id, {**given, **entailed})
        rules.after(self, self.find(table, record_id), given)
        if owner is not None and owner != row["ownerid"]:
            inputs = [
                ("Target", Reference(table.name, record_id)),
                ("Assignee", Reference(self._owner(str(owner))[0].name, str(owner))),
            ]
            self.fire(MessageExecution("Assign", table.name, record_id, inputs))

    def change(self, table: Table, record_id: str, values: Mapping[str, object]) -> None:
        """Change a row as part of an operation whose privileges were checked already; fire the events."""
        stamped = {**values, "modifiedon": self.now, "modifiedby": self.caller.user_id}
        if table.owned and values.get("ownerid"):
            stamped |= self._ownership(str(values["ownerid"]))
        known = {name: value for name, value in stamped.items() if name in table.columns}
        self.transaction.update(table, record_id, known)
        if "statecode" in values:
            self._fire_set_state(table, record_id, values)
        target = self.entity(table, record_id, values)
        self.fire(MessageExecution("Update", table.name, record_id, [("Target", target)]))

    def delete(self, table: Table, record_id: str, if_match: str | None = None) -> None:
        """Delete a row and the rows that belong to it. Raises 403, 404, 412, and 400 if other rows need it."""
        row = self.find(table, record_id)
        check_access(self.caller, table, "Delete", row)
        check_version(table, row, if_match)
        self._remove(table, row)
        self._rules(table).after(self, row, {})
        self.fire(
            MessageExecution("Delete", table.name, record_id, [("Target", Reference(table.name, record_id))]),
        )

    def _remove(self, table: Table, row: Row) -> None:
        for reference in REFERENCES[table.name]:
            column, referring = reference.lookup, reference.table
            assert column.lookup is not None  # noqa: S101 - REFERENCES holds lookups only
            for other in self.transaction.rows(referring, f't."{column.name}" = ?', (row[table.key],)):
                if column.lookup.on_delete == "restrict":
                    raise invalid_argument(
                        f"The object you tried to delete is associated with another object and cannot be "
                        f"deleted ({referring.name}).",
                        "0x80040227",
                    )
                if column.lookup.on_delete == "cascade":
                    self._remove(referring, other)
                else:
                    self.transaction.update(referring, other[referring.key], {column.name: None})
        self.transaction.delete(table, row)

    # --- owners ---

    def _owner(self, owner_id: str) -> tuple[Table, Row]:
        # Every owned table has the same targets for its owner.
        found = self.target(TABLES["invoice"].columns["ownerid"], owner_id)
        if found is None:
            raise no_record("systemuser", owner_id)
        return found

    def _ownership(self, owner_id: str) -> dict[str, object]:
        table, owner = self._owner(owner_id)
        is_team = table.name == "team"
        return {
            "owningbusinessunit": owner["businessunitid"],
            "owninguser": None if is_team else owner_id,
            "owningteam": owner_id if is_team else None,
        }

    def _check_assign(self, table: Table, row: Row, owner: object) -> None:
        """Refuse a missing owner, a row that the caller may not assign, and an owner that cannot own the row.

        Depths refer to the row's present owner. Which privileges are required besides Assign is not confirmed.
        """
        if owner is None:
            raise bad_payload(table.name, "The property 'ownerid' cannot be null.")
        check_access(self.caller, table, "Assign", row)
        check_access(self.caller, table, "Read", row)
        self._check_new_owner(table, str(owner))

    def _check_new_owner(self, table: Table, owner_id: str) -> None:
        """Refuse (403) an owner that the caller may not read, or that may not own such rows.

        The codes for users that are disabled or have no roles are not confirmed.
        """
        if self.caller.is_platform:
            return
        owner_table, owner = self._owner(owner_id)
        check_access(self.caller, owner_table, "Read", owner)
        if owner_table.name == "team":
            principal = load_team(self.transaction, owner)
            if owner["teamtype"] == _ACCESS_TEAM:
                raise invalid_argument("Cannot assign records to an access team.")
        else:
            principal = load_caller(self.transaction, owner)
            if owner["isdisabled"]:
                raise user_disabled(owner_id)
            if not principal.roles:
                text = f"The user (Id={owner_id}) has not been assigned any roles."
                raise RequestRefused(HTTPStatus.FORBIDDEN, "0x80042f09", text)
        if principal.depth(f"prvRead{table.privilege}") is None:
            raise RequestRefused(
                HTTPStatus.FORBIDDEN,
                "0x80040299",
                f"Read Privilege Check For Owner failed. Principal (Id={owner_id}, name={principal.name}) is missing "
                f"prvRead{table.privilege} privilege for entity '{table.name}'.",
            )

    # --- users and roles ---

    def associate(self, table: Table, record_id: str, other: Table, other_id: str) -> None:
        """Give a user a role, from either side; idempotent. Raises 403, 404."""
        pair = {table.key: record_id, other.key: other_id}
        if not self._assignments(pair):
            self.add(TABLES["systemuserroles"], pair)

    def disassociate(self, table: Table, record_id: str, other: Table, other_id: str) -> None:
        """Take a role from a user. Raises 403, 404."""
        for row in self._assignments({table.key: record_id, other.key: other_id}):
            self.transaction.delete(TABLES["systemuserroles"], row)

    def _assignments(self, pair: Mapping[str, str]) -> list[Row]:
        """Return the rows that give a user a role. Raises 403, 404."""
        for name, verb in (("systemuser", "Write"), ("role", "Read")):
            table = TABLES[name]
            check_access(self.caller, table, verb, self.find(table, pair[table.key]))
        return self.transaction.rows(
            TABLES["systemuserroles"],
            "t.systemuserid = ? AND t.roleid = ?",
            (pair["systemuserid"], pair["roleid"]),
        )

    # --- events ---

    def fire(self, event: MessageExecution) -> None:
        """Run the steps that are registered for a message."""
        placed = replace(event, parent=self.parents[-1] if self.parents else None)
        self.organization.pipeline.fire(self.transaction, placed, self.request_context)

    @property
    def request_context(self) -> RequestContext:
        """The organization, the caller and the request, for the events."""
        return RequestContext(self.organization.id, self.organization.unique_name, self.caller, self.request)

    def entity(self, table: Table, record_id: str, values: Mapping[str, object]) -> Entity:
        """Return a row as a parameter of a message; a lookup to several tables names its table."""
        shown: dict[str, object] = {**values, table.key: record_id}
        for name, value in values.items():
            lookup = table.columns[name].lookup
            found = (
                self.target(table.columns[name], str(value)) if lookup and len(lookup.targets) > 1 else None
            )
            if found is not None:
                shown[name] = Reference(found[0].name, str(value))
        return Entity(table, record_id, shown)

    def _fire_set_state(self, table: Table, record_id: str, values: Mapping[str, object]) -> None:
        inputs: list[tuple[str, object]] = [
            ("EntityMoniker", Reference(table.name, record_id)),
            ("State", OptionSet(int(str(values["statecode"])))),
            ("Status", OptionSet(int(str(values.get("statuscode", -1))))),
        ]
        for message in ("SetState", "SetStateDynamicEntity"):
            self.fire(MessageExecution(message, table.name, record_id, inputs))

    # --- checks ---

    def _stamps(self, table: Table) -> dict[str, object]:
        stamps: dict[str, object] = {}
        if "createdon" in table.columns:
            stamps |= {"createdon": self.now, "modifiedon": self.now}
            stamps |= {"createdby": self.caller.user_id, "modifiedby": self.caller.user_id}
        if table.owned:
            stamps["ownerid"] = self.caller.user_id
        return stamps

    def _rules(self, table: Table) -> TableRules:
        return self.rules.get(table.name, _NO_RULES)

    def _check_values(self, table: Table, values: Mapping[str, object]) -> None:
        """Refuse numbers that a choice lacks, duplicates in a unique column, and lookups.

        A lookup must lead to a row that exists; between owned rows it requires Append and AppendTo.
        """
        for name, value in values.items():
            column = table.columns[name]
            if value is None:
                continue
            if column.labels and value not in column.labels and name != "statuscode":
                raise bad_payload(
                    table.name,
                    f"A validation error occurred. The value {value} of '{name}' on record of type '{table.name}' "
                    "is outside the valid range.",
                )
            if column.unique:
                same = self.transaction.rows(table, f't."{name}" = ?', (value,))
                if any(row[table.key] != values.get(table.key) for row in same):
                    raise DuplicateResponse.DUPLICATE_412.error(table)
            if column.lookup:
                found = self.target(column, str(value))
                if found is None:
                    raise no_record(next(iter(column.lookup.targets)), str(value))
                self._check_append(table, *found)

    def _check_append(self, table: Table, target: Table, row: Row) -> None:
        if table.owned and target.owned:
            require(self.caller, "Append", table)
            check_access(self.caller, target, "AppendTo", row)


def check_version(table: Table, row: Row, if_match: str | None) -> None:
    """Refuse (412) an etag that is neither the row's nor `*`; None is accepted."""
    if if_match not in (None, "*", etag(row)):
        text = f"The version of the existing record doesn't match the RowVersion property provided ({table.name})."
        raise RequestRefused(HTTPStatus.PRECONDITION_FAILED, "0x80060882", text)


def etag(row: Row) -> str:
    """Return a row's etag."""
    return f'W/"{row["versionnumber"]}"'


def _state(table: Table, row: Row, values: Mapping[str, object]) -> dict[str, object]:
    """Return state and status reason after a change. Raises 400 if they do not match."""
    if "statuscode" not in table.columns or not values.keys() & {"statecode", "statuscode"}:
        return {}
    states = table.columns["statuscode"].states
    state = values.get("statecode", row.get("statecode", table.columns["statecode"].default))
    reason = values.get("statuscode")
    if reason in (None, -1):
        reason = next((number for number, of in states.items() if of == state), None)
    if not isinstance(reason, int) or states.get(reason) != state:
        raise invalid_argument(
            f"{reason} is not a valid status code for state code {state} on {table.name}.", "0x80048408"
        )
    return {"statecode": state, "statuscode": reason} if "statecode" in values else {"statuscode": reason}
