from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string, policy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import Deadline
from shared.dataverse import ChangeSet, Dataverse, Read, Update, Write, _parts
from shared.errors import (
    DataverseForbidden,
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoiceRefused,
    InvoicingFailure,
)
from shared.response import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests

    from tests.unit.conftest import FakeClock, FakeServer, FixedTokens, Reply

URL = "https://contoso.crm4.dynamics.com"
MULTIPART = "multipart/mixed; boundary=batchresponse_1"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BATCH: list[Read | ChangeSet] = [
    ChangeSet((Write("annotations", {"subject": "Grüße"}), Write("DoIt", {"Id": 1}))),
    Read("invoices?$filter=_opportunityid_value eq 1&$orderby=createdon,invoiceid"),
    Read("annotations?$select=annotationid"),
]


@dataclass(frozen=True)
class Part:
    """An operation's response inside a batch's."""

    status: int = 200
    body: bytes = b'{"value": []}'
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def encoded(self) -> bytes:
        lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary", ""]
        headers = [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"HTTP/1.1 {self.status} Something", *headers, "", ""]
        return "\r\n".join(lines).encode() + self.body


def multipart(boundary: str, parts: list[bytes]) -> bytes:
    return (
        b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), p) for p in parts) + f"--{boundary}--\r\n".encode()
    )


def change_set(*parts: Part) -> bytes:
    head = b"Content-Type: multipart/mixed; boundary=changesetresponse_1\r\n\r\n"
    return head + multipart("changesetresponse_1", [part.encoded() for part in parts])


def batch_body(*parts: Part | bytes) -> bytes:
    return multipart(
        "batchresponse_1", [part if isinstance(part, bytes) else part.encoded() for part in parts]
    )


SUCCESS = batch_body(
    change_set(Part(204, b""), Part(200, b'{"invoiceid": 1}')), Part(), Part(body=b'{"value": [1]}')
)


class Batches:
    """Sends BATCH, or another batch, to a server with the given responses: bodies, or statuses and bodies."""

    def __init__(
        self, server: FakeServer, clock: FakeClock, tokens: FixedTokens, make_reply: Callable[..., Reply]
    ) -> None:
        self.server = server
        self.clock = clock
        self.tokens = tokens
        self.dataverse = Dataverse(
            URL, tokens=tokens, clock=clock, random=lambda: 0.0, exchange=server.exchange
        )
        self._make_reply = make_reply

    def __call__(
        self,
        *replies: bytes | tuple[int, bytes],
        content_type: str = MULTIPART,
        operations: list[Read | ChangeSet] = BATCH,
    ) -> list[Response]:
        self.server.replies.clear()
        for reply in replies:
            status, body = (200, reply) if isinstance(reply, bytes) else reply
            self.server.replies.append(self._make_reply(status, body, {"Content-Type": content_type}))
        return self.dataverse.batch(operations, Deadline.after(self.clock, 60))


@pytest.fixture
def batch(
    server: FakeServer, clock: FakeClock, tokens: FixedTokens, make_reply: Callable[..., Reply]
) -> Iterator[Batches]:
    batches = Batches(server, clock, tokens, make_reply)
    yield batches
    batches.dataverse.close()


def parts_of(body: bytes) -> list[Response]:
    return _parts(Response(200, {"content-type": MULTIPART}, body, "r-1", NOON))


# ---------------------------------------------------------------------------------------------- what is sent


