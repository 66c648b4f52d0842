"""The managed-identity endpoint's faults: its refusals, as App Service words them."""

import json
from typing import TYPE_CHECKING

from sandbox.faults.http import FaultyApplication, Request, Response, Service, retry_after
from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def faulty_identity(application: "WSGIApplication", plan: FaultPlan) -> FaultyApplication:
    """Wrap the token endpoint; fit to be the server's middleware."""
    return FaultyApplication(application, plan, IdentityService())


class IdentityService(Service):
    """How App Service's endpoint refuses."""

    dependency = Dependency.IDENTITY

    def operation(self, request: Request) -> str:  # noqa: ARG002 - there is but one
        """Return the only operation: token."""
        return "token"

    def refuse(self, fault: Fault, plan: FaultPlan, request: Request) -> Response:  # noqa: ARG002 - there is but one
        """Return an error with a correlation id, like the endpoint."""
        status = fault.http_status
        headers = retry_after(fault, plan) if fault.kind is FaultKind.THROTTLED else {}
        error = {"statusCode": status, "message": "A fault of the sandbox.", "correlationId": "0" * 8}
        return Response(status, {**headers, "Content-Type": "application/json"}, json.dumps(error).encode())
