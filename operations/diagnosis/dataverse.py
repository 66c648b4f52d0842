"""The checks in Dataverse: environment, Sales, application user, privileges, service endpoint, step, system jobs."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING

from operations import dataverse_setup as setup
from operations.diagnosis.check import CheckFailed, Inconclusive, RightMissing, check, found, judged, ok
from operations.diagnosis.connections import dataverse_connection, dataverse_token, settings
from operations.diagnosis.findings import Finding
from operations.environment import namespace_address
from operations.privileges import OPTIONAL_PRIVILEGES, lacking, needed_privileges, privilege_in, privileges_of
from operations.system_jobs import job_message
from shared.columns import Columns, attributes_of_invoice
from shared.dataverse import Read
from shared.errors import (
    DataverseForbidden,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoicingFailure,
    TokenUnavailable,
)
from shared.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from operations.dataverse_setup import Win
    from operations.diagnosis.check import Checked, Run
    from operations.web_api import Row, WebApi

# Codes of 403 for an identity without an application user, and with a deactivated one.
_USER_PROBLEMS = {
    "0x80072560": Finding.APPLICATION_USER_MISSING,
    "0x80040225": Finding.APPLICATION_USER_DISABLED,
}
# What the function reads; whether the response is a refusal is all that counts here.
_READS = (
    "opportunities?$select=opportunityid&$top=1",
    "opportunitycloses?$select=activityid&$top=1",
    "invoices?$select=invoiceid&$top=1",
    "salesorders?$select=salesorderid&$top=1",
    "annotations?$select=annotationid&$top=1",
    "transactioncurrencies?$select=transactioncurrencyid&$top=1",
)
# As shared.response writes it.
_RESPONDED = re.compile(r"Dataverse responded \d{3} (0x[0-9a-fA-F]{8}):")
_REFUSALS: dict[int, Finding] = {
    HTTPStatus.UNAUTHORIZED: Finding.DATAVERSE_UNAUTHORIZED,
    HTTPStatus.TOO_MANY_REQUESTS: Finding.DATAVERSE_THROTTLED,
}
# What it means where the service endpoint has another value than `connect` writes.
_ENDPOINT_FINDINGS = {
    "namespaceaddress": Finding.ENDPOINT_OTHER_NAMESPACE,
    "path": Finding.ENDPOINT_OTHER_QUEUE,
    "contract": Finding.ENDPOINT_NOT_A_QUEUE,
    "messageformat": Finding.ENDPOINT_NOT_JSON,
    "authtype": Finding.ENDPOINT_WITHOUT_KEY,
}
_SUSPENDED = 1
# What `azurestate` says of an identity that is not usable.
_GONE = {1: "soft deleted", 2: "not found"}
_FAILURES_OF = timedelta(days=7)
_MAX_JOBS = 100
_SOME_ROLE = "a role that may read this"


@contextmanager
def _asking(run: Run) -> Iterator[WebApi]:
    """Ask Dataverse within the check's deadline; errors become what they mean for a check."""
    try:
        yield run[settings].api.until(run.deadline)
    except DataverseForbidden as error:
        privilege = privilege_in(str(error))
        raise RightMissing(
            "Dataverse refuses to say" if privilege else str(error), privilege or _SOME_ROLE
        ) from error
    except DataverseThrottled as error:
        raise CheckFailed(Finding.DATAVERSE_THROTTLED, str(error)) from error
    except (DataverseUnavailable, DataverseUnreachable) as error:
        raise CheckFailed(Finding.DATAVERSE_UNAVAILABLE, str(error)) from error
    except TokenUnavailable as error:
        raise CheckFailed(Finding.TOKEN_UNAVAILABLE, str(error)) from error
    except InvoicingFailure as error:
        raise CheckFailed(Finding.DATAVERSE_REFUSED_A_QUESTION, str(error)) from error


@check("Dataverse", settings, dataverse_token, dataverse_connection)
def dataverse(run: Run) -> Checked[Row]:
    """Ask Dataverse who the login is."""
    with _asking(run) as api:
        response = api.get("WhoAmI")
    try:
        who = response.json()
    except InvoicingFailure as error:
        raise _refusal(response.status, error, is_function=run[dataverse_token].is_function) from error
    if not {"UserId", "OrganizationId"} <= who.keys():
        raise CheckFailed(Finding.NOT_A_WEB_API, "the response to WhoAmI is something else")
    return ok(f"{api.url} responds to user {who['UserId']}", who)


def _refusal(status: int, error: InvoicingFailure, *, is_function: bool) -> Inconclusive:
    """Return what stands between the login and Dataverse."""
    seen = f"WhoAmI: {error}"
    if status == HTTPStatus.FORBIDDEN:
        if not is_function:
            return RightMissing(seen, "your login as a user of this Dataverse environment")
        return CheckFailed(_USER_PROBLEMS.get(error_code(error), Finding.DATAVERSE_FORBIDDEN), seen)
    is_down = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    other = Finding.DATAVERSE_UNAVAILABLE if is_down else Finding.NOT_A_WEB_API
    return CheckFailed(_REFUSALS.get(status, other), seen)


