"""`python -m operations doctor`: each finding has a broken set-up in which it, and nothing else, is found."""

from __future__ import annotations

import copy
import gc
import io
import json
import re
import socket
import socketserver
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from operator import methodcaller as does
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import uuid4

import pytest
from cheroot import wsgi
from click.testing import CliRunner

from operations.__main__ import operations
from operations.diagnosis.check import State
from operations.diagnosis.findings import Finding
from operations.doctor import findings_page
from operations.identity import owner_of
from sandbox.certificates import CertificateAuthority
from sandbox.cloud.namespace import NamespaceServer
from sandbox.dataverse import DataverseApp, DataverseServer, ResponseLost, seed
from sandbox.dataverse.organization import FailedChangeSet
from sandbox.dataverse.schema import TABLES
from sandbox.dataverse.web_api import _OperationRefused
from sandbox.http_server import HttpServer, StartResponse, respond_json
from sandbox.identity import Identity, IdentityServer, InvalidToken, TokenAuthority
from sandbox.service_bus import (
    Authenticator,
    Broker,
    Configuration,
    Message,
    Observation,
    ReceiveMode,
    Role,
    RoleAssignment,
    ServiceBusServer,
)
from sandbox.service_bus.configuration import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

# The SDK leaves sockets open whose connection did not come about, until they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROOT = Path(__file__).resolve().parents[2]
QUEUE, FAILED, TOPIC = "opportunity-won", "opportunity-won-failed", "invoice-created"
NAMESPACE_ID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ServiceBus/namespaces/sandbox"
OPERATOR = Identity.named("operator")
FUNCTION = Identity.named("function", OPERATOR.tenant_id)
# Identities like the function's, each with less than it needs.
DEAF = Identity.named("may not receive", OPERATOR.tenant_id)
MUTE = Identity.named("may not send to the topic", OPERATOR.tenant_id)
# The pipeline's read connection, with the rights of infrastructure/operators.bicep, and in Dataverse those of
# docs/deploy.md: enough for every check, and no more. Operators have these rights too.
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
READS = re.findall(r"`(prvRead\w+)`", DEPLOY)
READER = Identity.named("read connection of the pipeline", OPERATOR.tenant_id)
UNKNOWN = Identity.named("no application user", OPERATOR.tenant_id)
Row = dict[str, Any]
Reply = tuple[int, dict[str, str], bytes]


# ------------------------------------------------------------------------------------------- the set-up


class Organization(DataverseApp):
    """A Dataverse whose change sets can be made what they must not be."""

    is_atomic = True
    forgives_duplicates = False
    loses_responses = False
    # What something in front of Dataverse responds in its place, by path.
    instead: Callable[[str], Reply | None] | None = None

    def _change_set(self, change_set: Any, caller: Any, info: Any, prefer: Any) -> list[Any]:  # noqa: ANN401 - the emulator's own
        if self.is_atomic and not self.forgives_duplicates:
            return super()._change_set(change_set, caller, info, prefer)
        parts = []
        for operation in change_set.operations:
            try:
                parts += super()._change_set(type(change_set)([operation]), caller, info, prefer)
            except _OperationRefused:
                if not self.forgives_duplicates:
                    raise
                parts.append(parts[-1])
        return parts

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ANN401 - WSGI
        if self.instead is not None and (reply := self.instead(environ["PATH_INFO"])) is not None:
            status, headers, body = reply
            start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
            return [body]
        is_change = self.loses_responses and self._changes(environ)
        response = super().__call__(environ, start_response)
        if is_change:
            raise ResponseLost
        return response

    @staticmethod
    def _changes(environ: dict[str, Any]) -> bool:
        body = environ["wsgi.input"].read()
        environ["wsgi.input"] = io.BytesIO(body)
        return b"GenerateInvoiceFromOpportunity" in body


class Azure(HttpServer):
    """Azure Resource Manager, as far as the doctor needs it: resources by path, for a valid token."""

    def __init__(self, tokens: TokenAuthority, host: str) -> None:
        self._tokens = tokens
        self.is_reader = True
        self.resources = _resources(host)
        server = wsgi.Server(("127.0.0.1", 0), self, numthreads=4, timeout=5, shutdown_timeout=1)
        super().__init__("azure", server)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return respond_json(start_response, *self._respond(environ))

    def _respond(self, environ: dict[str, Any]) -> tuple[HTTPStatus, object]:
        try:
            token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
            self._tokens.verify(token, [self.endpoint])
        except InvalidToken as error:
            return HTTPStatus.UNAUTHORIZED, {
                "error": {"code": "InvalidAuthenticationToken", "message": error.reason}
            }
        query = parse_qs(environ["QUERY_STRING"])
        if not self.is_reader:
            return HTTPStatus.FORBIDDEN, {"error": {"code": "AuthorizationFailed", "message": "no"}}
        key = environ["PATH_INFO"] + "".join(query.get("$filter", []))
        if "api-version" not in query or key not in self.resources:
            return HTTPStatus.NOT_FOUND, {"error": {"code": "ResourceNotFound", "message": key}}
        return HTTPStatus.OK, self.resources[key]


def _resources(host: str) -> dict[str, Any]:
    """Return what is deployed, as Resource Manager tells it."""
    sender, receiver, reader = (f"/roles/{name}" for name in ("sender", "receiver", "reader"))
    queue = {
        "lockDuration": "PT1M",
        "maxDeliveryCount": 10,
        "requiresDuplicateDetection": True,
        "duplicateDetectionHistoryTimeWindow": "PT10M",
        "defaultMessageTimeToLive": "P14D",
        "deadLetteringOnMessageExpiration": True,
        "forwardDeadLetteredMessagesTo": FAILED,
        "status": "Active",
        "countDetails": {"activeMessageCount": 0, "deadLetterMessageCount": 0, "scheduledMessageCount": 0},
    }
    failed = {
        **queue,
        "maxDeliveryCount": 2000,
        "requiresDuplicateDetection": False,
        "defaultMessageTimeToLive": "P10675199DT2H48M5.4775807S",
    }
    del failed["forwardDeadLetteredMessagesTo"]
    topic = {"requiresDuplicateDetection": True, "duplicateDetectionHistoryTimeWindow": "P7D"}
    resources = {
        NAMESPACE_ID: {"serviceBusEndpoint": f"https://{host}:443/"},
        f"{NAMESPACE_ID}/queues/{QUEUE}": queue,
        f"{NAMESPACE_ID}/queues/{FAILED}": failed,
        f"{NAMESPACE_ID}/topics/{TOPIC}": topic,
        f"{NAMESPACE_ID}/topics/{TOPIC}/subscriptions/audit": {"maxDeliveryCount": 10},
    }
    for role, actions in (
        (sender, ["Microsoft.ServiceBus/*/send/action"]),
        (receiver, ["Microsoft.ServiceBus/*/receive/action"]),
        (reader, []),
    ):
        resources[role] = {
            "permissions": [{"actions": ["*/read"], "dataActions": actions, "notDataActions": []}]
        }
    documents: dict[str, Any] = {path: {"id": path, "properties": each} for path, each in resources.items()}
    for entity, roles in (
        (f"queues/{QUEUE}", [reader, receiver, sender]),
        (f"queues/{FAILED}", [reader, sender]),
        (f"topics/{TOPIC}", [reader, sender]),
    ):
        documents[_assignments(entity)] = {
            "value": [{"properties": {"roleDefinitionId": role}} for role in roles]
        }
    return documents


