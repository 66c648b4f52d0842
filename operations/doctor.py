"""`operations doctor`: tries the chain as the function would, link by link, and tells what is wrong and what to do.

Which links there are, in the order of the flow, stands here; how each is looked at stands in `diagnosis`.
"""

from __future__ import annotations

import json
import ssl
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from operations.console import Column, confirm, progress, say_json, say_table
from operations.diagnosis import network
from operations.diagnosis.azure_resources import PUBLIC, Design, ResourceLinks, ResourceManager
from operations.diagnosis.chain import Link, look_at
from operations.diagnosis.claim import WARNING, try_claim
from operations.diagnosis.dataverse import DataverseLinks, Target
from operations.diagnosis.findings import CannotSee, Finding, Found, State, found, ok
from operations.diagnosis.identity import Identity
from operations.diagnosis.service_bus import Right, ServiceBusLinks
from operations.environment import namespace_address
from operations.web_api import WebApi
from shared.clock import SystemClock
from shared.errors import InvalidSettings
from shared.settings import (
    ConnectionString,
    dataverse_settings,
    retry_settings,
    service_bus_settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from operations.diagnosis.chain import Looked
    from operations.diagnosis.findings import Result
    from shared.clock import Clock, Deadline
    from shared.settings import ServiceBusSettings

PROBLEM = 1
_TLS_AMQP = 5671
_PLAIN_AMQP = 5672
_HTTPS = 443
_HOST_JSON = Path(__file__).resolve().parent.parent / "host.json"


@click.command()
@click.option(
    "--try-claim",
    "opportunity",
    type=click.UUID,
    metavar="OPPORTUNITY",
    help="Prove on this won opportunity (its id) that a change set is one transaction.",
)
@click.option(
    "--namespace-id", help="The namespace's resource id, for what Azure Resource Manager knows of it."
)
@click.option("--arm-endpoint", default=PUBLIC, show_default=True, help="Azure Resource Manager.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="How long each link may take.",
)
@click.option(
    "--fail-on",
    "fatal",
    type=click.Choice(["attention", "cannot-see"]),
    multiple=True,
    help="Exit with 1 also for this; may be repeated.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --try-claim.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    opportunity: uuid.UUID | None,
    namespace_id: str | None,
    arm_endpoint: str,
    seconds: float,
    fatal: tuple[str, ...],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Try the chain from the settings to the failed queue, link by link, and say what is wrong.

    Only reads, but for --try-claim. Links behind a broken one are not looked at. Works as the function itself, which
    sees little, and with an operator's login. Exit code: 1 for any problem, which is a link that is broken now; 0
    otherwise, also where messages that failed wait for attention, or where a link cannot be seen, unless --fail-on.
    """
    if opportunity is not None:
        click.echo(WARNING.format(opportunity=opportunity), err=True)
        confirm("Try it?", yes=yes)
    where = Where(namespace_id, arm_endpoint)
    links = Doctor(context.obj, where, opportunity, SystemClock()).links()
    looked = list(progress(look_at(links, SystemClock(), seconds), "Looking", total=len(links)))
    _show(looked, as_json=as_json)
    seen = {result.state.value for link in looked for result in link.results}
    if seen & {State.PROBLEM.value, *(name.replace("-", " ") for name in fatal)}:
        context.exit(PROBLEM)


@dataclass(frozen=True)
class Where:
    """Where the namespace is as a resource. `namespace_id` None: nobody said."""

    namespace_id: str | None
    endpoint: str


class Doctor:
    """The chain, for one environment."""

    def __init__(
        self, environment: Mapping[str, str], where: Where, opportunity: uuid.UUID | None, clock: Clock
    ) -> None:
        self._environment = environment
        self._where = where
        self._opportunity = opportunity
        self._clock = clock
        self._parts: _Parts | None = None

    def links(self) -> list[Link]:
        """Return the links in the order of the flow."""
        at_dataverse = ("Dataverse", "environment")
        at_service_bus = ("token for Service Bus", "way to Service Bus")
        links = [
            Link("settings", self._settings),
            Link("threads", self._threads, ("settings",)),
            self._link("token for Service Bus", lambda parts: parts.identity.service_bus, ("settings",)),
            self._link(
                "token for Dataverse", lambda parts: parts.identity.dataverse, ("token for Service Bus",)
            ),
            Link("way to Dataverse", self._way_to_dataverse, ("settings",)),
            Link("way to Service Bus", self._way_to_service_bus, ("settings",)),
            self._link(
                "Dataverse",
                lambda parts: parts.dataverse.answers,
                ("token for Dataverse", "way to Dataverse"),
            ),
            self._link("environment", lambda parts: parts.dataverse.environment, ("Dataverse",)),
            self._link("Sales", lambda parts: parts.dataverse.sales, at_dataverse),
            self._link("application user", lambda parts: parts.dataverse.application_user, at_dataverse),
            self._link("privileges", lambda parts: parts.dataverse.privileges, ("Sales", "application user")),
            self._link("service endpoint", lambda parts: parts.dataverse.service_endpoint, at_dataverse),
            self._link("step", lambda parts: parts.dataverse.step, ("Sales", "service endpoint")),
            self._link("system jobs", lambda parts: parts.dataverse.system_jobs, ("step",)),
            self._entity("queue", _wins, (Right.RECEIVE, Right.SEND), at_service_bus),
            # Operators do not park messages: they look at those that are.
            self._entity("failed queue", _failed, (Right.SEND,), at_service_bus, beside=(Right.RECEIVE,)),
            self._entity("topic", _events, (Right.SEND,), at_service_bus),
            self._link("namespace", lambda parts: parts.resources.namespace, ("settings",)),
            Link("roles of the function", self._roles, ("application user", "namespace", *_ENTITIES)),
            self._link("queue as designed", lambda parts: parts.resources.queue, ("namespace", "queue")),
            self._link(
                "failed queue as designed",
                lambda parts: parts.resources.failed_queue,
                ("namespace", "failed queue"),
            ),
            self._link("topic as designed", lambda parts: parts.resources.topic, ("namespace", "topic")),
            self._link("audit subscription", lambda parts: parts.resources.audit, ("namespace", "topic")),
            Link(
                "failed messages",
                self._failed_messages,
                ("namespace", *at_service_bus),
                beside=("failed queue",),
            ),
            Link("retries", self._retries, at_service_bus, beside=("queue",)),
        ]
        if self._opportunity is not None:
            links.append(Link("change sets", self._change_sets, (*at_dataverse, "Sales")))
        return links

    def _link(
        self,
        name: str,
        of: Callable[[_Parts], Callable[[Deadline], Sequence[Result]]],
        after: tuple[str, ...],
    ) -> Link:
        def look(deadline: Deadline) -> Sequence[Result]:
            return of(self._known)(deadline)

        return Link(name, look, after)

    def _entity(
        self,
        name: str,
        entity: Callable[[ServiceBusSettings], str],
        rights: tuple[Right, ...],
        after: tuple[str, ...],
        beside: tuple[Right, ...] = (),
    ) -> Link:
        def look(deadline: Deadline) -> Sequence[Result]:
            parts = self._known
            return parts.service_bus.entity(entity(parts.settings), rights, deadline, beside=beside)

        return Link(name, look, after)

    @property
    def _known(self) -> _Parts:
        if self._parts is None:
            raise CannotSee("the settings were not read", "see there")
        return self._parts

    def _settings(self, _: Deadline) -> list[Result]:
        problems: list[str] = []
        for read in (service_bus_settings, retry_settings, dataverse_settings):
            try:
                read(self._environment)
            except InvalidSettings as error:
                problems.extend(error.problems)
        if not problems:
            try:
                self._parts = _Parts.of(self._environment, self._where, self._clock)
            except InvalidSettings as error:
                problems.extend(error.problems)
        return [found(Finding.SETTINGS_INVALID, problem) for problem in problems] or ok("complete")

    def _threads(self, _: Deadline) -> list[Result]:
        calls = _concurrent_calls(self._environment)
        if calls is None:
            raise CannotSee(
                "maxConcurrentCalls is not in a host.json next to this command", "the project's folder"
            )
        threads = self._environment.get("PYTHON_THREADPOOL_THREAD_COUNT", "").strip()
        if threads != calls:
            seen = f"PYTHON_THREADPOOL_THREAD_COUNT is {threads or 'not set'}, maxConcurrentCalls is {calls}"
            raise Found(Finding.THREADS_DIFFER_FROM_CALLS, seen)
        return ok(f"{threads} threads for {calls} calls")

    def _way_to_dataverse(self, deadline: Deadline) -> list[Result]:
        url = self._known.api.url
        proxy = network.proxy_for(url)
        if proxy is not None:
            return ok(f"through the proxy {urlsplit(proxy).hostname}: not looked at from here")
        try:
            trust = network.trust_of_requests(self._environment)
        except OSError as error:
            raise Found(
                Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED, "REQUESTS_CA_BUNDLE names what cannot be read"
            ) from error
        parts = urlsplit(url)
        return network.look(network.DATAVERSE, parts.hostname or "", parts.port or _HTTPS, trust, deadline)

    def _way_to_service_bus(self, deadline: Deadline) -> list[Result]:
        connection = self._known.settings.connection
        if not isinstance(connection, ConnectionString):
            host, port, is_plain = connection.fully_qualified, _TLS_AMQP, False
        else:
            # Only the official emulator, and stand-ins for it, are reached without TLS.
            is_plain = "usedevelopmentemulator=true" in connection.value.lower().replace(" ", "")
            address = urlsplit(namespace_address(self._known.settings))
            host, port = address.hostname or "", address.port or (_PLAIN_AMQP if is_plain else _TLS_AMQP)
        trust = None if is_plain else ssl.create_default_context()
        return network.look(network.SERVICE_BUS, host, port, trust, deadline)

    def _roles(self, deadline: Deadline) -> list[Result]:
        parts = self._known
        if parts.identity.is_function_at("Service Bus"):
            return ok("what they allow was tried")
        return parts.resources.roles(parts.dataverse.function_object_id, deadline)

    def _failed_messages(self, deadline: Deadline) -> list[Result]:
        parts = self._known
        return parts.resources.failed_messages(parts.service_bus.failed_messages, deadline)

    def _retries(self, deadline: Deadline) -> list[Result]:
        return self._known.service_bus.old_retries(deadline)

    def _change_sets(self, deadline: Deadline) -> list[Result]:
        return try_claim(self._known.api.until(deadline), str(self._opportunity), str(uuid.uuid4()))


@dataclass(frozen=True)
class _Parts:
    """What looks at the links, once the settings are known to be good."""

    settings: ServiceBusSettings
    api: WebApi
    identity: Identity
    dataverse: DataverseLinks
    service_bus: ServiceBusLinks
    resources: ResourceLinks

    @classmethod
    def of(cls, environment: Mapping[str, str], where: Where, clock: Clock) -> _Parts:
        settings, dataverse = service_bus_settings(environment), dataverse_settings(environment)
        identity = Identity(environment, settings, dataverse)
        api = WebApi.of(environment)
        target = Target(namespace_address(settings), settings.opportunity_won_queue)
        longest_retry = max(retry_settings(environment).bounds.values())
        tokens = identity.source(f"{where.endpoint.rstrip('/')}/.default", dataverse.client_id)
        return cls(
            settings,
            api,
            identity,
            DataverseLinks(api, identity, dataverse.organization_id, target, clock),
            ServiceBusLinks(environment, settings, identity),
            ResourceLinks(
                ResourceManager(where.endpoint, tokens), where.namespace_id, Design(settings, longest_retry)
            ),
        )


_ENTITIES = ("queue", "failed queue", "topic")


def _wins(settings: ServiceBusSettings) -> str:
    return settings.opportunity_won_queue


def _failed(settings: ServiceBusSettings) -> str:
    return settings.failed_queue


def _events(settings: ServiceBusSettings) -> str:
    return settings.invoice_created_topic


def _concurrent_calls(environment: Mapping[str, str]) -> str | None:
    """Return maxConcurrentCalls as the host reads it: an app setting wins over host.json."""
    override = environment.get("AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls")
    if override:
        return override.strip()
    try:
        host = json.loads(_HOST_JSON.read_text(encoding="utf-8-sig"))
        return str(host["extensions"]["serviceBus"]["maxConcurrentCalls"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


_COLUMNS = [
    Column("Link", "link"),
    Column("State", "state"),
    Column("Finding", "finding"),
    Column("Seen", "seen", flexible=True),
]


def _show(looked: Sequence[Looked], *, as_json: bool) -> None:
    rows = [_row(link.name, result) for link in looked for result in link.results]
    if as_json:
        say_json(rows)
        return
    say_table(_COLUMNS, rows)
    for row in rows:
        if row["finding"]:
            click.echo(f"\n{row['finding']} ({row['link']})")
            click.echo(f"  seen:   {row['seen']}")
            click.echo(f"  means:  {row['meaning']}")
            click.echo(f"  to do:  {row['advice']}")
    counts = Counter(row["state"] for row in rows)
    click.echo(
        "\n" + ", ".join(f"{counts[state.value]} {state.value}" for state in State if counts[state.value])
    )


def _row(link: str, result: Result) -> dict[str, object]:
    finding = result.finding
    return {
        "link": link,
        "state": result.state.value,
        "finding": finding and finding.code,
        "seen": result.seen + (f" (needed: {result.right})" if result.right else ""),
        "meaning": finding and finding.meaning,
        "advice": finding and finding.advice,
        "right": result.right or None,
    }
