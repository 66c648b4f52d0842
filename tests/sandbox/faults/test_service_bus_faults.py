"""Faults of Service Bus as Microsoft's client meets them, and what became of the message meanwhile."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
)
from azure.servicebus.exceptions import MessageLockLostError, ServiceBusError

from sandbox.clock import MovableClock
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.service_bus import PlannedFaults
from sandbox.service_bus import Broker, Configuration, ServiceBusServer
from tests.sandbox.conftest import connection_string, wait_until

# Microsoft's client leaves a socket that was reset to the garbage collection.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

QUEUE = "opportunity-won"
SEND = f"send:{QUEUE}"
DELIVER = f"deliver:{QUEUE}"
SETTLE = f"settle:{QUEUE}"


class World:
    """A broker whose clock tests move, a server with faults, and clients that give up fast."""

    def __init__(self) -> None:
        self.clock = MovableClock()
        self.broker = Broker(Configuration.load(), self.clock)
        self.plan = FaultPlan()
        self.server = self._new_server(0)
        self.restarted = 0

    def _new_server(self, port: int) -> ServiceBusServer:
        return ServiceBusServer(self.broker, port=port, interceptor=PlannedFaults(self.broker, self.plan))

    def restart(self) -> None:
        """Put a new server in the place of the old one, over the same broker."""
        self.server.stop()
        self.server = self._new_server(self.server.port)
        self.server.start()
        self.restarted += 1

    def fault(
        self,
        dependency: Dependency,
        operation: str,
        kind: FaultKind,
        **fields: object,
    ) -> None:
        self.plan.add(FaultRule(dependency, Fault(kind, **fields), When.once(), operation))  # type: ignore[arg-type]

    @contextmanager
    def client(self, retries: int = 0) -> Iterator[ServiceBusClient]:
        with ServiceBusClient.from_connection_string(
            connection_string(self.server), retry_total=retries, retry_backoff_factor=0.05
        ) as client:
            yield client

    def send(self, retries: int = 0, due: datetime | None = None) -> None:
        """Send one message; raises what the client raises."""
        message = ServiceBusMessage(b"won", message_id="m-1", scheduled_enqueue_time_utc=due)
        with self.client(retries) as client, client.get_queue_sender(QUEUE) as sender:
            sender.send_messages(message, timeout=1)

    @contextmanager
    def received(self) -> Iterator[tuple[ServiceBusReceiver, list[ServiceBusReceivedMessage]]]:
        with self.client() as client, client.get_queue_receiver(QUEUE) as receiver:
            yield receiver, receiver.receive_messages(max_message_count=1, max_wait_time=0.4)

    @property
    def active(self) -> int:
        return self.broker.counts(QUEUE).active


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.server.start()
    yield world
    world.plan.clear()
    world.server.stop()
    # While the warnings about such sockets are still expected.
    gc.collect()


@pytest.mark.parametrize(
    ("operation", "kind", "fields", "accepted"),
    [
        (SEND, FaultKind.RESET, {}, 0),
        (SEND, FaultKind.RESET, {"after": True}, 1),
        (SEND, FaultKind.SILENT, {}, 0),
        (SEND, FaultKind.SILENT, {"after": True}, 1),
        (SEND, FaultKind.SWALLOW, {}, 0),
        (SEND, FaultKind.REJECT, {}, 0),
        (SEND, FaultKind.REJECT, {"code": "amqp:unauthorized-access"}, 0),
        (f"attach:{QUEUE}", FaultKind.REJECT, {"code": "amqp:unauthorized-access"}, 0),
    ],
    ids=str,
)
def test_a_send_that_fails_for_its_sender(
    world: World, operation: str, kind: FaultKind, fields: dict[str, Any], accepted: int
) -> None:
    """It may have been accepted all the same."""
    world.fault(Dependency.SERVICE_BUS_OUT, operation, kind, **fields)
    with pytest.raises(ServiceBusError):
        world.send()
    assert world.active == accepted
    world.send()
    assert world.active == 1, "duplicate detection drops the second of one id"


def test_a_late_confirmation_is_waited_for(world: World) -> None:
    world.fault(Dependency.SERVICE_BUS_OUT, SEND, FaultKind.DELAY, seconds=0.2)
    started = time.monotonic()
    world.send()
    assert time.monotonic() - started >= 0.2
    assert world.active == 1


def test_scheduling_is_an_operation_of_its_own(world: World) -> None:
    world.fault(Dependency.SERVICE_BUS_OUT, f"schedule:{QUEUE}", FaultKind.RESET)
    world.send()
    with pytest.raises(ServiceBusError):
        world.send(due=datetime.now(UTC) + timedelta(hours=1))
    assert [entry.operation for entry in world.plan.log] == [f"schedule:{QUEUE}"]


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (FaultKind.RESET, False),
        (FaultKind.SILENT, False),
        (FaultKind.SWALLOW, False),
        (FaultKind.RESET, True),
    ],
    ids=str,
)
def test_a_delivery_that_is_lost_keeps_its_lock(world: World, kind: FaultKind, after: bool) -> None:  # noqa: FBT001 - pytest's
    """The message comes again when the lock expires, as a second delivery."""
    world.send()
    world.fault(Dependency.SERVICE_BUS_IN, DELIVER, kind, after=after)
    with world.client() as client, client.get_queue_receiver(QUEUE) as receiver:
        try:
            messages = receiver.receive_messages(max_message_count=1, max_wait_time=0.4)
        except ServiceBusError:
            messages = []
    assert len(messages) <= int(after)
    assert world.broker.counts(QUEUE).locked == 1
    world.clock.advance(timedelta(minutes=1))
    with world.received() as (receiver, again):
        assert [message.delivery_count for message in again] == [1]
        receiver.complete_message(again[0])


def test_a_lost_lock_hands_the_message_out_again_while_it_is_worked_on(world: World) -> None:
    world.send()
    world.fault(Dependency.SERVICE_BUS_IN, DELIVER, FaultKind.LOCK_LOST)
    with world.received() as (one, first), world.received() as (other, second):
        assert first[0].message_id == second[0].message_id
        assert (first[0].delivery_count, second[0].delivery_count) == (0, 1)
        with pytest.raises(MessageLockLostError):
            one.complete_message(first[0])
        other.complete_message(second[0])
    assert world.active == 0


def test_a_duplicate_is_a_message_of_its_own(world: World) -> None:
    world.send()
    world.fault(Dependency.SERVICE_BUS_IN, DELIVER, FaultKind.DUPLICATE)
    with world.received() as (one, first), world.received() as (other, second):
        one.complete_message(first[0])
        other.complete_message(second[0])
        assert first[0].message_id == second[0].message_id
        assert first[0].sequence_number != second[0].sequence_number


@pytest.mark.parametrize(("after", "left"), [(False, 1), (True, 0)])
def test_a_completion_that_is_not_confirmed(world: World, after: bool, left: int) -> None:  # noqa: FBT001 - pytest's
    """The message is gone, or comes again; its receiver cannot tell."""
    world.send()
    world.fault(Dependency.SERVICE_BUS_IN, SETTLE, FaultKind.RESET, after=after)
    with world.received() as (receiver, messages), pytest.raises(ServiceBusError):
        receiver.complete_message(messages[0])
    world.clock.advance(timedelta(minutes=1))
    assert world.active == left


def test_a_broker_restarts_and_keeps_its_messages(world: World) -> None:
    world.plan.provide(FaultKind.RESTART, world.restart)
    world.fault(Dependency.SERVICE_BUS_OUT, SEND, FaultKind.RESTART, after=True)
    with pytest.raises(ServiceBusError):
        world.send()
    wait_until(lambda: world.restarted == 1)
    world.send(retries=3)
    assert world.active == 1


def test_a_worker_is_killed_while_it_sends(world: World) -> None:
    killed: list[int] = []
    world.plan.provide(FaultKind.KILL, lambda: killed.append(world.active))
    world.fault(Dependency.SERVICE_BUS_OUT, SEND, FaultKind.KILL, after=True)
    with pytest.raises(ServiceBusError):
        world.send()
    assert killed == [1]