def test_a_batch_is_read_by_an_independent_parser_as_it_was_meant(batch: Batches) -> None:
    batch(SUCCESS)
    (request,) = batch.server.requests
    assert (request.method, request.url) == ("POST", f"{URL}/api/data/v9.2/$batch")
    assert request.headers["Prefer"] == (
        'odata.continue-on-error,odata.include-annotations="Microsoft.PowerApps.CDS.ErrorDetails*"'
    )
    assert "If-None-Match" not in request.headers
    assert isinstance(request.body, bytes)
    assert b"\n" not in request.body.replace(b"\r\n", b""), "every line ends in CRLF"

    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parsed = message_from_bytes(head + request.body, policy=policy.HTTP)
    writes, *reads = parsed.iter_parts()
    assert not parsed.defects
    assert writes.get_content_type() == "multipart/mixed"
    operations = [*writes.iter_parts(), *reads]
    assert [part.get_content_type() for part in operations] == ["application/http"] * 4
    assert [part.defects for part in operations] == [[]] * 4, "an empty line follows the headers"
    assert [part["Content-Transfer-Encoding"] for part in operations] == ["binary"] * 4
    assert [part["Content-ID"] for part in operations] == ["1", "2", None, None]

    payloads = [part.get_payload(decode=True) for part in operations]
    inner = [payload.decode().partition("\r\n") for payload in payloads if isinstance(payload, bytes)]
    assert [line for line, _, _ in inner] == [
        f"POST {URL}/api/data/v9.2/annotations HTTP/1.1",
        f"POST {URL}/api/data/v9.2/DoIt HTTP/1.1",
        f"GET {URL}/api/data/v9.2/invoices?$filter=_opportunityid_value%20eq%201&$orderby=createdon,invoiceid HTTP/1.1",
        f"GET {URL}/api/data/v9.2/annotations?$select=annotationid HTTP/1.1",
    ]
    requests = [message_from_string(rest) for _, _, rest in inner]
    for inner_request in requests:
        assert inner_request["Accept"] == "application/json"
        assert (inner_request["OData-Version"], inner_request["OData-MaxVersion"]) == ("4.0", "4.0")
    for write in requests[:2]:
        assert write["Content-Type"] == "application/json; charset=utf-8"
        assert write["Prefer"] == 'odata.include-annotations="Microsoft.PowerApps.CDS.ErrorDetails*"', (
            "no trace text"
        )
    for read in requests[2:]:
        assert read["If-None-Match"] == "null", "else a cache may respond"
        assert read["Prefer"] == 'odata.include-annotations="*"'
    bodies = [rest.partition("\r\n\r\n")[2] for _, _, rest in inner]
    assert [json.loads(body) for body in bodies[:2]] == [{"subject": "Grüße"}, {"Id": 1}]
    assert bodies[2:] == ["", ""]


def test_an_update_never_creates_a_row(batch: Batches) -> None:
    """A PATCH without the condition would create a row that was deleted."""
    update = ChangeSet((Update("invoices(1)", {"name": "x"}),))
    batch(batch_body(change_set(Part(204, b""))), operations=[update])
    (request,) = batch.server.requests
    assert isinstance(request.body, bytes)
    assert f"\r\nPATCH {URL}/api/data/v9.2/invoices(1) HTTP/1.1\r\n".encode() in request.body
    assert b"\r\nIf-Match: *\r\n" in request.body


def test_boundaries_differ_from_batch_to_batch(batch: Batches) -> None:
    batch(SUCCESS)
    batch(SUCCESS)
    first, second = (request.headers["Content-Type"] for request in batch.server.requests[-2:])
    assert first != second


# ---------------------------------------------------------------------------------------------- what comes back


def test_each_operation_has_a_response_and_a_change_set_that_of_its_last_write(batch: Batches) -> None:
    done, invoices, claims = batch(SUCCESS)
    assert (done.status, done.json()) == (200, {"invoiceid": 1})
    assert (invoices.json(), claims.json()) == ({"value": []}, {"value": [1]})
    request_id = batch.server.requests[0].headers["x-ms-client-request-id"]
    assert {part.request_id for part in (done, invoices, claims)} == {request_id}


REFUSED = Part(400, b'{"error": {"code": "0x80040265", "message": "No."}}')


@pytest.mark.parametrize(
    "failed",
    [
        REFUSED.encoded(),
        change_set(REFUSED),
        change_set(Part(204, b""), REFUSED),
        change_set(REFUSED, Part(204, b"")),
    ],
    ids=["one part", "one part inside", "after a success", "before a success"],
)
def test_a_change_set_that_failed_has_the_response_of_the_write_that_did(
    failed: bytes, batch: Batches
) -> None:
    """It comes as a single part, or as parts of its own: both are tolerated."""
    done, *reads = batch(batch_body(failed, Part(), Part()))
    with pytest.raises(InvoiceRefused, match=r"Dataverse responded 400 0x80040265: No\."):
        done.json()
    assert [read.status for read in reads] == [200, 200]


