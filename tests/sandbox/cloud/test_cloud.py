"""The parts together, in this process: start, stop, side by side."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from sandbox.actors import Salesperson
from sandbox.cloud import (
    WON_QUEUE,
    CannotStart,
    Cloud,
    CloudOptions,
    Mode,
    NotInThisSandbox,
    StartInterrupted,
)
from sandbox.dataverse.schema import TABLES
from sandbox.functions_host import InvalidAppConfiguration, WorkerDied
from sandbox.service_bus import Message
from sandbox.service_bus.configuration import DEFAULT_ENTITIES
from tests.sandbox.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[3]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the sandbox a folder for its temporary files that must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread is not threading.current_thread()}


def test_it_starts_stops_and_leaves_nothing(temporary: Path) -> None:
    before = own_threads()
    cloud = Cloud(CloudOptions(APP, mode=Mode.IDENTITY, opportunities=1))
    cloud.start()
    assert cloud.host is not None
    pids = cloud.host.worker_pids
    assert pids
    assert [folder.stat().st_mode & 0o077 for folder in temporary.iterdir()] == [0]
    cloud.stop()
    cloud.stop()
    assert own_threads() <= before
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
@pytest.mark.usefixtures("temporary")
def test_a_start_that_is_called_off_leaves_nothing(calls: int) -> None:
    before = own_threads()
    asked = iter(range(10))
    cloud = Cloud(CloudOptions(APP, opportunities=1))
    with pytest.raises(StartInterrupted):
        cloud.start(lambda: next(asked) == calls)
    assert own_threads() <= before


@pytest.mark.usefixtures("temporary")
def test_an_app_that_cannot_run_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    before = own_threads()
    (tmp_path / "host.json").write_text('{"version": "2.0"}')
    with pytest.raises(InvalidAppConfiguration, match=r"neither function_app\.py nor a function\.json"):
        Cloud(CloudOptions(tmp_path, opportunities=1)).start()
    folder = tmp_path / "broken" / "Function"
    folder.mkdir(parents=True)
    (folder.parent / "host.json").write_text('{"version": "2.0"}')
    (folder / "function.json").write_text((APP / "GenerateInvoiceFunction" / "function.json").read_text())
    (folder.parent / ".python_packages" / "lib" / "site-packages").mkdir(parents=True)
    with pytest.raises(WorkerDied):
        Cloud(CloudOptions(folder.parent, opportunities=1)).start()
    assert own_threads() <= before


ENTITIES = """
// Nothing but what the official emulator's file has: no keys.
{"UserConfig": {"Namespaces": [{"Name": "sbemulatorns",
  "Queues": [{"Name": "opportunity-won", "Properties": {"LockDuration": "PT2M"}}, {"Name": "opportunity-won-failed"}],
  "Topics": [{"Name": "invoice-created", "Subscriptions": [{"Name": "audit"}]}]}]}}
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_entities_may_come_from_the_emulators_own_file(tmp_path: Path, mode: Mode) -> None:
    """It knows no keys by queue, so Dataverse posts with the namespace's."""
    file = tmp_path / "Config.json"
    file.write_text(ENTITIES)
    with Cloud(CloudOptions(APP, mode=mode, opportunities=1, functions_host=False, entities=file)) as cloud:
        (opportunity,) = cloud.demo.opportunities
        with Salesperson(cloud) as salesperson:
            salesperson.win(opportunity)
        wait_until(lambda: cloud.broker.counts(WON_QUEUE).active)
        (settings,) = (queue for queue in cloud.configuration.queues if queue.path == WON_QUEUE)
        assert settings.lock_duration == timedelta(minutes=2)


def test_what_is_committed_can_be_read_while_somebody_writes() -> None:
    """And nothing else, as in Dataverse: a reader does not wait for a writer."""
    with (
        Cloud(CloudOptions(APP, opportunities=1, functions_host=False)) as cloud,
        requests.Session() as session,
    ):
        (opportunity,) = cloud.demo.opportunities
        session.trust_env = False
        token = cloud.authority.issue(cloud.operator, cloud.dataverse.organization.url)
        with cloud.dataverse.database.writing() as transaction:
            transaction.update(TABLES["opportunity"], opportunity, {"name": "not yet"})
            response = session.get(
                f"{cloud.dataverse_server.url}/api/data/v9.2/opportunities({opportunity})?$select=name",
                headers={"Authorization": f"Bearer {token}"},
                verify=str(cloud.certificates.bundle),
                timeout=20,
            )
        assert response.status_code == 200
        assert response.json()["name"] != "not yet"


