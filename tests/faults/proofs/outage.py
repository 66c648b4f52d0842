"""Outages in virtual time: hours with a thousand wins waiting, and whether all are published soon afterwards.

The same world as that of the histories, with real figures for what matters here: how long a request takes, how many
are handled at once, and Dataverse's service-protection limits.
"""

from __future__ import annotations

import math
import socket
import threading
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any

from azure.servicebus import ServiceBusClient, TransportType

from proofs.checker import FAILED_QUEUE, QUEUE, Expectations, Violation, judge, judge_requests
from proofs.rig import SETTINGS, START, Shape, World, organization, quiet
from sandbox.dataverse import ServiceProtection, ServiceProtectionLimits
from sandbox.faults.syntax import parse_rule
from sandbox.service_bus import Message
from shared.bootstrap import build
from shared.deadline_socket import deadline_tls_context
from shared.errors import ServiceBusUnavailable
from shared.message import Message as InMessage
from shared.service_bus import AmqpSender

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proofs.simulation import Simulation
    from sandbox.dataverse import Change

# As in host.json; a request takes as long as a Web API of some distance.
CONCURRENCY = 16
_LATENCY = 0.15
_TICK = 0.05
_TURNS = 50_000_000
_WINDOW = timedelta(minutes=5)
_MIN_RATE = 0.95
# Seconds from the end of an outage until the last win is published.
_MAX_DRAIN = 20 * 60.0
# Real seconds. The deadline is long enough for a busy machine to begin a send at all.
_DEADLINE = 4
_NEVER = 12.0
WIN = InMessage(
    body=b'{"opportunityId": "0f5ed1a5-7a4e-4d0f-8f43-3c35ce8c9dd1"}',
    message_id="a win",
    sequence_number=1,
    enqueued_at=START,
    content_type="application/json",
    correlation_id=None,
    subject=None,
    properties={},
)


@dataclass(frozen=True)
class Report:
    """How an outage went. `drained`: virtual seconds from its end to the last event."""

    title: str
    violations: tuple[Violation, ...]
    drained: float
    figures: Mapping[str, str]


def dataverse_away(wins: int, *, hours: float = 2.0, seed: int = 1) -> Report:
    """Dataverse refuses every connection, from before the first win is handled."""
    return _outage(f"Dataverse away for {hours:g} h", Backlog(wins, seed), f"dataverse refuse for={hours}h")


def dataverse_silent(wins: int, *, hours: float = 2.0, seed: int = 1) -> Report:
    """Dataverse accepts every connection and never responds, so that each try lasts as long as it may."""
    return _outage(f"Dataverse silent for {hours:g} h", Backlog(wins, seed), f"dataverse silent for={hours}h")


def service_bus_away(wins: int, *, minutes: float = 10.0, seed: int = 1) -> Report:
    """Nothing is taken in, handed out or settled, and locks end, from when some messages are being handled."""
    begins, backlog = 0.3, Backlog(wins, seed)
    for at, closed in ((begins, True), (begins + minutes * 60, False)):
        backlog.world.simulation.at(at, partial(setattr, backlog.world.host, "closed", closed))
    faults = (f"service-bus-{fault} from={begins}s for={minutes}m" for fault in ("out refuse", "in reset"))
    return _outage(f"Service Bus away for {minutes:g} min", backlog, *faults)


def sends_refused(wins: int, *, minutes: float = 10.0, seed: int = 1) -> Report:
    """Messages are handed out and settled, but none is taken: throttled, or full."""
    title = f"Service Bus takes nothing for {minutes:g} min"
    return _outage(title, Backlog(wins, seed), f"service-bus-out reject for={minutes}m")


def _outage(title: str, backlog: Backlog, *faults: str) -> Report:
    """Let faults of the same time strike, and see whether all wins are published soon after their end."""
    rules = [parse_rule(fault) for fault in faults]
    backlog.world.plan.add(*rules)
    when = rules[0].when
    assert when.duration is not None
    with quiet():
        report = backlog.play(title, ends=when.start + when.duration)
    if 0 < report.drained <= _MAX_DRAIN:
        return report
    late = f"the last one {report.drained / 60:.1f} min after its end."
    violation = Violation("after an outage all are published soon", late)
    return replace(report, violations=(*report.violations, violation))


def throttled(wins: int, limit: int = 6000, *, minutes: float = 10.0, seed: int = 1) -> Report:
    """Every request gets 429 with Retry-After 60; then the service-protection limit of one server holds."""
    storm = timedelta(minutes=minutes)
    with quiet():
        scene = Backlog(wins, seed, lambda simulation: _protection(simulation, limit))
        scene.world.plan.add(parse_rule(f"dataverse throttled retry_after=60 for={minutes}m"))
        report = scene.play(
            f"429 with Retry-After 60 for {minutes:g} min, then {limit:,} requests per 5 min", ends=storm
        )
    # From when the last 429 permits it, to the last request.
    begins = max(
        until for each in scene.world.requests if each.at < START + storm and (until := each.throttled_until)
    )
    accepted = [
        each
        for each in scene.world.app.requests
        if each.at >= begins and each.status != HTTPStatus.TOO_MANY_REQUESTS
    ]
    took = (accepted[-1].at - begins).total_seconds()
    ideal, _ = shortest(len(accepted), limit)
    figures = {
        "requests per invoice": f"{len(accepted) / wins:.2f}",
        "drained in": f"{took:.0f} s, where the limits permit {ideal:.0f} s: {ideal / took:.1%}",
    }
    slow = Violation("a backlog is drained at what the limits permit", f"only at {ideal / took:.1%} of it.")
    violations = report.violations if ideal / took >= _MIN_RATE else (*report.violations, slow)
    return replace(report, violations=violations, figures={**report.figures, **figures})


