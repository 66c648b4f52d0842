"""Refusals of the Web API: one exception, and a function for each refusal.

Codes and texts come from Microsoft's documentation where it has them. The sandbox's own texts name the sandbox.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Final

_DETAILS: Final = "Microsoft.PowerApps.CDS.ErrorDetails"
_SERVER_ERROR: Final = 500


class RequestRefused(Exception):
    """A refusal: HTTP status, Dataverse's own code (`0x…`), a text, headers of the response.

    `source`: the plug-in that refused, or the platform's service.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        source: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.source = source

    def body(self, annotations: Sequence[str] = ()) -> dict[str, object]:
        """Return the error as the Web API writes it, with the annotations that match the patterns."""
        source = self.source or "Plugin/Microsoft.Crm.ObjectModel.SandboxService"
        category = "SystemFailure" if self.status >= _SERVER_ERROR else "ClientError"
        details = {
            f"{_DETAILS}.ApiExceptionSourceKey": source,
            f"{_DETAILS}.ApiExceptionCategory": category,
            f"{_DETAILS}.ApiExceptionHttpStatusCode": str(int(self.status)),
            # A real trace may contain personal data, so this one contains some.
            "Microsoft.PowerApps.CDS.TraceText": "[Sandbox: trace of a plug-in, with jane.doe@example.com in it]",
        }
        wanted = {
            f"@{name}": value
            for name, value in details.items()
            if any(fnmatchcase(name, pattern) for pattern in annotations)
        }
        return {"error": {"code": self.code, "message": self.message, **wanted}}


def bad_request(message: str, code: str = "0x80060888") -> RequestRefused:
    """Refuse a request whose URL or options are not valid."""
    return RequestRefused(HTTPStatus.BAD_REQUEST, code, message)


def bad_payload(entity: str, reason: str) -> RequestRefused:
    """Refuse a body that is not valid."""
    return bad_request(
        f"Error identified in Payload provided by the user for Entity :'{entity}', For more information on "
        f"this error please follow this help link https://go.microsoft.com/fwlink/?linkid=2195293  ---->  "
        f"InnerException : Microsoft.OData.ODataException: {reason}",
        "0x80048d19",
    )


def no_property(name: str, entity: str) -> RequestRefused:
    """Refuse a column that the table does not have."""
    return bad_request(
        f"Could not find a property named '{name}' on type 'Microsoft.Dynamics.CRM.{entity}'.", "0x80060888"
    )


def no_segment(segment: str) -> RequestRefused:
    """Refuse a path that does not exist."""
    return RequestRefused(
        HTTPStatus.NOT_FOUND, "0x8006088a", f"Resource not found for the segment '{segment}'."
    )


def no_record(entity: str, record_id: str) -> RequestRefused:
    """Refuse a row that does not exist."""
    return RequestRefused(
        HTTPStatus.NOT_FOUND, "0x80040217", f"{entity} With Id = {record_id} Does Not Exist"
    )


def not_supported(what: str) -> RequestRefused:
    """Refuse what Dataverse supports and the emulator does not."""
    return RequestRefused(
        HTTPStatus.NOT_IMPLEMENTED, "0x80060888", f"The sandbox's Dataverse does not support {what}."
    )


def privilege_denied(message: str) -> RequestRefused:
    """Refuse what the caller's roles do not allow."""
    return RequestRefused(HTTPStatus.FORBIDDEN, "0x80040220", message)


def user_disabled(user_id: str) -> RequestRefused:
    """Refuse a user who is disabled."""
    return RequestRefused(
        HTTPStatus.FORBIDDEN,
        "0x80040225",
        f"The specified user(Id = {user_id}) is disabled. Consider enabling this user.",
    )


def invalid_argument(message: str, code: str = "0x80040203") -> RequestRefused:
    """Refuse an operation whose parameters are not valid."""
    return RequestRefused(HTTPStatus.BAD_REQUEST, code, message)
