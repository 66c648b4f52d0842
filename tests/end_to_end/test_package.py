"""The zip that is deployed, run in the sandbox from where it was unpacked and from nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infrastructure.package import PROJECT, build
from sandbox.actors import Consumer, Salesperson
from sandbox.cloud import Cloud, CloudOptions, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.service_bus import Broker, Message

WINS = 3
SITE_PACKAGES = ".python_packages/lib/site-packages"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package for this Python and unpack it."""
    folder = tmp_path_factory.mktemp("package")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = build(PROJECT, folder / "function.zip", version)
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(folder / "app")
    return folder / "app"


def test_everything_that_is_imported_comes_from_the_package(app: Path) -> None:
    """With Python's own library and the package on the path, and nothing else, the function loads."""
    script = f"""
import json, sys
sys.path[:] = [{str(app)!r}, {str(app / SITE_PACKAGES)!r}, *sys.path]
import GenerateInvoiceFunction, shared.bootstrap
assert callable(GenerateInvoiceFunction.main)
files = [module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)]
print(json.dumps(files))
"""

    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    own = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    unexpected = [
        file
        for file in map(Path, json.loads(done.stdout))
        if not file.is_relative_to(app)
        and (
            not any(file.resolve().is_relative_to(folder) for folder in own) or "site-packages" in file.parts
        )
    ]
    assert unexpected == []


def test_wins_become_invoices_and_events(app: Path, watch_topic: Callable[[Broker], list[Message]]) -> None:
    """The function that was unpacked, with identity and TLS throughout."""
    options = CloudOptions(app_root=app, mode=Mode.IDENTITY, opportunities=WINS)

    with Cloud(options) as cloud, Consumer(cloud) as consumer, Salesperson(cloud) as seller:
        watch_topic(cloud.broker)
        for opportunity in cloud.demo.opportunities:
            seller.win(opportunity)
        assert consumer.wait_for(WINS, timeout=60)
        events = consumer.events

    subjects = sorted(event.content["data"]["opportunityId"] for event in events)
    assert subjects == sorted(cloud.demo.opportunities)