def shortest(
    requests: int,
    limit: int,
    *,
    window: timedelta = _WINDOW,
    at_once: int = CONCURRENCY,
    took: float = _LATENCY,
) -> tuple[float, float]:
    """Return when the last of so many requests is sent at the soonest, and how many seconds the limit held them up.

    No more than `limit` are sent in any window; `at_once` take turns, each request takes `took` seconds.
    """
    sent: deque[float] = deque([0.0], maxlen=max(limit, at_once))
    held_up = 0.0
    for number in range(1, requests):
        free = sent[-at_once] + took if number >= at_once else 0.0
        permitted = sent[-limit] + window.total_seconds() if number >= limit else 0.0
        if permitted > free:
            held_up += permitted - sent[-1]
        sent.append(max(free, permitted))
    return sent[-1], held_up


def _protection(simulation: Simulation, limit: int) -> ServiceProtection:
    # What a request takes is the simulation's: the limit on execution time is not what this is about.
    return ServiceProtection(
        simulation, ServiceProtectionLimits(requests=limit, window=_WINDOW), timer=lambda: 0.0
    )


def a_send_that_never_returns() -> Report:
    """Let the SDK connect to a peer that accepts connections and stays silent; this one is in real time.

    The SDK alone would block for ever. The invocation must end in spite of it, and leave the message to the broker.
    """
    ended: list[BaseException | None] = []
    with quiet(), socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        handler = build(
            {**SETTINGS, "INVOCATION_DEADLINE_SECONDS": str(_DEADLINE)},
            sender=AmqpSender(lambda: _client_of(port)),
        )

        def invoke() -> None:
            try:
                handler.handle(replace(WIN, body=b"unreadable"))
                ended.append(None)
            except ServiceBusUnavailable as error:
                ended.append(error)

        invocation = threading.Thread(target=invoke, name="invocation", daemon=True)
        invocation.start()
        invocation.join(_NEVER)
    violations = []
    if not ended:
        what = f"it did not in {_NEVER:g} s."
        violations.append(Violation("an invocation ends within its deadline", what))
    elif ended[0] is None:
        violations.append(Violation("what could not be sent is handed back", "it was completed."))
    figures = {"ended with": type(ended[0]).__name__ if ended else "nothing"}
    return Report("A send that never returns", tuple(violations), 0.0 if ended else math.inf, figures)


def _client_of(port: int) -> ServiceBusClient:
    options: dict[str, Any] = {
        "ssl_context": deadline_tls_context(),
        # The only way to choose the port.
        "custom_endpoint_address": f"sb://127.0.0.1:{port}",
        "transport_type": TransportType.Amqp,
        "retry_total": 0,
    }
    return ServiceBusClient.from_connection_string(SETTINGS["ServiceBusConnection"], **options)


class Backlog:
    """So many opportunities that are won, and their messages in the queue of a world, which is to be closed."""

    def __init__(
        self,
        wins: int,
        seed: int,
        protect: Callable[[Simulation], ServiceProtection] | None = None,
        *,
        workers: int = 1,
        latency: float = _LATENCY,
    ) -> None:
        random = Random(seed)  # noqa: S311 - to be repeatable, not secret
        self.organization = organization(wins, won=True)
        shape = Shape(
            self.organization, workers=workers, concurrency=CONCURRENCY, latency=latency, tick=_TICK
        )
        self.world = World(random, shape, protect)
        for id_ in self.organization.demo.opportunities:
            body = f'{{"opportunityId": "{id_}"}}'.encode()
            self.world.broker.send(QUEUE, Message(body=body, message_id=self.world.new_id()))

    def run(self) -> None:
        """Let everything happen."""
        self.world.run(turns=_TURNS)

    def play(self, title: str, ends: timedelta) -> Report:
        """Run an outage and judge it."""
        world = self.world
        ids = self.organization.demo.opportunities
        try:
            self.run()
            evidence = world.watch.evidence(world.app.database.commits, self.organization.function_user)
            violations = [
                *judge(evidence, Expectations(invoiced=ids)),
                *judge_requests(world.requests),
                *world.violations,
            ]
            if world.host.timeouts:
                rule = "an invocation ends within its deadline"
                violations.append(Violation(rule, f"{world.host.timeouts} did not."))
            drained = max((event.at for event in world.watch.published), default=START) - START - ends
            figures = {
                "wins": f"{len(ids):,}",
                "invoices": f"{sum(_is_invoice(each) for commit in evidence.commits for each in commit.changes):,}",
                "events": f"{len(evidence.published):,}",
                "parked": f"{world.broker.counts(FAILED_QUEUE).active:,}",
                "deliveries": f"{world.counts['deliveries']:,}",
                "requests": f"{world.counts['requests']:,}",
                "all published after the end in": f"{drained.total_seconds() / 60:.1f} min",
            }
            return Report(title, tuple(violations), drained.total_seconds(), figures)
        finally:
            world.close()


def _is_invoice(change: Change) -> bool:
    return change.table == "invoice" and change.kind == "create"