def test_entities_that_are_not_enough_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "Config.json"
    file.write_text(ENTITIES.replace("opportunity-won", "other"))
    with pytest.raises(
        CannotStart, match="lacks the queue opportunity-won, to which Dataverse posts: add it, or"
    ):
        Cloud(CloudOptions(APP, entities=file))
    Cloud(CloudOptions(APP, entities=file, dataverse=False))
    with pytest.raises(CannotStart, match="nowhere"):
        Cloud(CloudOptions(APP, entities=tmp_path / "nowhere"))


def test_two_run_side_by_side_and_know_nothing_of_each_other() -> None:
    options = CloudOptions(
        APP, mode=Mode.IDENTITY, opportunities=1, functions_host=False, standard_ports=True
    )
    with Cloud(options) as one, Cloud(options) as other:
        assert one.namespace != other.namespace
        assert one.plain_server.port != other.plain_server.port
        assert one.dataverse_server.url != other.dataverse_server.url
        one.broker.send(WON_QUEUE, Message(message_id="one"))
        assert (one.broker.counts(WON_QUEUE).active, other.broker.counts(WON_QUEUE).active) == (1, 0)
        with pytest.raises(ssl.SSLCertVerificationError):
            _handshake(one, other.namespace)
        _handshake(one, one.namespace)


def _handshake(cloud: Cloud, address: str) -> None:
    with (
        socket.create_connection((address, 5671), timeout=5) as connection,
        cloud.trust.wrap_socket(connection, server_hostname=address),
    ):
        pass


V2_APP = """
import os

import azure.functions as func
from azure.identity import ManagedIdentityCredential
from azure.servicebus import ServiceBusClient, ServiceBusMessage

app = func.FunctionApp()


@app.service_bus_topic_trigger(
    arg_name="message", connection="Bus", topic_name="events", subscription_name="all"
)
def receive(message: func.ServiceBusMessage) -> None:
    credential = ManagedIdentityCredential(client_id=os.environ["AZURE_CLIENT_ID"])
    with (
        ServiceBusClient(os.environ["Bus__fullyQualifiedNamespace"], credential) as client,
        client.get_queue_sender(os.environ["REPLIES"]) as sender,
    ):
        sender.send_messages(ServiceBusMessage("reply"))


@app.service_bus_queue_trigger(arg_name="message", connection="OtherBus", queue_name="%WORK%")
def work(message: func.ServiceBusMessage) -> None:
    pass
"""
OTHER_ENTITIES = """
{"UserConfig": {"Namespaces": [{"Name": "own",
  "Queues": [{"Name": "work"}, {"Name": "replies"}, {"Name": "unrelated"}],
  "Topics": [{"Name": "events", "Subscriptions": [{"Name": "all"}]}]}]}}
"""


@pytest.fixture
def other_app(tmp_path: Path) -> CloudOptions:
    """Return what runs an app that has nothing to do with invoices."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "host.json").write_text('{"version": "2.0"}')
    (app / "function_app.py").write_text(V2_APP)
    entities = tmp_path / "entities.json"
    entities.write_text(OTHER_ENTITIES)
    settings = {"WORK": "work", "REPLIES": "replies"}
    return CloudOptions(app, mode=Mode.IDENTITY, dataverse=False, entities=entities, settings=settings)


def function_rights(cloud: Cloud) -> list[tuple[str, str]]:
    token = cloud.authority.issue(cloud.function_identity, "https://servicebus.azure.net")
    assert cloud.tls_server is not None
    grants = cloud.tls_server.authenticator.put_token("jwt", token, "")
    return sorted((grant.scope, str(grant.rights.name)) for grant in grants)


def test_any_app_runs_without_dataverse_and_with_its_own_entities(other_app: CloudOptions) -> None:
    """Its connections and roles follow from its triggers and settings; Microsoft's clients need no option for TLS."""
    with Cloud(other_app) as cloud:
        settings = cloud.app_settings
        assert settings["Bus__fullyQualifiedNamespace"] == settings["OtherBus__fullyQualifiedNamespace"]
        assert not [name for name in settings if name.startswith(("DATAVERSE", "OPPORTUNITY", "INVOICE"))]
        assert function_rights(cloud) == [
            ("events/subscriptions/all", "LISTEN"),
            ("replies", "SEND"),
            ("work", "LISTEN"),
            ("work", "SEND"),
        ]
        for entity in ("events", "work"):
            cloud.broker.send(entity, Message(body=b"x"))
        sources = ("events/Subscriptions/all", "work")
        wait_until(lambda: not any(cloud.broker.counts(source).active for source in sources))
        assert cloud.broker.counts("replies").active == 1
        with pytest.raises(NotInThisSandbox, match="without Dataverse"):
            _ = cloud.dataverse


