"""A chain of links, each looked at once, in time, and only if nothing that it stands on is broken.

What a link looks at is its own affair; links that do not depend on one another are looked at together, since most
of the time is spent waiting for somebody's answer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
    """One link. `look` returns before its deadline, or raises CannotSee or Found.

    `after`: links that it stands on, and waits for. `beside`: links that it stands on as well, but that take so long
    that it is looked at meanwhile; what is seen counts only if they are not broken.
    """

    name: str
    look: Callable[[Deadline], Sequence[Result]]
    after: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


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
            beside = [looking[name] for name in link.beside]
            deadline = partial(Deadline.after, clock, seconds)
            looking[link.name] = pool.submit(_look, link, before, beside, deadline)
        for future in looking.values():
            yield future.result()


def _look(
    link: Link,
    before: Sequence[Future[Looked]],
    beside: Sequence[Future[Looked]],
    deadline: Callable[[], Deadline],
) -> Looked:
    results = _broken(before) or _seen(link, deadline())
    return Looked(link.name, _broken(beside) or results)


def _broken(links: Sequence[Future[Looked]]) -> tuple[Result, ...]:
    """Wait for links; return that they keep another from being looked at, or nothing."""
    names = [looked.name for looked in (future.result() for future in links) if looked.is_broken]
    return (Result(State.NOT_LOOKED_AT, f"because of: {', '.join(names)}"),) if names else ()


def _seen(link: Link, deadline: Deadline) -> tuple[Result, ...]:
    try:
        return tuple(link.look(deadline))
    except (CannotSee, Found) as stopped:
        return (stopped.result,)
