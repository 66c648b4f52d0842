"""What the dashboard does for a person: one thing after the other, in a thread, with progress and outcomes."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from operations.trouble import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_KEPT = 5


@dataclass
class Job:
    """One thing that is done; the templates show it. `outcomes`: how many messages ended in which way."""

    title: str
    total: int | None = None
    done: int = 0
    running: bool = True
    error: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)

    def count(self, outcomes: Iterable[str]) -> None:
        """Count each outcome as it comes."""
        for outcome in outcomes:
            self.done += 1
            self.outcomes[outcome] += 1


class Jobs:
    """Runs jobs in their order. What fails ends its job with a sentence, and nothing else."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._work: SimpleQueue[tuple[Job, Callable[[Job], None]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    def add(self, title: str, work: Callable[[Job], None]) -> None:
        """Queue some work, which is given its job to report to."""
        job = Job(title)
        self._jobs = [*self._jobs, job][-_KEPT:]
        self._work.put((job, work))

    def shown(self) -> Sequence[Mapping[str, Any]]:
        """Return the newest jobs, the newest first."""
        return [vars(job) | {"outcomes": dict(job.outcomes)} for job in reversed(self._jobs)]

    def stop(self) -> None:
        """End after the job that runs."""
        self._work.put(None)

    def _run(self) -> None:
        while (entry := self._work.get()) is not None:
            job, work = entry
            try:
                work(job)
            except Exception as error:  # noqa: BLE001 - not swallowed: the page shows it
                job.error = str(explain(error) or f"{type(error).__name__}: {error}")
            job.running = False
