"""The links in Dataverse: environment, Sales, application user, privileges, service endpoint, step, system jobs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import requests

from operations.connect import (
    CONTRACT_QUEUE,
    OLD_CONTRACT_QUEUE,
    bare,
    find_application_user,
    find_service_endpoint,
    find_step,
)
from operations.diagnosis.findings import CannotSee, Finding, Found, Result, found, ok
from operations.privileges import OPTIONAL_PRIVILEGES, PRIVILEGES, lacking, privileges_of
from operations.web_api import quoted
from shared.dataverse import Read
from shared.errors import (
    DataverseForbidden,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoicingFailure,
    TokenUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from operations.diagnosis.identity import Identity
    from operations.web_api import Row, WebApi
    from shared.clock import Clock, Deadline
    from shared.response import Response

_NOT_A_MEMBER = "0x80072560"
_USER_DISABLED = "0x80040225"
# What the function reads; the rows of an answer tell nothing here, whether there is one does.
_READS = (
    "opportunities?$select=opportunityid&$top=1",
    "invoices?$select=invoiceid&$top=1",
    "salesorders?$select=salesorderid&$top=1",
    "annotations?$select=annotationid&$top=1",
    "transactioncurrencies?$select=transactioncurrencyid&$top=1",
)
_SAS_KEY = 2
_JSON = 2
_ASYNCHRONOUS = 1
_ENABLED = 0
_SUSPENDED = 1
_AZURE_STATES = {1: "soft deleted", 2: "not found"}
_FAILURES_OF = timedelta(days=7)
_MOST_JOBS = 100
_SOME_ROLE = "a role that may read this"
_SECRETS = re.compile(r"(sig|SharedAccessKey|SharedAccessSignature)=[^&;\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """Where Dataverse should post to. `namespace`: its address as service endpoints have it, sb://host/."""

    namespace: str
    queue: str


