"""What people may do with the roles that infrastructure/operators.bicep assigns, over sockets with their own tokens."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from azure.servicebus.exceptions import ServiceBusAuthenticationError, ServiceBusAuthorizationError

from operations.messages import plain_message
from operations.namespace import open_namespace
from sandbox.certificates import CertificateAuthority
from sandbox.cloud.namespace import NamespaceServer
from sandbox.cloud.settings import entity_settings
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.service_bus import (
    Authenticator,
    Broker,
    Configuration,
    Message,
    Role,
    RoleAssignment,
)
from tests.end_to_end.conftest import run_operations

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
QUEUE, FAILED, TOPIC = "opportunity-won", "opportunity-won-failed", "invoice-created"
SCOPES = {
    "opportunityWon": QUEUE,
    "failed": FAILED,
    "invoiceCreated": TOPIC,
    "audit": f"{TOPIC}/Subscriptions/audit",
}
ROLES = {"dataReceiver": Role.RECEIVER, "dataSender": Role.SENDER}
PEOPLE = {
    "operatorsGroupId": Identity.named("operator"),
    "publishersGroupId": Identity.named("publisher"),
    "readPrincipalId": Identity.named("pipeline"),
}
REFUSED = (ServiceBusAuthenticationError, ServiceBusAuthorizationError)


def assigned() -> list[RoleAssignment]:
    """Return the roles that the template assigns."""
    source = (ROOT / "infrastructure" / "operators.bicep").read_text(encoding="utf-8")
    found = re.findall(
        r"  scope: (\w+)\n  properties: \{\n    principalId: (\w+)\n.*\n    roleDefinitionId: .*', (\w+)\)\n",
        source,
    )
    return [RoleAssignment(PEOPLE[who].client_id, ROLES[role], SCOPES[scope]) for scope, who, role in found]


@pytest.fixture
def broker() -> Broker:
    return Broker(Configuration.load())


@pytest.fixture
def environment(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serve the broker over TLS; give the environment of a command, except its login."""
    certificates, tokens = CertificateAuthority(tmp_path), TokenAuthority()
    authenticator = Authenticator(
        broker.configuration, verify_token=tokens.verify, role_assignments=assigned()
    )
    with ExitStack() as stack:
        identities = stack.enter_context(IdentityServer(tokens, list(PEOPLE.values())))
        namespace = NamespaceServer(broker, authenticator, certificates)
        namespace.start_tls(stack)
        # The SDKs read these from the process's own environment.
        for name, value in {**certificates.settings, **identities.settings}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield {
            **certificates.settings,
            **identities.settings,
            "ServiceBusConnection__fullyQualifiedNamespace": namespace.address,
            **entity_settings(broker.configuration),
        }


def of(environment: dict[str, str], who: str) -> dict[str, str]:
    return environment | {"OPERATIONS_CLIENT_ID": PEOPLE[who].client_id}


def send(environment: dict[str, str], who: str, entity: str) -> None:
    with open_namespace(of(environment, who)) as namespace:
        namespace.send(entity, plain_message(b"{}", content_type="application/json"))


def park(broker: Broker, count: int) -> None:
    for _ in range(count):
        body = json.dumps({"opportunityId": str(uuid4())}).encode()
        broker.send(FAILED, Message(body, application_properties={"DeadLetterReason": "InvoiceRefused"}))


def test_an_operator_reads_replays_and_discards(environment: dict[str, str], broker: Broker) -> None:
    park(broker, 3)
    for command in (
        ("failed", "list"),
        ("failed", "show", "1"),
        ("failed", "replay", "1"),
        ("failed", "export", "--all"),
        ("failed", "discard", "2", "--yes"),
        ("waiting", "list"),
        ("waiting", "retry-now", "--all"),
    ):
        run_operations(of(environment, "operatorsGroupId"), *command)
    assert (len(broker.peek(QUEUE, 0, 10)), len(broker.peek(FAILED, 0, 10))) == (1, 1)


def test_an_operator_publishes_nothing(environment: dict[str, str], broker: Broker) -> None:
    with pytest.raises(REFUSED):
        send(environment, "operatorsGroupId", TOPIC)
    assert broker.counts(SCOPES["audit"]).active == 0


def test_a_publisher_publishes_and_does_nothing_else(environment: dict[str, str], broker: Broker) -> None:
    park(broker, 1)
    send(environment, "publishersGroupId", TOPIC)
    assert broker.counts(SCOPES["audit"]).active == 1
    with pytest.raises(REFUSED):
        send(environment, "publishersGroupId", QUEUE)
    result = run_operations(of(environment, "publishersGroupId"), "failed", "list", code=1)
    assert "lacks a role" in result.output


def test_the_pipelines_read_login_sends_nothing(environment: dict[str, str], broker: Broker) -> None:
    park(broker, 1)
    run_operations(of(environment, "readPrincipalId"), "failed", "list")
    for entity in (QUEUE, TOPIC):
        with pytest.raises(REFUSED):
            send(environment, "readPrincipalId", entity)
    run_operations(of(environment, "readPrincipalId"), "failed", "replay", "1", code=1)
    assert (len(broker.peek(QUEUE, 0, 10)), len(broker.peek(FAILED, 0, 10))) == (0, 1)
