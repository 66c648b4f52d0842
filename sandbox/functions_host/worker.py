"""The worker process: runs the functions of one app through Microsoft's own runtime library.

It is started as a script, in isolated mode, and talks to the host through its standard input and output:
StreamingMessages of the Functions worker protocol, each preceded by its length; Azure's host and worker exchange the
same ones over gRPC. It imports nothing of the sandbox, and the function's import path does not contain the sandbox.

The host imports this module as well, for the two things that both sides do alike: frames and protocol messages.
"""

import asyncio
import atexit
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any, cast

# How long the end of a worker may take: exporters of telemetry send their last batch. The host waits a little longer.
END_WITHIN_SECONDS = 3.0

_LENGTH = struct.Struct(">I")
# What the runtime libraries and the debugger need: nothing else is lent to an app that brings its own packages.
_LENT = (
    "azure_functions_runtime",
    "azure_functions_runtime_v1",
    "debugpy",
    "google",
    "grpc",
    "typing_extensions",
)
_APP_PACKAGES = Path(".python_packages") / "lib" / "site-packages"
# The real worker counts these as its own; everything else is the function's.
_SYSTEM_LOGGERS = ("azure.functions", "azure_functions_worker", "azure_functions_runtime")


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read one message; None at the end of the stream."""
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(length)
    content = stream.read(size)
    return content if len(content) == size else None


def write_frame(stream: IO[bytes], content: bytes) -> None:
    """Write one message."""
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def load_protocol(folder: Path) -> ModuleType:
    """Import the protocol's generated modules, which ship with the runtime library, from `folder`.

    They are installed as `tests.protos`, a name that a project's own tests/ takes away: so by location.
    """
    name = "azure_functions_protocol"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"the Functions worker protocol is not in {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def has_own_packages(app_root: Path) -> bool:
    """Tell whether the app brings its packages along, as the deployed zip does."""
    return (app_root / _APP_PACKAGES).is_dir()


class _Lender(importlib.abc.MetaPathFinder):
    """Finds the runtime library's modules, and no others, in the host's packages; asked last."""

    def __init__(self, packages: Path) -> None:
        self._packages = packages

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the signature is importlib's
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        *parents, _ = fullname.split(".")
        if (parents or [fullname])[0] not in _LENT:
            return None
        # Not `path`: where the app has a part of the namespace package `google`, that would be the app's part.
        folder = str(self._packages.joinpath(*parents))
        return importlib.machinery.PathFinder.find_spec(fullname, [folder], target)


class _LogForwarder(logging.Handler):
    """Sends to the host what the real worker does: level, text, logger and invocation, nothing more."""

    def __init__(self, worker: "_Worker") -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._worker.send(rpc_log=self._worker.log_message(record, self.format(record)))
        except Exception:  # noqa: BLE001 - a log handler never raises into the code that logs
            self.handleError(record)


class _Worker:
    """Passes requests to the runtime library `runtime`, an import name, and its responses back."""

    def __init__(self, protocol: ModuleType, runtime: str, requests: IO[bytes], responses: IO[bytes]) -> None:
        self._runtime = importlib.import_module(runtime)
        self._protocol = protocol
        self._requests = requests
        self._responses = responses
        self._sending = threading.Lock()
        self._properties: Mapping[str, object] = {"protos": protocol, "host": "127.0.0.1"}
        # The event loop keeps weak references only.
        self._running: set[asyncio.Task[None]] = set()

    def send(self, request_id: str = "", **content: object) -> None:
        message = self._protocol.StreamingMessage(request_id=request_id, **content)
        with self._sending:
            write_frame(self._responses, message.SerializeToString())

    def log_message(self, record: logging.LogRecord, text: str) -> object:
        log = self._protocol.RpcLog
        levels = {
            logging.CRITICAL: log.Critical,
            logging.ERROR: log.Error,
            logging.WARNING: log.Warning,
            logging.INFO: log.Information,
            logging.DEBUG: log.Debug,
        }
        is_system = record.name.startswith(_SYSTEM_LOGGERS)
        return log(
            level=levels.get(record.levelno, getattr(log, "None")),
            message=text,
            category=record.name,
            log_category=log.System if is_system else log.User,
            invocation_id=self._runtime.invocation_id_cv.get() or "",
        )

    async def run(self) -> None:
        """Serve requests until the host asks the worker to terminate, or is gone."""
        self._runtime.start_threadpool_executor()
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue()

        def read() -> None:
            frame: bytes | None = b""
            while frame is not None:
                # None: the host is gone, perhaps killed.
                frame = read_frame(self._requests)
                loop.call_soon_threadsafe(inbox.put_nowait, frame)

        threading.Thread(target=read, name="requests", daemon=True).start()
        self.send(start_stream=self._protocol.StartStream(worker_id=str(os.getpid())))
        while (frame := await inbox.get()) is not None:
            message = self._protocol.StreamingMessage.FromString(frame)
            if message.WhichOneof("content") == "worker_terminate":
                return
            task = asyncio.create_task(self._respond(message))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # The runtime library reports what a function does wrong; this is something else, such as a package
            # that it cannot do without. A response will never come: the host must see the end.
            traceback.print_exception(error)
            os._exit(1)

    async def _respond(self, message: Any) -> None:  # noqa: ANN401 - protobuf classes are made at run time
        handler, response = {
            "worker_init_request": (self._runtime.worker_init_request, "worker_init_response"),
            "functions_metadata_request": (
                self._runtime.functions_metadata_request,
                "function_metadata_response",
            ),
            "function_load_request": (self._runtime.function_load_request, "function_load_response"),
            "invocation_request": (self._runtime.invocation_request, "invocation_response"),
        }[message.WhichOneof("content")]
        request = SimpleNamespace(request=message, properties=self._properties)
        self.send(
            message.request_id, **{response: await cast("Coroutine[Any, Any, object]", handler(request))}
        )


def _end() -> None:
    """End the process in order, within a bound.

    Exit handlers run, such as the one by which OpenTelemetry exports its last batch. Threads in which a function still
    runs are not waited for: they may run for ever.
    """

    def give_up() -> None:
        time.sleep(END_WITHIN_SECONDS)
        os._exit(1)

    threading.Thread(target=give_up, name="end", daemon=True).start()
    # Not the interpreter's own end, which joins the threads of every pool before it calls the handlers.
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no public function for it
    sys.stdout.flush()
    os._exit(0)


def _wait_for_debugger(port: int) -> None:
    debugpy = importlib.import_module("debugpy")
    debugpy.listen(("127.0.0.1", port))
    sys.stderr.write(f"The worker {os.getpid()} waits for a debugger on 127.0.0.1:{port}.\n")
    sys.stderr.flush()
    debugpy.wait_for_client()
    # It stops where a client is attached and does nothing otherwise.
    sys.breakpointhook = debugpy.breakpoint


def _trust(bundle: str) -> None:
    """Let certifi return `bundle`.

    azure-servicebus and others trust certifi's certificates alone, unless the function passes others. In Azure they
    need no others, so the sandbox must not demand it.
    """
    with contextlib.suppress(ModuleNotFoundError):
        certifi = importlib.import_module("certifi")
        certifi.where = lambda: bundle  # type: ignore[attr-defined]


def _pass_breakpoint(*_: object, **__: object) -> None:
    """Do not start pdb, which would read from a closed standard input and fail the invocation."""
    logging.getLogger("sandbox.worker").warning(
        "breakpoint() is passed over: no debugger is attached. Start the sandbox with --debug."
    )


def _main(app_root: Path, protocol_folder: Path, packages: Path, runtime: str, debug_port: str) -> None:
    # Standard output is the protocol's: what the function prints goes where errors go, and the host shows it.
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    # The folder of this script must not be importable for the function; isolated mode leaves it out already.
    own = [str(app_root)]
    if has_own_packages(app_root):
        own.append(str(app_root / _APP_PACKAGES))
        sys.meta_path.append(_Lender(packages))
    sys.path[:0] = own
    sys.breakpointhook = _pass_breakpoint
    if bundle := os.environ.get("SSL_CERT_FILE"):
        _trust(bundle)
    if debug_port:
        _wait_for_debugger(int(debug_port))
    worker = _Worker(load_protocol(protocol_folder), runtime, requests, responses)
    logging.root.addHandler(_LogForwarder(worker))
    logging.root.setLevel(
        logging.DEBUG
        if os.environ.get("PYTHON_ENABLE_DEBUG_LOGGING", "").lower() in {"1", "true"}
        else logging.INFO
    )
    # Not asyncio.run: at its end it waits for what still runs.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(worker.run())
    _end()


if __name__ == "__main__":
    app, protocol, lent_packages, runtime_module, port = sys.argv[1:]
    _main(Path(app), Path(protocol), Path(lent_packages), runtime_module, port)
