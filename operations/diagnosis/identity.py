"""The tokens: whether the identity gives one for each audience, and whose it is.

Whoever looks may be the function itself, or an operator: what the operator may do says nothing about the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from operations.diagnosis.findings import Finding, Found, ok
from operations.environment import operator_client_id
from operations.identity import SERVICE_BUS_SCOPE, owner_of
from shared.credential import Identities
from shared.errors import TokenUnavailable
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from collections.abc import Mapping

    from operations.diagnosis.findings import Result
    from operations.identity import TokenOwner
    from shared.clock import Deadline
    from shared.credential import Tokens
    from shared.settings import DataverseSettings, ServiceBusSettings


class Identity:
    """Whoever looks, and how far that is the function."""

    def __init__(
        self, environment: Mapping[str, str], service_bus: ServiceBusSettings, dataverse: DataverseSettings
    ) -> None:
        self._environment = environment
        self._identities = Identities(environment)
        self._connection = service_bus.connection
        self._dataverse = dataverse
        self._function_client_id = dataverse.client_id
        # Without a managed identity it is a developer who is logged in.
        self._is_operator = (
            "IDENTITY_ENDPOINT" not in environment or operator_client_id(environment) is not None
        )
        self._owners: dict[str, TokenOwner] = {}

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
        return self._token("Service Bus", SERVICE_BUS_SCOPE, connection.client_id, deadline)

    def dataverse(self, deadline: Deadline) -> list[Result]:
        """Look at the token for Dataverse."""
        return self._token(
            "Dataverse", f"{self._dataverse.url}/.default", self._dataverse.client_id, deadline
        )

    def source(self, scope: str, of_function: str | None) -> Tokens:
        """Return the tokens of whoever looks for a scope."""
        return self._identities.of(self.client_id(of_function)).tokens(scope)

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