def _assignments(entity: str) -> str:
    return (
        f"{NAMESPACE_ID}/{entity}/providers/Microsoft.Authorization/roleAssignments"
        f"assignedTo('{FUNCTION.object_id}')"
    )


@dataclass
class Sandbox:
    """Everything that `doctor` checks, and the command line with its settings."""

    organization: Organization
    opportunities: tuple[str, ...]
    broker: Broker
    azure: Azure
    authenticator: Authenticator
    namespace: str
    plain: ServiceBusServer
    environment: dict[str, str]

    def doctor(self, environment: Mapping[str, str], *arguments: str) -> tuple[int, list[Row]]:
        run = CliRunner().invoke(
            operations, ["doctor", "--json", *arguments], env={**self.environment, **environment}
        )
        assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
        rows: list[Row] = json.loads(run.stdout)
        return run.exit_code, rows

    @property
    def arm(self) -> tuple[str, ...]:
        return "--namespace-id", NAMESPACE_ID, "--arm-endpoint", self.azure.endpoint

    def rows(self, table: str, **values: object) -> list[Row]:
        with self.organization.session() as session:
            every = [dict(row) for row in session.transaction.rows(TABLES[table])]
        return [row for row in every if values.items() <= row.items()]

    def write(self, change: str, table: str, *row: object) -> Any:  # noqa: ANN401 - the emulator's
        """Insert, update or delete a row."""
        with self.organization.session() as session:
            return getattr(session.transaction, change)(TABLES[table], *row)


@pytest.fixture(scope="module")
def tokens() -> TokenAuthority:
    return TokenAuthority()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, tokens: TokenAuthority) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("doctor")
    certificates = CertificateAuthority(folder)
    organization = Organization(tokens.verify, post=lambda *_: None)
    demo = seed.demo_organization(organization, opportunities=3)
    seed.add_administrator(organization, OPERATOR.client_id)
    reader = seed.add_role(organization, READS, name="Invoicing reader")
    seed.add_application_user(organization, READER.client_id, roles=[reader])
    configuration = Configuration.load()
    broker = Broker(configuration)
    authenticator = Authenticator(
        configuration, verify_token=tokens.verify, role_assignments=list(_role_assignments())
    )
    with ExitStack() as stack:
        stack.callback(organization.close)
        identities = stack.enter_context(
            IdentityServer(
                tokens, [OPERATOR, READER, FUNCTION, DEAF, MUTE, UNKNOWN], system_assigned=FUNCTION
            )
        )
        context = certificates.server_context("127.0.0.1", "localhost")
        server = stack.enter_context(DataverseServer(organization, context))
        plain = stack.enter_context(ServiceBusServer(broker, authenticator=authenticator))
        namespace = NamespaceServer(broker, authenticator, certificates)
        namespace.start_tls(stack)
        azure = stack.enter_context(Azure(tokens, namespace.address))
        # The public roots would be read for each connection again.
        authority = folder / "authority.pem"
        _, begin, ours = certificates.bundle.read_text().rpartition("-----BEGIN CERTIFICATE-----")
        authority.write_text(begin + ours)
        environment = {
            "SSL_CERT_FILE": str(authority),
            "REQUESTS_CA_BUNDLE": str(authority),
            **identities.settings,
            "OPERATIONS_CLIENT_ID": OPERATOR.client_id,
            "DATAVERSE_URL": server.url,
            "DATAVERSE_ORGANIZATION_ID": organization.organization.id,
            "AZURE_CLIENT_ID": FUNCTION.client_id,
            "ServiceBusConnection__fullyQualifiedNamespace": namespace.address,
            "ServiceBusConnection__credential": "managedidentity",
            "ServiceBusConnection__clientId": FUNCTION.client_id,
            "OPPORTUNITY_WON_QUEUE": QUEUE,
            "OPPORTUNITY_WON_FAILED_QUEUE": FAILED,
            "INVOICE_CREATED_TOPIC": TOPIC,
            "PYTHON_THREADPOOL_THREAD_COUNT": "16",
        }
        sandbox = Sandbox(
            organization,
            demo.opportunities,
            broker,
            azure,
            authenticator,
            namespace.address,
            plain,
            environment,
        )
        _connect(sandbox)
        yield sandbox
    # Threads that were left behind in a call give up soon, now that nobody listens any more. What they leave behind is
    # collected here, where it is known why, and not in the middle of somebody else's test.
    bound = time.monotonic() + 30
    while any(thread.name == "service bus" for thread in threading.enumerate()) and time.monotonic() < bound:
        time.sleep(0.05)
    gc.collect()


def _connect(sandbox: Sandbox) -> None:
    """Set Dataverse up with the command that does it for everybody."""
    for identity in (FUNCTION, DEAF, MUTE):
        done = CliRunner().invoke(
            operations,
            ["connect", "--application-id", identity.client_id, "--yes"],
            # With the columns of the scenarios that have some: they take privileges of their own.
            env={
                **sandbox.environment,
                "OPPORTUNITY_WON_SAS_KEY": "k" * 44,
                "INVOICE_COLUMNS": "billto_city",
            },
        )
        assert done.exit_code == 0, (done.output, done.exception)
        (user,) = sandbox.rows("systemuser", applicationid=identity.client_id)
        with sandbox.organization.session() as session:
            # Dataverse looks it up in Entra ID.
            values = {"azureactivedirectoryobjectid": identity.object_id}
            session.transaction.update(TABLES["systemuser"], user["systemuserid"], values)


