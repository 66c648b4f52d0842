"""Confirms orders: receives them from a queue and announces each on a topic."""

import json
import os

import azure.functions as func
from azure.servicebus import ServiceBusClient, ServiceBusMessage

app = func.FunctionApp()


@app.service_bus_queue_trigger(
    arg_name="message", connection="Bus", queue_name="orders", data_type=func.DataType.BINARY
)
def confirm(message: func.ServiceBusMessage) -> None:
    """Announce one order as confirmed; fails for one without a number."""
    order = json.loads(message.get_body())
    confirmation = ServiceBusMessage(
        json.dumps({"number": order["number"], "state": "confirmed"}),
        subject=f"orders/{order['number']}",
        content_type="application/json",
    )
    with (
        ServiceBusClient.from_connection_string(os.environ["Bus"]) as client,
        client.get_topic_sender(os.environ["CONFIRMATIONS_TOPIC"]) as sender,
    ):
        sender.send_messages(confirmation)
