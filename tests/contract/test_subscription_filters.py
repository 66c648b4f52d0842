"""Tries the filters that docs/invoice-created.md shows, as they stand there, with Microsoft's client on the sandbox."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from published_event import validate_event
from repository import text

from sandbox.clock import SystemClock
from sandbox.service_bus import Broker, Configuration, InvalidConfiguration, ServiceBusServer
from shared.invoice import Invoice
from shared.invoice_created import InvoiceCreated, invoice_created

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = text("docs/invoice-created.md")
OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
OTHER_OPPORTUNITY = "a3bb189e-8bf9-4888-9912-ace4e6543002"


def event(number: int, opportunity: str, url: str) -> InvoiceCreated:
    created_on = datetime(2026, 2, 3, tzinfo=UTC)
    invoice_id = f"00000000-0000-4000-8000-{number:012}"
    invoice = Invoice(invoice_id, None, None, opportunity, None, None, None, None, created_on)
    return invoice_created(invoice, dataverse_url=url)


def as_version_2(message: InvoiceCreated) -> InvoiceCreated:
    properties = {**message.application_properties}
    properties["cloudEvents_type"] = properties["cloudEvents_type"].replace(".v1", ".v2")
    return replace(message, application_properties=properties)


def sql(expression: str) -> dict[str, Any]:
    return {"FilterType": "Sql", "SqlFilter": {"SqlExpression": expression}}


EVENTS = {
    "production": event(1, OPPORTUNITY, "https://contoso.crm4.dynamics.com"),
    "another opportunity": event(2, OTHER_OPPORTUNITY, "https://contoso.crm4.dynamics.com"),
    "test environment": event(3, OTHER_OPPORTUNITY, "https://contoso-test.crm4.dynamics.com"),
    "version 2": as_version_2(event(4, OTHER_OPPORTUNITY, "https://contoso.crm4.dynamics.com")),
}
SQL = [expression.strip() for expression in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)]
CORRELATION = [
    json.loads(block)
    for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    if "correlationFilter" in block
]
BY_PROPERTIES = {"Properties": CORRELATION[0]["correlationFilter"]["properties"]}
FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    (
        {"FilterType": "Correlation", "CorrelationFilter": BY_PROPERTIES},
        {"production", "another opportunity"},
    ),
    (sql(SQL[0]), EVENTS.keys() - {"version 2"}),
    (sql(SQL[1]), EVENTS.keys() - {"version 2", "test environment"}),
    (sql(SQL[2]), {"production"}),
]


def configuration(*rules: Mapping[str, Any]) -> Configuration:
    subscriptions = [
        {"Name": f"filtered-{number}", "Rules": [{"Name": "rule", "Properties": rule}]}
        for number, rule in enumerate(rules)
    ]
    topic = {"Name": "invoice-created", "Subscriptions": [{"Name": "audit"}, *subscriptions]}
    root = {"Name": "RootManageSharedAccessKey", "PrimaryKey": "SAS_KEY_VALUE", "Rights": ["Manage"]}
    namespace = {"Name": "sandbox", "Topics": [topic], "AuthorizationRules": [root]}
    return Configuration.parse(json.dumps({"UserConfig": {"Namespaces": [namespace]}}))


def test_the_page_shows_as_many_filters_as_are_tried_here() -> None:
    assert len(CORRELATION) + len(SQL) == len(FILTERS)


def test_the_filters_of_the_page_take_what_it_says() -> None:
    broker = Broker(configuration(*(rule for rule, _ in FILTERS)), SystemClock())
    with (
        ServiceBusServer(broker) as server,
        ServiceBusClient.from_connection_string(
            f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        ) as client,
        client.get_topic_sender("invoice-created") as sender,
    ):
        sender.send_messages(
            [
                ServiceBusMessage(
                    message.body,
                    message_id=message.message_id,
                    content_type=message.content_type,
                    subject=message.subject,
                    application_properties=dict(message.application_properties.items()),
                )
                for message in EVENTS.values()
            ]
        )
    names = {message.message_id: name for name, message in EVENTS.items()}

    def taken(subscription: str) -> set[str]:
        stored = broker.peek(f"invoice-created/Subscriptions/{subscription}", max_messages=10)
        return {names[message.message.message_id] for message in stored}

    assert taken("audit") == EVENTS.keys()
    for number, (rule, expected) in enumerate(FILTERS):
        assert taken(f"filtered-{number}") == expected, rule
    # What the client received is still the event of the contract (of which there is no version 2 yet).
    for stored in broker.peek("invoice-created/Subscriptions/filtered-1", max_messages=10):
        message = stored.message
        assert isinstance(message.body, bytes)
        validate_event(message.body, message.application_properties, message.content_type or "")


@pytest.mark.parametrize(
    "expression", ["cloudEvents_time > '2026-01-01' + 1", "sys.EnqueuedTimeUtc > 1", "newid() = '1'", "a = "]
)
def test_the_sandbox_refuses_a_filter_that_it_does_not_evaluate(expression: str) -> None:
    with pytest.raises(InvalidConfiguration):
        configuration(sql(expression))
