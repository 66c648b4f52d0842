"""The host's side of the worker processes: start, load the functions, invoke, notice a death, start again."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import IO, Any, cast

from sandbox.functions_host import worker
from sandbox.functions_host.configuration import Function

_log = logging.getLogger(__name__)
_console = logging.getLogger("Host.Function.Console")

_RUNTIME = "azure-functions-runtime-v1"
# Azure gives an app this long to get ready.
_START_TIMEOUT_SECONDS = 30.0
_STOP_TIMEOUT_SECONDS = 2.0
# Of this machine's environment a process cannot do without these; all else that a function sees is app settings.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT")
_WAIT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class WorkerDiedError(Exception):
    """The worker process ended before it answered."""


class FunctionLoadError(Exception):
    """The worker could not load the function: no invocation of it can succeed."""


def protocol() -> ModuleType:
    """Return the worker protocol's messages; raises WorkerDiedError where the runtime is not installed."""
    return worker.load_protocol(_installed("tests/protos"))


def _installed(name: str) -> Path:
    try:
        return Path(str(metadata.distribution(_RUNTIME).locate_file(name))).resolve()
    except metadata.PackageNotFoundError as error:
        raise WorkerDiedError(f"{_RUNTIME} is not installed: see requirements-runtime.txt") from error


class WorkerProcess:
    """One worker, from its start to its end; methods may be called from any thread and none blocks for long."""

    def __init__(self, app_root: Path, settings: Mapping[str, str], functions: Sequence[Function]) -> None:
        self._app_root = app_root
        self._functions = functions
        self._protocol = protocol()
        self._pending: dict[str, Future[Any]] = {}
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dead = threading.Event()
        self._console_tail: deque[str] = deque(maxlen=20)
        self._load_failures: dict[str, str] = {}
        self._process = self._spawn(settings)
        self._threads = {
            target: threading.Thread(target=target, name=f"worker {self.pid}", daemon=True)
            for target in (self._write_requests, self._read_answers, self._read_console)
        }
        for thread in self._threads.values():
            thread.start()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid} {'dead' if self._dead.is_set() else 'alive'}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still answer."""
        return not self._dead.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until the worker is dead, `timeout` seconds at most; tell whether it is."""
        return self._dead.wait(timeout)

    def initialize(self) -> None:
        """Greet the worker and load the functions; raises WorkerDiedError if it does not answer in time.

        A function that does not load is remembered, not raised: each invocation of it will fail.
        """
        root, messages = str(self._app_root), self._protocol
        self._ask(
            worker_init_request=messages.WorkerInitRequest(host_version="4", function_app_directory=root)
        )
        self._ask(functions_metadata_request=messages.FunctionsMetadataRequest(function_app_directory=root))
        for function in self._functions:
            response = self._ask(function_load_request=self._load_request(function)).function_load_response
            if response.result.status != messages.StatusResult.Success:
                failure = response.result.exception.message
                self._load_failures[function.name] = failure
                _log.error("Function %s does not load: %s", function.name, failure)

    def invoke(self, function: Function, request: object) -> "Future[Any]":
        """Send an InvocationRequest; the future gives the InvocationResponse's StreamingMessage.

        Raises FunctionLoadError for a function that did not load; the future raises WorkerDiedError.
        """
        if function.name in self._load_failures:
            raise FunctionLoadError(self._load_failures[function.name])
        return self._send(invocation_request=request)

    def kill(self) -> None:
        """End the process and what it started, at once."""
        with self._lock:
            # Once it is reaped, its id may be another process's.
            if self._process.returncode is None:
                self._kill_group()

    def stop(self) -> None:
        """Ask the worker to end, then make it; returns when nothing of it is left."""
        self._send(worker_terminate=self._protocol.StreamingMessage().worker_terminate)
        if not self.wait(_STOP_TIMEOUT_SECONDS):
            _log.warning("Worker %d did not end by itself.", self.pid)
            self.kill()
        for thread in self._threads.values():
            thread.join(_STOP_TIMEOUT_SECONDS)

    def _spawn(self, settings: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"FUNCTIONS_WORKER_RUNTIME": "python", **settings}
        # Isolated, so that neither this process's folder nor its environment is on the import path; without
        # the packages of this environment, where the app has its own.
        options = ["-I", *(["-S"] if worker.has_own_packages(self._app_root) else [])]
        folders = [str(folder) for folder in (self._app_root, _installed("tests/protos"), _installed(""))]
        return subprocess.Popen(  # noqa: S603 - no shell, and every argument is ours
            [sys.executable, *options, worker.__file__, *folders],
            cwd=self._app_root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: Ctrl-C in a terminal reaches the host alone, which then ends it in order.
            start_new_session=True,
        )

    def _load_request(self, function: Function) -> object:
        messages = self._protocol
        binding = messages.BindingInfo(
            type="serviceBusTrigger",
            direction=getattr(messages.BindingInfo, "in"),
            data_type=messages.BindingInfo.binary,
        )
        return messages.FunctionLoadRequest(
            function_id=function.name,
            metadata=messages.RpcFunctionMetadata(
                name=function.name,
                directory=str(function.directory),
                script_file=str(function.script_file),
                entry_point=function.entry_point,
                bindings={function.parameter: binding},
            ),
        )

    def _ask(self, **content: object) -> Any:  # noqa: ANN401 - protobuf classes are made at run time
        try:
            return self._send(**content).result(_START_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise WorkerDiedError(f"worker {self.pid} was silent for {_START_TIMEOUT_SECONDS} s") from error

    def _send(self, **content: object) -> "Future[Any]":
        request_id = str(uuid.uuid4())
        message = self._protocol.StreamingMessage(request_id=request_id, **content)
        answer: Future[Any] = Future()
        with self._lock:
            if self._dead.is_set():
                answer.set_exception(self._death())
            else:
                self._pending[request_id] = answer
                # By a thread of its own, because a pipe that nobody reads blocks its writer.
                self._outbox.put(message.SerializeToString())
        return answer

    def _death(self) -> WorkerDiedError:
        tail = "; ".join(self._console_tail)
        return WorkerDiedError(f"worker {self.pid} ended" + (f", saying: {tail}" if tail else ""))

    def _write_requests(self) -> None:
        with suppress(OSError), cast("IO[bytes]", self._process.stdin) as stream:
            while (frame := self._outbox.get()) is not None:
                worker.write_frame(stream, frame)

    def _read_answers(self) -> None:
        with cast("IO[bytes]", self._process.stdout) as stream:
            while (frame := worker.read_frame(stream)) is not None:
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
        self._threads[self._read_console].join(_STOP_TIMEOUT_SECONDS)
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


class WorkerPool:
    """Keeps `size` workers running: each that dies is replaced, ever more slowly while they die young."""

    def __init__(
        self, size: int, app_root: Path, settings: Mapping[str, str], functions: Sequence[Function]
    ) -> None:
        self._app_root = app_root
        self._settings = settings
        self._functions = functions
        self._started: list[WorkerProcess] = []
        self._ready: list[WorkerProcess] = []
        self._failure: WorkerDiedError | None = None
        self._turn = itertools.count()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._keepers = [
            threading.Thread(target=self._keep, name=f"worker keeper {number}", daemon=True)
            for number in range(size)
        ]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pids}>"

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are ready."""
        with self._changed:
            return tuple(process.pid for process in self._alive())

    def start(self) -> None:
        """Start the workers; returns when one is ready, raises WorkerDiedError where the first one dies."""
        for keeper in self._keepers:
            keeper.start()
        with self._changed:
            settled = self._changed.wait_for(lambda: self._ready or self._failure, 2 * _START_TIMEOUT_SECONDS)
            failure = self._failure or WorkerDiedError("no worker got ready in time")
        if not settled or not self._ready:
            self.stop()
            raise failure

    def take_turn(self, timeout: float) -> WorkerProcess | None:
        """Return the worker whose turn it is; None where none gets ready within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._alive() or self._stopping.is_set(), timeout)
            alive = self._alive()
            if self._stopping.is_set() or not alive:
                return None
            return alive[next(self._turn) % len(alive)]

    def kill(self) -> None:
        """End every worker that is ready, at once; others take their places."""
        with self._changed:
            alive = self._alive()
        for process in alive:
            process.kill()

    def stop(self) -> None:
        """End all workers; returns when they are gone."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            started = list(self._started)
        for process in started:
            process.stop()
        for keeper in self._keepers:
            if keeper.is_alive():
                keeper.join(_STOP_TIMEOUT_SECONDS)

    def _alive(self) -> list[WorkerProcess]:
        return [process for process in self._ready if process.is_alive]

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            self._run_one()
            if time.monotonic() - started > 2 * _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _run_one(self) -> None:
        with self._changed:
            if self._stopping.is_set():
                return
            process = WorkerProcess(self._app_root, self._settings, self._functions)
            self._started.append(process)
        try:
            process.initialize()
            with self._changed:
                self._ready.append(process)
                self._changed.notify_all()
            _log.info("Worker %d is ready.", process.pid)
            while not process.wait(_WAIT_SECONDS):
                pass
        except WorkerDiedError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            _log.warning("A worker did not get ready: %s", error)
        finally:
            process.stop()
            with self._changed:
                self._started.remove(process)
                if process in self._ready:
                    self._ready.remove(process)
        if not self._stopping.is_set():
            _log.warning("Worker %d ended; another one is started.", process.pid)
