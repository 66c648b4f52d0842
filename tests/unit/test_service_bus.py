from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus._pyamqp._encode import encode_payload
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
    ServiceBusError,
)
from hypothesis import given
from hypothesis import strategies as st

from shared.bounded_call import BoundedCalls
from shared.clock import Deadline, SystemClock
from shared.deadline_socket import CallTimeout, DeadlineTlsSocket, seconds_left
from shared.errors import (
    ClaimedWithoutInvoice,
    DataverseUnreachable,
    InvalidEvent,
    InvoiceRefused,
    InvoicingFailure,
    PublishFailed,
    RetryPolicy,
    ServiceBusUnavailable,
    TokenUnavailable,
)
from shared.invoice_created import invoice_created
from shared.message import PARKED_PROPERTIES, Delivery, RetryState
from shared.service_bus import (
    AmqpSender,
    LinkLimits,
    NotSent,
    Outgoing,
    ServiceBus,
    TooLarge,
    connect,
    encodable_properties,
)
from shared.settings import ConnectionString, Namespace
from tests.unit.conftest import INVOICE, OPPORTUNITY, SERVICE_BUS, URL, WIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure.core.credentials import TokenCredential

    from tests.unit.conftest import FakeClock, RecordingSender

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = "bm90LWEtcmVhbC1rZXk="
STATE = RetryState(
    "9@2026-03-01T12:00:30+00:00", "win-1", 2, 1, NOON, RetryPolicy.OUTAGE, NOON, NOON + timedelta(seconds=30)
)
UNREACHABLE = DataverseUnreachable("No connection.", request_id="r-1")
EVENT = invoice_created(INVOICE, dataverse_url=URL, correlation_id="c-1")
COMPACT = b'{"opportunityId": "x"}'
BOUND = 20.0


