"""Microsoft's @azure/service-bus (JavaScript), an independent client, against the server."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sandbox.service_bus.conftest import Access

HERE = Path(__file__).parent / "javascript"
BUILD = Path(__file__).parents[3] / "build" / "javascript"
INSTALL_WITHIN = 180
RUN_WITHIN = 60

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None,
    reason="Node.js with npm is not installed: the JavaScript client is not tested",
)


@pytest.fixture(scope="session")
def modules() -> Path:
    """Install what package-lock.json names, once per lock file; another worker may be at it, so under a lock."""
    lock_file = HERE / "package-lock.json"
    folder = BUILD / hashlib.sha256(lock_file.read_bytes()).hexdigest()[:16]
    done = folder / "installed"
    BUILD.mkdir(parents=True, exist_ok=True)
    with exclusively(BUILD / "lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            npm = shutil.which("npm") or "npm"
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_WITHIN, capture_output=True)  # noqa: S603
            done.touch()
    return folder


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the operating system gives it back when one of them dies."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no file locks")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_every_scenario_works(access: "Access", modules: Path, authority_file: Path) -> None:
    secure = access.server.port == 5671
    host = f"{access.server.host}" if secure else f"{access.server.host}:{access.server.port}"
    key = access.connection_string().split(";", 1)[1]
    if secure:
        key = key.replace("UseDevelopmentEmulator=true;", "")
    environment = {
        "PATH": os.environ["PATH"],
        "MODULES": str(modules),
        "CONNECTION_STRING": f"Endpoint=sb://{host};{key}",
        "NODE_EXTRA_CA_CERTS": str(authority_file),
    }
    node = shutil.which("node") or "node"
    process = subprocess.run(  # noqa: S603
        [node, str(HERE / "client.mjs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN,
        check=False,
    )
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, process.stderr
    assert [each for each in results if not each["ok"]] == []
    assert len(results) == 15
