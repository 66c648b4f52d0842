"""A function that writes down what it was given, then does what the message says."""

import json
import logging
import os
import sys
import time
import uuid
from pathlib import Path

import azure.functions as func


def main(message: func.ServiceBusMessage, context: func.Context) -> str | None:
    """Record the message below RECORDS; the body may be {"do": "fail" | "die" | "return" | "wait"}."""
    records = Path(os.environ["RECORDS"])
    body = message.get_body()
    order = json.loads(body) if body.startswith(b"{") else {}
    enqueued, expires = message.enqueued_time_utc, message.expires_at_utc
    record = {
        "pid": os.getpid(),
        "invocation": context.invocation_id,
        "traceparent": context.trace_context.trace_parent,
        "body": body.decode(),
        "metadata": message.metadata,
        "locked_until": message.locked_until,
        "enqueued_has_zone": enqueued is not None and enqueued.tzinfo is not None,
        "expires": expires.isoformat() if expires else None,
        "path": sys.path,
        "environment": dict(os.environ),
    }
    name = f"{time.time_ns()}-{uuid.uuid4()}"
    (records / f"{name}.new").write_text(json.dumps(record))
    (records / f"{name}.new").rename(records / f"{name}.json")
    print("printed by the function")  # noqa: T201 - the host shows it
    logging.getLogger("recorder").warning("recorded %s", message.message_id)
    match order.get("do"):
        case "fail":
            raise ValueError("as requested")
        case "die":
            # Once is enough: it comes again.
            if message.delivery_count == 1:
                os._exit(3)
        case "return":
            return "something"
        case "wait":
            deadline = time.monotonic() + 30
            while not (records / order["for"]).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
    return None
