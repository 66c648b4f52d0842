"""Fixtures of the contract tests: the JavaScript packages that judge or generate."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent / "javascript"


@pytest.fixture(scope="session")
def javascript() -> Callable[..., str]:
    """Return a function that runs a script of javascript/ with arguments in a folder and returns what it prints."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node is missing: the AsyncAPI document and the generated types are not checked.")
    installed = FOLDER / "node_modules" / ".package-lock.json"
    wanted = FOLDER / "package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest -n runs this in several processes
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            subprocess.run(  # noqa: S603 - arguments of our own
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=FOLDER,
                check=True,
                capture_output=True,
                timeout=100,
            )

    def run(script: str, *arguments: str, cwd: Path) -> str:
        done = subprocess.run(  # noqa: S603 - arguments of our own
            [node, FOLDER / script, *arguments],
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    return run
