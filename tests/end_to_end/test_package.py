"""The zip that is deployed, run in the sandbox from where it was unpacked and from nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from sandbox.actors import Consumer, Salesperson
from sandbox.cloud import Cloud, CloudOptions, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from infrastructure.package import Package
    from sandbox.service_bus import Broker, Message

WINS = 3
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = ".python_packages/lib/site-packages"

# Port 9 discards: nothing responds there, and what is exported is dropped.
TELEMETRY_SETTINGS = {
    "off": {},
    "azure-monitor": {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": f"InstrumentationKey={uuid4()};IngestionEndpoint=https://127.0.0.1:9/"
    },
    "otlp": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
}


@pytest.fixture(scope="module", params=TELEMETRY_SETTINGS)
def telemetry(request: pytest.FixtureRequest) -> str:
    """Which telemetry the package contains."""
    return str(request.param)


@pytest.fixture(scope="module")
def app(
    telemetry: str, package_of: Callable[[str, str], Package], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of the unpacked package."""
    folder = tmp_path_factory.mktemp("app")
    with zipfile.ZipFile(package_of(THIS_PYTHON, telemetry).path) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("exporter", ["azure-monitor", "otlp"])
def test_an_exporter_adds_no_more_than_1_5_megabytes(
    package_of: Callable[[str, str], Package], exporter: str
) -> None:
    assert package_of(THIS_PYTHON, exporter).size - package_of(THIS_PYTHON, "off").size <= 1_500_000


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


def test_wins_become_invoices_and_events(
    app: Path, telemetry: str, watch_topic: Callable[[Broker], list[Message]]
) -> None:
    """The function that was unpacked, with identity and TLS throughout, compiles no module.

    Python would have written the bytecode beside it.
    """
    compiled = set(app.rglob("*.pyc"))
    settings = {"TELEMETRY_EXPORTER": telemetry, **TELEMETRY_SETTINGS[telemetry]}
    options = CloudOptions(app_root=app, mode=Mode.IDENTITY, opportunities=WINS, settings=settings)

    with Cloud(options) as cloud, Consumer(cloud) as consumer, Salesperson(cloud) as seller:
        watch_topic(cloud.broker)
        for opportunity in cloud.demo.opportunities:
            seller.win(opportunity)
        assert consumer.wait_for(WINS, timeout=60)
        events = consumer.events

    subjects = sorted(event.content["data"]["opportunityId"] for event in events)
    assert subjects == sorted(cloud.demo.opportunities)
    assert set(app.rglob("*.pyc")) - compiled == set()
