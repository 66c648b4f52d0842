"""Where Azure is more lenient than AMQP 1.0, or does what no documentation says, the emulator does the same."""

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from amqp_client import AmqpClient, Refused, section, sections
from azure.core.exceptions import HttpResponseError
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.amqp import AmqpAnnotatedMessage
from azure.servicebus.exceptions import ServiceBusAuthenticationError
from azure.servicebus.management import ServiceBusAdministrationClient

from sandbox.service_bus import Broker, Message, ServiceBusServer
from sandbox.service_bus.amqp.performatives import SENDER, Accepted, Close, Disposition, Rejected, Transfer

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access


@pytest.fixture
def client(plain: "Access") -> Iterator[AmqpClient]:
    with plain.amqp_client() as client:
        yield client.log_in_with_key()


# Delivery ids, and errors with three fields


def test_delivery_ids_may_come_out_of_order(plain: "Access", client: AmqpClient) -> None:
    client.attach_sender("plain")
    for delivery_id in (7, 3, 4, 9):
        client.write(Transfer(0, delivery_id, b"%d" % delivery_id, 0), section(0x75, b"body"))
    settled: list[int] = []
    while len(settled) < 4:
        disposition = client.expect(Disposition)
        settled += range(disposition.first, (disposition.last or disposition.first) + 1)
        assert isinstance(disposition.state, Accepted)
    assert sorted(settled) == [3, 4, 7, 9]
    assert plain.broker.counts("plain").active == 4


def test_many_threads_renew_locks_through_one_receiver(plain: "Access") -> None:
    """The SDK sends their requests with delivery ids out of order."""
    plain.broker.send("plain", *(Message(b"x") for _ in range(20)))
    receiver = plain.receiver()
    messages = plain.receive(receiver, 20)
    with ThreadPoolExecutor(8) as pool:
        renewed = list(pool.map(receiver.renew_message_lock, messages))
    assert len(renewed) == 20


def test_an_error_has_all_three_fields(client: AmqpClient) -> None:
    """Microsoft's Python library reads the third one without checking."""
    client.attach_sender("plain")
    disposition = client.send(b"\xff\xff")
    assert isinstance(disposition.state, Rejected)
    assert disposition.state.error is not None
    assert disposition.state.error.info == {"product": "Service Bus emulator"}
    client.write(Disposition(SENDER, 0), channel=7)
    while not isinstance(performative := client.read()[0], Close):
        pass
    assert performative.error is not None
    assert performative.error.info == {"product": "Service Bus emulator"}


def test_a_token_for_an_entity_that_does_not_exist_is_refused_with_404(access: "Access") -> None:
    with pytest.raises(ServiceBusAuthenticationError) as caught:
        access.sender("missing")
    assert "Status code: 404" in str(caught.value.inner_exception)
    assert "'test/missing' could not be found" in str(caught.value.inner_exception)


# What a receiver gets


def test_a_decimal_is_one_when_it_is_received(plain: "Access") -> None:
    """Azure writes them in another layout than Microsoft's Python library, which misreads over 32 bits of digits."""
    sender, receiver = plain.sender(), plain.receiver()
    prices = {each: Decimal(each) for each in ("1.2345", "-0.001", "4294967295", "0.5")}
    sender.send_messages(ServiceBusMessage("x", application_properties=prices))  # type: ignore[arg-type]  # the SDK takes what it does not promise
    kept: Any = plain.receive(receiver)[0].application_properties
    assert kept == {name.encode(): price for name, price in prices.items()}


def test_delivery_annotations_hold_the_lock_token_and_the_senders_own(plain: "Access") -> None:
    """The SDK writes its own behind the body."""
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(AmqpAnnotatedMessage(data_body=b"body", delivery_annotations={"mine": "kept"}))
    [message] = plain.receive(receiver)
    assert b"".join(message.body) == b"body"
    annotations = message.raw_amqp_message.delivery_annotations
    assert annotations == {b"mine": b"kept", b"x-opt-lock-token": message.lock_token}


def test_without_a_lock_there_are_delivery_annotations_and_an_empty_delivery_tag(
    plain: "Access", client: AmqpClient
) -> None:
    plain.broker.send("plain", Message(b"x"))
    client.attach_receiver("plain", snd_settle_mode=1)
    client.give_credit(1)
    transfer, payload = client.receive()
    assert (transfer.delivery_tag, transfer.settled) == (b"", True)
    assert sections(payload)[0x71] == {}


def test_only_what_comes_over_management_has_a_state(plain: "Access") -> None:
    """Peeked messages and deferred ones that are received by their number."""
    plain.broker.send("plain", Message(b"x"))
    receiver = plain.receiver()
    [peeked] = receiver.peek_messages(1)
    [received] = plain.receive(receiver)
    assert received.sequence_number is not None
    receiver.defer_message(received)
    [deferred] = receiver.receive_deferred_messages([received.sequence_number])
    states = [
        (each.raw_amqp_message.annotations or {}).get(b"x-opt-message-state")
        for each in (peeked, received, deferred)
    ]
    assert states == [0, None, 1]


