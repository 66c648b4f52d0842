"""Who the commands are: the developer's login of the Azure CLI, or a managed identity where there is one.

The app settings name the function's identity. Where the commands run as a managed identity of their own,
OPERATIONS_CLIENT_ID names it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shared.settings import ConnectionString, dataverse_settings, service_bus_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.settings import DataverseSettings, ServiceBusSettings

CLIENT_ID = "OPERATIONS_CLIENT_ID"


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
    if client_id is None or isinstance(settings.connection, ConnectionString):
        return settings
    return replace(settings, connection=replace(settings.connection, client_id=client_id))