def error_code(error: InvoicingFailure) -> str:
    """Return Dataverse's code of an error, "" where it has none; the text behind it may quote other codes."""
    responded = _RESPONDED.match(str(error))
    return responded[1] if responded else ""


@check("environment", settings, dataverse)
def environment(run: Run) -> Checked[None]:
    """Compare the environment with the one that is meant."""
    actual = str(run[dataverse]["OrganizationId"]).lower()
    wanted = run[settings].dataverse.organization_id
    if wanted is None:
        return found(Finding.ORGANIZATION_ID_NOT_SET, f"WhoAmI: DATAVERSE_ORGANIZATION_ID={actual}")
    if actual != wanted:
        raise CheckFailed(Finding.OTHER_ENVIRONMENT, f"WhoAmI: {actual}; DATAVERSE_ORGANIZATION_ID: {wanted}")
    return ok(actual)


@check("Sales", settings, dataverse, environment)
def sales(run: Run) -> Checked[Win]:
    """Check that there is something to win and to invoice."""
    run[dataverse]  # a login that Dataverse refuses ends here
    with _asking(run) as api:
        win, absent = setup.find_win(api)
        if win is None:
            raise CheckFailed(Finding.SALES_MISSING, f"no message {' and no '.join(sorted(absent))}")
        return ok("Win and GenerateInvoiceFromOpportunity exist", win)


@check("columns", settings, dataverse, sales)
def columns(run: Run) -> Checked[None]:
    """Check the further columns that the event is to contain."""
    names = run[settings].dataverse.invoice_columns
    if not names:
        return ok("INVOICE_COLUMNS lists none")
    with _asking(run) as api:
        rows = api.rows(attributes_of_invoice(names).path)
        described = Columns.of(names, [Record(row, "") for row in rows])
    if described.errors:
        seen = "; ".join(f"{name}: {error}" for name, error in described.errors.items())
        raise CheckFailed(Finding.COLUMNS_UNKNOWN, seen)
    return ok(f"{len(names)} exist")


@dataclass(frozen=True)
class ApplicationUser:
    """The function's user. `object_id`: of its identity, where Dataverse says it."""

    user_id: str
    object_id: str | None


@check("application user", settings, dataverse_token, dataverse, environment)
def application_user(run: Run) -> Checked[ApplicationUser]:
    """Check the user as which the function logs in."""
    who, login = run[dataverse], run[dataverse_token]
    if login.is_function:
        # Dataverse has just responded to this user, which is more than any column says.
        return ok(f"{who['UserId']}: it is this login", ApplicationUser(str(who["UserId"]), None))
    client_id = login.function_client_id
    if client_id is None:
        raise RightMissing("the settings do not say which identity is the function's", "AZURE_CLIENT_ID")
    with _asking(run) as api:
        user = setup.find_application_user(api, client_id)
    if user is None:
        raise CheckFailed(Finding.APPLICATION_USER_MISSING, f"no user with the client id {client_id}")
    name = f"{user.get('fullname')} ({user['systemuserid']})"
    gone = _GONE.get(user.get("azurestate") or 0)
    findings = [
        (Finding.APPLICATION_USER_DISABLED, name if user.get("isdisabled") else ""),
        (Finding.APPLICATION_USER_GONE, f"{name}: {gone} in Entra ID" if gone else ""),
    ]
    object_id = user.get("azureactivedirectoryobjectid")
    return judged(findings, name, ApplicationUser(str(user["systemuserid"]), object_id and str(object_id)))


@check("privileges", settings, dataverse_token, sales, application_user)
def privileges(run: Run) -> Checked[None]:
    """Check each privilege of the function and its depth."""
    user, needed = run[application_user].user_id, needed_privileges(run[settings].environment)
    with _asking(run) as api:
        try:
            granted = privileges_of(api, user, sorted(needed))
        except DataverseForbidden as error:
            if not run[dataverse_token].is_function:
                raise
            _try_reads(api)
            raise RightMissing(
                "its reads were tried and are allowed; their depth, and the other privileges, are not known",
                privilege_in(str(error)) or _SOME_ROLE,
            ) from error
    lacks = lacking(needed, granted)
    optional = sorted(lacks.keys() & OPTIONAL_PRIVILEGES)
    missing = sorted(lacks.keys() - granted.keys() - OPTIONAL_PRIVILEGES)
    shallow = sorted(lacks.keys() & granted.keys() - OPTIONAL_PRIVILEGES)
    depths = (f"{name}: {granted[name]}, needed: {needed[name]}" for name in shallow)
    findings = [
        (Finding.PRIVILEGE_MISSING, ", ".join(missing)),
        (Finding.PRIVILEGE_TOO_SHALLOW, ", ".join(depths)),
        (Finding.OPTIONAL_PRIVILEGE_MISSING, ", ".join(optional)),
    ]
    return judged(findings, f"{len(needed)} at their depth")


