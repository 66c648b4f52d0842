"""Fixture of the contract tests: Node.js, for the packages that validate or generate."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def node(node_with_packages: Callable[[Path], str]) -> Callable[..., str]:
    """Return a function that runs a script of a folder beside this file, and returns what it prints.

    It takes the script's arguments, and by name the folder to run it in, and the standard input.
    """

    def run(folder: str, script: str, *arguments: str, cwd: Path | None = None, given: str = "") -> str:
        path = Path(__file__).parent / folder
        return subprocess.run(  # noqa: S603 - arguments of our own
            [node_with_packages(path), path / script, *arguments],
            cwd=cwd,
            input=given,
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
        ).stdout

    return run
