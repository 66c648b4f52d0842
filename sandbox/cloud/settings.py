"""The app settings of the function: where everything is, and what the caller adds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sandbox.cloud.entities import entity_names
from sandbox.cloud.namespace import NamespaceServer
from sandbox.cloud.options import CONNECTION, CREATED_TOPIC, FAILED_QUEUE, WON_QUEUE
from sandbox.faults.plan import Dependency
from sandbox.faults.proxy import TcpProxy
from sandbox.identity import Identity, IdentityServer
from sandbox.service_bus import Configuration

# What this project's function calls its entities; set where the entities file has them.
_ENTITY_SETTINGS = {
    "OPPORTUNITY_WON_QUEUE": WON_QUEUE,
    "OPPORTUNITY_WON_FAILED_QUEUE": FAILED_QUEUE,
    "INVOICE_CREATED_TOPIC": CREATED_TOPIC,
}


def entity_settings(configuration: Configuration) -> dict[str, str]:
    """Return the settings that name entities."""
    known = entity_names(configuration)
    return {name: entity for name, entity in _ENTITY_SETTINGS.items() if entity in known}


def belongs_to_connection(setting: str, names: Iterable[str]) -> bool:
    """Tell whether a setting is part of one of these connections."""
    connection = setting.removeprefix("AzureWebJobs").partition("__")[0]
    return connection in names


@dataclass(frozen=True)
class Connections:
    """The settings of the connections to Service Bus and to the identity endpoint.

    `names` is what the app's bindings call their connections to Service Bus, `identity` logs in.
    """

    names: Iterable[str]
    namespace: NamespaceServer
    connection_string: str
    identity: Identity
    identity_server: IdentityServer
    proxies: Mapping[Dependency, TcpProxy]

    @property
    def settings(self) -> dict[str, str]:
        """All of them."""
        settings = dict(self._identity_endpoint())
        for name in sorted({CONNECTION, *self.names}):
            settings |= self._by_identity(name) if self.namespace.tls else self._by_key(name)
        return settings

    def _identity_endpoint(self) -> Mapping[str, str]:
        settings = self.identity_server.settings
        if not self.proxies:
            return settings
        endpoint = urlsplit(self.identity_server.endpoint)._replace(
            netloc=self.proxies[Dependency.IDENTITY].address
        )
        return {**settings, "IDENTITY_ENDPOINT": endpoint.geturl()}

    def _by_identity(self, name: str) -> dict[str, str]:
        assert self.namespace.tls is not None  # noqa: S101 - for the type checker: `settings` checks it
        host = self.proxies[Dependency.SERVICE_BUS_OUT].host if self.proxies else self.namespace.tls.host
        return {
            f"{name}__fullyQualifiedNamespace": host,
            f"{name}__credential": "managedidentity",
            f"{name}__clientId": self.identity.client_id,
        }

    def _by_key(self, name: str) -> dict[str, str]:
        if not self.proxies:
            return {name: self.connection_string}
        # The host prefers the first name, and the function reads the second one.
        names = {f"AzureWebJobs{name}": Dependency.SERVICE_BUS_IN, name: Dependency.SERVICE_BUS_OUT}
        plain = f"{self.namespace.plain.host}:{self.namespace.plain.port}"
        return {
            setting: self.connection_string.replace(plain, self.proxies[dependency].address)
            for setting, dependency in names.items()
        }
