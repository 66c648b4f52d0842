"""Serves the broker over AMQP 1.0, the protocol of Microsoft's client libraries.

`amqp` is the protocol engine. An asyncio loop in the server's own thread reads and writes the bytes. `client_socket`,
`client`, `links`, `nodes` and `dispatch` only translate between the two: the broker has the rules, and the
authenticator decides who may do what.
"""

import asyncio
import ipaddress
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sandbox.listener import Listener, UnexpectedTls, run_listening
from sandbox.service_bus.amqp import Limits
from sandbox.service_bus.authorization import Authenticator
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.client import Client, Services
from sandbox.service_bus.client_socket import ClientSocket, ConnectedClients
from sandbox.service_bus.dispatch import Dispatcher
from sandbox.service_bus.http_refusal import HttpRefusal
from sandbox.service_bus.interception import CarryOut, Interceptor
from sandbox.service_bus.links import PRODUCT
from sandbox.start_stop import StartStop

_CLOSE_WITHIN = 0.5
_START_WITHIN = 10.0
_STOP_WITHIN = 5.0

_LIMITS = Limits(
    container_id="sandbox-service-bus",
    # Microsoft's .NET client requires MSSBCBS.
    mechanisms=("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"),
    properties=PRODUCT,
    info=PRODUCT,
)

T = TypeVar("T")


class ServiceBusServer(StartStop):
    """Serves a broker's entities on one loopback address, plain or, with `ssl_context`, over TLS.

    `port` 0 takes a free port. Several servers may share one broker (plain and TLS). A new server for the same broker
    finds its messages and locks unchanged. `interceptor` decides how calls are carried out; faults use it. With
    `https_context`, a plain server refuses management over HTTPS with a text. The server is a context manager.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        authenticator: Authenticator | None = None,
        interceptor: Interceptor | None = None,
        https_context: ssl.SSLContext | None = None,
    ) -> None:
        self.broker = broker
        self.host = "127.0.0.1" if host == "localhost" else host
        if not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(f"the sandbox listens on loopback addresses only, not on {host}")
        self.port = port
        self.authenticator = authenticator or Authenticator(broker.configuration)
        self._ssl_context = ssl_context
        self._interceptor = interceptor or CarryOut()
        self._https_context = https_context
        self._clients: ConnectedClients
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._dispatcher: Dispatcher | None = None

    def __repr__(self) -> str:
        scheme = "amqps" if self._ssl_context else "amqp"
        return f"<ServiceBusServer {scheme}://{self.host}:{self.port} of {self.broker!r}>"

    def start(self) -> None:
        """Listen; return when the server accepts connections. Raises OSError if the port is not free."""
        if self._thread is not None:
            raise RuntimeError("the server was started already")
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: run_listening(self._serve(started)), name=f"service-bus-{self.host}", daemon=True
        )
        self._thread.start()
        try:
            self.port = started.result(_START_WITHIN)
        except BaseException:
            self._thread.join(_STOP_WITHIN)
            self._thread = None
            raise

    def stop(self) -> None:
        """Close every connection and the port, within seconds. The broker keeps its messages."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join(_STOP_WITHIN)
        if thread.is_alive():
            raise RuntimeError("the Service Bus server did not stop in time")

    def wake(self) -> None:
        """Check the broker's clock now: call it after moving that clock."""
        self._ask(Dispatcher.tick, None)

    def drop_connections(self) -> None:
        """Abort every connection without an AMQP close, as a broken network does; accept new ones."""
        self._ask(lambda _dispatcher: self._clients.abort(), None)

    def waiting_receivers(self, entity: str) -> int:
        """Return how many receivers are attached to an entity and ready for a message."""
        path = self.broker.path_of(entity)
        return self._ask(lambda dispatcher: dispatcher.waiting(path), 0)

    def _ask(self, what: Callable[[Dispatcher], T], otherwise: T) -> T:
        """Run `what` in the server's thread and return its result, or `otherwise` if the server is stopped."""
        loop, dispatcher = self._loop, self._dispatcher
        if self._thread is None or loop is None or dispatcher is None:
            return otherwise

        async def run() -> T:
            return what(dispatcher)

        return asyncio.run_coroutine_threadsafe(run(), loop).result(_STOP_WITHIN)

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        loop, clients = self._loop, ConnectedClients()
        self._clients = clients
        dispatcher = self._dispatcher = Dispatcher(self.broker, loop)
        services = Services(self.broker, dispatcher, self.authenticator, self._interceptor)

        def new_client() -> ClientSocket:
            return ClientSocket(loop, _LIMITS, lambda socket: Client(socket, services), clients)

        https = self._https_context
        is_plain = self._ssl_context is None
        unexpected_tls = UnexpectedTls(lambda: HttpRefusal(loop), https) if is_plain and https else None
        try:
            listener = Listener(loop, (self.host, self.port), new_client, self._ssl_context, unexpected_tls)
        except OSError as error:
            dispatcher.close()
            started.set_exception(error)
            return
        started.set_result(listener.port)
        await self._stopping.wait()
        await listener.close()
        dispatcher.close()
        await clients.close(_CLOSE_WITHIN)
