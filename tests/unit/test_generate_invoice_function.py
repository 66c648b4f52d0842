from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from azure.functions.servicebus import ServiceBusMessage

import GenerateInvoiceFunction
from shared import bootstrap
from tests.unit.conftest import SERVICE_BUS as SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import azure.functions as func

    from shared.message import Message

ROOT = Path(__file__).parents[2]
HOST = json.loads((ROOT / "host.json").read_text())
FUNCTION = json.loads((ROOT / "GenerateInvoiceFunction" / "function.json").read_text())
SERVICE_BUS = HOST["extensions"]["serviceBus"]


def seconds(text: str) -> float:
    hours, minutes, rest = text.split(":")
    return timedelta(hours=int(hours), minutes=int(minutes), seconds=float(rest)).total_seconds()


# ---------------------------------------------------------------------------------------------- the entry point


@dataclass
class RecordingHandler:
    """Keeps what it is given."""

    handled: list[tuple[Message, str | None, str | None]]
    failure: Exception | None = None

    def handle(self, message: Message, *, traceparent: str | None, invocation_id: str | None) -> None:
        self.handled.append((message, traceparent, invocation_id))
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def handler() -> Iterator[RecordingHandler]:
    """Let the process have this handler."""
    recording = RecordingHandler([])
    bootstrap._built[:] = [cast("Any", recording)]
    yield recording
    bootstrap._built.clear()


def call(traceparent: str = "00-trace-01") -> object:
    main: Callable[[func.ServiceBusMessage, func.Context], object] = GenerateInvoiceFunction.main
    message = ServiceBusMessage(
        body=b"{}",
        message_id="win-1",
        sequence_number=7,
        enqueued_time_utc=datetime(2026, 3, 1, 12, 0),  # noqa: DTZ001 - as the host sends it
        application_properties={},
        user_properties={},
    )
    context = SimpleNamespace(
        trace_context=SimpleNamespace(trace_parent=traceparent), invocation_id="invocation-1"
    )
    return main(message, cast("func.Context", context))


@pytest.mark.parametrize(("sent", "handed_on"), [("00-trace-01", "00-trace-01"), ("", None)])
def test_the_entry_point_hands_the_message_and_its_trace_on(
    sent: str, handed_on: str | None, handler: RecordingHandler
) -> None:
    assert call(traceparent=sent) is None, "any other value would fail the invocation"
    ((message, traceparent, invocation_id),) = handler.handled
    assert (message.message_id, message.body) == ("win-1", b"{}")
    assert (traceparent, invocation_id) == (handed_on, "invocation-1")


def test_what_the_handler_raises_reaches_the_host(handler: RecordingHandler) -> None:
    handler.failure = LookupError("a bug")
    with pytest.raises(LookupError):
        call()


def test_loading_the_function_reads_no_settings() -> None:
    """A function that fails to load dead-letters a backlog in seconds."""
    bootstrap._built.clear()
    importlib.reload(GenerateInvoiceFunction)
    assert not bootstrap._built


# ---------------------------------------------------------------------------------------------- function.json


def test_the_trigger_is_as_the_code_expects_it() -> None:
    (binding,) = FUNCTION["bindings"]
    assert binding == {
        "name": "message",
        "type": "serviceBusTrigger",
        "direction": "in",
        # As a text, the host would copy members of the body over the message's own metadata.
        "dataType": "binary",
        # Of many at once no lock is renewed, and one exception abandons them all.
        "cardinality": "one",
        "queueName": "%OPPORTUNITY_WON_QUEUE%",
        "connection": "ServiceBusConnection",
    }
    assert (ROOT / "GenerateInvoiceFunction" / FUNCTION["scriptFile"]).is_file()
    source = (ROOT / "GenerateInvoiceFunction" / "__init__.py").read_text()
    parameters = re.search(rf"^def {FUNCTION['entryPoint']}\((.*)\) -> None:", source, re.MULTILINE)
    assert parameters is not None
    assert re.findall(r"(\w+): ", parameters[1]) == [binding["name"], "context"]


def test_the_entry_point_is_thin() -> None:
    assert len((ROOT / "GenerateInvoiceFunction" / "__init__.py").read_text().splitlines()) <= 15


# ---------------------------------------------------------------------------------------------- host.json


def test_each_time_out_fits_into_the_next() -> None:
    """One invocation's deadline < the host's timeout for it <= how long the host keeps the message locked."""
    deadline, timeout = SETTINGS.invocation_deadline, seconds(HOST["functionTimeout"])
    assert deadline + 30 <= timeout, (
        "a token or a send that began just before the deadline has still time to end"
    )
    assert timeout <= seconds(SERVICE_BUS["maxAutoLockRenewalDuration"])


def test_the_host_settles_and_does_not_fetch_ahead() -> None:
    assert HOST["version"] == "2.0"
    assert SERVICE_BUS["autoCompleteMessages"] is True
    assert SERVICE_BUS["prefetchCount"] == 0, "the lock of a message that waits for a thread is ticking"


def test_as_many_calls_as_worker_threads_and_fewer_than_dataverse_takes_at_once() -> None:
    """PYTHON_THREADPOOL_THREAD_COUNT is set to the same number by the templates: their test compares them."""
    assert SERVICE_BUS["maxConcurrentCalls"] == 16
    assert SERVICE_BUS["maxConcurrentCalls"] < 52