def test_a_message_without_an_id_gets_one(plain: "Access", client: AmqpClient) -> None:
    client.attach_sender("plain")
    client.send(section(0x75, b"one"))
    client.send(section(0x73, ["mine"]) + section(0x75, b"two"))
    first, second = plain.broker.receive("plain", 2)
    assert isinstance(first.message.message_id, str)
    assert len(first.message.message_id) == 32
    assert second.message.message_id == "mine"


# Rules of subscriptions; see also the JavaScript client


def test_rules_are_listed_added_and_removed(plain: "Access", client: AmqpClient) -> None:
    client.attach_node("news/Subscriptions/all/$management")
    properties, body = client.request("enumerate-rules", {"top": 100, "skip": 0})
    [listed] = body["rules"]
    rule = listed["rule-description"]
    assert (rule.descriptor, rule.value[0].descriptor) == (0x13700000004, 0x1370000007)
    assert rule.value[2] == "$Default"
    blue = {"correlation-filter": {"label": "news", "properties": {"colour": "blue"}}}
    new = {"rule-name": "blue", "rule-description": blue}
    for operation, rule, status in (
        ("add-rule", new, 200),
        ("add-rule", new, 409),
        ("remove-rule", {"rule-name": "$default"}, 200),
        ("remove-rule", {"rule-name": "$default"}, 404),
    ):
        assert client.request(operation, rule)[0]["statusCode"] == status
    properties, body = client.request("enumerate-rules", {"top": 100, "skip": 0})
    assert properties["statusCode"] == 200
    [described] = (each["rule-description"].value[0] for each in body["rules"])
    assert described.descriptor == 0x1370000009
    assert described.value == [None, None, None, None, "news", None, None, None, {"colour": "blue"}]
    for colour in ("blue", "red"):
        plain.broker.send("news", Message(b"x", subject="news", application_properties={"colour": colour}))
    assert plain.broker.counts("news/Subscriptions/all").active == 1


@pytest.mark.parametrize(
    ("description", "status", "listed"),
    [
        ({"sql-filter": {"expression": "colour = 'red'"}}, 200, 200),
        ({"true-filter": {}}, 200, 200),
        ({"false-filter": {}}, 200, 200),
        ({"sql-filter": {"expression": "colour ="}}, 400, 204),
        ({"correlation-filter": {}}, 400, 204),
        ({}, 400, 204),
        ({"true-filter": {}, "sql-rule-action": {"expression": "SET a = 1"}}, 501, 204),
    ],
    ids=str,
)
def test_each_kind_of_rule_is_added_or_refused(
    client: AmqpClient, description: dict[str, object], status: int, listed: int
) -> None:
    client.attach_node("news/Subscriptions/all/$management")
    new = {"rule-name": "new", "rule-description": description}
    assert client.request("add-rule", new)[0]["statusCode"] == status
    assert client.request("enumerate-rules", {"top": 1, "skip": 1})[0]["statusCode"] == listed


def test_only_subscriptions_have_rules(client: AmqpClient) -> None:
    client.attach_node("plain/$management")
    assert client.request("enumerate-rules", {})[0]["statusCode"] == 400


# Management over HTTP, and SASL


def test_management_over_https_is_refused_with_a_text(
    broker: Broker, authority: trustme.CA, authority_file: Path, tls: "Access"
) -> None:
    """On the plain port and on that for AMQP over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    key = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE"
    with ServiceBusServer(broker, https_context=context) as plain:
        for address in (f"{plain.host}:{plain.port}", f"{tls.server.host}:5671"):
            administration = ServiceBusAdministrationClient.from_connection_string(
                f"Endpoint=sb://{address};{key}", connection_verify=str(authority_file), retry_total=0
            )
            with administration, pytest.raises(HttpResponseError) as caught:
                administration.get_queue("plain")
            assert caught.value.status_code == 501
            assert "The Service Bus emulator does not support HTTP" in str(caught.value)
        client = ServiceBusClient.from_connection_string(
            f"Endpoint=sb://{plain.host}:{plain.port};{key};UseDevelopmentEmulator=true;"
        )
        with client, client.get_queue_sender("plain", keep_alive=0) as sender:
            sender.send_messages(ServiceBusMessage("AMQP still works there"))


def test_the_mechanisms_are_azures(plain: "Access") -> None:
    for mechanism in ("MSSBCBS", "ANONYMOUS", "EXTERNAL"):
        with plain.amqp_client() as client:
            offered = client.log_in(mechanism).mechanisms
            assert offered.items == ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")
    with plain.amqp_client() as client, pytest.raises(Refused):
        client.log_in("SCRAM-SHA-256")
