"""The table in docs/sandbox.md of what the emulator refuses: each row is tried, and its text is the one that comes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from amqp_client import Refused

from sandbox.service_bus import Configuration, InvalidConfiguration, Message
from sandbox.service_bus.amqp import Condition
from sandbox.service_bus.amqp.encoding import Described, Symbol, ULong
from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    Attach,
    Close,
    Coordinator,
    Disposition,
    Rejected,
    Source,
    Target,
)

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access

DOCS = Path(__file__).parents[3] / "docs" / "sandbox.md"
_ACTION: dict[str, object] = {"expression": "SET a = 1"}
SESSION = Source("plain", filter={Symbol("com.microsoft:session-filter"): "mine"})


def rows() -> list[tuple[str, str]]:
    """Return the table's rows: what is requested, and the text."""
    part = DOCS.read_text().partition("\n## Service Bus\n")[2].partition("\n## ")[0]
    table = part.partition("| request | refused with |\n|---|---|\n")[2].partition("\n\n")[0]
    return [
        (line.split(" | ")[0][2:], line.split(" | ")[1][1:].removesuffix("` |"))
        for line in table.splitlines()
    ]


def session(access: "Access") -> str:
    with access.amqp_client() as client, pytest.raises(Refused) as refused:
        client.log_in_with_key().attach_receiver("plain", source=SESSION)
    return str(refused.value)


def javascript_session(access: "Access") -> str:
    with access.amqp_client() as client:
        client.log_in_with_key(properties={Symbol("product"): "MSJSClient"})
        client.write(Attach("in", 0, RECEIVER, source=SESSION, target=Target()))
        while not isinstance(close := client.read()[0], Close):
            pass
    return condition(close.error)


def condition(error: Condition | None) -> str:
    assert error is not None
    return f"{error.name}: {error.description}"


def coordinator(access: "Access") -> str:
    with access.amqp_client() as client, pytest.raises(Refused) as refused:
        client.log_in_with_key().attach_sender("", target=Coordinator())
    return str(refused.value)


def outcome_in_a_transaction(access: "Access") -> str:
    access.broker.send("plain", Message(b"x"))
    with access.amqp_client() as client:
        client.log_in_with_key().attach_receiver("plain")
        client.give_credit(1)
        transfer, _ = client.receive()
        transactional = Described(ULong(0x34), [b"transaction", Described(ULong(0x24), [])])
        client.write(Disposition(RECEIVER, transfer.delivery_id or 0, state=transactional))
        state = client.expect(Disposition).state
    assert isinstance(state, Rejected)
    return condition(state.error)


def management(access: "Access", operation: str, body: dict[str, object]) -> str:
    with access.amqp_client() as client:
        client.log_in_with_key().attach_node("news/Subscriptions/all/$management")
        properties, _ = client.request(operation, body)
    return f"{properties['statusCode']} {properties['statusDescription']}"


def rule(access: "Access", expression: str, action: dict[str, object] | None = None) -> str:
    description = {"sql-filter": {"expression": expression}, "sql-rule-action": action}
    return management(access, "add-rule", {"rule-name": "r", "rule-description": description})


def http(access: "Access") -> str:
    """Return the status and the body's first sentence; test_service_bus_like_azure.py has the client and TLS."""
    with access.amqp_client() as client:
        client.socket.sendall(b"GET /$Resources/queues HTTP/1.1\r\nHost: sandbox\r\n\r\n")
        head, _, body = client.end().decode().partition("\r\n\r\n")
    return f"{head.split()[1]} {body.partition('. ')[0]}."


def entities(**namespace: object) -> str:
    with pytest.raises(InvalidConfiguration) as invalid:
        Configuration.parse(json.dumps({"UserConfig": {"Namespaces": [{"Name": "n", **namespace}]}}))
    [problem] = invalid.value.problems
    return problem


def queue(**properties: object) -> str:
    return entities(Queues=[{"Name": "q", "Properties": properties}])


def rule_action() -> str:
    properties = {
        "FilterType": "Sql",
        "SqlFilter": {"SqlExpression": "1=1"},
        "Action": {"SqlExpression": "SET a = 1"},
    }
    rules = [{"Name": "r", "Properties": properties}]
    return entities(Topics=[{"Name": "t", "Subscriptions": [{"Name": "s", "Rules": rules}]}])


# How each row is tried, by the beginning of what it says.
TRIED: dict[str, Callable[["Access"], str]] = {
    '`get_queue_receiver(…, session_id="mine")`': session,
    '`acceptSession("queue", "mine")` of the JavaScript client': javascript_session,
    "`com.microsoft:get-message-sessions`": lambda access: management(access, "get-message-sessions", {}),
    "a link to the coordinator of transactions": coordinator,
    "an outcome inside a transaction": outcome_in_a_transaction,
    "`com.microsoft:batch-delete-messages`": lambda access: management(access, "batch-delete-messages", {}),
    "`com.microsoft:add-rule` with an action": lambda access: rule(access, "1=1", _ACTION),
    "`com.microsoft:add-rule` with `price * 2 > 10`": lambda access: rule(access, "price * 2 > 10"),
    "`com.microsoft:add-rule` with `newid() = 'x'`": lambda access: rule(access, "newid() = 'x'"),
    "`ServiceBusAdministrationClient`": http,
    "`RequiresSession` in the entities file": lambda _: queue(RequiresSession=True),
    "`Action` of a rule in the entities file": lambda _: rule_action(),
    "`EnablePartitioning`": lambda _: queue(EnablePartitioning=True),
}  # fmt: skip


@pytest.mark.parametrize(
    ("request_text", "text"), rows(), ids=[re.sub(r"\W+", " ", row[0])[:40] for row in rows()]
)
def test_what_the_documentation_says_is_refused_is_refused_with_that_text(
    plain: "Access", request_text: str, text: str
) -> None:
    [attempt] = [each for beginning, each in TRIED.items() if request_text.startswith(beginning)]
    assert attempt(plain) == text


def test_every_refusal_that_is_tried_is_in_the_documentation() -> None:
    assert len(rows()) == len(TRIED)
