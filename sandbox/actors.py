"""Who acts around the function: a salesperson who wins opportunities, and a consumer that receives events.

Both use real connections, like their counterparts.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

import requests
from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage, ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusError

from sandbox.cloud import AUDIT_SUBSCRIPTION, CREATED_TOPIC, Cloud
from sandbox.functions_host.configuration import ConnectionString, IdentityConnection
from sandbox.functions_host.connection import Connector
from sandbox.functions_host.trigger import application_properties
from sandbox.start_stop import StartStop

_REQUEST_SECONDS = 30.0
_RECEIVE_SECONDS = 0.5


class SalesRefused(Exception):
    """Dataverse refused what the salesperson wanted; the text is its response."""


@dataclass(frozen=True)
class LineChange:
    """What changes in the line with this number, from 1; None leaves a value as it is."""

    number: int
    price: Decimal | None = None
    quantity: Decimal | None = None


@dataclass(frozen=True)
class OpportunityChange:
    """What changes in an opportunity; Dataverse calculates its totals again."""

    freight: Decimal | None = None
    discount: Decimal | None = None
    discount_percentage: Decimal | None = None
    # The id of a currency.
    currency: str | None = None
    lines: Sequence[LineChange] = ()


class Salesperson:
    """Works on opportunities and orders through the Web API, over HTTPS; for one thread at a time.

    Every method raises SalesRefused where Dataverse refuses, or an exception of requests.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._url = f"{cloud.dataverse_server.url}/api/data/v9.2"
        self._session = requests.Session()
        # Proxies and authorities in this machine's environment do not concern the sandbox.
        self._session.trust_env = False
        self._session.verify = str(cloud.certificates.bundle)
        token = cloud.authority.issue(cloud.operator, cloud.dataverse.organization.url)
        self._session.headers.update(
            {
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "OData-MaxVersion": "4.0",
                "OData-Version": "4.0",
            }
        )

    def win(self, opportunity_id: str, traceparent: str | None = None) -> None:
        """Close an opportunity as won; its events carry on the trace context, if there is one."""
        self._close("Win", "opportunity", opportunity_id, traceparent)

    def lose(self, opportunity_id: str) -> None:
        """Close an opportunity as lost."""
        self._close("Lose", "opportunity", opportunity_id)

    def reopen(self, opportunity_id: str) -> None:
        """Open a closed opportunity again; what closed it is canceled."""
        self._call("PATCH", f"opportunities({opportunity_id})", {"statecode": 0, "statuscode": 1})

    def change(self, opportunity_id: str, change: OpportunityChange) -> None:
        """Change terms, currency and lines of an opportunity."""
        terms = _terms(change)
        if terms:
            self._call("PATCH", f"opportunities({opportunity_id})", terms)
        path = f"opportunities({opportunity_id})/product_opportunities?$select=lineitemnumber"
        rows = self._call("GET", path).json()["value"]
        lines = {row["lineitemnumber"]: row["opportunityproductid"] for row in rows}
        for line in change.lines:
            if line.number not in lines:
                numbers = ", ".join(map(str, sorted(lines)))
                raise SalesRefused(f"The opportunity has no line {line.number}; it has {numbers}.")
            values = _numbers({"priceperunit": line.price, "quantity": line.quantity})
            self._call("PATCH", f"opportunityproducts({lines[line.number]})", values)

    def order(self, opportunity_id: str) -> str:
        """Make a sales order out of an opportunity; returns its id."""
        columns = {"AllColumns": False, "Columns": ["salesorderid"]}
        parameters = {"OpportunityId": opportunity_id, "ColumnSet": columns}
        response = self._call("POST", "GenerateSalesOrderFromOpportunity", parameters)
        return str(response.json()["salesorderid"])

    def cancel_order(self, order_id: str) -> None:
        """Cancel a sales order."""
        self._close("Cancel", "salesorder", order_id)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close(self, how: str, table: str, record_id: str, traceparent: str | None = None) -> None:
        message, activity, entity_set = {
            "opportunity": ("Opportunity", "OpportunityClose", "opportunities"),
            "salesorder": ("SalesOrder", "OrderClose", "salesorders"),
        }[table]
        body = {"subject": how, f"{table}id@odata.bind": f"/{entity_set}({record_id})"}
        headers = {"traceparent": traceparent} if traceparent else {}
        self._call("POST", f"{how}{message}", {activity: body, "Status": -1}, headers)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        response = self._session.request(
            method, f"{self._url}/{path}", json=body, headers=headers, timeout=_REQUEST_SECONDS
        )
        if not response.ok:
            raise SalesRefused(f"{response.status_code}: {response.text}")
        return response