def _role_assignments() -> Iterator[RoleAssignment]:
    yield RoleAssignment(OPERATOR.client_id, Role.OWNER)
    for entity, role in (
        (QUEUE, Role.RECEIVER),
        (FAILED, Role.RECEIVER),
        (f"{TOPIC}/Subscriptions/audit", Role.RECEIVER),
    ):
        yield RoleAssignment(READER.client_id, role, entity)
    for identity in (FUNCTION, DEAF, MUTE):
        yield RoleAssignment(identity.client_id, Role.SENDER, QUEUE)
        yield RoleAssignment(identity.client_id, Role.SENDER, FAILED)
        if identity is not DEAF:
            yield RoleAssignment(identity.client_id, Role.RECEIVER, QUEUE)
        if identity is not MUTE:
            yield RoleAssignment(identity.client_id, Role.SENDER, TOPIC)


# -------------------------------------------------------------------------------------------- healthy


def state_of(rows: list[Row]) -> dict[str, str]:
    return {row["check"]: row["state"] for row in rows}


def test_a_healthy_set_up_is_all_ok_for_an_operator_who_may_see_everything(sandbox: Sandbox) -> None:
    code, rows = sandbox.doctor({}, *sandbox.arm)
    assert {row["state"] for row in rows} == {"ok"}, rows
    assert code == 0
    # What docs/deploy.md shows are these lines.
    shown = re.findall(r"^(\S.*?) {2,}ok {5}", DEPLOY, re.MULTILINE)
    assert shown == [row["check"] for row in rows]


def test_the_read_connection_has_the_rights_for_every_check(sandbox: Sandbox) -> None:
    """So the pipeline can require all of them, without a right to send or publish."""
    reader = {"OPERATIONS_CLIENT_ID": READER.client_id}
    code, rows = sandbox.doctor(reader, *sandbox.arm, "--fail-on", "cannot-see")
    assert {row["state"] for row in rows} == {"ok"}, rows
    assert code == 0


def test_the_function_itself_sees_only_what_it_needs(sandbox: Sandbox) -> None:
    """A check without its right names that right, and does not count as a problem."""
    code, rows = sandbox.doctor({"OPERATIONS_CLIENT_ID": ""})
    unseen = {row["check"]: row["right"] for row in rows if row["state"] == "cannot see"}
    assert {row["state"] for row in rows} == {"ok", "cannot see"}
    assert unseen.keys() >= {"service endpoint", "step", "namespace", "failed messages"}
    assert all(unseen.values())
    assert unseen["service endpoint"] == "prvReadServiceEndpoint"
    assert unseen["failed messages"] == f"Azure Service Bus Data Receiver on {FAILED}"
    # The right to assign invoices includes reading users, and so its own privileges.
    assert state_of(rows)["privileges"] == "ok"
    assert state_of(rows)["queue"] == state_of(rows)["retries"] == "ok"
    assert code == 0


def test_either_variable_for_certificates_is_enough_for_dataverse(sandbox: Sandbox) -> None:
    """The function trusts what both name, so `doctor` must trust it too."""
    for absent in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        environment = {**sandbox.environment, absent: None}
        run = CliRunner().invoke(operations, ["doctor", "--json"], env=environment)
        states = state_of(json.loads(run.stdout))
        assert states["connection to Dataverse"] == states["Sales"] == "ok", absent


def test_the_system_assigned_identity_is_the_function_where_none_is_named(sandbox: Sandbox) -> None:
    nobody = dict.fromkeys(("OPERATIONS_CLIENT_ID", "AZURE_CLIENT_ID", "ServiceBusConnection__clientId"), "")
    code, rows = sandbox.doctor(nobody)
    assert {row["state"] for row in rows} == {"ok", "cannot see"}
    (token,) = [row for row in rows if row["check"] == "token for Dataverse"]
    assert FUNCTION.client_id in token["seen"]
    assert state_of(rows)["application user"] == "ok"
    assert code == 0


def test_an_operator_without_rights_sees_which_are_missing(sandbox: Sandbox) -> None:
    sandbox.azure.is_reader = False
    code, rows = sandbox.doctor({"OPERATIONS_CLIENT_ID": UNKNOWN.client_id}, *sandbox.arm)
    sandbox.azure.is_reader = True
    rights = {row["check"]: row["right"] for row in rows if row["state"] == "cannot see"}
    assert {row["state"] for row in rows} == {"ok", "cannot see"}
    assert rights["Dataverse"] == rights["step"] == "your login as a user of this Dataverse environment"
    assert rights["topic"] == f"Azure Service Bus Data Sender on {TOPIC}"
    assert rights["namespace"] == "Reader on the namespace"
    assert rights["audit subscription"] == "Reader on the namespace"
    assert code == 0


def test_it_only_reads(sandbox: Sandbox) -> None:
    """Nothing is changed in Dataverse, and no message is locked, counted as delivered, or sent."""
    broker = sandbox.broker
    broker.send(QUEUE, Message(b"{}", message_id=str(uuid4())))
    commits = len(sandbox.organization.database.commits)
    observed: list[Observation] = []
    stop = broker.observe(observed.append)
    sandbox.doctor({}, *sandbox.arm)
    sandbox.doctor({"OPERATIONS_CLIENT_ID": ""})
    stop()
    broker.receive(QUEUE, 1, ReceiveMode.RECEIVE_AND_DELETE)
    assert len(sandbox.organization.database.commits) == commits
    assert observed == []


def test_a_check_that_needs_a_failed_check_is_not_run(sandbox: Sandbox) -> None:
    _, rows = sandbox.doctor({"DATAVERSE_ORGANIZATION_ID": str(uuid4())})
    states = state_of(rows)
    behind = ("Sales", "application user", "privileges", "service endpoint", "step", "system jobs")
    assert {states[link] for link in behind} == {"not checked"}
    assert states["environment"] == "problem"
    assert states["queue"] == states["retries"] == "ok"


def test_an_endpoint_that_somebody_created_by_hand_is_found_by_its_queue(
    sandbox: Sandbox, broken: Broken
) -> None:
    row = broken.ours("serviceendpoint")
    broken.remove("serviceendpoint")
    broken.add_row("serviceendpoint", **{**row, "name": "Won", "serviceendpointid": str(uuid4())})
    _, rows = sandbox.doctor({})
    assert [row["seen"] for row in rows if row["check"] == "service endpoint"] == [f"Won: JSON to {QUEUE}"]


