"""What people may do with the roles that infrastructure/operators.bicep assigns, over sockets with their own tokens."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.servicebus.exceptions import ServiceBusAuthenticationError, ServiceBusAuthorizationError

from operations.messages import plain_message
from operations.namespace import open_namespace
from sandbox.certificates import CertificateAuthority
from sandbox.cloud import CREATED_TOPIC, FAILED_QUEUE, WON_QUEUE
from sandbox.cloud.namespace import NamespaceServer
from sandbox.cloud.settings import entity_settings
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.service_bus import (
    Authenticator,
    Broker,
    Configuration,
    Role,
    RoleAssignment,
)
from tests.end_to_end.conftest import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
SCOPES = {
    "opportunityWon": WON_QUEUE,
    "failed": FAILED_QUEUE,
    "invoiceCreated": CREATED_TOPIC,
    "audit": f"{CREATED_TOPIC}/Subscriptions/audit",
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
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Namespace]]:
    """Serve a namespace over TLS; return a function that returns it as somebody who is logged in sees it."""
    monkeypatch.chdir(tmp_path)
    broker = Broker(Configuration.load())
    certificates, tokens = CertificateAuthority(tmp_path), TokenAuthority()
    authenticator = Authenticator(
        broker.configuration, verify_token=tokens.verify, role_assignments=assigned()
    )
    with ExitStack() as stack:
        identities = stack.enter_context(IdentityServer(tokens, list(PEOPLE.values())))
        server = NamespaceServer(broker, authenticator, certificates)
        server.start_tls(stack)
        trust = {**certificates.settings, **identities.settings}
        # The SDKs read these from the process's own environment.
        for name, value in trust.items():
            monkeypatch.setenv(name, value)
        environment = {
            **trust,
            "ServiceBusConnection__fullyQualifiedNamespace": server.address,
            **entity_settings(broker.configuration),
        }
        yield lambda who: Namespace(broker, {**environment, "OPERATIONS_CLIENT_ID": PEOPLE[who].client_id})


def send(namespace: Namespace, entity: str) -> None:
    with open_namespace(namespace.environment) as opened:
        opened.send(entity, plain_message(b"{}", content_type="application/json"))


def test_an_operator_reads_replays_and_discards(login: Callable[[str], Namespace]) -> None:
    operator = login("operatorsGroupId")
    operator.park(1, 2, 3)
    for command in (
        ("failed", "list"),
        ("failed", "show", "1"),
        ("failed", "replay", "1"),
        ("failed", "export", "--all"),
        ("failed", "discard", "2", "--yes"),
        ("waiting", "list"),
        ("waiting", "retry-now", "--all"),
    ):
        operator.run(*command)
    assert (len(operator.messages(WON_QUEUE)), len(operator.messages(FAILED_QUEUE))) == (1, 1)


def test_an_operator_publishes_nothing(login: Callable[[str], Namespace]) -> None:
    operator = login("operatorsGroupId")
    with pytest.raises(REFUSED):
        send(operator, CREATED_TOPIC)
    assert operator.messages(SCOPES["audit"]) == []


def test_a_publisher_publishes_and_does_nothing_else(login: Callable[[str], Namespace]) -> None:
    publisher = login("publishersGroupId")
    publisher.park(1)
    send(publisher, CREATED_TOPIC)
    assert len(publisher.messages(SCOPES["audit"])) == 1
    with pytest.raises(REFUSED):
        send(publisher, WON_QUEUE)
    assert "lacks a role" in publisher.run("failed", "list", code=1).output


def test_the_pipelines_read_login_sends_nothing(login: Callable[[str], Namespace]) -> None:
    pipeline = login("readPrincipalId")
    pipeline.park(1)
    pipeline.run("failed", "list")
    for entity in (WON_QUEUE, CREATED_TOPIC):
        with pytest.raises(REFUSED):
            send(pipeline, entity)
    pipeline.run("failed", "replay", "1", code=1)
    assert (len(pipeline.messages(WON_QUEUE)), len(pipeline.messages(FAILED_QUEUE))) == (0, 1)
