"""Dataverse's faults: the Web API's refusals with their codes, and those of one operation in a batch."""

import json
import re
from email.message import Message
from http import HTTPStatus
from typing import TYPE_CHECKING

from sandbox.dataverse.errors import RequestRefused
from sandbox.dataverse.organization import FailedChangeSet
from sandbox.dataverse.payload import included_annotations
from sandbox.dataverse.web_api import FAILED_CHANGE_SET
from sandbox.faults.http import PAGE, FaultyApplication, Request, Response, Run, Service, retry_after
from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_CONTENT_ID = re.compile(rb"^Content-ID:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_TEXTS = {
    "0x80040217": "opportunity With Id = 00000000-0000-0000-0000-000000000000 Does Not Exist",
    "0x80040220": "Principal user is missing prvReadOpportunity privilege.",
    "0x80072560": "The user is not a member of the organization.",
    "0x80095ffc": "This application id is restricted.",
    "0x80040237": "A record with matching key values already exists.",
    "0x80060882": "The version of the existing record doesn't match the RowVersion property provided.",
    "0x80060892": "Entity Key violated. A record with the same value already exists.",
    "0x80044150": "Sql error: Generic SQL error. Sql ErrorCode: -2146232060 Sql Number: 1205",
    "0x80044151": "SQL timeout expired.",
    "0x80072322": "Number of requests exceeded the limit of 6000 over time window of 300 seconds.",
    "0x80072321": "Combined execution time of incoming requests exceeded limit of 1200000 milliseconds.",
    "0x80072326": "Number of concurrent requests exceeded the limit of 52.",
    "0x80040265": "The credit limit of the account is exceeded.",
    "0x8004a113": "The environment is in administration mode.",
}


def faulty_dataverse(
    application: "WSGIApplication",
    plan: FaultPlan,
    wait: "Callable[[float], None] | None" = None,
    concerns: "Callable[[WSGIEnvironment], bool]" = lambda _: True,
) -> FaultyApplication:
    """Wrap the Web API; fit to be the server's middleware. `wait`, `concerns`: see FaultyApplication."""
    return FaultyApplication(application, plan, DataverseService(), wait, concerns)


