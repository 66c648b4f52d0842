"""What is behind the page: snapshots, jobs, searches and the sandbox's panel, over the functions of the commands."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError

from operations.billing import read_billing
from operations.console import count
from operations.dashboard.collector import Collector
from operations.dashboard.jobs import Jobs
from operations.dashboard.sandbox_panel import SandboxPanel
from operations.dashboard.snapshot import Light
from operations.failed import (
    Outcome,
    discard_with_record,
    failed_message,
    failed_messages,
    new_file,
    replay_messages,
)
from operations.following import ReplayTracker
from operations.messages import MessageInfo, body_as_text, text_properties
from operations.namespace import ServiceBusTimeout, open_namespace
from operations.opportunity import Verdict, find, history
from operations.reconcile import AuditContext, Problem, audit, send_wins, won_since
from operations.selection import parse_message_id
from operations.trouble import explain
from operations.waiting import retry_messages, waiting_messages
from operations.web_api import WebApi
from shared.errors import InvoicingFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from operations.dashboard.jobs import Job
    from operations.dashboard.snapshot import Snapshot
    from operations.failed import Settled
    from operations.namespace import MessageId, NamespaceClient

_FOLLOW_SECONDS = 60.0
_LIGHTS = {
    Verdict.INVOICED_ONCE: Light.GREEN,
    Verdict.NOT_WON: Light.GREEN,
    Verdict.ORDERED: Light.GREEN,
    Verdict.RETRIED: Light.YELLOW,
    Verdict.IN_QUEUE: Light.YELLOW,
    Verdict.NOT_INVOICED: Light.UNKNOWN,
}


class Dashboard:
    """The application; `start` begins to read, `stop` ends."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._collector = Collector(environment)
        self._jobs = Jobs()
        self._sandbox = SandboxPanel.of(environment)
        self._audit: Mapping[str, Any] | None = None
        self._missing: Sequence[str] = ()

    def start(self) -> None:
        """Begin to read in the background."""
        self._collector.start()

    def stop(self) -> None:
        """End reading and working."""
        self._collector.stop()
        self._jobs.stop()

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot."""
        return self._collector.snapshot()

    def jobs(self) -> Sequence[Mapping[str, Any]]:
        """Return the newest jobs."""
        return self._jobs.shown()

    def audit(self) -> Mapping[str, Any] | None:
        """Return the newest audit."""
        return self._audit

    # --- actions ---

    def act(self, action: str, selection: Mapping[str, Any]) -> None:
        """Begin an action; raises ValueError with a sentence."""
        actions: dict[str, tuple[str, Callable[[Job], None]]] = {
            "replay": ("Replay", lambda job: self._replay(job, selection)),
            "discard": ("Discard", lambda job: self._discard(job, selection)),
            "retry": ("Retry now", lambda job: self._retry(job, selection)),
            "send": ("Send", self._send),
            "audit": ("Audit", lambda job: self._run_audit(job, str(selection.get("since", "")))),
        }
        if action not in actions:
            raise ValueError(f"There is no action {action!r}.")
        if action == "audit":
            _day(str(selection.get("since", "")))
        self._jobs.add(*actions[action])

    def _replay(self, job: Job, selection: Mapping[str, Any]) -> None:
        with open_namespace(self._environment) as namespace:
            ids = self._selected(namespace, selection, job)
            tracker = ReplayTracker.of(namespace)
            settled = self._settle(job, replay_messages(namespace, ids))
            copies = {each.copy_id: each.opportunity_id for each in settled if each.outcome is Outcome.DONE}
            fates = tracker.follow(copies, _FOLLOW_SECONDS) if copies else {}
        job.outcomes = Counter(
            str(fates[each.copy_id].state.value) if each.copy_id in fates else _sentence(each)
            for each in settled
        )

    def _discard(self, job: Job, selection: Mapping[str, Any]) -> None:
        with open_namespace(self._environment) as namespace:
            ids = self._selected(namespace, selection, job)
            file = new_file("discarded")
            job.title = f"Discard (exported to {file})"
            self._settle(
                job, discard_with_record(self._environment, namespace, ids, "from the dashboard", file)
            )

    def _settle(self, job: Job, settling: Iterable[Settled]) -> list[Settled]:
        done = []
        for each in settling:
            done.append(each)
            job.count([_sentence(each)])
        self._collector.refresh()
        return done

    def _selected(
        self, namespace: NamespaceClient, selection: Mapping[str, Any], job: Job
    ) -> list[MessageId]:
        ids = [parse_message_id(str(each)) for each in selection.get("ids", [])]
        if "reason" in selection:
            found = failed_messages(namespace, lambda _: None)
            ids = [each.id for each in found if each.seen.reason == selection["reason"]]
        job.total = len(ids)
        return ids

    def _retry(self, job: Job, selection: Mapping[str, Any]) -> None:
        with open_namespace(self._environment) as namespace:
            numbers = set(selection.get("numbers", []))
            chosen = [
                each
                for each in waiting_messages(namespace, lambda _: None)
                if each.number in numbers or "everything" in selection
            ]
            job.total = len(chosen)
            job.count(each.problem or "sent" for each in retry_messages(namespace, chosen))
        self._collector.refresh()

    def _run_audit(self, job: Job, since: str) -> None:
        context = AuditContext.of(self._environment)
        ids = list(won_since(context.api, _day(since)))
        job.total = len(ids)

        def billings() -> Iterator[Any]:
            for billing in read_billing(context.api, ids):
                job.done += 1
                yield billing

        findings = list(audit(billings(), context))
        self._missing = [
            each.billing.opportunity_id for each in findings if each.problem is Problem.NO_INVOICE
        ]
        problems = f"{count(len(findings), 'finding')}" if findings else "none missing"
        self._audit = {
            "summary": f"{count(len(ids), 'win')} since {since} checked, {problems}.",
            "missing": len(self._missing),
            "findings": [
                {
                    "opportunity": each.billing.opportunity_id,
                    "name": each.billing.name,
                    "finding": f"{each.problem.text}{': ' + each.detail if each.detail else ''}",
                    "advice": each.problem.advice,
                }
                for each in findings
            ],
        }

    def _send(self, job: Job) -> None:
        missing, self._missing = self._missing, ()
        job.total = len(missing)
        job.done = send_wins(self._environment, missing)
        job.outcomes["sent"] = job.done
        if self._audit is not None:
            self._audit = {**self._audit, "missing": 0}

    # --- searches ---

    def message(self, message_id: str) -> Mapping[str, Any] | None:
        """Return one failed message whole, or None."""
        with open_namespace(self._environment) as namespace:
            peeked = failed_message(namespace, parse_message_id(message_id))
        if peeked is None or peeked.message is None:
            return None
        message, seen = peeked.message, MessageInfo.of(peeked.message)
        return {
            "reason": seen.reason,
            "description": seen.description,
            "fields": {
                "Opportunity": seen.opportunity_id or "not known",
                "First seen": seen.since or "",
                "Attempts": seen.attempts,
                "Message id": message.message_id or "",
                "Correlation id": message.correlation_id or "",
                "Content type": message.content_type or "",
                "Subject": message.subject or "",
            },
            "properties": text_properties(message),
            "body": body_as_text(message),
        }

    def opportunity(self, text: str) -> Mapping[str, Any]:
        """Return the history and the verdict of an opportunity, or the candidates."""
        if not text:
            return {
                "title": "Opportunity",
                "error": "Enter an id, a part of the name, or the number of an invoice.",
            }
        try:
            api = WebApi.of(self._environment)
            matches = find(api, text)
            if not matches:
                return {"title": text, "error": "No opportunity matches, as far as your login reads."}
            if len(matches) > 1:
                named = [
                    (each.opportunity_id, f"{each.name} ({each.customer or 'no customer'}, {each.state})")
                    for each in matches
                ]
                return {"title": text, "candidates": named}
            opportunity_id = matches[0].opportunity_id
            found = history(self._environment, api, opportunity_id)
        except (InvoicingFailure, AzureError, ServiceBusTimeout, OSError) as error:
            return {"title": text, "error": str(explain(error) or error)}
        return {
            "title": f"{found.billing.name} ({found.billing.customer or 'no customer'})",
            "verdict": f"{found.sentence[0].upper()}{found.sentence[1:]}.",
            "advice": found.advice,
            "light": _LIGHTS.get(found.verdict, Light.RED).value,
            "timeline": [
                {"at": each.time, "what": each.what, "detail": each.detail} for each in found.timeline
            ],
            "unseen": [*found.remarks, *(f"Not seen: {each}" for each in found.not_seen)],
            "traces": self._sandbox.traces(opportunity_id) if self._sandbox else "",
        }

    # --- the sandbox ---

    def sandbox(self) -> Mapping[str, Any] | None:
        """Return the state of the sandbox, or None."""
        return self._sandbox.state() if self._sandbox else None

    def sandbox_call(self, action: str, values: Mapping[str, Any]) -> str:
        """Act on the sandbox; return a sentence. Raises ValueError."""
        if self._sandbox is None:
            raise ValueError("No sandbox runs with this dashboard.")
        return self._sandbox.act(action, values)


def _sentence(settled: Settled) -> str:
    return f"{settled.outcome.value}: {settled.text}" if settled.text else settled.outcome.value


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError("Enter the day as YEAR-MONTH-DAY.") from error
