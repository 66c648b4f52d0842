"""What the unit tests put in place of time, network and Service Bus; everything goes in through constructors."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import requests
import trustme
from adapter_exchange import AdapterExchange
from requests.adapters import BaseAdapter

from shared.handler import Environment, Handler
from shared.invoice import Currency, Customer, Invoice
from shared.message import Message
from shared.service_bus import ServiceBus
from shared.settings import retry_settings, service_bus_settings
from shared.tracing import OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from shared.clock import Deadline
    from shared.message import Ignored
    from shared.service_bus import Outgoing
    from shared.settings import RetrySettings
    from shared.tracing import Tracing

    CheckEvent = Callable[[bytes, Mapping[str, object], str | None], None]

URL = "https://contoso.crm4.dynamics.com"
ORGANIZATION = "11111111-2222-3333-4444-555555555555"
OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
INVOICE = Invoice(
    id="0f8fad5b-d9cb-469f-a165-70867728950e",
    number="INV-01042",
    name="Coffee machines",
    opportunity_id=OPPORTUNITY,
    customer=Customer("account", "83883308-7ad5-ea11-a813-000d3a33f3b4"),
    total_amount=Decimal("1250.4"),
    currency=Currency("7d9a2d3b-31f5-4c4b-9a57-5d8e2b1c6f40", "EUR", 2),
    pricing_error_code=0,
    created_on=datetime(2026, 3, 1, 11, 59, tzinfo=UTC),
)
# Settings, and what is read from them.
APP_SETTINGS = {
    "ServiceBusConnection__fullyQualifiedNamespace": "contoso.servicebus.windows.net",
    "OPPORTUNITY_WON_QUEUE": "won",
    "OPPORTUNITY_WON_FAILED_QUEUE": "failed",
    "INVOICE_CREATED_TOPIC": "created",
    "DATAVERSE_URL": URL,
}
SERVICE_BUS = service_bus_settings(APP_SETTINGS)
RETRY = retry_settings({})


# ---------------------------------------------------------------------------------------------- time


class FakeClock:
    """Time that passes only when somebody sleeps or the test says so."""

    def __init__(self) -> None:
        self._passed = 0.0
        self._lock = threading.Lock()
        self.sleeps: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        with self._lock:
            return 1000.0 + self._passed

    def now(self) -> datetime:
        with self._lock:
            return datetime(2026, 3, 1, 12, 0, tzinfo=UTC) + timedelta(seconds=self._passed)

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        self.sleeps.append(seconds)
        self.on_sleep()

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._passed += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# ---------------------------------------------------------------------------------------------- messages

WIN = Message(
    body=b'{"opportunityId": "%s"}' % OPPORTUNITY.encode(),
    message_id="win-1",
    sequence_number=7,
    enqueued_at=datetime(2026, 3, 1, 11, 59, 58, tzinfo=UTC),
    content_type="application/json",
    correlation_id="correlation-1",
    subject="won",
    properties={},
)
ROOT = "7@2026-03-01T11:59:58+00:00"


@pytest.fixture
def make_message() -> Callable[..., Message]:
    """Return a function that makes a win's message; keyword arguments take the place of its values."""
    return partial(replace, WIN)


class RecordingSender:
    """Takes messages as the broker would; `failures` are raised first, one per try.

    What is sent to the topic must be an event as promised: `check_event` raises AssertionError otherwise.
    """

    def __init__(self, check_event: CheckEvent) -> None:
        self._check_event = check_event
        self.sent: list[tuple[str, Outgoing]] = []
        self.tries: list[tuple[str, Outgoing]] = []
        self.warmed_up: list[str] = []
        self.failures: deque[Exception] = deque()
        self.always: Exception | None = None

    def warm_up(self, entity: str) -> None:
        self.warmed_up.append(entity)

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        assert not deadline.passed, "nobody sends after the deadline"
        self.tries.append((entity, outgoing))
        if entity == SERVICE_BUS.invoice_created_topic:
            self._check_event(outgoing.body, outgoing.properties, outgoing.content_type)
        if self.always is not None:
            raise self.always
        if self.failures:
            raise self.failures.popleft()
        self.sent.append((entity, outgoing))


@pytest.fixture
def sender(published_event_checker: CheckEvent) -> RecordingSender:
    return RecordingSender(published_event_checker)


class Stage:
    """A handler, what it is given, and what it has done."""

    def __init__(
        self, clock: FakeClock, sender: RecordingSender, tracing: Tracing = OFF, retry: RetrySettings = RETRY
    ) -> None:
        self.clock = clock
        self.sender = sender
        self.sent = sender.sent
        self.outcome: Invoice | Ignored | Exception = INVOICE
        self.on_ensure_invoice: Callable[[str, Deadline], object] = lambda *_: None
        self.asked: list[str] = []
        self.random = 0.0
        self.handler = Handler(
            self._ensure_invoice,
            ServiceBus(sender, SERVICE_BUS, clock, tracing),
            Environment(URL, ORGANIZATION),
            retry,
            invocation_deadline=240,
            clock=clock,
            random=lambda: self.random,
            tracing=tracing,
        )

    def handle(
        self,
        *,
        traceparent: str | None = None,
        invocation_id: str | None = None,
        **changes: Any,  # noqa: ANN401 - as in dataclasses.replace
    ) -> None:
        """Handle a win with other values."""
        message = replace(WIN, **changes)
        self.handler.handle(message, traceparent=traceparent, invocation_id=invocation_id)

    def the_only_one_sent(self, entity: str) -> Outgoing:
        ((to, outgoing),) = self.sent
        assert to == entity
        return outgoing

    def delay(self, retry: Outgoing) -> float:
        """Return in how many seconds a retry is due."""
        assert retry.due is not None
        return (retry.due - self.clock.now()).total_seconds()

    def _ensure_invoice(self, opportunity_id: str, deadline: Deadline) -> Invoice | Ignored:
        self.asked.append(opportunity_id)
        self.on_ensure_invoice(opportunity_id, deadline)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def tracing() -> Tracing:
    """Return what records nothing; a test module that needs spans has a fixture of this name."""
    return OFF


