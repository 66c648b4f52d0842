"""The peers of the connections, as small as they can be: identity endpoint, Dataverse, Service Bus; in one process.

They are not the sandbox, although they use its AMQP engine and codec: they check nothing and remember only which
opportunities have an invoice, so that what is measured is the client. Started by `__main__.py` as
`python -m benchmarks.peers FOLDER ADDRESS`; the folder holds the certificate, the address is a loopback address on
which port 5671 is free.

The Dataverse port also serves requests of the runner: `GET /counters` (with their CPU time in seconds),
`POST /latency?ms=N`, and `GET /recorded`, the requests and the event of the first invoice, which the floor repeats.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import LOST_PREFIX
from sandbox.service_bus.amqp import (
    Authenticating,
    Connection,
    DeliveryUpdated,
    Event,
    IncomingDelivery,
    Limits,
    LinkAttached,
    MessageReceived,
    ReceiverLink,
    SenderLink,
)
from sandbox.service_bus.amqp.encoding import Int
from sandbox.service_bus.amqp.performatives import Accepted
from sandbox.service_bus.codec import decode_message, encode_reply

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable, Iterator

    from sandbox.service_bus import Message

AMQPS_PORT = 5671

_ACCOUNT = "bbbbbbbb-0000-4000-8000-000000000001"
_CURRENCY = "cccccccc-0000-4000-8000-000000000001"
_PRODUCT = "dddddddd-0000-4000-8000-000000000001"
_OWNER = "eeeeeeee-0000-4000-8000-000000000001"
_CREATED = "2026-03-02T08:00:00Z"


class World:
    """What the peers share: which opportunities have an invoice, counters, the first invoice's requests."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.counters: Counter[str] = Counter()
        self.invoiced: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.event: dict[str, Any] | None = None

    def record_request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Keep a request until the first event completes the recording."""
        if self.event is None:
            encoded = base64.b64encode(body).decode()
            self.requests.append({"method": method, "path": path, "headers": headers, "body": encoded})

    def record_event(self, message: Message) -> None:
        """Keep the first event."""
        assert isinstance(message.body, bytes)  # noqa: S101 - for the type checker
        self.event = {
            "body": base64.b64encode(message.body).decode(),
            "properties": dict(message.application_properties),
            "messageId": message.message_id,
            "contentType": message.content_type,
            "subject": message.subject,
        }


# --- HTTP --------------------------------------------------------------------------------------------------------


async def _serve_http(
    reader: StreamReader,
    writer: StreamWriter,
    respond: Callable[[str, str, dict[str, str], bytes], tuple[bytes, str, float]],
) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            request_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
            method, path, _ = request_line.split(" ")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            content, content_type, latency = respond(method, path, headers, body)
            if latency:
                await asyncio.sleep(latency)
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nOData-Version: 4.0\r\n"
                f"Content-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has closed the connection
    finally:
        writer.close()


def _identity(world: World) -> Callable[..., tuple[bytes, str, float]]:
    def respond(*_: object) -> tuple[bytes, str, float]:
        world.counters["tokens"] += 1
        token = {
            # A JWT of Microsoft Entra has about this length.
            "access_token": "x" * 1500,
            "expires_on": str(int(time.time()) + 24 * 60 * 60),
            "resource": "r",
            "token_type": "Bearer",
        }
        return json.dumps(token).encode(), "application/json", 0.0

    return respond


def _dataverse(world: World) -> Callable[..., tuple[bytes, str, float]]:
    def respond(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[bytes, str, float]:
        if not path.startswith("/api/"):
            return _control(world, path), "application/json", 0.0
        world.counters["requests"] += 1
        world.record_request(method, path, headers, body)
        if path.endswith("$batch"):
            boundary = headers["content-type"].partition("boundary=")[2].strip('"')
            content = _batch(world, body, f"--{boundary}".encode())
            return content, "multipart/mixed; boundary=batchresponse_1", world.latency
        return _read(world, path), "application/json; odata.metadata=minimal", world.latency

    return respond


def _control(world: World, path: str) -> bytes:
    if path.startswith("/latency?ms="):
        world.latency = float(path.partition("=")[2]) / 1000
        return b"{}"
    if path == "/recorded":
        return json.dumps({"requests": world.requests, "event": world.event}).encode()
    return json.dumps({**world.counters, "cpu": time.process_time()}).encode()


_REQUEST_LINE = re.compile(rb"^(GET|POST|PATCH) (\S+) HTTP/1.1", re.MULTILINE)
_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PART = "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
_JSON = "Content-Type: application/json; odata.metadata=minimal\r\nOData-Version: 4.0\r\n"


def _batch(world: World, body: bytes, delimiter: bytes) -> bytes:
    parts = b"".join(b"--batchresponse_1\r\n" + part for part in _batch_parts(world, body, delimiter))
    return parts + b"--batchresponse_1--\r\n"


def _batch_parts(world: World, body: bytes, delimiter: bytes) -> Iterator[bytes]:
    for part in body.split(delimiter)[1:-1]:
        if b"multipart/mixed" in part:
            (opportunity,) = re.findall(rb'"OpportunityId": ?"([0-9a-f-]{36})"', part)
            world.invoiced.add(opportunity.decode())
            invoice = _row({"invoiceid": _invoice_id(opportunity.decode())})
            yield (
                (
                    "Content-Type: multipart/mixed; boundary=changesetresponse_1\r\n\r\n--changesetresponse_1\r\n"
                    f"{_PART}Content-ID: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n--changesetresponse_1\r\n"
                    f"{_PART}Content-ID: 2\r\n\r\nHTTP/1.1 200 OK\r\n{_JSON}\r\n"
                ).encode()
                + invoice
                + b"\r\n--changesetresponse_1--\r\n"
            )
            continue
        line = _REQUEST_LINE.search(part)
        if line is not None and line[1] == b"GET":
            content = _read(world, line[2].decode())
            yield f"{_PART}\r\nHTTP/1.1 200 OK\r\n{_JSON}\r\n".encode() + content + b"\r\n"
        else:
            yield f"{_PART}\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n".encode()


def _read(world: World, url: str) -> bytes:
    resource = url.rpartition("/api/data/v9.2/")[2]
    guid = _GUID.search(resource)
    id_ = guid[0] if guid else ""
    if resource.startswith("opportunities("):
        return _row(_opportunity(id_))
    if resource.startswith("invoices("):
        return _row(_invoice(id_))
    if resource.startswith("invoicedetails"):
        return _rows([_line(id_, number) for number in (1, 2, 3)])
    if resource.startswith("invoices?"):
        return _rows([_invoice(_invoice_id(id_))] if id_ in world.invoiced else [])
    if resource.startswith("annotations?"):
        return _rows([{"annotationid": id_}] if id_ in world.invoiced else [])
    return _rows([])


def _row(row: dict[str, Any]) -> bytes:
    return json.dumps({"@odata.context": "https://peer/$metadata#rows/$entity", **row}).encode()


def _rows(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"@odata.context": "https://peer/$metadata#rows", "value": rows}).encode()


def _invoice_id(opportunity: str) -> str:
    """Return the id of the invoice of an opportunity, and the other way round."""
    return f"{opportunity[:24]}{int(opportunity[24:], 16) ^ 0xFFFFFFFFFFFF:012x}"


def _opportunity(id_: str) -> dict[str, Any]:
    return {
        "opportunityid": id_,
        "statecode": 2 if id_.startswith(LOST_PREFIX) else 1,
        "totalamount": 1210.00,
        "_transactioncurrencyid_value": _CURRENCY,
        "_customerid_value": _ACCOUNT,
        "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "account",
        "_ownerid_value": _OWNER,
        "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "systemuser",
    }


def _invoice(id_: str) -> dict[str, Any]:
    return {
        "invoiceid": id_,
        "invoicenumber": "INV-01000-ABCDEF",
        "name": "Pump assembly P-7",
        "totalamount": 1210.00,
        "totallineitemamount": 1000.00,
        "totallineitemdiscountamount": 0.00,
        "totaldiscountamount": 0.00,
        "discountamount": None,
        "discountpercentage": None,
        "totalamountlessfreight": 1000.00,
        "freightamount": None,
        "totaltax": 210.00,
        "duedate": None,
        "paymenttermscode": 1,
        "paymenttermscode@OData.Community.Display.V1.FormattedValue": "Net 30",
        "statecode": 0,
        "pricingerrorcode": 0,
        "createdon": _CREATED,
        "_opportunityid_value": _invoice_id(id_),
        "_salesorderid_value": None,
        "_customerid_value": _ACCOUNT,
        "_customerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "account",
        "_transactioncurrencyid_value": _CURRENCY,
        "_ownerid_value": _OWNER,
        "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "systemuser",
        "_createdby_value": _OWNER,
        "transactioncurrencyid": {
            "transactioncurrencyid": _CURRENCY,
            "isocurrencycode": "EUR",
            "currencyprecision": 2,
        },
        "customerid_account": {"accountid": _ACCOUNT, "accountnumber": "A-1000"},
        "customerid_contact": None,
    }


def _line(invoice: str, number: int) -> dict[str, Any]:
    amount, tax = (334.00, 70.14) if number == 1 else (333.00, 69.93)
    return {
        "invoicedetailid": f"{invoice[:34]}{number:02x}",
        "lineitemnumber": number,
        "sequencenumber": number,
        "isproductoverridden": False,
        "productname": "Pump",
        "productdescription": None,
        "_productid_value": _PRODUCT,
        "productid": {"productid": _PRODUCT, "productnumber": "P-7", "name": "Pump"},
        "_uomid_value": _PRODUCT,
        "uomid": {"uomid": _PRODUCT, "name": "Each"},
        "quantity": 1.00000,
        "priceperunit": amount,
        "volumediscountamount": 0.00,
        "manualdiscountamount": 0.00,
        "baseamount": amount,
        "tax": tax,
        "extendedamount": amount + tax,
        "producttypecode": 1,
        "parentbundleid": None,
        "parentbundleidref": None,
        "productassociationid": None,
        "pricingerrorcode": 0,
        "description": None,
        "_salesorderdetailid_value": None,
    }


# --- AMQP --------------------------------------------------------------------------------------------------------

_CREDIT, _MAX_MESSAGE_SIZE = 1_000_000_000, 1 << 20


class _AmqpConnection:
    """Accepts every link, accepts every message, and grants every token."""

    def __init__(self, world: World, reader: StreamReader, writer: StreamWriter) -> None:
        self._world = world
        self._reader = reader
        self._writer = writer
        self._amqp = Connection(Limits())
        self._replies: SenderLink | None = None

    async def serve(self) -> None:
        try:
            while data := await self._reader.read(1 << 16):
                for event in self._amqp.receive(data, time.monotonic()):
                    self._handle(event)
                self._writer.write(self._amqp.take_output(time.monotonic()))
        except ConnectionError:
            pass  # the client has closed the connection
        finally:
            self._writer.close()

    def _handle(self, event: Event) -> None:
        match event:
            case Authenticating():
                self._amqp.accept_login()
            case LinkAttached(SenderLink() as link):
                link.accept()
                self._replies = link
            case LinkAttached(ReceiverLink() as link):
                link.accept(max_message_size=_MAX_MESSAGE_SIZE)
                link.keep_credit(_CREDIT)
            case MessageReceived(delivery):
                delivery.settle(Accepted())
                self._take(delivery)
            case DeliveryUpdated(delivery, state):
                delivery.settle(state)

    def _take(self, delivery: IncomingDelivery) -> None:
        if delivery.link.target_address == "$cbs":
            request = decode_message(delivery.payload)
            granted = {"status-code": Int(202), "status-description": "Accepted"}
            if self._replies is not None:
                reply = encode_reply(None, correlation_id=request.message_id, properties=granted)
                self._replies.send(b"reply", reply)
            return
        self._world.counters["messages"] += 1
        if self._world.event is None:
            self._world.record_event(decode_message(delivery.payload))


# --- The process -------------------------------------------------------------------------------------------------


async def serve(folder: Path, address: str) -> None:
    """Serve until the standard input ends; print the ports as JSON first."""
    world = World()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    identity = await asyncio.start_server(lambda r, w: _serve_http(r, w, _identity(world)), "127.0.0.1", 0)
    dataverse = await asyncio.start_server(
        lambda r, w: _serve_http(r, w, _dataverse(world)), "127.0.0.1", 0, ssl=context
    )
    await asyncio.start_server(
        lambda r, w: _AmqpConnection(world, r, w).serve(), address, AMQPS_PORT, ssl=context
    )
    ports = {
        "identity": identity.sockets[0].getsockname()[1],
        "dataverse": dataverse.sockets[0].getsockname()[1],
    }
    print(json.dumps(ports), flush=True)  # noqa: T201 - the runner reads it
    # The runner holds the other end of the standard input: it ends with the runner, however that ends.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