def test_a_response_that_broke_off_anywhere_is_never_taken_for_a_complete_one() -> None:
    """Its parser raises nothing of itself; a batch with too few parts is refused besides."""
    whole = parts_of(SUCCESS)
    taken = []
    for length in range(len(SUCCESS)):
        try:
            parts = parts_of(SUCCESS[:length])
        except DataverseUnreachable:
            continue
        if len(parts) == len(BATCH):
            taken.append(parts)
    assert all(parts == whole for parts in taken)
    assert len(taken) <= len("--\r\n"), "only what comes after the last boundary may be missing"


@pytest.mark.parametrize(
    "parts", [(), (Part(),), (Part(), Part()), (Part(), Part(), Part(), Part())], ids=["0", "1", "2", "4"]
)
def test_another_number_of_responses_than_operations_is_no_response(
    parts: tuple[Part, ...], batch: Batches
) -> None:
    with pytest.raises(DataverseUnreachable, match="broke off") as raised:
        batch(batch_body(*parts))
    assert raised.value.request_id


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (b"<html>Sign in</html>", "text/html", DataverseUnavailable),
        (b'{"value": []}', "application/json", DataverseUnavailable),
        (b"", "", DataverseUnavailable),
        (b"nothing of the kind", "multipart/mixed; boundary=b", DataverseUnreachable),
        (SUCCESS, "multipart/mixed; boundary=another", DataverseUnreachable),
        (SUCCESS, "multipart/mixed", DataverseUnreachable),
        (batch_body(b"Content-Type: text/plain\r\n\r\nhi", Part(), Part()), MULTIPART, DataverseUnreachable),
        (
            batch_body(b"Content-Type: multipart/mixed\r\n\r\nhi", Part(), Part()),
            MULTIPART,
            DataverseUnreachable,
        ),
    ],
)
def test_something_else_than_dataverse_may_respond(
    body: bytes, content_type: str, error: type[InvoicingFailure], batch: Batches
) -> None:
    with pytest.raises(error) as raised:
        batch(body, content_type=content_type)
    assert raised.value.request_id


def test_a_batch_may_fail_as_a_whole(batch: Batches) -> None:
    refused = b'{"error": {"code": "0x80072560", "message": "No user."}}'
    with pytest.raises(DataverseForbidden, match=r"403 0x80072560: No user\."):
        batch((403, refused), content_type="application/json")


def test_exceeded_limits_in_a_part_throttle_the_process(batch: Batches) -> None:
    busy = Part(429, b'{"error": {"code": "0x80072322", "message": "Busy."}}', {"Retry-After": "20"})
    done, *_ = batch(batch_body(busy, Part(), Part()))
    with pytest.raises(DataverseThrottled) as raised:
        done.json()
    assert raised.value.retry_after == 20
    batch(SUCCESS)
    assert batch.clock.sleeps == [20]


@pytest.mark.parametrize("code", ["0x80040265", "0x80048d04", ""])
def test_a_429_of_one_records_plug_in_throttles_nobody_else(code: str, batch: Batches) -> None:
    busy = Part(429, b'{"error": {"code": "%s", "message": "Busy."}}' % code.encode())
    done, *_ = batch(batch_body(busy, Part(), Part()))
    with pytest.raises(DataverseThrottled):
        done.raise_for_status()
    batch(SUCCESS)
    assert batch.clock.sleeps == []


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, b"<html>Too many requests"),
        (429, b'{"error": {"code": "0x80072322", "message": "Busy."}}'),
        (503, b'{"error": {"code": "0x80072322", "message": "Busy."}}'),
    ],
)
def test_a_whole_response_throttles_the_process(status: int, body: bytes, batch: Batches) -> None:
    with pytest.raises(DataverseThrottled):
        batch((status, body), content_type="application/json")
    batch(SUCCESS)
    assert batch.clock.sleeps == [10]


