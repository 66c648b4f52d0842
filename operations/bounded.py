"""A call that ends in time for its caller, for calls that take no timeout of their own.

The SDK can block without end on a peer that accepts connections and says nothing, and name resolution has no timeout.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class TimedOut(Exception):
    """The call has not returned in time; whether it takes effect later is not known."""


def bounded(call: Callable[[], Result], seconds: float) -> Result:
    """Return what the call returns, or raise what it raises; raises TimedOut after this many seconds.

    A call that does not return is left behind in a daemon thread, which does not keep the process from ending.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - not swallowed: it is raised in the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=run, name="operations", daemon=True).start()
    done, _ = wait([outcome], timeout=seconds)
    if not done:
        raise TimedOut(f"The call did not return within {seconds:g} s.")
    return outcome.result()
