"""What the tests of the sandbox's packages share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import ServiceBusServer

PATIENCE = 60.0


def wait_until(condition: Callable[[], object], what: str = "it did not come about in time") -> None:
    """Wait for a condition. `what`: what has not happened, if it fails."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def connection_string(server: ServiceBusServer) -> str:
    """Return how a client connects to a server without TLS, with the official emulator's key."""
    return (
        f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
        "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
    )
