"""Serves the dashboard to the browser of one person on this machine.

Every address begins with a random token, so that no other user or page can guess it. Requests must name this server as
their host, which defeats DNS rebinding, and must not come from another site. The content security policy forbids
everything that is not served from here; the templates escape all values, and write characters that change how text
is shown, such as its direction, as escapes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cheroot import wsgi
from flask import Flask, Response, abort, jsonify, render_template, request

from operations.background import in_background, interruptible_result
from operations.console import age_text, printable, printable_lines
from operations.dashboard.snapshot import Light

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from operations.dashboard.application import Dashboard
    from operations.dashboard.snapshot import MessageRow

HOST = "127.0.0.1"
_PAGE = 100
_THREADS = 10
_STOP_SECONDS = 2.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(application: Dashboard, token: str, port: Callable[[], int]) -> Flask:
    """Return the web application; `port` is the one on which it is reached."""
    app = Flask(__name__)
    app.jinja_env.filters.update(
        age=age_text,
        plain=printable,
        plain_lines=printable_lines,
        clock=_clock,
        duration=_duration,
        version=_version,
    )
    app.jinja_env.globals.update(Light=Light)
    prefix = f"/{token}"

    _guard(app, token, port)
    _serve_parts(app, application, prefix)
    _serve_actions(app, application, prefix)
    return app


def _guard(app: Flask, token: str, port: Callable[[], int]) -> None:
    """Refuse what does not come from the page itself, and add the headers of every response."""

    @app.before_request
    def check_origin() -> None:
        allowed = {f"{HOST}:{port()}", f"localhost:{port()}"}
        if request.host not in allowed:
            abort(403, "This dashboard is reached only under the address that it printed.")
        presented = request.path.split("/")[1]
        if not hmac.compare_digest(presented.encode(), token.encode()):
            abort(404)
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            abort(403, "Another page must not use this dashboard.")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in allowed}:
            abort(403, "Another page must not use this dashboard.")
        # A form of another site can send text, not this content type, without asking first.
        if request.method == "POST" and not request.is_json:
            abort(415)

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response


def _serve_parts(app: Flask, application: Dashboard, prefix: str) -> None:
    """Add what is read."""

    @app.get(f"{prefix}/")
    def page() -> str:
        return render_template("page.html", prefix=prefix, parts=_parts(application))

    @app.get(f"{prefix}/static/<path:name>")
    def static_file(name: str) -> Response:
        return app.send_static_file(name)

    @app.get(f"{prefix}/state")
    def state() -> Response:
        known = json.loads(request.args.get("known", "{}"))
        changed = {
            name: {"html": html, "tag": tag}
            for name, html in _parts(application).items()
            if (tag := _tag(html)) != known.get(name)
        }
        return jsonify(changed)

    @app.get(f"{prefix}/failed")
    def failed() -> str:
        reason = request.args.get("reason", "")
        first = request.args.get("first", 0, type=int)
        group = dict(application.snapshot().by_reason()).get(reason, [])
        following = first + _PAGE
        return render_template(
            "failed_rows.html",
            failures=group[first:following],
            following=following if following < len(group) else None,
            total=len(group),
            reason=reason,
        )

    @app.get(f"{prefix}/message/<message_id>")
    def message(message_id: str) -> str:
        return render_template("message.html", message=application.message(message_id) or abort(404))

    @app.get(f"{prefix}/opportunity")
    def opportunity() -> str:
        return render_template(
            "opportunity.html", **application.opportunity(request.args.get("text", "").strip())
        )


def _serve_actions(app: Flask, application: Dashboard, prefix: str) -> None:
    """Add what is done."""

    @app.post(f"{prefix}/do/<action>")
    def do(action: str) -> tuple[Response, int]:
        try:
            application.act(action, request.get_json())
        except ValueError as error:
            return jsonify({"error": str(error)}), 400
        return jsonify({}), 202

    @app.post(f"{prefix}/sandbox/<action>")
    def sandbox(action: str) -> tuple[Response, int]:
        try:
            return jsonify({"said": application.sandbox_call(action, request.get_json())}), 200
        except ValueError as error:
            return jsonify({"error": str(error)}), 400


def _parts(application: Dashboard) -> dict[str, str]:
    """Return the parts of the page that change by themselves, by the id of the element that holds each."""
    snapshot = application.snapshot()
    return {
        "flow": render_template("flow.html", snapshot=snapshot),
        "troubles": render_template("troubles.html", snapshot=snapshot),
        "failed": render_template("failed.html", groups=snapshot.by_reason(), snapshot=snapshot),
        "waiting": render_template("waiting.html", retries=snapshot.retries[:_PAGE], snapshot=snapshot),
        "jobs": render_template("jobs.html", jobs=application.jobs()),
        "audit": render_template("audit.html", audit=application.audit()),
        "sandbox": render_template("sandbox.html", sandbox=application.sandbox()),
    }


def _tag(html: str) -> str:
    return hashlib.blake2b(html.encode(), digest_size=8).hexdigest()


def _version(failures: Sequence[MessageRow]) -> str:
    """Return a text that changes when the rows of a group do: an open group is then read again."""
    return _tag(repr([(each.id, each.name, each.seen.description) for each in failures]))


def _clock(moment: datetime | None) -> str:
    """Return a time of this day, or the date as well where it is another one; in the local zone."""
    if moment is None:
        return ""
    local = moment.astimezone()
    near = abs(moment - datetime.now(UTC)) < timedelta(hours=12)
    return f"{local:%H:%M:%S}" if near else f"{local:%Y-%m-%d %H:%M}"


def _duration(seconds: float) -> str:
    """Return tenths of a second below a minute, and above it the largest unit: 1.3 s, 12 min, 3 h."""
    return f"{seconds:.1f} s" if seconds < 60 else age_text(timedelta(seconds=seconds))  # noqa: PLR2004


class Server:
    """The dashboard at a port of this machine.

    A request may wait for Azure, and Cheroot waits for requests without limit when it stops. So it runs in the
    background: its threads are daemons, like the thread that starts them.
    """

    def __init__(self, application: Dashboard, port: int = 0) -> None:
        self._token = secrets.token_urlsafe(24)
        self._server = wsgi.Server(
            (HOST, port), create_app(application, self._token, lambda: self.port), numthreads=_THREADS
        )
        in_background("prepare", self._server.prepare).result()

    @property
    def port(self) -> int:
        """The port, also where a free one was asked for."""
        return int(self._server.bind_addr[1])

    @property
    def url(self) -> str:
        """The address to open, with the token in it: a secret of the person who started it."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve(self) -> None:
        """Serve until `stop`, or Ctrl-C."""
        interruptible_result(in_background("serve", self._server.serve))

    def stop(self) -> None:
        """Close the port, and wait for requests that are under way, for a short time at most."""
        wait([in_background("stop", self._server.stop)], _STOP_SECONDS)
