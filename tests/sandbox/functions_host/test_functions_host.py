"""The host between a real queue and real workers, over sockets."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock
from sandbox.functions_host import FunctionsHost, WorkerDied
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.service_bus import (
    Authenticator,
    Broker,
    Configuration,
    EventKind,
    Message,
    Observation,
    Role,
    RoleAssignment,
    ServiceBusServer,
)
from sandbox.service_bus.messages import AmqpValue
from tests.sandbox.conftest import connection_string, wait_until
from tests.sandbox.functions_host.conftest import change_binding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.functions_host.trace_context import Span, SpanSink

QUEUE = "work"
TOPIC = "events"
ENTITIES = {
    "UserConfig": {
        "Namespaces": [
            {
                "Name": "test",
                "Queues": [{"Name": QUEUE, "Properties": {"LockDuration": "PT1M", "MaxDeliveryCount": 3}}],
                "Topics": [{"Name": TOPIC, "Subscriptions": [{"Name": "all"}]}],
            }
        ]
    }
}


class _Stage:
    """A broker with one queue, and a host that has the recorder receive from it."""

    def __init__(self, app: Path, folder: Path, stack: ExitStack) -> None:
        self.app = app
        self.folder = folder / "records"
        self.folder.mkdir()
        self.clock = MovableClock()
        self.broker = Broker(Configuration.parse(json.dumps(ENTITIES)), self.clock)
        self.observations: list[Observation] = []
        self.broker.observe(self.observations.append)
        self.server = stack.enter_context(ServiceBusServer(self.broker))
        self.export_span: SpanSink | None = None
        self._stack = stack
        self._host: FunctionsHost | None = None

    @property
    def host(self) -> FunctionsHost:
        assert self._host is not None
        return self._host

    def start(self, **settings: str) -> FunctionsHost:
        all_settings = {
            "QUEUE": QUEUE,
            "Bus": connection_string(self.server),
            "RECORDS": str(self.folder),
        } | settings
        all_settings = {name: value for name, value in all_settings.items() if value}
        self._host = self._stack.enter_context(
            FunctionsHost(self.app, all_settings, self.clock, export_span=self.export_span)
        )
        return self._host

    def send(self, body: bytes | dict[str, str] = b"hello", message: Message | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.broker.send(QUEUE, replace(message or Message(), body=content))

    def record_of(self, message: Message) -> dict[str, Any]:
        """Let the function complete one message; returns what it records."""
        self.start()
        self.broker.send(QUEUE, message)
        self.wait_for(EventKind.COMPLETED, 1)
        (record,) = self.records()
        return record

    def go(self) -> None:
        (self.folder / "go").touch()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def observed(self, kind: EventKind) -> int:
        return sum(observation.kind is kind for observation in list(self.observations))

    def wait_for(self, kind: EventKind, times: int) -> None:
        wait_until(lambda: self.observed(kind) >= times, f"{kind.name} {times} times")

    def move_clock(self, by: timedelta) -> None:
        self.clock.advance(by)
        self.server.wake()


@pytest.fixture
def stage(app: Path, tmp_path: Path) -> Iterator[_Stage]:
    with ExitStack() as stack:
        yield _Stage(app, tmp_path, stack)


WAITING = {"do": "wait", "for": "go"}


@pytest.mark.parametrize("body", ["hello", ""])
def test_a_message_is_completed_when_the_function_returns(stage: _Stage, body: str) -> None:
    assert stage.record_of(Message(body=body.encode()))["body"] == body
    assert stage.broker.counts(QUEUE).active == 0


def test_the_metadata_is_what_azures_host_sends(stage: _Stage) -> None:
    """Names, encodings and absences, as the real host has them."""
    properties = {"text": "ä", "number": 2**40, "truth": True, "half": 0.5}
    record = stage.record_of(
        Message(
            message_id="an-id",
            correlation_id="a-correlation",
            subject="a-subject",
            to="a-to",
            reply_to="a-reply-to",
            content_type="application/json",
            application_properties=properties,
        )
    )
    (locked,) = (seen for seen in stage.observations if seen.kind is EventKind.LOCKED)
    enqueued = locked.message.enqueued_at.replace(tzinfo=None)
    metadata = record["metadata"]
    # AMQP's timestamps have milliseconds.
    sent = datetime.fromisoformat(metadata.pop("EnqueuedTimeUtc"))
    assert abs(sent - enqueued) < timedelta(milliseconds=1)
    assert sent.tzinfo is None
    assert metadata == {
        "ApplicationProperties": properties,
        "UserProperties": properties,
        "MessageId": "an-id",
        "CorrelationId": "a-correlation",
        "Subject": "a-subject",
        "Label": "a-subject",
        "To": "a-to",
        "ReplyTo": "a-reply-to",
        "ContentType": "application/json",
        "DeliveryCount": 1,
        "SequenceNumber": locked.message.sequence_number,
        "LockToken": str(locked.message.lock_token),
        "ExpiresAtUtc": "9999-12-31T23:59:59.9999999",
    }
    assert record["enqueued_has_zone"] is False
    assert record["locked_until"] is None


def test_what_a_message_does_not_have_is_not_sent(stage: _Stage) -> None:
    assert stage.record_of(Message(message_id="an-id"))["metadata"].keys() == {
        "ApplicationProperties",
        "UserProperties",
        "MessageId",
        "DeliveryCount",
        "EnqueuedTimeUtc",
        "ExpiresAtUtc",
        "LockToken",
        "SequenceNumber",
    }


def test_a_time_to_live_ends_in_a_date_without_zone(stage: _Stage) -> None:
    expires = stage.record_of(Message(time_to_live=timedelta(hours=1)))["metadata"]["ExpiresAtUtc"]
    assert datetime.fromisoformat(expires).tzinfo is None


SENDERS_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"


@pytest.mark.parametrize("name", ["traceparent", "Diagnostic-Id"])
def test_the_function_gets_the_senders_trace_context_where_nobody_collects_spans(
    stage: _Stage, name: str
) -> None:
    """Without a collector, a span of the host would be a gap in the trace."""
    record = stage.record_of(Message(application_properties={name: SENDERS_TRACE}))
    assert record["traceparent"] == SENDERS_TRACE


def test_an_invocation_is_a_span_between_the_sender_and_the_function(stage: _Stage) -> None:
    spans: list[Span] = []
    stage.export_span = spans.append
    stage.start()
    stage.send(
        {"do": "fail"}, Message(message_id="an-id", application_properties={"traceparent": SENDERS_TRACE})
    )
    wait_until(lambda: len(spans) == 3, "three spans")
    trace, parent = SENDERS_TRACE.split("-")[1:3]
    assert {(span.trace_id, span.parent_id, span.name) for span in spans} == {
        (trace, parent, f"process {QUEUE}")
    }
    seen = [record["traceparent"] for record in stage.records()]
    assert seen == [f"00-{trace}-{span.span_id}-01" for span in spans]
    assert [span.attributes["messaging.servicebus.message.delivery_count"] for span in spans] == [1, 2, 3]
    assert {span.attributes["messaging.message.id"] for span in spans} == {"an-id"}
    assert all("ValueError: as requested" in span.error for span in spans)
    assert all(span.started_ns < span.ended_ns for span in spans)


def test_without_a_senders_trace_the_invocation_starts_one(stage: _Stage) -> None:
    spans: list[Span] = []
    stage.export_span = spans.append
    stage.record_of(Message(application_properties={"traceparent": "nonsense"}))
    wait_until(lambda: len(spans) == 1, "a span")
    assert (spans[0].parent_id, spans[0].error) == ("", "")
    assert len(spans[0].trace_id) == 32


def use_string(stage: _Stage) -> None:
    """Leave the data type out, as a function may whose author has not thought of it."""
    change_binding(stage.app, dataType=None)


def test_with_a_string_trigger_a_json_body_overwrites_the_metadata(stage: _Stage) -> None:
    """Like Azure's host: in any case of a name, and in .NET's spelling of the values."""
    use_string(stage)
    body = {
        "correlationid": 7,
        "Subject": True,
        "own": {"nested": [1]},
        "MessageId": None,
        "lockToken": ["a list"],
        "amount": 1.5,
    }
    record = stage.record_of(
        Message(body=json.dumps(body).encode(), message_id="an-id", correlation_id="a-correlation")
    )
    metadata = record["metadata"]
    assert json.loads(record["body"]) == body
    assert metadata["CorrelationId"] == "7"
    assert metadata["Subject"] == "True"
    assert metadata["own"] == {"nested": [1]}
    assert metadata["amount"] == "1.5"
    assert metadata["MessageId"] == "an-id"
    assert metadata["LockToken"] != ["a list"]
    assert "correlationid" not in metadata


@pytest.mark.parametrize(
    ("data_type", "body"),
    [
        ("string", b'{"deliveryCount": "anything"}'),
        ("string", b'{"userProperties": "anything"}'),
        ("string", AmqpValue(7)),
        ("binary", AmqpValue("text")),
    ],
)
def test_some_bodies_fail_before_the_function_runs(
    stage: _Stage, data_type: str, body: bytes | AmqpValue
) -> None:
    if data_type == "string":
        use_string(stage)
    stage.start()
    stage.broker.send(QUEUE, Message(body=body))
    wait_until(lambda: stage.broker.counts(QUEUE).dead_letter == 1, "dead-lettered")
    assert stage.records() == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[1]", "[1]"),
        (b"\xef\xbb\xbfwith a BOM", "with a BOM"),
        (b"not \xff UTF-8", "not \ufffd UTF-8"),
        (b"", ""),
        (AmqpValue("an AMQP value"), "an AMQP value"),
    ],
)
def test_with_a_string_trigger_any_text_arrives(stage: _Stage, body: bytes | AmqpValue, text: str) -> None:
    use_string(stage)
    assert stage.record_of(Message(body=body))["body"] == text


def test_a_function_receives_from_a_subscription(stage: _Stage) -> None:
    change_binding(stage.app, queueName=None, topicName=TOPIC, subscriptionName="all")
    stage.start()
    stage.broker.send(TOPIC, Message(body=b"to all"))
    stage.wait_for(EventKind.COMPLETED, 1)
    assert [record["body"] for record in stage.records()] == ["to all"]
    assert stage.broker.counts(f"{TOPIC}/Subscriptions/all").active == 0


V2_APP = """
import azure.functions as func

