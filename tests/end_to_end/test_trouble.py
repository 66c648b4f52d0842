"""Errors of logins, keys, the network and TLS: each command reports them in a sentence with the next step."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
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
LOGINS = {
    "not logged in": "ERROR: Please run 'az login' to setup account.",
    "expired": (
        "ERROR: AADSTS70043: The refresh token has expired or is invalid due to sign-in frequency checks. "
        "Interactive authentication is needed. Please run: az login"
    ),
}


@pytest.fixture(scope="module")
def azure_cli(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that makes an Azure CLI which fails with a text, and returns a PATH with it."""

    def make(text: str) -> str:
        folder = tmp_path_factory.mktemp("az")
        command = folder / "az"
        command.write_text(f'#!/bin/sh\necho "{text}" >&2\nexit 1\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        return f"{folder}:{os.environ['PATH']}"

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


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command, no shell
        [sys.executable, "-m", "operations", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def check_sentence(done: subprocess.CompletedProcess[str], sentence: str, next_step: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert sentence in done.stderr
    assert next_step in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_login_is_a_sentence_in_every_command(
    servers: dict[str, str], azure_cli: Callable[[str], str], command: tuple[str, ...]
) -> None:
    environment = servers | {"PATH": azure_cli(LOGINS["not logged in"])}
    check_sentence(
        run(environment, *command), "The login of the Azure CLI is missing or has expired.", "Run az login"
    )


@pytest.mark.parametrize("command", ["failed list", "reconcile"])
def test_an_expired_login_is_a_sentence_on_both_connections(
    servers: dict[str, str], azure_cli: Callable[[str], str], command: str
) -> None:
    environment = servers | {"PATH": azure_cli(LOGINS["expired"])}
    check_sentence(
        run(environment, *COMMANDS[command]),
        "The login of the Azure CLI is missing or has expired.",
        "Run az login",
    )


@pytest.mark.parametrize("command", ["failed list", "reconcile"])
def test_a_machine_without_the_azure_cli_is_a_sentence(
    servers: dict[str, str], tmp_path: Path, command: str
) -> None:
    check_sentence(
        run(servers | {"PATH": str(tmp_path)}, *COMMANDS[command]),
        "the Azure CLI is not installed",
        "Install the Azure CLI",
    )


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
    connection = key(
        host or servers["ServiceBusConnection__fullyQualifiedNamespace"], value or "SAS_KEY_VALUE"
    )
    check_sentence(run(servers | connection, *COMMANDS["failed list"]), sentence, "operations doctor")


def test_an_unreachable_dataverse_is_a_sentence_without_lines_of_the_functions_log(
    servers: dict[str, str], tmp_path: Path
) -> None:
    token = {"accessToken": "x", "expiresOn": "2100-01-01 00:00:00.000000", "expires_on": 4102444800}
    (tmp_path / "token.json").write_text(json.dumps(token))
    az = tmp_path / "az"
    az.write_text(f"#!/bin/sh\ncat {tmp_path / 'token.json'}\n")
    az.chmod(0o755)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environment = servers | {
            "DATAVERSE_URL": f"https://127.0.0.1:{closed.getsockname()[1]}",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        done = run(environment, *COMMANDS["reconcile"])
    check_sentence(done, "Dataverse refuses the connection", "operations doctor")
    assert len(done.stderr.splitlines()) == 2, done.stderr


def test_a_closed_pipe_ends_a_command_without_an_error(servers: dict[str, str]) -> None:
    """As in `operations failed list | head -1`."""
    read, write = os.pipe()
    os.close(read)
    environment = servers | key(servers["ServiceBusConnection__fullyQualifiedNamespace"])
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            [sys.executable, "-m", "operations", *COMMANDS["failed list"]],
            env=environment,
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.stderr == ""


# A shell lets what it runs in the background ignore SIGINT, and this test run may be such a program.
INTERRUPTIBLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('operations', run_name='__main__', alter_sys=True)"
)


def test_ctrl_c_ends_the_dashboard_and_interrupts_nothing(servers: dict[str, str]) -> None:
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-u", "-c", INTERRUPTIBLE, "dashboard"],
        env=servers,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Dashboard: http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said.strip()) == (0, "Ctrl-C ends the dashboard.")


@pytest.mark.parametrize("command", [("dashboard",), ("doctor",)], ids=" ".join)
def test_ctrl_c_does_not_wait_for_a_check_that_is_under_way(
    command: tuple[str, ...], servers: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = servers | {
            "DATAVERSE_URL": f"https://127.0.0.1:{silent.getsockname()[1]}",
            "OPERATIONS_RESPONSE_SECONDS": "600",
        }
        with subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-u", "-c", INTERRUPTIBLE, *command],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                silent.settimeout(60)
                connection, _ = silent.accept()
                process.send_signal(signal.SIGINT)
                # The check would wait for half a minute.
                process.wait(25)
            finally:
                process.kill()
                connection.close()


def test_a_certificate_that_is_not_trusted_is_a_sentence(servers: dict[str, str], tmp_path: Path) -> None:
    other = CertificateAuthority(tmp_path)
    environment = servers | key(servers["ServiceBusConnection__fullyQualifiedNamespace"]) | other.settings
    check_sentence(
        run(environment, *COMMANDS["failed list"]),
        "The certificate of Service Bus is not trusted",
        "SSL_CERT_FILE",
    )


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
    names = {"OPPORTUNITY_WON_QUEUE": "a", "OPPORTUNITY_WON_FAILED_QUEUE": "b", "INVOICE_CREATED_TOPIC": "c"}
    with pytest.raises(InvalidSettings, match="your token is not sent there"):
        read({**names, "ServiceBusConnection__fullyQualifiedNamespace": host})


@pytest.mark.parametrize(
    "host",
    ["contoso.servicebus.windows.net", "contoso.servicebus.usgovcloudapi.net", "127.0.0.9"],
)
def test_the_hosts_of_azure_and_of_the_sandbox_are_accepted(host: str) -> None:
    names = {"OPPORTUNITY_WON_QUEUE": "a", "OPPORTUNITY_WON_FAILED_QUEUE": "b", "INVOICE_CREATED_TOPIC": "c"}
    settings = service_bus_settings_of({**names, "ServiceBusConnection__fullyQualifiedNamespace": host})
    assert namespace_address(settings) == f"sb://{host}/"


@pytest.mark.parametrize("command", ["failed list", "doctor", "connect"])
def test_every_command_refuses_a_namespace_outside_of_azure(
    servers: dict[str, str], tmp_path: Path, command: str
) -> None:
    foreign = {"ServiceBusConnection__fullyQualifiedNamespace": "sb.evil.example"}
    file = settings_file(tmp_path, {**servers, **foreign})
    done = run(
        {"PATH": os.environ["PATH"], "SSL_CERT_FILE": servers["SSL_CERT_FILE"]},
        *("--settings", str(file), *command.split()),
        *(("--application-id", str(uuid4()), "--dry-run") if command == "connect" else ()),
    )
    assert done.returncode == 1, done.stderr
    assert "names sb.evil.example, which is not in Azure" in done.stdout + done.stderr


def test_what_is_left_out_of_a_file_is_reported(servers: dict[str, str], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = tmp_path / "script"
    script.write_text(f"touch {marker}\n")
    file = settings_file(
        tmp_path,
        {**servers, **key(servers["ServiceBusConnection__fullyQualifiedNamespace"]), "BASH_ENV": str(script)},
    )
    done = run(
        {"PATH": os.environ["PATH"], "SSL_CERT_FILE": servers["SSL_CERT_FILE"]},
        "--settings",
        str(file),
        "failed",
        "list",
    )
    assert done.returncode == 0, done.stderr
    assert "BASH_ENV" in done.stderr
    assert not marker.exists()


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
    done = run({"PATH": os.environ["PATH"]}, "--settings", str(file), "failed", "list")
    assert done.returncode == 2
    assert "is not a local.settings.json" in done.stderr
    assert "Traceback" not in done.stderr
