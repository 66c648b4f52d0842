"""The peers of the connections, as small as they can be: identity endpoint, Dataverse, Service Bus; in one process.

They are not the sandbox: they check nothing and remember only which opportunities have an invoice, so that what is
measured is the client. Started by `__main__.py` as `python -m benchmarks.peers FOLDER ADDRESS`; the folder holds the
certificate, the address is a loopback address on which port 5671 is free.

The Dataverse port also serves requests of the runner: `GET /counters` (with their CPU time in seconds),
`POST /latency?ms=N`, and `GET /recorded`, the requests and the event of the first invoice, which the floor repeats.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.servicebus._pyamqp._decode import decode_frame, decode_payload
from azure.servicebus._pyamqp._encode import encode_frame, encode_payload
from azure.servicebus._pyamqp.endpoints import Target
from azure.servicebus._pyamqp.message import Message, Properties
from azure.servicebus._pyamqp.outcomes import Accepted
from azure.servicebus._pyamqp.performatives import (
    AttachFrame,
    BeginFrame,
    CloseFrame,
    DetachFrame,
    DispositionFrame,
    EndFrame,
    FlowFrame,
    OpenFrame,
    SASLMechanism,
    SASLOutcome,
    TransferFrame,
)

from benchmarks.contestants import LOST_PREFIX

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable, Iterator

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
        if self.event is None:
            properties: Any = message.properties
            data: Any = message.data
            self.event = {
                "body": base64.b64encode(b"".join(data)).decode(),
                "properties": {_text(k): _text(v) for k, v in (message.application_properties or {}).items()},
                "messageId": _text(properties.message_id),
                "contentType": _text(properties.content_type),
                "subject": _text(properties.subject),
            }


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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

_AMQP_HEADER, _SASL_HEADER = b"AMQP\0\1\0\0", b"AMQP\3\1\0\0"
_OPEN, _BEGIN, _ATTACH, _TRANSFER, _DETACH, _END, _CLOSE = 0x10, 0x11, 0x12, 0x14, 0x16, 0x17, 0x18
_SASL_FRAME, _AMQP_FRAME = b"\x01", b"\x00"
_ROLE_RECEIVER = True


class _AmqpConnection:
    """Accepts every link, accepts every message, and grants every token."""

    def __init__(self, world: World, reader: StreamReader, writer: StreamWriter) -> None:
        self._world = world
        self._reader = reader
        self._writer = writer
        self._cbs_reply_handle = 0
        self._cbs_handles: set[int] = set()
        self._next_delivery = 0

    async def serve(self) -> None:
        try:
            await self._reader.readexactly(len(_SASL_HEADER))
            self._writer.write(_SASL_HEADER)
            self._send(0, SASLMechanism(sasl_server_mechanisms=[b"ANONYMOUS", b"EXTERNAL"]), _SASL_FRAME)
            await self._frame()
            self._send(0, SASLOutcome(code=0, additional_data=None), _SASL_FRAME)
            await self._reader.readexactly(len(_AMQP_HEADER))
            self._writer.write(_AMQP_HEADER)
            while True:
                channel, frame = await self._frame()
                if frame is not None:
                    self._handle(channel, *decode_frame(frame))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            self._writer.close()

    async def _frame(self) -> tuple[int, memoryview | None]:
        size, offset, _, channel = struct.unpack(">IBBH", await self._reader.readexactly(8))
        rest = await self._reader.readexactly(size - 8)
        body = memoryview(rest)[(offset * 4) - 8 :]
        return channel, body if len(body) else None

    def _send(self, channel: int, frame: Any, frame_type: bytes = _AMQP_FRAME) -> None:  # noqa: ANN401 - the library's own named tuples
        header, body = encode_frame(frame, frame_type)
        self._writer.write(header + struct.pack(">H", channel) + (body or b""))

    def _handle(self, channel: int, code: int, fields: list[Any]) -> None:
        if code == _OPEN:
            self._send(channel, OpenFrame("peer", None, 65536, 255, 240_000, None, None, None, None, None))
        elif code == _BEGIN:
            self._send(channel, BeginFrame(channel, 0, 5000, 5000, 255, None, None, None))
        elif code == _ATTACH:
            self._attach(channel, fields)
        elif code == _TRANSFER:
            self._transfer(channel, fields)
        elif code == _DETACH:
            self._send(channel, DetachFrame(fields[0], True, None))
        elif code == _END:
            self._send(channel, EndFrame(None))
        elif code == _CLOSE:
            self._send(channel, CloseFrame(None))

    def _attach(self, channel: int, fields: list[Any]) -> None:
        name, handle, role, source, target = fields[0], fields[1], fields[2], fields[5], fields[6]
        termini = _terminus(source), _terminus(target)
        rest = (None, False, 0, 1 << 20, None, None, None)
        self._send(channel, AttachFrame(name, handle, not role, 2, 0, *termini, *rest))
        cbs = b"$cbs" in (bytes(_address(source)), bytes(_address(target)))
        if role == _ROLE_RECEIVER:
            self._cbs_reply_handle = handle
            return
        if cbs:
            self._cbs_handles.add(handle)
        self._send(channel, FlowFrame(0, 5000, 0, 5000, handle, 0, 1_000_000_000, 0, False, False, None))

    def _transfer(self, channel: int, fields: list[Any]) -> None:
        handle, delivery_id, payload = fields[0], fields[1], fields[-1]
        accepted = DispositionFrame(_ROLE_RECEIVER, delivery_id, delivery_id, True, Accepted(), None)
        self._send(channel, accepted)
        if handle in self._cbs_handles:
            self._grant(channel, decode_payload(payload))
            return
        self._world.counters["messages"] += 1
        if self._world.event is None:
            self._world.record_event(decode_payload(payload))

    def _grant(self, channel: int, request: Message) -> None:
        properties: Any = request.properties
        reply = Message(
            properties=Properties(correlation_id=properties.message_id),
            application_properties={"status-code": 202, "status-description": "Accepted"},
            value=None,
        )
        payload = bytearray()
        encode_payload(payload, reply)
        tag = struct.pack(">I", self._next_delivery)
        transfer = TransferFrame(
            self._cbs_reply_handle, self._next_delivery, tag, 0, True, False, payload=bytes(payload)
        )
        self._next_delivery += 1
        self._send(channel, transfer)


def _address(terminus: list[Any] | None) -> bytes:
    return (terminus[0] or b"") if terminus else b""


def _terminus(terminus: list[Any] | None) -> Any:  # noqa: ANN401
    fields: dict[str, Any] = {"address": _address(terminus)}
    return Target(**fields) if terminus else None


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
