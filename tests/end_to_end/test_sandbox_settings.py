"""The settings that a started sandbox prints and writes: with each, `operations doctor` finds no problem."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CONNECT = f"{sys.executable} -m operations connect --application-id {{function}} --yes"
PATIENCE = 100


@pytest.fixture(scope="module", params=["identity", "connection-string"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Return what `start --json` prints, while it runs."""
    folder = tmp_path_factory.mktemp("started")
    arguments = ("--mode", request.param, "--local-settings", str(folder / "local.settings.json"))
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "sandbox", "start", "--json", "--connect-with", CONNECT, *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        assert line, "it has ended"
        lines.append(line)
    yield json.loads("".join(lines))
    process.terminate()
    process.communicate(timeout=PATIENCE)


def doctor(*options: str, shell_file: str | None = None, **environment: str) -> tuple[int, dict[str, str]]:
    """Run it; return the exit code, and the state of each check."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "operations", *options, "doctor", "--json"]
    if shell_file is not None:
        command = ["sh", "-c", f". {shlex.quote(shell_file)} && {shlex.join(command)}"]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    checks = document["checks"] if isinstance(document, dict) else document
    return done.returncode, {check["check"]: check["state"] for check in checks}


# What the operator alone sees.
OPERATORS = ("service endpoint", "step", "system jobs")


def test_as_the_function_with_the_printed_settings(started: dict[str, Any]) -> None:
    code, states = doctor(**started["settings"])
    assert (code, {states[name] for name in OPERATORS}) == (0, {"cannot see"})
    assert set(states.values()) == {"ok", "cannot see"}


def test_as_the_function_with_local_settings(started: dict[str, Any]) -> None:
    code, states = doctor("--settings", started["localSettings"])
    assert (code, set(states.values())) == (0, {"ok", "cannot see"})


def test_as_an_operator_with_the_printed_settings(started: dict[str, Any]) -> None:
    code, states = doctor(**started["operatorSettings"])
    assert (code, {states[name] for name in OPERATORS}) == (0, {"ok"})


def test_as_an_operator_with_the_file_for_a_shell(started: dict[str, Any]) -> None:
    file = Path(started["operatorSettingsFile"])
    assert file.stat().st_mode & 0o077 == 0
    code, states = doctor(shell_file=str(file))
    assert (code, {states[name] for name in OPERATORS}) == (0, {"ok"})
