"""What the tests of the sandbox's packages share."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.service_bus import ServiceBusServer

PATIENCE = 60.0


def wait_until(condition: Callable[[], object], what: str = "it did not come about in time") -> None:
    """Wait for a condition. `what`: what has not happened, if it fails."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - subprocess's own
    """Run a program of our own to its end; returns what it printed, and its exit code."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # noqa: S603


def connection_string(server: ServiceBusServer) -> str:
    """Return how a client connects to a server without TLS, with the official emulator's key."""
    return (
        f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
        "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
    )
