"""Who the commands are, and how patient: what the environment says of whoever runs them.

They are the developer's login of the Azure CLI, or a managed identity where there is one. The app settings name the
function's identity; where the commands run as a managed identity of their own, OPERATIONS_CLIENT_ID names it.
OPERATIONS_ANSWER_SECONDS says how long they wait for one answer of Service Bus or Dataverse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click
from azure.servicebus import parse_connection_string

from shared.errors import InvalidSettings
from shared.settings import CONNECTION, ConnectionString, dataverse_settings, service_bus_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.settings import DataverseSettings, ServiceBusSettings

CLIENT_ID = "OPERATIONS_CLIENT_ID"
ANSWER_SECONDS = "OPERATIONS_ANSWER_SECONDS"


def operator_client_id(environment: Mapping[str, str]) -> str | None:
    """Return the client id of the identity that the commands have for themselves, if there is one."""
    return environment.get(CLIENT_ID, "").strip().lower() or None


def dataverse_settings_of(environment: Mapping[str, str]) -> DataverseSettings:
    """Return the settings of the Dataverse side with the identity of whoever runs a command; see settings.py."""
    settings, client_id = dataverse_settings(environment), operator_client_id(environment)
    return settings if client_id is None else replace(settings, client_id=client_id)


def service_bus_settings_of(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return the settings of the way in and out with the identity of whoever runs a command; see settings.py."""
    settings, client_id = service_bus_settings(environment), operator_client_id(environment)
    namespace_address(settings)
    if client_id is None or isinstance(settings.connection, ConnectionString):
        return settings
    return replace(settings, connection=replace(settings.connection, client_id=client_id))


def namespace_address(settings: ServiceBusSettings) -> str:
    """Return the namespace's address as service endpoints have it, sb://host/; raises InvalidSettings."""
    connection = settings.connection
    if not isinstance(connection, ConnectionString):
        return f"sb://{connection.fully_qualified}/"
    try:
        return parse_connection_string(connection.value).endpoint.rstrip("/") + "/"
    except ValueError as error:
        # What the error quotes may be the key.
        problem = f"The app setting {CONNECTION} is not valid: it should be a connection string with a key."
        raise InvalidSettings((problem,)) from error


def answer_seconds(environment: Mapping[str, str], default: float) -> float:
    """Return how many seconds to wait for one answer; raises UsageError."""
    text = environment.get(ANSWER_SECONDS, "").strip()
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise click.UsageError(f"{ANSWER_SECONDS} should be a number of seconds above zero.")
    return seconds
