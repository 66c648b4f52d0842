"""Waiting for calls in other threads."""

from __future__ import annotations

import subprocess
import sys

# A signal that another thread takes does not wake the main thread, like one that comes just before it waits.
MISSED_BY_A_WAIT = """
import signal, threading, time
from concurrent.futures import Future
from operations.background import in_background, interruptible_result

def interrupt():
    time.sleep(0.5)  # by then the main thread waits
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

try:
    in_background("interrupt", interrupt)
    interruptible_result(Future())
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_wait_ends_by_a_signal_that_does_not_wake_it() -> None:
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", MISSED_BY_A_WAIT], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "interrupted\n"
