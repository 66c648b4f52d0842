"""Dataverse's faults: the Web API's refusals with their codes, and those of one operation in a batch."""

import json
from email.message import Message
from typing import TYPE_CHECKING

from sandbox.faults.http import PAGE, SIGN_IN, Answer, FaultyApplication, Request, Run, Service, retry_after
from sandbox.faults.plan import Fault, FaultPlan, Kind, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_TEXTS = {
    "0x80040217": "opportunity With Id = 00000000-0000-0000-0000-000000000000 Does Not Exist",
    "0x80040220": "Principal user is missing prvReadOpportunity privilege.",
    "0x80072560": "The user is not a member of the organization.",
    "0x80095ffc": "This application id is restricted.",
    "0x80040237": "A record with matching key values already exists.",
    "0x80060882": "The version of the existing record doesn't match the RowVersion property provided.",
    "0x80060892": "Entity Key violated. A record with the same value already exists.",
    "0x80044150": "Sql error: Generic SQL error. Sql ErrorCode: -2146232060 Sql Number: 1205",
    "0x80072322": "Number of requests exceeded the limit of 6000 over time window of 300 seconds.",
    "0x80072321": "Combined execution time of incoming requests exceeded limit of 1200000 milliseconds.",
    "0x80072326": "Number of concurrent requests exceeded the limit of 52.",
}
_STATUS = {
    Kind.UNAUTHORIZED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 412,
    Kind.THROTTLED: 429,
    Kind.DEADLOCK: 500,
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

    wire = Wire.DATAVERSE

    def operation(self, request: Request) -> str:
        """Tell reads, writes, batches of reads, and batches with a change set apart."""
        if request.environ["PATH_INFO"].endswith("/$batch"):
            # The batch's own content type is among the headers: in the body it is a change set's.
            return "change-set" if b"multipart/mixed" in request.body else "batch"
        return "read" if request.environ["REQUEST_METHOD"] == "GET" else "write"

    def answer(self, fault: Fault, plan: FaultPlan) -> Answer:
        """Return an answer in Dataverse's words, or a gateway's where the fault has no code."""
        if fault.kind is Kind.HTML:
            return PAGE
        if fault.kind is Kind.REDIRECT:
            return Answer(302, {"Location": SIGN_IN})
        status = _STATUS.get(fault.kind, fault.status)
        headers = retry_after(fault, plan) if fault.kind is Kind.THROTTLED else {}
        if fault.kind is Kind.UNAUTHORIZED:
            return Answer(status, {"WWW-Authenticate": "Bearer authorization_uri=https://login.invalid/"})
        if not fault.error_code:
            return Answer(
                status, {**headers, **PAGE.headers}, b"<html><body>The gateway says no.</body></html>"
            )
        error = {"code": fault.error_code, "message": _TEXTS.get(fault.error_code, "A fault of the sandbox.")}
        return Answer(
            status,
            {**headers, "Content-Type": "application/json; odata.metadata=minimal", "OData-Version": "4.0"},
            json.dumps({"error": error}).encode(),
        )

    def partly(self, fault: Fault, plan: FaultPlan, request: Request, run: Run) -> Answer:
        """Return the batch's answer with one part's replaced; without `after` that part is not carried out."""
        struck = self.answer(fault, plan)
        parts = _split(request.environ.get("CONTENT_TYPE", ""), request.body)
        index = fault.part or 0
        if not index < len(parts):
            return struck
        if not fault.after:
            parts.pop(index)
        boundary = _boundary(request.environ.get("CONTENT_TYPE", ""))
        answer = run(request.again(_join(boundary, parts)))
        content_type = {name.lower(): value for name, value in answer.headers.items()}["content-type"]
        answers = _split(content_type, answer.body)
        answers[index : index + (1 if fault.after else 0)] = [_part(struck)]
        return Answer(answer.status, answer.headers, _join(_boundary(content_type), answers))


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    return str(message.get_boundary("")).encode()


def _split(content_type: str, body: bytes) -> list[bytes]:
    """Return the parts of a multipart body as they stand, without the boundaries."""
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


def _part(answer: Answer) -> bytes:
    lines = [
        "Content-Type: application/http",
        "Content-Transfer-Encoding: binary",
        "",
        f"HTTP/1.1 {answer.status_line}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body + b"\r\n"