class DataverseService(Service):
    """How the Web API refuses.

    Of a batch one part may be struck: its change set as a whole is one part. The others are then carried out whether
    or not the request asked for that, as with `odata.continue-on-error`.
    """

    dependency = Dependency.DATAVERSE

    def operation(self, request: Request) -> str:
        """Return read, write, batch (of reads), change-set, or update (a change set that creates nothing)."""
        if request.environ["PATH_INFO"].endswith("/$batch"):
            # The batch's own content type is among the headers: in the body it is a change set's.
            if b"multipart/mixed" not in request.body:
                return "batch"
            return "change-set" if b"\r\nPOST " in request.body else "update"
        return "read" if request.environ["REQUEST_METHOD"] == "GET" else "write"

    def refuse(self, fault: Fault, plan: FaultPlan, request: Request) -> Response:
        """Return an error as Dataverse words it, or a gateway's where the fault has no code."""
        if fault.kind is FaultKind.UNAUTHORIZED:
            return Response(401, {"WWW-Authenticate": "Bearer authorization_uri=https://login.invalid/"})
        headers = _retry_after(fault, plan)
        if not fault.error_code and fault.kind is not FaultKind.ERROR:
            page = b"<html><body>The gateway says no.</body></html>"
            return Response(fault.http_status, {**headers, **PAGE.headers}, page)
        error = RequestRefused(
            HTTPStatus(fault.http_status),
            fault.error_code,
            fault.text or _TEXTS.get(fault.error_code.lower(), "A fault of the sandbox."),
            source=fault.source,
        )
        return Response(
            error.status,
            {**headers, "Content-Type": "application/json; odata.metadata=minimal", "OData-Version": "4.0"},
            json.dumps(error.body(_annotations(request))).encode(),
        )

    def changed(self, fault: Fault, request: Request) -> "WSGIEnvironment | None":
        """Let a change set that fails end its batch."""
        if fault.kind is not FaultKind.BATCH_STOPS:
            return None
        with_200 = fault.http_status == HTTPStatus.OK
        mode = FailedChangeSet.STOPS_WITH_200 if with_200 else FailedChangeSet.STOPS_WITH_400
        return {**request.again(), FAILED_CHANGE_SET: mode}

    def partly(self, fault: Fault, plan: FaultPlan, request: Request, run: Run) -> Response:
        """Return the batch's response with one part's replaced; without `after` that part is not carried out."""
        struck = self.respond(fault, plan, request)
        parts = _split(request.environ.get("CONTENT_TYPE", ""), request.body)
        index = fault.part or 0
        if not index < len(parts):
            return struck
        replacement = _replacement(fault, parts[index], struck)
        if fault.stop is not None:
            parts = parts[: index + 1]
        if not fault.after:
            parts.pop(index)
        if not parts:
            content_type = "multipart/mixed; boundary=batchresponse_fault"
            return Response(
                fault.stop or 200,
                {"Content-Type": content_type, "OData-Version": "4.0"},
                _join(_boundary(content_type), [replacement]),
            )
        boundary = _boundary(request.environ.get("CONTENT_TYPE", ""))
        response = run(request.again(_join(boundary, parts)))
        content_type = {name.lower(): value for name, value in response.headers.items()}.get(
            "content-type", ""
        )
        if not content_type.startswith("multipart/"):
            # Another fault struck the batch as a whole: there is no part to replace.
            return response
        responses = _split(content_type, response.body)
        responses[index : index + (1 if fault.after else 0)] = [replacement]
        status = response.status if fault.stop is None else fault.stop
        return Response(status, response.headers, _join(_boundary(content_type), responses))


def _retry_after(fault: Fault, plan: FaultPlan) -> "Mapping[str, str]":
    """Return the header of a throttled call; a plug-in's 429 has none unless the fault names it."""
    wanted = fault.kind is FaultKind.THROTTLED or (fault.kind is FaultKind.ERROR and fault.retry_after)
    return retry_after(fault, plan) if wanted else {}


def _annotations(request: Request) -> tuple[str, ...]:
    """Return what the request, or any part of a batch, wants to have annotated."""
    return included_annotations(request.environ.get("HTTP_PREFER", "") + request.body.decode("latin-1"))


def _replacement(fault: Fault, part: bytes, struck: Response) -> bytes:
    """Return the struck part of a response: that of a change set is nested, with the id of the one that failed."""
    ids = _CONTENT_ID.findall(part)
    if b"multipart/mixed" not in part:
        return _part(struck, ids[0] if ids else None)
    # The first write has created its row already; a plug-in or SQL refuses the last one.
    failed = (ids[0] if fault.kind is FaultKind.CONFLICT else ids[-1]) if ids else None
    inner = _join(b"changesetresponse_fault", [_part(struck, failed)])
    return b"Content-Type: multipart/mixed; boundary=changesetresponse_fault\r\n\r\n" + inner


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    return str(message.get_boundary("")).encode()


def _split(content_type: str, body: bytes) -> list[bytes]:
    """Return the parts of a multipart body unchanged, without the boundaries."""
    boundary = b"--" + _boundary(content_type)
    return [
        part.removeprefix(b"\r\n").removesuffix(b"\r\n")
        for part in body.split(boundary)[1:]
        if not part.startswith(b"--")
    ]


def _join(boundary: bytes, parts: list[bytes]) -> bytes:
    return (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    )


def _part(response: Response, content_id: bytes | None) -> bytes:
    lines = [
        "Content-Type: application/http",
        "Content-Transfer-Encoding: binary",
        *([f"Content-ID: {content_id.decode('latin-1')}"] if content_id else []),
        "",
        f"HTTP/1.1 {response.status_line}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + response.body + b"\r\n"
