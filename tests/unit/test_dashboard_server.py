from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from operations.background import in_background
from operations.dashboard.application import Dashboard
from operations.dashboard.server import Server, create_app
from operations.dashboard.snapshot import ConnectionState, Figures, Light, MessageRow, Snapshot
from operations.messages import MessageInfo
from operations.names import OpportunityName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flask.testing import FlaskClient

TOKEN = "t0ken"
PORT = 8123
ORIGIN = f"http://127.0.0.1:{PORT}"
SCRIPT = "<script>alert(1)</script>"
BAD = "\x1b[2J\u202etxt.exe\x9b31m"
NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)


def failure(number: int, reason: str = "InvoiceRefused", name: str | None = "Pump") -> MessageRow:
    seen = MessageInfo(reason, "the text", None, NOW, 1, NOW, None)
    return MessageRow(str(number), seen, None if name is None else OpportunityName(name, "Alder", "€1.00"))


def panel(*texts: str) -> dict[str, Any]:
    lists = dict.fromkeys(("rules", "faults", "open", "requests"), texts)
    return {"summary": "".join(texts), **lists}


def message(text: str) -> dict[str, Any]:
    return {
        "reason": text,
        "description": text,
        "fields": {"a": text},
        "properties": {text: text},
        "body": text,
    }


class FakeSource(Dashboard):
    """What the page shows, and what was asked of it; it reads nothing."""

    def __init__(self) -> None:
        self.shown = Snapshot()
        self.acted: list[tuple[str, Mapping[str, Any]]] = []
        self.read: list[str] = []
        self.panel: Mapping[str, Any] | None = None
        self.done: Sequence[Mapping[str, Any]] = []
        self.audited: Mapping[str, Any] | None = None
        self.whole: Mapping[str, Any] = message("the body")
        self.found: Mapping[str, Any] = {"title": "Pump"}

    def say(self, text: str) -> None:
        """Have a text in every place that shows one."""
        seen = MessageInfo(text, text, text, None, 2, None, None)
        row = MessageRow("1", seen, OpportunityName(text, text, text))
        connection = ConnectionState("won", Light.RED, text)
        self.shown = Snapshot(Figures(failed=1), {"won": connection}, [row], [row], {"x": text})
        self.panel, self.whole = panel(text), message(text)
        self.done = [
            {"title": text, "done": 0, "total": None, "running": False, "error": text, "outcomes": {text: 1}}
        ]
        self.found = {
            "title": text,
            "candidates": [("1", text)],
            "verdict": text,
            "advice": text,
            "light": "red",
            "timeline": [{"at": NOW, "what": text, "detail": text}],
            "unseen": [text],
            "traces": text,
            "error": text,
        }
        finding = {"opportunity": "1", "name": text, "finding": text, "advice": text}
        self.audited = {"summary": text, "missing": 1, "findings": [finding]}

    def snapshot(self) -> Snapshot:
        return self.shown

    def jobs(self) -> Sequence[Mapping[str, Any]]:
        return self.done

    def act(self, action: str, selection: Mapping[str, Any]) -> None:
        if action == "dance":
            raise ValueError("There is no action 'dance'.")
        self.acted.append((action, selection))

    def message(self, message_id: str) -> Mapping[str, Any] | None:
        self.read.append(message_id)
        return self.whole if message_id == "7" else None

    def opportunity(self, text: str) -> Mapping[str, Any]:
        self.read.append(text)
        return self.found

    def audit(self) -> Mapping[str, Any] | None:
        return self.audited

    def sandbox(self) -> Mapping[str, Any] | None:
        return self.panel

    def sandbox_call(self, action: str, values: Mapping[str, Any]) -> str:
        return f"{action} {dict(values)}"


