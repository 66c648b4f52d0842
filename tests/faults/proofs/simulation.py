"""Threads that take turns, and a clock that jumps: concurrency and hours that are the same for the same seed.

Exactly one thread runs at any moment. An actor, which is a thread, hands over where it makes a call or sleeps
(`pause`, `sleep`); which actor continues is drawn. When none is ready, time moves to the next event. The
deployed code runs unchanged under it, its own threads included: a call that an actor has carried out by another
thread hands over on the actor's behalf.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

# Real seconds for what takes milliseconds: after that, the code waits for something that cannot happen.
_STUCK = 30.0


class Killed(BaseException):
    """The actor's process has died: nothing of it runs on. No Exception, so that no handler takes it for one."""


class NoRest(AssertionError):
    """A history did not come to rest."""


@dataclass(eq=False)
class Actor:
    """One thread of control. `timeout`: the virtual seconds for which its present call may have no response."""

    name: str
    do: Callable[[], None]
    killed: bool = False
    alive: bool = True
    timeout: float = math.inf
    error: BaseException | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@dataclass(frozen=True, order=True)
class _Due:
    at: float
    order: int
    do: Callable[[], object] = field(compare=False)
    still: Callable[[], bool] = field(compare=False)


class Simulation:
    """The turns and the time; both clocks of the project's protocols (`shared.clock`, `sandbox.clock`).

    Time moves in whole ticks (seconds), so that what is left of a deadline is never a sliver: the deployed code waits
    for its own threads in real time, for as long as is left.
    """

    def __init__(self, random: Random, start: datetime, tick: float = 1.0) -> None:
        self.random = random
        self.current: Actor | None = None
        self.trace: list[tuple[float, str]] = []
        self._start = start
        self._tick = tick
        self._ticks = 0
        self._order = itertools.count()
        self._ready: list[Actor] = []
        self._asleep: list[tuple[float, int, Actor]] = []
        self._agenda: list[_Due] = []
        self._back = threading.Semaphore(0)

    # --- the clock ---

    def monotonic(self) -> float:
        """Return seconds since the beginning."""
        return self._ticks * self._tick

    def now(self) -> datetime:
        """Return the date and time, aware."""
        return self._start + timedelta(seconds=self.monotonic())

    def sleep(self, seconds: float) -> None:
        """Let the current actor go on after that time, but not in this very tick; raises Killed."""
        self._hand_over(max(self._whole(self.monotonic() + seconds), self.monotonic() + self._tick))

    @property
    def idle(self) -> bool:
        """Whether no actor has anything to do, now or later."""
        return not self._ready and not self._asleep

    # --- turns ---

    def pause(self) -> None:
        """Let others go first, perhaps; raises Killed."""
        self._hand_over(None)

    def spawn(self, name: str, do: Callable[[], None]) -> Actor:
        """Add an actor; it begins when its lot is drawn."""
        actor = Actor(name, do)
        self._ready.append(actor)
        threading.Thread(target=self._live, args=(actor,), name=name, daemon=True).start()
        return actor

    def kill(self, actors: Iterable[Actor]) -> None:
        """Let each of them end at the call in which it is; the current one has to raise Killed itself."""
        for actor in actors:
            actor.killed = True
            if actor is not self.current and actor not in self._ready:
                self._asleep = [entry for entry in self._asleep if entry[2] is not actor]
                self._ready.append(actor)
        heapq.heapify(self._asleep)

    def at(self, seconds: float, do: Callable[[], object], still: Callable[[], bool] = lambda: True) -> None:
        """Call `do` in so many seconds, between turns, if `still` says so then: time is not moved for less."""
        heapq.heappush(
            self._agenda, _Due(self._whole(self.monotonic() + seconds), next(self._order), do, still)
        )

    def run(
        self,
        between: Callable[[], None],
        next_event: Callable[[], datetime | None],
        *,
        until: float = math.inf,
        turns: int = 100_000,
    ) -> bool:
        """Give turns until nothing is to happen, or until a time; return whether it is at rest.

        `between` is called between turns, `next_event` for when others than the actors have something to do. Raises
        NoRest after so many turns, and what an actor raised.
        """
        for _ in range(turns):
            self._wake()
            between()
            if self._ready:
                self._turn(self._ready.pop(self.random.randrange(len(self._ready))))
                continue
            due = self._next_due(next_event())
            if due is None:
                return True
            if due > until:
                self._advance(until)
                return False
            self._advance(due)
        raise NoRest(f"No rest after {turns} turns and {self.monotonic():g} s.")

    def _wake(self) -> None:
        now = self.monotonic()
        while self._asleep and self._asleep[0][0] <= now:
            self._ready.append(heapq.heappop(self._asleep)[2])
        while self._agenda and self._agenda[0].at <= now:
            due = heapq.heappop(self._agenda)
            if due.still():
                due.do()

    def _next_due(self, event: datetime | None) -> float | None:
        while self._agenda and not self._agenda[0].still():
            heapq.heappop(self._agenda)
        moments = [self._asleep[0][0]] if self._asleep else []
        moments += [self._agenda[0].at] if self._agenda else []
        moments += [(event - self._start).total_seconds()] if event else []
        return min(moments, default=None)

    def _advance(self, moment: float) -> None:
        # What is a hair above this very tick is not due yet in the eyes of others, who know no ticks: the next one.
        least = self._ticks + (moment > self.monotonic())
        self._ticks = max(least, round(self._whole(moment) / self._tick))

    def _whole(self, moment: float) -> float:
        """Return the first tick that is not before a moment; a hair above a tick is the tick."""
        return math.ceil(round(moment / self._tick, 5)) * self._tick

    def _turn(self, actor: Actor) -> None:
        self.trace.append((self.monotonic(), actor.name))
        self.current = actor
        actor.go.release()
        if not self._back.acquire(timeout=_STUCK):
            raise NoRest(f"{actor.name} does not come back: it waits for something that cannot come.")
        self.current = None
        if actor.error is not None:
            raise actor.error

    def _hand_over(self, until: float | None) -> None:
        actor = self.current
        if actor is None:
            raise RuntimeError("Only actors can wait.")
        if actor.killed:
            raise Killed
        if until is None:
            self._ready.append(actor)
        else:
            heapq.heappush(self._asleep, (until, next(self._order), actor))
        self._back.release()
        self._await_turn(actor)
        if actor.killed:
            raise Killed

    def _await_turn(self, actor: Actor) -> None:
        # Not for ever: the thread of a history that failed shall not outlive it for long.
        if not actor.go.acquire(timeout=10 * _STUCK):
            raise Killed

    def _live(self, actor: Actor) -> None:
        try:
            self._await_turn(actor)
            if not actor.killed:
                actor.do()
        except Killed:
            actor.killed = True
        except BaseException as error:  # noqa: BLE001 - not swallowed: it is raised where the turns are given
            actor.error = error
        finally:
            actor.alive = False
            self._back.release()
