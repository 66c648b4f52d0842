"""The Dataverse Web API: a read or a batch goes out, values or the errors that call for a decision come back.

It knows sessions, tokens, headers, change sets and throttling; which requests make sense is left to `invoicing.py`.
Whether a request that failed was carried out is never inferred here: "refused", "reset after the commit" and "no
answer" look alike to a client.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.parser import BytesParser
from email.policy import compat32
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
from requests.utils import requote_uri

from shared.errors import (
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnauthorized,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoiceRefused,
    InvoicingFailure,
    RecordNotFound,
)
from shared.owner import Care, NotAnswered, Owner
from shared.record import Record
from shared.session import Bearer, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from email.message import Message

    from shared.clock import Clock, Deadline

_logger = logging.getLogger(__name__)

Json = dict[str, Any]

API = "/api/data/v9.2/"

_SUCCESS = range(200, 300)
_FAILURE = range(400, 600)

# Dataverse rolls back whatever takes longer than two minutes: a shorter wait would only create doubt.
_ANSWER_LIMIT = 125.0
# Up to here a thread waits in place when told to hold back; beyond, its message is better put aside.
_HOLD_BACK_IN_PLACE = 5.0
# Seconds by which such a thread may go on later than it was told to, so that not all come back at once.
_MOST_JITTER = 1.0
_RETRY_AFTER_ABSENT = 10.0
_RETRY_AFTER_BOUNDS = (1.0, 15 * 60.0)

_OBJECT_DOES_NOT_EXIST = "0x80040217"
_THROTTLED = frozenset({"0x80072321", "0x80072322", "0x80072326"})


@dataclass(frozen=True)
class Read:
    """A retrieve or a query; `path` is relative to the Web API's root, and its spaces are encoded here."""

    path: str


@dataclass(frozen=True)
class Write:
    """A POST inside a change set."""

    path: str
    body: Json


@dataclass(frozen=True)
class ChangeSet:
    """Writes that are carried out all or none: a change set is one transaction in Dataverse."""

    writes: tuple[Write, ...]


@dataclass(frozen=True)
class Response:
    """What came back for one request or one part of a batch, and when. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    received: datetime

    def raise_for_status(self) -> None:
        """Raise the decision that an error calls for."""
        if self.status not in _SUCCESS:
            raise _error(self)

    def json(self) -> Json:
        """Return the JSON object of a success, `{}` where there is no body; raises the error's decision."""
        self.raise_for_status()
        if not self.body.strip():
            return {}
        document = _json(self.body)
        if document is None:
            raise DataverseUnavailable(
                f"A response with status {self.status} is not Dataverse's JSON.", request_id=self.request_id
            )
        return document

    def record(self) -> Record:
        """Return the row of a retrieve; raises the error's decision."""
        return Record(self.json(), self.request_id)

    def records(self) -> list[Record]:
        """Return the rows of a query; raises the error's decision."""
        rows = self.json().get("value")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.record().unexpected("value")
        return [Record(row, self.request_id) for row in rows]


