"""The entry point that Azure calls with each message of the queue of won opportunities."""

import azure.functions as func

from shared.bootstrap import handler
from shared.message import Message


def main(message: func.ServiceBusMessage, context: func.Context) -> None:
    """Handle one message; returning completes it, raising abandons it."""
    # Empty where the host traces nothing.
    traceparent = context.trace_context.trace_parent or None
    handler().handle(
        Message.from_trigger(message), traceparent=traceparent, invocation_id=context.invocation_id or None
    )
