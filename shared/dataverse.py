"""The Dataverse Web API: sends a read or a batch, and returns values or raises the error that decides.

It handles sessions, tokens, headers, change sets and throttling; which requests make sense is left to `invoicing.py`.
Whether a request that failed was carried out is never inferred here: a refusal, a reset after the commit and a
timeout look alike to a client.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import requests

from shared import multipart
from shared.errors import (
    DataverseThrottled,
    DataverseUnavailable,
    DataverseUnreachable,
)
from shared.http_exchange import ConnectionBroken, HttpExchange, NoResponse, Request, encoded
from shared.message import log_suffix
from shared.response import Json, Response, bounded
from shared.text import one_line
from shared.tracing import OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shared.clock import Clock, Deadline
    from shared.credential import Tokens
    from shared.http_exchange import Exchange
    from shared.tracing import Tracing

_logger = logging.getLogger(__name__)

API = "/api/data/v9.2/"

# Dataverse rolls back what takes longer than two minutes: a shorter wait would only create doubt.
_RESPONSE_LIMIT = 125.0
# Seconds for which a throttled thread waits in place. Meanwhile it takes no further message that would be throttled as
# well: a backlog stays in the queue, instead of being scheduled again, whole, in each window of the limits.
_MAX_WAIT_IN_PLACE = 60.0
# Seconds by which such a thread may go on later than it was asked to, so that not all continue at once.
_MAX_JITTER = 1.0
# After slow start: when as many requests have ended as may be under way, a quarter of a request more may be.
_ADDITIVE_INCREASE = 0.25
# Seconds after which a thread checks again whether one more request may be under way.
_NEXT_TURN = 0.2
_RETRY_AFTER_ABSENT = 10.0
# Characters of a name or an id in a log line.
_MAX_NAME = 200


@dataclass(frozen=True)
class Read:
    """A retrieve or a query; `path` is relative to the Web API's root, and its spaces are encoded here."""

    path: str


