"""Book the events "invoice created" of a Service Bus subscription in a ledger, each exactly once.

The entry is committed before the message is completed. If the process is killed in between, the message comes again,
and the ledger finds its event's id. So it can be killed and started again at any time, and several can run at once.

Settings (environment variables): ServiceBusConnection__fullyQualifiedNamespace (log in with an identity) or
ServiceBusConnection (a connection string); INVOICE_CREATED_TOPIC, LEDGER_SUBSCRIPTION, LEDGER_FILE.
If OTEL_EXPORTER_OTLP_ENDPOINT names a collector, it receives a span for each message, in the trace of the win.
"""

from __future__ import annotations

import json
import os
import ssl
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.identity import DefaultAzureCredential
from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage, ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError
from jsonschema import Draft202012Validator
from ledger import CannotBook, Ledger, entry_of
from referencing import Registry, Resource

if TYPE_CHECKING:
    from collections.abc import Callable

CONTRACTS = Path(os.environ.get("CONTRACTS", Path(__file__).parents[2] / "shared" / "contracts"))


def main() -> None:
    """Receive until the process is ended. Every failure ends it: let your platform start it again."""
    ledger = Ledger(os.environ.get("LEDGER_FILE", "ledger.db"))
    topic = os.environ.get("INVOICE_CREATED_TOPIC", "invoice-created")
    subscription = os.environ.get("LEDGER_SUBSCRIPTION", "ledger")
    validator = event_validator()
    span = tracing() if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ else nullcontext
    with client() as service_bus:
        # Without both options, the library has a second thread that reads from the same connection every few seconds.
        # It can confuse two messages, so that the one that was not booked is completed.
        receiver = service_bus.get_subscription_receiver(topic, subscription, prefetch_count=1, keep_alive=0)
        with receiver:
            for message in receiver:
                with span(message):
                    handle(message, receiver, validator, ledger)


def client() -> ServiceBusClient:
    """Return a client that trusts the certificates that this machine trusts."""
    trust = ssl.create_default_context()
    namespace = os.environ.get("ServiceBusConnection__fullyQualifiedNamespace")
    if namespace:
        return ServiceBusClient(namespace, DefaultAzureCredential(), ssl_context=trust)
    return ServiceBusClient.from_connection_string(os.environ["ServiceBusConnection"], ssl_context=trust)


def handle(
    message: ServiceBusReceivedMessage,
    receiver: ServiceBusReceiver,
    validator: Draft202012Validator,
    ledger: Ledger,
) -> None:
    """Book one message, or dead-letter it with the reason."""
    try:
        entry = entry_of(parse(message, validator))
        booked = ledger.book(entry)
        receiver.complete_message(message)
        print(f"{'booked' if booked else 'booked before'} {entry.event_id}: invoice {entry.invoice_number}")
    except CannotBook as problem:
        receiver.dead_letter_message(message, reason=problem.reason, error_description=str(problem)[:1000])
        print(f"dead-lettered {message.message_id}: {problem.reason}")
    except MessageLockLostError:
        print(f"lock lost {message.message_id}: the message comes again")


def tracing() -> Callable[[ServiceBusReceivedMessage], AbstractContextManager[object]]:
    """Return a function that begins a span as a child of the one that sent the message."""
    # Here: without a collector, the packages need not be installed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("ledger")

    def span(message: ServiceBusReceivedMessage) -> AbstractContextManager[object]:
        traceparent = (message.application_properties or {}).get(b"traceparent", b"")
        text = traceparent.decode() if isinstance(traceparent, bytes) else str(traceparent)
        return tracer.start_as_current_span(
            "process invoice-created",
            TraceContextTextMapPropagator().extract({"traceparent": text}),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "servicebus",
                "messaging.operation.type": "process",
                "messaging.message.id": message.message_id or "",
            },
        )

    return span


def parse(message: ServiceBusReceivedMessage, validator: Draft202012Validator) -> dict[str, Any]:
    """Return the event; raise CannotBook unless it keeps the contract."""
    try:
        event: dict[str, Any] = json.loads(b"".join(message.body))
    except (TypeError, ValueError, RecursionError) as error:
        raise CannotBook("InvalidEvent", f"The body is not JSON: {error}") from error
    problem = next(validator.iter_errors(event), None)
    if problem is not None:
        raise CannotBook("InvalidEvent", f"{problem.json_path}: {problem.message}")
    return event


def event_validator() -> Draft202012Validator:
    """Return a validator of the whole event. Members that the schema does not know are valid."""
    schemas = {
        path.name: json.loads(path.read_text()) for path in CONTRACTS.glob("invoice-created.v1*.schema.json")
    }
    registry = Registry().with_resources(
        (name, Resource.from_contents(schema)) for name, schema in schemas.items()
    )
    return Draft202012Validator(schemas["invoice-created.v1.event.schema.json"], registry=registry)


if __name__ == "__main__":
    main()
