"""The errors of the function, each named after the decision that it calls for.

    InvoicingError
    ├── RetryLater                      a copy is scheduled, the original is completed
    │   ├── OpportunityStillOpen        open rhythm; afterwards the win counts as withdrawn
    │   ├── RetryShort                  somebody may mend the record; afterwards parked
    │   │   ├── OpportunityNotFound
    │   │   ├── RecordNotFound
    │   │   ├── InvoiceRefused
    │   │   └── ClaimedWithoutInvoice
    │   └── RetryLong                   something is down or not set up; afterwards parked
    │       ├── DataverseUnreachable
    │       ├── DataverseUnavailable
    │       ├── DataverseThrottled
    │       ├── DataverseUnauthorized
    │       ├── DataverseForbidden
    │       ├── DataverseNotFound
    │       ├── TokenUnavailable
    │       ├── PublishFailed
    │       └── InvalidSettings
    ├── ParkNow                         the failed queue at once: trying again cannot help
    │   ├── InvalidEvent
    │   └── OtherOrganization
    └── ServiceBusUnavailable           not even a copy could be sent: the host abandons the message

Anything else that is raised is a bug: the host abandons the message too, and after MaxDeliveryCount
deliveries the broker forwards it to the failed queue. `handler.py` carries these decisions out.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Rhythm(Enum):
    """How long a message is tried again; the bounds are settings."""

    OPEN = "open"
    SHORT = "short"
    LONG = "long"


class InvoicingError(Exception):
    """Why a message could not be brought to its end.

    `reason` is a stable word: the DeadLetterReason of a parked message, which alerts and runbooks look for.
    `advice` is what to do about it. `request_id` names the request at Dataverse, where there was one.
    The description is one or more whole sentences, without tokens, keys or personal data.
    """

    reason: ClassVar[str]
    advice: ClassVar[str]

    def __init__(self, description: str, *, request_id: str | None = None) -> None:
        super().__init__(description)
        self.description = description
        self.request_id = request_id

    def __str__(self) -> str:
        return (
            self.description if self.request_id is None else f"{self.description} (request {self.request_id})"
        )


class RetryLater(InvoicingError):
    """The message is tried again in the class's rhythm."""

    rhythm: ClassVar[Rhythm]


class OpportunityStillOpen(RetryLater):
    """The opportunity is open: a synchronous step posts before its transaction commits, so look again."""

    reason = "OpportunityStillOpen"
    advice = "Nothing: the opportunity is looked at again, and if it stays open the win counts as withdrawn."
    rhythm = Rhythm.OPEN


class RetryShort(RetryLater):
    """Something about the record itself, that a person may mend or that clears itself."""

    rhythm = Rhythm.SHORT


class OpportunityNotFound(RetryShort):
    """Dataverse has no such opportunity, or the identity cannot see it."""

    reason = "OpportunityNotFound"
    advice = (
        "Check that the opportunity exists and that the role of the application user reads opportunities at "
        "organization depth, then replay the message, or discard it if the opportunity was deleted."
    )


class RecordNotFound(RetryShort):
    """Dataverse has no record with an id that it was asked for, or the identity cannot see it."""

    reason = "RecordNotFound"
    advice = (
        "Check that the record that the text names exists and that the role of the application user reads such "
        "records at organization depth, then replay the message."
    )


class InvoiceRefused(RetryShort):
    """Dataverse or a plug-in refused to generate the invoice: a rule of the business, not an outage."""

    reason = "InvoiceRefused"
    advice = "Mend the opportunity as the text says, then replay the message."


class ClaimedWithoutInvoice(RetryShort):
    """The claim note is there and no invoice is: somebody deleted or canceled it. It is not billed again."""

    reason = "ClaimedWithoutInvoice"
    advice = (
        "An invoice was made for this opportunity and was deleted or canceled since. If it is to be billed "
        "again, delete the note that says so on the opportunity's timeline, then replay; else discard."
    )


class RetryLong(RetryLater):
    """Something is down, or not set up as it should be."""

    rhythm = Rhythm.LONG


class DataverseUnreachable(RetryLong):
    """No connection, a broken one, or no whole answer in time: the request may have been carried out."""

    reason = "DataverseUnreachable"
    advice = "Check DATAVERSE_URL, DNS and the network, then replay the message."


class DataverseUnavailable(RetryLong):
    """Dataverse answered, but with a server's error or with something that is not its own answer."""

    reason = "DataverseUnavailable"
    advice = (
        "Check the service health of Dynamics 365 and what stands between it and the function, then replay."
    )


class DataverseThrottled(RetryLong):
    """429: over the service-protection limits. `retry_after` is how many seconds to hold back."""

    reason = "DataverseThrottled"
    advice = "Lower maxConcurrentCalls or the number of instances, then replay the message."

    def __init__(self, description: str, *, retry_after: float, request_id: str | None = None) -> None:
        super().__init__(description, request_id=request_id)
        self.retry_after = retry_after


class DataverseUnauthorized(RetryLong):
    """401: the token is bad, expired or for another audience."""

    reason = "DataverseUnauthorized"
    advice = (
        "Check that DATAVERSE_URL names the environment and that the identity belongs to its tenant, "
        "then replay the message."
    )


class DataverseForbidden(RetryLong):
    """403: no application user for this identity, a disabled one, or a missing privilege."""

    reason = "DataverseForbidden"
    advice = (
        "Set up the application user and its role (the text names what is missing), then replay the message."
    )


class DataverseNotFound(RetryLong):
    """A 404 that is not about a record: the address is not a Web API with Dynamics 365 Sales."""

    reason = "DataverseNotFound"
    advice = "Check DATAVERSE_URL and that Dynamics 365 Sales is installed there, then replay the message."


class TokenUnavailable(RetryLong):
    """The identity gave no token."""

    reason = "TokenUnavailable"
    advice = (
        "Check that AZURE_CLIENT_ID is the client id of an identity that is assigned to the function app, "
        "then replay the message."
    )


class PublishFailed(RetryLong):
    """The invoice is there, its event is not published yet."""

    reason = "PublishFailed"
    advice = (
        "Check the topic and the identity's right to send to it, then replay: the same invoice is published."
    )


class InvalidSettings(RetryLong):
    """App settings are missing or wrong. `problems` has a sentence for each."""

    reason = "InvalidSettings"
    advice = "Correct the app settings that the text names, then replay the message."

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class ParkNow(InvoicingError):
    """Trying again cannot help: the message goes to the failed queue at once."""


class InvalidEvent(ParkNow):
    """Nothing that the function understands; the description says what is wrong and where."""

    reason = "InvalidEvent"
    advice = "Correct the sender, as the text says, and discard the message, or send a correct one."


class OtherOrganization(ParkNow):
    """The event comes from another Dataverse environment than the one that the function serves."""

    reason = "OtherOrganization"
    advice = (
        "Point that environment's service endpoint to its own queue, or correct "
        "DATAVERSE_ORGANIZATION_ID, then replay the message."
    )


class ServiceBusUnavailable(InvoicingError):
    """Not even a copy could be sent: the message is left to the broker, which hands it out again."""

    reason = "ServiceBusUnavailable"
    advice = "Check the namespace, the entities and the identity's right to send to them."
