"""Clients for Service Bus: by connection string, or over TLS with a managed identity."""

import ssl
import threading
import time
from functools import partial

import requests
from azure.core.credentials import AccessToken
from azure.servicebus import ServiceBusClient

from sandbox.functions_host.configuration import ConnectionString, IdentityConnection

_TOKEN_TIMEOUT_SECONDS = 5.0
# A token is fetched anew this long before it expires.
_TOKEN_MARGIN_SECONDS = 300


class NoToken(Exception):
    """The managed-identity endpoint returned no token."""


class ManagedIdentity:
    """A token credential for the endpoint of a connection.

    The credential of azure-identity reads the environment, but there may be several hosts in one process.
    """

    def __init__(self, connection: IdentityConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._tokens: dict[str, AccessToken] = {}

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        """Return a token for the one scope; raises NoToken."""
        resource = scopes[0].removesuffix("/.default")
        with self._lock:
            token = self._tokens.get(resource)
            if token is None or token.expires_on - time.time() < _TOKEN_MARGIN_SECONDS:
                token = self._tokens[resource] = self._fetch(resource)
            return token

    def _fetch(self, resource: str) -> AccessToken:
        query = {"api-version": "2019-08-01", "resource": resource}
        if self._connection.client_id:
            query["client_id"] = self._connection.client_id
        try:
            response = requests.get(
                self._connection.identity_endpoint,
                params=query,
                headers={"X-IDENTITY-HEADER": self._connection.identity_header},
                timeout=_TOKEN_TIMEOUT_SECONDS,
            )
            response.raise_for_status()
            content = response.json()
        except requests.RequestException as error:
            raise NoToken(f"no token for {resource}: {error}") from error
        return AccessToken(content["access_token"], int(content["expires_on"]))


class Connector:
    """Makes clients for one connection; they share the token."""

    def __init__(self, connection: ConnectionString | IdentityConnection, certificates: str | None) -> None:
        # The client library would trust the certificates that it ships, and no others.
        self._trust = ssl.create_default_context(cafile=certificates)
        self._new_client: partial[ServiceBusClient]
        if isinstance(connection, ConnectionString):
            self._new_client = partial(ServiceBusClient.from_connection_string, connection.value)
        else:
            self._new_client = partial(ServiceBusClient, connection.namespace, ManagedIdentity(connection))

    def connect(self) -> ServiceBusClient:
        """Return a client for one thread's use; it connects when it is used."""
        return self._new_client(retry_total=1, retry_backoff_factor=0.1, ssl_context=self._trust)
