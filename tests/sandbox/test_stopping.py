"""The wish to stop: it is heard whenever it comes."""

import sys
from pathlib import Path

from tests.sandbox.conftest import run

# Python lets a trace function look at every line that runs, so a signal can come at each of the first ones in turn. The
# clock is for a waiting that runs fewer lines.
AT_EVERY_LINE = """
import os, signal, sys, threading
from sandbox.stopping import Stop

def come_at(moment):
    lines = 0
    def trace(*_):
        nonlocal lines
        lines += 1
        if lines == moment:
            signal.raise_signal(signal.SIGINT)
        return trace
    return trace

for moment in range(1, 9):
    stop = Stop()
    stop.listen()
    clock = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    clock.start()
    sys.settrace(come_at(moment))
    stop.wait()
    sys.settrace(None)
    assert stop.is_wanted()
    clock.cancel()
    clock.join()
"""


def test_a_request_to_stop_is_handled_at_any_moment_of_the_wait() -> None:
    done = run(sys.executable, "-c", AT_EVERY_LINE, cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 0, done.stderr
