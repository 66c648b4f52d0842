"""One contestant in a process of its own: the floor, the usual sample, or the product, on the same peers.

    python -m benchmarks.contestants floor|usual|product --threads N --messages N [--kind new|duplicate|ignored]

All settings come from the environment, as in Azure. It prints one JSON object: seconds of CPU and wall for all
messages and for the first one, memory and threads at the end.

- *floor*: the product's own requests and its event, recorded by the peers, in a bare loop with a reused session,
  credential and sender. It parses nothing, decides nothing and bounds nothing.
- *usual*: the same calls with new clients for every message, as published samples do.
- *product*: `main` of the deployed function.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import os
import resource
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    import azure.functions as func

LOST_PREFIX = "ffffffff"  # the peers say of opportunities whose id begins like this that they are lost


class Recording(NamedTuple):
    """The product's requests for one new invoice, and the event that it published."""

    requests: list[tuple[str, str, dict[str, str], bytes]]
    event: dict[str, Any]
    opportunity: bytes
    url: str

    @classmethod
    def read(cls) -> Recording:
        """Ask the peers for it."""
        import requests

        url = os.environ["DATAVERSE_URL"]
        recorded = requests.get(f"{url}/recorded", timeout=10).json()
        event = recorded["event"]
        body = base64.b64decode(event["body"])
        opportunity = json.loads(body)["data"]["opportunityId"].encode()
        return cls(
            [
                (each["method"], each["path"], _kept(each["headers"]), base64.b64decode(each["body"]))
                for each in recorded["requests"]
            ],
            event | {"body": body},
            opportunity,
            url,
        )

    def repeat(self, opportunity: str, request: Callable[..., Any], credential: Any) -> None:  # noqa: ANN401
        """Send the requests for another opportunity; `request` is that of the package requests, or of a session."""
        for method, path, headers, body in self.requests:
            token = credential.get_token(f"{self.url}/.default").token
            request(
                method,
                self.url + path.replace(self.opportunity.decode(), opportunity),
                data=body.replace(self.opportunity, opportunity.encode()) or None,
                headers={**headers, "Authorization": f"Bearer {token}"},
                timeout=30,
            ).raise_for_status()

    @property
    def message(self) -> Any:  # noqa: ANN401 - imported where the contestant needs it
        """The event, to be sent."""
        from azure.servicebus import ServiceBusMessage

        return ServiceBusMessage(
            self.event["body"],
            application_properties=dict(self.event["properties"]),
            message_id=self.event["messageId"],
            content_type=self.event["contentType"],
            subject=self.event["subject"],
        )


def _kept(headers: dict[str, str]) -> dict[str, str]:
    own = ("host", "content-length", "authorization", "connection", "user-agent", "accept-encoding")
    return {name: value for name, value in headers.items() if name not in own}


_AMQP: dict[str, Any] = {"retry_total": 1, "retry_backoff_factor": 0.1, "logging_enable": False}


def _service_bus(credential: Any) -> Any:  # noqa: ANN401
    from azure.servicebus import ServiceBusClient

    namespace = os.environ["ServiceBusConnection__fullyQualifiedNamespace"]
    bundle = os.environ["REQUESTS_CA_BUNDLE"]
    return ServiceBusClient(namespace, credential, connection_verify=bundle, **_AMQP)


def _credential() -> Any:  # noqa: ANN401
    from azure.identity import ManagedIdentityCredential

    return ManagedIdentityCredential(client_id=os.environ["AZURE_CLIENT_ID"])


def floor() -> Callable[[str], None]:
    """Return the bare loop's body."""
    import requests

    recording = Recording.read()
    credential = _credential()
    sender = _service_bus(credential).get_topic_sender(os.environ["INVOICE_CREATED_TOPIC"])
    lock, local = threading.Lock(), threading.local()

    def handle(opportunity: str) -> None:
        session = getattr(local, "session", None) or requests.Session()
        local.session = session
        recording.repeat(opportunity, session.request, credential)
        with lock:
            sender.send_messages(recording.message, timeout=30)

    return handle


