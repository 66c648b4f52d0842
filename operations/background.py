"""Calls in threads of their own, for which the end of the process does not wait."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")

_CHECK_SIGNALS_SECONDS = 0.2


def in_background(name: str, call: Callable[[], Value]) -> Future[Value]:
    """Start a call in a thread of this name; unlike for an executor's thread, the end of the process does not wait."""
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - not swallowed: `result` raises it
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def interruptible_result(future: Future[Value]) -> Value:
    """Return the result in the main thread, which Ctrl-C interrupts at any moment.

    A wait without a limit does not notice a signal that came just before it, until something else ends the wait.
    """
    while not future.done():
        wait([future], _CHECK_SIGNALS_SECONDS)
    return future.result()
