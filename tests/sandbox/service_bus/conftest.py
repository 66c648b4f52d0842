"""A broker with a clock that tests move, and a server for plain AMQP and one for TLS."""

import gc
import secrets
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import trustme
from amqp_client import AmqpClient
from azure.core.credentials import AccessToken
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
    ServiceBusSender,
)

from sandbox.clock import MovableClock
from sandbox.identity import Claims, InvalidToken
from sandbox.service_bus import (
    Authenticator,
    Broker,
    Configuration,
    Role,
    RoleAssignment,
    ServiceBusServer,
)

CLIENT_ID = "11111111-2222-3333-4444-555555555555"
KEY = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE"

ENTITIES = """
{"UserConfig": {"Namespaces": [{
  "Name": "test",
  "Queues": [
    {"Name": "plain", "Properties": {"LockDuration": "PT30S", "MaxDeliveryCount": 3}},
    {"Name": "other"},
    {"Name": "small", "Properties": {"MaxMessageSizeInKilobytes": 1}},
    {"Name": "deduplicated", "Properties": {
      "RequiresDuplicateDetection": true, "DuplicateDetectionHistoryTimeWindow": "PT10M"}},
    {"Name": "forwarding", "Properties": {
      "MaxDeliveryCount": 2, "DeadLetteringOnMessageExpiration": true, "ForwardDeadLetteredMessagesTo": "parked"}},
    {"Name": "parked", "Properties": {"MaxDeliveryCount": 2000}},
    {"Name": "aging", "Properties": {"DefaultMessageTimeToLive": "PT5M", "DeadLetteringOnMessageExpiration": true}},
    {"Name": "dropping", "Properties": {"DefaultMessageTimeToLive": "PT5M"}},
    {"Name": "onward", "Properties": {"ForwardTo": "plain"}},
  ],
  "Topics": [{
    "Name": "news",
    "Subscriptions": [
      {"Name": "all"},
      {"Name": "red", "Rules": [{"Name": "red", "Properties": {
        "FilterType": "Sql", "SqlFilter": {"SqlExpression": "colour = 'red' AND sys.Label LIKE 'n%'"}}}]},
      {"Name": "about", "Rules": [{"Name": "about", "Properties": {
        "FilterType": "Correlation", "CorrelationFilter": {"Label": "news", "Properties": {"colour": "blue"}}}}]},
    ]}],
  "AuthorizationRules": [
    {"Name": "RootManageSharedAccessKey", "PrimaryKey": "SAS_KEY_VALUE", "Rights": ["Manage"]},
    {"Name": "listener", "PrimaryKey": "bGlzdGVu", "Rights": ["Listen"]},
  ]}]}}
"""


class Credential:
    """A credential with one token for everything."""

    def __init__(self, token: str = "good") -> None:  # noqa: S107 - made up
        self._token = token

    def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
        """Return the token, as azure-identity's credentials do."""
        return AccessToken(self._token, int(time.time()) + 3600)


def verify_token(token: str, audiences: object) -> Claims:
    assert list(audiences) == ["https://servicebus.azure.net/"]  # type: ignore[call-overload]
    if token not in ("good", "without-role"):
        raise InvalidToken("signature")
    client_id = CLIENT_ID if token == "good" else "somebody-else"
    return Claims(client_id, "object", "tenant", "audience", datetime.now(UTC) + timedelta(hours=1))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def clock() -> MovableClock:
    """Give a clock that runs, so that the SDKs' view of lock times makes sense, and can be moved."""
    return MovableClock()


@pytest.fixture(scope="session")
def configuration() -> Configuration:
    return Configuration.parse(ENTITIES)


@pytest.fixture
def broker(configuration: Configuration, clock: MovableClock) -> Broker:
    return Broker(configuration, clock)


@pytest.fixture
def authenticator(configuration: Configuration) -> Authenticator:
    return Authenticator(
        configuration,
        verify_token=verify_token,
        role_assignments=[RoleAssignment(CLIENT_ID, Role.OWNER)],
    )


def free_address() -> str:
    """Return a loopback address on which port 5671 is free: SDKs with a token know no other port."""
    while True:
        address = f"127.{secrets.randbelow(255)}.{secrets.randbelow(255)}.{secrets.randbelow(254) + 1}"
        with socket.socket() as probe:
            if probe.connect_ex((address, 5671)) != 0:
                return address