class DataverseLinks:
    """Looks at what has to be set up in the environment, in the order of the flow: each needs what came before."""

    def __init__(
        self, api: WebApi, identity: Identity, organization_id: str | None, target: Target, clock: Clock
    ) -> None:
        self._api = api
        self._identity = identity
        self._organization_id = organization_id
        self._namespace = target.namespace
        self._queue = target.queue
        self._clock = clock
        self._who: Row | CannotSee = _not_yet()
        self._win: tuple[str, frozenset[str]] | CannotSee = _not_yet()
        self._user: Row | CannotSee = _not_yet()
        self._endpoint: Row | CannotSee = _not_yet()
        self._step: Row | CannotSee = _not_yet()

    @property
    def function_object_id(self) -> str:
        """The object id of the function's identity; raises CannotSee."""
        object_id = _seen(self._user).get("azureactivedirectoryobjectid")
        if not object_id:
            raise CannotSee(
                "Dataverse does not tell the identity's object id",
                "a look at its roles by hand, in the portal",
            )
        return str(object_id)

    def answers(self, deadline: Deadline) -> list[Result]:
        """Look whether Dataverse answers us at all."""

        def look(api: WebApi) -> list[Result]:
            answer = api.get("WhoAmI")
            self._check_access(answer)
            self._who = _web_api_row(answer)
            return ok(f"{api.url} answers user {self._who['UserId']}")

        return self._told(look, deadline)

    def _check_access(self, answer: Response) -> None:
        """Raise what stands between us and the answer to WhoAmI."""
        status = answer.status
        said = f"WhoAmI was answered with {status} {_error_of(answer)}"
        if status == requests.codes.unauthorized:
            raise Found(Finding.DATAVERSE_UNAUTHORIZED, said)
        if status == requests.codes.forbidden:
            if not self._identity.is_function_at("Dataverse"):
                unseen = CannotSee(said, "your login as a user of this Dataverse environment")
                self._who = unseen
                raise unseen
            code = _error_of(answer).partition(" ")[0]
            by_code = {
                _NOT_A_MEMBER: Finding.APPLICATION_USER_MISSING,
                _USER_DISABLED: Finding.APPLICATION_USER_DISABLED,
            }
            raise Found(by_code.get(code, Finding.DATAVERSE_FORBIDDEN), said)
        if status == requests.codes.too_many_requests:
            raise Found(Finding.DATAVERSE_THROTTLED, said)
        if status >= requests.codes.server_error:
            raise Found(Finding.DATAVERSE_UNAVAILABLE, said)
        if status != requests.codes.ok:
            raise Found(Finding.NOT_A_WEB_API, said)

    def environment(self, _: Deadline) -> list[Result]:
        """Look whether it is the environment that is meant."""
        actual = str(_seen(self._who)["OrganizationId"]).lower()
        if self._organization_id is None:
            return [found(Finding.ORGANIZATION_ID_NOT_SET, f"WhoAmI: DATAVERSE_ORGANIZATION_ID={actual}")]
        if actual != self._organization_id:
            raise Found(
                Finding.OTHER_ENVIRONMENT,
                f"WhoAmI: {actual}; DATAVERSE_ORGANIZATION_ID: {self._organization_id}",
            )
        return ok(actual)

    def sales(self, deadline: Deadline) -> list[Result]:
        """Look whether there is something to win and to invoice."""

        def look(api: WebApi) -> list[Result]:
            _seen(self._who)
            messages = {
                str(row["name"]): row
                for row in api.rows(
                    "sdkmessages?$select=sdkmessageid,name"
                    "&$filter=name eq 'Win' or name eq 'GenerateInvoiceFromOpportunity'"
                    "&$expand=sdkmessageid_sdkmessagefilter($select=sdkmessagefilterid,primaryobjecttypecode;"
                    "$filter=primaryobjecttypecode eq 'opportunity')"
                )
            }
            absent = {"Win", "GenerateInvoiceFromOpportunity"} - messages.keys()
            if absent:
                raise Found(Finding.SALES_MISSING, f"no message {' and no '.join(sorted(absent))}")
            win = messages["Win"]
            filters = {row["sdkmessagefilterid"] for row in win["sdkmessageid_sdkmessagefilter"]}
            self._win = win["sdkmessageid"], frozenset(filters)
            return ok("Win and GenerateInvoiceFromOpportunity are there")

        return self._told(look, deadline, lambda error: setattr(self, "_win", error))

    def application_user(self, deadline: Deadline) -> list[Result]:
        """Look at the user as which the function comes."""

        def look(api: WebApi) -> list[Result]:
            who = _seen(self._who)
            if self._identity.is_function_at("Dataverse"):
                # It has just answered as this user, which is more than any column says.
                self._user = {"systemuserid": who["UserId"]}
                return ok(f"{who['UserId']}: it is the one who looks")
            client_id = self._identity.function_client_id
            if client_id is None:
                raise CannotSee(
                    "the settings do not tell which identity is the function's", "AZURE_CLIENT_ID"
                )
            user = find_application_user(api, client_id)
            if user is None:
                raise Found(Finding.APPLICATION_USER_MISSING, f"no user with the client id {client_id}")
            self._user = user
            return _health(user)

        return self._told(look, deadline, lambda error: setattr(self, "_user", error))

    def privileges(self, deadline: Deadline) -> list[Result]:
        """Look at each privilege of the function and how far it reaches."""

        def look(api: WebApi) -> list[Result]:
            user = str(_seen(self._user)["systemuserid"])
            try:
                granted = privileges_of(api, user, sorted(PRIVILEGES))
            except DataverseForbidden as error:
                if not self._identity.is_function_at("Dataverse"):
                    raise
                _try_reads(api)
                raise CannotSee(
                    "its reads were tried and are allowed; how far they reach, and the others, is not told",
                    _privilege_in(str(error)) or _SOME_ROLE,
                ) from error
            return _judge(granted) or ok(f"{len(PRIVILEGES)} at their depth")

        return self._told(look, deadline)

    def service_endpoint(self, deadline: Deadline) -> list[Result]:
        """Look where Dataverse posts to, and how."""

        def look(api: WebApi) -> list[Result]:
            _seen(self._who)
            endpoint = find_service_endpoint(api) or self._endpoint_by_queue(api)
            if endpoint is None:
                raise Found(
                    Finding.ENDPOINT_MISSING, f"no service endpoint of ours, and none for {self._queue}"
                )
            self._endpoint = endpoint
            return self._judge_endpoint(endpoint) or ok(f"{endpoint['name']}: JSON to {endpoint['path']}")

        return self._told(look, deadline, lambda error: setattr(self, "_endpoint", error))

    def _endpoint_by_queue(self, api: WebApi) -> Row | None:
        # Made by hand, under a name of somebody's own.
        found_by_queue = api.first(
            f"serviceendpoints?$select=serviceendpointid&$filter=path eq {quoted(self._queue)}"
        )
        return found_by_queue and api.row(f"serviceendpoints({found_by_queue['serviceendpointid']})")

    def _judge_endpoint(self, endpoint: Row) -> list[Result]:
        address, path = bare(endpoint.get("namespaceaddress")), str(endpoint.get("path") or "")
        contract = endpoint.get("contract")
        results = []
        if address != bare(self._namespace):
            results.append(found(Finding.ENDPOINT_OTHER_NAMESPACE, f"{address}; settings: {self._namespace}"))
        if path.lower() != self._queue.lower():
            results.append(found(Finding.ENDPOINT_OTHER_QUEUE, f"{path}; settings: {self._queue}"))
        if contract == OLD_CONTRACT_QUEUE:
            results.append(found(Finding.ENDPOINT_OLD_CONTRACT, "contract 2"))
        elif contract != CONTRACT_QUEUE:
            results.append(found(Finding.ENDPOINT_NOT_A_QUEUE, f"contract {contract}"))
        if endpoint.get("messageformat") != _JSON:
            results.append(found(Finding.ENDPOINT_NOT_JSON, f"messageformat {endpoint.get('messageformat')}"))
        if endpoint.get("authtype") != _SAS_KEY or not endpoint.get("issaskeyset"):
            key = "a key is set" if endpoint.get("issaskeyset") else "no key is set"
            results.append(found(Finding.ENDPOINT_WITHOUT_KEY, f"authtype {endpoint.get('authtype')}, {key}"))
        return results

    def step(self, deadline: Deadline) -> list[Result]:
        """Look at what makes Dataverse post when an opportunity is won."""

        def look(api: WebApi) -> list[Result]:
            endpoint = _seen(self._endpoint)
            step = self._find_step(api, str(endpoint["serviceendpointid"]), _seen(self._win))
            self._step = step
            results = []
            if step["statecode"] != _ENABLED:
                results.append(found(Finding.STEP_DISABLED, str(step["name"])))
            if step["mode"] != _ASYNCHRONOUS:
                results.append(found(Finding.STEP_SYNCHRONOUS, str(step["name"])))
            return results or ok(f"{step['name']}: enabled, asynchronous")

        return self._told(look, deadline, lambda error: setattr(self, "_step", error))

    def _find_step(self, api: WebApi, endpoint: str, win: tuple[str, frozenset[str]]) -> Row:
        message, filters = win
        ours = find_step(api)
        posting = list(
            api.rows(
                f"serviceendpoints({endpoint})/serviceendpoint_sdkmessageprocessingstep"
                "?$select=sdkmessageprocessingstepid,name,mode,statecode,_sdkmessageid_value,_sdkmessagefilterid_value"
            )
        )
        on_win = [
            step
            for step in posting
            if step["_sdkmessageid_value"] == message and step["_sdkmessagefilterid_value"] in filters
        ]
        if on_win:
            # Should there be several, one that works is enough.
            return min(on_win, key=lambda step: (step["statecode"], -step["mode"]))
        if posting:
            raise Found(Finding.STEP_OTHER_MESSAGE, ", ".join(str(step["name"]) for step in posting))
        if ours is not None:
            raise Found(Finding.STEP_OTHER_ENDPOINT, f"{ours['name']}: {ours['_eventhandler_value']}")
        raise Found(Finding.STEP_MISSING, "no step posts to the service endpoint")

    def system_jobs(self, deadline: Deadline) -> list[Result]:
        """Look at the posts that did not succeed at once."""

        def look(api: WebApi) -> list[Result]:
            step = _seen(self._step)["sdkmessageprocessingstepid"]
            since = (self._clock.now() - _FAILURES_OF).strftime("%Y-%m-%dT%H:%M:%SZ")
            rows = list(
                islice(
                    api.rows(
                        "asyncoperations?$select=statecode,message,friendlymessage,retrycount"
                        f"&$filter=_owningextensionid_value eq {step} and (statecode eq 1 or "
                        f"(statuscode eq 31 and modifiedon ge {since}))&$orderby=createdon desc"
                    ),
                    _MOST_JOBS,
                )
            )
            retrying = [row for row in rows if row["statecode"] == _SUSPENDED]
            failed = [row for row in rows if row["statecode"] != _SUSPENDED]
            return [
                found(finding, f"{_number(jobs)}, the last: {_message(jobs[0])}")
                for finding, jobs in ((Finding.JOBS_RETRYING, retrying), (Finding.JOBS_FAILED, failed))
                if jobs
            ] or ok("none is retrying, none has failed in the last 7 days")

        return self._told(look, deadline)

    def _told(
        self,
        look: Callable[[WebApi], list[Result]],
        deadline: Deadline,
        blind: Callable[[CannotSee], None] = lambda _: None,
    ) -> list[Result]:
        """Look, and tell errors as what they mean here; `blind` notes what cannot be seen for what needs it."""
        try:
            return look(self._api.until(deadline))
        except CannotSee as error:
            blind(error)
            raise
        except DataverseForbidden as error:
            privilege = _privilege_in(str(error))
            unseen = CannotSee(
                "Dataverse refuses to tell" if privilege else str(error), privilege or _SOME_ROLE
            )
            blind(unseen)
            raise unseen from error
        except DataverseThrottled as error:
            raise Found(Finding.DATAVERSE_THROTTLED, str(error)) from error
        except (DataverseUnavailable, DataverseUnreachable) as error:
            raise Found(Finding.DATAVERSE_UNAVAILABLE, str(error)) from error
        except TokenUnavailable as error:
            raise Found(Finding.TOKEN_UNAVAILABLE, str(error)) from error
        except InvoicingFailure as error:
            raise Found(Finding.DATAVERSE_REFUSED_A_QUESTION, str(error)) from error


