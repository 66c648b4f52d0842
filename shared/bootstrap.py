"""Builds everything once per process, at the first message, from settings; takes overrides.

Not at import: a function that fails to load dead-letters a backlog in seconds.
"""

from __future__ import annotations

import logging
import os
import threading
from random import random as system_random
from typing import TYPE_CHECKING, TypeVar

from shared.clock import SystemClock
from shared.credential import TokenSource, build_credential
from shared.dataverse import Dataverse
from shared.errors import InvalidSettings
from shared.handler import Environment, Handler
from shared.invoicing import Invoicing
from shared.service_bus import AmqpSender, ServiceBus, connect
from shared.settings import (
    dataverse_settings,
    retry_settings,
    service_bus_settings,
    settings_to_put_aside,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.clock import Clock, Deadline
    from shared.handler import EnsureInvoice
    from shared.invoice import Invoice
    from shared.service_bus import Sender
    from shared.settings import DataverseSettings, ServiceBusSettings

_logger = logging.getLogger(__name__)

Part = TypeVar("Part")

_lock = threading.Lock()
_built: list[Handler] = []


def handler() -> Handler:
    """Return the process's handler; raises InvalidSettings where not even Service Bus is set up."""
    with _lock:
        if not _built:
            # The SDK's own lines tell of every request and link: too many, and none that is needed.
            logging.getLogger("azure").setLevel(logging.WARNING)
            # Its warnings quote the answer of the identity's endpoint; what matters of one is in our own error.
            logging.getLogger("azure.identity").setLevel(logging.ERROR)
            _built.append(build(os.environ))
        return _built[0]


def build(
    environment: Mapping[str, str],
    *,
    clock: Clock | None = None,
    random: Callable[[], float] = system_random,
    sender: Sender | None = None,
    dataverse: Dataverse | None = None,
) -> Handler:
    """Build a handler from app settings; what is given takes the place of what would be built.

    Raises InvalidSettings, with the problems of all settings, if those of the connection or the queues are among
    them. With these, messages are put aside until the others are corrected.
    """
    clock = clock or SystemClock()
    problems: list[str] = []
    outward = _part(service_bus_settings, environment, problems)
    retry = _part(retry_settings, environment, problems)
    inward = _part(dataverse_settings, environment, problems)
    if problems:
        _logger.error("settings: %s", " ".join(problems))
    if outward is None:
        outward = _part(settings_to_put_aside, environment, [])
    if outward is None:
        raise InvalidSettings(tuple(problems))
    if problems or inward is None:
        ensure_invoice: EnsureInvoice = _always_raises(tuple(problems))
        served = Environment(url="", organization_id=None)
    else:
        dataverse = dataverse or build_dataverse(inward, environment, clock, random)
        ensure_invoice = Invoicing(dataverse, inward.ordered_opportunity).ensure_invoice
        served = Environment(inward.url, inward.organization_id)
    return Handler(
        ensure_invoice,
        ServiceBus(sender or build_sender(outward, environment), outward, clock),
        served,
        retry or retry_settings({}),
        invocation_deadline=outward.invocation_deadline,
        clock=clock,
        random=random,
    )


def _part(
    read: Callable[[Mapping[str, str]], Part], environment: Mapping[str, str], problems: list[str]
) -> Part | None:
    try:
        return read(environment)
    except InvalidSettings as error:
        problems.extend(error.problems)
        return None


def build_dataverse(
    settings: DataverseSettings,
    environment: Mapping[str, str],
    clock: Clock,
    random: Callable[[], float] = system_random,
) -> Dataverse:
    """Return the Web API of the environment, as the identity of the settings or the developer who is logged in."""
    tokens = TokenSource(
        f"{settings.url}/.default", lambda: build_credential(environment, settings.client_id)
    )
    return Dataverse(settings.url, token=tokens.token, clock=clock, random=random)


def build_sender(settings: ServiceBusSettings, environment: Mapping[str, str]) -> Sender:
    """Return the way to the namespace of the settings."""
    return AmqpSender(
        lambda: connect(settings, lambda namespace: build_credential(environment, namespace.client_id))
    )


def _always_raises(problems: tuple[str, ...]) -> EnsureInvoice:
    """Return what puts every win aside until the settings are corrected."""

    def ensure_invoice(opportunity_id: str, deadline: Deadline) -> Invoice:  # noqa: ARG001 - as the protocol has it
        raise InvalidSettings(problems)

    return ensure_invoice
