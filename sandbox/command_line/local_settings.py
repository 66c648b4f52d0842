"""Settings files that `start` writes and removes: local.settings.json for Core Tools, and the operator's."""

import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.cloud import Cloud
from sandbox.control import run_folder

# Where Core Tools reads it.
FILE_NAME = "local.settings.json"
_MARK = "Sandbox"


@dataclass
class LocalSettings:
    """The file. It holds ports and keys of one run, so the sandbox that writes it removes it."""

    path: Path
    _written: str | None = None

    def is_free(self) -> bool:
        """Tell whether it may be written: it does not exist, or it was left by a sandbox that runs no more."""
        try:
            mark = json.loads(self.path.read_text("utf-8-sig")).get(_MARK)
        except FileNotFoundError:
            return True
        except (OSError, ValueError, AttributeError):
            return False
        folder = mark.get("runFolder") if isinstance(mark, dict) else None
        return isinstance(folder, str) and not run_folder.is_running(Path(folder))

    def write(self, cloud: Cloud) -> Path:
        """Write it, readable by this user only; returns where it is."""
        mark = {
            "writtenBy": "python -m sandbox start, which removes it when it stops",
            "pid": os.getpid(),
            "runFolder": str(cloud.folder),
        }
        self._written = json.dumps({_MARK: mark, **cloud.local_settings()}, indent=2) + "\n"
        self.path.unlink(missing_ok=True)
        self.path.touch(mode=0o600)
        self.path.write_text(self._written, "utf-8")
        return self.path

    def remove(self) -> None:
        """Remove it, unless somebody has changed it or nothing was written."""
        with suppress(FileNotFoundError):
            if self._written is not None and self.path.read_text("utf-8") == self._written:
                self.path.unlink()


def write_operator_settings(cloud: Cloud) -> Path:
    """Write what a shell reads to administer both sides (`. FILE`), into the private folder of the run."""
    path = cloud.folder / "operator.env"
    path.touch(mode=0o600)
    # A shell cannot have names such as AzureWebJobs.NAME.Disabled, which concern the Functions host only.
    settings = {name: value for name, value in cloud.operator_settings.items() if name.isidentifier()}
    path.write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(settings.items())), "utf-8"
    )
    return path
