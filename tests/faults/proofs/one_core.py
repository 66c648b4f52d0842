"""Keep a process on one core: its threads take turns, and cores hand over more slowly than one core goes on."""

from __future__ import annotations

import os


def stay_on(number: int) -> None:
    """Use the n-th of the cores that are allowed, where the system has such a thing."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