from record import main

app = func.FunctionApp()


@app.service_bus_queue_trigger(arg_name="message", connection="Bus", queue_name="%QUEUE%")
def from_queue(message: func.ServiceBusMessage, context: func.Context) -> None:
    main(message, context)


@app.service_bus_topic_trigger(
    arg_name="message",
    connection="Bus",
    topic_name="events",
    subscription_name="all",
    data_type=func.DataType.BINARY,
)
async def from_topic(message: func.ServiceBusMessage, context: func.Context) -> None:
    main(message, context)


@app.route(route="hello")
def hello(req: func.HttpRequest) -> str:
    return "hello"
"""


def test_an_app_of_the_v2_model_runs(stage: _Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Queue and topic, sync and async; what the host does not run is left out."""
    (stage.app / "record" / "function.json").unlink()
    (stage.app / "function_app.py").write_text(V2_APP)
    host = stage.start()
    assert {function.name for function in host.functions} == {"from_queue", "from_topic"}
    assert "does not run hello: " in caplog.text
    stage.send(b'{"CorrelationId": "from the body"}')
    stage.broker.send(TOPIC, Message(body=b'{"CorrelationId": "from the body"}', correlation_id="sent"))
    stage.wait_for(EventKind.COMPLETED, 2)
    assert {record["metadata"]["CorrelationId"] for record in stage.records()} == {"from the body", "sent"}


