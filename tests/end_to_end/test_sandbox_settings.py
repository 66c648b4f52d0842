"""The settings that a started sandbox prints and writes: with each, `operations doctor` finds no problem."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.cloud import Mode

ROOT = Path(__file__).parents[2]
CONNECT = f"{sys.executable} -m operations connect --application-id {{function}} --yes"
PATIENCE = 100


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
    return done.returncode, {check["check"]: check["state"] for check in json.loads(done.stdout)}


# What the operator alone sees.
OPERATORS = ("service endpoint", "step", "system jobs")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", Mode)
def test_doctor_finds_no_problem_with_what_start_prints_and_writes(mode: Mode, tmp_path: Path) -> None:
    local_settings = str(tmp_path / "local.settings.json")
    arguments = ("--mode", mode, "--local-settings", local_settings, "--connect-with", CONNECT)
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "sandbox", "start", "--json", *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line == "}\n":
                    break
            started = json.loads("".join(lines))
            shell_file = Path(started["operatorSettingsFile"])
            assert shell_file.stat().st_mode & 0o077 == 0
            as_function = [doctor(**started["settings"]), doctor("--settings", local_settings)]
            as_operator = [doctor(**started["operatorSettings"]), doctor(shell_file=str(shell_file))]
        finally:
            process.terminate()
    for code, states in as_function:
        assert (code, {*states.values()}) == (0, {"ok", "cannot see"})
        assert {states[name] for name in OPERATORS} == {"cannot see"}
    for code, states in as_operator:
        assert (code, {states[name] for name in OPERATORS}) == (0, {"ok"})
