"""Errors of logins, keys, the network and TLS: each command reports them in a sentence with the next step."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from operations.environment import (
    SettingsFile,
    environment_of,
    namespace_address,
    service_bus_settings_of,
)
from sandbox.certificates import CertificateAuthority
from sandbox.cloud.namespace import NamespaceServer
from sandbox.cloud.settings import entity_settings
from sandbox.dataverse import DataverseApp, DataverseServer
from sandbox.identity import TokenAuthority
from sandbox.service_bus import Authenticator, Broker, Configuration
from shared.errors import InvalidSettings
from shared.settings import service_bus_settings
from tests.end_to_end.conftest import run_operations, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

APPLICATION = "00000000-0000-0000-0000-000000000001"
COMMANDS = {
    "failed list": ("failed", "list"),
    "failed show": ("failed", "show", "1"),
    "failed replay": ("failed", "replay", "1"),
    "failed discard": ("failed", "discard", "1", "--yes"),
    "failed export": ("failed", "export", "--all"),
    "waiting list": ("waiting", "list"),
    "waiting show": ("waiting", "show", "1"),
    "waiting retry-now": ("waiting", "retry-now", "--all", "--yes"),
    "connect": ("connect", "--application-id", APPLICATION, "--yes"),
    "disconnect": ("disconnect", "--application-id", APPLICATION, "--yes"),
    "reconcile": ("reconcile", "--since", "2026-01-01"),
    "events resend": ("events", "resend", APPLICATION),
    "opportunity": ("opportunity", "50 chairs"),
}
# What `az account get-access-token` writes to standard error.
NOT_LOGGED_IN = "ERROR: Please run 'az login' to setup account."
EXPIRED = (
    "ERROR: AADSTS70043: The refresh token has expired or is invalid due to sign-in frequency checks. "
    "Interactive authentication is needed. Please run: az login"
)
NAMESPACE = "ServiceBusConnection__fullyQualifiedNamespace"


@pytest.fixture
def azure_cli(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that makes an Azure CLI of a shell script, and returns a PATH with it."""

    def make(script: str) -> dict[str, str]:
        command = tmp_path / "az"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve Service Bus and Dataverse on this machine; give the environment of a command that reaches them."""
    certificates = CertificateAuthority(tmp_path_factory.mktemp("certificates"))
    configuration = Configuration.load()
    namespace = NamespaceServer(Broker(configuration), Authenticator(configuration), certificates)
    app = DataverseApp(TokenAuthority().verify)
    with (
        ExitStack() as stack,
        DataverseServer(app, certificates.server_context("127.0.0.1")) as dataverse,
    ):
        namespace.start_tls(stack)
        yield {
            "PATH": os.environ["PATH"],
            **certificates.settings,
            "DATAVERSE_URL": dataverse.url,
            "ServiceBusConnection__fullyQualifiedNamespace": namespace.address,
            **entity_settings(configuration),
            "OPERATIONS_RESPONSE_SECONDS": "30",
        }
    app.close()


def check_sentence(environment: dict[str, str], command: str, sentence: str, next_step: str) -> list[str]:
    """Run a command; return the lines that it writes to standard error."""
    with started(environment, *COMMANDS[command]) as process:
        _, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert sentence in said
    assert next_step in said
    assert len(said.splitlines()) <= 3, said
    return said.splitlines()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_login_is_a_sentence_in_every_command(
    servers: dict[str, str], azure_cli: Callable[[str], dict[str, str]], command: tuple[str, ...]
) -> None:
    environment = servers | azure_cli(f'echo "{NOT_LOGGED_IN}" >&2; exit 1')
    said = run_operations(environment, *command, code=1).stderr
    assert "The login of the Azure CLI is missing or has expired." in said
    assert "Run az login" in said


@pytest.mark.parametrize("command", ["failed list", "reconcile"])
def test_an_expired_login_is_a_sentence_on_both_connections(
    servers: dict[str, str], azure_cli: Callable[[str], dict[str, str]], command: str
) -> None:
    environment = servers | azure_cli(f'echo "{EXPIRED}" >&2; exit 1')
    sentence = "The login of the Azure CLI is missing or has expired."
    check_sentence(environment, command, sentence, "Run az login")


@pytest.mark.parametrize("command", ["failed list", "reconcile"])
def test_a_machine_without_the_azure_cli_is_a_sentence(
    servers: dict[str, str], tmp_path: Path, command: str
) -> None:
    environment = servers | {"PATH": str(tmp_path)}
    check_sentence(environment, command, "the Azure CLI is not installed", "Install the Azure CLI")


def key(host: str, value: str = "SAS_KEY_VALUE") -> dict[str, str]:
    return {
        "ServiceBusConnection": f"Endpoint=sb://{host}/;SharedAccessKeyName=RootManageSharedAccessKey;"
        f"SharedAccessKey={value}"
    }


@pytest.mark.parametrize(
    ("host", "value", "sentence"),
    [
        ("", "wrong", "Service Bus refuses the key or the login"),
        ("127.0.2.1", "", "Service Bus refuses the connection"),
        ("contoso.invalid", "", "The host name of Service Bus has no address"),
    ],
    ids=["wrong key", "refused", "no address"],
)
def test_a_broken_connection_to_service_bus_is_a_sentence_that_names_doctor(
    servers: dict[str, str], host: str, value: str, sentence: str
) -> None:
    environment = servers | key(host or servers[NAMESPACE], value or "SAS_KEY_VALUE")
    check_sentence(environment, "failed list", sentence, "operations doctor")


def test_a_certificate_that_is_not_trusted_is_a_sentence(servers: dict[str, str], tmp_path: Path) -> None:
    environment = servers | key(servers[NAMESPACE]) | CertificateAuthority(tmp_path).settings
    sentence = "The certificate of Service Bus is not trusted"
    check_sentence(environment, "failed list", sentence, "SSL_CERT_FILE")


def test_an_unreachable_dataverse_is_a_sentence_without_lines_of_the_functions_log(
    servers: dict[str, str], azure_cli: Callable[[str], dict[str, str]]
) -> None:
    token = {"accessToken": "x", "expiresOn": "2100-01-01 00:00:00.000000", "expires_on": 4102444800}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = {"DATAVERSE_URL": f"https://127.0.0.1:{closed.getsockname()[1]}"}
        environment = servers | address | azure_cli(f"echo '{json.dumps(token)}'")
        sentence = "Dataverse refuses the connection"
        assert len(check_sentence(environment, "reconcile", sentence, "operations doctor")) == 2


def test_a_closed_pipe_ends_a_command_without_an_error(servers: dict[str, str]) -> None:
    """As in `operations failed list | head -1`."""
    with started(servers | key(servers[NAMESPACE]), *COMMANDS["failed list"]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_dashboard_and_interrupts_nothing(servers: dict[str, str]) -> None:
    with started(servers, "dashboard") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Dashboard: http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (0, "Ctrl-C ends the dashboard.")


@pytest.mark.parametrize("command", ["dashboard", "doctor"])
def test_ctrl_c_does_not_wait_for_a_check_that_is_under_way(command: str, servers: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        environment = servers | {
            "DATAVERSE_URL": f"https://127.0.0.1:{silent.getsockname()[1]}",
            "OPERATIONS_RESPONSE_SECONDS": "600",
        }
        with started(environment, command) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                # The check would wait for half a minute.
                process.wait(25)


# ------------------------------------------------------------------------------------- the settings file

SETTINGS = {
    "DATAVERSE_URL": "https://contoso.crm.dynamics.com",
    "OPPORTUNITY_WON_QUEUE": "opportunity-won",
    "FUNCTIONS_WORKER_RUNTIME": "python",
}
DANGEROUS = (
    "BASH_ENV",
    "PATH",
    "LD_PRELOAD",
    "HTTPS_PROXY",
    "PYTHONPATH",
    "SSL_CERT_FILE",
    "IDENTITY_ENDPOINT",
)


def settings_file(folder: Path, values: dict[str, str]) -> Path:
    file = folder / "settings.json"
    file.write_text(json.dumps({"IsEncrypted": False, "Values": values}))
    return file


def test_only_the_settings_of_the_function_are_read_from_a_file(tmp_path: Path) -> None:
    """Everybody who may write app settings in Azure can put a name there."""
    evil = dict.fromkeys(DANGEROUS, "http://evil.example")
    before = dict(os.environ)
    file = SettingsFile.read(settings_file(tmp_path, SETTINGS | evil))
    environment = environment_of(file)
    assert {name: environment.get(name) for name in DANGEROUS} == {
        name: before.get(name) for name in DANGEROUS
    }
    assert environment["DATAVERSE_URL"] == SETTINGS["DATAVERSE_URL"]
    assert dict(os.environ) == before
    assert file.left_out == tuple(sorted(DANGEROUS))


ENTITIES = {"OPPORTUNITY_WON_QUEUE": "a", "OPPORTUNITY_WON_FAILED_QUEUE": "b", "INVOICE_CREATED_TOPIC": "c"}


@pytest.mark.parametrize(
    "host",
    [
        "sb.evil.example",
        "contoso.servicebus.windows.net.evil.example",
        "evilservicebus.windows.net",
        "127.0.0.1.evil.example",
        "localhost",
    ],
)
@pytest.mark.parametrize(
    "read", [service_bus_settings_of, lambda env: namespace_address(service_bus_settings(env))]
)
def test_the_operators_token_goes_to_no_host_outside_of_azure(
    host: str, read: Callable[[Mapping[str, str]], object]
) -> None:
    """It is valid for every namespace, and everybody who may write app settings can put a host there."""
    with pytest.raises(InvalidSettings, match="your token is not sent there"):
        read({**ENTITIES, NAMESPACE: host})


@pytest.mark.parametrize(
    "host", ["contoso.servicebus.windows.net", "contoso.servicebus.usgovcloudapi.net", "127.0.0.9"]
)
def test_the_hosts_of_azure_and_of_the_sandbox_are_accepted(host: str) -> None:
    settings = service_bus_settings_of({**ENTITIES, NAMESPACE: host})
    assert namespace_address(settings) == f"sb://{host}/"


@pytest.mark.parametrize(
    "command", [("failed", "list"), ("doctor",), ("connect", "--application-id", APPLICATION, "--dry-run")]
)
def test_every_command_refuses_a_namespace_outside_of_azure(
    servers: dict[str, str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = settings_file(tmp_path, servers | {NAMESPACE: "sb.evil.example"})
    environment = {"SSL_CERT_FILE": servers["SSL_CERT_FILE"]}
    output = run_operations(environment, "--settings", str(file), *command, code=1).output
    assert "names sb.evil.example, which is not in Azure" in output


def test_what_is_left_out_of_a_file_is_reported(servers: dict[str, str], tmp_path: Path) -> None:
    file = settings_file(tmp_path, servers | key(servers[NAMESPACE]) | {"BASH_ENV": "/a/script"})
    environment = {"SSL_CERT_FILE": servers["SSL_CERT_FILE"]}
    done = run_operations(environment, "--settings", str(file), "failed", "list")
    assert "BASH_ENV" in done.stderr


def test_the_sandboxs_own_file_says_where_its_identities_are(tmp_path: Path) -> None:
    sandbox = {
        "IDENTITY_ENDPOINT": "http://127.0.0.1:1/token",
        "IDENTITY_HEADER": "x",
        "SSL_CERT_FILE": "/ca.pem",
    }
    file = SettingsFile.read(settings_file(tmp_path, SETTINGS | sandbox))
    assert dict(file.sandbox) == sandbox
    assert file.left_out == ()


@pytest.mark.parametrize(
    "endpoint",
    [
        {"IDENTITY_ENDPOINT": "http://127.0.0.1:1/token"},
        {"IDENTITY_ENDPOINT": "http://127.0.0.1:1/token", "IDENTITY_HEADER": ""},
        {"IDENTITY_ENDPOINT": "http://127.0.0.1@evil.example/", "IDENTITY_HEADER": "x"},
        {"IDENTITY_ENDPOINT": "http://[evil", "IDENTITY_HEADER": "x"},
        {"IDENTITY_HEADER": "x"},
    ],
)
def test_certificates_come_only_with_the_sandboxs_identities(
    tmp_path: Path, endpoint: dict[str, str]
) -> None:
    """If the operator's own login trusted another authority, its owner could read the tokens."""
    file = SettingsFile.read(settings_file(tmp_path, SETTINGS | endpoint | {"SSL_CERT_FILE": "/tmp/ca.pem"}))  # noqa: S108
    assert dict(file.sandbox) == {}
    assert set(file.left_out) == {*endpoint, "SSL_CERT_FILE"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Values": []}', '{"Other": {}}', "[" * 100_000])
def test_a_file_that_is_no_settings_file_is_a_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    done = run_operations({}, "--settings", str(file), "failed", "list", code=2)
    assert "is not a local.settings.json" in done.stderr
