"""The tokens: whether the identity gives one for each audience, and whose it is.

Whoever looks may be the function itself, or an operator: what the operator may do says nothing about the function.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from operations.diagnosis.findings import Finding, Found, ok
from operations.login import operator_client_id
from shared.credential import TokenSource, build_credential
from shared.errors import TokenUnavailable
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from collections.abc import Mapping

    from operations.diagnosis.findings import Result
    from shared.clock import Deadline
    from shared.settings import DataverseSettings, ServiceBusSettings

# As azure-servicebus asks for it.
_SERVICE_BUS_SCOPE = "https://servicebus.azure.net//.default"


@dataclass(frozen=True)
class Owned:
    """Whom a token belongs to, by what it says itself; empty where it says nothing."""

    client_id: str
    object_id: str
    tenant_id: str

    def __str__(self) -> str:
        if not self.object_id:
            return "an identity that the token does not tell"
        return f"client id {self.client_id}, object id {self.object_id}, tenant {self.tenant_id}"


def owner_of(token: str) -> Owned:
    """Return whose a token is. It is not verified: that is for those to whom it is shown."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        texts = {str(name): str(value) for name, value in claims.items()}
    except (IndexError, ValueError, AttributeError, binascii.Error):
        # A token need not be readable for those who carry it.
        texts = {}
    return Owned(
        texts.get("appid", texts.get("azp", "")).lower(), texts.get("oid", "").lower(), texts.get("tid", "")
    )


class Identity:
    """Whoever looks, and how far that is the function."""

    def __init__(
        self, environment: Mapping[str, str], service_bus: ServiceBusSettings, dataverse: DataverseSettings
    ) -> None:
        self._environment = environment
        self._connection = service_bus.connection
        self._dataverse = dataverse
        self._function_client_id = dataverse.client_id
        # Without a managed identity it is a developer who is logged in.
        self._is_operator = (
            "IDENTITY_ENDPOINT" not in environment or operator_client_id(environment) is not None
        )
        self._owners: dict[str, Owned] = {}

    @property
    def function_client_id(self) -> str | None:
        """The client id of the function's identity, as far as it is known from here."""
        return self._function_client_id

    def is_function_at(self, audience: str) -> bool:
        """Whether what `audience` sees is the function: "Dataverse" or "Service Bus", after its token was got."""
        if audience == "Service Bus" and isinstance(self._connection, ConnectionString):
            return True
        owner = self._owners.get(audience)
        return owner is not None and owner.client_id == self._function_client_id

    def client_id(self, of_function: str | None) -> str | None:
        """Return which managed identity to ask for where the function asks for `of_function`."""
        return operator_client_id(self._environment) or of_function

    def service_bus(self, deadline: Deadline) -> list[Result]:
        """Look at the token for Service Bus."""
        connection = self._connection
        if isinstance(connection, ConnectionString):
            return ok("none is needed: ServiceBusConnection holds a key")
        ours = self._dataverse.client_id
        if ours is not None and connection.client_id != ours:
            raise Found(
                Finding.TOKEN_OF_ANOTHER_IDENTITY,
                f"ServiceBusConnection__clientId is {connection.client_id}, AZURE_CLIENT_ID is {ours}",
            )
        return self._token("Service Bus", _SERVICE_BUS_SCOPE, connection.client_id, deadline)

    def dataverse(self, deadline: Deadline) -> list[Result]:
        """Look at the token for Dataverse."""
        return self._token(
            "Dataverse", f"{self._dataverse.url}/.default", self._dataverse.client_id, deadline
        )

    def source(self, scope: str, of_function: str | None) -> TokenSource:
        """Return the tokens of whoever looks for a scope."""
        client_id = self.client_id(of_function)
        return TokenSource(scope, lambda: build_credential(self._environment, client_id))

    def _token(self, audience: str, scope: str, client_id: str | None, deadline: Deadline) -> list[Result]:
        try:
            owner = owner_of(self.source(scope, client_id).token(deadline))
        except TokenUnavailable as error:
            raise Found(Finding.TOKEN_UNAVAILABLE, str(error)) from error
        self._owners[audience] = owner
        if self._is_operator:
            whose = "of the function itself" if self.is_function_at(audience) else "of an operator"
            return ok(f"{whose}: {owner}")
        if client_id is None:
            # The system-assigned identity: its token is the first that tells its client id.
            self._function_client_id = owner.client_id or None
        elif owner.client_id and owner.client_id != client_id:
            raise Found(Finding.TOKEN_OF_ANOTHER_IDENTITY, f"asked for {client_id}, got one of {owner}")
        return ok(f"of the function: {owner}")
