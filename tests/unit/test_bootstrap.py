from __future__ import annotations

import logging
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from shared import bootstrap
from shared.bootstrap import build, build_sender
from shared.credential import SERVICE_BUS_SCOPE, Identities
from shared.dataverse import Dataverse
from shared.errors import InvalidSettings, ServiceBusUnavailable
from shared.handler import Handler
from shared.service_bus import AmqpSender
from shared.settings import Settings, service_bus_settings
from tests.unit.conftest import APP_SETTINGS, SERVICE_BUS, WIN, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.conftest import FakeClock, FakeServer, FixedTokens, RecordingSender

CLIENT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the process have all settings and no handler yet, and none afterwards."""
    for name, value in APP_SETTINGS.items():
        monkeypatch.setenv(name, value)
    names = ("azure", "azure.identity", "azure.servicebus", "opentelemetry")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    bootstrap._built.clear()
    yield
    bootstrap._built.clear()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_a_handler_is_built_from_settings_without_touching_the_network() -> None:
    assert isinstance(build(APP_SETTINGS)._service_bus._sender, AmqpSender)


def test_the_sender_and_not_the_sdk_sends_again() -> None:
    """The SDK would do it in the caller's thread, where nothing bounds name resolution."""
    with build_sender(SERVICE_BUS, Identities({}))._connect() as client:
        assert client._config.retry_total == 0


@pytest.mark.parametrize(
    ("connection", "renewed"),
    [
        ({"ServiceBusConnection__clientId": CLIENT}, [(CLIENT, SERVICE_BUS_SCOPE, 3.0)]),
        ({"ServiceBusConnection": "Endpoint=sb://contoso/;SharedAccessKeyName=a;SharedAccessKey=b"}, []),
    ],
    ids=["identity", "key"],
)
def test_a_refused_token_of_the_identity_is_renewed(
    connection: dict[str, str], renewed: list[tuple[str, str, float]]
) -> None:
    calls: list[tuple[object, ...]] = []
    identities = SimpleNamespace(
        of=lambda client_id: SimpleNamespace(renew=lambda *arguments: calls.append((client_id, *arguments)))
    )
    settings = service_bus_settings({**APP_SETTINGS, **connection})
    build_sender(settings, cast("Identities", identities))._renew_token(3.0)
    assert calls == renewed


def test_what_is_given_takes_the_place_of_what_would_be_built(
    sender: RecordingSender, clock: FakeClock, server: FakeServer, tokens: FixedTokens
) -> None:
    server.replies.clear()
    server.replies.append(Reply(status=503))
    dataverse = Dataverse(
        APP_SETTINGS["DATAVERSE_URL"],
        tokens=tokens,
        clock=clock,
        random=lambda: 0.0,
        exchange=server.exchange,
    )
    handler = build(APP_SETTINGS, clock=clock, random=lambda: 1.0, sender=sender, dataverse=dataverse)
    handler.handle(WIN)
    ((entity, copy),) = sender.sent
    assert entity == "won"
    assert copy.properties["InvoicingReason"] == "DataverseUnavailable"
    assert copy.due is not None
    assert (copy.due - clock.now()).total_seconds() == 5
    assert len(server.requests) == 1
    dataverse.close()


def test_without_an_identity_the_message_waits(
    sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token's scope is the environment's; outside Azure it is asked of the Azure CLI, which is not there."""
    monkeypatch.setenv("PATH", "")
    build(APP_SETTINGS, sender=sender).handle(WIN)
    ((_, copy),) = sender.sent
    assert copy.properties["InvoicingReason"] == "TokenUnavailable"


def test_without_service_bus_nothing_can_be_rescheduled_and_every_problem_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = {"RETRY_OPEN_SECONDS": "soon"}
    with pytest.raises(InvalidSettings) as raised:
        build(wrong)
    with pytest.raises(InvalidSettings) as expected:
        Settings.of(wrong)
    assert raised.value.problems == expected.value.problems
    assert caplog.messages == [f"settings: {' '.join(raised.value.problems)}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATAVERSE_URL", ""),
        ("RETRY_OUTAGE_SECONDS", "0"),
        ("INVOICE_CREATED_TOPIC", ""),
        ("INVOCATION_DEADLINE_SECONDS", "286"),
    ],
)
def test_with_connection_and_queues_messages_wait_until_the_other_settings_are_corrected(
    name: str, value: str, sender: RecordingSender, caplog: pytest.LogCaptureFixture
) -> None:
    """A function that failed to load would dead-letter a backlog in seconds."""
    build({**APP_SETTINGS, name: value}, sender=sender).handle(WIN)
    ((entity, copy),) = sender.sent
    assert entity == "won"
    assert copy.properties["InvoicingReason"] == "InvalidSettings"
    assert sender.warmed_up == []
    assert name in caplog.text


@pytest.mark.usefixtures("fresh_process")
def test_a_process_has_one_handler_built_at_the_first_message() -> None:
    first = bootstrap.handler()
    assert bootstrap.handler() is first
    assert logging.getLogger("azure").level == logging.WARNING
    assert logging.getLogger("azure.identity").level == logging.ERROR
    assert logging.getLogger("azure.servicebus").level == logging.CRITICAL
    assert logging.getLogger("opentelemetry").level == logging.ERROR


@pytest.mark.usefixtures("fresh_process")
def test_only_one_thread_builds_at_a_time() -> None:
    """Sixteen first messages at once: a second handler would have connections and tokens of its own."""
    built: list[Handler] = []
    other = threading.Thread(target=lambda: built.append(bootstrap.handler()), daemon=True)
    with bootstrap._lock:
        other.start()
        other.join(0.3)
        assert built == []
    other.join(20)
    assert built == [bootstrap.handler()]


@pytest.mark.usefixtures("fresh_process")
def test_wrong_settings_are_read_again_at_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPPORTUNITY_WON_QUEUE")
    with pytest.raises(InvalidSettings):
        bootstrap.handler()
    monkeypatch.setenv("OPPORTUNITY_WON_QUEUE", "won")
    assert isinstance(bootstrap.handler(), Handler)


def test_the_sender_has_the_identity_of_the_connection(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace that does not resolve: the SDK's client is made with a credential, and nothing hangs."""
    monkeypatch.setenv("PATH", "")
    handler = build(
        {
            **APP_SETTINGS,
            "ServiceBusConnection__fullyQualifiedNamespace": "127.0.0.1",
            "INVOCATION_DEADLINE_SECONDS": "1",
        },
        clock=clock,
    )
    with pytest.raises(ServiceBusUnavailable):
        handler.handle(replace(WIN, body=b"unreadable"))
