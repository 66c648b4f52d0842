"""The settings that the commands work with, and the identity that runs them.

The commands read the function's app settings from the process's environment or from a file (`--settings FILE`). A file
can come from everybody who may write app settings in Azure, so only the names below are read from it, into a mapping
of our own: a setting called PATH or HTTPS_PROXY has no effect on the operator's machine. The namespace receives the
operator's token, which is valid for every namespace, so it must be one of Azure's.

The identity is the developer's login of the Azure CLI, or a managed identity where there is one. The app settings name
the function's identity; OPERATIONS_CLIENT_ID names the identity of the commands where they have their own.
OPERATIONS_RESPONSE_SECONDS says how long a command waits for one response of Service Bus or Dataverse.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from azure.servicebus import parse_connection_string

from shared.errors import InvalidSettings
from shared.settings import CONNECTION, ConnectionString, dataverse_settings, service_bus_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shared.settings import DataverseSettings, ServiceBusSettings

CLIENT_ID = "OPERATIONS_CLIENT_ID"
RESPONSE_SECONDS = "OPERATIONS_RESPONSE_SECONDS"

# What the function reads, and what `doctor` compares with it. `infrastructure.settings` writes only these.
APP_SETTINGS = frozenset(
    {
        CONNECTION,
        f"{CONNECTION}__fullyQualifiedNamespace",
        f"{CONNECTION}__credential",
        f"{CONNECTION}__clientId",
        "OPPORTUNITY_WON_QUEUE",
        "OPPORTUNITY_WON_FAILED_QUEUE",
        "INVOICE_CREATED_TOPIC",
        "DATAVERSE_URL",
        "DATAVERSE_ORGANIZATION_ID",
        "AZURE_CLIENT_ID",
        "ORDERED_OPPORTUNITY",
        "INVOICE_OWNER",
        "INVOICE_COLUMNS",
        "INVOCATION_DEADLINE_SECONDS",
        "RETRY_OPEN_SECONDS",
        "RETRY_RECORD_SECONDS",
        "RETRY_OUTAGE_SECONDS",
        "RETRY_FIRST_DELAY_SECONDS",
        "RETRY_MAX_DELAY_SECONDS",
        "TELEMETRY_EXPORTER",
        "PYTHON_THREADPOOL_THREAD_COUNT",
        "AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls",
    }
)
# Settings of the Functions host, which every function app has and no command reads.
_OF_THE_HOST = frozenset({"FUNCTIONS_WORKER_RUNTIME", "FUNCTIONS_EXTENSION_VERSION", "AzureWebJobsStorage"})
# Where the sandbox's identities and certificates are. The SDKs read them from the process's own environment, so they
# are accepted only from the sandbox's own file: its identity endpoint is on this machine.
_OF_THE_SANDBOX = frozenset({"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# The namespaces of Azure's public, US Government and China clouds.
_NAMESPACES = (
    ".servicebus.windows.net",
    ".servicebus.usgovcloudapi.net",
    ".servicebus.chinacloudapi.cn",
)
# Of the sandbox.
_LOOPBACK_ADDRESS = re.compile(r"127(\.\d{1,3}){3}")


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file contributes. `left_out`: names that are in the file and are not read."""

    app_settings: Mapping[str, str]
    sandbox: Mapping[str, str]
    left_out: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> SettingsFile:
        """Read a local.settings.json; raises UsageError for a file that is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8-sig"))["Values"]
            values = {str(name): str(value) for name, value in document.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise click.UsageError(
                f'{path} is not a local.settings.json: it should be {{"Values": {{"NAME": "value", …}}}}.'
            ) from error
        except OSError as error:
            raise click.UsageError(f"{path} cannot be read: {error.strerror}.") from error
        sandbox = {name: values[name] for name in _OF_THE_SANDBOX & values.keys()}
        if not _has_identities_of_this_machine(sandbox):
            sandbox = {}
        return cls(
            {name: value for name, value in values.items() if name in APP_SETTINGS},
            sandbox,
            tuple(sorted(values.keys() - APP_SETTINGS - _OF_THE_HOST - sandbox.keys())),
        )


def _has_identities_of_this_machine(sandbox: Mapping[str, str]) -> bool:
    """Whether tokens come from an endpoint on this machine; without the header the SDK asks another one."""
    try:
        host = urlsplit(sandbox.get("IDENTITY_ENDPOINT", "")).hostname
    except ValueError:
        return False
    return host in _LOOPBACK and bool(sandbox.get("IDENTITY_HEADER"))


def environment_of(settings_file: SettingsFile | None) -> Mapping[str, str]:
    """Return the process's environment, with the app settings of a file in their place."""
    if settings_file is None:
        return os.environ
    os.environ.update(settings_file.sandbox)
    return {**os.environ, **settings_file.app_settings}


def operator_client_id(environment: Mapping[str, str]) -> str | None:
    """Return the client id of the managed identity that the commands have for themselves, if there is one."""
    return environment.get(CLIENT_ID, "").strip().lower() or None


def dataverse_settings_of(environment: Mapping[str, str]) -> DataverseSettings:
    """Return the Dataverse settings with the identity that runs the command; raises InvalidSettings."""
    settings, client_id = dataverse_settings(environment), operator_client_id(environment)
    return settings if client_id is None else replace(settings, client_id=client_id)


def service_bus_settings_of(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return the Service Bus settings with the identity that runs the command; raises InvalidSettings."""
    settings, client_id = service_bus_settings(environment), operator_client_id(environment)
    namespace_address(settings)
    if client_id is None or isinstance(settings.connection, ConnectionString):
        return settings
    return replace(settings, connection=replace(settings.connection, client_id=client_id))


def namespace_address(settings: ServiceBusSettings) -> str:
    """Return the namespace's address as service endpoints have it, sb://host/; raises InvalidSettings.

    A host that is not Azure's is refused where the operator's token would go there.
    """
    connection = settings.connection
    if not isinstance(connection, ConnectionString):
        name = f"{CONNECTION}__fullyQualifiedNamespace"
        _check_host(name, connection.fully_qualified, "your token is not sent there")
        return f"sb://{connection.fully_qualified}/"
    try:
        return parse_connection_string(connection.value).endpoint.rstrip("/") + "/"
    except ValueError as error:
        # What the error quotes may be the key.
        problem = f"The app setting {CONNECTION} is not valid: it should be a connection string with a key."
        raise InvalidSettings((problem,)) from error


def posting_address(settings: ServiceBusSettings) -> str:
    """Return the address to which Dataverse will post whole events; a host that is not Azure's is refused."""
    address = namespace_address(settings)
    _check_host(CONNECTION, urlsplit(address).hostname or "", "Dataverse does not post there")
    return address


def _check_host(setting: str, host: str, refused: str) -> None:
    if not host.endswith(_NAMESPACES) and not _LOOPBACK_ADDRESS.fullmatch(host):
        problem = (
            f"The app setting {setting} names {host}, which is not in Azure: {refused}. It should be a host such as "
            f"contoso{_NAMESPACES[0]}."
        )
        raise InvalidSettings((problem,))


def response_seconds(environment: Mapping[str, str], default: float) -> float:
    """Return how many seconds to wait for one response; raises UsageError."""
    text = environment.get(RESPONSE_SECONDS, "").strip()
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise click.UsageError(f"{RESPONSE_SECONDS} should be a number of seconds above zero.")
    return seconds
