"""Requests and responses of HTTP/1.1 as bytes; `http_exchange.py` has the connections.

Written for what the client of an API needs: a request that is in memory, and a response that is read whole.
`http.client` reads the head of a response as if it were an e-mail and encodes each header of a request by itself, which
takes a fifth of the CPU time of an invoice. It accepts a truncated head; here that is an error.
"""

from __future__ import annotations

import gzip
import re
import zlib
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING, NamedTuple

from urllib3.exceptions import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

# As in http.client.
_MAX_LINE = 65536
_MAX_HEADERS = 100
# What is read at once: the length that a response announces reserves no memory.
_MAX_PIECE = 1 << 20
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?\r?\n")
_FIRST_FINAL_STATUS = 200
_BODILESS_STATUS = frozenset({204, 304})
# Python converts no decimal number of over 4,300 digits.
_LENGTH = re.compile(r"[0-9]{1,20}", re.ASCII)
_CHUNK_SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?")


class HttpResponse(NamedTuple):
    """A complete response. `headers` has names in lower case; repeated ones are one, their values joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ReceivedResponse(NamedTuple):
    """A response, and whether its connection can be used for another request."""

    response: HttpResponse
    keeps_connection: bool


def request_bytes(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request; raises ValueError where a header would begin another line, or has no encoding."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(headers):
        raise ValueError("A header of the request has a line break.")
    return head.encode("latin-1") + b"\r\n\r\n" + body


def read_response(stream: BinaryIO, method: str) -> ReceivedResponse:
    """Return the response to a request of this method.

    Raises IncompleteRead for a response that breaks off or has no valid length, BadStatusLine for what is no response,
    DecodeError for a body that cannot be decompressed, and what the stream raises.
    """
    while True:
        minor_version, status = _status(stream.readline(_MAX_LINE))
        headers = _headers(stream)
        # Interim responses come first, if there are any.
        if status >= _FIRST_FINAL_STATUS:
            break
    connection = headers.get("connection", "").lower()
    keeps = "close" not in connection if minor_version else "keep-alive" in connection
    encoding = headers.get("transfer-encoding")
    if method == "HEAD" or status in _BODILESS_STATUS:
        return ReceivedResponse(HttpResponse(status, headers, b""), keeps)
    if encoding is not None:
        body = _chunks(stream, encoding)
    elif "content-length" in headers:
        body = _exactly(stream, _length(headers["content-length"]))
    else:
        # It ends with the connection.
        body, keeps = stream.read(), False
    return ReceivedResponse(HttpResponse(status, headers, _decoded(body, headers)), keeps)


def _status(line: bytes) -> tuple[int, int]:
    """Return the minor version and the status."""
    if not line:
        raise RemoteDisconnected("The connection was closed without a response.")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadStatusLine(line.decode("latin-1"))
    return int(match[1]), int(match[2])


def _headers(stream: BinaryIO) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for _ in range(_MAX_HEADERS + 1):
        line = _line(stream)
        if not line:
            return headers
        if line[:1] in b" \t":
            # An obsolete form continues the value of the line before.
            headers[name] = f"{headers.get(name, '')} {line.decode('latin-1').strip()}"
            continue
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raise IncompleteRead(b"")


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise IncompleteRead(line)
    return line.rstrip(b"\r\n")


def _length(value: str) -> int:
    if not _LENGTH.fullmatch(value):
        raise IncompleteRead(b"")
    return int(value)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    pieces: list[bytes] = []
    while length:
        piece = stream.read(min(length, _MAX_PIECE))
        if not piece:
            raise IncompleteRead(b"".join(pieces), length)
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _chunks(stream: BinaryIO, encoding: str) -> bytes:
    if encoding.lower() != "chunked":
        raise IncompleteRead(b"")
    chunks = []
    while size := _chunk_size(_line(stream)):
        chunks.append(_exactly(stream, size))
        if _line(stream):
            raise IncompleteRead(b"".join(chunks))
    # Headers may follow the last chunk.
    _headers(stream)
    return b"".join(chunks)


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise IncompleteRead(line)
    return int(match[1], 16)


def _decoded(body: bytes, headers: Mapping[str, str]) -> bytes:
    encoding = headers.get("content-encoding", "").lower()
    if encoding != "gzip" or not body:
        return body
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise DecodeError("The body cannot be decompressed.") from error
