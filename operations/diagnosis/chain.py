"""A chain of links, each looked at once, in time, and only if nothing that it stands on is broken.

What a link looks at is its own affair; links that do not depend on one another are looked at together, since most
of the time is spent waiting for somebody's answer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from operations.diagnosis.findings import CannotSee, Found, Result, State
from shared.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from shared.clock import Clock

_BROKEN = frozenset({State.PROBLEM, State.NOT_LOOKED_AT})


@dataclass(frozen=True)
class Link:
    """One link. `look` returns before its deadline, or raises CannotSee or Found. `after`: links that it stands on."""

    name: str
    look: Callable[[Deadline], Sequence[Result]]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """What was seen of a link."""

    name: str
    results: tuple[Result, ...]

    @property
    def is_broken(self) -> bool:
        """Whether what stands on it is not worth looking at."""
        return any(result.state in _BROKEN for result in self.results)


def look_at(links: Sequence[Link], clock: Clock, seconds: float) -> Iterator[Looked]:
    """Yield what is seen of each link, in order. `seconds`: how long each may take.

    A link comes after those that it stands on.
    """
    with ThreadPoolExecutor(max_workers=len(links), thread_name_prefix="doctor") as pool:
        looking: dict[str, Future[Looked]] = {}
        for link in links:
            before = [looking[name] for name in link.after]
            looking[link.name] = pool.submit(_look, link, before, clock, seconds)
        for future in looking.values():
            yield future.result()


def _look(link: Link, before: Sequence[Future[Looked]], clock: Clock, seconds: float) -> Looked:
    broken = [looked.name for looked in (future.result() for future in before) if looked.is_broken]
    if broken:
        because = Result(State.NOT_LOOKED_AT, f"because of: {', '.join(broken)}")
        return Looked(link.name, (because,))
    try:
        return Looked(link.name, tuple(link.look(Deadline.after(clock, seconds))))
    except (CannotSee, Found) as stopped:
        return Looked(link.name, (stopped.result,))