def test_a_v2_app_that_cannot_be_loaded_says_why(stage: _Stage) -> None:
    (stage.app / "function_app.py").write_text("import os\n\nos.environ['NO_SUCH_SETTING']\n")
    with pytest.raises(WorkerDied, match="does not load: KeyError: 'NO_SUCH_SETTING'"):
        stage.start()


def test_a_failed_invocation_is_abandoned_at_once_until_it_is_dead_lettered(stage: _Stage) -> None:
    stage.start()
    stage.send({"do": "fail"})
    wait_until(lambda: stage.broker.counts(QUEUE).dead_letter == 1, "dead-lettered")
    assert [record["metadata"]["DeliveryCount"] for record in stage.records()] == [1, 2, 3]
    (dead,) = stage.broker.peek(f"{QUEUE}/$DeadLetterQueue")
    assert dead.message.application_properties["DeadLetterReason"] == "MaxDeliveryCountExceeded"


def test_a_function_that_does_not_load_dead_letters_what_comes(
    stage: _Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (stage.app / "record" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    stage.start()
    for _ in range(4):
        stage.send()
    wait_until(lambda: stage.broker.counts(QUEUE).dead_letter == 4, "dead-lettered")
    assert stage.records() == []
    assert stage.observed(EventKind.ABANDONED) == 12
    executed = [record.getMessage() for record in caplog.records if record.name.endswith("message_processor")]
    assert len(executed) == 12
    assert all("Failed" in text and "broken" in text for text in executed)


def test_as_many_run_at_once_as_configured_and_no_more(stage: _Stage) -> None:
    stage.start()
    for _ in range(5):
        stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 3, "three running")
    # The fourth would be locked by now if it ever were: completing one makes room for exactly one.
    assert stage.broker.counts(QUEUE).locked == 3
    stage.go()
    stage.wait_for(EventKind.COMPLETED, 5)
    most = running = 0
    for seen in stage.observations:
        running += {EventKind.LOCKED: 1, EventKind.COMPLETED: -1, EventKind.RELEASED: -1}.get(seen.kind, 0)
        most = max(most, running)
    assert most == 3


def test_locks_are_renewed_while_the_function_runs(stage: _Stage) -> None:
    stage.start()
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 1, "running")
    for renewed in range(1, 5):
        stage.move_clock(timedelta(seconds=40))
        stage.wait_for(EventKind.LOCK_RENEWED, renewed)
    stage.go()
    stage.wait_for(EventKind.COMPLETED, 1)
    assert stage.observed(EventKind.LOCK_EXPIRED) == 0
    assert len(stage.records()) == 1