# ---------------------------------------------------------------------------------------------- stopped batches


def asked(request: requests.PreparedRequest) -> list[str]:
    """Return the first line of each request in a batch."""
    assert isinstance(request.body, bytes)
    return re.findall(r"(?:GET|POST) \S+/v9.2/(\w+)", request.body.decode())


STOPPED = batch_body(REFUSED)


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "stopped",
    [STOPPED, batch_body(change_set(REFUSED)), STOPPED.replace(b"\r\n", b"\n")],
    ids=["a part", "a change set", "line feeds alone"],
)
def test_reads_that_a_stopped_batch_leaves_out_are_made_by_themselves(
    stopped: bytes, status: int, batch: Batches
) -> None:
    """Whether an environment goes on after a failed change set is an assumption that nothing depends on."""
    reads = batch_body(Part(), Part(body=b'{"value": [1]}'))
    done, invoices, claims = batch((status, stopped), (200, reads))
    with pytest.raises(InvoiceRefused):
        done.raise_for_status()
    assert (invoices.json(), claims.json()) == ({"value": []}, {"value": [1]})
    assert [asked(request) for request in batch.server.requests] == [
        ["annotations", "DoIt", "invoices", "annotations"],
        ["invoices", "annotations"],
    ]


def test_a_batch_that_stops_at_every_part_is_still_complete(batch: Batches) -> None:
    forbidden = batch_body(Part(403, b"{}"))
    responses = batch((403, forbidden), (403, forbidden), (403, forbidden))
    assert [response.status for response in responses] == [403, 403, 403]
    assert len(batch.server.requests) == 3


@pytest.mark.parametrize("status", [429, 401])
def test_the_status_of_a_stopped_batch_is_that_of_one_record(status: int, batch: Batches) -> None:
    """The plug-in of one record is busy, or does not know its caller: that is no limit and no bad token."""
    busy = batch_body(change_set(Part(status, b'{"error": {"code": "0x80048d04", "message": "Busy."}}')))
    reads = batch_body(Part(), Part())
    batch.tokens.renewals.append("another token")
    done, *_ = batch((status, busy), (200, reads))
    assert done.status == status
    assert len(batch.server.requests) == 2
    assert batch.tokens.refused == []


def test_parts_within_parts_are_read_to_a_depth_or_refused(batch: Batches) -> None:
    """Never a RecursionError, which would count as a bug of ours."""
    nested = b"Content-Type: text/plain\r\n\r\nhello"
    for number in range(3_000):
        head = f"Content-Type: multipart/mixed; boundary=b{number}\r\n\r\n".encode()
        nested = head + multipart(f"b{number}", [nested])
    with pytest.raises((DataverseUnreachable, DataverseUnavailable)):
        batch(batch_body(nested, Part(), Part()))


def test_a_second_request_that_fails_concludes_nothing(batch: Batches) -> None:
    with pytest.raises(DataverseUnreachable, match="broke off"):
        batch((400, STOPPED), (200, batch_body(Part())))


def test_headers_of_a_part_may_be_written_in_any_way(batch: Batches) -> None:
    odd = Part(429, b"", {"RETRY-AFTER": "  9  ", "No-Value": "", "Url": "https://a:b"}).encoded()
    odd = odd.replace(b"\r\nHTTP/", b"\r\n\r\nHTTP/")
    done, *_ = batch(batch_body(odd, Part(), Part()))
    assert done.headers == {"retry-after": "9", "no-value": "", "url": "https://a:b"}


@given(st.binary(max_size=60), st.integers(0, len(SUCCESS)), st.integers(0, 60))
def test_no_response_is_a_bug(noise: bytes, at: int, instead_of: int) -> None:
    body = SUCCESS[:at] + noise + SUCCESS[at + instead_of :]
    try:
        parts = parts_of(body)
        for part in parts:
            part.json()
    except InvoicingFailure:
        return
    assert all(isinstance(part, Response) for part in parts)
