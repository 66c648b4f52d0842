"""What a sandbox shall run, the names that it uses, and why it may not start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.dataverse import ServiceProtectionLimits
from sandbox.faults.plan import FaultPlan
from sandbox.service_bus.configuration import DEFAULT_ENTITIES

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# The queue that Dataverse posts to, and what else this project's function uses. An app of its own has others.
WON_QUEUE = "opportunity-won"
FAILED_QUEUE = "opportunity-won-failed"
CREATED_TOPIC = "invoice-created"
AUDIT_SUBSCRIPTION = "audit"
CONNECTION = "ServiceBusConnection"


class CannotStart(Exception):
    """The sandbox cannot run like this here; the text says what to do."""


class NoTlsAddress(CannotStart):
    """There is no address left on which a client with a token would find Service Bus."""


class NotInThisSandbox(Exception):
    """The sandbox was started without the part that is asked for."""


class StartInterrupted(Exception):
    """The caller canceled the start; nothing is left behind."""


class Mode(StrEnum):
    """How the function and Dataverse connect to Service Bus."""

    # Plain AMQP with a key, like the official emulator.
    CONNECTION_STRING = "connection-string"
    # TLS throughout; the function with its managed identity, Dataverse with a key that may only send.
    IDENTITY = "identity"


@dataclass(frozen=True)
class CloudOptions:
    """What to run.

    `settings` are added to the function's app settings and win over the sandbox's own; AzureFunctionsJobHost__…
    among them override host.json. `defaults` are added as well, but the sandbox's own win over them. `dataverse` False
    leaves Dataverse out. `limits` switches Dataverse's service protection on. `connected` False leaves
    Dataverse without application user, role, service endpoint and step, as it is before anybody set it up;
    `connect_with` is a command that sets them up instead, as an administrator would: it finds the function's app
    settings in its environment, with OPERATIONS_CLIENT_ID for the identity to log in as and OPPORTUNITY_WON_SAS_KEY for
    the key that Dataverse posts with; {function} in it becomes the client id of the function's identity.
    `functions_host` False leaves the function to another host, such as Core Tools. `standard_ports` prefers the
    ports that the official emulator uses; others are taken where they are not free. `entities` is a file that
    describes Service Bus, in the official emulator's format. `published_keys` keeps the keys that everybody knows,
    such as the official emulator's, instead of making up random ones. `extra_subscriptions`, each a topic and a name,
    are added to it.

    `faults`: what goes wrong, on every connection of the function; the salesperson and the consumer have connections of
    their own. `token_lifetime`: below five minutes, clients fetch a token for every call. `traces` collects spans over
    OTLP. `debug_port`: where the worker waits for a debugger.
    `dataverse_middleware` wraps Dataverse.
    """

    app_root: Path
    mode: Mode = Mode.CONNECTION_STRING
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    dataverse: bool = True
    opportunities: int = 20
    seed: int = 1
    limits: ServiceProtectionLimits | None = None
    connected: bool = True
    connect_with: Sequence[str] = ()
    functions_host: bool = True
    standard_ports: bool = False
    entities: Path = DEFAULT_ENTITIES
    published_keys: bool = False
    extra_subscriptions: Sequence[tuple[str, str]] = ()
    faults: FaultPlan | None = None
    token_lifetime: timedelta = timedelta(days=1)
    traces: bool = False
    debug_port: int | None = None
    dataverse_middleware: "Callable[[WSGIApplication], WSGIApplication]" = lambda application: application