def _terms(change: OpportunityChange) -> dict[str, object]:
    """Return the columns of the opportunity itself that change."""
    terms = _numbers(
        {
            "freightamount": change.freight,
            "discountamount": change.discount,
            "discountpercentage": change.discount_percentage,
        }
    )
    if change.currency is not None:
        terms["transactioncurrencyid@odata.bind"] = f"/transactioncurrencies({change.currency})"
    return terms


def _numbers(amounts: Mapping[str, Decimal | None]) -> dict[str, object]:
    # A float's shortest text is the amount again, up to 15 digits.
    return {name: float(amount) for name, amount in amounts.items() if amount is not None}


@dataclass(frozen=True)
class ReceivedEvent:
    """A message from the topic; `received_at` is of the monotonic clock, in seconds."""

    body: bytes
    application_properties: Mapping[str, object]
    content_type: str | None
    message_id: str | None
    correlation_id: str | None
    received_at: float

    @property
    def content(self) -> dict[str, Any]:
        """The event as JSON."""
        content: dict[str, Any] = json.loads(self.body)
        return content


class Consumer(StartStop):
    """Receives and completes what is published, from the subscription that gets everything."""

    def __init__(self, cloud: Cloud) -> None:
        self._connector = Connector(_connection(cloud), str(cloud.certificates.bundle))
        self._events: list[ReceivedEvent] = []
        self._arrived = threading.Condition()
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    @property
    def events(self) -> list[ReceivedEvent]:
        """Everything so far, in the order of arrival."""
        with self._arrived:
            return list(self._events)

    def wait_for(self, count: int, timeout: float) -> bool:
        """Wait until `count` events have come, `timeout` seconds at most; returns whether they have."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self._events) >= count, timeout)

    def start(self) -> None:
        """Listen; returns when connected, or after some seconds."""
        self._thread.start()
        self._connected.wait(_REQUEST_SECONDS)

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connector.connect() as client, self._receiver(client) as receiver:
                    self._connected.set()
                    self._receive(receiver)
            except (ServiceBusError, OSError):
                self._stopping.wait(_RECEIVE_SECONDS)

    def _receiver(self, client: ServiceBusClient) -> ServiceBusReceiver:
        # Without both options, the SDK has a second thread that reads from the connection, and takes a second to end.
        return client.get_subscription_receiver(
            CREATED_TOPIC, AUDIT_SUBSCRIPTION, prefetch_count=1, keep_alive=0
        )

    def _receive(self, receiver: ServiceBusReceiver) -> None:
        while not self._stopping.is_set():
            for message in receiver.receive_messages(max_message_count=1, max_wait_time=_RECEIVE_SECONDS):
                event = _received(message)
                receiver.complete_message(message)
                with self._arrived:
                    self._events.append(event)
                    self._arrived.notify_all()


def _connection(cloud: Cloud) -> ConnectionString | IdentityConnection:
    if cloud.tls_server is None:
        return ConnectionString(cloud.connection_string)
    server = cloud.identity_server
    return IdentityConnection(cloud.namespace, cloud.operator.client_id, server.endpoint, server.header)


def _received(message: ServiceBusReceivedMessage) -> ReceivedEvent:
    return ReceivedEvent(
        body=b"".join(part if isinstance(part, bytes) else bytes(part) for part in message.body),
        application_properties=application_properties(message),
        content_type=message.content_type,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        received_at=time.monotonic(),
    )