def usual() -> Callable[[str], None]:
    """Return what published samples do for each message."""
    import requests

    recording = Recording.read()
    topic = os.environ["INVOICE_CREATED_TOPIC"]

    def handle(opportunity: str) -> None:
        credential = _credential()
        recording.repeat(opportunity, requests.request, credential)
        with _service_bus(credential) as client, client.get_topic_sender(topic) as sender:
            sender.send_messages(recording.message, timeout=30)

    return handle


def product() -> Callable[[str], None]:
    """Return the deployed function, called as the host calls it."""
    from datetime import UTC, datetime

    from azure.functions.servicebus import ServiceBusMessage

    from GenerateInvoiceFunction import main

    # As in Azure: its worker takes every line of level INFO and sends it to the host.
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(_lines())
    context = cast(
        "func.Context", SimpleNamespace(trace_context=SimpleNamespace(trace_parent=""), invocation_id="")
    )
    numbers = iter(range(1, 10_000_000))

    def handle(opportunity: str) -> None:
        message = ServiceBusMessage(
            body=json.dumps({"opportunityId": opportunity}).encode(),
            message_id=str(uuid.uuid4()),
            sequence_number=next(numbers),
            enqueued_time_utc=datetime.now(UTC).replace(tzinfo=None),
            content_type="application/json",
            application_properties={},
            user_properties={},
        )
        main(message, context)

    return handle


def _lines() -> logging.Handler:
    """Return a log handler that formats every line and keeps none."""
    handler = logging.StreamHandler(io.StringIO())
    handler.emit = logging.LogRecord.getMessage  # type: ignore[assignment]
    return handler


def opportunities(kind: str, count: int) -> list[str]:
    """Return ids of opportunities of a kind: `new`, `duplicate` (one id again and again) or `ignored` (lost)."""
    if kind == "duplicate":
        return [str(uuid.uuid4())] * count
    ids = [str(uuid.uuid4()) for _ in range(count)]
    return [LOST_PREFIX + id_[len(LOST_PREFIX) :] for id_ in ids] if kind == "ignored" else ids


def measure(contestant: str, threads: int, messages: int, kind: str) -> dict[str, float]:
    """Handle so many messages and return what it took."""
    began_cpu, began = time.process_time(), time.monotonic()
    handle = {"floor": floor, "usual": usual, "product": product}[contestant]()
    built_cpu, built = time.process_time(), time.monotonic()
    first, *rest = opportunities(kind, messages + 1)
    handle(first)
    first_cpu, first_wall = time.process_time(), time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        # Each thread opens its own connections before the measurement begins.
        list(pool.map(handle, opportunities(kind, 2 * threads)))
        cpu, wall = time.process_time(), time.monotonic()
        # The threads take from one iterator: a future for each message would be most of the memory.
        remaining = iter(rest)

        def take(_: int) -> None:
            for opportunity in remaining:
                handle(opportunity)

        list(pool.map(take, range(threads)))
        end_cpu, end = time.process_time(), time.monotonic()
    return {
        "import_cpu": built_cpu - began_cpu,
        "import_wall": built - began,
        "first_cpu": first_cpu - built_cpu,
        "first_wall": first_wall - built,
        "cpu": (end_cpu - cpu) / messages,
        "wall": (end - wall) / messages,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": threading.active_count(),
        "process_cpu": time.process_time(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contestant", choices=["floor", "usual", "product"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--kind", choices=["new", "duplicate", "ignored"], default="new")
    options = parser.parse_args()
    figures = measure(options.contestant, options.threads, options.messages, options.kind)
    json.dump(figures, sys.stdout)
    sys.stdout.flush()
    # The SDK's threads may take seconds to end: nothing is measured any more.
    os._exit(0)