@pytest.fixture
def stage(
    clock: FakeClock, sender: RecordingSender, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> Stage:
    """Return a handler whose invoices exist."""
    caplog.set_level(logging.INFO)
    return Stage(clock, sender, tracing)


# ---------------------------------------------------------------------------------------------- requests, in-process


@dataclass(frozen=True)
class Reply:
    """A response, or an exception, of an in-process server."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None


class FakeServer(BaseAdapter):
    """An in-process server: `requests` holds what came, `replies` what is returned, the last one for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[requests.PreparedRequest] = []
        self.options: list[dict[str, Any]] = []
        self.exchange = AdapterExchange("https://contoso.crm4.dynamics.com", self)
        self.replies: deque[Reply] = deque([Reply()])
        self.on_request: Callable[[], None] = lambda: None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]  # noqa: ANN401 - the library's signature
        self.requests.append(request)
        self.options.append(options)
        self.on_request()
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if reply.error is not None:
            raise copy(reply.error)  # one that was raised twice would be its own cause
        response = requests.Response()
        response.status_code = reply.status
        response.headers.update(reply.headers)
        response._content = reply.body
        response.url = request.url or ""
        response.request = request
        return response

    def close(self) -> None:
        """Nothing is open."""


class FixedTokens:
    """Gives `value`, or raises `error`; `renewals` are handed out for refused ones."""

    def __init__(self) -> None:
        self.value = "eyJ.the-token-nobody-may-see"
        self.error: Exception | None = None
        self.on_token: Callable[[], None] = lambda: None
        self.renewals: deque[str] = deque()
        self.refused: list[str] = []
        self.deadlines: list[Deadline] = []

    def token(self, deadline: Deadline) -> str:
        self.deadlines.append(deadline)
        self.on_token()
        if self.error is not None:
            raise self.error
        return self.value

    def renewed(self, refused: str, deadline: Deadline) -> str | None:
        self.refused.append(refused)
        self.deadlines.append(deadline)
        return self.renewals.popleft() if self.renewals else None


@pytest.fixture
def tokens() -> FixedTokens:
    return FixedTokens()


@pytest.fixture
def make_reply() -> Callable[..., Reply]:
    """Return the class of responses, to make some."""
    return Reply


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


# ---------------------------------------------------------------------------------------------- TLS on loopback


@dataclass(frozen=True)
class Request:
    """A request as it came over a socket; names of headers in lower case."""

    line: str
    headers: Mapping[str, str]
    body: bytes


class TlsServer:
    """Accepts TLS connections on loopback and does with each, in a thread of its own, what `serve` says."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self.serve: Callable[[socket.socket], None] = lambda connection: self.respond(connection, b"{}")
        self.requests: list[Request] = []
        self.connections = 0
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def read(self, connection: socket.socket) -> Request | None:
        """Read one request; None where the client has gone."""
        data = b""
        while b"\r\n\r\n" not in data:
            received = connection.recv(65536)
            if not received:
                return None
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            received = connection.recv(65536)
            if not received:
                return None
            body += received
        request = Request(line, headers, body)
        self.requests.append(request)
        return request

    def respond(self, connection: socket.socket, body: bytes, *headers: str, status: str = "200 OK") -> None:
        """Respond to every request on the connection."""
        while self.read(connection) is not None:
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
            connection.sendall("\r\n".join(lines).encode() + body)

    def dribble(self, connection: socket.socket, data: bytes) -> None:
        """Send `data` byte by byte, each in time for any read's own timeout, until somebody has enough."""
        with suppress(OSError):
            for number in range(len(data)):
                connection.sendall(data[number : number + 1])
                if self._stopped.wait(0.02):
                    return

    def tunnel(self, connection: socket.socket) -> None:
        """Be a proxy: take CONNECT, and pass on what comes from either side until one of them ends."""
        request = self.read(connection)
        if request is None:
            return
        host, _, port = request.line.split(" ")[1].partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self._open.append(upstream)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            others = {connection: upstream, upstream: connection}
            while True:
                for side in select.select(list(others), [], [])[0]:
                    received = side.recv(65536)
                    if not received:
                        return
                    others[side].sendall(received)

    def wait(self) -> None:
        """Stay silent until the test is over."""
        self._stopped.wait(60)

    def cut_off(self) -> None:
        self._stopped.set()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        # Closing alone would not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_off()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._start(self._connection, connection)

    def _connection(self, plain: socket.socket) -> None:
        self._open.append(plain)
        # ValueError: what was closed in between cannot be selected.
        with suppress(OSError, ValueError):
            connection = plain
            if self._context is not None:
                connection = self._context.wrap_socket(plain, server_side=True)
                self._open.append(connection)
            with connection:
                self.serve(connection)


@dataclass(frozen=True)
class Certificates:
    """An authority of the tests' own: its certificate as a file, and a server's context."""

    authority: Path
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("certificates") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return Certificates(path, context)


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[TlsServer]:
    """Run a server that nobody trusts without `trusted`."""
    server = TlsServer(certificates.server)
    yield server
    server.stop()


@pytest.fixture
def plain_server() -> Iterator[TlsServer]:
    """Run the same without TLS."""
    server = TlsServer(None)
    yield server
    server.stop()


@pytest.fixture
def trusted(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the tests' authority as companies that inspect TLS do."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
