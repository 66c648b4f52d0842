from __future__ import annotations

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest
import requests

from shared.clock import Deadline, SystemClock
from shared.dataverse import Dataverse, Read
from shared.errors import (
    DataverseThrottled,
    DataverseUnauthorized,
    DataverseUnavailable,
    DataverseUnreachable,
    InvoicingFailure,
    TokenUnavailable,
)
from shared.message import Delivery, RetryState
from shared.response import Response

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from shared.message import Message
    from tests.unit.conftest import FakeClock, FakeServer, FixedTokens, Reply, TlsServer

Failure = TypeVar("Failure", bound=InvoicingFailure)

URL = "https://contoso.crm4.dynamics.com"
WHO_AM_I = Read("WhoAmI")


class Stage:
    """A client, the server that its requests go to, and what it depends on. The jitter is 0, or `jitter` in turn."""

    def __init__(
        self, server: FakeServer, clock: FakeClock, tokens: FixedTokens, make_reply: Callable[..., Reply]
    ) -> None:
        self.server = server
        self.clock = clock
        self.tokens = tokens
        self.jitter: list[float] = []
        self.deadline = Deadline.after(clock, 180)
        self._make_reply = make_reply
        self.dataverse = Dataverse(
            URL,
            tokens=tokens,
            clock=clock,
            random=lambda: self.jitter.pop(0) if self.jitter else 0.0,
            exchange=server.exchange,
        )

    def reply(self, **given: object) -> None:
        """Set the response of the server."""
        self.replies(given)

    def replies(self, *given: dict[str, object]) -> None:
        """Set the responses of the server: the arguments of one for each request."""
        self.server.replies.clear()
        self.server.replies.extend(self._make_reply(**each) for each in given)

    def read(self, read: Read = WHO_AM_I, *, within: float | None = None) -> Response:
        deadline = self.deadline if within is None else Deadline.after(self.clock, within)
        return self.dataverse.read(read, deadline)

    def throttle(self, seconds: float) -> None:
        """Let the client be throttled."""
        self.dataverse._throttle.note(
            Response(429, {"retry-after": str(seconds)}, b"", "r", self.clock.now())
        )


@pytest.fixture
def stage(
    server: FakeServer, clock: FakeClock, tokens: FixedTokens, make_reply: Callable[..., Reply]
) -> Iterator[Stage]:
    stage = Stage(server, clock, tokens, make_reply)
    yield stage
    stage.dataverse.close()


@pytest.fixture(autouse=True)
def no_token_is_ever_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check all that every test here logs."""
    caplog.set_level(logging.DEBUG)
    yield
    for phase in ("setup", "call"):
        for record in caplog.get_records(phase):
            assert "eyJ." not in record.getMessage()


def fails(call: Callable[[], object], error_type: type[Failure]) -> Failure:
    """Return the error that a call raises; neither it nor its causes contain the token."""
    with pytest.raises(error_type) as raised:
        call()
    error: BaseException | None = raised.value
    while error is not None:
        assert "eyJ." not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    return raised.value


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("dataverse: ")]


# ---------------------------------------------------------------------------------------------- what is sent


def test_a_read_carries_the_headers_that_the_web_api_wants(stage: Stage) -> None:
    assert stage.read(Read("accounts?$filter=name eq 'x'")).json() == {}
    (request,) = stage.server.requests
    assert request.method == "GET"
    assert request.url == f"{URL}/api/data/v9.2/accounts?$filter=name%20eq%20'x'"
    assert request.body is None
    headers = dict(request.headers)
    uuid.UUID(headers.pop("x-ms-client-request-id"))
    assert headers == {
        "Accept": "application/json",
        "Authorization": f"Bearer {stage.tokens.value}",
        "If-None-Match": "null",
        "OData-MaxVersion": "4.0",
        "OData-Version": "4.0",
        "Prefer": 'odata.include-annotations="*"',
    }


def test_every_request_has_an_id_of_its_own_which_log_and_errors_tell(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.replies(
        {"headers": {"x-ms-service-request-id": "service-1"}},
        {"headers": {"REQ_ID": "service-2"}},
        {"status": 503, "body": b"down"},
    )
    for _ in range(2):
        stage.read(Read("WhoAmI?$select=secret"))
    error = fails(stage.read().json, DataverseUnavailable)
    ids = [request.headers["x-ms-client-request-id"] for request in stage.server.requests]
    assert len(set(ids)) == 3
    assert error.request_id == ids[2]
    assert ids[2] in str(error)
    names = ("service request service-1", "service request service-2", "503")
    for line, client_id, name in zip(logged(caplog), ids, names, strict=True):
        assert client_id in line
        assert name in line
        assert "secret" not in line, "a query may hold more than belongs into a log"


def test_what_others_wrote_forges_no_log_line(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The address of a next page is Dataverse's, and a header may be a proxy's: both can hold escape sequences."""
    stage.replies({"headers": {"x-ms-service-request-id": "1 \x1b[2J " + 999 * "x"}})
    stage.read(Read("invoices\nparked: reason=Forged\x1b[2J?$skiptoken=1"))
    (line,) = logged(caplog)
    assert line.isprintable()
    assert len(line) < 500


