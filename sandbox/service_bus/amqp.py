"""The broker on the wire: AMQP 1.0 as Microsoft's client libraries speak it.

Apache Qpid Proton is the protocol engine, asyncio moves the bytes, in a thread of the server's own. This layer
only translates: every rule is the broker's, every right the authenticator's. `management` answers what the
SDKs ask of an entity's `$management` node. Sessions and transactions are refused, as is what is not AMQP.
"""

import asyncio
import ipaddress
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from proton import (
    Collector,
    Condition,
    Connection,
    Delivery,
    Endpoint,
    Event,
    Link,
    ProtonException,
    Receiver,
    Sender,
    Session,
    Terminus,
    Transport,
    symbol,
)

from sandbox.service_bus.authorization import Authenticator, Grant, entity_path
from sandbox.service_bus.broker import Broker, ReceiveMode
from sandbox.service_bus.codec import decode_message, decode_transfer, encode_message, encode_reply, owned
from sandbox.service_bus.configuration import Right
from sandbox.service_bus.errors import BrokerError, InvalidArgument, NotOffered, Unauthorized
from sandbox.service_bus.management import Answer, Management, bad_request
from sandbox.service_bus.messages import AmqpValue, BrokeredMessage, Message
from sandbox.service_bus.sasl import NotAmqp, Prelude

_LOG = logging.getLogger(__name__)

_CBS = "$cbs"
_MANAGEMENT = "$management"
_SESSION_FILTER = "com.microsoft:session-filter"
# As Azure: what a sender may have under way, and when its credit is topped up.
_CREDIT = 1000
_LOW_CREDIT = 500
_MAX_FRAME = 64 * 1024
_IDLE_SECONDS = 240.0
# The broker's clock may be moved by hand, which nobody tells the event loop.
_LOOK_AT_CLOCK = 0.25
_CLOSE_WITHIN = 0.5
_START_WITHIN = 10.0
_STOP_WITHIN = 5.0