def _not_yet() -> CannotSee:
    return CannotSee("a link before it was not looked at", "see there")


def _seen(value: Any | CannotSee) -> Any:  # noqa: ANN401 - whatever it is of
    if isinstance(value, CannotSee):
        raise value
    return value


def _error_of(answer: Response) -> str:
    """Return code and message of an error of Dataverse, in one line; empty where it is none of Dataverse's."""
    try:
        error = json.loads(answer.body)["error"]
        return " ".join(f"{error['code']} {error['message']}".split())
    except (ValueError, KeyError, TypeError):
        return ""


def _web_api_row(answer: Response) -> Row:
    try:
        row = answer.json()
    except DataverseUnavailable as error:
        raise Found(Finding.NOT_A_WEB_API, str(error)) from error
    if not {"UserId", "OrganizationId"} <= row.keys():
        raise Found(Finding.NOT_A_WEB_API, "WhoAmI was answered with something else")
    return row


def _health(user: Row) -> list[Result]:
    name = f"{user.get('fullname')} ({user['systemuserid']})"
    results = []
    if user.get("isdisabled"):
        results.append(found(Finding.APPLICATION_USER_DISABLED, name))
    if user.get("azurestate") in _AZURE_STATES:
        results.append(
            found(Finding.APPLICATION_USER_GONE, f"{name}: {_AZURE_STATES[user['azurestate']]} in Entra ID")
        )
    return results or ok(name)


