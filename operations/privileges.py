"""What the function must be allowed to do in Dataverse, how far it must reach, and what somebody is allowed to do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from shared.invoice import InvoiceOwner
from shared.settings import dataverse_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from operations.web_api import Row, WebApi

# What is read, or appended to, is other people's: organization depth, since with less their rows are simply missing.
# What is created is the application user's own, and its own depth is enough; that is not confirmed for every
# customised environment, and a refusal names the privilege that is missing.
PRIVILEGES: dict[str, str] = {
    "prvCreateInvoice": "Basic",
    "prvReadInvoice": "Global",
    "prvAppendInvoice": "Basic",
    "prvAppendToInvoice": "Basic",
    "prvReadOpportunity": "Global",
    "prvAppendToOpportunity": "Global",
    "prvAppendToAccount": "Global",
    "prvAppendToContact": "Global",
    "prvReadEntityMap": "Global",
    "prvReadAttributeMap": "Global",
    "prvReadTransactionCurrency": "Global",
    "prvReadSalesOrder": "Global",
    "prvReadActivity": "Global",
    "prvReadAccount": "Global",
    "prvReadContact": "Global",
    "prvReadProduct": "Global",
    "prvCreateNote": "Basic",
    "prvReadNote": "Global",
    "prvAppendNote": "Basic",
}
# To assign the invoice to the owner of the opportunity: the invoice is the application user's own until then.
ASSIGNMENT_PRIVILEGES: dict[str, str] = {
    "prvAssignInvoice": "Basic",
    "prvWriteInvoice": "Basic",
    "prvReadUser": "Global",
    "prvReadTeam": "Global",
}
# To read the types of the columns that INVOICE_COLUMNS lists. That Dataverse asks for them is reported, not documented:
# without them, the event would wait for the columns.
COLUMN_PRIVILEGES: dict[str, str] = {
    "prvReadEntity": "Global",
    "prvReadAttribute": "Global",
}
# Only older lists name these two: an environment without them is none to worry about.
OPTIONAL_PRIVILEGES = frozenset({"prvReadEntityMap", "prvReadAttributeMap"})

# From the least to the widest; the Web API takes and gives these words.
DEPTHS = ("Basic", "Local", "Deep", "Global")
# More names in one call are refused.
_PRIVILEGES_AT_ONCE = 40


def needed_privileges(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the privileges that the function needs with these app settings; raises InvalidSettings."""
    settings = dataverse_settings(environment)
    is_assigned = settings.invoice_owner is InvoiceOwner.OPPORTUNITY
    return (
        PRIVILEGES
        | (ASSIGNMENT_PRIVILEGES if is_assigned else {})
        | (COLUMN_PRIVILEGES if settings.invoice_columns else {})
    )


def lacking(wanted: Mapping[str, str], granted: Mapping[str, str]) -> dict[str, str]:
    """Return the wanted privileges with their depths that are not granted, or at a lower depth."""
    return {name: depth for name, depth in wanted.items() if _reach(granted.get(name)) < _reach(depth)}


def privilege_ids(api: WebApi) -> dict[str, str]:
    """Return the ids of the privileges that the function needs: they differ per environment."""
    known = (*PRIVILEGES, *ASSIGNMENT_PRIVILEGES, *COLUMN_PRIVILEGES)
    names = " or ".join(f"name eq '{name}'" for name in known)
    return {
        row["name"]: row["privilegeid"]
        for row in api.rows(f"privileges?$select=privilegeid,name&$filter={names}")
    }


def privileges_of(api: WebApi, user: str, names: Sequence[str]) -> dict[str, str]:
    """Return the deepest depth of each of these privileges that a user has, through any role or team."""
    rows: list[Row] = []
    for start in range(0, len(names), _PRIVILEGES_AT_ONCE):
        some = json.dumps(names[start : start + _PRIVILEGES_AT_ONCE])
        response = api.row(
            f"systemusers({user})/Microsoft.Dynamics.CRM.RetrieveUserSetOfPrivilegesByNames(PrivilegeNames=@p1)"
            f"?@p1={some}"
        )
        rows += response["RolePrivileges"]
    by_id: Mapping[str, str] = {}
    if not all(row.get("PrivilegeName") for row in rows):
        # Not every version of the service gives names.
        by_id = {privilege: name for name, privilege in privilege_ids(api).items()}
    granted: dict[str, str] = {}
    for row in rows:
        name, depth = str(row.get("PrivilegeName") or by_id.get(row["PrivilegeId"])), str(row["Depth"])
        granted[name] = max(granted.get(name, depth), depth, key=_reach)
    return granted


def privilege_in(text: str) -> str:
    """Return the privilege that a refusal names, or nothing; it is only shown, and nothing depends on it."""
    named = re.search(r"\bprv\w+", text)
    return named[0] if named else ""


def _reach(depth: str | None) -> int:
    return DEPTHS.index(depth) if depth in DEPTHS else -1