def _try_reads(api: WebApi) -> None:
    """Read as the function does, where nothing else says what it may; raises CheckFailed."""
    refused = []
    for response in api.batch([Read(path) for path in _READS]):
        try:
            response.raise_for_status()
        except DataverseForbidden as error:
            refused.append(privilege_in(str(error)) or str(error))
    if refused:
        raise CheckFailed(Finding.PRIVILEGE_MISSING, ", ".join(refused))


@check("service endpoint", settings, dataverse, environment)
def service_endpoint(run: Run) -> Checked[Row]:
    """Check where Dataverse posts to, and how."""
    run[dataverse]  # a login that Dataverse refuses ends here
    queue = run[settings].service_bus.opportunity_won_queue
    with _asking(run) as api:
        endpoint = setup.find_service_endpoint(api) or setup.find_service_endpoint_of(api, queue)
    if endpoint is None:
        raise CheckFailed(Finding.ENDPOINT_MISSING, f"no service endpoint of ours, and none for {queue}")
    wanted = setup.endpoint_values(namespace_address(run[settings].service_bus), queue)
    findings = [
        (finding, f"{name} {endpoint.get(name)}, needed: {wanted[name]}")
        for name, finding in _ENDPOINT_FINDINGS.items()
        if not setup.is_as_wanted(name, wanted[name], endpoint)
    ]
    if endpoint.get("contract") == setup.OLD_CONTRACT_QUEUE:
        findings.append((Finding.ENDPOINT_OLD_CONTRACT, f"contract {setup.OLD_CONTRACT_QUEUE}"))
    if not endpoint.get("issaskeyset") and Finding.ENDPOINT_WITHOUT_KEY not in dict(findings):
        findings.append((Finding.ENDPOINT_WITHOUT_KEY, "no key is set"))
    return judged(findings, f"{endpoint['name']}: JSON to {endpoint['path']}", endpoint)


@check("step", settings, sales, service_endpoint)
def step(run: Run) -> Checked[Row]:
    """Check what makes Dataverse post when an opportunity is won."""
    endpoint, win = run[service_endpoint], run[sales]
    with _asking(run) as api:
        row = _find_step(api, str(endpoint["serviceendpointid"]), win)
    name = str(row["name"])
    findings = [
        (Finding.STEP_DISABLED, name if row["statecode"] != setup.ENABLED["statecode"] else ""),
        (Finding.STEP_SYNCHRONOUS, name if row["mode"] != setup.STEP_KIND["mode"] else ""),
    ]
    return judged(findings, f"{name}: enabled, asynchronous", row)


def _find_step(api: WebApi, endpoint: str, win: Win) -> Row:
    posting = list(setup.find_steps_of(api, endpoint))
    on_win = [
        row
        for row in posting
        if row["_sdkmessageid_value"] == win.message_id and row["_sdkmessagefilterid_value"] in win.filter_ids
    ]
    if on_win:
        # If there are several, one that works is enough.
        return min(on_win, key=lambda row: (row["statecode"], -row["mode"]))
    if posting:
        raise CheckFailed(Finding.STEP_OTHER_MESSAGE, ", ".join(str(row["name"]) for row in posting))
    ours = setup.find_step(api)
    if ours is not None:
        raise CheckFailed(Finding.STEP_OTHER_ENDPOINT, f"{ours['name']}: {ours['_eventhandler_value']}")
    raise CheckFailed(Finding.STEP_MISSING, "no step posts to the service endpoint")


@check("system jobs", settings, step)
def system_jobs(run: Run) -> Checked[None]:
    """Check the posts that did not succeed at once."""
    step_id = run[step]["sdkmessageprocessingstepid"]
    since = (datetime.now(UTC) - _FAILURES_OF).strftime("%Y-%m-%dT%H:%M:%SZ")
    with _asking(run) as api:
        query = (
            "asyncoperations?$select=statecode,message,friendlymessage,retrycount"
            f"&$filter=_owningextensionid_value eq {step_id} and (statecode eq 1 or "
            f"(statuscode eq 31 and modifiedon ge {since}))&$orderby=createdon desc"
        )
        rows = list(islice(api.rows(query), _MAX_JOBS))
    findings = [
        (Finding.JOBS_RETRYING, _seen([row for row in rows if row["statecode"] == _SUSPENDED])),
        (Finding.JOBS_FAILED, _seen([row for row in rows if row["statecode"] != _SUSPENDED])),
    ]
    return judged(findings, "none is retried, none has failed in the last 7 days")


def _seen(jobs: Sequence[Row]) -> str:
    """Return how many jobs there are, and what the last one says."""
    more = " or more" if len(jobs) == _MAX_JOBS else ""
    return f"{len(jobs)}{more}, the last: {job_message(jobs[0])}" if jobs else ""
