"""App settings → `Settings`, or every problem at once, each with the setting's name and what it should look like.

In two tiers, because they fail differently: without connection and queues no retry can be scheduled; with them, a
message can wait until the other settings have been corrected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from shared.errors import InvalidSettings, RetryPolicy
from shared.invoice import InvoiceOwner, OrderedOpportunity
from shared.tracing import TelemetryExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Part = TypeVar("Part")
Choice = TypeVar("Choice", bound=Enum)

CONNECTION = "ServiceBusConnection"
# An invocation must end by itself before host.json's functionTimeout of five minutes ends its worker.
_DEADLINE = 240
_MAX_DEADLINE = 285
# Less leaves no time for a request and a retry, or is not a sensible delay; more is probably a mistake.
_MIN_DEADLINE = 1
_MIN_SECONDS = 0.001
_ONE_YEAR = 366 * 24 * 60 * 60
_ENTITY = re.compile(r"(?=.{1,260}$)(?!.*//)[A-Za-z0-9]([\w./~-]*[A-Za-z0-9])?", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_KEY = frozenset({"sharedaccesskeyname", "sharedaccesskey"})
_COLUMN = re.compile(r"[a-z]\w{0,127}", re.ASCII)
_MAX_COLUMNS = 100
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Namespace:
    """A Service Bus namespace, reached as an identity."""

    fully_qualified: str
    client_id: str | None


@dataclass(frozen=True)
class ConnectionString:
    """A Service Bus namespace, reached with a key; `repr` does not show the key."""

    value: str

    def __repr__(self) -> str:
        return "ConnectionString(…)"


@dataclass(frozen=True)
class ServiceBusSettings:
    """Which entities messages are sent to, and how long one invocation may take (seconds)."""

    connection: Namespace | ConnectionString
    opportunity_won_queue: str
    failed_queue: str
    invoice_created_topic: str
    invocation_deadline: float


@dataclass(frozen=True)
class RetrySettings:
    """For how long a message is retried under each policy, and the back-off's first and longest delay."""

    bounds: Mapping[RetryPolicy, timedelta]
    first_delay: timedelta
    longest_delay: timedelta


@dataclass(frozen=True)
class DataverseSettings:
    """The environment, the identity, how ordered opportunities are treated, and who owns an invoice.

    `invoice_columns` are the logical names of further columns for the event.
    """

    url: str
    client_id: str | None
    organization_id: str | None
    ordered_opportunity: OrderedOpportunity
    invoice_owner: InvoiceOwner
    invoice_columns: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """All settings."""

    service_bus: ServiceBusSettings
    retry: RetrySettings
    dataverse: DataverseSettings
    telemetry: TelemetryExporter

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read all settings; raises InvalidSettings with all their problems."""
        read = _Reader(environment)
        settings = cls(_service_bus(read), _retry(read), _dataverse(read), _telemetry(read))
        read.raise_problems()
        return settings


def queue_settings(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return what scheduling a retry and parking need, if other settings are wrong: no topic, default deadline."""
    read = _Reader(environment)
    settings = _queues(read)
    read.raise_problems()
    return settings


def service_bus_settings(environment: Mapping[str, str]) -> ServiceBusSettings:
    """Return the settings of Service Bus; raises InvalidSettings with all their problems."""
    return _all_of(_service_bus, environment)


def retry_settings(environment: Mapping[str, str]) -> RetrySettings:
    """Return the bounds of retrying; raises InvalidSettings with all their problems."""
    return _all_of(_retry, environment)


def dataverse_settings(environment: Mapping[str, str]) -> DataverseSettings:
    """Return the settings of Dataverse; raises InvalidSettings with all their problems."""
    return _all_of(_dataverse, environment)


def telemetry_settings(environment: Mapping[str, str]) -> TelemetryExporter:
    """Return where spans and metrics go; raises InvalidSettings."""
    return _all_of(_telemetry, environment)


def _all_of(part: Callable[[_Reader], Part], environment: Mapping[str, str]) -> Part:
    read = _Reader(environment)
    settings = part(read)
    read.raise_problems()
    return settings


