"""A project that has nothing to do with invoices: it installs the sandbox with pip and tests its own function app."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.sandbox.conftest import run, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# It installs some thirty packages, from pip's cache where they are there.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Return the wheel that this repository is built into."""
    _pip(
        sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)
    )
    (built,) = tmp_path.glob("*.whl")
    return built


@pytest.fixture
def project(tmp_path: Path, wheel: Path) -> Path:
    """Return a copy of the project with an environment that has the sandbox installed."""
    project = Path(shutil.copytree(HERE / "project", tmp_path / "project"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = _python(project)
    # The tested versions, so that a new release elsewhere fails nothing here.
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(_versions("requirements-dev.txt"))
    _pip(
        python,
        *(
            "install",
            "--constraint",
            str(constraints),
            f"invoice-from-opportunity[sandbox] @ {wheel.as_uri()}",
        ),
        *("--requirement", str(project / "app" / "requirements.txt"), "pytest"),
    )
    runtime = ROOT / "requirements-runtime.txt"
    _pip(python, "install", "--no-deps", "--ignore-requires-python", "--requirement", str(runtime))
    return project


def _versions(file: str) -> str:
    lines = (ROOT / file).read_text().splitlines()
    return "\n".join(line.partition("\\")[0] for line in lines if "==" in line and not line.startswith(" "))


def _pip(python: str, command: str, *arguments: str) -> None:
    done = run(python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments)
    assert done.returncode == 0, done.stderr


def _python(project: Path) -> str:
    return str(project.parent / "venv" / "bin" / "python")


def test_its_tests_pass_and_it_runs_as_a_program(project: Path) -> None:
    """With the plug-in alone: no conftest, no import of the sandbox."""
    done = run(_python(project), "-m", "pytest", "-v", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    run_as_a_program(project, project.parent)


@pytest.mark.parametrize("name", ["app/function_app.py", "entities.json", "pytest.ini", "test_orders.py"])
def test_the_tutorial_shows_these_files(name: str) -> None:
    tutorial = (ROOT / "docs" / "sandbox.md").read_text()
    assert (HERE / "project" / name).read_text() in tutorial


def test_what_is_installed_is_the_sandbox_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "sandbox/service_bus/broker.py" in names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sandbox"}


def run_as_a_program(project: Path, temporary: Path) -> None:
    arguments = [
        "--app",
        "app",
        "--entities",
        "entities.json",
        "--no-dataverse",
        "--mode",
        "connection-string",
    ]
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [_python(project), "-m", "sandbox"]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*command, "start", "--json", *arguments, "--set", "CONFIRMATIONS_TOPIC=confirmations"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )

    def call(*words: str) -> str:
        done = run(*command, *words, cwd=project, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert process.stdout is not None
        while process.stdout.readline() != "}\n":
            assert process.poll() is None
        call("send", "orders", '{"number": 8}')
        wait_until(lambda: call("events", "--json"), "no event came")
        event = json.loads(call("events", "--json"))
        assert (event["topic"], json.loads(event["body"])["number"]) == ("confirmations", 8)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (project / "app" / "local.settings.json").exists()
