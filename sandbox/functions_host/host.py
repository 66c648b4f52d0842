"""The Functions host: receives from Service Bus, has a worker run the function, settles the message.

As in Azure, a message is completed when its function returns and abandoned when it fails. One whose worker died, or
was ended for taking longer than functionTimeout, is left alone: it comes again when its lock expires.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from azure.servicebus import ServiceBusReceivedMessage, ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusError

from sandbox.clock import Clock, SystemClock
from sandbox.functions_host.configuration import (
    Function,
    HostConfiguration,
    Settings,
    read_functions,
    read_host,
)
from sandbox.functions_host.connection import Connector, TokenError
from sandbox.functions_host.trigger import UnsupportedBodyError, invocation_request
from sandbox.functions_host.worker_process import (
    FunctionLoadError,
    WorkerDiedError,
    WorkerPool,
    WorkerProcess,
    protocol,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

_log = logging.getLogger(__name__)

# How long one receive waits, and so how long a stop may take to be noticed.
_RECEIVE_SECONDS = 0.5
# How often a running invocation is looked at: for its lock, its time and a stop.
_LOOK_SECONDS = 0.1
_READY_SECONDS = 30.0
_STOP_SECONDS = 5.0
_PAUSES_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)


class FunctionsHost:
    """Runs the functions of one app folder; the settings are all that the app's processes see of their surroundings.

    `broker_clock` is the time by which locks expire, and so by which they are renewed; functionTimeout is real time.
    `on_invocation` is told of each invocation once its worker has it, and may kill the worker.
    """

    def __init__(
        self,
        app_root: Path,
        settings: Mapping[str, str],
        broker_clock: Clock | None = None,
        on_invocation: Callable[[WorkerProcess], None] = lambda _: None,
    ) -> None:
        """Read the configuration; raises ConfigurationError where Azure, or this host, would not run it."""
        known = Settings(settings)
        self._app_root = app_root.resolve()
        self.configuration = read_host(self._app_root, known)
        self._functions = read_functions(self._app_root, known)
        self._clock = broker_clock or SystemClock()
        self._on_invocation = on_invocation
        self._stopping = threading.Event()
        self._pool = WorkerPool(
            self.configuration.worker_processes, self._app_root, settings, self._functions
        )
        self._dispatchers = [
            dispatcher
            for function in self._functions
            if not function.disabled
            for dispatcher in self._dispatchers_of(function, settings)
        ]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._app_root} {[function.name for function in self._functions]}>"

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are ready."""
        return self._pool.pids

    @property
    def in_hand(self) -> frozenset[int]:
        """The sequence numbers of the messages whose function runs, or waits for a worker."""
        numbers = [dispatcher.in_hand for dispatcher in self._dispatchers]
        return frozenset(number for number in numbers if number is not None)

    def kill_workers(self) -> None:
        """End every worker at once, as a crash or the loss of the machine does; others are started."""
        self._pool.kill()

    def start(self) -> None:
        """Start workers and receivers; returns when a worker is ready, raises WorkerDiedError if it dies."""
        self._pool.start()
        for dispatcher in self._dispatchers:
            dispatcher.start()

    def stop(self) -> None:
        """Receive no more, give running invocations a few seconds, end the workers; nothing is left behind."""
        self._stopping.set()
        self._join_dispatchers()
        self._pool.stop()
        # Those whose function was ended only now; one that waits for a silent broker is left to the process's end.
        self._join_dispatchers()

    def _join_dispatchers(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for dispatcher in self._dispatchers:
            dispatcher.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _dispatchers_of(self, function: Function, settings: Mapping[str, str]) -> list["_Dispatcher"]:
        connector = Connector(function.connection, Settings(settings).get("SSL_CERT_FILE"))
        return [
            _Dispatcher(
                function,
                connector,
                self._pool,
                self.configuration,
                self._clock,
                self._stopping,
                self._on_invocation,
            )
            for _ in range(self.configuration.max_concurrent_calls)
        ]


class _Dispatcher:
    """One of maxConcurrentCalls: one message at a time, from its receipt to its settlement.

    Receivers are not thread-safe, so each has a thread, and renews its own lock while the function runs.
    """

    def __init__(
        self,
        function: Function,
        connector: Connector,
        pool: WorkerPool,
        configuration: HostConfiguration,
        clock: Clock,
        stopping: threading.Event,
        on_invocation: Callable[[WorkerProcess], None],
    ) -> None:
        self._on_invocation = on_invocation
        self._function = function
        self._connector = connector
        self._pool = pool
        self._configuration = configuration
        self._clock = clock
        self._stopping = stopping
        self._failures = 0
        self.in_hand: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"dispatcher {function.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with (
                    self._connector.connect() as client,
                    client.get_queue_receiver(self._function.queue) as receiver,
                ):
                    self._receive(receiver)
            except (ServiceBusError, TokenError, OSError) as error:
                pause = _PAUSES_SECONDS[min(self._failures, len(_PAUSES_SECONDS) - 1)]
                self._failures += 1
                # As text: an exception holds on to its frames, and so to the connection that it was about.
                _log.warning("Cannot receive from %s: %s", self._function.queue, str(error))
                self._stopping.wait(pause)

    def _receive(self, receiver: ServiceBusReceiver) -> None:
        while not self._stopping.is_set():
            # A message must not wait here, with its lock ticking, for a worker that is not there.
            if self._pool.take_turn(_RECEIVE_SECONDS) is None:
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
        except WorkerDiedError as error:
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
            # Its lock is lost or the connection is: it comes again, and the function must cope.
            _log.warning("Message %s could not be settled: %s", message.message_id, str(error))

    def _invoke(
        self, receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, worker: WorkerProcess
    ) -> str | None:
        try:
            request = invocation_request(protocol(), message, self._function.name, self._function.parameter)
            answer = worker.invoke(self._function, request)
        except (FunctionLoadError, UnsupportedBodyError) as error:
            return str(error)
        self._on_invocation(worker)
        result = self._await(answer, _LockKeeper(receiver, message, self._configuration, self._clock), worker)
        if result.status == protocol().StatusResult.Success:
            return None
        return f"{result.exception.message}\n{result.exception.stack_trace}".rstrip()

    def _await(self, answer: "Future[Any]", lock: "_LockKeeper", worker: WorkerProcess) -> Any:  # noqa: ANN401
        timeout = self._configuration.function_timeout
        deadline = time.monotonic() + timeout.total_seconds() if timeout else float("inf")
        while True:
            try:
                return answer.result(_LOOK_SECONDS).invocation_response.result
            except TimeoutError:
                if time.monotonic() > deadline:
                    _log.error("Timeout value of %s exceeded by function %s.", timeout, self._function.name)
                    worker.kill()
                    deadline = float("inf")
            lock.renew_if_due()


class _LockKeeper:
    """Renews one message's lock when half of it is over, for as long as maxAutoLockRenewalDuration."""

    def __init__(
        self,
        receiver: ServiceBusReceiver,
        message: ServiceBusReceivedMessage,
        configuration: HostConfiguration,
        clock: Clock,
    ) -> None:
        self._receiver = receiver
        self._message = message
        self._clock = clock
        now = clock.now()
        self._end = now + configuration.max_auto_lock_renewal
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