def _queues(read: _Reader) -> ServiceBusSettings:
    connection = _connection(read)
    queue = read.entity("OPPORTUNITY_WON_QUEUE", "the name of the queue, such as opportunity-won")
    failed_queue = read.entity(
        "OPPORTUNITY_WON_FAILED_QUEUE", "the name of the queue, such as opportunity-won-failed"
    )
    # Service Bus does not distinguish case. Parked messages would be processed again, without end.
    if failed_queue and failed_queue.lower() == queue.lower():
        read.problem(
            "OPPORTUNITY_WON_FAILED_QUEUE",
            "is the same as OPPORTUNITY_WON_QUEUE",
            "the name of another queue",
        )
    return ServiceBusSettings(
        connection=connection,
        opportunity_won_queue=queue,
        failed_queue=failed_queue,
        invoice_created_topic="",
        invocation_deadline=_DEADLINE,
    )


def _service_bus(read: _Reader) -> ServiceBusSettings:
    queues = _queues(read)
    topic = read.entity("INVOICE_CREATED_TOPIC", "the name of the topic, such as invoice-created")
    for name, queue in (
        ("OPPORTUNITY_WON_QUEUE", queues.opportunity_won_queue),
        ("OPPORTUNITY_WON_FAILED_QUEUE", queues.failed_queue),
    ):
        if topic and topic.lower() == queue.lower():
            read.problem("INVOICE_CREATED_TOPIC", f"is the same as {name}", "the name of a topic")
    deadline = read.seconds(
        "INVOCATION_DEADLINE_SECONDS", default=_DEADLINE, least=_MIN_DEADLINE, most=_MAX_DEADLINE
    )
    return replace(queues, invoice_created_topic=topic, invocation_deadline=deadline.total_seconds())


def _retry(read: _Reader) -> RetrySettings:
    settings = RetrySettings(
        bounds={
            RetryPolicy.OPEN: read.seconds("RETRY_OPEN_SECONDS", default=5 * 60),
            RetryPolicy.RECORD: read.seconds("RETRY_RECORD_SECONDS", default=60 * 60),
            RetryPolicy.OUTAGE: read.seconds("RETRY_OUTAGE_SECONDS", default=3 * 24 * 60 * 60),
        },
        first_delay=read.seconds("RETRY_FIRST_DELAY_SECONDS", default=5),
        longest_delay=read.seconds("RETRY_MAX_DELAY_SECONDS", default=15 * 60),
    )
    if settings.first_delay > settings.longest_delay:
        read.problem(
            "RETRY_FIRST_DELAY_SECONDS", "is above RETRY_MAX_DELAY_SECONDS", "the shorter of the two delays"
        )
    # The outage policy bounds all retries, so a longer bound would have no effect.
    for policy, name in (
        (RetryPolicy.OPEN, "RETRY_OPEN_SECONDS"),
        (RetryPolicy.RECORD, "RETRY_RECORD_SECONDS"),
    ):
        if read.value(name) and settings.bounds[policy] > settings.bounds[RetryPolicy.OUTAGE]:
            read.problem(name, "is above RETRY_OUTAGE_SECONDS", "at most that, since it bounds all retries")
    return settings