def test_the_output_has_a_table_what_to_do_and_a_count(sandbox: Sandbox) -> None:
    done = CliRunner().invoke(
        operations,
        ["doctor"],
        env={**sandbox.environment, "PYTHON_THREADPOOL_THREAD_COUNT": "5"},
    )
    lines = done.stdout.splitlines()
    seen = "PYTHON_THREADPOOL_THREAD_COUNT is 5, maxConcurrentCalls is 16"
    assert lines[0].split() == ["Check", "State", "Seen"]
    assert [line.split()[:2] for line in lines if line.startswith("threads ")] == [["threads", "problem"]]
    assert "threads-differ-from-calls (threads)" in lines
    assert f"  seen:   {seen}" in lines
    assert f"  to do:  {Finding.THREADS_DIFFER_FROM_CALLS.advice}" in lines
    assert re.fullmatch(r"\d+ ok, 1 problem, \d+ cannot see", lines[-1])
    assert done.exit_code == 1


def test_a_token_of_another_identity_is_recognised(sandbox: Sandbox, tokens: TokenAuthority) -> None:
    with Confused(tokens, [FUNCTION, DEAF]) as confused:
        code, rows = sandbox.doctor({**confused.settings, "OPERATIONS_CLIENT_ID": ""})
    (found,) = [row for row in rows if row["finding"]]
    assert (found["check"], found["finding"]) == ("token for Service Bus", "token-of-another-identity")
    assert DEAF.client_id in found["seen"]
    assert code == 1


class Confused(IdentityServer):
    """Returns a token of another identity than the one that is asked for."""

    def _select(self, query: Mapping[str, str]) -> Identity:  # noqa: ARG002 - as it is overridden
        return DEAF


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.e30.c", "a.W10.c", "a.\ud800.c"])
def test_a_token_that_does_not_say_whose_it_is_belongs_to_nobody_known(token: str) -> None:
    assert str(owner_of(token)) == "an identity that the token does not name"


def test_secrets_are_not_shown(sandbox: Sandbox, broken: Broken) -> None:
    """Neither keys of settings nor signatures in the messages of system jobs."""
    broken.has_key("aVerySecretKey")
    _retrying_job(broken)
    _, rows = sandbox.doctor(broken.environment)
    shown = json.dumps(rows)
    assert "jobs-retrying" in shown
    assert "c2VjcmV0" not in shown
    assert "aVerySecretKey" not in shown


# ------------------------------------------------------------------------------------------ --try-claim


def test_a_claim_is_tried_on_a_real_record_and_leaves_nothing_behind(sandbox: Sandbox) -> None:
    before = [sandbox.rows(table) for table in ("invoice", "annotation")]
    code, rows = sandbox.doctor({}, "--try-claim", sandbox.opportunities[1], "--yes")
    assert state_of(rows)["change sets"] == "ok"
    assert [sandbox.rows(table) for table in ("invoice", "annotation")] == before
    assert code == 0
    tried = [
        url
        for request in sandbox.organization.requests
        for _, url, _ in request.operations
        if "Generate" in url
    ]
    assert tried


def test_nothing_is_tried_without_being_asked(sandbox: Sandbox) -> None:
    asked = len(sandbox.organization.requests)
    done = CliRunner().invoke(
        operations, ["doctor", "--try-claim", sandbox.opportunities[1], "--json"], env=sandbox.environment
    )
    assert done.exit_code == 2
    assert "an invoice number may be used up" in done.stderr
    assert len(sandbox.organization.requests) == asked


def test_a_lost_response_does_not_hide_what_was_left(sandbox: Sandbox, broken: Broken) -> None:
    """The result depends on the rows that exist afterwards, not on the response."""
    broken.organization_is(is_atomic=False, loses_responses=True)
    _, rows = sandbox.doctor({}, *broken.arguments)
    assert [row["finding"] for row in rows if row["finding"]] == ["change-set-left-something-behind"]


# -------------------------------------------------------------------------------------- broken set-ups


