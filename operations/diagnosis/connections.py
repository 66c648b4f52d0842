"""Settings, identity and network: whether everything is there before Dataverse and Service Bus are asked.

The login may be the function itself, or an operator: what the operator may do says nothing about the function.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from operations.diagnosis.check import CheckFailed, RightMissing, check, ok
from operations.diagnosis.findings import Finding
from operations.environment import namespace_address, operator_client_id
from operations.identity import owner_of
from operations.web_api import WebApi
from shared.bounded_call import BoundedCalls
from shared.credential import SERVICE_BUS_SCOPE, Identities
from shared.deadline_socket import CallTimeout
from shared.errors import InvalidSettings, TokenUnavailable
from shared.http_exchange import tls_context
from shared.settings import ConnectionString, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from operations.diagnosis.check import Checked, Run
    from operations.identity import TokenOwner
    from shared.clock import Deadline
    from shared.credential import Identity
    from shared.settings import DataverseSettings, ServiceBusSettings

ROOT = Path(__file__).resolve().parents[2]
_resolving = BoundedCalls("name resolution", 8)
_TLS_AMQP, _PLAIN_AMQP, _HTTPS = 5671, 5672, 443


@dataclass(frozen=True)
class Context:
    """What the app settings say, once they are complete."""

    environment: Mapping[str, str]
    service_bus: ServiceBusSettings
    dataverse: DataverseSettings
    longest_retry: timedelta
    api: WebApi
    identities: Identities

    @property
    def is_operator(self) -> bool:
        """Whether the login is somebody's own: without a managed identity it is a developer's."""
        return "IDENTITY_ENDPOINT" not in self.environment or operator_client_id(self.environment) is not None

    @property
    def has_key(self) -> bool:
        """Whether Service Bus is reached with a key, as the function does."""
        return isinstance(self.service_bus.connection, ConnectionString)

    def identity(self, of_function: str | None) -> Identity:
        """Return the login's identity. `of_function`: the client id for which the function asks."""
        return self.identities.of(operator_client_id(self.environment) or of_function)


@dataclass(frozen=True)
class Login:
    """Whose token it is for one service. None of both where Service Bus is reached with a key."""

    owner: TokenOwner | None
    function_client_id: str | None

    @property
    def is_function(self) -> bool:
        """Whether the service sees the function itself."""
        return self.owner is None or self.owner.client_id == self.function_client_id


@check("settings")
def settings(run: Run) -> Checked[Context]:
    """Read all app settings."""
    environment = run.inputs.environment
    try:
        read = Settings.of(environment)
        namespace_address(read.service_bus)
        api = WebApi.of(environment)
    except InvalidSettings as error:
        raise CheckFailed(Finding.SETTINGS_INVALID, *dict.fromkeys(error.problems)) from error
    longest_retry = max(read.retry.bounds.values())
    context = Context(
        environment, read.service_bus, read.dataverse, longest_retry, api, Identities(environment)
    )
    return ok("complete", context)


@check("threads", settings)
def threads(run: Run) -> Checked[None]:
    """Compare the worker's threads with the calls that the host makes at once."""
    environment = run.inputs.environment
    calls = _concurrent_calls(environment)
    if calls is None:
        raise RightMissing(
            "maxConcurrentCalls is not in a host.json next to this command", "the project's folder"
        )
    count = environment.get("PYTHON_THREADPOOL_THREAD_COUNT", "").strip()
    if count != calls:
        seen = f"PYTHON_THREADPOOL_THREAD_COUNT is {count or 'not set'}, maxConcurrentCalls is {calls}"
        raise CheckFailed(Finding.THREADS_DIFFER_FROM_CALLS, seen)
    return ok(f"{count} threads for {calls} calls")


@check("token for Service Bus", settings)
def service_bus_token(run: Run) -> Checked[Login]:
    """Fetch a token for Service Bus."""
    context = run[settings]
    connection, ours = context.service_bus.connection, context.dataverse.client_id
    if isinstance(connection, ConnectionString):
        return ok("none is needed: ServiceBusConnection holds a key", Login(None, ours))
    if ours is not None and connection.client_id != ours:
        raise CheckFailed(
            Finding.TOKEN_OF_ANOTHER_IDENTITY,
            f"ServiceBusConnection__clientId is {connection.client_id}, AZURE_CLIENT_ID is {ours}",
        )
    return _login(run, SERVICE_BUS_SCOPE, connection.client_id, ours)


@check("token for Dataverse", settings, service_bus_token)
def dataverse_token(run: Run) -> Checked[Login]:
    """Fetch a token for Dataverse."""
    login, context = run[service_bus_token], run[settings]
    ours = context.dataverse.client_id
    return _login(run, f"{context.dataverse.url}/.default", ours, login.function_client_id)


