"""What `make` checks before it installs anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "sandbox" / "prerequisites.py"


def run(path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = None if path is None else {"PATH": str(path)}
    return subprocess.run(  # noqa: S603 - a fixed command
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


def test_nothing_is_missing_where_this_runs() -> None:
    assert (run().returncode, run().stderr) == (0, "")


def test_it_says_what_to_install_for_everything_that_is_missing(tmp_path: Path) -> None:
    """With nothing on the path there is neither a compiler nor pkg-config."""
    if not sys.platform.startswith("linux"):
        return
    result = run(tmp_path)
    assert result.returncode == 1
    assert "a C compiler. Debian and Ubuntu: apt-get install build-essential" in result.stderr
    assert "pkg-config. Debian and Ubuntu: apt-get install pkg-config" in result.stderr


def test_missing_headers_of_openssl_are_found(tmp_path: Path) -> None:
    """Without them Proton would be compiled without TLS, and nobody would be told."""
    for name, code in (("cc", 0), ("pkg-config", 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    if not sys.platform.startswith("linux"):
        return
    (problem,) = run(tmp_path).stderr.splitlines()
    assert problem.startswith(
        "missing: the headers of OpenSSL. Debian and Ubuntu: apt-get install libssl-dev;"
    )