def test_locks_are_renewed_no_longer_than_configured(stage: _Stage) -> None:
    """Fifty seconds after its receipt a message's lock is left to expire; a later one's is still renewed."""
    stage.start(AzureFunctionsJobHost__extensions__serviceBus__maxAutoLockRenewalDuration="00:00:50")
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 1, "running")
    stage.move_clock(timedelta(seconds=40))
    stage.wait_for(EventKind.LOCK_RENEWED, 1)
    stage.move_clock(timedelta(seconds=20))
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 2, "both running")
    # Both locks are half over now; only the second one's message is young enough.
    stage.move_clock(timedelta(seconds=35))
    stage.wait_for(EventKind.LOCK_RENEWED, 2)
    renewed = [seen for seen in stage.observations if seen.kind is EventKind.LOCK_RENEWED]
    assert renewed[0].message.sequence_number != renewed[1].message.sequence_number
    stage.move_clock(timedelta(seconds=6))
    stage.wait_for(EventKind.LOCK_EXPIRED, 1)
    stage.go()
    wait_until(lambda: stage.broker.counts(QUEUE).active == 0, "completed")
    assert sorted(record["metadata"]["DeliveryCount"] for record in stage.records()) == [1, 1, 2]


def test_a_function_that_takes_too_long_is_ended_and_its_message_comes_again(stage: _Stage) -> None:
    stage.start(AzureFunctionsJobHost__functionTimeout="00:00:00.5")
    (first,) = stage.host.worker_pids
    stage.send(WAITING)
    wait_until(lambda: stage.host.worker_pids not in ((first,), ()), "another worker")
    assert stage.observed(EventKind.ABANDONED) == 0
    stage.go()
    stage.move_clock(timedelta(seconds=61))
    stage.wait_for(EventKind.COMPLETED, 1)
    one, two = stage.records()
    assert (one["pid"], one["metadata"]["DeliveryCount"]) == (first, 1)
    assert (two["pid"] != first, two["metadata"]["DeliveryCount"]) == (True, 2)