def _dataverse(read: _Reader) -> DataverseSettings:
    return DataverseSettings(
        url=read.checked(
            "DATAVERSE_URL",
            "the environment's address and nothing after it, such as https://contoso.crm.dynamics.com",
            _environment_url,
        ),
        client_id=read.optional_guid("AZURE_CLIENT_ID", "the client id of the user-assigned identity"),
        organization_id=read.optional_guid("DATAVERSE_ORGANIZATION_ID", "the environment's organization id"),
        ordered_opportunity=read.choice("ORDERED_OPPORTUNITY", OrderedOpportunity.SKIP),
        invoice_owner=read.choice("INVOICE_OWNER", InvoiceOwner.OPPORTUNITY),
        invoice_columns=_columns(read),
    )


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

    def entity(self, name: str, looks_like: str) -> str:
        """Return the name of a queue or a topic, by the naming rules of Service Bus."""
        return self.checked(name, looks_like, lambda value: value if _ENTITY.fullmatch(value) else None)

    def optional_guid(self, name: str, meaning: str) -> str | None:
        looks_like = f"{meaning}, such as 00000000-0000-0000-0000-000000000000"
        guid = self.checked(name, looks_like, _guid, default="")
        return guid or None

    def choice(self, name: str, default: Choice) -> Choice:
        """Return a member of an enumeration of texts by its value, in any case."""
        members = {str(member.value): member for member in type(default)}
        value = self.checked(
            name,
            " or ".join(members),
            lambda value: value.lower() if value.lower() in members else None,
            default=str(default.value),
        )
        return members[value]

    def seconds(
        self, name: str, *, default: float, least: float = _MIN_SECONDS, most: float = _ONE_YEAR
    ) -> timedelta:
        text = self.checked(
            name,
            f"a number of seconds from {least:g} to {most:g}, such as {default:g}",
            lambda value: value if _is_number(value, least, most) else None,
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


def _telemetry(read: _Reader) -> TelemetryExporter:
    return read.choice("TELEMETRY_EXPORTER", default=TelemetryExporter.OFF)


def _columns(read: _Reader) -> tuple[str, ...]:
    text = read.checked(
        "INVOICE_COLUMNS",
        f"up to {_MAX_COLUMNS} logical names of columns, separated by commas, such as billto_city,new_costcenter",
        lambda value: value if _are_columns(_split(value)) else None,
        default="",
    )
    return tuple(dict.fromkeys(_split(text)))


def _split(names: str) -> list[str]:
    return names.lower().replace(",", " ").split()


def _are_columns(names: list[str]) -> bool:
    return len(names) <= _MAX_COLUMNS and all(map(_COLUMN.fullmatch, names))


def _connection(read: _Reader) -> Namespace | ConnectionString:
    # As in the trigger's own extension, a connection string takes precedence over an identity.
    connection_string = read.value(CONNECTION)
    if connection_string is not None:
        _check_connection_string(read, connection_string)
        return ConnectionString(connection_string)
    name = f"{CONNECTION}__fullyQualifiedNamespace"
    namespace = read.checked(
        name,
        f"the namespace's host name, such as contoso.servicebus.windows.net (or set {CONNECTION} instead)",
        _namespace,
    )
    client_id = read.optional_guid(f"{CONNECTION}__clientId", "the client id of the user-assigned identity")
    return Namespace(
        namespace, client_id or read.optional_guid("AZURE_CLIENT_ID", "the identity's client id")
    )


def _check_connection_string(read: _Reader, value: str) -> None:
    looks_like = (
        "a connection string of the namespace: Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…"
    )
    pairs = [part.partition("=") for part in value.rstrip(";").split(";")]
    # The SDK accepts no white space around names, and not both a key and a signature.
    by_name = {name.lower(): text for name, _, text in pairs}
    endpoint = _Address.of(by_name.get("endpoint", ""))
    if not all(by_name.values()) or len(by_name) < len(pairs) or endpoint is None or endpoint.scheme != "sb":
        read.problem(CONNECTION, "is not valid", looks_like)
    elif "entitypath" in by_name:
        # It is valid for one entity only, and the SDK refuses to send to another when an invoice already exists.
        read.problem(CONNECTION, "has an EntityPath", f"{looks_like}, without EntityPath")
    elif "sharedaccesssignature" in by_name and by_name.keys() & _KEY:
        read.problem(CONNECTION, "has a key and a signature", f"{looks_like}, without SharedAccessSignature")
    elif not (by_name.keys() >= _KEY or "sharedaccesssignature" in by_name):
        read.problem(CONNECTION, "has no key", looks_like)


def _namespace(value: str) -> str | None:
    """Return the host of a namespace, also from a URI, as Azure's own client accepts it."""
    address = _Address.of(value if "://" in value else f"sb://{value}")
    usual = address and address.scheme in ("sb", "amqps", "https") and address.port in (None, 443, 5671)
    return address.host if address and usual else None


def _environment_url(value: str) -> str | None:
    address = _Address.of(value)
    if address is None or address.scheme != "https":
        return None
    # The address of the Web API in the developer resources. The token's scope, the event's source and the links need
    # the address of the environment.
    host = re.sub(r"^([^.]+)\.api\.(crm\d*\.)", r"\1.\2", address.host)
    return f"https://{host}" + (f":{address.port}" if address.port not in (None, 443) else "")


@dataclass(frozen=True)
class _Address:
    """A URI without path, query and user. `host` is in lower case, without a trailing dot."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, uri: str) -> _Address | None:
        try:
            parts = urlsplit(uri)
            port = parts.port
        except ValueError:
            return None
        host = (parts.hostname or "").removesuffix(".")
        if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
            return None
        return cls(parts.scheme, host, port) if _HOST.fullmatch(host) else None


def _guid(value: str) -> str | None:
    guid = value.lower().strip("{}")
    # The empty GUID is a placeholder that was not replaced.
    return guid if _GUID.fullmatch(guid) and guid.strip("0-") else None


def _is_number(value: str, least: float, most: float) -> bool:
    try:
        # Comparisons with NaN are false.
        return least <= float(value) <= most
    except ValueError:
        return False
