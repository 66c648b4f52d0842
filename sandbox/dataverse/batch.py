"""`$batch`: multipart/mixed in and out.

A batch is a list of operations and change sets, in order. The caller carries out a change set as one transaction.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from email.policy import compat32
from http import HTTPStatus

from sandbox.dataverse.errors import RequestRefused, bad_request
from sandbox.dataverse.operation import Operation

_REQUEST_LINE = re.compile(r"([A-Z]+) (\S.*?) HTTP/1\.[01]\Z")
MAX_OPERATIONS = 1000


@dataclass(frozen=True)
class ChangeSet:
    """Operations that happen together or not at all."""

    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class ResponsePart:
    """A response, ready to be written: of one operation of a batch, or of a whole request."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes = b""
    content_id: str | None = None


def parse_batch(content_type: str, body: bytes) -> list[Operation | ChangeSet]:
    """Read a batch. Raises RequestRefused (400)."""
    message = BytesParser(policy=compat32).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode("latin-1") + body
    )
    if message.get_content_type() != "multipart/mixed" or not message.get_boundary():
        raise _invalid("The batch must be multipart/mixed with a boundary.")
    if message.defects:
        raise _invalid(f"The batch is not well-formed: {type(message.defects[0]).__name__}.")
    items = [_item(part) for part in _parts(message)]
    count = sum(len(item.operations) if isinstance(item, ChangeSet) else 1 for item in items)
    if count > MAX_OPERATIONS:
        raise _invalid(f"The batch has {count} operations; {MAX_OPERATIONS} are allowed.")
    return items


def write_batch(
    parts: Sequence[ResponsePart | Sequence[ResponsePart]], boundary: str, change_set_boundary: str
) -> bytes:
    """Write the responses; those of a change set are nested."""
    pieces = []
    for index, part in enumerate(parts):
        pieces.append(f"--{boundary}\r\n".encode())
        if isinstance(part, ResponsePart):
            pieces.append(_write_part(part))
        else:
            inner = f"{change_set_boundary}_{index}"
            pieces.append(f"Content-Type: multipart/mixed; boundary={inner}\r\n\r\n".encode())
            for nested in part:
                pieces += [f"--{inner}\r\n".encode(), _write_part(nested)]
            pieces.append(f"--{inner}--\r\n".encode())
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces)


def _write_part(part: ResponsePart) -> bytes:
    lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    if part.content_id is not None:
        lines.append(f"Content-ID: {part.content_id}")
    lines += ["", f"HTTP/1.1 {part.status} {part.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in part.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + part.body + b"\r\n"


def _item(part: Message) -> Operation | ChangeSet:
    if part.get_content_type() != "multipart/mixed":
        return _operation(part)
    if part.defects:
        raise _invalid(f"The change set is not well-formed: {type(part.defects[0]).__name__}.")
    operations = tuple(_operation(nested) for nested in _parts(part))
    if any(operation.method == "GET" for operation in operations):
        raise _invalid("A change set must not contain reads.")
    return ChangeSet(operations)


def _parts(message: Message) -> list[Message]:
    parts = message.get_payload()
    if not isinstance(parts, list):
        raise _invalid("The batch has no parts.")
    return [part for part in parts if isinstance(part, Message)]


def _operation(part: Message) -> Operation:
    if part.get_content_type() != "application/http":
        raise _invalid("Every part of a batch must be application/http.")
    # The parser decodes bytes above 127 to surrogates; decode=True restores the bytes.
    payload = part.get_payload(decode=True)
    head, _, body = _normalised(payload if isinstance(payload, bytes) else b"").partition(b"\r\n\r\n")
    first, *lines = head.decode(errors="replace").lstrip().split("\r\n")
    match = _REQUEST_LINE.match(first.strip())
    if match is None:
        raise _invalid("A part does not begin with a request line.")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Operation(match[1], match[2], headers, body.strip(), part.get("Content-ID"))


def _normalised(payload: bytes) -> bytes:
    """Return a part whose head has CRLF line ends, even if the client wrote LF only."""
    head = payload[: payload.find(b"\n\n")] if b"\n\n" in payload else b""
    if head and b"\r" not in head:
        return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + payload[len(head) + 2 :]
    # An operation without a body may end with its last header.
    return payload if b"\r\n\r\n" in payload else payload + b"\r\n\r\n"


def _invalid(message: str) -> RequestRefused:
    return bad_request(message, "0x80048d19")
