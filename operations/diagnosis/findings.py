"""What the diagnosis can find: every finding with its stable code, what it means and what to do.

The codes are what scripts, alerts and the runbook look for. Which link finds what stands with the links.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """What became of looking at a link."""

    OK = "ok"
    # Nothing is broken, and there is something that one should know.
    REMARK = "remark"
    # The chain is in order, and something that went through it waits for a person.
    ATTENTION = "attention"
    PROBLEM = "problem"
    CANNOT_SEE = "cannot see"
    # A link before it is broken: what it would show is that one again.
    NOT_LOOKED_AT = "not looked at"


class Finding(Enum):
    """What can be wrong. The code is the name in lower case with hyphens."""

    def __init__(self, meaning: str, advice: str) -> None:
        self.meaning = meaning
        self.advice = advice

    @property
    def code(self) -> str:
        """The stable word for scripts and the runbook."""
        return self.name.lower().replace("_", "-")

    @property
    def state(self) -> State:
        """How much it weighs: what is broken now is a problem, what was left over by then is not."""
        if self in REMARKS:
            return State.REMARK
        return State.ATTENTION if self in LEFT_OVER else State.PROBLEM

    # Settings and identity
    SETTINGS_INVALID = (
        "App settings are missing or wrong: the function puts every win aside, or cannot even do that.",
        "Correct the settings that are named, in Bicep, and deploy.",
    )
    THREADS_DIFFER_FROM_CALLS = (
        (
            "The host hands over more, or fewer, messages at once than there are threads: the surplus waits with its "
            "lock running out."
        ),
        "Set PYTHON_THREADPOOL_THREAD_COUNT to maxConcurrentCalls of host.json.",
    )
    TOKEN_UNAVAILABLE = (
        "The identity gives no token, so nothing behind it can be reached.",
        (
            "Check that AZURE_CLIENT_ID is the client id of an identity that is assigned to the app (or az login), "
            "and, for Dataverse alone, that DATAVERSE_URL names an environment of the same tenant."
        ),
    )
    TOKEN_OF_ANOTHER_IDENTITY = (
        (
            "The token belongs to another identity than AZURE_CLIENT_ID names: rights were given to one and are asked "
            "for by the other."
        ),
        "Set AZURE_CLIENT_ID and ServiceBusConnection__clientId to the client id of the one identity.",
    )
    # The way there
    DATAVERSE_NAME_UNKNOWN = (
        "The host name of DATAVERSE_URL has no address.",
        "Correct DATAVERSE_URL, or the DNS of the network that the function is in.",
    )
    DATAVERSE_REFUSED = (
        "Nothing takes connections with TLS where DATAVERSE_URL points to.",
        "Correct DATAVERSE_URL, or open the firewall for outgoing connections to port 443.",
    )
    DATAVERSE_SILENT = (
        "Connections to Dataverse get no answer: usually something between drops them.",
        "Open the firewall for outgoing connections to port 443; look at routes and proxies.",
    )
    DATAVERSE_CERTIFICATE_NOT_TRUSTED = (
        "Whoever answers at DATAVERSE_URL shows a certificate that is not trusted here, or is another's.",
        (
            "Correct DATAVERSE_URL; where a company's proxy inspects TLS, name its authority in SSL_CERT_FILE and "
            "REQUESTS_CA_BUNDLE."
        ),
    )
    SERVICE_BUS_NAME_UNKNOWN = (
        "The host name of the namespace has no address.",
        "Correct ServiceBusConnection__fullyQualifiedNamespace, or the DNS of the network.",
    )
    SERVICE_BUS_REFUSED = (
        "Nothing takes connections of the right kind at the namespace's address.",
        "Correct ServiceBusConnection__fullyQualifiedNamespace, or open the firewall for port 5671.",
    )
    SERVICE_BUS_SILENT = (
        "Connections to the namespace get no answer: usually something between drops them.",
        "Open the firewall for outgoing connections to port 5671; look at routes and at the namespace's network rules.",
    )
    SERVICE_BUS_CERTIFICATE_NOT_TRUSTED = (
        "Whoever answers for the namespace shows a certificate that is not trusted here, or is another's.",
        (
            "Correct ServiceBusConnection__fullyQualifiedNamespace; where a company's proxy inspects TLS, name its "
            "authority in SSL_CERT_FILE."
        ),
    )
    # Dataverse
    DATAVERSE_UNAUTHORIZED = (
        "Dataverse does not accept the token (401): it is for another environment or of another tenant.",
        "Check that DATAVERSE_URL is the environment's own address and that the identity belongs to its tenant.",
    )
    DATAVERSE_FORBIDDEN = (
        "Dataverse refuses this identity altogether (403).",
        "What is seen names the reason; `operations connect` sets the application user up.",
    )
    NOT_A_WEB_API = (
        "Something answers at DATAVERSE_URL that is not a Dataverse Web API.",
        (
            "Set DATAVERSE_URL to the environment's address and nothing after it, such as "
            "https://contoso.crm.dynamics.com; look at proxies."
        ),
    )
    DATAVERSE_UNAVAILABLE = (
        "Dataverse answers with errors of its own, or does not answer in time.",
        "Look at the service health of Dynamics 365 and try again; wins wait meanwhile.",
    )
    DATAVERSE_THROTTLED = (
        "Dataverse asks this identity to hold back (429).",
        "Wait some minutes. If it stays: fewer calls at once, and nobody else with this application user.",
    )
    DATAVERSE_REFUSED_A_QUESTION = (
        "Dataverse refused a question of this command: the link could not be judged.",
        "Read what Dataverse says; if the environment is a customised one, look at this link by hand.",
    )
    OTHER_ENVIRONMENT = (
        (
            "DATAVERSE_URL leads to another environment than DATAVERSE_ORGANIZATION_ID names: its wins are parked as "
            "OtherOrganization."
        ),
        "Correct one of the two; WhoAmI gives the id that belongs to the URL.",
    )
    ORGANIZATION_ID_NOT_SET = (
        "Events of another environment, a copy of production for instance, would be looked up in this one.",
        "Set DATAVERSE_ORGANIZATION_ID to the id that is seen.",
    )
    SALES_MISSING = (
        "The environment has no Dynamics 365 Sales: there is nothing to win or to invoice.",
        "Correct DATAVERSE_URL, or install Dynamics 365 Sales there.",
    )
    APPLICATION_USER_MISSING = (
        "The function's identity is not a user of this environment: each of its calls is refused with 403.",
        "`operations connect`, with the identity's client id as --application-id.",
    )
    APPLICATION_USER_DISABLED = (
        "The application user is deactivated: each of its calls is refused with 403.",
        "Activate it in the Power Platform admin center, then `operations connect`.",
    )
    APPLICATION_USER_GONE = (
        "The identity behind the application user was deleted, or is about to be.",
        "Restore the identity, or deploy a new one and run `operations connect` with its client id.",
    )
    PRIVILEGE_MISSING = (
        "The application user lacks privileges: invoices are refused with 403, or are not seen.",
        "`operations connect`; in an environment with rules of its own add them to the role by hand.",
    )
    PRIVILEGE_TOO_SHALLOW = (
        (
            "Privileges do not reach far enough: rows of other people are missing from answers without a word, and "
            '"no invoice" may be a lie.'
        ),
        "`operations connect` raises them; or set them to Organization in the role by hand.",
    )
    OPTIONAL_PRIVILEGE_MISSING = (
        "Only older lists name these privileges; most environments do not ask for them.",
        "Nothing, unless Dataverse names one of them in a refusal.",
    )
    ENDPOINT_MISSING = (
        "There is no service endpoint for the queue: no win is ever posted.",
        "`operations connect`.",
    )
    ENDPOINT_OTHER_NAMESPACE = (
        "The service endpoint posts to another namespace than the function listens to.",
        "`operations connect` with the key of the right namespace; or correct the function's settings.",
    )
    ENDPOINT_OTHER_QUEUE = (
        "The service endpoint posts to another queue than the function listens to.",
        "`operations connect`, or correct OPPORTUNITY_WON_QUEUE.",
    )
    ENDPOINT_NOT_A_QUEUE = (
        "The service endpoint is made for something else than a queue.",
        "`operations connect` corrects it.",
    )
    ENDPOINT_OLD_CONTRACT = (
        "The endpoint's contract is 2; tools that are newer write 6, a persistent queue. Both are said to work.",
        "Nothing, as long as wins arrive; otherwise `operations disconnect` and `operations connect`, which writes 6.",
    )
    ENDPOINT_NOT_JSON = (
        "The service endpoint does not post JSON: its messages are parked as InvalidEvent.",
        "`operations connect` sets the message format to JSON.",
    )
    ENDPOINT_WITHOUT_KEY = (
        "The service endpoint has no SAS key to send with: posts fail.",
        "`operations connect` with the key of the rule dataverse.",
    )
    STEP_MISSING = (
        "No step posts won opportunities to the service endpoint: no win is ever posted.",
        "`operations connect`.",
    )
    STEP_OTHER_MESSAGE = (
        "The step is registered on another message or table than Win of opportunity.",
        "Delete the step, then `operations connect`.",
    )
    STEP_OTHER_ENDPOINT = (
        "The step posts to another service endpoint.",
        "Delete the step, then `operations connect`.",
    )
    STEP_DISABLED = (
        "The step is disabled: wins are not posted, and nothing makes up for it.",
        "`operations connect` enables it; then `operations reconcile`, since the day on which it was disabled.",
    )
    STEP_SYNCHRONOUS = (
        (
            "The step posts while the win is being saved: nobody can win while Service Bus is away, and what "
            "is rolled back was posted all the same."
        ),
        "Delete the step, then `operations connect` makes an asynchronous one.",
    )
    JOBS_RETRYING = (
        "Posts failed and are tried again by Dataverse with growing intervals.",
        "What is seen tells why; a refused key: rotate it with `operations connect`.",
    )
    JOBS_FAILED = (
        "Dataverse gave posts up in the last days: these wins will never come by themselves.",
        (
            "Mend what the message names, then `operations reconcile --send`, since that day; delete the failed system "
            "jobs when done."
        ),
    )
    # Service Bus
    SERVICE_BUS_KEY_REFUSED = (
        "The namespace does not accept the key of the connection string.",
        "Correct ServiceBusConnection: the key was rotated, or belongs to another namespace or entity.",
    )
    SERVICE_BUS_UNAVAILABLE = (
        "The namespace answers, but not as it should.",
        "Look at the service health of Service Bus and try again.",
    )
    ENTITY_MISSING = (
        "A queue or topic is not in the namespace.",
        "Deploy the infrastructure, or correct the setting that names it.",
    )
    ENTITY_DISABLED = (
        "A queue or topic is disabled: nothing can be sent to it.",
        "Set its status to Active.",
    )
    QUEUE_PAUSED = (
        "The queue hands nothing out: somebody has paused the function. Wins wait, for 14 days.",
        "When it is meant to run: set the queue's status to Active (and paused = false in the parameters).",
    )
    NO_RIGHT_TO_RECEIVE = (
        "The function's identity may not receive from the queue: wins are waiting there.",
        "Assign Azure Service Bus Data Receiver on the queue to the identity; it takes minutes to work.",
    )
    NO_RIGHT_TO_SEND = (
        "The function's identity may not send where it must: retries, failures or events cannot go out.",
        "Assign Azure Service Bus Data Sender on the entity to the identity; it takes minutes to work.",
    )
    NAMESPACE_ID_WRONG = (
        "--namespace-id is not the resource of the namespace that the settings name.",
        "az deployment group show … --query properties.outputs, or the namespace's page in the portal, has the id.",
    )
    LOCK_DURATION_DIFFERS = (
        "Messages are locked for another time than designed.",
        "Deploy the infrastructure.",
    )
    MAX_DELIVERY_COUNT_DIFFERS = (
        (
            "Messages are given up after another number of deliveries than designed; in the failed queue, looking at "
            "messages may wear them out."
        ),
        "Deploy the infrastructure.",
    )
    DUPLICATE_DETECTION_DIFFERS = (
        "Duplicates are detected otherwise than designed: repeated events go out twice, or replays are dropped.",
        "Its window: deploy the infrastructure. On or off cannot be changed: empty and delete the entity, then deploy.",
    )
    DEAD_LETTERING_ON_EXPIRATION_OFF = (
        "What is too old is dropped without a trace.",
        "Deploy the infrastructure.",
    )
    DEAD_LETTER_FORWARDING_DIFFERS = (
        "Messages that the broker gives up do not come to the failed queue, where somebody looks.",
        "Deploy the infrastructure; look into the queue's own dead-letter queue.",
    )
    TIME_TO_LIVE_TOO_SHORT = (
        "Messages grow too old before somebody is done with them.",
        "Deploy the infrastructure.",
    )
    AUDIT_SUBSCRIPTION_MISSING = (
        "Nobody keeps the published events: a lost one cannot be looked up.",
        "Deploy the infrastructure.",
    )
    # What has piled up
    MESSAGES_FAILED = (
        "Wins, or what looks like them, failed for good and wait for a decision.",
        "`operations failed list`; then the runbook by reason.",
    )
    DEAD_LETTERS = (
        "Messages of the failed queue were picked so often that the broker put them aside.",
        "Service Bus Explorer in the portal: resubmit them; then `operations failed list`.",
    )
    RETRIES_OLD = (
        "Wins have been tried again for more than 30 minutes: something is down, or not set up.",
        "`operations waiting list` says why; mend it, then `operations waiting retry-now --all`.",
    )
    # --try-claim
    CHANGE_SET_SUCCEEDED = (
        "Dataverse carried out a change set that must fail: a claim does not keep a second invoice from being made.",
        "Stop the function (pause the queue) and do not go live. Delete what is named, and ask Microsoft's support.",
    )
    CHANGE_SET_LEFT_SOMETHING_BEHIND = (
        (
            "A change set failed, and a part of it is there all the same: a change set is no transaction here, so an "
            "opportunity can be invoiced twice."
        ),
        (
            "Stop the function (pause the queue) and do not go live. Delete what is named; look for plug-ins that make "
            "invoices or notes outside of the transaction."
        ),
    )
    CHANGE_SET_REFUSED_OTHERWISE = (
        (
            "The change set failed before it came to the point, so nothing is proven; the function would be refused "
            "in the same way."
        ),
        "Mend what Dataverse names (a price list, a privilege, a rule), or choose another opportunity.",
    )


REMARKS = frozenset(
    {
        Finding.ORGANIZATION_ID_NOT_SET,
        Finding.OPTIONAL_PRIVILEGE_MISSING,
        Finding.ENDPOINT_OLD_CONTRACT,
        Finding.QUEUE_PAUSED,
    }
)
# What has piled up says that something was wrong with these wins, not that anything is wrong with the chain: after the
# mend it is still there, until somebody has seen to it.
LEFT_OVER = frozenset(
    {Finding.JOBS_FAILED, Finding.MESSAGES_FAILED, Finding.DEAD_LETTERS, Finding.RETRIES_OLD}
)


@dataclass(frozen=True)
class Result:
    """What was seen of a link. `right`: what would have to be given to whoever looks, where it cannot be seen."""

    state: State
    seen: str
    finding: Finding | None = None
    right: str = ""


class CannotSee(Exception):
    """Whoever looks lacks `right`."""

    def __init__(self, seen: str, right: str) -> None:
        super().__init__(seen)
        self.result = Result(State.CANNOT_SEE, seen, right=right)


class Found(Exception):
    """Something is wrong that keeps a link from being looked at any further."""

    def __init__(self, finding: Finding, seen: str) -> None:
        super().__init__(seen)
        self.result = found(finding, seen)


def ok(seen: str) -> list[Result]:
    """Return that a link is as it should be."""
    return [Result(State.OK, seen)]


def found(finding: Finding, seen: str) -> Result:
    """Return a finding; one line, of a length that can be read."""
    return Result(finding.state, " ".join(seen.split())[:500], finding)
