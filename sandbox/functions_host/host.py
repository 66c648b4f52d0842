"""The Functions host of one app folder: its configuration, its workers, its processors."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sandbox.clock import Clock, SystemClock
from sandbox.functions_host.configuration import Settings, read_host
from sandbox.functions_host.connection import Connector
from sandbox.functions_host.functions import Declaration, read_functions
from sandbox.functions_host.message_processor import HostContext, MessageProcessor
from sandbox.functions_host.trace_context import SpanSink
from sandbox.functions_host.worker_pool import WorkerPool
from sandbox.functions_host.worker_process import App, WorkerProcess, declarations
from sandbox.start_stop import StartStop

_STOP_SECONDS = 5.0
# In front of a debugger, locks are renewed for as long as a person may need.
_DEBUG_LOCK_RENEWAL = timedelta(days=1)


class FunctionsHost(StartStop):
    """Runs the functions of one app folder; `settings` are all that the app's processes see of the environment.

    `declared` saves asking a v2 app again for what it declares. `broker_clock` is the time by which locks expire, and
    so by which they are renewed; functionTimeout is real time. `on_invocation` is called with the worker of each
    invocation, once the worker has it, and may kill the worker. `export_span` gets the span of each invocation. With
    `debug_port` there is one worker, which waits there for a debugger, and no time limit.
    """

    def __init__(
        self,
        app_root: Path,
        settings: Mapping[str, str],
        broker_clock: Clock | None = None,
        on_invocation: Callable[[WorkerProcess], None] = lambda _: None,
        *,
        declared: Sequence[Declaration] | None = None,
        export_span: SpanSink | None = None,
        debug_port: int | None = None,
    ) -> None:
        """Read the configuration; raises InvalidAppConfiguration where Azure, or this host, would not run it.

        Raises WorkerDied for a v2 app that does not load.
        """
        known = Settings(settings)
        app = App(app_root.resolve(), settings, debug_port)
        configuration = read_host(app.root, known)
        if debug_port is not None:
            configuration = replace(
                configuration,
                function_timeout=None,
                max_auto_lock_renewal=_DEBUG_LOCK_RENEWAL,
                worker_processes=1,
            )
        # Disabled ones included.
        self.functions = read_functions(declarations(app) if declared is None else declared, known)
        self._stopping = threading.Event()
        self._pool = WorkerPool(configuration.worker_processes, app, self.functions)
        context = HostContext(
            self._pool,
            configuration,
            broker_clock or SystemClock(),
            self._stopping,
            on_invocation,
            export_span,
        )
        self._processors: list[MessageProcessor] = []
        for function in self.functions:
            if not function.disabled:
                connector = Connector(function.trigger.connection, known.get("SSL_CERT_FILE"))
                self._processors += [
                    MessageProcessor(function, connector, context)
                    for _ in range(configuration.max_concurrent_calls)
                ]

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are ready."""
        return self._pool.pids

    @property
    def in_hand(self) -> frozenset[int]:
        """The sequence numbers of the messages whose function runs, or waits for a worker."""
        numbers = [processor.in_hand for processor in self._processors]
        return frozenset(number for number in numbers if number is not None)

    def kill_workers(self) -> None:
        """End every worker at once, as a crash or the loss of the machine does; others are started."""
        self._pool.kill()

    def start(self) -> None:
        """Start workers and receivers; returns when a worker is ready, raises WorkerDied if it dies."""
        self._pool.start()
        for processor in self._processors:
            processor.start()

    def stop(self) -> None:
        """Receive no more, give running invocations a few seconds, end the workers; nothing is left behind."""
        self._stopping.set()
        self._join_processors()
        self._pool.stop()
        # Those whose function was ended only now; one that waits for a silent broker ends with this process.
        self._join_processors()

    def _join_processors(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for processor in self._processors:
            processor.join(max(0.0, deadline - time.monotonic()))
