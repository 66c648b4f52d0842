"""From a win to its event: the deployed code, unchanged, over real connections."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from sandbox import demo
from sandbox.actors import Consumer, ReceivedEvent, Salesperson
from sandbox.cloud import CONNECTION, FAILED_QUEUE, WON_QUEUE, Cloud, CloudOptions, Mode
from sandbox.dataverse import ResponseLost
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.proxy import TcpProxy
from sandbox.service_bus import EventKind, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from sandbox.service_bus import Broker, Message

    WatchTopic = Callable[[Broker], list[Message]]

APP = Path(__file__).parents[2]
PATIENCE = 80.0
# Short enough for a retry within the test.
QUICK_RETRIES = {"RETRY_FIRST_DELAY_SECONDS": "0.2", "RETRY_MAX_DELAY_SECONDS": "1"}


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {PATIENCE} s: {what}"
        threading.Event().wait(0.01)


def wait_until_nothing_is_left(cloud: Cloud) -> None:
    """Wait until both queues are empty; what was parked or dead-lettered stays, and so fails this."""
    for queue in (WON_QUEUE, FAILED_QUEUE):
        wait(lambda queue=queue: not any_message(cloud, queue), f"{queue} is empty")  # type: ignore[misc]


def any_message(cloud: Cloud, queue: str) -> bool:
    counts = cloud.broker.counts(queue)
    return any((counts.active, counts.scheduled, counts.deferred, counts.dead_letter))


def win(cloud: Cloud, opportunities: Iterable[str]) -> tuple[dict[str, float], list[ReceivedEvent]]:
    """Win over HTTPS; return when each was won, and the events."""
    won_at: dict[str, float] = {}
    with Consumer(cloud) as consumer, Salesperson(cloud) as salesperson:
        for opportunity in opportunities:
            won_at[opportunity] = time.monotonic()
            salesperson.win(opportunity)
        assert consumer.wait_for(len(won_at), PATIENCE), "the events did not come"
        wait_until_nothing_is_left(cloud)
        return won_at, consumer.events


def assert_good(cloud: Cloud, won_at: dict[str, float], events: list[ReceivedEvent]) -> None:
    """Check that each win came to one invoice and one event, and that the event is equal to the invoice."""
    outcome = demo.compare(cloud.dataverse.database, won_at, events)
    assert outcome.is_good, (str(outcome), [win.problems for win in outcome.wins])


@pytest.mark.parametrize("mode", list(Mode))
def test_wins_in_events_out(mode: Mode, watch_topic: WatchTopic) -> None:
    """Each win comes to one invoice and one event, which equals the invoice and keeps the contract."""
    with Cloud(CloudOptions(APP, mode=mode, opportunities=8)) as cloud:
        watch_topic(cloud.broker)
        won_at, events = win(cloud, cloud.demo.opportunities[:6])

        assert_good(cloud, won_at, events)
        for event in events:
            assert event.message_id == event.content["id"]


def test_with_an_identity_the_function_holds_no_key() -> None:
    with Cloud(CloudOptions(APP, mode=Mode.IDENTITY, opportunities=1)) as cloud:
        keys = {key for rule in cloud.configuration.sas_rules for key in rule.keys}
        assert not [value for value in cloud.app_settings.values() if any(key in value for key in keys)]


def test_what_is_won_twice_is_invoiced_once(watch_topic: WatchTopic) -> None:
    """The same event delivered three times at once leads to one invoice and one event."""
    with Cloud(CloudOptions(APP, opportunities=1)) as cloud:
        watch_topic(cloud.broker)
        (opportunity,) = cloud.demo.opportunities
        accepted: list[Observation] = []

        def repeat(observation: Observation) -> None:
            if observation.kind is EventKind.ENQUEUED and observation.entity == WON_QUEUE:
                accepted.append(observation)

        undo = cloud.broker.observe(repeat)
        with Consumer(cloud) as consumer:
            with Salesperson(cloud) as salesperson:
                won_at = {opportunity: time.monotonic()}
                salesperson.win(opportunity)
            wait(lambda: bool(accepted), "the win is on the queue")
            undo()
            original = accepted[0].message.message
            for number in range(2):
                cloud.broker.send(WON_QUEUE, replace(original, message_id=f"again-{number}"))
            assert consumer.wait_for(1, PATIENCE)
            wait_until_nothing_is_left(cloud)
            assert_good(cloud, won_at, consumer.events)


class Gate:
    """Holds the function's n-th request to Dataverse's $batch: before it is carried out, or after."""

    def __init__(self, number: int, moment: str) -> None:
        self._number = number
        self._moment = moment
        self._seen = 0
        self._lock = threading.Lock()
        self.reached = threading.Event()
        self.released = threading.Event()

    def wrap(self, application: WSGIApplication) -> WSGIApplication:
        def gated(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            with self._lock:
                self._seen += environ["PATH_INFO"].endswith("$batch")
                is_held = self._seen == self._number and not self.reached.is_set()
                if is_held:
                    self.reached.set()
            if not is_held:
                return application(environ, start_response)
            if self._moment == "after":
                application(environ, lambda *_: lambda _: None)
            self.released.wait(PATIENCE)
            raise ResponseLost

        return gated


@pytest.mark.parametrize(
    ("number", "request_is", "moment"),
    [
        (1, "the check", "after"),
        (2, "the claim and the call", "before"),
        (2, "the claim and the call", "after"),
    ],
)
def test_a_worker_that_is_killed_in_a_call_loses_and_doubles_nothing(
    number: int, request_is: str, moment: str, watch_topic: WatchTopic
) -> None:
    """The message is redelivered when its lock expires, and the next worker finds what the first one committed."""
    gate = Gate(number, moment)
    options = CloudOptions(APP, opportunities=1, dataverse_middleware=gate.wrap)
    with Cloud(options) as cloud, Consumer(cloud) as consumer:
        watch_topic(cloud.broker)
        (opportunity,) = cloud.demo.opportunities
        with Salesperson(cloud) as salesperson:
            won_at = {opportunity: time.monotonic()}
            salesperson.win(opportunity)
        assert gate.reached.wait(PATIENCE), f"{request_is} did not come"
        assert cloud.host is not None
        (first,) = cloud.host.worker_pids
        os.kill(first, signal.SIGKILL)
        wait(
            lambda: cloud.host is not None and cloud.host.worker_pids not in ((first,), ()), "another worker"
        )
        gate.released.set()
        assert consumer.events == []
        assert cloud.broker.counts(WON_QUEUE).locked == 1

        cloud.move_broker_clock(cloud.broker.configuration.queues[0].lock_duration)

        assert consumer.wait_for(1, PATIENCE)
        wait_until_nothing_is_left(cloud)
        assert_good(cloud, won_at, consumer.events)


@pytest.mark.parametrize(
    "dependency", [Dependency.IDENTITY, Dependency.DATAVERSE, Dependency.SERVICE_BUS_OUT]
)
def test_a_win_is_invoiced_after_a_peer_accepted_and_stayed_silent(
    dependency: Dependency, watch_topic: WatchTopic
) -> None:
    """The function's first connection there is accepted and gets no response, for longer than the test lasts."""
    silence = FaultRule(dependency, Fault(FaultKind.SILENT, seconds=10 * PATIENCE), When.once(), "connect")
    plan = FaultPlan([silence])
    with ExitStack() as stack:

        def proxy(host: str, port: int) -> TcpProxy:
            running = stack.enter_context(TcpProxy((host, port), plan, dependency))
            stack.callback(plan.clear)
            return running

        def reroute(settings: dict[str, str]) -> dict[str, str]:
            if dependency is Dependency.SERVICE_BUS_OUT:
                plain = cloud.plain_server
                through = proxy(plain.host, plain.port)
                return settings | {
                    # The host prefers this name, so that the silence is the function's alone.
                    f"AzureWebJobs{CONNECTION}": settings[CONNECTION],
                    CONNECTION: settings[CONNECTION].replace(f":{plain.port};", f":{through.port};"),
                }
            name = {Dependency.IDENTITY: "IDENTITY_ENDPOINT", Dependency.DATAVERSE: "DATAVERSE_URL"}[
                dependency
            ]
            parts = urlsplit(settings[name])
            through = proxy("127.0.0.1", parts.port or 0)
            rerouted = urlunsplit(parts._replace(netloc=f"127.0.0.1:{through.port}"))
            if dependency is Dependency.DATAVERSE:
                # Its tokens and events name the address under which it is known.
                cloud.dataverse.organization.url = rerouted
            return settings | {name: rerouted}

        cloud = Cloud(
            CloudOptions(
                APP,
                opportunities=2,
                settings={"INVOCATION_DEADLINE_SECONDS": "8", **QUICK_RETRIES},
                reroute=reroute,
            )
        )
        stack.enter_context(cloud)
        watch_topic(cloud.broker)

        won_at, events = win(cloud, cloud.demo.opportunities[:2])

        assert len(plan.log) == 1
        assert_good(cloud, won_at, events)


# This test does not measure the time.
@pytest.mark.timeout(400)
def test_200_opportunities_with_16_at_once(watch_topic: WatchTopic) -> None:
    with Cloud(CloudOptions(APP, mode=Mode.IDENTITY, opportunities=200)) as cloud:
        watch_topic(cloud.broker)
        running: set[int] = set()
        most = 0

        def count(observation: Observation) -> None:
            nonlocal most
            if observation.entity == WON_QUEUE:
                number = observation.message.sequence_number
                if observation.kind is EventKind.LOCKED:
                    running.add(number)
                elif observation.kind in (EventKind.COMPLETED, EventKind.RELEASED, EventKind.ABANDONED):
                    running.discard(number)
                most = max(most, len(running))

        cloud.broker.observe(count)
        with Consumer(cloud) as consumer:
            with Salesperson(cloud) as salesperson:
                won_at = {}
                for opportunity in cloud.demo.opportunities:
                    won_at[opportunity] = time.monotonic()
                    salesperson.win(opportunity)
            assert consumer.wait_for(200, 300), f"{len(consumer.events)} events came"
            wait_until_nothing_is_left(cloud)
            events = consumer.events

        assert most == 16
        assert_good(cloud, won_at, events)