@dataclass(frozen=True)
class Write:
    """A POST inside a change set."""

    path: str
    body: Json

    method: ClassVar[str] = "POST"

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers besides those of every write."""
        return {}


@dataclass(frozen=True)
class Update(Write):
    """A PATCH of an existing row inside a change set, if its etag is `if_match`.

    By default any etag matches: without the condition, the request would create a row that does not exist.
    """

    if_match: str = "*"

    method: ClassVar[str] = "PATCH"

    @property
    def headers(self) -> Mapping[str, str]:
        """The condition."""
        return {"If-Match": self.if_match}


@dataclass(frozen=True)
class ChangeSet:
    """Writes that are carried out all or none: a change set is one transaction in Dataverse."""

    writes: tuple[Write, ...]


class Dataverse:
    """One environment's Web API, safe under many threads.

    `tokens` gives access tokens, `random` numbers from 0 to 1 for the jitter. `exchange` is what the requests go
    through.
    """

    def __init__(
        self,
        url: str,
        *,
        tokens: Tokens,
        clock: Clock,
        random: Callable[[], float],
        exchange: Exchange | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self._tracing = tracing
        self._root = url + API
        self._tokens = tokens
        self._clock = clock
        self._exchange = exchange or HttpExchange(url)
        self._throttle = _Throttle(clock, random, tracing)

    def __repr__(self) -> str:
        return f"<Dataverse {self._root}>"

    def read(self, read: Read, deadline: Deadline) -> Response:
        """Return the response to one GET; raises the error of a request without a complete response."""
        return self.request("GET", read.path, _READ_HEADERS, b"", deadline)

    def batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        """Return a response for each operation, in order; a failed one does not keep the next from being processed.

        A change set has one response: that of the write that failed, or of its last. Raises the error of a batch
        without a complete response; its change sets may then have been carried out.
        """
        responses: list[Response] = []
        # An environment or a gateway may ignore the preference and stop at the first failed operation. What is missing
        # is sent again by itself: each request has at least one response.
        while len(responses) < len(operations):
            responses += self.one_batch(operations[len(responses) :], deadline)
        return responses

    def one_batch(self, operations: Sequence[Read | ChangeSet], deadline: Deadline) -> list[Response]:
        """Return the responses to one request: fewer than operations if Dataverse stopped at a failed one, the last."""
        boundary = f"batch_{uuid.uuid4()}"
        headers = {
            "Content-Type": f'multipart/mixed; boundary="{boundary}"',
            "Prefer": f"odata.continue-on-error,{_ERROR_DETAILS}",
        }
        body = multipart.join(boundary, [_part(operation, self._root) for operation in operations])
        response = self.request("POST", "$batch", headers, body, deadline)
        if not _is_multipart(response):
            response.raise_for_status()
            raise DataverseUnavailable(
                "The response to a batch is not a batch response.", request_id=response.request_id
            )
        # The outer status says nothing: without the preference it is that of the first failed part.
        responses = _parts(response)
        missing = len(operations) - len(responses)
        if missing < 0 or (missing > 0 and not responses[-1].failed):
            raise DataverseUnreachable(
                f"The response to a batch broke off: {len(responses)} of {len(operations)} parts came.",
                request_id=response.request_id,
            )
        for part in responses:
            self._throttle.note_part(part)
        return responses

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._exchange.close()

    def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
    ) -> Response:
        """Return the response to one request, which must be repeatable; raises where there is no whole response."""
        request = Request(method, API + path, {**_COMMON_HEADERS, **headers}, body)
        # Before the token is taken: it could expire while the thread waits.
        self._throttle.wait(deadline)
        token = self._tokens.token(deadline)
        response = self._send_with(token, request, deadline)
        # The status of a batch may be that of one of its parts: then a plug-in does not know its caller.
        if response.status == requests.codes.unauthorized and not _is_multipart(response):
            # The token may have been revoked. Where a new one is refused too, something is set up wrong.
            renewed = self._tokens.renewed(token, deadline)
            if renewed is not None:
                response = self._send_with(renewed, request, deadline)
        self._throttle.note(response)
        return response

    def _send_with(self, token: str, request: Request, deadline: Deadline) -> Response:
        try:
            return self._send(token, request, deadline)
        except _BrokenConnection:
            # A connection that died while it was idle shows only now. Every request made here is repeatable.
            return self._send(token, request, deadline)

    def _send(self, token: str, request: Request, deadline: Deadline) -> Response:
        # The last thing before each request, a repeated one included: others may have been throttled since.
        with self._throttle.turn(deadline):
            return self._send_now(token, request, deadline)

    def _send_now(self, token: str, request: Request, deadline: Deadline) -> Response:
        request_id = str(uuid.uuid4())
        target = _name(request.path)
        what = f"{request.method} {target}"
        timeout = min(deadline.remaining, _RESPONSE_LIMIT)
        if timeout <= 0:
            raise DataverseUnreachable(f"No time was left for {what}.", request_id=request_id)
        headers = {
            **request.headers,
            "Authorization": f"Bearer {token}",
            "x-ms-client-request-id": request_id,
        }
        started = self._clock.monotonic()
        with self._tracing.request(request.method, self._root, target, request_id) as span:
            try:
                response = self._exchange.send(request._replace(headers=headers), timeout)
            except NoResponse as error:
                kind = _BrokenConnection if isinstance(error, ConnectionBroken) else DataverseUnreachable
                _logger.warning(
                    "dataverse: %s failed: %s (request %s)%s", what, error, request_id, log_suffix()
                )
                raise kind(f"{what} got no whole response: {error}.", request_id=request_id) from error
            span.responded(response.status)
        _logger.info(
            "dataverse: %s %d in %d ms (request %s, service request %s)%s",
            what,
            response.status,
            (self._clock.monotonic() - started) * 1000,
            request_id,
            _service_request(response.headers),
            log_suffix(),
        )
        return Response(response.status, response.headers, response.body, request_id, self._clock.now())


class _BrokenConnection(DataverseUnreachable):
    """Refused, reset or closed: worth one repeat in place."""


class _Throttle:
    """What a 429 asks of all threads of the process: no request before its time, and then not all at once.

    Other processes share the limits and are unknown to this one. So it does what TCP does after a loss. Slow start: one
    request goes first, and with each that ends, one more may be under way, up to half of the number at the 429. From
    there on, additive increase.
    """

    def __init__(self, clock: Clock, random: Callable[[], float], tracing: Tracing) -> None:
        self._tracing = tracing
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._until = 0.0
        self._under_way = 0
        self._max_under_way = math.inf
        self._slow_start_threshold = math.inf
        # Another object after each 429.
        self._period = object()

    def note(self, response: Response) -> None:
        """Let everybody wait if a whole response is a 429; the status of a batch may be that of one of its parts."""
        throttled = response.status == requests.codes.too_many_requests or response.exceeds_limits
        if throttled and not _is_multipart(response):
            self._wait_for(response)

    def note_part(self, part: Response) -> None:
        """Let everybody wait if limits are exceeded; another 429 comes from a plug-in and concerns one record."""
        if part.exceeds_limits:
            self._wait_for(part)

    def _wait_for(self, response: Response) -> None:
        self._tracing.throttled()
        seconds = bounded(response.retry_after or _RETRY_AFTER_ABSENT)
        with self._lock:
            self._until = max(self._until, self._clock.monotonic() + seconds)
            # Only by the first 429 of several: the next ones meet fewer requests under way.
            if self._max_under_way > 1:
                self._slow_start_threshold = self._under_way / 2
            self._max_under_way = 1.0
            self._period = object()

    def wait(self, deadline: Deadline) -> None:
        """Wait in place within the deadline; raises DataverseThrottled with what is left if that is not enough."""
        self._sleep_until(lambda: self._until <= self._clock.monotonic(), deadline)

    @contextmanager
    def turn(self, deadline: Deadline) -> Iterator[None]:
        """Make a request within: wait as `wait` does, and until one more request may be under way."""
        self._sleep_until(self._begins, deadline)
        period = self._period
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                # A request that began before the last 429 says nothing about the limits now.
                if period is self._period:
                    in_slow_start = self._max_under_way < self._slow_start_threshold
                    self._max_under_way += 1 if in_slow_start else _ADDITIVE_INCREASE / self._max_under_way

    def _begins(self) -> bool:
        """Count a request as under way if it may begin; return whether it may."""
        with self._lock:
            begins = self._until <= self._clock.monotonic() and self._under_way + 1 <= self._max_under_way
            self._under_way += begins
            return begins

    def _sleep_until(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        # The requests themselves need some of the time, too.
        end = self._clock.monotonic() + min(_MAX_WAIT_IN_PLACE, deadline.remaining / 2)
        # Again after each wait: the response to another thread may have asked for more.
        while not condition():
            now = self._clock.monotonic()
            left, room = max(self._until - now, _NEXT_TURN), end - now
            if room <= 0:
                raise DataverseThrottled(
                    "Dataverse throttles this process, and the request was not sent.", retry_after=left
                )
            jitter = min(_MAX_JITTER, max(room - left, 0.0)) * self._random()
            self._clock.sleep(min(left, room) + jitter)


_COMMON_HEADERS = {"Accept": "application/json", "OData-MaxVersion": "4.0", "OData-Version": "4.0"}
_READ_HEADERS = {"If-None-Match": "null", "Prefer": 'odata.include-annotations="*"'}
# Names the plug-in that refused; "*" would also return the trace text, which can hold personal data.
_ERROR_DETAILS = 'odata.include-annotations="Microsoft.PowerApps.CDS.ErrorDetails*"'
_WRITE_HEADERS = {"Content-Type": "application/json; charset=utf-8", "Prefer": _ERROR_DETAILS}


_STATUS_LINE = re.compile(r"HTTP/\S+ (\d{3})\b")


def _name(path: str) -> str:
    # A log line names what was asked for; the query may hold more than belongs there. The address of a next page is
    # Dataverse's own.
    return one_line(path.removeprefix(API).partition("?")[0], _MAX_NAME)


def _service_request(headers: Mapping[str, str]) -> str:
    # Proxies on the way may have written it, and HTTP allows escape sequences in a header.
    return one_line(headers.get("x-ms-service-request-id") or headers.get("req_id", "none"), _MAX_NAME)


# ---------------------------------------------------------------------------------------------- batches


def _part(operation: Read | ChangeSet, root: str) -> bytes:
    if isinstance(operation, Read):
        return _http_part("GET", root + operation.path, _COMMON_HEADERS | _READ_HEADERS, b"")
    boundary = f"changeset_{uuid.uuid4()}"
    writes = [
        _http_part(
            write.method,
            root + write.path,
            {**_COMMON_HEADERS, **_WRITE_HEADERS, **write.headers},
            json.dumps(write.body).encode(),
            content_id=number,
        )
        for number, write in enumerate(operation.writes, start=1)
    ]
    head = f'Content-Type: multipart/mixed; boundary="{boundary}"\r\n\r\n'
    return head.encode() + multipart.join(boundary, writes)


def _http_part(
    method: str, url: str, headers: Mapping[str, str], body: bytes, content_id: int | None = None
) -> bytes:
    head = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    if content_id is not None:
        head.append(f"Content-ID: {content_id}")
    # Encoded as requests encodes the address of a request by itself: a query has spaces.
    request = [
        f"{method} {encoded(url)} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*head, "", *request, "", ""]).encode() + body


def _is_multipart(response: Response) -> bool:
    return multipart.is_multipart(response.headers.get("content-type", ""))


def _parts(response: Response) -> list[Response]:
    """Return the parts of a response to a batch; raises DataverseUnreachable where it broke off."""
    try:
        parts = multipart.split(response.headers.get("content-type", ""), response.body)
        return [_response_of(part, response) for part in parts]
    except multipart.Truncated as error:
        raise DataverseUnreachable(
            "The response to a batch broke off.", request_id=response.request_id
        ) from error


def _response_of(part: multipart.Part, batch: Response) -> Response:
    if not part.is_multipart:
        return _http_response(part.body, batch)
    # A change set: as many parts as writes, or one that says why none was carried out.
    writes = multipart.split(part.headers["content-type"], part.body)
    responses = [_http_response(write.body, batch) for write in writes]
    failed = [response for response in responses if response.failed]
    return (failed or responses)[-1]


def _http_response(content: bytes, batch: Response) -> Response:
    lines, body = multipart.head_and_body(content.lstrip())
    match = _STATUS_LINE.match(lines[0]) if lines else None
    if match is None:
        raise DataverseUnreachable(
            "A part of the response to a batch is not an HTTP response.", request_id=batch.request_id
        )
    return Response(int(match[1]), multipart.header_fields(lines[1:]), body, batch.request_id, batch.received)
