"""The zip that is deployed, run from where it was unpacked and from nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox import demo
from sandbox.cloud import Cloud, CloudOptions, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from infrastructure.package import Package
    from sandbox.service_bus import Broker, Message

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = ".python_packages/lib/site-packages"
EXPORTER_MODULES = {
    "off": (),
    "azure-monitor": ("shared.open_telemetry", "azure.monitor.opentelemetry.exporter"),
    "otlp": (
        "shared.open_telemetry",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ),
}
# With Python's own library and the package on the path, and nothing else.
LOAD = """
import importlib, json, sys
app, site_packages, *names = sys.argv[1:]
sys.path[:] = [app, site_packages, *sys.path]
assert callable(importlib.import_module("GenerateInvoiceFunction").main)
for name in names:
    importlib.import_module(name)
print(json.dumps([module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)]))
"""


@pytest.fixture
def unpack(package_of: Callable[[str, str], Package], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that unpacks the package with this telemetry, and returns the folder."""

    def unpacked(telemetry: str) -> Path:
        with zipfile.ZipFile(package_of(THIS_PYTHON, telemetry).path) as archive:
            archive.extractall(tmp_path)
        return tmp_path

    return unpacked


@pytest.mark.timeout(300)
@pytest.mark.parametrize("exporter", ["azure-monitor", "otlp"])
def test_an_exporter_adds_no_more_than_1_5_megabytes(
    package_of: Callable[[str, str], Package], exporter: str
) -> None:
    assert package_of(THIS_PYTHON, exporter).size - package_of(THIS_PYTHON, "off").size <= 1_500_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("telemetry", EXPORTER_MODULES)
def test_everything_that_is_imported_comes_from_the_package_and_is_compiled(
    unpack: Callable[[str], Path], telemetry: str
) -> None:
    """Python would write the bytecode of a module that is not compiled beside it."""
    app = unpack(telemetry)
    compiled = set(app.rglob("*.pyc"))
    names = ("shared.bootstrap", *EXPORTER_MODULES[telemetry])

    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", "-c", LOAD, app, app / SITE_PACKAGES, *names],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
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
    assert set(app.rglob("*.pyc")) - compiled == set()


@pytest.mark.timeout(300)
def test_wins_become_invoices_and_events(
    unpack: Callable[[str], Path], watch_topic: Callable[[Broker], list[Message]]
) -> None:
    """With identity and TLS throughout."""
    options = CloudOptions(app_root=unpack("off"), mode=Mode.IDENTITY, opportunities=3)
    with Cloud(options) as cloud:
        watch_topic(cloud.broker)
        outcome = demo.run(cloud, cloud.demo.opportunities)
    assert outcome.is_good, [win.problems for win in outcome.wins]