def test_lines_within_a_delivery_name_it(
    stage: Stage, make_message: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    """A search by opportunity or root finds the requests, too."""
    stage.replies({}, {"error": requests.ReadTimeout("x")})
    message = make_message()
    delivery = Delivery(message, RetryState.of(message), stage.deadline, opportunity_id="o-1")
    with delivery.named_in_log_lines():
        stage.read()
        fails(stage.read, DataverseUnreachable)
    lines = logged(caplog)
    assert len(lines) == 2
    assert all(line.endswith(f") opportunity=o-1 root={delivery.state.root}") for line in lines)


def test_a_log_line_says_how_long_a_request_took(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.server.on_request = lambda: stage.clock.advance(2)
    stage.read()
    (line,) = logged(caplog)
    assert line.startswith("dataverse: GET WhoAmI 200 in 2000 ms (request ")
    assert line.endswith(", service request none)")


def test_a_redirect_is_an_error_and_the_token_goes_nowhere_else(stage: Stage) -> None:
    stage.replies({"status": 302, "headers": {"Location": "https://login.example/"}}, {})
    error = fails(stage.read().json, DataverseUnavailable)
    assert "302" in str(error)
    assert len(stage.server.requests) == 1


def test_a_response_is_waited_for_as_long_as_dataverse_may_take_and_no_longer_than_the_deadline(
    stage: Stage,
) -> None:
    """Dataverse rolls back after two minutes: giving up before would only create doubt."""
    for seconds in (180, 60, 0.5):
        stage.read(within=seconds)
    assert [options["timeout"] for options in stage.server.options] == [(125, 125), (60, 60), (0.5, 0.5)]


def test_nothing_is_sent_when_no_time_is_left(stage: Stage) -> None:
    error = fails(lambda: stage.read(within=0), DataverseUnreachable)
    assert "No time was left for GET WhoAmI." in str(error)
    assert error.request_id
    assert stage.server.requests == []


def test_nothing_is_sent_without_a_token(stage: Stage) -> None:
    stage.tokens.error = TokenUnavailable("No token.")
    fails(stage.read, TokenUnavailable)
    assert stage.server.requests == []
    assert stage.tokens.deadlines == [stage.deadline]


def test_a_401_leads_to_one_attempt_with_a_new_token(stage: Stage) -> None:
    """The token may have been revoked; where a new one is refused too, something is set up wrong."""
    stage.tokens.renewals.extend(["eyJ.new", "eyJ.never"])
    stage.replies({"status": 401}, {"body": b'{"a": 1}'})
    assert stage.read().json() == {"a": 1}
    assert stage.tokens.refused == [stage.tokens.value]
    assert [request.headers["Authorization"] for request in stage.server.requests] == [
        f"Bearer {stage.tokens.value}",
        "Bearer eyJ.new",
    ]
    stage.reply(status=401)
    fails(stage.read().raise_for_status, DataverseUnauthorized)
    assert len(stage.server.requests) == 4


def test_without_a_new_token_a_401_stays_one(stage: Stage) -> None:
    stage.reply(status=401)
    fails(stage.read().raise_for_status, DataverseUnauthorized)
    assert len(stage.server.requests) == 1


def test_a_representation_shows_where_and_no_secret(stage: Stage) -> None:
    assert repr(stage.dataverse) == f"<Dataverse {URL}/api/data/v9.2/>"


# ---------------------------------------------------------------------------------------------- broken connections


def test_a_broken_connection_is_tried_once_more_in_place(stage: Stage) -> None:
    stage.replies({"error": requests.ConnectionError("reset")}, {"body": b'{"a": 1}'})
    assert stage.read().json() == {"a": 1}
    first, second = (request.headers["x-ms-client-request-id"] for request in stage.server.requests)
    assert first != second


def test_and_not_more_than_once(stage: Stage) -> None:
    stage.reply(error=requests.ConnectionError("reset"))
    error = fails(stage.read, DataverseUnreachable)
    assert len(stage.server.requests) == 2
    assert error.reason == "DataverseUnreachable"
    assert error.request_id == stage.server.requests[1].headers["x-ms-client-request-id"]


@pytest.mark.parametrize(
    "error",
    [
        requests.ReadTimeout("slow"),
        requests.ConnectTimeout("slow"),
        requests.exceptions.ChunkedEncodingError("cut"),
        requests.exceptions.ContentDecodingError("no gzip"),
    ],
)
def test_what_took_its_time_or_broke_off_is_left_to_a_copy(stage: Stage, error: Exception) -> None:
    stage.reply(error=error)
    failure = fails(stage.read, DataverseUnreachable)
    (request,) = stage.server.requests
    request_id = request.headers["x-ms-client-request-id"]
    assert str(failure) == (
        f"GET WhoAmI got no whole response: {type(error).__name__}. (request {request_id})"
    )


def test_a_bug_is_not_taken_for_an_outage(stage: Stage) -> None:
    stage.reply(error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        stage.read()


# ---------------------------------------------------------------------------------------------- throttling


@pytest.mark.parametrize(
    ("retry_after", "asked", "waits"),
    [("7.5", 7.5, 7.5), ("0.1", 1, 1), ("soon", None, 10), (None, None, 10)],
)
def test_a_429_says_how_long_the_process_waits(
    stage: Stage, retry_after: str | None, asked: float | None, waits: float
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    stage.replies({"status": 429, "body": b"", "headers": headers}, {})
    assert fails(stage.read().json, DataverseThrottled).retry_after == asked
    assert stage.read().status == 200
    assert stage.clock.sleeps == [waits]


def test_the_process_waits_for_no_longer_than_a_quarter_of_an_hour(stage: Stage) -> None:
    stage.throttle(1e300)
    stage.clock.advance(900)
    assert stage.read(within=180).status == 200
    assert stage.clock.sleeps == []


def test_a_minute_is_waited_for_in_place(stage: Stage) -> None:
    stage.throttle(60)
    assert stage.read().status == 200
    assert stage.clock.sleeps == [60]
    stage.read()
    assert stage.clock.sleeps == [60]
    assert len(stage.server.requests) == 2


def test_those_who_waited_in_place_go_on_spread_over_a_second_and_none_before_its_time(stage: Stage) -> None:
    """All at once would be throttled again."""
    stage.jitter = [1.0, 0.25, 0.0]
    for _ in range(3):
        stage.throttle(5)
        stage.read()
    assert stage.clock.sleeps == [6, 5.25, 5]


def test_the_jitter_leaves_time_for_the_request(stage: Stage) -> None:
    stage.jitter = [1.0]
    stage.throttle(4)
    assert stage.read(within=8.5).status == 200
    assert stage.clock.sleeps == [4.25]


def test_nothing_is_sent_before_a_long_time_is_over(stage: Stage) -> None:
    """Going on would extend the penalty: others of the process do not even ask.

    A thread first waits for a minute, in which it takes no other message that would be throttled as well.
    """
    stage.replies({"status": 429, "headers": {"Retry-After": "120"}}, {})
    fails(stage.read().json, DataverseThrottled)
    stage.clock.advance(20)
    assert fails(stage.read, DataverseThrottled).retry_after == 40
    assert stage.clock.sleeps == [60]
    assert len(stage.server.requests) == 1
    stage.clock.advance(40)
    assert stage.read().status == 200
    assert stage.clock.sleeps == [60]


def test_a_shorter_time_does_not_take_back_a_longer_one(stage: Stage) -> None:
    stage.throttle(61)
    stage.throttle(1)
    fails(stage.read, DataverseThrottled)


def test_a_thread_that_waited_in_place_checks_again(stage: Stage) -> None:
    """Another thread may have been throttled for longer in the meantime."""
    stage.throttle(2)
    stage.clock.on_sleep = lambda: stage.throttle(60)
    fails(stage.read, DataverseThrottled)
    assert stage.clock.sleeps == [2, 58], "a minute in all"
    assert stage.server.requests == []


def test_nobody_waits_in_place_for_more_than_half_of_what_is_left(stage: Stage) -> None:
    stage.throttle(4)
    for seconds in (6, 1.5):
        fails(partial(stage.read, within=seconds), DataverseThrottled)
    assert (stage.server.requests, stage.clock.sleeps) == ([], [3, 0.75])


def test_a_thread_takes_its_token_after_it_waited(stage: Stage) -> None:
    """A token is valid for a minute at least, which is no longer than a thread waits."""
    stage.throttle(60)
    sleeps: list[list[float]] = []
    stage.tokens.on_token = lambda: sleeps.append([*stage.clock.sleeps])
    assert stage.read().status == 200
    assert sleeps == [[60]]


def test_the_time_for_a_token_is_time_in_which_others_may_be_throttled(stage: Stage) -> None:
    stage.tokens.on_token = lambda: stage.throttle(61)
    fails(stage.read, DataverseThrottled)
    assert stage.server.requests == []


def at_once(stage: Stage, most: int = 50, in_the_last: Callable[[], None] = lambda: None) -> int:
    """Return how many requests may be under way: each one begins another, until one would have to wait."""
    begun = 0

    def begin_another() -> None:
        nonlocal begun
        begun += 1
        if begun == most:
            in_the_last()
            return
        with suppress(DataverseThrottled):
            stage.read(within=0.1)

    stage.server.on_request = begin_another
    stage.read()
    stage.server.on_request = lambda: None
    return begun


def test_without_a_429_any_number_of_requests_is_under_way(stage: Stage) -> None:
    assert at_once(stage, most=50) == 50


def test_after_a_429_one_request_goes_first_and_their_number_grows_fast_to_half_of_what_was_too_much(
    stage: Stage,
) -> None:
    """Other processes share the limits, so all at once would be throttled again. What was under way does not count."""
    assert at_once(stage, most=12, in_the_last=lambda: stage.throttle(5)) == 12
    assert [at_once(stage) for _ in range(5)] == [1, 2, 4, 6, 6]
    assert [at_once(stage) for _ in range(5)] == [6, 6, 7, 7, 7]


def test_what_is_too_much_is_learned_anew_with_each_429(stage: Stage) -> None:
    at_once(stage, most=12, in_the_last=lambda: stage.throttle(5))
    at_once(stage)
    at_once(stage, most=2, in_the_last=lambda: stage.throttle(5))
    assert [at_once(stage) for _ in range(3)] == [1, 1, 1]


def test_a_429_to_the_request_that_goes_first_keeps_what_was_learned(stage: Stage) -> None:
    at_once(stage, most=8, in_the_last=lambda: stage.throttle(5))
    at_once(stage, in_the_last=lambda: stage.throttle(5), most=1)
    assert [at_once(stage) for _ in range(4)] == [1, 2, 4, 4]


def test_a_request_without_a_response_is_not_under_way_any_more(stage: Stage) -> None:
    stage.throttle(5)
    stage.reply(error=requests.ReadTimeout())
    fails(stage.read, DataverseUnreachable)
    stage.reply()
    assert stage.read().status == 200


def test_who_waits_for_a_turn_looks_again_until_half_of_the_time_is_over(stage: Stage) -> None:
    stage.throttle(5)
    errors = []

    def ask_meanwhile() -> None:
        stage.server.on_request = lambda: None
        errors.append(fails(lambda: stage.read(within=1), DataverseThrottled))

    stage.server.on_request = ask_meanwhile
    stage.read()
    assert stage.clock.sleeps == [5, pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.1)]
    assert errors[0].retry_after == 0.2


# ---------------------------------------------------------------------------------------------- over sockets


@pytest.fixture
def online(tls_server: TlsServer, tokens: FixedTokens, trusted: None) -> Iterator[Dataverse]:  # noqa: ARG001 - trust comes first
    """Return a client of a real server, in real time."""
    dataverse = Dataverse(tls_server.url, tokens=tokens, clock=SystemClock(), random=lambda: 0.0)
    yield dataverse
    dataverse.close()


def in_time() -> Deadline:
    return Deadline.after(SystemClock(), 20)


def test_a_connection_is_for_one_thread_at_a_time(online: Dataverse, tls_server: TlsServer) -> None:
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda _: online.read(WHO_AM_I, in_time()), range(400)))
    assert len({response.request_id for response in responses}) == 400
    assert len(tls_server.requests) == 400
    used = tls_server.connections
    assert used <= 16
    online.close()
    assert online.read(WHO_AM_I, in_time()).status == 200, "it can be used again"
    assert tls_server.connections == used + 1


def test_a_connection_that_died_while_it_was_idle_is_replaced(
    online: Dataverse, tls_server: TlsServer
) -> None:
    def serve(connection: socket.socket) -> None:
        tls_server.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        if tls_server.connections == 1:
            tls_server.read(connection)
        else:
            tls_server.respond(connection, b"{}")

    tls_server.serve = serve
    for _ in range(2):
        assert online.read(WHO_AM_I, in_time()).status == 200
    assert [len(tls_server.requests), tls_server.connections] == [3, 2]


def test_the_error_of_a_connection_has_no_token(online: Dataverse, tls_server: TlsServer) -> None:
    def serve(connection: socket.socket) -> None:
        tls_server.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")

    tls_server.serve = serve
    error = fails(lambda: online.read(WHO_AM_I, in_time()), DataverseUnreachable)
    assert str(error).startswith("GET WhoAmI got no whole response: ProtocolError. (request ")