class ServiceBusServer:
    """Serves a broker's entities on one loopback address, plain or, with `ssl_context`, over TLS.

    `port` 0 takes a free one. Several servers may share one broker (plain and TLS), and a new server over the
    same broker finds its messages and locks as they were. Usable as a context manager.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        self.broker = broker
        self.host = "127.0.0.1" if host == "localhost" else host
        if not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(f"the sandbox listens on loopback addresses only, not on {host}")
        self.port = port
        self.authenticator = authenticator or Authenticator(broker.configuration)
        self._ssl_context = ssl_context
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._dispatcher: _Dispatcher | None = None

    def __repr__(self) -> str:
        scheme = "amqps" if self._ssl_context else "amqp"
        return f"<ServiceBusServer {scheme}://{self.host}:{self.port} of {self.broker!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; return when connections are taken. Raises OSError where the port is not free."""
        if self._thread is not None:
            raise RuntimeError("the server was started already")
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name=f"service-bus-{self.host}", daemon=True
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
        """Look at the broker's clock now: call it after moving that clock."""
        self._soon(lambda dispatcher: dispatcher.tick())

    def drop_connections(self) -> None:
        """Cut every connection without a word, as a broken network does; new ones are taken."""
        self._soon(lambda dispatcher: dispatcher.drop())

    def _soon(self, what: "Callable[[_Dispatcher], None]") -> None:
        """Run something in the server's thread and wait until it is done."""
        loop, dispatcher = self._loop, self._dispatcher
        if self._thread is None or loop is None or dispatcher is None:
            return
        done: Future[None] = Future()

        def run() -> None:
            what(dispatcher)
            done.set_result(None)

        loop.call_soon_threadsafe(run)
        done.result(_STOP_WITHIN)

    async def _serve(self, started: "Future[int]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        dispatcher = self._dispatcher = _Dispatcher(self.broker, self.authenticator, self._loop)
        try:
            listener = await self._loop.create_server(
                lambda: _Connection(dispatcher), self.host, self.port, ssl=self._ssl_context, backlog=256
            )
        except OSError as error:
            dispatcher.close()
            started.set_exception(error)
            return
        started.set_result(listener.sockets[0].getsockname()[1])
        await self._stopping.wait()
        listener.close()
        dispatcher.close()
        await dispatcher.all_gone(_CLOSE_WITHIN)
        await listener.wait_closed()


class _Dispatcher:
    """Hands the broker's messages to the links that have credit, in turns; lives in the server's thread."""

    def __init__(self, broker: Broker, authenticator: Authenticator, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.authenticator = authenticator
        self.management = Management(broker)
        self.loop = loop
        self.connections: set[_Connection] = set()
        self._outlets: dict[str, deque[_Outlet]] = {}
        self._woken: set[str] = set()
        self._woken_lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone = asyncio.Event()
        self._no_more_wakes = broker.on_available(self._note)
        self.arm()

    def _note(self, path: str) -> None:
        """Take note, in any thread, that there may be something to hand out."""
        with self._woken_lock:
            if not self._woken:
                self.loop.call_soon_threadsafe(self._hand_out_woken)
            self._woken.add(path)

    def _hand_out_woken(self) -> None:
        with self._woken_lock:
            paths, self._woken = self._woken, set()
        for path in paths:
            self.hand_out(path)
        self.arm()

    def gone(self, connection: "_Connection") -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._all_gone.set()

    def add(self, outlet: "_Outlet") -> None:
        self._outlets.setdefault(outlet.path, deque()).append(outlet)

    def remove(self, outlet: "_Outlet") -> None:
        ring = self._outlets.get(outlet.path)
        if ring and outlet in ring:
            ring.remove(outlet)

    def hand_out(self, path: str) -> None:
        """Give messages to the entity's links, one each in turn, until credit or messages end."""
        ring = self._outlets.get(path)
        touched: set[_Connection] = set()
        without = 0
        while ring and without < len(ring):
            outlet = ring[0]
            ring.rotate(-1)
            if not outlet.wants():
                without += 1
                continue
            try:
                received = self.broker.receive(path, 1, outlet.mode)
            except BrokerError as error:
                outlet.connection.refuse(outlet.link, error)
                ring.remove(outlet)
                touched.add(outlet.connection)
                continue
            if not received:
                break
            outlet.deliver(received[0])
            touched.add(outlet.connection)
            without = 0
        for connection in touched:
            connection.flush()

    def tick(self) -> None:
        """Let the broker do what is due, and wake again for the next."""
        self.broker.catch_up()
        self.arm()

    def arm(self) -> None:
        """Wake when the broker has something due next; before, in case its clock is moved."""
        if self._closed:
            return
        due = self.broker.next_event()
        wait = _LOOK_AT_CLOCK
        if due is not None:
            wait = min(wait, max(0.0, (due - self.broker.clock.now()).total_seconds()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(wait, self.tick)

    def drop(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def close(self) -> None:
        self._closed = True
        self._all_gone.clear()
        self._no_more_wakes()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self.connections):
            connection.close("amqp:connection:forced", "The sandbox's Service Bus is shutting down.")

    async def all_gone(self, within: float) -> None:
        """Wait until every connection has ended; cut those that do not."""
        if not self.connections:
            return
        self.loop.call_later(within, self.drop)
        await self._all_gone.wait()


class _Outlet:
    """A link on which a client receives from an entity."""

    def __init__(self, connection: "_Connection", link: Sender, path: str, mode: ReceiveMode) -> None:
        self.connection = connection
        self.link = link
        self.path = path
        self.mode = mode

    def wants(self) -> bool:
        return self.link.credit > 0 and not self.connection.is_congested

    def deliver(self, brokered: BrokeredMessage) -> None:
        """Send a message; its delivery tag is the lock token, as the SDKs expect."""
        token = brokered.lock_token
        delivery = self.link.delivery((token or UUID(int=0)).bytes_le)  # type: ignore[arg-type]
        delivery.lock_token = token
        self.link.stream(encode_message(brokered))
        self.link.advance()
        if token is None:
            delivery.settle()


class _Connection(asyncio.Protocol):
    """One client: bytes to Proton's engine, its events to the broker, and back."""

    def __init__(self, dispatcher: _Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._broker = dispatcher.broker
        self._prelude = Prelude(self._plain)
        self._wire: asyncio.Transport | None = None
        self._grants: list[Grant] = []
        self._outlets: dict[Link, _Outlet] = {}
        self._nodes: dict[Link, str] = {}
        self._replies: dict[str, Sender] = {}
        self._heartbeat: asyncio.TimerHandle | None = None
        self.is_congested = False
        self._collector: Any = Collector()
        self._engine: Any = Transport(Transport.SERVER)
        self._engine.idle_timeout = _IDLE_SECONDS
        self._engine.max_frame_size = _MAX_FRAME
        self._connection: Any = Connection()
        self._connection.collect(self._collector)
        self._engine.bind(self._connection)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._wire = transport
        self._dispatcher.connections.add(self)

    def data_received(self, data: bytes) -> None:
        with self._aborting_on_error():
            if not self._prelude.done:
                try:
                    answer, data = self._prelude.feed(data)
                except NotAmqp as error:
                    self._write(error.answer)
                    self._hang_up()
                    return
                self._write(answer)
            self._push(data)
            self._dispatcher.arm()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        with self._aborting_on_error():
            self.flush()
            for outlet in list(self._outlets.values()):
                self._dispatcher.hand_out(outlet.path)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Forget everything of the engine here, in its thread: Proton's objects must not be freed elsewhere."""
        self._wire = None
        self._dispatcher.gone(self)
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        for outlet in self._outlets.values():
            self._dispatcher.remove(outlet)
        self._outlets.clear()
        self._nodes.clear()
        self._replies.clear()
        if self._engine is not None:
            self._engine.unbind()
            self._collector.release()
            self._connection.free()
        self._engine = self._connection = self._collector = None

    # The engine

    def _push(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                capacity = self._engine.capacity()
                if capacity <= 0:
                    break
                chunk = view[:capacity]
                self._engine.push(bytes(chunk))
                view = view[len(chunk) :]
                self._dispatch_events()
        except ProtonException as error:
            _LOG.warning("a client broke the protocol: %s", error)
        self._dispatch_events()
        self.flush()

    def _dispatch_events(self) -> None:
        while self._collector is not None and (event := self._collector.peek()) is not None:
            event.dispatch(self)
            self._collector.pop()

    def flush(self) -> None:
        """Write what the engine has to say."""
        if self._engine is None or self._wire is None:
            return
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        now = self._dispatcher.loop.time()
        deadline = self._engine.tick(now)
        try:
            while not self.is_congested and (pending := self._engine.pending()) > 0:
                self._write(bytes(self._engine.peek(pending)))
                self._engine.pop(pending)
            ended = not self.is_congested and pending < 0
        except ProtonException:
            ended = True
        if ended:
            self._hang_up()
        elif deadline:
            self._heartbeat = self._dispatcher.loop.call_at(deadline, self._beat)

    def _beat(self) -> None:
        with self._aborting_on_error():
            self.flush()
            self._dispatch_events()

    def _write(self, data: bytes) -> None:
        if data and self._wire is not None and not self._wire.is_closing():
            self._wire.write(data)

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._wire is not None:
            self._wire.abort()

    def close(self, condition: str, description: str) -> None:
        """End the connection with an AMQP close, as the service does when a node of it restarts."""
        if self._connection is None or not self._prelude.done:
            self.abort()
            return
        self._connection.condition = Condition(condition, description)
        self._connection.close()
        self.flush()
        self._hang_up()

    @contextmanager
    def _aborting_on_error(self) -> Iterator[None]:
        """Let a mistake of ours end this connection, visibly, and no other."""
        try:
            yield
        except Exception:  # noqa: BLE001 - logged with its trace, and the client sees the connection break
            _LOG.exception("the Service Bus stand-in failed on a connection")
            self.abort()

    # Rights

    def _plain(self, user: str, password: str) -> None:
        self._grants += self._dispatcher.authenticator.plain(user, password)

    def _require(self, path: str, right: Right) -> None:
        now = self._dispatcher.authenticator.now()
        if not any(grant.covers(path, right, now) for grant in self._grants):
            names = " or ".join(str(each.name).capitalize() for each in Right if each & right)
            raise Unauthorized(
                f"Unauthorized access. '{names}' claim(s) are required to perform this operation. "
                f"Resource: '{path}'."
            )

    # Proton's events

    def on_connection_remote_open(self, event: Event) -> None:
        connection: Any = event.connection
        connection.container = "sandbox-service-bus"
        # The Python SDK reads the last fields of an open without looking whether they are there.
        connection.offered_capabilities = ["sandbox"]
        connection.desired_capabilities = ["sandbox"]
        connection.properties = {"product": "Service Bus stand-in"}
        connection.open()

    def on_session_remote_open(self, event: Event) -> None:
        session: Session = event.session  # type: ignore[assignment]
        session.open()

    def on_link_remote_open(self, event: Event) -> None:
        link: Any = event.link
        address = (link.remote_source if link.is_sender else link.remote_target).address or ""
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.properties = {"com.microsoft:max-message-batch-size": 256 * 1024}
        try:
            if link.is_receiver and link.remote_target.type == Terminus.COORDINATOR:
                raise NotOffered("transactions are not offered by the stand-in")
            path = entity_path(address)
            if path.lower() == _CBS or path.lower().split("/")[-1] == _MANAGEMENT:
                self._open_node(link, path)
            elif link.is_sender:
                self._open_outlet(link, path)
            else:
                self._open_inlet(link, path)
        except BrokerError as error:
            link.open()
            self.refuse(link, error)

    def _open_node(self, link: Any, path: str) -> None:  # noqa: ANN401 - Proton's objects carry no types
        if path.lower() != _CBS:
            entity = path.rpartition("/")[0]
            self._broker.path_of(entity)
            self._require(entity, Right.LISTEN | Right.SEND)
        self._nodes[link] = path
        if link.is_sender:
            self._replies[link.remote_target.address or path] = link
            link.open()
        else:
            link.open()
            link.flow(_CREDIT)

    def _open_outlet(self, link: Any, path: str) -> None:  # noqa: ANN401
        path = self._broker.path_of(path)
        self._require(path, Right.LISTEN)
        filters = link.remote_source.filter
        filters.rewind()
        if filters.next() and _SESSION_FILTER in (filters.get_object() or {}):
            raise NotOffered("sessions are not offered by the stand-in")
        # A receive of nothing tells whether the entity can be received from at all.
        self._broker.receive(path, 0)
        settled = link.remote_snd_settle_mode == Link.SND_SETTLED
        mode = ReceiveMode.RECEIVE_AND_DELETE if settled else ReceiveMode.PEEK_LOCK
        outlet = self._outlets[link] = _Outlet(self, link, path, mode)
        self._dispatcher.add(outlet)
        link.max_message_size = self._broker.max_message_size(path)
        link.open()

    def _open_inlet(self, link: Any, path: str) -> None:  # noqa: ANN401
        path = self._broker.path_of(path)
        self._require(path, Right.SEND)
        # A send of nothing tells whether the entity can be sent to at all.
        self._broker.send(path)
        self._nodes[link] = path
        link.max_message_size = self._broker.max_message_size(path)
        link.open()
        link.flow(_CREDIT)

    def refuse(self, link: Any, error: BrokerError) -> None:  # noqa: ANN401
        """End a link with an error."""
        link.condition = Condition(error.condition, str(error))
        link.close()
        self._forget(link)

    def on_link_flow(self, event: Event) -> None:
        link: Any = event.link
        if (outlet := self._outlets.get(link)) is not None:
            self._dispatcher.hand_out(outlet.path)
            if link.drain_mode:
                link.drained()

    def on_link_remote_close(self, event: Event) -> None:
        self._forget(event.link)
        _close(event.link)

    def on_link_remote_detach(self, event: Event) -> None:
        self._forget(event.link)
        _close(event.link)

    def on_session_remote_close(self, event: Event) -> None:
        for link in [*self._outlets, *self._nodes]:
            if link.session == event.session:
                self._forget(link)
        _close(event.session)

    def on_connection_remote_close(self, event: Event) -> None:
        _close(event.connection)

    def _forget(self, link: Any) -> None:  # noqa: ANN401
        """Stop using a link. The locks of what was delivered on it last until they expire, as in Azure."""
        outlet = self._outlets.pop(link, None)
        if outlet is not None:
            self._dispatcher.remove(outlet)
        self._nodes.pop(link, None)
        self._replies = {address: each for address, each in self._replies.items() if each != link}

    def on_delivery(self, event: Event) -> None:
        delivery: Any = event.delivery
        link: Any = event.link
        if link.is_sender:
            if delivery.updated and link in self._outlets:
                self._settle(self._outlets[link].path, delivery)
            elif delivery.updated:
                delivery.settle()
        elif delivery.aborted:
            delivery.settle()
        elif delivery.readable and not delivery.partial:
            encoded = link.recv(delivery.pending) or b""
            link.advance()
            self._received(link, delivery, encoded)
            if link.credit < _LOW_CREDIT:
                link.flow(_CREDIT - link.credit)

    def _received(self, link: Receiver, delivery: Any, encoded: bytes) -> None:  # noqa: ANN401
        """Take what a client sent: to an entity, or as a request to a node."""
        path = self._nodes.get(link)
        if path is None:
            delivery.settle()
            return
        try:
            last = path.rpartition("/")[2].lower()
            if last in (_CBS, _MANAGEMENT):
                self._answer(path, decode_message(encoded))
            else:
                self._broker.send(path, *decode_transfer(encoded), size=len(encoded))
        except BrokerError as error:
            _finish(delivery, Delivery.REJECTED, error)
        else:
            _finish(delivery, Delivery.ACCEPTED)

    def _settle(self, path: str, delivery: Any) -> None:  # noqa: ANN401
        """Carry out what a client decided about a message, and confirm it, or say why not."""
        token = delivery.lock_token
        state = delivery.remote_state
        if token is None or not state:
            if delivery.settled:
                delivery.settle()
            return
        try:
            self._decide(path, token, state, delivery.remote)
        except BrokerError as error:
            _finish(delivery, Delivery.REJECTED, error)
        else:
            _finish(delivery, state)
        delivery.lock_token = None

    def _decide(self, path: str, token: UUID, state: int, remote: Any) -> None:  # noqa: ANN401
        if state == Delivery.ACCEPTED:
            self._broker.complete(path, token)
        elif state == Delivery.RELEASED:
            self._broker.release(path, token)
        elif state == Delivery.REJECTED:
            condition = remote.condition
            info = {str(key): owned(value) for key, value in ((condition and condition.info) or {}).items()}
            reason = info.pop("DeadLetterReason", None)
            description = info.pop("DeadLetterErrorDescription", None)
            self._broker.dead_letter(path, token, reason, description, info)
        elif state == Delivery.MODIFIED:
            annotations = remote.annotations
            changed = {str(key): owned(value) for key, value in (annotations or {}).items()}
            if remote.undeliverable:
                self._broker.defer(path, token, changed)
            else:
                self._broker.abandon(path, token, changed)
        else:
            raise InvalidArgument(f"there is no outcome {state}")

    def _answer(self, node: str, request: Message) -> None:
        """Answer a request on the link that the client opened for answers."""
        if node.lower() == _CBS:
            answer: Answer = self._put_token(request), None
        else:
            entity = node.rpartition("/")[0]
            try:
                answer = self._dispatcher.management.answer(
                    entity, request, lambda right: self._require(entity, right)
                )
            except BrokerError as error:
                answer = bad_request(error), None
        link = self._replies.get(request.reply_to or "") or next(
            (each for each in self._replies.values() if self._nodes.get(each) == node), None
        )
        if link is None:
            raise InvalidArgument(f"there is no link for answers to {request.reply_to!r}")
        link.delivery(link.delivery_tag())
        properties, body = answer
        link.stream(encode_reply(body, correlation_id=request.message_id, properties=properties))
        link.advance()

    def _put_token(self, request: Message) -> dict[str, Any]:
        properties = request.application_properties
        token = request.body.value if isinstance(request.body, AmqpValue) else request.body
        try:
            if properties.get("operation") != "put-token" or not isinstance(token, str):
                raise InvalidArgument("$cbs takes put-token with a token as text")
            self._grants += self._dispatcher.authenticator.put_token(
                str(properties.get("type")), token, str(properties.get("name", ""))
            )
        except BrokerError as error:
            return bad_request(error, prefix="status-")
        return bad_request(None, prefix="status-")


def _finish(delivery: Any, state: int, error: BrokerError | None = None) -> None:  # noqa: ANN401
    if error is not None:
        delivery.local.condition = Condition(symbol(error.condition), str(error))
    delivery.update(state)
    delivery.settle()


def _close(endpoint: Any) -> None:  # noqa: ANN401
    if not endpoint.state & Endpoint.LOCAL_CLOSED:
        endpoint.close()
