"""How a command finds the running sandbox and calls it.

A running sandbox writes its control address and token into its run folder, which only its user can read.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from sandbox.control import run_folder

_STATE_FILE = "control.json"
# With these a command needs no run folder, for example in a container.
CONTROL_URL, CONTROL_TOKEN = "SANDBOX_CONTROL", "SANDBOX_CONTROL_TOKEN"
_TIMEOUT_SECONDS = 60.0


class NoSandbox(Exception):
    """No sandbox runs here, or not the one that is asked for."""


class CallFailed(Exception):
    """The sandbox refused or did not respond; the text says why."""


@dataclass(frozen=True)
class Control:
    """The control address of one sandbox; `pid` None where it is not known."""

    url: str
    token: str = field(repr=False)
    pid: int | None = None

    @classmethod
    def find(cls, pid: int | None = None) -> "Control":
        """Return the sandbox with this process id, or the one that was started last. Raises NoSandbox."""
        url, token = os.environ.get(CONTROL_URL), os.environ.get(CONTROL_TOKEN)
        if url and token and pid is None:
            return cls(url.rstrip("/"), token)
        for folder in run_folder.running():
            found = cls._read(folder)
            if found is not None and pid in (None, found.pid):
                return found
        raise NoSandbox(
            "no sandbox runs here: start one with python -m sandbox start"
            if pid is None
            else f"no sandbox runs with the process id {pid}"
        )

    @classmethod
    def _read(cls, folder: Path) -> "Control | None":
        try:
            content = json.loads((folder / _STATE_FILE).read_text("utf-8"))
            return cls(str(content["url"]), str(content["token"]), int(content["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            # A sandbox of a test, or of a library: it has no control address.
            return None

    def write(self, folder: Path) -> None:
        """Leave it in a run folder, for `find`; `folder` disappears with the sandbox."""
        path = folder / _STATE_FILE
        path.touch(mode=0o600)
        path.write_text(json.dumps({"url": self.url, "token": self.token, "pid": self.pid}), "utf-8")

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str | int | float] | None = None,
    ) -> Any:  # noqa: ANN401 - what the endpoint returns
        """Call an endpoint and return its content. Raises CallFailed."""
        with requests.Session() as session:
            # Proxies of this machine are not meant for it.
            session.trust_env = False
            try:
                response = session.request(
                    method,
                    f"{self.url}{path}",
                    json=body,
                    params=query,
                    headers={"Authorization": f"Bearer {self.token}"},
                    timeout=_TIMEOUT_SECONDS,
                )
                content = response.json()
            except requests.RequestException as error:
                raise CallFailed(
                    f"the sandbox at {self.url} does not respond: {type(error).__name__}"
                ) from error
        if not response.ok:
            raise CallFailed(str(content.get("error", response.status_code)))
        return content
