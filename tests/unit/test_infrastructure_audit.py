from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from infrastructure import audit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAFE = {"name": "idna", "version": "3.20", "vulns": []}
VULNERABLE = {
    "name": "requests",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": "…"}],
}
SKIPPED = {"name": "private", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def pip_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the command with a program in the place of the Python that has pip-audit."""

    def run(*dependencies: dict[str, Any], stderr: str = "", code: int = 0) -> tuple[int, str]:
        python, requirements = tmp_path / "python", tmp_path / "requirements.txt"
        document = json.dumps({"dependencies": dependencies, "fixes": []}) if dependencies else ""
        python.write_text(
            f"#!/bin/sh\ncat <<'END'\n{document}\nEND\necho '{stderr}' >&2\nexit {code}\n", "utf-8"
        )
        python.chmod(0o755)
        requirements.write_text("idna==3.20\n", encoding="utf-8")
        monkeypatch.setattr(sys, "executable", str(python))
        result = CliRunner().invoke(audit.main, [str(requirements)])
        return result.exit_code, result.output.replace(f"{requirements}", "FILE")

    return run


def test_without_known_vulnerabilities(pip_audit: Callable[..., tuple[int, str]]) -> None:
    assert pip_audit(SAFE) == (0, "FILE: 1 packages checked, 0 known vulnerabilities, 0 not checked\n")


def test_a_known_vulnerability_is_named(pip_audit: Callable[..., tuple[int, str]]) -> None:
    assert pip_audit(SAFE, VULNERABLE, code=1) == (
        1,
        (
            "FILE: 2 packages checked, 1 known vulnerabilities, 0 not checked\n"
            "  vulnerable: requests 2.0: PYSEC-1, fixed in 2.1\n"
        ),
    )


def test_an_unreachable_database_is_not_a_clean_result(pip_audit: Callable[..., tuple[int, str]]) -> None:
    assert pip_audit(stderr="ERROR: Failed to connect to pypi.org", code=1) == (
        3,
        (
            "FILE: 0 packages checked, 0 known vulnerabilities, 1 not checked\n"
            "  not checked: ERROR: Failed to connect to pypi.org\n"
        ),
    )


def test_a_package_that_was_skipped_is_named(pip_audit: Callable[..., tuple[int, str]]) -> None:
    code, output = pip_audit(SAFE, SKIPPED)

    assert code == 3
    assert "  not checked: private: Dependency not found on PyPI\n" in output


def test_a_vulnerability_counts_more_than_a_skipped_package(
    pip_audit: Callable[..., tuple[int, str]],
) -> None:
    assert pip_audit(VULNERABLE, SKIPPED, code=1)[0] == 1
