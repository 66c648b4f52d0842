"""The sandbox that the dashboard was started with: win, break, repair, kill, move time, show traces.

The environment names its control address and the token for it (SANDBOX_CONTROL, SANDBOX_CONTROL_TOKEN). Without them
there is no panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from operations.console import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SECONDS = 30.0
_REQUESTS = 25
# The attributes of a span that are shown, by the word that stands for each.
_SHOWN = {
    "attempt": "invoicing.attempt",
    "outcome": "invoicing.outcome",
    "status": "http.response.status_code",
}
# Each retry is a child of the attempt before it, and there may be hundreds.
_MAX_INDENT = 60
_RULES = (
    "dataverse refuse",
    "dataverse silent",
    "dataverse unavailable",
    "dataverse throttled",
    "identity refuse",
    "identity silent",
    "service-bus-out refuse",
    "service-bus-in reset",
)


@dataclass(frozen=True)
class SandboxPanel:
    """Calls a sandbox's control address."""

    url: str
    token: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> SandboxPanel | None:
        """Return the panel of the sandbox that the environment names, if it names one."""
        url, token = environment.get("SANDBOX_CONTROL"), environment.get("SANDBOX_CONTROL_TOKEN")
        return cls(url.rstrip("/"), token) if url and token else None

    def state(self) -> Mapping[str, Any] | None:
        """Return what the panel shows; None while the sandbox does not respond."""
        try:
            status = self._call("GET", "/status")
            newest = self._call("GET", "/requests")[-_REQUESTS:]
            opportunities = self._call("GET", "/opportunities")
        except ValueError:
            return None
        counts = status.get("opportunities") or {}
        states = ", ".join(f"{counts.get(state, 0)} {state}" for state in ("open", "won", "lost"))
        return {
            "rules": _RULES,
            "faults": [f"{each['rule']}{_until(each)}" for each in status["faults"]],
            "summary": f"Opportunities: {states}.",
            "open": [each["name"] for each in opportunities if each["state"] == "open"][:_REQUESTS],
            "requests": [
                f"{each['at'][11:19]} {each['client']} {each['method']} {each['url']} {each['status']}"
                for each in reversed(newest)
            ],
        }

    def traces(self, opportunity_id: str) -> str:
        """Return the spans of an opportunity as text, "" where none are collected."""
        try:
            spans = self._call("GET", f"/traces?opportunity={opportunity_id}")
        except ValueError:
            return ""
        return traces_text(spans)

    def act(self, action: str, values: Mapping[str, Any]) -> str:
        """Act on the sandbox; return a sentence. Raises ValueError with a sentence."""
        actions: dict[str, Callable[[], str]] = {
            "win": lambda: self._win(values),
            "break": lambda: self._break(values),
            "repair": lambda: self._done("DELETE", "/faults", {}, "All connections work again."),
            "kill-worker": lambda: self._done("POST", "/workers/kill", {}, "The worker was killed."),
            "advance": lambda: self._done("POST", "/clock", dict(values), "Service Bus's clock was moved."),
        }
        if action not in actions:
            raise ValueError(f"The sandbox panel has no action {action!r}.")
        return actions[action]()

    def _win(self, values: Mapping[str, Any]) -> str:
        search = str(values.get("search") or "").strip()
        body = (
            {"opportunities": [search]} if search else {"count": self._at_most_open(values.get("count", 1))}
        )
        won = self._call("POST", "/win", body)
        return f"{len(won)} won." if len(won) != 1 else f"{won[0]['name']} is won."

    def _at_most_open(self, count: int) -> int:
        """Return the count, or how many opportunities are open where these are fewer; at least one."""
        opportunities = self._call("GET", "/status").get("opportunities") or {}
        return min(count, max(int(opportunities.get("open", 0)), 1))

    def _break(self, values: Mapping[str, Any]) -> str:
        body = {"rule": str(values.get("rule", "")), "seconds": values.get("seconds")}
        return self._done("POST", "/faults", body, "The connection is broken.")

    def _done(self, method: str, path: str, body: Mapping[str, Any], sentence: str) -> str:
        self._call(method, path, body)
        return sentence

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        headers = {"Authorization": f"Bearer {self.token}"}
        with requests.Session() as session:
            # The control address is on this machine: no proxy is meant for it.
            session.trust_env = False
            try:
                response = session.request(
                    method, self.url + path, json=body, headers=headers, timeout=_SECONDS
                )
                content = response.json()
            except (requests.RequestException, ValueError) as error:
                raise ValueError(f"The sandbox does not respond: {type(error).__name__}.") from error
        if not response.ok:
            raise ValueError(str(content.get("error", response.status_code)))
        return content


def traces_text(spans: Iterable[Mapping[str, Any]]) -> str:
    """Return spans, as the control address returns them, as text: each below the one that caused it; "" for none."""
    return "\n".join("  " * min(span["depth"], _MAX_INDENT) + _line(span) for span in spans)


def _line(span: Mapping[str, Any]) -> str:
    attributes = span["attributes"]
    shown = [f"{word}={attributes[name]}" for word, name in _SHOWN.items() if name in attributes]
    if span["error"]:
        shown.append(f"ERROR: {span['error']}")
    return printable("  ".join([span["name"], f"{span['milliseconds']:,.0f} ms", span["service"], *shown]))


def _until(fault: Mapping[str, Any]) -> str:
    until = fault.get("until")
    return f" until {until[11:19]}" if until else ""