def _try_reads(api: WebApi) -> None:
    """Read as the function does, where nothing else tells what it may; raises Found."""
    refused = []
    for answer in api.batch([Read(path) for path in _READS]):
        try:
            answer.json()
        except DataverseForbidden as error:
            refused.append(_privilege_in(str(error)) or str(error))
    if refused:
        raise Found(Finding.PRIVILEGE_MISSING, ", ".join(refused))


def _judge(granted: Mapping[str, str]) -> list[Result]:
    lacks = lacking(PRIVILEGES, granted)
    optional = sorted(lacks.keys() & OPTIONAL_PRIVILEGES)
    missing = sorted(lacks.keys() - granted.keys() - OPTIONAL_PRIVILEGES)
    shallow = sorted(lacks.keys() & granted.keys() - OPTIONAL_PRIVILEGES)
    reaches = [f"{name}: {granted[name]}, needed: {PRIVILEGES[name]}" for name in shallow]
    return [
        found(finding, ", ".join(names))
        for finding, names in (
            (Finding.PRIVILEGE_MISSING, missing),
            (Finding.PRIVILEGE_TOO_SHALLOW, reaches),
            (Finding.OPTIONAL_PRIVILEGE_MISSING, optional),
        )
        if names
    ]


def _privilege_in(text: str) -> str:
    """Return the privilege that a refusal names, or nothing; it is only shown, and nothing depends on it."""
    named = re.search(r"\bprv\w+", text)
    return named[0] if named else ""


def _number(jobs: Sequence[Row]) -> str:
    return f"{len(jobs)}{' or more' if len(jobs) == _MOST_JOBS else ''}"


def _message(job: Row) -> str:
    text = " ".join(str(job.get("message") or job.get("friendlymessage") or "no message").split())
    return _SECRETS.sub(r"\1=…", text)[:200]
