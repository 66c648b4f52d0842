"""What tests in more than one folder use: the corpus and the judge of incoming events, the check of outgoing ones.

Test folders are no packages, so what they share is loaded from its file here and handed out as fixtures.
"""

from __future__ import annotations

import fcntl
import importlib.util
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from infrastructure.package import BARE, PROJECT, TELEMETRY, build
from sandbox.service_bus import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    from infrastructure.package import Package
    from sandbox.service_bus import Broker, Message, Observation

    Judge = Callable[[bytes, Mapping[str, object], str | None], str]
    Checker = Callable[[bytes, Mapping[str, object], str], None]

# A slow machine is no reason to fail: time never decides a test.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def _load(path: str) -> ModuleType:
    file = Path(__file__).parent / path
    name = f"tests_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while it is being loaded
        spec.loader.exec_module(module)
    return sys.modules[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `event_case` once for each file of tests/events."""
    if "event_case" in metafunc.fixturenames:
        cases = _load("events/corpus.py").event_cases()
        metafunc.parametrize("event_case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def judge_event() -> Judge:
    """Return the fuzzer's judge: it reads an incoming event, and raises AssertionError for any other result."""
    judge: Judge = _load("fuzz/opportunity_won.py").judge
    return judge


@pytest.fixture(scope="session")
def fuzz_seeds() -> list[tuple[bytes, dict[str, object], str | None]]:
    """Return body, properties and content type of every event of the corpus."""
    cases = _load("events/corpus.py").event_cases()
    return [(case.body, case.properties, case.content_type) for case in cases]


@pytest.fixture(scope="session")
def published_event_checker() -> Checker:
    """Return `validate_event(body, application_properties, content_type)` of tests/contract/published_event.py.

    It raises AssertionError for an event that breaks the contract. Everything that publishes is checked by it: the unit
    tests' sender and the judge of histories (tests/faults) do so by themselves, a broker does with `watch_topic`.
    """
    validate: Checker = _load("contract/published_event.py").validate_event
    return validate


@pytest.fixture
def watch_topic(published_event_checker: Checker) -> Iterator[Callable[[Broker], list[Message]]]:
    """Return a function that collects what is published on the topic of a broker, from then on.

    In the end each is judged by the contract, repetitions that duplicate detection dropped included.
    """
    published: list[Message] = []

    def keep(seen: Observation) -> None:
        is_published = seen.kind in (EventKind.ACCEPTED, EventKind.DUPLICATE_DROPPED)
        if is_published and seen.entity == "invoice-created":
            published.append(seen.message.message)

    def watch(broker: Broker) -> list[Message]:
        broker.observe(keep)
        return published

    yield watch
    for message in published:
        assert isinstance(message.body, bytes)
        published_event_checker(message.body, message.application_properties, message.content_type or "")


@pytest.fixture(scope="session")
def package_of(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, str], Package]:
    """Return a function that builds the package for a Python, with an exporter or without ("off"), once for all tests.

    Building takes seconds: the processes of pytest -n share what one of them built.
    """
    base = tmp_path_factory.getbasetemp()
    common = base if worker_id == "master" else base.parent

    def build_once(python: str, telemetry: str) -> Package:
        folder = common / f"package-{python}-{telemetry}"
        folder.mkdir(exist_ok=True)
        described = folder / "package.pickle"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not described.exists():
                contents = TELEMETRY.get(telemetry, BARE)
                described.write_bytes(
                    pickle.dumps(build(PROJECT, folder / "function.zip", python, contents=contents))
                )
        package: Package = pickle.loads(described.read_bytes())  # noqa: S301 - written above
        return package

    return build_once


@pytest.fixture(scope="session")
def node_with_packages() -> Callable[[Path], str]:
    """Return a function that installs what a folder's package-lock.json lists, and returns the path of Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js with npm is not installed: what needs it is not tested.")

    def install(folder: Path) -> str:
        installed, wanted = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
        with wanted.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # pytest -n runs this in several processes.
            if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
                subprocess.run(  # noqa: S603 - arguments of our own
                    [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                    timeout=100,
                )
        return node

    return install