@dataclass
class Broken:
    """How the command is run in a broken set-up, and what is left to undo."""

    sandbox: Sandbox
    undo: ExitStack
    patch: pytest.MonkeyPatch
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def set(self, **environment: str) -> None:
        self.environment |= environment

    def enter(self, context: AbstractContextManager[Any]) -> Any:  # noqa: ANN401 - any context manager's value
        return self.undo.enter_context(context)

    def is_function(self, identity: Identity = FUNCTION) -> None:
        """Run as this managed identity, which the settings name."""
        self.names(identity)
        self.set(OPERATIONS_CLIENT_ID="")

    def names(self, identity: Identity) -> None:
        self.set(AZURE_CLIENT_ID=identity.client_id, ServiceBusConnection__clientId=identity.client_id)

    def has_key(self, key: str = "SAS_KEY_VALUE", port: int | None = None) -> None:
        """Reach Service Bus with a key, without TLS; the service endpoint posts there too."""
        address = f"sb://127.0.0.1:{port or self.sandbox.plain.port}/"
        self.set(
            ServiceBusConnection=f"Endpoint={address};SharedAccessKeyName=RootManageSharedAccessKey;"
            f"SharedAccessKey={key};UseDevelopmentEmulator=true"
        )
        self.change("serviceendpoint", namespaceaddress=address)

    def has_namespace(self, host: str) -> None:
        self.set(ServiceBusConnection__fullyQualifiedNamespace=host)
        self.change("serviceendpoint", namespaceaddress=f"sb://{host}/")

    def change_row(self, table: str, row: Row, **values: object) -> None:
        key, before = row[TABLES[table].key], {name: row[name] for name in values}
        self.sandbox.write("update", table, key, values)
        self.undo.callback(self.sandbox.write, "update", table, key, before)

    def remove_row(self, table: str, row: Row) -> None:
        self.sandbox.write("delete", table, row)
        self.undo.callback(self.sandbox.write, "insert", table, row)

    def add_row(self, table: str, **values: object) -> Row:
        row: Row = self.sandbox.write("insert", table, {TABLES[table].key: str(uuid4()), **values})
        self.undo.callback(self.sandbox.write, "delete", table, row)
        return row

    def change(self, table: str, /, **values: object) -> None:
        """Change the one row of ours in a table."""
        self.change_row(table, self.ours(table), **values)

    def remove(self, table: str) -> None:
        """Remove the one row of ours from a table."""
        self.remove_row(table, self.ours(table))

    def ours(self, table: str) -> Row:
        which = {"applicationid": FUNCTION.client_id} if table == "systemuser" else {}
        (row,) = self.sandbox.rows(table, **which)
        return row

    def granted(self, privilege: str) -> Row:
        (role,) = self.sandbox.rows("role", name="Opportunity Invoicing")
        (named,) = self.sandbox.rows("privilege", name=privilege)
        (row,) = self.sandbox.rows("roleprivileges", roleid=role["roleid"], privilegeid=named["privilegeid"])
        return row

    def lacks(self, privilege: str) -> None:
        self.remove_row("roleprivileges", self.granted(privilege))

    def message(self, name: str) -> Row:
        (row,) = self.sandbox.rows("sdkmessage", name=name)
        return row

    def responds(self, status: int, body: bytes = b"", path: str = "", **headers: str) -> None:
        """Let something else respond in Dataverse's place where the path contains this."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = status, {"Content-Length": str(len(body)), **given}, body
        organization = self.sandbox.organization
        self.patch.setattr(organization, "instead", lambda asked: reply if path in asked else None)

    def refuses(self, status: int, code: str, path: str = "") -> None:
        body = json.dumps({"error": {"code": code, "message": "No."}}).encode()
        self.responds(status, body, path, Content_Type="application/json")

    def job(self, **values: object) -> None:
        due = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        step = self.ours("sdkmessageprocessingstep")["sdkmessageprocessingstepid"]
        common = {"owningextensionid": step, "createdon": now, "modifiedon": now, "postponeuntil": due}
        self.add_row("asyncoperation", **common, **values)

    def resource(self, path: str, **properties: object) -> None:
        """Check through Resource Manager, which returns a resource with other properties."""
        azure = self.sandbox.azure
        self.patch.setattr(azure, "resources", copy.deepcopy(azure.resources))
        azure.resources[f"{NAMESPACE_ID}/{path}".rstrip("/")]["properties"].update(properties)
        self.arguments = self.sandbox.arm

    def loses_resource(self, path: str) -> None:
        self.resource(f"queues/{QUEUE}")
        del self.sandbox.azure.resources[path]

    def status(self, entity: str, status: Status) -> None:
        self.sandbox.broker.set_status(entity, status)
        self.undo.callback(self.sandbox.broker.set_status, entity, Status.ACTIVE)

    def message_in(self, entity: str, **values: Any) -> None:  # noqa: ANN401 - the broker's
        broker = self.sandbox.broker
        (number,) = broker.send(entity, Message(b"{}", message_id=str(uuid4()), **values))
        if "scheduled_enqueue_time" in values:
            self.undo.callback(broker.cancel_scheduled, entity, [number])
        else:
            self.undo.callback(broker.receive, entity, 1, ReceiveMode.RECEIVE_AND_DELETE)

    def dead_letter(self) -> None:
        broker = self.sandbox.broker
        broker.send(FAILED, Message(b"{}", message_id=str(uuid4())))
        (message,) = broker.receive(FAILED)
        assert message.lock_token is not None
        broker.dead_letter(FAILED, message.lock_token)
        self.undo.callback(broker.receive, f"{FAILED}/$DeadLetterQueue", 1, ReceiveMode.RECEIVE_AND_DELETE)

    def tries_claim(self) -> None:
        self.arguments = ("--try-claim", self.sandbox.opportunities[0], "--yes")

    def organization_is(self, **switches: bool) -> None:
        for name, value in switches.items():
            self.patch.setattr(self.sandbox.organization, name, value)
        self.tries_claim()

    def port(self, host: str = "127.0.0.1", number: int = 0, *, listens: bool) -> int:
        """Take a port that refuses connections, or accepts them and stays silent."""
        taken = self.enter(socket.socket())
        taken.bind((host, number))
        if listens:
            taken.listen()
        return int(taken.getsockname()[1])

    def address(self, *, listens: bool) -> str:
        """Take a loopback address whose port 5671 refuses, or is silent."""
        for last in range(250, 9, -1):
            host = f"127.0.0.{last}"
            try:
                self.port(host, 5671, listens=listens)
            except OSError:
                continue
            return host
        pytest.fail("port 5671 is taken on every loopback address")

    def impostor(self) -> str:
        """Return a namespace whose certificate comes from another authority."""
        other = CertificateAuthority(self.folder)
        namespace = NamespaceServer(self.sandbox.broker, self.sandbox.authenticator, other)
        namespace.start_tls(self.undo)
        return namespace.address


def _unassigned_identity_and_a_key(broken: Broken) -> None:
    broken.is_function(Identity.named("not assigned"))
    broken.has_key()


def _dataverse_refuses(broken: Broken) -> None:
    broken.set(DATAVERSE_URL=f"https://127.0.0.1:{broken.port(listens=False)}")


def _dataverse_is_silent(broken: Broken) -> None:
    broken.set(DATAVERSE_URL=f"https://127.0.0.1:{broken.port(listens=True)}")
    broken.arguments = ("--seconds", "4")


def _dataverse_certificate(broken: Broken) -> None:
    # It is for the namespace's address, not for this one.
    host = broken.sandbox.namespace
    impostor = Organization(TokenAuthority().verify)
    broken.undo.callback(impostor.close)
    context = CertificateAuthority(broken.folder).server_context(host)
    server = broken.enter(DataverseServer(impostor, context))
    broken.set(DATAVERSE_URL=server.url)


def _namespace_name(broken: Broken) -> None:
    # With a key: where a token would go, only hosts of Azure are accepted.
    address = "sb://contoso.invalid/"
    broken.set(ServiceBusConnection=f"Endpoint={address};SharedAccessKeyName=dataverse;SharedAccessKey=a2V5")
    broken.change("serviceendpoint", namespaceaddress=address)


def _namespace_refuses(broken: Broken) -> None:
    broken.has_namespace(broken.address(listens=False))


def _namespace_is_silent(broken: Broken) -> None:
    broken.has_namespace(broken.address(listens=True))
    broken.arguments = ("--seconds", "4")


def _amqp_is_silent(broken: Broken) -> None:
    broken.has_key(port=broken.port(listens=True))
    broken.arguments = ("--seconds", "4")


def _namespace_certificate(broken: Broken) -> None:
    broken.has_namespace(broken.impostor())


def _other_audience(broken: Broken) -> None:
    # The same environment under a name that is not its own: the token is for that one.
    broken.set(DATAVERSE_URL=broken.sandbox.environment["DATAVERSE_URL"].replace("127.0.0.1", "localhost"))


def _restricted_application(broken: Broken) -> None:
    broken.is_function()
    broken.refuses(403, "0x80095ffc", "WhoAmI")


def _without_sales(broken: Broken) -> None:
    row = broken.message("GenerateInvoiceFromOpportunity")
    broken.change_row("sdkmessage", row, name="SomethingElse")


def _function_is_no_application_user(broken: Broken) -> None:
    broken.is_function(UNKNOWN)
    broken.has_key()


def _function_is_disabled(broken: Broken) -> None:
    broken.is_function()
    broken.change("systemuser", isdisabled=True)


def _no_privilege_for_the_columns(broken: Broken) -> None:
    broken.set(INVOICE_COLUMNS="billto_city")
    broken.lacks("prvReadAttribute")


def _function_reads_no_orders(broken: Broken) -> None:
    broken.is_function()
    broken.lacks("prvReadSalesOrder")


def _shallow_privilege(broken: Broken) -> None:
    broken.change_row("roleprivileges", broken.granted("prvReadInvoice"), privilegedepthmask=2)


def _step_on_lose(broken: Broken) -> None:
    broken.change("sdkmessageprocessingstep", sdkmessageid=broken.message("Lose")["sdkmessageid"])


def _step_on_every_table(broken: Broken) -> None:
    (other,) = broken.sandbox.rows(
        "sdkmessagefilter",
        sdkmessageid=broken.message("Update")["sdkmessageid"],
        primaryobjecttypecode="account",
    )
    broken.change("sdkmessageprocessingstep", sdkmessagefilterid=other["sdkmessagefilterid"])


def _step_to_another_endpoint(broken: Broken) -> None:
    other = broken.add_row("serviceendpoint", name="Other", path="other")
    broken.change("sdkmessageprocessingstep", eventhandler=other["serviceendpointid"])


def _retrying_job(broken: Broken) -> None:
    broken.job(statecode=1, statuscode=10, retrycount=3, message="Unauthorized: sig=c2VjcmV0")


class _SomethingElse(socketserver.BaseRequestHandler):
    """Speaks, but not AMQP."""

    def handle(self) -> None:
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _no_amqp(broken: Broken) -> None:
    server = broken.enter(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _SomethingElse))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    broken.undo.callback(thread.join)
    broken.undo.callback(server.shutdown)
    broken.has_key(port=server.server_address[1])


def _mute_by_roles(broken: Broken) -> None:
    broken.resource(f"queues/{QUEUE}")
    broken.sandbox.azure.resources[_assignments(f"topics/{TOPIC}")]["value"].pop()


def _deaf_by_roles(broken: Broken) -> None:
    broken.resource(f"queues/{QUEUE}")
    broken.sandbox.azure.resources[_assignments(f"queues/{QUEUE}")]["value"].pop(1)


def _no_such_resource(broken: Broken) -> None:
    broken.arguments = "--namespace-id", "/subscriptions/other", *broken.sandbox.arm[2:]


def _old_retry(broken: Broken) -> None:
    now = datetime.now(UTC)
    properties = {
        "InvoicingFirstSeen": (now - timedelta(hours=2)).isoformat(),
        "InvoicingReason": "DataverseForbidden",
    }
    broken.message_in(
        QUEUE, scheduled_enqueue_time=now + timedelta(hours=1), application_properties=properties
    )


def _no_price_list(broken: Broken) -> None:
    broken.tries_claim()
    (row,) = broken.sandbox.rows("opportunity", opportunityid=broken.sandbox.opportunities[0])
    broken.change_row("opportunity", row, pricelevelid=None)


def _stopping_batches(broken: Broken) -> None:
    broken.tries_claim()
    organization = broken.sandbox.organization.organization
    broken.patch.setattr(organization, "failed_change_set", FailedChangeSet.STOPS_WITH_400)


def _root_key(broken: Broken) -> None:
    broken.resource(f"queues/{QUEUE}")
    rule = f"{NAMESPACE_ID}/authorizationRules/RootManageSharedAccessKey"
    broken.sandbox.azure.resources[rule] = {"properties": {"rights": ["Manage", "Listen", "Send"]}}


def _no_topic_for_the_function(broken: Broken) -> None:
    broken.is_function()
    broken.set(INVOICE_CREATED_TOPIC="nowhere")


def _no_queue_with_a_key(broken: Broken) -> None:
    broken.has_key()
    broken.set(OPPORTUNITY_WON_FAILED_QUEUE="nowhere")


DESIGN_CHECKS = {
    f"queues/{QUEUE}": "queue as designed",
    f"queues/{FAILED}": "failed queue as designed",
    f"topics/{TOPIC}": "topic as designed",
}
# Properties of entities that differ from infrastructure/entities.json.
DIFFERENCES: list[tuple[str, str, object, Finding]] = [
    (f"queues/{QUEUE}", "lockDuration", "PT30S", Finding.LOCK_DURATION_DIFFERS),
    (f"queues/{FAILED}", "maxDeliveryCount", 10, Finding.MAX_DELIVERY_COUNT_DIFFERS),
    (f"topics/{TOPIC}", "requiresDuplicateDetection", False, Finding.DUPLICATE_DETECTION_DIFFERS),
    (f"queues/{QUEUE}", "duplicateDetectionHistoryTimeWindow", "PT30S", Finding.DUPLICATE_DETECTION_DIFFERS),
    (f"queues/{QUEUE}", "deadLetteringOnMessageExpiration", False, Finding.DEAD_LETTERING_ON_EXPIRATION_OFF),
    (f"queues/{QUEUE}", "forwardDeadLetteredMessagesTo", None, Finding.DEAD_LETTER_FORWARDING_DIFFERS),
    (f"queues/{QUEUE}", "defaultMessageTimeToLive", "PT1H", Finding.TIME_TO_LIVE_TOO_SHORT),
    (f"queues/{FAILED}", "defaultMessageTimeToLive", "P14D", Finding.TIME_TO_LIVE_TOO_SHORT),
]


@pytest.fixture
def broken(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Broken]:
    with ExitStack() as undo:
        yield Broken(sandbox, undo, monkeypatch, tmp_path)


CASES: list[tuple[Callable[[Broken], None], Finding, str]] = [
    (does("set", DATAVERSE_URL="http://contoso.crm.dynamics.com"), Finding.SETTINGS_INVALID, "settings"),
    (
        does("set", ServiceBusConnection="Endpoint=sb://contoso.servicebus.windows.net/"),
        Finding.SETTINGS_INVALID,
        "settings",
    ),
    (does("set", TELEMETRY_EXPORTER="jaeger"), Finding.SETTINGS_INVALID, "settings"),
    (does("set", PYTHON_THREADPOOL_THREAD_COUNT="5"), Finding.THREADS_DIFFER_FROM_CALLS, "threads"),
    (does("set", PYTHON_THREADPOOL_THREAD_COUNT=""), Finding.THREADS_DIFFER_FROM_CALLS, "threads"),
    (
        does("set", AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls="32"),
        Finding.THREADS_DIFFER_FROM_CALLS,
        "threads",
    ),
    (does("is_function", Identity.named("not assigned")), Finding.TOKEN_UNAVAILABLE, "token for Service Bus"),
    (_unassigned_identity_and_a_key, Finding.TOKEN_UNAVAILABLE, "token for Dataverse"),
    (
        does("set", ServiceBusConnection__clientId=MUTE.client_id),
        Finding.TOKEN_OF_ANOTHER_IDENTITY,
        "token for Service Bus",
    ),
    (
        does("set", DATAVERSE_URL="https://contoso.invalid"),
        Finding.DATAVERSE_NAME_UNKNOWN,
        "connection to Dataverse",
    ),
    (_dataverse_refuses, Finding.DATAVERSE_REFUSED, "connection to Dataverse"),
    (_dataverse_is_silent, Finding.DATAVERSE_SILENT, "connection to Dataverse"),
    (_dataverse_certificate, Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED, "connection to Dataverse"),
    (
        does("set", REQUESTS_CA_BUNDLE="/nowhere/bundle.pem"),
        Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED,
        "connection to Dataverse",
    ),
    (_namespace_name, Finding.SERVICE_BUS_NAME_UNKNOWN, "connection to Service Bus"),
    (_namespace_refuses, Finding.SERVICE_BUS_REFUSED, "connection to Service Bus"),
    (_namespace_is_silent, Finding.SERVICE_BUS_SILENT, "connection to Service Bus"),
    (_amqp_is_silent, Finding.SERVICE_BUS_SILENT, "queue"),
    (_namespace_certificate, Finding.SERVICE_BUS_CERTIFICATE_NOT_TRUSTED, "connection to Service Bus"),
    (_other_audience, Finding.DATAVERSE_UNAUTHORIZED, "Dataverse"),
    (_restricted_application, Finding.DATAVERSE_FORBIDDEN, "Dataverse"),
    (
        does("responds", 200, b"<html>Please log in</html>", Content_Type="text/html"),
        Finding.NOT_A_WEB_API,
        "Dataverse",
    ),
    (does("responds", 302, Location="https://login.example.com/"), Finding.NOT_A_WEB_API, "Dataverse"),
    (
        does("responds", 404, b"<html>Not here</html>", Content_Type="text/html"),
        Finding.NOT_A_WEB_API,
        "Dataverse",
    ),
    (
        does("responds", 503, b"<html>Sorry</html>", Content_Type="text/html"),
        Finding.DATAVERSE_UNAVAILABLE,
        "Dataverse",
    ),
    (
        does("responds", 503, b"<html>Sorry</html>", "/serviceendpoints", Content_Type="text/html"),
        Finding.DATAVERSE_UNAVAILABLE,
        "service endpoint",
    ),
    (does("responds", 429, Retry_After="60"), Finding.DATAVERSE_THROTTLED, "Dataverse"),
    (
        does("refuses", 400, "0x80060888", "/serviceendpoints"),
        Finding.DATAVERSE_REFUSED_A_QUESTION,
        "service endpoint",
    ),
    (does("set", DATAVERSE_ORGANIZATION_ID=str(uuid4())), Finding.OTHER_ENVIRONMENT, "environment"),
    (does("set", DATAVERSE_ORGANIZATION_ID=""), Finding.ORGANIZATION_ID_NOT_SET, "environment"),
    (_without_sales, Finding.SALES_MISSING, "Sales"),
    (does("set", INVOICE_COLUMNS="billto_city,new_typo"), Finding.COLUMNS_UNKNOWN, "columns"),
    (does("names", UNKNOWN), Finding.APPLICATION_USER_MISSING, "application user"),
    (_function_is_no_application_user, Finding.APPLICATION_USER_MISSING, "Dataverse"),
    (does("change", "systemuser", isdisabled=True), Finding.APPLICATION_USER_DISABLED, "application user"),
    (_function_is_disabled, Finding.APPLICATION_USER_DISABLED, "Dataverse"),
    (does("change", "systemuser", azurestate=2), Finding.APPLICATION_USER_GONE, "application user"),
    (does("change", "systemuser", azurestate=1), Finding.APPLICATION_USER_GONE, "application user"),
    (does("lacks", "prvCreateNote"), Finding.PRIVILEGE_MISSING, "privileges"),
    (_no_privilege_for_the_columns, Finding.PRIVILEGE_MISSING, "privileges"),
    (_function_reads_no_orders, Finding.PRIVILEGE_MISSING, "privileges"),
    (_shallow_privilege, Finding.PRIVILEGE_TOO_SHALLOW, "privileges"),
    (does("lacks", "prvReadEntityMap"), Finding.OPTIONAL_PRIVILEGE_MISSING, "privileges"),
    (does("remove", "serviceendpoint"), Finding.ENDPOINT_MISSING, "service endpoint"),
    (
        does("change", "serviceendpoint", namespaceaddress="sb://fabrikam.servicebus.windows.net/"),
        Finding.ENDPOINT_OTHER_NAMESPACE,
        "service endpoint",
    ),
    (
        does("change", "serviceendpoint", path="opportunity-lost"),
        Finding.ENDPOINT_OTHER_QUEUE,
        "service endpoint",
    ),
    (does("change", "serviceendpoint", contract=7), Finding.ENDPOINT_NOT_A_QUEUE, "service endpoint"),
    (does("change", "serviceendpoint", contract=2), Finding.ENDPOINT_OLD_CONTRACT, "service endpoint"),
    (does("change", "serviceendpoint", messageformat=1), Finding.ENDPOINT_NOT_JSON, "service endpoint"),
    (does("change", "serviceendpoint", issaskeyset=False), Finding.ENDPOINT_WITHOUT_KEY, "service endpoint"),
    (does("change", "serviceendpoint", authtype=9), Finding.ENDPOINT_WITHOUT_KEY, "service endpoint"),
    (does("remove", "sdkmessageprocessingstep"), Finding.STEP_MISSING, "step"),
    (_step_on_lose, Finding.STEP_OTHER_MESSAGE, "step"),
    (_step_on_every_table, Finding.STEP_OTHER_MESSAGE, "step"),
    (_step_to_another_endpoint, Finding.STEP_OTHER_ENDPOINT, "step"),
    (does("change", "sdkmessageprocessingstep", statecode=1, statuscode=2), Finding.STEP_DISABLED, "step"),
    (does("change", "sdkmessageprocessingstep", mode=0), Finding.STEP_SYNCHRONOUS, "step"),
    (_retrying_job, Finding.JOBS_RETRYING, "system jobs"),
    (
        does("job", statecode=3, statuscode=31, message="No such host is known."),
        Finding.JOBS_FAILED,
        "system jobs",
    ),
    (does("has_key", "WRONG"), Finding.SERVICE_BUS_KEY_REFUSED, "queue"),
    (_no_amqp, Finding.SERVICE_BUS_UNAVAILABLE, "queue"),
    (does("set", OPPORTUNITY_WON_FAILED_QUEUE="nowhere"), Finding.ENTITY_MISSING, "failed queue"),
    (_no_topic_for_the_function, Finding.ENTITY_MISSING, "topic"),
    (_no_queue_with_a_key, Finding.ENTITY_MISSING, "failed queue"),
    (does("loses_resource", f"{NAMESPACE_ID}/topics/{TOPIC}"), Finding.ENTITY_MISSING, "topic as designed"),
    (does("status", TOPIC, Status.DISABLED), Finding.ENTITY_DISABLED, "topic"),
    (does("status", QUEUE, Status.RECEIVE_DISABLED), Finding.QUEUE_PAUSED, "queue"),
    (does("is_function", DEAF), Finding.NO_RIGHT_TO_RECEIVE, "queue"),
    (does("is_function", MUTE), Finding.NO_RIGHT_TO_SEND, "topic"),
    (_mute_by_roles, Finding.NO_RIGHT_TO_SEND, "roles of the function"),
    (_deaf_by_roles, Finding.NO_RIGHT_TO_RECEIVE, "roles of the function"),
    (_no_such_resource, Finding.NAMESPACE_ID_WRONG, "namespace"),
    (
        does("resource", "", serviceBusEndpoint="https://fabrikam.servicebus.windows.net:443/"),
        Finding.NAMESPACE_ID_WRONG,
        "namespace",
    ),
    (
        does("loses_resource", f"{NAMESPACE_ID}/topics/{TOPIC}/subscriptions/audit"),
        Finding.AUDIT_SUBSCRIPTION_MISSING,
        "audit subscription",
    ),
    (does("message_in", FAILED), Finding.MESSAGES_FAILED, "failed messages"),
    (
        does("resource", f"queues/{FAILED}", countDetails={"activeMessageCount": 7}),
        Finding.MESSAGES_FAILED,
        "failed messages",
    ),
    (does("dead_letter"), Finding.DEAD_LETTERS, "failed messages"),
    (_old_retry, Finding.RETRIES_OLD, "retries"),
    (does("organization_is", is_atomic=False), Finding.CHANGE_SET_LEFT_SOMETHING_BEHIND, "change sets"),
    (does("organization_is", forgives_duplicates=True), Finding.CHANGE_SET_SUCCEEDED, "change sets"),
    (_no_price_list, Finding.CHANGE_SET_REFUSED_OTHERWISE, "change sets"),
    (_stopping_batches, Finding.BATCH_STOPS_AT_FAILURE, "change sets"),
    (_root_key, Finding.ROOT_KEY_EXISTS, "keys of the namespace"),
    *(
        (does("resource", entity, **{name: value}), finding, DESIGN_CHECKS[entity])
        for entity, name, value, finding in DIFFERENCES
    ),
]


@pytest.mark.parametrize(("breaks", "finding", "check"), CASES, ids=[finding.code for _, finding, _ in CASES])
def test_a_broken_set_up_shows_exactly_its_finding(
    sandbox: Sandbox, broken: Broken, breaks: Callable[[Broken], None], finding: Finding, check: str
) -> None:
    breaks(broken)
    code, rows = sandbox.doctor(broken.environment, *broken.arguments)
    findings = [row for row in rows if row["finding"]]
    assert {row["finding"] for row in findings} == {finding.code}, findings
    assert check in {row["check"] for row in findings}
    assert all((row["meaning"], row["advice"]) == (finding.meaning, finding.advice) for row in findings)
    assert {row["state"] for row in findings} == {finding.state.value}
    assert code == (1 if finding.state is State.PROBLEM else 0)


def test_what_failed_before_is_a_problem_only_on_request(sandbox: Sandbox, broken: Broken) -> None:
    """Messages that failed before a deployment do not make its verification fail."""
    broken.message_in(FAILED)
    broken.dead_letter()
    _old_retry(broken)
    broken.job(statecode=3, statuscode=31, message="No such host is known.")
    code, rows = sandbox.doctor({}, *sandbox.arm[2:])
    asked, _ = sandbox.doctor({}, "--fail-on", "attention")
    states = {row["finding"]: row["state"] for row in rows if row["finding"]}
    assert states == dict.fromkeys(
        ("jobs-failed", "messages-failed", "dead-letters", "retries-old"), "attention"
    )
    assert (code, asked) == (0, 1)


def test_a_login_that_must_see_everything_can_require_it(sandbox: Sandbox) -> None:
    """A pipeline whose login lacks every right must not succeed."""
    assert sandbox.doctor({}, *sandbox.arm, "--fail-on", "cannot-see")[0] == 0
    assert sandbox.doctor({}, "--fail-on", "cannot-see")[0] == 1
    assert sandbox.doctor({}, "--fail-on", "attention")[0] == 0


def test_a_paused_function_is_a_remark_also_where_everything_must_be_seen(
    sandbox: Sandbox, broken: Broken
) -> None:
    """A shadow run is deployed paused, and its deployment is verified as any other."""
    broken.status(QUEUE, Status.RECEIVE_DISABLED)
    code, rows = sandbox.doctor({}, *sandbox.arm, "--fail-on", "cannot-see")
    states = state_of(rows)
    assert (states.pop("queue"), states.pop("retries")) == ("remark", "not checked")
    assert set(states.values()) == {"ok"}
    assert code == 0


def test_every_finding_has_a_broken_set_up() -> None:
    assert {finding for _, finding, _ in CASES} == set(Finding)


def test_the_reference_page_is_as_the_command_writes_it() -> None:
    """Written by `python -m operations.doctor > docs/doctor.md`."""
    assert (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8") == findings_page()
