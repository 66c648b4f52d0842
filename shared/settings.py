"""App settings → `Settings`, or every problem at once, each with the setting's name and what it should look like.

In parts, because they fail differently: without connection and queues nothing can be put aside for later; with them,
a message can wait until the other settings have been corrected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shared.errors import InvalidSettings, RetryPolicy
from shared.invoice import OrderedOpportunity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONNECTION = "ServiceBusConnection"
# An invocation must end by itself before host.json's functionTimeout of five minutes ends its worker.
_INVOCATION = 240
_LONGEST_INVOCATION = 285
# More is a slip.
_ONE_YEAR = 366 * 24 * 60 * 60
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Namespace:
    """A Service Bus namespace, reached as an identity."""

    fully_qualified: str
    client_id: str | None


@dataclass(frozen=True)
class ConnectionString:
    """A Service Bus namespace, reached with a key; the key shows in no `repr`."""

    value: str

    def __repr__(self) -> str:
        return "ConnectionString(…)"


@dataclass(frozen=True)
class ServiceBusSettings:
    """Where messages go, and how long one invocation may take (seconds)."""

    connection: Namespace | ConnectionString
    opportunity_won_queue: str
    failed_queue: str
    invoice_created_topic: str
    invocation_deadline: float


@dataclass(frozen=True)
class RetrySettings:
    """For how long a message is tried again under each policy, and the back-off's first and longest delay."""

    bounds: Mapping[RetryPolicy, timedelta]
    first_delay: timedelta
    longest_delay: timedelta


@dataclass(frozen=True)
class DataverseSettings:
    """Which environment is served, as whom, and how ordered opportunities are treated."""

    url: str
    client_id: str | None
    organization_id: str | None
    ordered_opportunity: OrderedOpportunity


