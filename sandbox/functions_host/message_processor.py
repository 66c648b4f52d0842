"""One message at a time: receive from Service Bus, have a worker run the function, settle the message.

Like in Azure, a message is completed when its function returns and abandoned when it fails. One whose worker died, or
was ended for taking longer than functionTimeout, is not settled: it is delivered again when its lock expires.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage, ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusError

from sandbox.clock import Clock
from sandbox.functions_host.configuration import HostConfiguration
from sandbox.functions_host.connection import Connector, NoToken
from sandbox.functions_host.functions import Function
from sandbox.functions_host.trace_context import Span, SpanContext, SpanSink, sent_trace_parent
from sandbox.functions_host.trigger import UnsupportedBody, application_properties, invocation_request
from sandbox.functions_host.worker_pool import WorkerPool
from sandbox.functions_host.worker_process import FunctionNotLoaded, WorkerDied, WorkerProcess, protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

_log = logging.getLogger(__name__)

# How long one receive waits, and so how long a stop may take to be noticed.
_RECEIVE_SECONDS = 0.5
# How often the lock, the time limit and a stop are checked while a function runs.
_POLL_SECONDS = 0.1
_READY_SECONDS = 30.0
_PAUSES_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class HostContext:
    """What all message processors of a host share."""

    pool: WorkerPool
    configuration: HostConfiguration
    clock: Clock
    stopping: threading.Event
    on_invocation: Callable[[WorkerProcess], None]
    export_span: SpanSink | None


class MessageProcessor:
    """One of maxConcurrentCalls: one message at a time, from its receipt to its settlement.

    Receivers are not thread-safe, so each has a thread, and renews its own lock while the function runs.
    """

    def __init__(self, function: Function, connector: Connector, context: HostContext) -> None:
        self._function = function
        self._connector = connector
        self._context = context
        self._pool = context.pool
        self._stopping = context.stopping
        self._failures = 0
        # The sequence number of the message whose function runs, or waits for a worker.
        self.in_hand: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"processor {function.name}", daemon=True)

    def start(self) -> None:
        """Receive from now on."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for its end, which the event `stopping` asks for."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connector.connect() as client, self._receiver(client) as receiver:
                    self._receive(receiver)
            except (ServiceBusError, NoToken, OSError) as error:
                pause = _PAUSES_SECONDS[min(self._failures, len(_PAUSES_SECONDS) - 1)]
                self._failures += 1
                # As text: an exception keeps its frames alive, and so the connection that it was about.
                _log.warning("Cannot receive from %s: %s", self._function.trigger.source.path, str(error))
                self._stopping.wait(pause)

    def _receiver(self, client: ServiceBusClient) -> ServiceBusReceiver:
        # Without prefetching, as in Azure: a second message would lose its lock while the function runs. The SDK then
        # has a keep-alive thread, which can confuse messages that arrive together; here one is under way.
        source = self._function.trigger.source
        if source.subscription:
            return client.get_subscription_receiver(source.entity, source.subscription)
        return client.get_queue_receiver(source.entity)

    def _receive(self, receiver: ServiceBusReceiver) -> None:
        while not self._stopping.is_set():
            # A message must not wait here, while its lock expires, for a worker that is not ready.
            if not self._pool.wait_until_ready(_RECEIVE_SECONDS):
                continue
            messages = receiver.receive_messages(max_message_count=1, max_wait_time=_RECEIVE_SECONDS)
            self._failures = 0
            for message in messages:
                self._dispatch(receiver, message)

    def _dispatch(self, receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> None:
        self.in_hand = message.sequence_number
        try:
            worker = self._pool.take_turn(_READY_SECONDS)
            if worker is None:
                return
            started = time.monotonic()
            failure = self._invoke(receiver, message, worker)
        except WorkerDied as error:
            if not self._stopping.is_set():
                _log.error("%s, message %s not settled: %s", self._function.name, message.message_id, error)
            return
        finally:
            self.in_hand = None
        _log.log(
            logging.ERROR if failure else logging.INFO,
            "Executed 'Functions.%s' (%s, message %s, delivery %d, %d ms)%s",
            self._function.name,
            "Failed" if failure else "Succeeded",
            message.message_id,
            (message.delivery_count or 0) + 1,
            (time.monotonic() - started) * 1000,
            f": {failure}" if failure else "",
        )
        try:
            if failure:
                receiver.abandon_message(message)
            else:
                receiver.complete_message(message)
        except (ServiceBusError, ValueError) as error:
            # Its lock is lost or the connection is: it is delivered again, and the function must tolerate that.
            _log.warning("Message %s could not be settled: %s", message.message_id, str(error))

    def _invoke(
        self, receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, worker: WorkerProcess
    ) -> str | None:
        """Run the function; returns why it failed, or None."""
        with _Tracing(self._function, message, self._context.export_span) as tracing:
            try:
                request = invocation_request(protocol(), message, self._function, tracing.trace_parent)
                response = worker.invoke(self._function, request)
            except (FunctionNotLoaded, UnsupportedBody) as error:
                tracing.failure = str(error)
                return tracing.failure
            self._context.on_invocation(worker)
            lock = _LockKeeper(
                receiver,
                message,
                self._context.configuration.max_auto_lock_renewal,
                self._context.clock,
            )
            result = self._await(response, lock, worker)
            if result.status == protocol().StatusResult.Success:
                return None
            tracing.failure = result.exception.message
            return f"{result.exception.message}\n{result.exception.stack_trace}".rstrip()

    def _await(self, response: "Future[Any]", lock: "_LockKeeper", worker: WorkerProcess) -> Any:  # noqa: ANN401
        timeout = self._context.configuration.function_timeout
        deadline = time.monotonic() + timeout.total_seconds() if timeout else float("inf")
        while True:
            try:
                return response.result(_POLL_SECONDS).invocation_response.result
            except TimeoutError:
                if time.monotonic() > deadline:
                    _log.error("Timeout value of %s exceeded by function %s.", timeout, self._function.name)
                    worker.kill()
                    deadline = float("inf")
            lock.renew_if_due()


class _Tracing:
    """The span of one invocation: its context goes to the function, and the span to `export` when it ends.

    With no `export` there is no span, and the function gets the sender's context.
    """

    def __init__(
        self, function: Function, message: ServiceBusReceivedMessage, export: SpanSink | None
    ) -> None:
        properties = application_properties(message)
        self._function = function
        self._message = message
        self._export = export
        self._parent = SpanContext.of(properties)
        self._context = SpanContext.child_of(self._parent)
        self.trace_parent = self._context.trace_parent if export else sent_trace_parent(properties)
        self.failure = ""

    def __enter__(self) -> Self:
        self._started = time.time_ns()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._export is None:
            return
        entity = self._function.trigger.source.path
        self._export(
            Span(
                trace_id=self._context.trace_id,
                span_id=self._context.span_id,
                parent_id=self._parent.span_id if self._parent else "",
                name=f"process {entity}",
                service="functions-host",
                started_ns=self._started,
                ended_ns=time.time_ns(),
                attributes={
                    "faas.trigger": "pubsub",
                    "faas.name": self._function.name,
                    "messaging.system": "servicebus",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": entity,
                    "messaging.message.id": self._message.message_id or "",
                    "messaging.servicebus.message.delivery_count": (self._message.delivery_count or 0) + 1,
                },
                error=self.failure or (str(error) if error else ""),
            )
        )


class _LockKeeper:
    """Renews one message's lock when half of it is over, for as long as maxAutoLockRenewalDuration."""

    def __init__(
        self,
        receiver: ServiceBusReceiver,
        message: ServiceBusReceivedMessage,
        longest: timedelta,
        clock: Clock,
    ) -> None:
        self._receiver = receiver
        self._message = message
        self._clock = clock
        now = clock.now()
        self._end = now + longest
        self._due = self._half_way(now)

    def renew_if_due(self) -> None:
        now = self._clock.now()
        if not self._due <= now < self._end:
            return
        try:
            self._receiver.renew_message_lock(self._message)
        except (ServiceBusError, ValueError) as error:
            _log.warning(
                "The lock of message %s could not be renewed: %s", self._message.message_id, str(error)
            )
            # Like Azure's client, which gives up on the lock; the function runs on.
            self._due = self._end
        else:
            self._due = self._half_way(now)

    def _half_way(self, now: datetime) -> datetime:
        until = self._message.locked_until_utc
        return now + max((until - now) / 2, timedelta()) if until else self._end