class Outbound:
    """Sends for one invocation, with the deadline of 240 seconds."""

    def __init__(self, sender: RecordingSender, clock: FakeClock) -> None:
        self.sender = sender
        self.clock = clock
        self.deadline = Deadline.after(clock, 240)
        self._service_bus = ServiceBus(sender, SERVICE_BUS, clock)

    def publish(self) -> None:
        self._service_bus.publish(EVENT, self.deadline)

    def schedule(self, due: datetime = NOON, compact: bytes | None = COMPACT, **changes: Any) -> None:  # noqa: ANN401
        self._service_bus.schedule(self._delivery(compact, changes), STATE, UNREACHABLE, due)

    def park(self, error: InvoicingFailure = UNREACHABLE, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the properties of the parked message."""
        self._service_bus.park(self._delivery(COMPACT, changes), error)
        return dict(self.the_only_one_sent("failed").properties)

    def the_only_one_sent(self, entity: str) -> Outgoing:
        ((to, outgoing),) = self.sender.sent
        assert to == entity
        return outgoing

    def _delivery(self, compact: bytes | None, changes: dict[str, Any]) -> Delivery:
        return Delivery(replace(WIN, **changes), STATE, self.deadline, OPPORTUNITY, compact)


@pytest.fixture
def outbound(sender: RecordingSender, clock: FakeClock) -> Outbound:
    return Outbound(sender, clock)


# ---------------------------------------------------------------------------------------------- publish


def test_an_event_is_published_as_it_was_written(outbound: Outbound) -> None:
    outbound.publish()
    assert outbound.the_only_one_sent("created") == Outgoing(
        EVENT.body,
        EVENT.message_id,
        "application/cloudevents+json; charset=utf-8",
        "c-1",
        f"opportunities/{OPPORTUNITY}/invoices/{INVOICE.id}",
        None,
        EVENT.application_properties,
    )


def test_an_event_that_is_not_taken_is_sent_again_under_the_same_id(
    outbound: Outbound, caplog: pytest.LogCaptureFixture
) -> None:
    outbound.sender.failures.extend([NotSent("x"), NotSent("x")])
    outbound.publish()
    tries = outbound.sender.tries
    assert len(tries) == 3
    assert all(attempt == tries[0] for attempt in tries)
    assert tries[0][1].message_id == EVENT.message_id
    assert caplog.messages == ["service bus: not sent to created: x"] * 2


def test_publishing_leaves_time_to_schedule_a_retry(outbound: Outbound) -> None:
    outbound.sender.always = NotSent("the broker did not respond in time")
    with pytest.raises(PublishFailed, match="not published: the broker did not respond in time"):
        outbound.publish()
    assert len(outbound.sender.tries) > 1
    assert 240 - outbound.deadline.remaining <= 40
    assert outbound.clock.sleeps, "it pauses between tries"


def test_an_event_that_is_too_large_is_not_tried_again(outbound: Outbound) -> None:
    outbound.sender.always = TooLarge("the broker takes no message of this size")
    with pytest.raises(PublishFailed, match="size"):
        outbound.publish()
    assert len(outbound.sender.tries) == 1


# ---------------------------------------------------------------------------------------------- schedule


def test_a_retry_is_the_message_with_its_retry_state(outbound: Outbound) -> None:
    integers = {"largest": 2**31 - 1, "smallest": -(2**31)}
    of_other_senders: dict[str, Any] = {**integers, "flag": True, "ratio": 0.5, "text": "ä"}
    of_a_replay = dict.fromkeys((*PARKED_PROPERTIES, "InvoicingReason"), "old")
    due = NOON + timedelta(minutes=1)
    outbound.schedule(
        due, body=b"body", properties={"InvoicingAttempt": 77, **of_a_replay, **of_other_senders}
    )
    assert outbound.the_only_one_sent("won") == Outgoing(
        b"body",
        STATE.message_id,
        "application/json",
        "correlation-1",
        "won",
        due,
        {**of_other_senders, **STATE.properties(UNREACHABLE)},
    )


def test_a_copy_that_is_too_large_carries_the_event_in_its_plain_form(
    outbound: Outbound, caplog: pytest.LogCaptureFixture
) -> None:
    outbound.sender.failures.append(TooLarge("x"))
    due = NOON + timedelta(minutes=1)
    outbound.schedule(due, content_type="text/odd", properties={"big": "x"})
    copy = outbound.the_only_one_sent("won")
    assert (copy.body, copy.content_type, copy.due) == (COMPACT, "application/json", due)
    assert copy.message_id == STATE.message_id
    assert copy.properties == STATE.properties(UNREACHABLE)
    assert caplog.messages == [
        "service bus: a message for won is too large and is sent without its own properties"
    ]


def test_without_a_plain_form_there_is_no_smaller_copy(outbound: Outbound) -> None:
    outbound.sender.always = TooLarge("x")
    with pytest.raises(ServiceBusUnavailable):
        outbound.schedule(compact=None)
    assert len(outbound.sender.tries) == 1


def test_a_copy_is_tried_until_the_deadline_and_then_left_to_the_broker(outbound: Outbound) -> None:
    outbound.sender.always = NotSent("OperationTimeoutError")
    with pytest.raises(ServiceBusUnavailable, match="Nothing could be sent to won: OperationTimeoutError"):
        outbound.schedule()
    assert 180 <= 240 - outbound.deadline.remaining < 240
    assert outbound.clock.sleeps[:6] == [1, 2, 4, 8, 15, 15], (
        "the pauses grow: the failed queue detects no duplicates"
    )
    tries = outbound.sender.tries
    assert all(attempt == tries[0] for attempt in tries)
    assert tries[0][1].properties == STATE.properties(UNREACHABLE)


# ---------------------------------------------------------------------------------------------- foreign properties


@pytest.mark.parametrize(
    "value",
    [2**31, -(2**31) - 1, "half a \ud800", None, b"bytes", ["x"], {"a": 1}, NOON],
    ids=["int", "negative int", "surrogate", "null", "bytes", "list", "object", "date"],
)
def test_a_property_that_cannot_be_sent_is_dropped_and_that_is_said(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert encodable_properties({"odd": value, "even": 2}, frozenset()) == {"even": 2}
    assert caplog.messages == [
        f"service bus: dropped a property of type {type(value).__name__} that cannot be sent"
    ]


def test_a_name_that_cannot_be_sent_is_dropped_too() -> None:
    assert encodable_properties({"half a \udfff": 1}, frozenset()) == {}


@given(
    st.dictionaries(
        st.text(st.characters()) | st.just("\ud800"),
        st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.just("x\udfff") | st.binary(),
        max_size=4,
    )
)
def test_the_library_can_encode_every_kept_property(properties: dict[str, object]) -> None:
    kept = cast("dict[str | bytes, Any]", encodable_properties(properties, frozenset()))
    message = ServiceBusMessage(b"", application_properties=kept)
    encode_payload(bytearray(), PyamqpTransport.to_outgoing_amqp_message(message.raw_amqp_message))


# ---------------------------------------------------------------------------------------------- park


def test_a_parked_message_is_the_message_with_the_reason_and_what_to_do(outbound: Outbound) -> None:
    outbound.park(
        body=b"body", properties={"flag": True, "DeadLetterReason": "old", "InvoicingRhythm": "long"}
    )
    assert outbound.the_only_one_sent("failed") == Outgoing(
        b"body",
        STATE.parked_message_id,
        "application/json",
        "correlation-1",
        "won",
        None,
        {
            "flag": True,
            "DeadLetterReason": "DataverseUnreachable",
            "DeadLetterErrorDescription": f"No connection. (request r-1) {UNREACHABLE.advice}",
            "InvoicingOriginalMessageId": "win-1",
            "InvoicingRoot": "win-1",
            "InvoicingAttempt": 2,
            "InvoicingFirstSeen": "2026-03-01T12:00:00+00:00",
        },
    )


def test_a_message_without_id_is_parked_too(outbound: Outbound) -> None:
    assert outbound.park(message_id=None)["InvoicingOriginalMessageId"] == ""


def test_a_long_description_is_cut_and_its_advice_is_kept_whole(outbound: Outbound) -> None:
    description = outbound.park(InvalidEvent("x" * 10_000))["DeadLetterErrorDescription"]
    assert len(description) == 4096
    assert description.endswith(f"x {InvalidEvent.advice}")


def test_a_message_that_is_too_large_to_park_loses_its_own_properties_and_words(outbound: Outbound) -> None:
    outbound.sender.failures.append(TooLarge("x"))
    error = ClaimedWithoutInvoice("x" * 10_000)
    properties = outbound.park(error, body=b"body", properties={"flag": True})
    assert outbound.the_only_one_sent("failed").body == b"body"
    assert "flag" not in properties
    assert properties["DeadLetterReason"] == "ClaimedWithoutInvoice"
    assert len(properties["DeadLetterErrorDescription"]) <= 300
    assert properties["DeadLetterErrorDescription"].endswith(ClaimedWithoutInvoice.advice)


def test_what_cannot_be_parked_at_all_is_left_to_the_broker(outbound: Outbound) -> None:
    outbound.sender.always = TooLarge("x")
    with pytest.raises(ServiceBusUnavailable, match="failed"):
        outbound.park(InvoiceRefused("No."))
    assert len(outbound.sender.tries) == 2


# ---------------------------------------------------------------------------------------------- the SDK's client


class FakeClient:
    """The SDK's client: it hangs where two threads use one of its senders."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ServiceBusMessage, float]] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.options: list[dict[str, object]] = []
        self.on_open: Callable[[], None] = nothing
        self.on_send: Callable[[], None] = nothing
        self.on_close: Callable[[], None] = nothing

    def get_queue_sender(self, entity: str, **options: object) -> FakeLink:
        self.options.append(options)
        return FakeLink(self, entity)


class FakeLink:
    def __init__(self, client: FakeClient, entity: str) -> None:
        self._client = client
        self._entity = entity
        self._inside = 0

    def __enter__(self) -> Self:
        self._client.on_open()
        self._client.opened.append(self._entity)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_messages(self, message: ServiceBusMessage, *, timeout: float) -> None:
        self._inside += 1
        assert self._inside == 1, "two threads would hang in the SDK"
        try:
            self._client.on_send()
            time.sleep(0.0001)
        finally:
            self._inside -= 1
        self._client.sent.append((self._entity, message, timeout))

    def close(self) -> None:
        self._client.closed.append(self._entity)
        self._client.on_close()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def sender_with(client: FakeClient, limits: LinkLimits | None = None) -> AmqpSender:
    return AmqpSender(lambda: cast("ServiceBusClient", client), limits=limits)


@pytest.fixture
def amqp(client: FakeClient) -> Iterator[AmqpSender]:
    amqp = sender_with(client)
    yield amqp
    amqp.close()


OUTGOING = Outgoing(b"", "m-1")


def in_time() -> Deadline:
    return Deadline.after(SystemClock(), BOUND)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another thread."""
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """A step that hangs until it is released."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.released.wait(BOUND)


def nothing() -> None:
    """Neither hang nor fail."""


def failing(*errors: Exception) -> Callable[[], None]:
    """Return a function that raises each of these once, and then does nothing."""
    left = list(errors)

    def fail() -> None:
        if left:
            raise left.pop(0)

    return fail


def test_a_message_reaches_the_sdk_whole(amqp: AmqpSender, client: FakeClient) -> None:
    due = NOON + timedelta(minutes=1)
    amqp.send("won", Outgoing(b"body", "m-1", "t/x", "c-1", "s", due, {"a": 1}), in_time())
    ((entity, message, timeout),) = client.sent
    assert entity == "won"
    assert 0 < timeout <= 15, "a default send may block for minutes"
    assert b"".join(cast("Any", message.body)) == b"body"
    assert (message.message_id, message.content_type) == ("m-1", "t/x")
    assert (message.correlation_id, message.subject) == ("c-1", "s")
    assert message.scheduled_enqueue_time_utc == due
    assert message.application_properties == {"a": 1}


def test_a_link_is_opened_once_and_used_by_one_thread_at_a_time(amqp: AmqpSender, client: FakeClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        for number in range(200):
            entity = ("won", "created")[number % 2]
            pool.submit(amqp.send, entity, Outgoing(b"", f"m-{number}"), in_time())
    assert {message.message_id for _, message, _ in client.sent} == {f"m-{n}" for n in range(200)}
    assert sorted(client.opened) == ["created", "won"]
    assert client.options == [{"keep_alive": 0}] * 2, "keep-alive is a thread that uses the same connection"
    amqp.close()
    eventually(lambda: sorted(client.closed) == ["created", "won"])
    amqp.send("won", OUTGOING, in_time())
    assert client.opened[2:] == ["won"], "it can be used again"


def test_a_send_runs_in_the_callers_thread_within_its_deadline(amqp: AmqpSender, client: FakeClient) -> None:
    """So that it keeps the context for tracing, and the sockets have the deadline."""
    seen: list[tuple[threading.Thread, float]] = []
    client.on_send = lambda: seen.append((threading.current_thread(), seconds_left()))
    amqp.send("won", OUTGOING, Deadline.after(SystemClock(), 7))
    ((thread, left),) = seen
    assert thread is threading.current_thread()
    assert 0 < left <= 7


def test_a_link_that_is_in_use_is_waited_for_until_the_deadline(amqp: AmqpSender, client: FakeClient) -> None:
    client.on_send = gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(amqp.send, "won", OUTGOING, in_time())
        assert gate.begun.wait(BOUND)
        with pytest.raises(NotSent, match="did not respond in time"):
            amqp.send("won", OUTGOING, Deadline.after(SystemClock(), 0.1))
        amqp.warm_up("won")
        client.on_send = nothing
        amqp.send("created", OUTGOING, in_time())
        assert [entity for entity, _, _ in client.sent] == ["created"], "the other entity is not concerned"
        gate.released.set()
        first.result(BOUND)


def test_an_opening_that_hangs_is_left_at_the_deadline_and_closed_when_it_comes_after_all(
    amqp: AmqpSender, client: FakeClient
) -> None:
    """Name resolution has no timeout."""
    client.on_open = gate = Gate()
    with pytest.raises(NotSent, match="did not respond in time"):
        amqp.send("won", OUTGOING, Deadline.after(SystemClock(), 0.1))
    client.on_open = nothing
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won"], "the next send opens a link of its own"
    gate.released.set()
    eventually(lambda: client.closed == ["won"])
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won", "won"]


def chained(attribute: str, other: Exception) -> Exception:
    error = ServiceBusError("x")
    setattr(error, attribute, other)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServiceBusError(f"amqps://…?sig={KEY}"), "ServiceBusError"),
        (OperationTimeoutError(message=KEY), "the broker did not respond in time"),
        (CallTimeout(KEY), "the broker did not respond in time"),
        (ClientAuthenticationError(message=KEY), "ClientAuthenticationError"),
        (ConnectionRefusedError(KEY), "ConnectionRefusedError"),
        (ssl.SSLError(KEY), "SSLError"),
        (ValueError(KEY), "ValueError"),
        (TypeError(KEY), "TypeError"),
        (KeyError(KEY), "KeyError"),
        (AttributeError(KEY), "AttributeError"),
        (ServiceBusError("x", error=TokenUnavailable("No token: 400.")), "No token: 400."),
        (chained("__cause__", TokenUnavailable("No token: 400.")), "No token: 400."),
        (chained("__context__", TokenUnavailable("No token: 400.")), "No token: 400."),
    ],
)
@pytest.mark.parametrize("stage", ["open", "send"])
def test_every_exception_of_the_sdk_is_our_own_and_says_its_kind_only(
    error: Exception,
    said: str,
    stage: str,
    amqp: AmqpSender,
    client: FakeClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its text can hold addresses with signatures; nothing there is a bug once the invoice has been made."""
    caplog.set_level(logging.DEBUG)
    setattr(client, f"on_{stage}", failing(error))
    with pytest.raises(NotSent) as raised:
        amqp.send("won", OUTGOING, in_time())
    assert str(raised.value) == said
    assert KEY not in caplog.text
    amqp.send("won", OUTGOING, in_time())


def test_a_message_of_a_size_that_the_broker_does_not_take(amqp: AmqpSender, client: FakeClient) -> None:
    amqp.send("won", OUTGOING, in_time())
    client.on_send = failing(MessageSizeExceededError(), MessageSizeExceededError())
    for _ in range(2):
        with pytest.raises(TooLarge):
            amqp.send("won", OUTGOING, in_time())
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won"], "the link is as good as before"


def test_a_link_that_cannot_be_opened_is_closed(amqp: AmqpSender, client: FakeClient) -> None:
    """Part of its connection may be open."""
    client.on_open = failing(ConnectionRefusedError())
    with pytest.raises(NotSent):
        amqp.send("won", OUTGOING, in_time())
    assert client.closed == ["won"]


def test_a_client_that_cannot_be_made_is_made_again(client: FakeClient) -> None:
    fail = failing(ConnectionRefusedError())

    def make() -> ServiceBusClient:
        fail()
        return cast("ServiceBusClient", client)

    amqp = AmqpSender(make)
    with pytest.raises(NotSent):
        amqp.send("won", OUTGOING, in_time())
    amqp.send("won", OUTGOING, in_time())
    assert len(client.sent) == 1


@pytest.mark.parametrize(("deadline", "most"), [(BOUND, 5), (4.0, 2)])
def test_a_link_that_was_used_before_is_waited_for_no_longer_than_five_seconds_or_half_of_what_is_left(
    deadline: float, most: float, amqp: AmqpSender, client: FakeClient
) -> None:
    """A broker takes a message in milliseconds, and a new link must still be possible."""
    amqp.send("won", OUTGOING, in_time())
    amqp.send("won", OUTGOING, Deadline.after(SystemClock(), deadline))
    _, (_, _, timeout) = client.sent
    assert 0 < timeout <= most


def test_a_link_that_broke_while_it_was_idle_is_replaced_at_once(
    amqp: AmqpSender, client: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shared")
    amqp.send("won", OUTGOING, in_time())
    client.on_send = failing(ServiceBusConnectionError(message="gone"))
    amqp.send("won", OUTGOING, in_time())
    assert len(client.sent) == 2
    assert client.opened == ["won", "won"]
    eventually(lambda: client.closed == ["won"])
    assert caplog.messages == ["service bus: a link broke and is replaced: ServiceBusConnectionError"]


@pytest.mark.parametrize("refusal", [ServiceBusAuthenticationError, ServiceBusAuthorizationError])
def test_another_token_is_fetched_where_the_broker_refuses_one(
    refusal: Callable[..., Exception], client: FakeClient
) -> None:
    """One that was revoked would otherwise be used until it expires."""
    renewed: list[float] = []
    amqp = AmqpSender(lambda: cast("ServiceBusClient", client), renew_token=renewed.append)
    client.on_send = failing(ServiceBusConnectionError(message="gone"), refusal(message="no"))
    with pytest.raises(NotSent):
        amqp.send("won", OUTGOING, in_time())
    assert renewed == [], "a broken connection says nothing of the token"
    with pytest.raises(NotSent, match=refusal.__name__):
        amqp.send("won", OUTGOING, in_time())
    (seconds,) = renewed
    assert 0 < seconds <= BOUND, "what is left of the try"
    amqp.send("won", OUTGOING, in_time())
    amqp.close()


def test_and_not_more_than_once(amqp: AmqpSender, client: FakeClient) -> None:
    amqp.send("won", OUTGOING, in_time())
    client.on_send = failing(*(ServiceBusConnectionError(message="gone") for _ in range(3)))
    for _ in range(2):
        with pytest.raises(NotSent):
            amqp.send("won", OUTGOING, in_time())
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won"] * 4, "a link is not used again after a failure"


def test_a_link_that_was_idle_for_long_is_closed_by_us_first(client: FakeClient) -> None:
    """Azure closes a connection after four minutes of silence."""
    assert LinkLimits().max_idle == 3 * 60
    for max_idle, opened in ((BOUND, 1), (0.0, 3)):
        client.opened.clear()
        client.closed.clear()
        amqp = sender_with(client, LinkLimits(max_idle=max_idle))
        for _ in range(3):
            amqp.send("won", OUTGOING, in_time())
        assert len(client.opened) == opened
        eventually(lambda opened=opened: len(client.closed) == opened - 1)  # type: ignore[misc]
        amqp.close()


def test_without_a_thread_to_close_a_link_its_sockets_are_closed(client: FakeClient) -> None:
    client.on_close = gate = Gate()
    amqp = sender_with(client, LinkLimits(closing=BoundedCalls("service bus closing", 1)))
    sockets = []
    for entity in ("won", "created"):
        amqp.send(entity, OUTGOING, in_time())
        link = amqp._links[entity]._link
        assert link is not None
        sockets.append(socket.socket())
        cast("list[socket.socket]", link.sockets).append(sockets[-1])
    amqp.close()
    assert [each.fileno() == -1 for each in sockets] == [False, True]
    eventually(lambda: client.closed == ["won"])
    gate.released.set()
    eventually(lambda: sockets[0].fileno() == -1)


def test_a_link_that_cannot_be_closed_in_good_order_is_gone_all_the_same(
    amqp: AmqpSender, client: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shared")
    client.on_close = failing(ValueError(KEY))
    amqp.send("won", OUTGOING, in_time())
    amqp.close()
    eventually(lambda: client.closed == ["won"])
    eventually(lambda: bool(caplog.messages))
    assert caplog.messages == ["service bus: a link was not closed in good order: ValueError"]


# ---------------------------------------------------------------------------------------------- warming up


def test_a_link_that_was_opened_ahead_is_used(amqp: AmqpSender, client: FakeClient) -> None:
    client.on_open = gate = Gate()
    amqp.warm_up("won")
    amqp.warm_up("won")
    assert client.opened == [], "it returns at once"
    gate.released.set()
    eventually(lambda: client.opened == ["won"])
    amqp.send("won", OUTGOING, in_time())
    amqp.warm_up("won")
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won"]


def test_a_send_waits_for_the_link_that_is_being_opened(amqp: AmqpSender, client: FakeClient) -> None:
    client.on_open = gate = Gate()
    amqp.warm_up("won")
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(amqp.send, "won", OUTGOING, in_time())
        amqp.warm_up("won")
        gate.released.set()
        sending.result(BOUND)
    assert client.opened == ["won"]


@pytest.mark.parametrize("when", ["before the send", "during the send"])
def test_an_opening_ahead_that_failed_does_not_concern_the_send(
    when: str, amqp: AmqpSender, client: FakeClient
) -> None:
    gate = Gate()

    def fail() -> None:
        gate()
        raise ConnectionRefusedError

    client.on_open = fail
    amqp.warm_up("won")
    assert gate.begun.wait(BOUND)
    client.on_open = nothing
    if when == "before the send":
        gate.released.set()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(amqp.send, "won", OUTGOING, in_time())
        gate.released.set()
        sending.result(BOUND)
    assert len(client.sent) == 1


def test_an_opening_ahead_that_hangs_takes_little_of_the_sends_time(client: FakeClient) -> None:
    amqp = sender_with(client, LinkLimits(warm_up=0.1))
    client.on_open = gate = Gate()
    amqp.warm_up("won")
    assert gate.begun.wait(BOUND)
    client.on_open = nothing
    amqp.send("won", OUTGOING, in_time())
    assert client.opened == ["won"]
    gate.released.set()
    eventually(lambda: client.closed == ["won"])


def test_without_a_thread_nothing_is_opened_ahead(client: FakeClient) -> None:
    amqp = sender_with(client, LinkLimits(opening=BoundedCalls("service bus connection", 1)))
    client.on_open = gate = Gate()
    amqp.warm_up("won")
    amqp.warm_up("created")
    gate.released.set()
    eventually(lambda: client.opened == ["won"])
    amqp.send("created", OUTGOING, in_time())
    assert client.opened == ["won", "created"]


def test_a_link_that_was_opened_ahead_long_ago_is_not_used(client: FakeClient) -> None:
    amqp = sender_with(client, LinkLimits(max_idle=0.0, warm_up=0.05))
    amqp.warm_up("won")
    eventually(lambda: client.opened == ["won"])
    until = amqp._links["won"]._warm_up_until
    eventually(lambda: time.monotonic() > until)
    amqp.warm_up("won")
    eventually(lambda: client.opened == ["won", "won"])
    eventually(lambda: client.closed == ["won"])
    amqp.close()


# ---------------------------------------------------------------------------------------------- connect


def no_credential(_: Namespace) -> TokenCredential:
    raise AssertionError("a key needs no identity")


def test_a_client_by_key() -> None:
    by_key = ConnectionString(f"Endpoint=sb://contoso/;SharedAccessKeyName=n;SharedAccessKey={KEY}")
    with connect(replace(SERVICE_BUS, connection=by_key), no_credential) as client:
        assert client.fully_qualified_namespace == "contoso"
        config = client._config
        sender: Any = client.get_queue_sender("won", keep_alive=0)
    assert isinstance(config.ssl_context, ssl.SSLContext), "what SSL_CERT_FILE names is trusted"
    assert config.ssl_context.sslsocket_class is DeadlineTlsSocket
    assert config.retry_total == 1, "one repeat recovers from a connection that was closed while idle"
    assert config.retry_backoff_factor == 0.1
    assert config.try_timeout == 15
    assert config.logging_enable is False, "the SDK would log every frame"
    assert sender._config.keep_alive == 0, "the SDK hands the option on"


def test_a_client_by_identity() -> None:
    namespace = Namespace("contoso.servicebus.windows.net", "client-1")
    asked: list[Namespace] = []

    def credential(namespace: Namespace) -> TokenCredential:
        """Return what is asked for no token before something is sent."""
        asked.append(namespace)
        return cast("TokenCredential", object())

    with connect(replace(SERVICE_BUS, connection=namespace), credential, retries=0) as client:
        assert client.fully_qualified_namespace == "contoso.servicebus.windows.net"
        assert client._config.retry_total == 0, "with options as for a key"
    assert asked == [namespace]