class Dataverse:
    """One environment's Web API, safe under many threads.

    `token` gives an access token before a deadline, `random` numbers from 0 to 1 for the jitter. `session` makes what
    the requests go through.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Callable[[Deadline], str],
        clock: Clock,
        random: Callable[[], float],
        session: Callable[[], Session] = Session,
    ) -> None:
        self._root = url + API
        self._token = token
        self._clock = clock
        self._care: Care[Session] = Care(build=session, close=Session.close, abandon=Session.cut)
        self._owners: deque[Owner[Session]] = deque()
        self._hold_back = _HoldBack(clock, random)

    def __repr__(self) -> str:
        return f"<Dataverse {self._root}>"

    def read(self, read: Read, deadline: Deadline) -> Response:
        """Return the answer to one GET; raises the error of a request that has no whole answer."""
        return self.request("GET", read.path, _READ_HEADERS, b"", deadline)

    def batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        """Return an answer for each operation, in order; a failed one does not keep the next from being tried.

        A change set has one answer: that of the write that failed, or of its last. Raises the error of a batch that has
        no whole answer; its change sets may then have been carried out.
        """
        boundary = f"batch_{uuid.uuid4()}"
        headers = {
            "Content-Type": f'multipart/mixed; boundary="{boundary}"',
            "Prefer": "odata.continue-on-error",
        }
        body = _multipart(boundary, [_part(operation, self._root) for operation in operations])
        answer = self.request("POST", "$batch", headers, body, deadline)
        if answer.status != requests.codes.ok:
            raise _error(answer)
        answers = _parts(answer)
        if len(answers) != len(operations):
            raise DataverseUnreachable(
                f"The answer to a batch broke off: {len(answers)} of {len(operations)} parts came.",
                request_id=answer.request_id,
            )
        for part in answers:
            self._hold_back.note(part)
        return answers

    def close(self) -> None:
        """Let the threads and connections go that are not in use."""
        while (owner := self._idle_owner()) is not None:
            owner.close()

    def _idle_owner(self) -> Owner[Session] | None:
        # Not "if there is one, take it": another thread may take it in between.
        try:
            return self._owners.pop()
        except IndexError:
            return None

    def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
    ) -> Response:
        """Return the answer to one request, which must be repeatable; raises where there is no whole answer."""
        token = self._token(deadline)
        try:
            answer = self._send(method, path, headers, body, token, deadline)
        except _BrokenConnection:
            # A connection that died while it was idle shows only now. Every request made here is repeatable.
            answer = self._send(method, path, headers, body, token, deadline)
        self._hold_back.note(answer)
        return answer

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, token: str, deadline: Deadline
    ) -> Response:
        # The last thing before each request, a repeated one included: others may have been told to hold back since.
        self._hold_back.wait(deadline)
        request_id = str(uuid.uuid4())
        timeout = min(deadline.remaining, _ANSWER_LIMIT)
        if timeout <= 0:
            raise DataverseUnreachable(f"No time was left for {method} {_name(path)}.", request_id=request_id)

        def send(session: Session) -> requests.Response:
            return session.request(
                method,
                self._root + path,
                data=body or None,
                headers={**_COMMON_HEADERS, **headers, "x-ms-client-request-id": request_id},
                auth=Bearer(token),
                timeout=(min(timeout, 10.0), timeout),
                allow_redirects=False,
            )

        started = time.monotonic()
        owner = self._idle_owner() or Owner("dataverse", self._care)
        try:
            response = owner.call(send, limit=timeout, timeout=timeout)
        except (NotAnswered, requests.RequestException) as error:
            broken = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout)
            kind = _BrokenConnection if broken else DataverseUnreachable
            what = type(error).__name__
            _logger.warning("dataverse: %s %s failed: %s (request %s)", method, _name(path), what, request_id)
            raise kind(f"{method} {_name(path)} has no answer: {what}.", request_id=request_id) from error
        finally:
            self._owners.append(owner)
        _logger.info(
            "dataverse: %s %s %d in %d ms (request %s, service request %s)",
            method,
            _name(path),
            response.status_code,
            (time.monotonic() - started) * 1000,
            request_id,
            response.headers.get("x-ms-service-request-id") or response.headers.get("req_id", "none"),
        )
        return Response(
            response.status_code,
            {name.lower(): value for name, value in response.headers.items()},
            response.content,
            request_id,
            self._clock.now(),
        )


class _BrokenConnection(DataverseUnreachable):
    """Refused, reset or closed: worth one repeat in place."""


class _HoldBack:
    """What a 429 asks of all threads of the process: no request before its time."""

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._until = 0.0

    def note(self, answer: Response) -> None:
        """Hold everybody back if the answer is a 429."""
        if answer.status == requests.codes.too_many_requests:
            with self._lock:
                self._until = max(self._until, self._clock.monotonic() + _retry_after(answer))

    def wait(self, deadline: Deadline) -> None:
        """Wait in place if that is short; raises DataverseThrottled with what is left otherwise."""
        # Again after each wait: another thread may have been told to hold back for longer.
        while (left := self._until - self._clock.monotonic()) > 0:
            if left > min(_HOLD_BACK_IN_PLACE, deadline.remaining):
                raise DataverseThrottled(
                    "Dataverse asked this process to hold back, and the request was not sent.",
                    retry_after=left,
                )
            # The request itself needs some of the time, too.
            jitter = min(_MOST_JITTER, (deadline.remaining - left) / 2) * self._random()
            self._clock.sleep(left + jitter)


_COMMON_HEADERS = {"Accept": "application/json", "OData-MaxVersion": "4.0", "OData-Version": "4.0"}
_READ_HEADERS = {"If-None-Match": "null", "Prefer": 'odata.include-annotations="*"'}
_WRITE_HEADERS = {"Content-Type": "application/json; charset=utf-8"}


def _name(path: str) -> str:
    # A log line names what was asked for; the query may hold more than belongs there.
    return path.partition("?")[0]


# ---------------------------------------------------------------------------------------------- batches


def _part(operation: Read | ChangeSet, root: str) -> bytes:
    if isinstance(operation, Read):
        return _http_part("GET", root + operation.path, _COMMON_HEADERS | _READ_HEADERS, b"")
    boundary = f"changeset_{uuid.uuid4()}"
    writes = [
        _http_part(
            "POST",
            root + write.path,
            _COMMON_HEADERS | _WRITE_HEADERS,
            json.dumps(write.body).encode(),
            content_id=number,
        )
        for number, write in enumerate(operation.writes, start=1)
    ]
    head = f'Content-Type: multipart/mixed; boundary="{boundary}"\r\n\r\n'
    return head.encode() + _multipart(boundary, writes)


def _http_part(
    method: str, url: str, headers: Mapping[str, str], body: bytes, content_id: int | None = None
) -> bytes:
    head = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    if content_id is not None:
        head.append(f"Content-ID: {content_id}")
    # Encoded as requests encodes the address of a request by itself: a query has spaces.
    request = [
        f"{method} {requote_uri(url)} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*head, "", *request, "", ""]).encode() + body


def _multipart(boundary: str, parts: Sequence[bytes]) -> bytes:
    return (
        b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
        + f"--{boundary}--\r\n".encode()
    )


def _parts(answer: Response) -> list[Response]:
    """Return the parts of a batch's answer; raises DataverseUnreachable where it broke off."""
    content_type = answer.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/mixed"):
        raise DataverseUnavailable("A batch was not answered as a batch.", request_id=answer.request_id)
    document = BytesParser(policy=compat32).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + answer.body
    )
    return [
        _answer_of(part, answer.request_id, answer.received)
        for part in _whole_parts(document, answer.request_id)
    ]


