"""The rules of the platform's tables: columns that derive from others."""

from collections.abc import Mapping
from typing import Final

from sandbox.dataverse.columns import Row
from sandbox.dataverse.service import Session, TableRules


class _ServiceEndpointRules(TableRules):
    """A service endpoint shows whether it has a key, but never the key."""

    def on_create(self, session: Session, values: Row) -> Row:  # noqa: ARG002 - of all rules
        return {"issaskeyset": bool(values["saskey"])} if "saskey" in values else {}

    def on_update(self, session: Session, row: Row, values: Row) -> Row:  # noqa: ARG002
        return self.on_create(session, values)


class _SystemUserRules(TableRules):
    """An application user gets made-up names: in Dataverse they come from the directory, which is not emulated."""

    def on_create(self, session: Session, values: Row) -> Row:  # noqa: ARG002
        if not values.get("applicationid"):
            return {}
        return {
            "fullname": values.get("fullname") or f"# {str(values['applicationid'])[:8]}",
            "accessmode": values.get("accessmode", 4),
        }


RULES: Final[Mapping[str, TableRules]] = {
    "serviceendpoint": _ServiceEndpointRules(),
    "systemuser": _SystemUserRules(),
}
