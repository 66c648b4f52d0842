"""What `connect` writes into Dataverse and `doctor` verifies: names, values and queries, each once.

Names and numbers come from Microsoft's documentation and from public tools; what is not confirmed says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from operations.web_api import Row, WebApi, derived_id, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROLE_NAME: Final = "Opportunity Invoicing"
ENDPOINT_NAME: Final = "Opportunity Invoicing queue"
STEP_NAME: Final = "Post won opportunities to the invoicing queue"

# 6 is a persistent queue; some tools write 2. Not confirmed which of the two every environment accepts, or shows.
_CONTRACT_QUEUE: Final = 6
OLD_CONTRACT_QUEUE: Final = 2
_ENDPOINT: Final[Mapping[str, int]] = {
    "contract": _CONTRACT_QUEUE,
    "connectionmode": 1,
    "authtype": 2,  # a SAS key
    "namespaceformat": 2,  # the address of a namespace
    "messageformat": 2,  # JSON
    "userclaim": 1,  # none
}
_ENDPOINT_COLUMNS = ",".join(
    (*_ENDPOINT, "serviceendpointid,name,path,saskeyname,issaskeyset,namespaceaddress,solutionnamespace")
)
# After the operation, asynchronous: a system job that Dataverse repeats, and that cannot make the win fail.
STEP_KIND: Final[Mapping[str, int]] = {"mode": 1, "stage": 40}
ENABLED: Final[Mapping[str, int]] = {"statecode": 0, "statuscode": 1}


@dataclass(frozen=True)
class Win:
    """The message that winning an opportunity sends: its id, and the ids of its filters for opportunities."""

    message_id: str
    filter_ids: tuple[str, ...]


def find_win(api: WebApi) -> tuple[Win | None, frozenset[str]]:
    """Return the message Win, and the names of the messages of Sales that the environment lacks."""
    messages = {
        str(row["name"]): row
        for row in api.rows(
            "sdkmessages?$select=sdkmessageid,name"
            "&$filter=name eq 'Win' or name eq 'GenerateInvoiceFromOpportunity'"
            "&$expand=sdkmessageid_sdkmessagefilter($select=sdkmessagefilterid,primaryobjecttypecode;"
            "$filter=primaryobjecttypecode eq 'opportunity')"
        )
    }
    absent = frozenset({"Win", "GenerateInvoiceFromOpportunity"} - messages.keys())
    if absent:
        return None, absent
    win = messages["Win"]
    filters = tuple(str(row["sdkmessagefilterid"]) for row in win["sdkmessageid_sdkmessagefilter"])
    return Win(str(win["sdkmessageid"]), filters), absent


def find_root_business_unit(api: WebApi) -> str | None:
    """Return the id of the root business unit, if the login sees it."""
    unit = api.first("businessunits?$select=name,businessunitid&$filter=_parentbusinessunitid_value eq null")
    return str(unit["businessunitid"]) if unit else None


def find_application_user(api: WebApi, application_id: str) -> Row | None:
    """Return the application user of a client id."""
    return api.first(
        "systemusers?$select=systemuserid,fullname,applicationid,azureactivedirectoryobjectid,isdisabled,azurestate"
        f"&$filter=applicationid eq {application_id}"
    )


def find_role(api: WebApi, unit: str) -> str | None:
    """Return the id of our role in the root business unit."""
    role = api.first(
        f"roles?$select=roleid,name&$filter=name eq {quoted(ROLE_NAME)} and _businessunitid_value eq {unit}"
    )
    return str(role["roleid"]) if role else None


def find_service_endpoint(api: WebApi) -> Row | None:
    """Return our service endpoint: by its id, or by its name where somebody created it by hand."""
    return _find(api, "serviceendpoint", ENDPOINT_NAME, _ENDPOINT_COLUMNS)


def find_service_endpoint_of(api: WebApi, queue: str) -> Row | None:
    """Return a service endpoint for this queue that somebody created by hand, under another name."""
    return api.first(f"serviceendpoints?$select={_ENDPOINT_COLUMNS}&$filter=path eq {quoted(queue)}")


def find_step(api: WebApi) -> Row | None:
    """Return our step: by its id, or by its name where somebody created it by hand."""
    columns = "sdkmessageprocessingstepid,name,mode,stage,statecode,_eventhandler_value,_sdkmessageid_value"
    return _find(api, "sdkmessageprocessingstep", STEP_NAME, columns)


def _find(api: WebApi, table: str, name: str, columns: str) -> Row | None:
    by_id = api.row_or_none(f"{table}s({derived_id(table, name)})?$select={columns}")
    return by_id or api.first(f"{table}s?$select={columns}&$filter=name eq {quoted(name)}")


def find_steps_of(api: WebApi, endpoint: str) -> Iterator[Row]:
    """Yield the steps that post to a service endpoint."""
    return api.rows(
        f"serviceendpoints({endpoint})/serviceendpoint_sdkmessageprocessingstep"
        "?$select=sdkmessageprocessingstepid,name,mode,statecode,_sdkmessageid_value,_sdkmessagefilterid_value"
    )


def endpoint_values(namespace_address: str, queue: str) -> Row:
    """Return how the service endpoint should be, without the key and its name."""
    return {
        **_ENDPOINT,
        "namespaceaddress": namespace_address,
        "solutionnamespace": namespace_address.removeprefix("sb://").partition("/")[0].partition(".")[0],
        "path": queue,
    }


def is_as_wanted(name: str, value: object, endpoint: Row) -> bool:
    """Return whether a value of a service endpoint need not be set."""
    found = endpoint.get(name)
    if name in ("namespaceaddress", "path"):
        # Dataverse may change case and slash.
        return str(found or "").strip().rstrip("/").lower() == str(value).rstrip("/").lower()
    if name == "contract":
        return found in (_CONTRACT_QUEUE, OLD_CONTRACT_QUEUE)
    return bool(found == value)
