"""A TCP proxy in front of one of the sandbox's servers: faults of connections, for any protocol.

Its operation in the plan is `connect`, asked once per connection; the servers cause the faults of single calls.
Besides, a proxy can cut all connections that are open.
"""

import asyncio
import ipaddress
import socket
import struct
import threading
from concurrent.futures import Future
from typing import NoReturn

from sandbox.faults.plan import Dependency, Fault, FaultKind, FaultPlan
from sandbox.listener import Listener, run_listening
from sandbox.start_stop import StartStop

_NO_LINGER = struct.pack("ii", 1, 0)
_CHUNK = 64 * 1024
_DROP = 16
_START_WITHIN = 10.0
_CONNECT_WITHIN = 5.0
# A delay of nothing, for a connection without a fault.
_NO_FAULT = Fault(FaultKind.DELAY, seconds=0)


class TcpProxy(StartStop):
    """Passes connections on to `target` (host and port), unless the plan has a fault for them.

    `dependencies`: those for which the plan is asked, in this order; one port may serve two. Port 0 takes any free
    one.
    """

    def __init__(
        self,
        target: tuple[str, int],
        plan: FaultPlan,
        *dependencies: Dependency,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"the sandbox listens on loopback addresses only, not on {host}")
        self.target = target
        self.host = host
        self.port = port
        self._plan = plan
        self._dependencies = dependencies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carried: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    @property
    def address(self) -> str:
        """Host and port, as in a URL; valid after `start`."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Listen; returns when connections are accepted. Raises OSError where the port is taken."""
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: run_listening(self._serve(started)), name=f"proxy {self.target[1]}", daemon=True
        )
        self._thread.start()
        started.result(_START_WITHIN)

    def stop(self) -> None:
        """Cut everything and stop listening."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_START_WITHIN)

    def carries(self, peer: tuple[str, int]) -> bool:
        """Return whether a server's client, by its address, is this proxy: the connection came this way."""
        return peer in self._carried

    def cut(self) -> None:
        """Reset every connection that is open; new ones are taken."""
        assert self._loop is not None  # noqa: S101 - for the type checker: it is there once started
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(_START_WITHIN)

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            listener = Listener(self._loop, (self.host, self.port), self._new_connection)
        except OSError as error:
            started.set_exception(error)
            return
        self.port = listener.port
        started.set_result(None)
        await self._stopping.wait()
        await listener.close()
        # A connection that was just accepted is known once its task has begun.
        await asyncio.sleep(0)
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _new_connection(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._accepted)

    async def _cut(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a connection is a task
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._connection(reader, writer, self._fault())
        except (OSError, asyncio.CancelledError):
            # One side ended, a fault ends both, or the proxy stops. Python 3.11 would report the task of a connection
            # as an error if it ended canceled.
            _reset(writer)
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            writer.close()

    def _fault(self) -> Fault:
        about = f"connection to {self.target[0]}:{self.target[1]}"
        # The plan is asked for each name, so that each rule counts each connection.
        faults = [self._plan.strike(dependency, "connect", about) for dependency in self._dependencies]
        return next((fault for fault in faults if fault is not None), _NO_FAULT)

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault
    ) -> None:
        match fault.kind:
            case FaultKind.KILL:
                await asyncio.to_thread(self._plan.carry_out, FaultKind.KILL)
                raise ConnectionResetError
            case FaultKind.REFUSE:
                raise ConnectionResetError
            case FaultKind.SILENT if not fault.after:
                await self._silence(fault)
            case FaultKind.RESET if not fault.after and not fault.bytes:
                await reader.read(_CHUNK)
                raise ConnectionResetError
        await self._pass_on(reader, writer, fault)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault
    ) -> None:
        upstream, up = await asyncio.wait_for(asyncio.open_connection(*self.target), _CONNECT_WITHIN)
        own = up.get_extra_info("sockname")[:2]
        self._open.add(up)
        self._carried.add(own)
        directions = [
            asyncio.ensure_future(self._requests(reader, up, fault)),
            asyncio.ensure_future(self._responses(upstream, writer, fault)),
        ]
        try:
            done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in done:
                direction.result()
        finally:
            for direction in directions:
                direction.cancel()
            # Both exceptions are retrieved: asyncio reports an error that was never retrieved.
            await asyncio.gather(*directions, return_exceptions=True)
            self._open.discard(up)
            self._carried.discard(own)
            up.close()

    async def _requests(self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, fault: Fault) -> None:
        while data := await reader.read(_CHUNK):
            if fault.kind is FaultKind.DELAY:
                await self._pause(fault.seconds)
            if fault.kind is FaultKind.SWALLOW:
                continue
            up.write(data)
            await up.drain()

    async def _responses(
        self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault
    ) -> None:
        passed = 0
        while data := await upstream.read(_CHUNK):
            match fault.kind:
                case FaultKind.RESET | FaultKind.CUT | FaultKind.SILENT:
                    room = max(0, fault.bytes - passed)
                    writer.write(data[:room])
                    await writer.drain()
                    if len(data) > room:
                        await self._end(fault)
                        return
                case FaultKind.DRIBBLE:
                    await self._dribble(data, writer, fault.seconds)
                case FaultKind.SWALLOW:
                    pass
                case _:
                    writer.write(data)
                    await writer.drain()
            passed += len(data)

    async def _end(self, fault: Fault) -> None:
        if fault.kind is FaultKind.SILENT:
            await self._silence(fault)
        if fault.kind is FaultKind.RESET:
            raise ConnectionResetError

    async def _dribble(self, data: bytes, writer: asyncio.StreamWriter, seconds: float) -> None:
        drops = range(0, len(data), _DROP)
        for position in drops:
            writer.write(data[position : position + _DROP])
            await writer.drain()
            await self._pause(seconds / len(drops))

    async def _silence(self, fault: Fault) -> NoReturn:
        await self._pause(fault.seconds)
        raise ConnectionResetError

    async def _pause(self, seconds: float) -> None:
        """Wait, until the plan is cleared at most."""
        cleared = self._plan.cleared
        end = asyncio.get_running_loop().time() + seconds
        while not cleared() and (left := end - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110 - the plan is no part of asyncio
            await asyncio.sleep(min(left, 0.05))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, so that the other side gets a reset and not an end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