@pytest.mark.parametrize("death", ["killed", "exited"])
def test_the_messages_of_a_dead_worker_come_again_when_their_locks_expire(stage: _Stage, death: str) -> None:
    stage.start()
    (first,) = stage.host.worker_pids
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 1, "running")
    if death == "killed":
        os.kill(first, signal.SIGKILL)
    else:
        stage.send({"do": "die"})
    wait_until(lambda: stage.host.worker_pids not in ((first,), ()), "another worker")
    assert stage.observed(EventKind.ABANDONED) == 0
    assert stage.observed(EventKind.COMPLETED) == 0
    stage.go()
    stage.move_clock(timedelta(seconds=61))
    wait_until(lambda: stage.broker.counts(QUEUE).active == 0, "completed")
    assert stage.observed(EventKind.ABANDONED) == 0
    assert stage.observed(EventKind.LOCK_EXPIRED) == (1 if death == "killed" else 2)


def test_several_worker_processes_take_turns(stage: _Stage) -> None:
    stage.start(FUNCTIONS_WORKER_PROCESS_COUNT="2")
    wait_until(lambda: len(stage.host.worker_pids) == 2, "two workers")
    for number in range(1, 5):
        stage.send()
        stage.wait_for(EventKind.COMPLETED, number)
    pids = [record["pid"] for record in stage.records()]
    assert Counter(pids) == dict.fromkeys(stage.host.worker_pids, 2)


def test_a_disabled_function_gets_no_messages(stage: _Stage) -> None:
    stage.start(**{"AzureWebJobs.record.Disabled": "true"})
    stage.send()
    assert not stage.host._processors
    assert stage.broker.counts(QUEUE).locked == 0


# The client library leaves sockets that were cut to the garbage collector, which must find them here.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_it_receives_again_after_the_broker_was_away(stage: _Stage) -> None:
    stage.start()
    stage.send()
    stage.wait_for(EventKind.COMPLETED, 1)
    stage.server.drop_connections()
    stage.send()
    stage.wait_for(EventKind.COMPLETED, 2)
    stage.host.stop()
    gc.collect()


def test_stopping_lets_running_invocations_finish(stage: _Stage) -> None:
    host = stage.start()
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 1, "running")
    stopping = threading.Thread(target=host.stop)
    stopping.start()
    stage.go()
    stopping.join(10)
    assert not stopping.is_alive()
    assert stage.observed(EventKind.COMPLETED) == 1


def test_stopping_in_the_middle_of_a_call_leaves_nothing(stage: _Stage) -> None:
    host = stage.start()
    (pid,) = host.worker_pids
    stage.send(WAITING)
    wait_until(lambda: len(stage.records()) == 1, "running")
    host.stop()  # though the call would never end
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert stage.observed(EventKind.COMPLETED) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("processor", "worker"))]


@pytest.mark.parametrize("client_id", ["user-assigned", "system-assigned"])
def test_it_receives_over_tls_with_a_managed_identity(
    stage: _Stage, tmp_path: Path, free_loopback_address: str, client_id: str
) -> None:
    identity, authority = Identity.named("function"), TokenAuthority()
    certificates = CertificateAuthority(tmp_path)
    authenticator = Authenticator(
        stage.broker.configuration,
        verify_token=authority.verify,
        role_assignments=[RoleAssignment(identity.client_id, Role.RECEIVER, QUEUE)],
    )
    by_name = client_id == "user-assigned"
    identities = IdentityServer(authority, [identity] if by_name else [], None if by_name else identity)
    server = ServiceBusServer(
        stage.broker,
        host=free_loopback_address,
        port=5671,
        ssl_context=certificates.server_context(free_loopback_address),
        authenticator=authenticator,
    )
    with identities, server:
        host = stage.start(
            Bus="",
            Bus__fullyQualifiedNamespace=free_loopback_address,
            Bus__credential="managedidentity",
            **({"Bus__clientId": identity.client_id} if by_name else {}),
            **identities.settings,
            **certificates.settings,
        )
        stage.send()
        stage.wait_for(EventKind.COMPLETED, 1)
        host.stop()
