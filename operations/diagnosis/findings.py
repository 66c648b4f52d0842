"""What `operations doctor` can find: every finding with its stable code, what it means and what to do.

Scripts, alerts and the runbook rely on the codes; docs/doctor.md is written from this table.
"""

from __future__ import annotations

from enum import Enum

from operations.diagnosis.check import State

_CONNECT = "`operations connect`"
_DEPLOY = "Deploy the infrastructure."
_STOP = "Stop the function (pause the queue) and do not go live. Delete what is named"


class Finding(Enum):
    """What can be wrong. The code is the name in lower case with hyphens."""

    def __init__(self, meaning: str, advice: str, state: State = State.PROBLEM) -> None:
        self.meaning = meaning
        self.advice = advice
        # A problem is broken now. What has piled up says that something was wrong with these wins, not that anything is
        # wrong now: it remains after the fix, until a person has seen to it.
        self.state = state

    @property
    def code(self) -> str:
        """The stable word for scripts and the runbook."""
        return self.name.lower().replace("_", "-")

    # Settings and identity
    SETTINGS_INVALID = (
        "App settings are missing or wrong: the function reschedules every win, or cannot even do that.",
        "Correct the settings that are named, in Bicep, and deploy.",
    )
    THREADS_DIFFER_FROM_CALLS = (
        (
            "The host delivers more, or fewer, messages at once than there are threads: the surplus waits while "
            "its lock expires."
        ),
        "Set PYTHON_THREADPOOL_THREAD_COUNT to maxConcurrentCalls of host.json.",
    )
    TOKEN_UNAVAILABLE = (
        "The identity returns no token, so no service can be used.",
        (
            "Check that AZURE_CLIENT_ID is the client id of an identity that is assigned to the app (or run az "
            "login), and, for Dataverse alone, that DATAVERSE_URL names an environment of the same tenant."
        ),
    )
    TOKEN_OF_ANOTHER_IDENTITY = (
        "The token belongs to another identity than AZURE_CLIENT_ID names: one has the rights, the other uses them.",
        "Set AZURE_CLIENT_ID and ServiceBusConnection__clientId to the client id of the one identity.",
    )
    # Network
    DATAVERSE_NAME_UNKNOWN = (
        "The host name of DATAVERSE_URL has no address.",
        "Correct DATAVERSE_URL, or the DNS of the function's network.",
    )
    DATAVERSE_REFUSED = (
        "Nothing accepts TLS connections at the address of DATAVERSE_URL.",
        "Correct DATAVERSE_URL, or open the firewall for outgoing connections to port 443.",
    )
    DATAVERSE_SILENT = (
        "Connections to Dataverse get no response: usually a firewall or a route drops them.",
        "Open the firewall for outgoing connections to port 443; check routes and proxies.",
    )
    DATAVERSE_CERTIFICATE_NOT_TRUSTED = (
        "The server at DATAVERSE_URL shows a certificate that is not trusted here, or belongs to another name.",
        "Correct DATAVERSE_URL; if a proxy inspects TLS, name its authority in SSL_CERT_FILE and REQUESTS_CA_BUNDLE.",
    )
    SERVICE_BUS_NAME_UNKNOWN = (
        "The host name of the namespace has no address.",
        "Correct ServiceBusConnection__fullyQualifiedNamespace, or the DNS of the network.",
    )
    SERVICE_BUS_REFUSED = (
        "Nothing accepts AMQP connections at the namespace's address.",
        "Correct ServiceBusConnection__fullyQualifiedNamespace, or open the firewall for port 5671.",
    )
    SERVICE_BUS_SILENT = (
        "Connections to the namespace get no response: usually a firewall or a route drops them.",
        "Open the firewall for outgoing connections to port 5671; check routes and the namespace's network rules.",
    )
    SERVICE_BUS_CERTIFICATE_NOT_TRUSTED = (
        "The namespace's server shows a certificate that is not trusted here, or belongs to another name.",
        (
            "Correct ServiceBusConnection__fullyQualifiedNamespace; if a proxy inspects TLS, name its authority "
            "in SSL_CERT_FILE."
        ),
    )
    # Dataverse
    DATAVERSE_UNAUTHORIZED = (
        "Dataverse does not accept the token (401): it is for another environment or of another tenant.",
        "Check that DATAVERSE_URL is the environment's own address and that the identity belongs to its tenant.",
    )
    DATAVERSE_FORBIDDEN = (
        "Dataverse refuses every request of this identity (403).",
        f"What is seen names the reason; {_CONNECT} sets up the application user.",
    )
    NOT_A_WEB_API = (
        "The server at DATAVERSE_URL is not a Dataverse Web API.",
        "Set DATAVERSE_URL to the environment's address, such as https://contoso.crm.dynamics.com; check proxies.",
    )
    DATAVERSE_UNAVAILABLE = (
        "Dataverse responds with errors of its own, or does not respond in time.",
        "Check the service health of Dynamics 365 and try again; wins wait meanwhile.",
    )
    DATAVERSE_THROTTLED = (
        "Dataverse throttles this identity (429).",
        "Wait some minutes. If it stays: fewer calls at once, and nothing else with this application user.",
    )
    DATAVERSE_REFUSED_A_QUESTION = (
        "Dataverse refused a query of this command, so this check has no result.",
        "Read what Dataverse says; in a customised environment, check this by hand.",
    )
    OTHER_ENVIRONMENT = (
        "DATAVERSE_URL and DATAVERSE_ORGANIZATION_ID name two environments: wins are parked as OtherOrganization.",
        "Correct one of the two; WhoAmI returns the id that belongs to the URL.",
    )
    ORGANIZATION_ID_NOT_SET = (
        "Events of another environment, a copy of production for instance, would be processed against this one.",
        "Set DATAVERSE_ORGANIZATION_ID to the id that is seen.",
        State.REMARK,
    )
    SALES_MISSING = (
        "The environment has no Dynamics 365 Sales: there is nothing to win or to invoice.",
        "Correct DATAVERSE_URL, or install Dynamics 365 Sales there.",
    )
    COLUMNS_UNKNOWN = (
        (
            "INVOICE_COLUMNS names columns of the invoice that Dataverse does not have, or that cannot be published: "
            "events contain the reason in place of the value."
        ),
        "Correct INVOICE_COLUMNS, in Bicep, and deploy: it takes logical names.",
    )
    APPLICATION_USER_MISSING = (
        "The function's identity is not a user of this environment: each of its calls is refused with 403.",
        f"{_CONNECT}, with the identity's client id as --application-id.",
    )
    APPLICATION_USER_DISABLED = (
        "The application user is deactivated: each of its calls is refused with 403.",
        "Activate it in the Power Platform admin center (Application users); `operations connect` does not.",
    )
    APPLICATION_USER_GONE = (
        "The identity of the application user was deleted, or is about to be.",
        f"Restore the identity, or deploy a new one and run {_CONNECT} with its client id.",
    )
    PRIVILEGE_MISSING = (
        "The application user lacks privileges: invoices are refused with 403, or are not seen.",
        f"{_CONNECT}; in an environment with rules of its own add them to the role by hand.",
    )
    PRIVILEGE_TOO_SHALLOW = (
        'Privileges are too shallow: rows of other people are missing without an error, and "no invoice" may be wrong.',
        f"{_CONNECT} raises them; or set them to Organization in the role by hand.",
    )
    OPTIONAL_PRIVILEGE_MISSING = (
        "Only older lists name these privileges; most environments do not need them.",
        "Nothing, unless Dataverse names one of them in a refusal.",
        State.REMARK,
    )
    ENDPOINT_MISSING = "There is no service endpoint for the queue: no win is ever posted.", f"{_CONNECT}."
    ENDPOINT_OTHER_NAMESPACE = (
        "The service endpoint posts to another namespace than the function's.",
        f"{_CONNECT} with the key of the right namespace; or correct the function's settings.",
    )
    ENDPOINT_OTHER_QUEUE = (
        "The service endpoint posts to another queue than the function's.",
        f"{_CONNECT}, or correct OPPORTUNITY_WON_QUEUE.",
    )
    ENDPOINT_NOT_A_QUEUE = "The service endpoint is not for a queue.", f"{_CONNECT} corrects it."
    ENDPOINT_OLD_CONTRACT = (
        "The endpoint's contract is 2; newer tools write 6, a persistent queue. Both are said to work.",
        f"Nothing, as long as wins arrive; otherwise `operations disconnect` and {_CONNECT}, which writes 6.",
        State.REMARK,
    )
    ENDPOINT_NOT_JSON = (
        "The service endpoint does not post JSON: its messages are parked as InvalidEvent.",
        f"{_CONNECT} sets the message format to JSON.",
    )
    ENDPOINT_WITHOUT_KEY = (
        "The service endpoint has no SAS key to send with: posts fail.",
        f"{_CONNECT} with the key of the rule dataverse.",
    )
    STEP_MISSING = (
        "No step posts won opportunities to the service endpoint: no win is ever posted.",
        f"{_CONNECT}.",
    )
    STEP_OTHER_MESSAGE = (
        "The step is registered on another message or table than Win of opportunity.",
        f"Delete the step, then {_CONNECT}.",
    )
    STEP_OTHER_ENDPOINT = "The step posts to another service endpoint.", f"Delete the step, then {_CONNECT}."
    STEP_DISABLED = (
        "The step is disabled: wins are not posted, and are not posted later either.",
        f"{_CONNECT} enables it; then `operations reconcile` since the day on which it was disabled.",
    )
    STEP_SYNCHRONOUS = (
        (
            "The step posts while the win is saved: nobody can win while Service Bus is unavailable, and a win "
            "that is rolled back was posted all the same."
        ),
        f"Delete the step, then {_CONNECT} creates an asynchronous one.",
    )
    JOBS_RETRYING = (
        "Posts failed, and Dataverse retries them with growing intervals.",
        f"What is seen says why; a refused key: rotate it with {_CONNECT}.",
    )
    JOBS_FAILED = (
        "Dataverse gave up posts in the last days: these wins never come by themselves.",
        "Fix what the message names, then `operations reconcile --send` since that day; delete the failed system jobs.",
        State.ATTENTION,
    )
    # Service Bus
    SERVICE_BUS_KEY_REFUSED = (
        "The namespace does not accept the key of the connection string.",
        "Correct ServiceBusConnection: the key was rotated, or belongs to another namespace or entity.",
    )
    SERVICE_BUS_UNAVAILABLE = (
        "The namespace responds, but not as Service Bus does.",
        "Check the service health of Service Bus and try again.",
    )
    ENTITY_MISSING = (
        "A queue or topic is not in the namespace.",
        "Deploy the infrastructure, or correct the setting that names it.",
    )
    ENTITY_DISABLED = "A queue or topic is disabled: nothing can be sent to it.", "Set its status to Active."
    QUEUE_PAUSED = (
        "The queue delivers nothing: the function is paused. Wins wait, for 14 days.",
        "When it is meant to run: set the queue's status to Active (and paused = false in the parameters).",
        State.REMARK,
    )
    NO_RIGHT_TO_RECEIVE = (
        "The function's identity may not receive from the queue: wins wait there.",
        "Assign Azure Service Bus Data Receiver on the queue to the identity; it takes minutes to work.",
    )
    NO_RIGHT_TO_SEND = (
        "The function's identity may not send where it must: retries, failures or events cannot be sent.",
        "Assign Azure Service Bus Data Sender on the entity to the identity; it takes minutes to work.",
    )
    NAMESPACE_ID_WRONG = (
        "--namespace-id is not the resource of the namespace that the settings name.",
        "The deployment's output serviceBusNamespaceId, or the namespace's page in the portal, has the id.",
    )
    ROOT_KEY_EXISTS = (
        "The namespace has the key that Azure creates with it: its holder may do everything, without any role.",
        "Delete the rule, once nothing uses it: az servicebus namespace authorization-rule delete.",
        State.REMARK,
    )
    LOCK_DURATION_DIFFERS = "Messages are locked for another time than designed.", _DEPLOY
    MAX_DELIVERY_COUNT_DIFFERS = (
        (
            "Messages are given up after another number of deliveries than designed; in the failed queue, "
            "replaying one message may dead-letter others."
        ),
        _DEPLOY,
    )
    DUPLICATE_DETECTION_DIFFERS = (
        "Duplicates are not detected as designed: repeated events are published twice, or replays are dropped.",
        "Its window: deploy the infrastructure. On or off cannot be changed: empty and delete the entity, then deploy.",
    )
    DEAD_LETTERING_ON_EXPIRATION_OFF = "Expired messages are dropped without a trace.", _DEPLOY
    DEAD_LETTER_FORWARDING_DIFFERS = (
        "Messages that the broker gives up do not reach the failed queue.",
        "Deploy the infrastructure; `operations failed list` shows the queue's own dead-letter queue too.",
    )
    TIME_TO_LIVE_TOO_SHORT = "Messages expire before they are processed.", _DEPLOY
    AUDIT_SUBSCRIPTION_MISSING = (
        "No subscription keeps the published events: a lost one cannot be found again.",
        _DEPLOY,
    )
    # What has piled up
    MESSAGES_FAILED = (
        "Wins failed for good and wait for a decision.",
        "`operations failed list`; then the runbook by reason.",
        State.ATTENTION,
    )
    DEAD_LETTERS = (
        "The broker gave up messages of the failed queue.",
        "`operations failed list` shows them as failed-dlq:NUMBER; replay or discard them in the same way.",
        State.ATTENTION,
    )
    RETRIES_OLD = (
        "Wins have been retried for more than 30 minutes: something is down, or not set up.",
        "`operations waiting list` says why; fix it, then `operations waiting retry-now --all`.",
        State.ATTENTION,
    )
    # --try-claim
    CHANGE_SET_SUCCEEDED = (
        "Dataverse processed a change set that must fail: a claim does not prevent a second invoice.",
        f"{_STOP}, and ask Microsoft's support.",
    )
    CHANGE_SET_LEFT_SOMETHING_BEHIND = (
        (
            "A change set failed, and a part of it exists all the same: a change set is no transaction here, so "
            "an opportunity can be invoiced twice."
        ),
        f"{_STOP}; check for plug-ins that create invoices or notes outside of the transaction.",
    )
    CHANGE_SET_REFUSED_OTHERWISE = (
        "The change set failed before its last write, so nothing is proven; the function would be refused too.",
        "Fix what Dataverse names (a price list, a privilege, a rule), or try another opportunity.",
    )
    BATCH_STOPS_AT_FAILURE = (
        "The environment stops a batch at a failed change set, although it is asked to go on.",
        "Nothing: the function then makes its reads in a second request.",
        State.REMARK,
    )