class SilentSource(FakeSource):
    """An application that waits for Azure when it is asked for an opportunity."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()
        self.responds = threading.Event()
        self.threads: list[threading.Thread] = []

    def opportunity(self, text: str) -> Mapping[str, Any]:
        self.threads.append(threading.current_thread())
        self.waits.set()
        self.responds.wait(30)
        return super().opportunity(text)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def client(source: FakeSource) -> FlaskClient:
    return create_app(source, TOKEN, lambda: PORT).test_client()


def get(client: FlaskClient, path: str, **headers: str) -> Any:  # noqa: ANN401 - werkzeug's response
    return client.get(f"/{TOKEN}/{path}", base_url=ORIGIN, headers=headers)


def post(client: FlaskClient, path: str, content: object, **headers: str) -> Any:  # noqa: ANN401 - as above
    return client.post(f"/{TOKEN}/{path}", base_url=ORIGIN, json=content, headers=headers)


# --- who may use it ---


def test_the_page_is_served_under_the_token_only(client: FlaskClient) -> None:
    assert get(client, "").status_code == 200
    for path in ("/", "/guess/", "/guess/state", f"/{TOKEN}x/"):
        assert client.get(path, base_url=ORIGIN).status_code == 404


@pytest.mark.parametrize("host", ["evil.example:8123", "127.0.0.1:9999", "127.0.0.1.evil.example:8123"])
def test_another_host_name_is_refused(client: FlaskClient, host: str) -> None:
    """DNS rebinding: an attacker's name that resolves to this machine."""
    assert client.get(f"/{TOKEN}/", base_url=f"http://{host}").status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"}],
)
def test_a_request_of_another_page_is_refused(
    client: FlaskClient, source: FakeSource, headers: dict[str, str]
) -> None:
    response = post(client, "do/replay", {"reason": "x"}, **headers)
    assert (response.status_code, source.acted) == (403, [])


def test_a_form_of_another_page_cannot_act(client: FlaskClient, source: FakeSource) -> None:
    """A form sends text without asking first; JSON needs permission."""
    response = client.post(
        f"/{TOKEN}/do/replay", base_url=ORIGIN, data='{"reason": "x"}', content_type="text/plain"
    )
    assert (response.status_code, source.acted) == (415, [])


def test_only_what_is_served_from_here_is_loaded(client: FlaskClient) -> None:
    policy = get(client, "").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert get(client, "").headers["Referrer-Policy"] == "no-referrer", "the address has the token in it"
    with get(client, "static/dashboard.js") as script:
        assert script.status_code == 200
    assert "style=" not in get(client, "").text, "the policy forbids styles in the page"
    assert get(client, "static/../server.py").status_code == 404


# --- what it shows ---


def test_everything_is_escaped(client: FlaskClient, source: FakeSource) -> None:
    """A customer called <script>, in every part that shows names, reasons and texts."""
    source.say(SCRIPT)
    for path in ("", f"failed?reason={quote(SCRIPT)}", "message/7", "opportunity?text=x"):
        shown = get(client, path).text
        assert SCRIPT not in shown
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


