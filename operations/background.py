"""Calls in threads of their own, for which the end of the process does not wait."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


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