@dataclass
class Access:
    """One server, and how clients access it. What is opened here is closed after the test."""

    server: ServiceBusServer
    broker: Broker
    clock: MovableClock
    new_client: Callable[..., ServiceBusClient]
    opened: ExitStack

    def client(self, *args: object, **options: object) -> ServiceBusClient:
        """Open a client."""
        return self.opened.enter_context(self.new_client(*args, **{**OPTIONS, **options}))

    @cached_property
    def one_client(self) -> ServiceBusClient:
        """Return the client that senders and receivers share."""
        return self.client()

    def sender(self, entity: str = "plain", client: ServiceBusClient | None = None) -> ServiceBusSender:
        """Open a sender to a queue or topic."""
        client = client or self.one_client
        return self.opened.enter_context(client.get_queue_sender(entity, keep_alive=0))

    def receiver(
        self,
        entity: str = "plain",
        subscription: str = "",
        client: ServiceBusClient | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ServiceBusReceiver:
        """Open a receiver of a queue or a topic's subscription."""
        client, options = client or self.one_client, {**RECEIVER_OPTIONS, **options}
        if subscription:
            return self.opened.enter_context(
                client.get_subscription_receiver(entity, subscription, **options)
            )
        return self.opened.enter_context(client.get_queue_receiver(entity, **options))

    def amqp_client(self) -> AmqpClient:
        """Connect with a client that sends the frames that a test names."""
        return AmqpClient(self.server.host, self.server.port)

    def advance(self, **duration: float) -> None:
        """Move the broker's time, and wake the server."""
        self.clock.advance(timedelta(**duration))
        self.server.wake()

    def connection_string(self, key: str = KEY) -> str:
        """Return the emulator's kind of connection string."""
        return f"Endpoint=sb://{self.server.host}:{self.server.port};{key};UseDevelopmentEmulator=true;"

    @staticmethod
    def receive(receiver: ServiceBusReceiver, count: int = 1) -> list[ServiceBusReceivedMessage]:
        """Receive so many messages, in as many responses as it takes; fail where they do not come."""
        received: list[ServiceBusReceivedMessage] = []
        deadline = time.monotonic() + 10
        while len(received) < count and time.monotonic() < deadline:
            received += receiver.receive_messages(count - len(received), max_wait_time=5)
        assert len(received) == count
        return received

    @staticmethod
    def eventually(condition: Callable[[], bool]) -> None:
        """Wait for what happens in another thread; fail where it does not."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


# Without retries an error is seen at once.
OPTIONS: dict[str, Any] = {"retry_total": 0, "retry_backoff_factor": 0.05}
# Without prefetching, or with `keep_alive`, the SDK has a thread for the link that takes up to a second to end.
RECEIVER_OPTIONS: dict[str, Any] = {"prefetch_count": 1, "keep_alive": 0}


@pytest.fixture
def plain(
    broker: Broker,
    authenticator: Authenticator,
    clock: MovableClock,
) -> Iterator[Access]:
    """Plain AMQP with the emulator's kind of connection string."""

    def new_client(key: str = KEY, **options: Any) -> ServiceBusClient:  # noqa: ANN401 - the SDK's
        return ServiceBusClient.from_connection_string(each.connection_string(key), **options)

    with ServiceBusServer(broker, authenticator=authenticator) as server, ExitStack() as opened:
        each = Access(server, broker, clock, new_client, opened)
        yield each


@pytest.fixture
def severed(plain: Access) -> Iterator[Access]:
    """Plain AMQP for tests that cut connections: the SDK then does not close its sockets, which is accepted here."""
    yield plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        plain.opened.close()
        del plain.new_client
        vars(plain).pop("one_client", None)
        gc.collect()


@pytest.fixture
def tls(
    broker: Broker,
    authenticator: Authenticator,
    clock: MovableClock,
    authority: trustme.CA,
    authority_file: Path,
) -> Iterator[Access]:
    """TLS on port 5671 with an identity's token, or with a connection string where a key is given."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    host = free_address()
    authority.issue_cert(host).configure_cert(context)
    server = ServiceBusServer(broker, host=host, port=5671, ssl_context=context, authenticator=authenticator)

    def new_client(key: str = "", token: str = "good", **options: Any) -> ServiceBusClient:  # noqa: ANN401, S107
        options["connection_verify"] = str(authority_file)
        if key:
            return ServiceBusClient.from_connection_string(f"Endpoint=sb://{host};{key}", **options)
        return ServiceBusClient(host, Credential(token), **options)

    with server, ExitStack() as opened:
        yield Access(server, broker, clock, new_client, opened)


@pytest.fixture(params=["plain", "tls"], ids=["plain with key", "TLS with token"])
def access(request: pytest.FixtureRequest) -> Access:
    """Plain AMQP with a key and TLS with a token: the same must be true of both."""
    each: Access = request.getfixturevalue(request.param)
    return each
