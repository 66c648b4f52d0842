"""What a flow without transactions does, as a function: claim the opportunity, then generate the invoice.

A cloud flow of Power Automate has these steps: each is a request of its own, and an action that fails is repeated four
times. It is here to be compared with this project under the same faults; docs/alternatives.md describes the result.
"""

import json
import os
import ssl
import time
import uuid
from typing import Any

import azure.functions as func
import requests
from azure.identity import ManagedIdentityCredential
from azure.servicebus import ServiceBusClient, ServiceBusMessage

REPETITIONS = 4
REPEATED = {requests.codes.request_timeout, requests.codes.too_many_requests, *range(500, 600)}
PAUSE_SECONDS = 0.05
NOTES = uuid.UUID("f3a2ad43-1c2a-4b13-a1f0-2b1a5e1c9b7e")


def main(message: func.ServiceBusMessage) -> None:
    """Process one win that Dataverse posted; what it raises makes Service Bus deliver the message again."""
    flow = Flow()
    context = json.loads(message.get_body())
    parameters = {each["key"]: each["value"] for each in context["InputParameters"]}
    closing = {each["key"]: each["value"] for each in parameters["OpportunityClose"]["Attributes"]}
    opportunity = closing["opportunityid"]["Id"]
    claim = str(uuid.uuid5(NOTES, opportunity))
    if flow.get(f"annotations?$select=annotationid&$filter=annotationid eq {claim}")["value"]:
        return  # "Invoiced before": this is what keeps a flow from billing twice.
    flow.post(
        "annotations",
        {
            "annotationid": claim,
            "subject": "Invoice generated automatically",
            "objectid_opportunity@odata.bind": f"/opportunities({opportunity})",
        },
    )
    flow.post(
        "GenerateInvoiceFromOpportunity",
        {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": False, "Columns": ["invoiceid"]}},
    )
    invoices = flow.get(f"invoices?$select=invoiceid&$filter=_opportunityid_value eq {opportunity}")["value"]
    flow.publish(flow.get(f"invoices({invoices[0]['invoiceid']})?$expand=transactioncurrencyid"))


class Flow:
    """The two connectors that the flow uses."""

    def __init__(self) -> None:
        self._url = os.environ["DATAVERSE_URL"]
        self._credential = ManagedIdentityCredential(client_id=os.environ["AZURE_CLIENT_ID"])
        token = self._credential.get_token(f"{self._url}/.default")
        self._headers = {
            "Authorization": f"Bearer {token.token}",
            "Prefer": 'odata.include-annotations="*"',
        }

    def get(self, path: str) -> dict[str, Any]:
        """Read from Dataverse."""
        return self._request("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Write to Dataverse."""
        self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self._url}/api/data/v9.2/{path}"
        for repetition in range(REPETITIONS + 1):
            response = requests.request(method, url, json=body, headers=self._headers, timeout=120)
            if response.status_code not in REPEATED:
                break
            time.sleep(PAUSE_SECONDS * 2**repetition)
        response.raise_for_status()
        return response.json() if response.content else {}

    def publish(self, invoice: dict[str, Any]) -> None:
        """Send the event "invoice created", with the members that the demonstration compares."""
        currency = invoice["transactioncurrencyid"]
        kind = invoice["_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname"]
        data = {
            "invoiceId": invoice["invoiceid"],
            "invoiceNumber": invoice["invoicenumber"],
            "name": invoice["name"],
            "opportunityId": invoice["_opportunityid_value"],
            "customer": {"kind": kind, "id": invoice["_customerid_value"]},
            "totalAmount": f"{invoice['totalamount']:.{currency['currencyprecision']}f}",
            "currency": {
                "id": invoice["_transactioncurrencyid_value"],
                "isoCode": currency["isocurrencycode"],
            },
        }
        event = json.dumps({"id": invoice["invoiceid"], "data": data})
        with (
            self._service_bus() as client,
            client.get_topic_sender(os.environ["INVOICE_CREATED_TOPIC"]) as sender,
        ):
            sender.send_messages(ServiceBusMessage(event, message_id=invoice["invoiceid"]))

    def _service_bus(self) -> ServiceBusClient:
        trust = ssl.create_default_context()
        namespace = os.environ.get("ServiceBusConnection__fullyQualifiedNamespace")
        if namespace:
            return ServiceBusClient(namespace, self._credential, ssl_context=trust)
        return ServiceBusClient.from_connection_string(os.environ["ServiceBusConnection"], ssl_context=trust)
