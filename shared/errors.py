"""The errors of the function, each named after the decision that it calls for.

    InvoicingFailure
    ├── RetryLater                      a retry is scheduled, the original is completed
    │   ├── OpportunityStillOpen        open policy; afterwards the win counts as withdrawn
    │   ├── RetryRecord                 a person may correct the record; afterwards parked
    │   │   ├── OpportunityNotFound
    │   │   ├── RecordNotFound
    │   │   ├── InvoiceRefused
    │   │   └── ClaimedWithoutInvoice
    │   └── RetryOutage                 something is down or not set up; afterwards parked
    │       ├── DataverseUnreachable
    │       ├── DataverseUnavailable
    │       ├── DataverseThrottled
    │       ├── DataverseUnauthorized
    │       ├── DataverseForbidden
    │       ├── DataverseNotFound
    │       ├── TokenUnavailable
    │       ├── PublishFailed
    │       └── InvalidSettings
    ├── ParkNow                         the failed queue at once: a retry cannot help
    │   ├── InvalidEvent
    │   ├── OtherOrganization
    │   ├── InvoiceOutdated
    │   └── RequestRejected
    └── ServiceBusUnavailable           not even a retry could be scheduled: the host abandons the message

Any other exception is a bug: the host abandons the message too, and after MaxDeliveryCount
deliveries the broker forwards it to the failed queue. `handler.py` carries these decisions out.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class RetryPolicy(Enum):
    """How long a message is retried; the bounds are settings. The values travel with messages in flight."""

    OPEN = "open"
    RECORD = "short"
    OUTAGE = "long"


class InvoicingFailure(Exception):
    """Why a message could not be processed.

    `reason` is the name of the class: the DeadLetterReason of a parked message, which alerts and runbooks rely on.
    `advice` is what to do about it. `request_id` names the request at Dataverse, where there was one.
    The description is one or more whole sentences, without tokens, keys or personal data.
    """

    reason: ClassVar[str]
    advice: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Name the reason of a class with an advice of its own; other classes only group or refine such classes."""
        super().__init_subclass__()
        if "advice" in vars(cls):
            cls.reason = cls.__name__

    def __init__(self, description: str, *, request_id: str | None = None) -> None:
        super().__init__(description)
        self.description = description
        self.request_id = request_id

    def __str__(self) -> str:
        return (
            self.description if self.request_id is None else f"{self.description} (request {self.request_id})"
        )


class RetryLater(InvoicingFailure):
    """The message is retried according to the policy of its class."""

    policy: ClassVar[RetryPolicy]


class OpportunityStillOpen(RetryLater):
    """The opportunity is open: a synchronous step posts before its transaction commits, so check again."""

    advice = "Nothing: the opportunity is checked again, and if it stays open the win counts as withdrawn."
    policy = RetryPolicy.OPEN


class RetryRecord(RetryLater):
    """A problem of the record itself, which a person may correct or which clears by itself."""

    policy = RetryPolicy.RECORD


class OpportunityNotFound(RetryRecord):
    """Dataverse has no such opportunity, or the identity cannot see it."""

    advice = (
        "Check that the opportunity exists and that the role of the application user reads opportunities at "
        "organization depth, then replay the message, or discard it if the opportunity was deleted."
    )


class RecordNotFound(RetryRecord):
    """Dataverse has no record with the requested id, or the identity cannot see it."""

    advice = (
        "Check that the record that the text names exists and that the role of the application user reads such "
        "records at organization depth, then replay the message."
    )


class InvoiceRefused(RetryRecord):
    """Dataverse or a plug-in refused to generate the invoice: a business rule, not an outage."""

    advice = "Fix the opportunity as the text says, then replay the message."


class ClaimedWithoutInvoice(RetryRecord):
    """The claim exists and an active invoice does not. The opportunity is not billed again without a decision."""

    advice = (
        "Read on the opportunity's timeline what happened. If it is to be billed again, delete the note that the text "
        "names, then replay the message; else discard it."
    )


class RetryOutage(RetryLater):
    """Something is down, or not set up as it should be."""

    policy = RetryPolicy.OUTAGE


class DataverseUnreachable(RetryOutage):
    """No connection, a broken one, or no complete response in time: the request may have been carried out."""

    advice = "Check DATAVERSE_URL, DNS and the network, then replay the message."


class DataverseUnavailable(RetryOutage):
    """An infrastructure error of Dataverse, or a response that is not Dataverse's."""

    advice = (
        "Check the service health of Dynamics 365 and the proxies between it and the function, then replay."
    )


class DataverseThrottled(RetryOutage):
    """A limit was exceeded. `retry_after` is how many seconds to wait, None where the response does not say."""

    advice = "Lower maxConcurrentCalls or the number of instances, then replay the message."

    def __init__(self, description: str, *, retry_after: float | None, request_id: str | None = None) -> None:
        super().__init__(description, request_id=request_id)
        self.retry_after = retry_after


class DataverseUnauthorized(RetryOutage):
    """401: the token is bad, expired or for another audience."""

    advice = (
        "Check that DATAVERSE_URL names the environment and that the identity belongs to its tenant, "
        "then replay the message."
    )


class DataverseForbidden(RetryOutage):
    """403: no application user for this identity, a disabled one, or a missing privilege."""

    advice = (
        "Set up the application user and its role (the text names what is missing), then replay the message."
    )


class DataverseNotFound(RetryOutage):
    """A 404 that is not about a record: the address is not a Web API with Dynamics 365 Sales."""

    advice = "Check DATAVERSE_URL and that Dynamics 365 Sales is installed there, then replay the message."


class TokenUnavailable(RetryOutage):
    """The identity endpoint issued no token."""

    advice = (
        "Check that AZURE_CLIENT_ID is the client id of an identity that is assigned to the function app, "
        "then replay the message."
    )


class PublishFailed(RetryOutage):
    """The invoice exists, its event is not published yet."""

    advice = (
        "Check the topic and the identity's right to send to it, then replay: the same invoice is published."
    )


class InvalidSettings(RetryOutage):
    """App settings are missing or wrong. `problems` has a sentence for each."""

    advice = "Correct the app settings that the text names, then replay the message."

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class ParkNow(InvoicingFailure):
    """A retry cannot help: the message goes to the failed queue at once."""


class InvalidEvent(ParkNow):
    """The message is in no supported format; the description says what is wrong and where."""

    advice = "Correct the sender, as the text says, and discard the message, or send a correct one."


class OtherOrganization(ParkNow):
    """The event comes from another Dataverse environment than the configured one."""

    advice = (
        "Point that environment's service endpoint to its own queue, or correct "
        "DATAVERSE_ORGANIZATION_ID, then replay the message."
    )


class InvoiceOutdated(ParkNow):
    """The opportunity was reopened, changed and won again after the function had invoiced it."""

    advice = (
        "Compare the two, and correct the invoice or cancel it and bill the difference by hand; then discard the "
        "message. It is not billed again automatically."
    )


class RequestRejected(ParkNow):
    """Dataverse does not accept the request that the function sends: an error of the function itself."""

    advice = (
        "Report the text to the developers of the function, and replay the message with a corrected version."
    )


class ServiceBusUnavailable(InvoicingFailure):
    """Not even a retry could be scheduled: the message stays with the broker, which delivers it again."""

    advice = "Check the namespace, the entities and the identity's right to send to them."
