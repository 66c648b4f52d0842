"""Builds everything once per process, at the first message, from settings; accepts overrides.

Not at import: a function that fails to load dead-letters a backlog in seconds.
"""

from __future__ import annotations

import logging
import os
import threading
from random import random as system_random
from typing import TYPE_CHECKING

from shared.clock import SystemClock
from shared.credential import SERVICE_BUS_SCOPE, Identities
from shared.dataverse import Dataverse
from shared.errors import InvalidSettings
from shared.handler import Environment, Handler
from shared.invoicing import Invoicing
from shared.retrieval import InvoiceReader
from shared.service_bus import AmqpSender, ServiceBus, connect
from shared.settings import Namespace, Settings, queue_settings, retry_settings, telemetry_settings
from shared.tracing import OFF, TelemetryExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.clock import Clock, Deadline
    from shared.invoice import Invoice
    from shared.service_bus import Sender
    from shared.settings import DataverseSettings, ServiceBusSettings
    from shared.tracing import Tracing

    StartTracing = Callable[[TelemetryExporter, ServiceBusSettings], Tracing]

_logger = logging.getLogger(__name__)

_lock = threading.Lock()
_built: list[Handler] = []


def handler() -> Handler:
    """Return the process's handler; raises InvalidSettings if connection or queues are not set up."""
    with _lock:
        if not _built:
            # A collector that is gone would fill the log: each batch is retried several times, with a line for each.
            logging.getLogger("opentelemetry").setLevel(logging.ERROR)
            # The SDK logs every request and link: too many lines, and none that is needed.
            logging.getLogger("azure").setLevel(logging.WARNING)
            # Its warnings quote the response of the identity endpoint; our own error has what matters of it.
            logging.getLogger("azure.identity").setLevel(logging.ERROR)
            # Its errors come with a stack trace each, and may quote addresses with signatures.
            logging.getLogger("azure.servicebus").setLevel(logging.CRITICAL)
            _built.append(build(os.environ))
        return _built[0]


def start_tracing(exporter: TelemetryExporter, service_bus: ServiceBusSettings) -> Tracing:
    """Return what records for an exporter. If that is not possible the log says why, and nothing is recorded."""
    if exporter is TelemetryExporter.OFF:
        return OFF
    try:
        # Here: the package contains the SDK only if it is built with it, and importing it takes time.
        from shared.open_telemetry import start  # noqa: PLC0415

        return start(exporter, service_bus)
    except ImportError:
        _logger.error(  # noqa: TRY400 - which module is missing says nothing more
            "settings: TELEMETRY_EXPORTER is %s, and the package was built without it. Nothing is exported. "
            "Build it with: make package TELEMETRY=%s",
            exporter.value,
            exporter.value,
        )
    except Exception as error:  # noqa: BLE001 - not swallowed: it is logged, and invoices matter more than traces
        # The kind alone: the text could quote a connection string.
        _logger.error(  # noqa: TRY400 - a stack trace quotes the same
            "settings: TELEMETRY_EXPORTER is %s, and the exporter cannot be set up (%s). Nothing is exported.",
            exporter.value,
            type(error).__name__,
        )
    return OFF


def build(
    environment: Mapping[str, str],
    *,
    clock: Clock | None = None,
    random: Callable[[], float] = system_random,
    sender: Sender | None = None,
    dataverse: Dataverse | None = None,
    start_tracing: StartTracing = start_tracing,
) -> Handler:
    """Build a handler from app settings; arguments replace what would be built.

    Raises InvalidSettings, with the problems of all settings, if those of the connection or the queues are among them.
    With these, every message is retried until the others are corrected.
    """
    clock = clock or SystemClock()
    identities = Identities(environment)
    try:
        settings = Settings.of(environment)
    except InvalidSettings as invalid:
        _logger.error("settings: %s", invalid)  # noqa: TRY400 - the text says everything, a stack trace nothing
        return _handler_of_invalid_settings(environment, invalid, clock, random, sender, start_tracing)
    tracing = start_tracing(settings.telemetry, settings.service_bus)
    dataverse = dataverse or build_dataverse(settings.dataverse, identities, clock, random, tracing)
    return Handler(
        Invoicing(
            dataverse,
            InvoiceReader(dataverse, settings.dataverse.invoice_columns),
            settings.dataverse.ordered_opportunity,
            settings.dataverse.invoice_owner,
            tracing=tracing,
        ).ensure_invoice,
        ServiceBus(
            sender or build_sender(settings.service_bus, identities), settings.service_bus, clock, tracing
        ),
        Environment(settings.dataverse.url, settings.dataverse.organization_id),
        settings.retry,
        invocation_deadline=settings.service_bus.invocation_deadline,
        clock=clock,
        random=random,
        tracing=tracing,
    )


def _handler_of_invalid_settings(
    environment: Mapping[str, str],
    invalid: InvalidSettings,
    clock: Clock,
    random: Callable[[], float],
    sender: Sender | None,
    start_tracing: StartTracing,
) -> Handler:
    """Return a handler that retries every win until the settings are corrected; raises `invalid` if it cannot."""
    try:
        queues = queue_settings(environment)
    except InvalidSettings:
        raise invalid from None

    try:
        tracing = start_tracing(telemetry_settings(environment), queues)
    except InvalidSettings:
        tracing = OFF

    def ensure_invoice(opportunity_id: str, deadline: Deadline) -> Invoice:  # noqa: ARG001 - the protocol's arguments
        raise InvalidSettings(invalid.problems)

    return Handler(
        ensure_invoice,
        ServiceBus(sender or build_sender(queues, Identities(environment)), queues, clock, tracing),
        Environment(url="", organization_id=None),
        retry_settings({}),
        invocation_deadline=queues.invocation_deadline,
        clock=clock,
        random=random,
        tracing=tracing,
    )


def build_dataverse(
    settings: DataverseSettings,
    identities: Identities,
    clock: Clock,
    random: Callable[[], float] = system_random,
    tracing: Tracing = OFF,
) -> Dataverse:
    """Return the Web API of the environment, as the identity of the settings or the developer who is logged in."""
    tokens = identities.of(settings.client_id).tokens(f"{settings.url}/.default")
    return Dataverse(settings.url, tokens=tokens, clock=clock, random=random, tracing=tracing)


def build_sender(settings: ServiceBusSettings, identities: Identities) -> AmqpSender:
    """Return the connection to the namespace of the settings."""
    connection = settings.connection

    def renew_token(seconds: float) -> None:
        # With a key there is no token.
        if isinstance(connection, Namespace):
            identities.of(connection.client_id).renew(SERVICE_BUS_SCOPE, seconds)

    # The sender reopens a broken link itself: the SDK would do it in the caller's thread, where nothing bounds name
    # resolution.
    return AmqpSender(
        lambda: connect(settings, lambda namespace: identities.of(namespace.client_id), retries=0),
        renew_token=renew_token,
    )