def _whole_parts(document: Message, request_id: str) -> list[Any]:
    # A truncated answer raises nothing in the parser: it is told by its defects.
    parts = document.get_payload()
    if document.defects or not isinstance(parts, list):
        raise DataverseUnreachable("The answer to a batch broke off.", request_id=request_id)
    return parts


def _answer_of(part: Message, request_id: str, received: datetime) -> Response:
    if part.is_multipart():
        # A change set: as many parts as writes, or one that tells why none was carried out.
        answers = [_answer_of(inner, request_id, received) for inner in _whole_parts(part, request_id)]
        failed = [answer for answer in answers if answer.status in _FAILURE]
        return (failed or answers)[-1]
    payload = part.get_payload(decode=True)
    head, _, body = (payload if isinstance(payload, bytes) else b"").partition(b"\r\n\r\n")
    status_line, _, header_lines = head.decode("latin-1").lstrip().partition("\r\n")
    match = re.match(r"HTTP/\S+ (\d{3})\b", status_line)
    if match is None:
        raise DataverseUnreachable("A part of a batch's answer is no HTTP answer.", request_id=request_id)
    lines = [line.partition(":") for line in header_lines.split("\r\n") if line]
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    return Response(int(match[1]), headers, body, request_id, received)


# ---------------------------------------------------------------------------------------------- answers


def _json(body: bytes) -> Json | None:
    """Return the JSON object of an answer with exact numbers, or None where it is not one."""
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")


def _error(answer: Response) -> InvoicingFailure:
    """Return the decision that a status, and Dataverse's own code where there is one, calls for."""
    code, text = _code_and_message(answer)
    said = f"Dataverse answered {answer.status}" + (f" {code}: {text}" if code or text else ".")
    request_id = answer.request_id or None
    if answer.status == requests.codes.too_many_requests or code in _THROTTLED:
        wait = _retry_after(answer)
        return DataverseThrottled(said, retry_after=wait, request_id=request_id)
    if answer.status == requests.codes.not_found and code == _OBJECT_DOES_NOT_EXIST:
        return RecordNotFound(said, request_id=request_id)
    by_status: dict[int, type[InvoicingFailure]] = {
        requests.codes.unauthorized: DataverseUnauthorized,
        requests.codes.forbidden: DataverseForbidden,
        requests.codes.not_found: DataverseNotFound,
        # Refused as it is: a plug-in, a missing price list, a rule of the business.
        requests.codes.bad_request: InvoiceRefused if code else DataverseUnavailable,
    }
    return by_status.get(answer.status, DataverseUnavailable)(said, request_id=request_id)


def _code_and_message(answer: Response) -> tuple[str, str]:
    document = _json(answer.body)
    error = document.get("error") if document else None
    if not isinstance(error, dict):
        return "", ""
    code, message = error.get("code"), error.get("message")
    # Only the message: the other annotations, such as TraceText, can hold personal data.
    return _one_line(code, 40).lower(), _one_line(message, 500)


def _one_line(value: object, length: int) -> str:
    # JSON can hold half a surrogate pair, which can neither be sent on nor be logged.
    return " ".join(str(value or "").split()).encode(errors="replace").decode()[:length]


def _retry_after(answer: Response) -> float:
    """Return seconds to hold back: the header is seconds or a date, and may be absent, negative or huge."""
    value = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, answer.received)
    lowest, highest = _RETRY_AFTER_BOUNDS
    # Comparisons with NaN are false: it ends at the lowest.
    return seconds if lowest <= seconds <= highest else (highest if seconds > highest else lowest)


def _seconds_until(date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return _RETRY_AFTER_ABSENT
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - now).total_seconds()
