"""Work in several processes, with every result as soon as it exists; and in one, on one core."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from queue import Empty
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from queue import Queue

Share = TypeVar("Share")
Result = TypeVar("Result")


def spread(
    work: Callable[[Share], Iterable[Result]], shares: Sequence[Share], processes: int
) -> Iterator[Result]:
    """Yield what `work` brings for each of the shares, in the order in which it comes; raises what it raises."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        done: Queue[Result] = manager.Queue()
        running = [pool.submit(_put, work, share, done) for share in shares]
        while True:
            # Asked before the queue is: what ended since may have left something there.
            ended = all(share.done() for share in running)
            try:
                yield done.get(timeout=0 if ended else 1)
            except Empty:
                for share in running:
                    if share.done():
                        share.result()
                if ended:
                    return


def _put(work: Callable[[Share], Iterable[Result]], share: Share, done: Queue[Result]) -> None:
    for result in work(share):
        done.put(result)


def stay_on(number: int) -> None:
    """Keep this process on the n-th of the cores that are allowed, where the system has such a thing.

    The threads of a simulation take turns, and cores hand over more slowly than one core goes on.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
