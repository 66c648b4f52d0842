"""The function app that the tests of the host run: it records what it is given."""

import json
import shutil
import socket
from pathlib import Path

import pytest


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return a copy of the recorder, which a test may change."""
    return Path(shutil.copytree(Path(__file__).with_name("recorder"), tmp_path / "app"))


def change_binding(app: Path, **changes: object) -> None:
    """Change the recorder's trigger."""
    path = app / "record" / "function.json"
    definition = json.loads(path.read_text())
    definition["bindings"][0] |= changes
    path.write_text(json.dumps(definition))


def add_breakpoint(app: Path) -> None:
    """Let the recorder call breakpoint() first."""
    function = app / "record" / "__init__.py"
    function.write_text(
        function.read_text().replace("    records = Path", "    breakpoint()\n    records = Path")
    )


@pytest.fixture
def free_loopback_address() -> str:
    """Return a loopback address on which port 5671 is free: with a token, clients use no other."""
    for last in range(2, 255):
        address = f"127.0.0.{last}"
        with socket.socket() as probe:
            try:
                probe.bind((address, 5671))
            except OSError:
                continue
            return address
    pytest.skip("no loopback address has port 5671 free")