def _login(run: Run, scope: str, asked_for: str | None, function_client_id: str | None) -> Checked[Login]:
    context = run[settings]
    try:
        owner = owner_of(context.identity(asked_for).tokens(scope).token(run.deadline))
    except TokenUnavailable as error:
        raise CheckFailed(Finding.TOKEN_UNAVAILABLE, str(error)) from error
    if context.is_operator:
        login = Login(owner, function_client_id)
        return ok(f"of {'the function itself' if login.is_function else 'an operator'}: {owner}", login)
    if asked_for is not None and owner.client_id and owner.client_id != asked_for:
        raise CheckFailed(Finding.TOKEN_OF_ANOTHER_IDENTITY, f"asked for {asked_for}, got one of {owner}")
    # A system-assigned identity says its client id in its first token.
    return ok(f"of the function: {owner}", Login(owner, asked_for or owner.client_id or None))


# ---------------------------------------------------------------------------------------------- network


# What an error of a connection means: the first kind that applies.
_DATAVERSE_FINDINGS: dict[type[OSError], Finding] = {
    socket.gaierror: Finding.DATAVERSE_NAME_UNKNOWN,
    TimeoutError: Finding.DATAVERSE_SILENT,
    ssl.SSLCertVerificationError: Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED,
    OSError: Finding.DATAVERSE_REFUSED,
}
_SERVICE_BUS_FINDINGS: dict[type[OSError], Finding] = {
    socket.gaierror: Finding.SERVICE_BUS_NAME_UNKNOWN,
    TimeoutError: Finding.SERVICE_BUS_SILENT,
    ssl.SSLCertVerificationError: Finding.SERVICE_BUS_CERTIFICATE_NOT_TRUSTED,
    OSError: Finding.SERVICE_BUS_REFUSED,
}


@check("connection to Dataverse", settings)
def dataverse_connection(run: Run) -> Checked[None]:
    """Connect to Dataverse, with the trust of the function."""
    url = run[settings].api.url
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy is not None:
        return ok(f"through the proxy {urlsplit(proxy).hostname}: not checked from here")
    try:
        trust = tls_context()
    except OSError as error:
        raise CheckFailed(
            Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED, "REQUESTS_CA_BUNDLE names what cannot be read"
        ) from error
    parts = urlsplit(url)
    return _connect(_DATAVERSE_FINDINGS, parts.hostname or "", parts.port or _HTTPS, trust, run.deadline)


@check("connection to Service Bus", settings)
def service_bus_connection(run: Run) -> Checked[None]:
    """Connect to the namespace, as the SDK does."""
    service_bus = run[settings].service_bus
    connection = service_bus.connection
    # Only the official emulator, and others like it, are reached without TLS.
    is_plain = isinstance(connection, ConnectionString) and "usedevelopmentemulator=true" in re.sub(
        r"\s", "", connection.value.lower()
    )
    address = urlsplit(namespace_address(service_bus))
    port = address.port or (_PLAIN_AMQP if is_plain else _TLS_AMQP)
    trust = None if is_plain else ssl.create_default_context()
    return _connect(_SERVICE_BUS_FINDINGS, address.hostname or "", port, trust, run.deadline)


def _connect(
    findings: Mapping[type[OSError], Finding],
    host: str,
    port: int,
    trust: ssl.SSLContext | None,
    deadline: Deadline,
) -> Checked[None]:
    """Connect and shake hands (`trust` None: no TLS), then hang up."""
    at = f"{host}:{port}"
    try:
        addresses = _resolving.run(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline.remaining
        )
    except CallTimeout as error:
        raise CheckFailed(findings[socket.gaierror], f"{host}: the name server does not respond") from error
    except OSError as error:
        raise CheckFailed(findings[socket.gaierror], f"{host}: {error.strerror or error}") from error
    address = str(addresses[0][4][0])
    try:
        with socket.create_connection((address, port), timeout=max(deadline.remaining, 0.1)) as connection:
            if trust is None:
                return ok(f"{at} accepts connections, without TLS")
            connection.settimeout(max(deadline.remaining, 0.1))
            with trust.wrap_socket(connection, server_hostname=host) as secured:
                return ok(f"{at} accepts connections, {secured.version()}")
    except OSError as error:
        finding = next(finding for kind, finding in findings.items() if isinstance(error, kind))
        seen = "does not respond" if isinstance(error, TimeoutError) else error.strerror or error
        raise CheckFailed(finding, f"{at} ({address}): {seen}") from error


def _concurrent_calls(environment: Mapping[str, str]) -> str | None:
    """Return maxConcurrentCalls as the host reads it: an app setting wins over host.json."""
    override = environment.get("AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls")
    if override:
        return override.strip()
    try:
        host = json.loads((ROOT / "host.json").read_text(encoding="utf-8-sig"))
        return str(host["extensions"]["serviceBus"]["maxConcurrentCalls"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