def test_roles_come_from_the_entities_file_where_it_names_the_function(other_app: CloudOptions) -> None:
    assigned = OTHER_ENTITIES.replace(
        '{"Name": "unrelated"}',
        '{"Name": "unrelated", "RoleAssignments": [{"ClientId": "function", "Role": "Owner"}]}',
    )
    other_app.entities.write_text(assigned)
    with Cloud(replace(other_app, functions_host=False)) as cloud:
        assert [scope for scope, _ in function_rights(cloud)] == ["unrelated"]


def test_local_settings_have_every_connection_of_the_app(other_app: CloudOptions) -> None:
    with Cloud(replace(other_app, functions_host=False)) as cloud:
        values = cloud.local_settings()["Values"]
        assert isinstance(values, dict)
        assert values["Bus"] == values["OtherBus"] == cloud.connection_string
        assert not [name for name in values if name.endswith("__fullyQualifiedNamespace")]


@pytest.mark.parametrize("text", [None, ENTITIES], ids=["this project's", "without keys"])
def test_nobody_can_guess_a_key(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "Config.json"
    file.write_text(text or DEFAULT_ENTITIES.read_text())
    one, other, published = (
        {key for rule in cloud.configuration.sas_rules for key in rule.keys}
        for cloud in (
            Cloud(CloudOptions(APP, entities=file)),
            Cloud(CloudOptions(APP, entities=file)),
            Cloud(CloudOptions(APP, entities=file, published_keys=True)),
        )
    )
    assert "SAS_KEY_VALUE" in published
    assert not one & other
    assert not one & published


def test_a_key_of_the_users_own_stays(tmp_path: Path) -> None:
    file = tmp_path / "Config.json"
    own = '"AuthorizationRules": [{"Name": "own", "PrimaryKey": "my-own-key", "Rights": ["Send"]}]'
    file.write_text(ENTITIES.replace('{"Name": "sbemulatorns",', f'{{"Name": "sbemulatorns", {own},'))
    rules = Cloud(CloudOptions(APP, entities=file)).configuration.sas_rules
    assert [rule.keys == ("my-own-key",) for rule in rules] == [True, False]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Cloud]:
    """Return a sandbox for this project's function, which does not run."""
    options = CloudOptions(
        APP,
        mode=Mode.IDENTITY,
        opportunities=1,
        functions_host=False,
        defaults={"AZURE_CLIENT_ID": "of the defaults", "MINE": "kept"},
        settings={
            "DATAVERSE_ORGANIZATION_ID": "mine",
            "AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls": "3",
        },
    )
    with Cloud(options) as cloud:
        yield cloud


def test_the_function_may_do_what_it_needs_on_service_bus_and_no_more(prepared: Cloud) -> None:
    """The roles are those that the templates assign; its settings name no key in this mode."""
    assert function_rights(prepared) == [
        ("invoice-created", "SEND"),
        ("opportunity-won", "LISTEN"),
        ("opportunity-won", "SEND"),
        ("opportunity-won-failed", "SEND"),
    ]


def test_settings_of_the_caller_win_over_the_sandboxs_and_those_over_the_defaults(prepared: Cloud) -> None:
    settings = prepared.app_settings
    assert settings["AZURE_CLIENT_ID"] == prepared.function_identity.client_id
    assert (settings["MINE"], settings["DATAVERSE_ORGANIZATION_ID"]) == ("kept", "mine")
    assert settings["PYTHON_THREADPOOL_THREAD_COUNT"] == "3"


def test_local_settings_are_for_core_tools(prepared: Cloud) -> None:
    """A plain connection string, because the tools' own runtime trusts no authority of ours."""
    document = prepared.local_settings()
    values = document["Values"]
    assert document["IsEncrypted"] is False
    assert isinstance(values, dict)
    assert values["ServiceBusConnection"] == prepared.connection_string
    assert values["FUNCTIONS_WORKER_RUNTIME"] == "python"
    assert values["DATAVERSE_URL"] == prepared.dataverse_server.url
    assert all(isinstance(value, str) for value in values.values())
    assert not [name for name in values if name.startswith("ServiceBusConnection__")]
