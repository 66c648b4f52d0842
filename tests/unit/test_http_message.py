from __future__ import annotations

import gzip
import io
from contextlib import suppress
from http.client import BadStatusLine, HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import DecodeError

from shared.http_message import HttpResponse, read_response, request_bytes

if TYPE_CHECKING:
    import socket

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, method: str = "GET") -> HttpResponse:
    return read_response(io.BytesIO(data), method).response


def keeps_connection(data: bytes) -> bool:
    return read_response(io.BytesIO(data), "GET").keeps_connection


# ---------------------------------------------------------------------------------------------- requests


def test_a_request_has_its_headers_and_its_body() -> None:
    headers = {"Host": "contoso", "X-Name": "Müller"}
    assert request_bytes("POST", "/a?b", headers, b"\r\n\xff") == (
        b"POST /a?b HTTP/1.1\r\nHost: contoso\r\nX-Name: M\xfcller\r\n\r\n\r\n\xff"
    )
    assert request_bytes("GET", "/", {}, b"") == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("line_break", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("place", ["target", "name", "value"])
def test_a_header_cannot_begin_another_line(place: str, line_break: str) -> None:
    """A token from a faulty endpoint must not become a header of its own."""
    target, name, value = (
        f"a{line_break}b" if place == each else "a" for each in ("target", "name", "value")
    )
    with pytest.raises(ValueError, match="line break"):
        request_bytes("GET", target, {name: value, "other": "x"}, b"")


# ---------------------------------------------------------------------------------------------- responses


def test_a_response_has_status_headers_and_body() -> None:
    data = OK + b'Content-Length: 2\r\nETag:\tW/"1" \r\nX-Empty :\r\nX-N: M\xfcller XX\r\n\r\n{}next'
    assert read(data) == HttpResponse(
        200, {"content-length": "2", "etag": 'W/"1"', "x-empty": "", "x-n": "Müller XX"}, b"{}"
    )


def test_repeated_headers_are_one() -> None:
    assert read(OK + b"X: 1\r\nContent-Length: 0\r\nx: 2\r\nX: 3\r\n\r\n").headers["x"] == "1, 2, 3"


def test_a_header_may_continue_on_the_next_line() -> None:
    headers = read(OK + b" lost\r\nX: 1\r\n  2\r\n\t3\r\n" + EMPTY).headers
    assert (headers["x"], headers["content-length"]) == ("1 2 3", "0")


@pytest.mark.parametrize("line", [b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.0 404\r\n", b"HTTP/1.1 404 \n"])
def test_the_reason_may_be_missing(line: bytes) -> None:
    assert read(line + EMPTY).status == 404


def test_interim_responses_are_skipped() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n"
    assert read(data + b"HTTP/1.1 200 OK\r\n" + EMPTY) == HttpResponse(200, {"content-length": "0"}, b"")


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200"), ("GET", b"204"), ("GET", b"304"), ("POST", b"204")]
)
@pytest.mark.parametrize("headers", [b"Content-Length: 5\r\n\r\n", CHUNKED, b"\r\n"])
def test_some_responses_have_no_body(method: str, status: bytes, headers: bytes) -> None:
    received = read_response(io.BytesIO(b"HTTP/1.1 " + status + b"\r\n" + headers + b"5\r\nHTTP/1.1"), method)
    assert (received.response.status, received.response.body) == (int(status), b"")
    assert received.keeps_connection


@pytest.mark.parametrize(
    "chunks",
    [
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"0000000000000000005 ;name=value\r\nabcde\r\n0;x\r\nX-Trailer: 1\r\n\r\n",
        b"5\nabcde\n0\n\n",
    ],
)
def test_the_chunks_of_a_body_are_joined(chunks: bytes) -> None:
    assert read(OK + b"Transfer-Encoding: Chunked\r\nContent-Length: 1\r\n\r\n" + chunks).body == b"abcde"
    assert read(OK + CHUNKED + b"1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n").body == b"x" * 26


def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    received = read_response(io.BytesIO(OK + b"\r\nabc"), "GET")
    assert (received.response.body, received.keeps_connection) == (b"abc", False)


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: Close\r\n", False),
        (b"1.1", b"Connection: upgrade, close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: close\r\n", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_the_peer_decides_whether_the_connection_is_kept(
    version: bytes,
    connection: bytes,
    keeps: bool,  # noqa: FBT001 - a case of the table
) -> None:
    assert keeps_connection(b"HTTP/" + version + b" 200 OK\r\n" + connection + EMPTY) is keeps
    assert (
        keeps_connection(b"HTTP/" + version + b" 200 OK\r\n" + connection + CHUNKED + b"0\r\n\r\n") is keeps
    )


def test_a_large_body_is_read_in_pieces() -> None:
    """The length that a response announces must not reserve memory."""
    sizes: list[int | None] = []

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(size)
            return super().read(size)

    body = b"x" * ((1 << 20) + 1)
    head = OK + b"Content-Length: %d\r\n\r\n" % len(body)
    assert read_response(Stream(head + body), "GET").response.body == body
    assert sizes == [1 << 20, 1]
    with pytest.raises(IncompleteRead) as raised:
        read(OK + b"Content-Length: 999999999999999999\r\n\r\nabc")
    assert (raised.value.partial, raised.value.expected) == (b"abc", 999999999999999996)


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP"])
def test_a_compressed_body_is_decoded(encoding: bytes) -> None:
    body = gzip.compress(b"ab") + gzip.compress(b"cd")
    head = b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    assert read(OK + head + body).body == b"abcd"
    assert read(OK + b"Content-Encoding: gzip\r\n" + EMPTY).body == b""


@pytest.mark.parametrize(
    "body",
    [b"x", gzip.compress(b"abc")[:-1], gzip.compress(b"abc" * 9)[:10] + b"\xff" * 20],
    ids=["not gzip", "truncated", "damaged"],
)
def test_a_body_that_cannot_be_decompressed_is_an_error(body: bytes) -> None:
    with pytest.raises(DecodeError, match="cannot be decompressed"):
        read(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def test_another_encoding_is_left_alone() -> None:
    """Only gzip is asked for; what is not JSON is an outage."""
    assert read(OK + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n\x0b\x01").body == b"\x0b\x01"


# ---------------------------------------------------------------------------------------------- what is no response


def test_no_response_is_a_closed_connection() -> None:
    with pytest.raises(RemoteDisconnected, match="without a response"):
        read(b"")


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000\r\n",
        b"HTTP/1.1 099 OK\r\n",
        b"HTTP/1.1  200\r\n",
        b"ICY 200 OK\r\n",
        b"\xff\n",
        b"HTTP/1.1 200 " + b"x" * 65536 + b"\r\n",
    ],
)
def test_another_status_line_is_an_error(line: bytes) -> None:
    with pytest.raises(BadStatusLine) as raised:
        read(line + EMPTY if line.endswith(b"\n") else line)
    assert raised.value.args == (line[:65536].decode("latin-1"),)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 0",
        b"Content-Length: 0\r",
        b"Content-Length: 0\r\n",
        b"X: " + b"x" * 65536 + b"\r\n" + EMPTY,
        b"X: 1\r\n" * 100 + EMPTY,
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1, 1\r\n\r\nx",
        b"Content-Length: \r\n\r\n",
        b"Content-Length: \xb2\r\n\r\nxx",
        b"Content-Length: 5\r\n\r\n",
        b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        CHUNKED,
        CHUNKED + b"\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"f" * 5000 + b"\r\n",
        CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
        CHUNKED + b"1_1\r\n" + b"a" * 17 + b"\r\n0\r\n\r\n",
        CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
        CHUNKED + b"1\r\na\r\n",
        CHUNKED + b"1\r\na\r\n0\r\n",
    ],
)
def test_a_response_that_breaks_off_or_has_no_valid_length_is_none(rest: bytes) -> None:
    with pytest.raises(IncompleteRead) as raised:
        read(OK + rest)
    assert str(raised.value), "Python writes no number of over 4,300 digits"


def test_a_hundred_headers_are_read() -> None:
    assert len(read(OK + b"".join(b"X-%d: 1\r\n" % number for number in range(99)) + EMPTY).headers) == 100


@pytest.mark.parametrize(
    ("data", "partial"),
    [
        (b"X", b"X"),
        (CHUNKED + b"zz\r\n", b"zz"),
        (CHUNKED + b"1\r\nab\r\n", b"a"),
        # Lengths that nothing can have.
        (b"Content-Length: " + b"9" * 20 + b"\r\n\r\nab", b"ab"),
        (CHUNKED + b"0" * 9 + b"f" * 16 + b"\r\nab", b"ab"),
    ],
)
def test_what_was_read_is_part_of_the_error(data: bytes, partial: bytes) -> None:
    with pytest.raises(IncompleteRead) as raised:
        read(OK + data)
    assert raised.value.partial == partial


# ---------------------------------------------------------------------------------------------- beside http.client


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def read_by_the_library(data: bytes, method: str) -> tuple[HttpResponse, bool]:
    response = HTTPResponse(cast("socket.socket", _Socket(data)), method=method)
    response.begin()
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        found = headers.get(name.lower())
        headers[name.lower()] = value if found is None else f"{found}, {value}"
    keeps = not response.will_close
    return HttpResponse(response.status, headers, response.read()), keeps


NAMES = st.sampled_from(["X", "x-Y", "ETag", "Connection", "Content-Type", "Retry-After"])
VALUES = st.text("abc ;=/\"',:close1\t", max_size=20).map(str.strip)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, str, int]:
    """Return a response, the method of its request, and how many bytes of it are needed."""
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 429, 503]))
    method = draw(st.sampled_from(["GET", "POST", "HEAD"]))
    reason = draw(st.sampled_from(["", " ", " OK", " Not Found"]))
    lines = [f"HTTP/1.{draw(st.integers(0, 1))} {status}{reason}"]
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))]
    body = draw(st.binary(max_size=40))
    # The library reads chunks after a 204 and a 304, too, which have no body.
    framings = ["length", "connection", *(["chunks"] if status not in (204, 304) else [])]
    framing = draw(st.sampled_from(framings))
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunks":
        lines.append("Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(body)))
        parts = [part for part in (body[:cut], body[cut:]) if part]
        body = b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = "\r\n".join([*lines, "", ""]).encode()
    if draw(st.booleans()):
        head = b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" + head
    head_only = framing == "connection" or method == "HEAD" or status in (204, 304)
    return head + body, method, len(head) if head_only else len(head + body)


@given(responses())
def test_responses_are_read_as_by_the_library(case: tuple[bytes, str, int]) -> None:
    data, method, _ = case
    assert read_response(io.BytesIO(data), method) == read_by_the_library(data, method)


@given(responses(), st.data())
def test_no_part_of_a_response_is_a_response(case: tuple[bytes, str, int], data: st.DataObject) -> None:
    """The library accepts a truncated head."""
    whole, method, needed = case
    with pytest.raises((IncompleteRead, BadStatusLine)):
        read(whole[: data.draw(st.integers(0, needed - 1))], method)


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda data: OK + data))
def test_any_bytes_are_a_response_or_one_of_the_errors(data: bytes) -> None:
    with suppress(HTTPException, DecodeError):
        read(data)
