"""Spans and metrics of the function's work; nothing is recorded unless a setting switches it on.

The classes here record nothing and need no package. `open_telemetry.py` has those that record. A span begins and ends
in the caller's thread, and the requests and messages in between become its children. It must never delay or fail the
work. Ids are recorded, personal data and tokens are not.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from shared.errors import InvoicingFailure, RetryLater
    from shared.message import Delivery


class TelemetryExporter(Enum):
    """Where spans and metrics go. The values are those of the setting, and of `make package TELEMETRY=`."""

    OFF = "off"
    AZURE_MONITOR = "azure-monitor"
    OTLP = "otlp"


class Span:
    """A piece of work, from the beginning of the `with` block to its end; an exception makes it an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class InvocationSpan(Span):
    """The processing of one delivery, and its outcome. An invocation without one has failed."""

    def concerns(self, opportunity_id: str) -> None:
        """Note which opportunity the message is about."""

    def published(self, invoice_id: str, seconds: float) -> None:
        """Note that the event of the invoice is published, `seconds` after the win."""

    def ignored(self) -> None:
        """Note that there is nothing to invoice."""

    def retried(self, error: RetryLater) -> None:
        """Note that a retry is scheduled."""

    def parked(self, error: InvoicingFailure) -> None:
        """Note that the message is in the failed queue."""


class RequestSpan(Span):
    """One request to Dataverse."""

    def responded(self, status: int) -> None:
        """Note the status of the response."""


class SendSpan(Span):
    """The sending of one message. `traceparent` (W3C) goes into the message, if there is one."""

    traceparent: str | None = None


class Tracing:
    """Begins spans and counts; safe under many threads. This class records nothing."""

    def invocation(self, delivery: Delivery, invocation_id: str | None) -> InvocationSpan:  # noqa: ARG002
        """Return the span of an invocation, a child of the delivery's trace context."""
        return _INVOCATION

    def request(self, method: str, root: str, target: str, request_id: str) -> RequestSpan:  # noqa: ARG002
        """Return the span of a request; `target` is relative to `root`, the Web API's URL, and has no query."""
        return _REQUEST

    def send(self, entity: str, message_id: str, operation: str) -> SendSpan:  # noqa: ARG002
        """Return the span of a message; `operation` is "send" or "schedule"."""
        return _SEND

    def invoice_generated(self) -> None:
        """Count an invoice that Dataverse generated in this invocation."""

    def throttled(self) -> None:
        """Count a response by which Dataverse throttles the process."""


# They have no state.
_INVOCATION = InvocationSpan()
_REQUEST = RequestSpan()
_SEND = SendSpan()
OFF = Tracing()