class Shown(HTMLParser):
    """What a person sees of a page: texts, and the attributes that browsers show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.texts += [value for name, value in attrs if value and name in ("title", "aria-label", "value")]


def test_control_characters_are_shown_and_not_interpreted(client: FlaskClient, source: FakeSource) -> None:
    """In every part: an override of the direction shows another text than the one that is there."""
    source.say(BAD)
    pages = [
        get(client, path).text
        for path in ("", f"failed?reason={quote(BAD)}", "message/7", "opportunity?text=x")
    ]
    for page in pages:
        texts = Shown(page).texts
        assert "\\u202e" in "".join(texts)
        assert [text for text in texts if set(text) & {"\x1b", "\u202e", "\x9b"}] == []


def test_no_body_is_read_until_asked_for(client: FlaskClient, source: FakeSource) -> None:
    source.shown = Snapshot(failures=[failure(7)])
    get(client, "")
    get(client, "failed?reason=InvoiceRefused")
    assert source.read == []
    assert "the text" in get(client, "failed?reason=InvoiceRefused").text
    assert "the body" in get(client, "message/7").text
    assert get(client, "message/8").status_code == 404


def test_ten_thousand_failed_messages_come_in_pages(client: FlaskClient, source: FakeSource) -> None:
    source.shown = Snapshot(Figures(failed=10_000), failures=[failure(number) for number in range(10_000)])
    page = get(client, "").text
    assert "10,000" in page
    assert len(page) < 50_000, "the groups are shown, not the messages"
    first = get(client, "failed?reason=InvoiceRefused").text
    assert first.count("<tr data-key") == 100
    assert "first=100" in first
    last = get(client, "failed?reason=InvoiceRefused&first=9950").text
    assert (last.count("<tr data-key"), "data-more" in last) == (50, False)


def test_failed_messages_are_grouped_by_reason(client: FlaskClient, source: FakeSource) -> None:
    source.shown = Snapshot(failures=[failure(1, "Rare"), failure(2, "Often"), failure(3, "Often")])
    shown = get(client, "").text
    assert shown.index('data-reason="Often"') < shown.index('data-reason="Rare"')


def test_only_the_parts_that_changed_are_sent(client: FlaskClient, source: FakeSource) -> None:
    everything = get(client, "state").json
    known = json.dumps({name: part["tag"] for name, part in everything.items()})
    assert get(client, f"state?known={quote(known)}").json == {}
    source.shown = Snapshot(Figures(active=3))
    changed = get(client, f"state?known={quote(known)}").json
    assert list(changed) == ["flow"]
    assert "3" in changed["flow"]["html"]


def test_a_group_changes_when_a_name_of_it_is_learned(client: FlaskClient, source: FakeSource) -> None:
    """An open group is read again then."""
    source.shown = Snapshot(failures=[failure(1, name=None)])
    before = get(client, "state").json["failed"]["tag"]
    source.shown = Snapshot(failures=[failure(1, name="Pump")])
    assert get(client, "state").json["failed"]["tag"] != before


def test_what_is_not_known_is_not_shown_as_zero(client: FlaskClient) -> None:
    shown = get(client, "").text
    assert "No message has failed." not in shown
    assert '<tspan data-figure="failed">0</tspan>' not in shown


# --- what it does ---


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.26, "1.3 s"), (59.9, "59.9 s"), (125, "2 min"), (9051.9, "2 h")]
)
def test_the_time_to_the_event_fits_its_box(
    client: FlaskClient, source: FakeSource, seconds: float, shown: str
) -> None:
    """After an outage it is hours."""
    source.shown = Snapshot(Figures(seconds_to_event=seconds))
    assert f">{shown} from the win<" in get(client, "").text


def test_an_action_is_passed_on(client: FlaskClient, source: FakeSource) -> None:
    response = post(client, "do/replay", {"ids": ["7"]}, Origin=ORIGIN)
    assert (response.status_code, source.acted) == (202, [("replay", {"ids": ["7"]})])


def test_an_action_that_does_not_exist_is_an_error_with_a_sentence(client: FlaskClient) -> None:
    response = post(client, "do/dance", {})
    assert (response.status_code, response.json) == (400, {"error": "There is no action 'dance'."})


def test_without_a_sandbox_there_is_no_panel(client: FlaskClient, source: FakeSource) -> None:
    assert "data-sandbox" not in get(client, "").text
    source.panel = panel()
    assert "data-sandbox" in get(client, "").text
    assert post(client, "sandbox/win", {"count": 1}).json == {"said": "win {'count': 1}"}


# --- the end ---


def test_the_end_does_not_wait_for_a_request_that_waits_for_azure() -> None:
    source = SilentSource()
    server = Server(source)
    serving = in_background("serving", server.serve)
    with socket.create_connection(("127.0.0.1", server.port)) as browser:
        address = f"{server.url}opportunity?text=Pump"
        host = f"127.0.0.1:{server.port}"
        browser.sendall(f"GET {address.partition(host)[2]} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert source.waits.wait(30)

        server.stop()

        assert source.read == [], "the request still waits"
        assert source.threads[0].daemon, "the end of the process does not wait for it either"
        source.responds.set()
    assert serving.result(30) is None
