"""Where Azure is more lenient than AMQP 1.0, or does what no documentation says, the emulator does the same."""

import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from amqp_client import AmqpClient, Refused, logged_in
from azure.core.exceptions import HttpResponseError
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusReceiveMode
from azure.servicebus.amqp import AmqpAnnotatedMessage
from azure.servicebus.exceptions import ServiceBusAuthenticationError
from azure.servicebus.management import ServiceBusAdministrationClient

from sandbox.service_bus import Broker, Message, ServiceBusServer
from sandbox.service_bus.amqp.encoding import Described, Symbol, ULong, decode, encode
from sandbox.service_bus.amqp.performatives import (
    SENDER,
    Accepted,
    Close,
    Disposition,
    Rejected,
    Source,
    Transfer,
)

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access

BODY = b"\x00\x53\x75\xa0\x04body"


def section(code: int, value: object) -> bytes:
    return encode(Described(ULong(code), value))


def sections(payload: bytes) -> dict[int, object]:
    """Return a message's sections by their codes."""
    found, at = {}, 0
    while at < len(payload):
        value, at = decode(payload, at)
        found[int(value.descriptor)] = value.value
    return found


# 1: delivery ids, and errors with three fields


def test_delivery_ids_may_come_out_of_order(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("plain")
        for delivery_id in (7, 3, 4, 9):
            client.write(Transfer(0, delivery_id, b"%d" % delivery_id, 0), BODY)
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


def test_an_error_has_all_three_fields(plain: "Access") -> None:
    """Microsoft's Python library reads the third one without checking."""
    with logged_in(plain.server.host, plain.server.port) as client:
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


# 2: a token for an entity that does not exist


def test_a_token_for_an_entity_that_does_not_exist_is_refused_with_404(access: "Access") -> None:
    with pytest.raises(ServiceBusAuthenticationError) as caught:
        access.sender("missing")
    assert "Status code: 404" in str(caught.value.inner_exception)
    assert "'test/missing' could not be found" in str(caught.value.inner_exception)


# 3, 4: the forms of a message


def test_delivery_annotations_may_stand_after_the_body(plain: "Access") -> None:
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(AmqpAnnotatedMessage(data_body=b"body", delivery_annotations={"mine": "kept"}))
    [message] = plain.receive(receiver)
    assert b"".join(message.body) == b"body"


def test_maps_with_binary_keys_are_accepted(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("plain")
        client.send(section(0x72, {b"x-opt-mine": 1}) + section(0x74, {b"key": "value"}) + BODY)
    [brokered] = plain.broker.peek("plain")
    assert brokered.message.application_properties == {"key": "value"}


@pytest.mark.parametrize("value", ["1.2345", "-0.001", "4294967295", "0.5"])
def test_a_decimal_is_one_when_it_is_received(plain: "Access", value: str) -> None:
    """Azure writes them in another layout than Microsoft's Python library, which misreads over 32 bits of digits."""
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(ServiceBusMessage("x", application_properties={"price": Decimal(value)}))  # type: ignore[dict-item]  # the SDK takes what it does not promise
    [message] = plain.receive(receiver)
    assert (message.application_properties or {})[b"price"] == Decimal(value)


# 5 to 9: what a receiver gets


def test_delivery_annotations_hold_the_lock_token_and_the_senders_own(plain: "Access") -> None:
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(AmqpAnnotatedMessage(data_body=b"body", delivery_annotations={"mine": "kept"}))
    [message] = plain.receive(receiver)
    raw = message.raw_amqp_message
    assert raw.delivery_annotations == {b"mine": b"kept", b"x-opt-lock-token": message.lock_token}


def test_without_a_lock_there_are_delivery_annotations_and_an_empty_delivery_tag(plain: "Access") -> None:
    plain.broker.send("plain", Message(b"x"))
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_receiver("plain", snd_settle_mode=1)
        client.give_credit(1)
        transfer, payload = client.receive()
    assert (transfer.delivery_tag, transfer.settled) == (b"", True)
    assert sections(payload)[0x71] == {}


def test_receive_and_delete_works_with_the_sdk(plain: "Access") -> None:
    plain.broker.send("plain", *(Message(b"%d" % number) for number in range(3)))
    receiver = plain.receiver(receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE)
    assert sorted(map(str, plain.receive(receiver, 3))) == ["0", "1", "2"]
    assert plain.broker.counts("plain").active == 0


def test_a_message_without_a_body_has_none(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("plain")
        client.send(section(0x74, {"key": "value"}))
        client.attach_receiver("plain", 1)
        client.give_credit(1, 1)
        _, payload = client.receive()
    assert sections(payload).keys() & {0x75, 0x76, 0x77} == set()


def test_several_data_sections_stay_several(plain: "Access") -> None:
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(AmqpAnnotatedMessage(data_body=[b"one", b"", b"two"]))
    [message] = plain.receive(receiver)
    assert list(message.body) == [b"one", b"", b"two"]


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


# 10: message ids


def test_a_message_without_an_id_gets_one(plain: "Access") -> None:
    sender, receiver = plain.sender(), plain.receiver()
    sender.send_messages(AmqpAnnotatedMessage(data_body=b"one"))
    sender.send_messages(ServiceBusMessage("two", message_id="mine"))
    first, second = plain.receive(receiver, 2)
    assert isinstance(first.message_id, str)
    assert len(first.message_id) == 32
    assert second.message_id == "mine"


# 11: rules of subscriptions; see also the JavaScript client


def request(client: AmqpClient, operation: str, body: Mapping[str, object]) -> tuple[int, object]:
    """Send a management request; return the status and the body of the response."""
    client.write(
        Transfer(10, 0, b"request", 0, settled=True),
        section(0x73, ["id", None, None, None, "here-11"])
        + section(0x74, {"operation": operation})
        + section(0x77, body),
    )
    found = sections(client.receive()[1])
    properties = found[0x74]
    assert isinstance(properties, dict)
    return properties["statusCode"], found[0x77]


def test_rules_are_listed_added_and_removed(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("news/Subscriptions/all/$management", 10)
        client.attach_receiver("news/Subscriptions/all/$management", 11)
        client.give_credit(100, 11)
        status, body = request(client, "com.microsoft:enumerate-rules", {"top": 100, "skip": 0})
        assert isinstance(body, dict)
        [listed] = body["rules"]
        rule = listed["rule-description"]
        assert (status, rule.descriptor, rule.value[0].descriptor) == (200, 0x13700000004, 0x1370000007)
        assert rule.value[2] == "$Default"
        blue = {"correlation-filter": {"label": "news", "properties": {"colour": "blue"}}}
        new = {"rule-name": "blue", "rule-description": blue}
        assert request(client, "com.microsoft:add-rule", new)[0] == 200
        assert request(client, "com.microsoft:add-rule", new)[0] == 409
        assert request(client, "com.microsoft:remove-rule", {"rule-name": "$default"})[0] == 200
        assert request(client, "com.microsoft:remove-rule", {"rule-name": "$default"})[0] == 404
        status, body = request(client, "com.microsoft:enumerate-rules", {"top": 100, "skip": 0})
        assert isinstance(body, dict)
        [described] = (each["rule-description"].value[0] for each in body["rules"])
        assert described.descriptor == 0x1370000009
        assert described.value == [None, None, None, None, "news", None, None, None, {"colour": "blue"}]
    for colour in ("blue", "red"):
        plain.broker.send("news", Message(b"x", subject="news", application_properties={"colour": colour}))
    assert plain.broker.counts("news/Subscriptions/all").active == 1


@pytest.mark.parametrize(
    ("description", "status"),
    [
        ({"sql-filter": {"expression": "colour = 'red'"}}, 200),
        ({"true-filter": {}}, 200),
        ({"false-filter": {}}, 200),
        ({"sql-filter": {"expression": "colour ="}}, 400),
        ({"correlation-filter": {}}, 400),
        ({}, 400),
        ({"true-filter": {}, "sql-rule-action": {"expression": "SET a = 1"}}, 501),
    ],
    ids=str,
)
def test_each_kind_of_rule_is_added_or_refused(
    plain: "Access", description: dict[str, object], status: int
) -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("news/Subscriptions/all/$management", 10)
        client.attach_receiver("news/Subscriptions/all/$management", 11)
        client.give_credit(100, 11)
        new = {"rule-name": "new", "rule-description": description}
        assert request(client, "com.microsoft:add-rule", new)[0] == status
        assert request(client, "com.microsoft:enumerate-rules", {"top": 1, "skip": 1})[0] == (
            200 if status == 200 else 204
        )


def test_only_subscriptions_have_rules(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("plain/$management", 10)
        client.attach_receiver("plain/$management", 11)
        client.give_credit(100, 11)
        assert request(client, "com.microsoft:enumerate-rules", {})[0] == 400


# 12: sessions


@pytest.mark.parametrize("session_id", ["mine", None])
def test_a_session_is_refused_with_a_text_about_sessions(plain: "Access", session_id: str | None) -> None:
    filters = {Symbol("com.microsoft:session-filter"): session_id}
    with (
        logged_in(plain.server.host, plain.server.port) as client,
        pytest.raises(Refused, match="not-implemented: The Service Bus emulator does not support sessions"),
    ):
        client.attach_receiver("plain", source=Source("plain", filter=filters))


def test_requests_about_sessions_are_refused_with_a_text_about_sessions(plain: "Access") -> None:
    with logged_in(plain.server.host, plain.server.port) as client:
        client.attach_sender("plain/$management", 10)
        client.attach_receiver("plain/$management", 11)
        client.give_credit(100, 11)
        assert request(client, "com.microsoft:get-message-sessions", {})[0] == 501


# 13: management over HTTP


def test_management_over_https_is_refused_with_a_text(
    broker: Broker, authority: trustme.CA, authority_file: Path, tls: "Access"
) -> None:
    """On the plain port and on that for AMQP over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ServiceBusServer(broker, https_context=context) as plain:
        for address in (f"{plain.host}:{plain.port}", f"{tls.server.host}:5671"):
            refused = administration_error(address, authority_file)
            assert refused.status_code == 501
            assert "The Service Bus emulator does not support HTTP" in str(refused)
        client = ServiceBusClient.from_connection_string(
            f"Endpoint=sb://{plain.host}:{plain.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )
        with client, client.get_queue_sender("plain") as sender:
            sender.send_messages(ServiceBusMessage("AMQP still works there"))


def administration_error(address: str, authority_file: Path) -> HttpResponseError:
    connection_string = (
        f"Endpoint=sb://{address};SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE"
    )
    with (
        ServiceBusAdministrationClient.from_connection_string(
            connection_string, connection_verify=str(authority_file), retry_total=0
        ) as client,
        pytest.raises(HttpResponseError) as caught,
    ):
        client.get_queue("plain")
    return caught.value


# 14: SASL


def test_the_mechanisms_are_azures(plain: "Access") -> None:
    for mechanism in ("MSSBCBS", "ANONYMOUS", "EXTERNAL"):
        with AmqpClient(plain.server.host, plain.server.port) as client:
            offered = client.log_in(mechanism).mechanisms
            assert offered.items == ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")
    with AmqpClient(plain.server.host, plain.server.port) as client, pytest.raises(Refused):
        client.log_in("SCRAM-SHA-256")