def service_bus_settings(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return the settings of the way in and out; raises InvalidSettings with all their problems."""
    read = _Reader(environment)
    settings = replace(
        _put_aside(read),
        invoice_created_topic=read.text(
            "INVOICE_CREATED_TOPIC", "the name of the topic, such as invoice-created"
        ),
        invocation_deadline=read.seconds(
            "INVOCATION_DEADLINE_SECONDS", default=_INVOCATION, most=_LONGEST_INVOCATION
        ).total_seconds(),
    )
    read.raise_problems()
    return settings


def settings_to_put_aside(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return what suffices to put a message aside, whatever else is wrong: no topic, and the default deadline."""
    read = _Reader(environment)
    settings = _put_aside(read)
    read.raise_problems()
    return settings


def _put_aside(read: _Reader) -> ServiceBusSettings:
    return ServiceBusSettings(
        connection=_connection(read),
        opportunity_won_queue=read.text(
            "OPPORTUNITY_WON_QUEUE", "the name of the queue, such as opportunity-won"
        ),
        failed_queue=read.text(
            "OPPORTUNITY_WON_FAILED_QUEUE", "the name of the queue, such as opportunity-won-failed"
        ),
        invoice_created_topic="",
        invocation_deadline=_INVOCATION,
    )


def retry_settings(environment: Mapping[str, str]) -> RetrySettings:
    """Return the bounds of retrying; raises InvalidSettings with all their problems."""
    read = _Reader(environment)
    settings = RetrySettings(
        bounds={
            RetryPolicy.OPEN: read.seconds("RETRY_OPEN_SECONDS", default=5 * 60),
            RetryPolicy.RECORD: read.seconds("RETRY_RECORD_SECONDS", default=60 * 60),
            RetryPolicy.OUTAGE: read.seconds("RETRY_OUTAGE_SECONDS", default=3 * 24 * 60 * 60),
        },
        first_delay=read.seconds("RETRY_FIRST_DELAY_SECONDS", default=5),
        longest_delay=read.seconds("RETRY_MAX_DELAY_SECONDS", default=15 * 60),
    )
    read.raise_problems()
    return settings


def dataverse_settings(environment: Mapping[str, str]) -> DataverseSettings:
    """Return the settings of the Dataverse side; raises InvalidSettings with all their problems."""
    read = _Reader(environment)
    settings = DataverseSettings(
        url=read.checked(
            "DATAVERSE_URL",
            "the environment's address and nothing after it, such as https://contoso.crm.dynamics.com",
            _environment_url,
        ),
        client_id=read.optional_guid("AZURE_CLIENT_ID", "the client id of the user-assigned identity"),
        organization_id=read.optional_guid("DATAVERSE_ORGANIZATION_ID", "the environment's organization id"),
        ordered_opportunity=OrderedOpportunity(
            read.checked(
                "ORDERED_OPPORTUNITY",
                "skip or invoice",
                lambda value: value.lower() if value.lower() in ("skip", "invoice") else None,
                default="skip",
            )
        ),
    )
    read.raise_problems()
    return settings


class _Reader:
    """Reads settings one by one and collects what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._problems: list[str] = []

    def checked(
        self, name: str, looks_like: str, parse: Callable[[str], str | None], *, default: str | None = None
    ) -> str:
        value = self.value(name)
        if value is None:
            if default is None:
                self.problem(name, "is missing", looks_like)
            return default or ""
        parsed = parse(value)
        if parsed is None:
            self.problem(name, "is not valid", looks_like)
            return default or ""
        return parsed

    def text(self, name: str, looks_like: str) -> str:
        # Service Bus entity names: up to 260 characters, without the ones that mean something in an address.
        return self.checked(
            name,
            looks_like,
            lambda value: value if re.fullmatch(r"[\w./~-]{1,260}", value, re.ASCII) else None,
        )

    def optional_guid(self, name: str, meaning: str) -> str | None:
        looks_like = f"{meaning}, such as 00000000-0000-0000-0000-000000000000"
        guid = self.checked(name, looks_like, _guid, default="")
        return guid or None

    def seconds(self, name: str, *, default: float, most: float = _ONE_YEAR) -> timedelta:
        text = self.checked(
            name,
            f"a number of seconds above 0 and up to {most}, such as {default}",
            lambda value: value if _number_up_to(most, value) else None,
            default=str(default),
        )
        return timedelta(seconds=float(text))

    def value(self, name: str) -> str | None:
        return self._environment.get(name, "").strip() or None

    def problem(self, name: str, what: str, looks_like: str) -> None:
        # The value itself is not quoted: it may be a secret that was put into the wrong setting.
        self._problems.append(f"The app setting {name} {what}: it should be {looks_like}.")

    def raise_problems(self) -> None:
        if self._problems:
            raise InvalidSettings(tuple(self._problems))


def _connection(read: _Reader) -> Namespace | ConnectionString:
    # As in the trigger's own extension, a connection string wins over an identity.
    connection_string = read.value(CONNECTION)
    if connection_string is not None:
        if not re.search(r"(^|;)\s*Endpoint\s*=\s*sb://", connection_string, re.IGNORECASE):
            read.problem(CONNECTION, "is not valid", "a connection string that begins with Endpoint=sb://")
        return ConnectionString(connection_string)
    name = f"{CONNECTION}__fullyQualifiedNamespace"
    namespace = read.checked(
        name,
        f"the namespace's host name, such as contoso.servicebus.windows.net (or set {CONNECTION} instead)",
        lambda value: value if re.fullmatch(r"[A-Za-z0-9.-]+", value) else None,
    )
    client_id = read.optional_guid(f"{CONNECTION}__clientId", "the client id of the user-assigned identity")
    return Namespace(
        namespace, client_id or read.optional_guid("AZURE_CLIENT_ID", "the identity's client id")
    )


def _environment_url(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return None
    if (
        parts.scheme.lower() != "https"
        or not re.fullmatch(r"[a-z0-9.-]+", parts.hostname or "")
        or parts.username
        or parts.query
        or parts.fragment
    ):
        return None
    if parts.path not in ("", "/"):
        return None
    return f"https://{parts.hostname}" + (f":{port}" if port else "")


def _guid(value: str) -> str | None:
    guid = value.lower().strip("{}")
    return guid if _GUID.fullmatch(guid) else None


def _number_up_to(most: float, value: str) -> bool:
    try:
        # Comparisons with NaN are false.
        return 0 < float(value) <= most
    except ValueError:
        return False
