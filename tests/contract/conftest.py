"""Fixtures of the contract tests: the JavaScript packages that validate or generate."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent / "javascript"


@pytest.fixture(scope="session")
def javascript(node_with_packages: Callable[[Path], str]) -> Callable[..., str]:
    """Return a function that runs a script of javascript/ with arguments in a folder and returns what it prints."""
    node = node_with_packages(FOLDER)

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
