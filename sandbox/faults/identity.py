"""The managed-identity endpoint's faults: its refusals, as App Service words them."""

import json
from typing import TYPE_CHECKING

from sandbox.faults.http import PAGE, SIGN_IN, FaultyApplication, Request, Response, Run, Service, retry_after
from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication


def faulty_identity(
    application: "WSGIApplication", plan: FaultPlan, wait: "Callable[[float], None] | None" = None
) -> FaultyApplication:
    """Wrap the token endpoint; fit to be the server's middleware. `wait`: see FaultyApplication."""
    return FaultyApplication(application, plan, IdentityService(), wait)


class IdentityService(Service):
    """How App Service's endpoint refuses."""

    dependency = Dependency.IDENTITY

    def operation(self, request: Request) -> str:  # noqa: ARG002 - there is but one
        """Return the only operation: token."""
        return "token"

    def respond(self, fault: Fault, plan: FaultPlan, request: Request) -> Response:  # noqa: ARG002 - there is but one
        """Return an error with a correlation id, like the endpoint."""
        if fault.kind is FaultKind.HTML:
            return PAGE
        if fault.kind is FaultKind.REDIRECT:
            return Response(302, {"Location": fault.location or SIGN_IN})
        if fault.kind is FaultKind.EMPTY:
            return Response(fault.http_status)
        status = fault.http_status
        headers = retry_after(fault, plan) if fault.kind is FaultKind.THROTTLED else {}
        error = {"statusCode": status, "message": "A fault of the sandbox.", "correlationId": "0" * 8}
        return Response(status, {**headers, "Content-Type": "application/json"}, json.dumps(error).encode())

    def partly(self, fault: Fault, plan: FaultPlan, request: Request, run: Run) -> Response:  # noqa: ARG002 - no batches
        """Strike the whole request: there are no batches."""
        return self.respond(fault, plan, request)
