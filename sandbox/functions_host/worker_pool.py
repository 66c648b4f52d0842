"""A pool of worker processes, in which those that die are replaced."""

import itertools
import logging
import threading
import time
from collections.abc import Sequence

from sandbox.functions_host.functions import Function
from sandbox.functions_host.worker_process import START_TIMEOUT_SECONDS, App, WorkerDied, WorkerProcess

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_JOIN_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0


class WorkerPool:
    """Keeps `size` workers running: each that dies is replaced, ever more slowly while they die young."""

    def __init__(self, size: int, app: App, functions: Sequence[Function]) -> None:
        self._app = app
        self._functions = functions
        self._started: list[WorkerProcess] = []
        self._ready: list[WorkerProcess] = []
        self._failure: WorkerDied | None = None
        self._turn = itertools.count()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._keepers = [
            threading.Thread(target=self._keep, name=f"worker keeper {number}", daemon=True)
            for number in range(size)
        ]

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are ready."""
        with self._changed:
            return tuple(process.pid for process in self._alive())

    def start(self) -> None:
        """Start the workers; returns when one is ready, raises WorkerDied where the first one dies.

        With a debugger it returns at once: a worker gets ready when somebody attaches to it.
        """
        for keeper in self._keepers:
            keeper.start()
        if self._app.debug_port:
            return
        with self._changed:
            settled = self._changed.wait_for(lambda: self._ready or self._failure, 2 * START_TIMEOUT_SECONDS)
            failure = self._failure or WorkerDied("no worker got ready in time")
        if not settled or not self._ready:
            self.stop()
            raise failure

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait until a worker is ready, `timeout` seconds at most; returns whether one is."""
        with self._changed:
            self._changed.wait_for(lambda: self._alive() or self._stopping.is_set(), timeout)
            return bool(self._alive()) and not self._stopping.is_set()

    def take_turn(self, timeout: float) -> WorkerProcess | None:
        """Return the worker whose turn it is; None where none gets ready within `timeout` seconds."""
        with self._changed:
            alive = self._alive() if self.wait_until_ready(timeout) else []
            return alive[next(self._turn) % len(alive)] if alive else None

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
                keeper.join(_JOIN_SECONDS)

    def _alive(self) -> list[WorkerProcess]:
        return [process for process in self._ready if process.is_alive]

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            self._run_one()
            if time.monotonic() - started > 2 * _MAX_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self._stopping.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _run_one(self) -> None:
        with self._changed:
            if self._stopping.is_set():
                return
            process = WorkerProcess(self._app, self._functions)
            self._started.append(process)
        try:
            process.initialize()
            with self._changed:
                self._ready.append(process)
                self._changed.notify_all()
            _log.info("Worker %d is ready.", process.pid)
            while not process.wait(_WAIT_SECONDS):
                pass
        except WorkerDied as error:
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
